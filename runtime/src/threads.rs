//! The threads of a node for the parts that must not wait for one another.

use std::io;

use tokio::runtime::{Builder, Handle};

/// The threads of a node: its own ones, or none beside the runtime's, so that a runtime of one thread
/// with a paused clock runs everything in an order that is the same each time.
#[derive(Debug, Clone)]
pub(crate) struct Threads {
    /// The runtime on which the node was started.
    pub(crate) runtime: Handle,
    pub(crate) is_shared: bool,
}

impl Threads {
    /// Runs what blocks on a thread of its own; its tasks are the runtime's.
    pub(crate) fn run(
        &self,
        name: &str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let runtime = self.runtime.clone();
        self.on_thread(name, work, move |work| runtime.block_on(work))
    }

    /// Runs what goes on though every thread of the runtime is blocked.
    pub(crate) fn run_apart(
        &self,
        name: &str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let build = || Builder::new_current_thread().enable_all().build();
        // None is needed where there are no threads, and it could not be dropped within another.
        let runtime = (!self.is_shared).then(build).transpose()?;
        self.on_thread(name, work, move |work| {
            if let Some(runtime) = runtime {
                runtime.block_on(work);
            }
        })
    }

    #[allow(clippy::disallowed_methods, reason = "the home of a node's threads")]
    fn on_thread<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: &str,
        work: F,
        run: impl FnOnce(F) + Send + 'static,
    ) -> io::Result<()> {
        if self.is_shared {
            drop(self.runtime.spawn(work));
            return Ok(());
        }
        std::thread::Builder::new().name(name.into()).spawn(move || run(work)).map(drop)
    }
}
