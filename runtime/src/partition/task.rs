//! The tasks of a partition: what awaits runs beside it, watched, and ends with it.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use stead_entities::{Error, ErrorKind};
use tokio::task::AbortHandle;

use super::{turn::panicked, watch::Watch};
use crate::clock;

#[allow(clippy::disallowed_methods, reason = "the home of a partition's tasks")]
pub(super) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
    tokio::spawn(task).abort_handle()
}

/// A future that is watched while it is polled: one that does not return from a poll blocks its thread.
pub(super) struct Polled<'w, F, S> {
    pub(super) running: F,
    pub(super) seen: S,
    pub(super) watch: &'w Watch,
}

impl<F: Future + Unpin, S: Fn() + Unpin> Future for Polled<'_, F, S> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<F::Output> {
        (self.seen)();
        let polled = Pin::new(&mut self.running).poll(ctx);
        self.watch.end();
        polled
    }
}

/// Ends a task when it is dropped.
struct Bound<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Bound<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs an author's future in a task of its own; a panic or a missed deadline becomes an error.
#[allow(clippy::disallowed_methods, reason = "the home of a partition's tasks")]
pub(super) async fn within<T: Send + 'static>(
    deadline: Duration,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, Error> {
    let mut task = Bound(tokio::spawn(work));
    match clock::within(deadline, &mut task.0).await {
        Some(Ok(done)) => Ok(done),
        Some(Err(failed)) if failed.is_panic() => Err(panicked(&*failed.into_panic())),
        Some(Err(_)) => Err(Error::new(ErrorKind::Closed, "the node is stopping")),
        None => {
            // It ends where it awaits. Where it blocks its thread it ends never, and must not be tried
            // again meanwhile: the watchdog sees to it.
            task.0.abort();
            let _ended = (&mut task.0).await;
            let message = format!("the operation awaited for longer than {deadline:?}");
            Err(Error::new(ErrorKind::Deadline, message))
        }
    }
}
