//! Where the parts of a node run that must not wait for one another.

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
    #[allow(clippy::disallowed_methods, reason = "the home of a node's threads")]
    pub(crate) fn run(
        &self,
        name: &str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        if self.is_shared {
            drop(self.runtime.spawn(work));
            return Ok(());
        }
        let runtime = self.runtime.clone();
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || runtime.block_on(work))
            .map(drop)
    }

    /// Runs what goes on though every thread of the runtime spins.
    #[allow(clippy::disallowed_methods, reason = "the home of a node's threads")]
    pub(crate) fn run_apart(
        &self,
        name: &str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        if self.is_shared {
            drop(self.runtime.spawn(work));
            return Ok(());
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || runtime.block_on(work))
            .map(drop)
    }
}
