//! The guard around polls of workflows: what their code awaits that is not theirs is found where it is tried.
//!
//! A poll runs inside of a runtime of tokio that nobody drives and that has neither timers nor sockets. So code that asks
//! for those panics, and a task that it spawns is seen and never runs.

use std::{cell::RefCell, mem::ManuallyDrop};

use stead_entities::workflow::install_guard;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    /// The one of this thread. It is not dropped with it: a runtime may not be dropped where another one runs.
    static BARE: RefCell<ManuallyDrop<Option<Runtime>>> = const { RefCell::new(ManuallyDrop::new(None)) };
}

/// Has every poll of a workflow in this process go through the guard.
pub(crate) fn install() {
    install_guard(guarded);
}

fn guarded(poll: &mut dyn FnMut()) -> Result<(), String> {
    BARE.with_borrow_mut(|bare| {
        if bare.is_none() {
            let runtime = Builder::new_current_thread().build();
            **bare = Some(runtime.map_err(|error| format!("cannot be polled: {error}"))?);
        }
        let Some(runtime) = bare.as_ref() else { return Err("cannot be polled".to_owned()) };
        let before = runtime.metrics().num_alive_tasks();
        let entered = runtime.enter();
        poll();
        drop(entered);
        if runtime.metrics().num_alive_tasks() == before {
            return Ok(());
        }
        if let Some(runtime) = bare.take() {
            runtime.shutdown_background();
        }
        Err("spawned a task, which would not be there when it is replayed".to_owned())
    })
}
