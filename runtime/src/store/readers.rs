//! Threads of their own for reads that block: few, with a queue before them.
//!
//! The runtime's pool of blocking threads grows to hundreds under load, and each keeps memory of its
//! own. Here a read waits its turn instead. Reads that turns wait for go first; long reads, which page
//! through tables for people, use one thread at most. A read that nobody waits for any more is not
//! begun. What must never happen: a read is lost without its caller being told.

use std::{
    collections::VecDeque,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use super::Haste;

/// How many threads read.
const THREADS: usize = 4;
/// The most threads that long reads use at one time.
const LONG_MAX: usize = 1;

type Job = Box<dyn FnOnce() + Send>;

/// The threads and their queue. Dropping it ends the threads when they have finished what they do.
pub(super) struct Readers(Arc<Queue>);

#[derive(Default)]
struct Queue {
    jobs: Mutex<Jobs>,
    changed: Condvar,
}

#[derive(Default)]
struct Jobs {
    short: VecDeque<Job>,
    long: VecDeque<Job>,
    long_running: usize,
    is_closed: bool,
}

impl Readers {
    /// Starts the threads.
    ///
    /// # Errors
    /// Where the operating system gives none.
    #[allow(clippy::disallowed_methods, reason = "the home of a store's reading threads")]
    pub(super) fn start() -> io::Result<Self> {
        let readers = Self(Arc::default());
        for number in 0..THREADS {
            let queue = readers.0.clone();
            let thread = std::thread::Builder::new().name(format!("stead-read-{number}"));
            // One of them asks for long reads first, which would starve behind many short ones.
            thread.spawn(move || queue.serve(number == 0))?;
        }
        Ok(readers)
    }

    /// Has a thread do `work`; a panic goes on in whoever waits. Dropping the future before the work
    /// has begun cancels it.
    pub(super) fn run<T: Send + 'static>(
        &self,
        haste: Haste,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = T> + Send + 'static {
        let (sender, receiver) = oneshot::channel();
        self.0.push(
            haste,
            Box::new(move || {
                if !sender.is_closed() {
                    let _nobody_waits = sender.send(catch_unwind(AssertUnwindSafe(work)));
                }
            }),
        );
        async move {
            match receiver.await {
                Ok(Ok(done)) => done,
                Ok(Err(panic)) => resume_unwind(panic),
                // The threads serve what is queued before they end.
                Err(_) => std::future::pending().await,
            }
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.changed.notify_all();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, haste: Haste, job: Job) {
        let mut jobs = self.lock();
        match haste {
            Haste::Short => jobs.short.push_back(job),
            Haste::Long => jobs.long.push_back(job),
        }
        drop(jobs);
        // All of them: the one that is woken might not be free to take it.
        self.changed.notify_all();
    }

    fn serve(&self, prefers_long: bool) {
        let mut jobs = self.lock();
        loop {
            if let Some((job, haste)) = jobs.next(prefers_long) {
                drop(jobs);
                job();
                jobs = self.lock();
                if haste == Haste::Long {
                    jobs.long_running -= 1;
                }
            } else if jobs.is_closed && jobs.long.is_empty() {
                // Others may wait for a last long read that has ended.
                return self.changed.notify_all();
            } else {
                jobs = self.changed.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Jobs {
    fn next(&mut self, prefers_long: bool) -> Option<(Job, Haste)> {
        let has_long = self.long_running < LONG_MAX && !self.long.is_empty();
        if !(prefers_long && has_long)
            && let Some(job) = self.short.pop_front()
        {
            return Some((job, Haste::Short));
        }
        if !has_long {
            return None;
        }
        let job = self.long.pop_front()?;
        self.long_running += 1;
        Some((job, Haste::Long))
    }
}

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readers").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn long_reads_take_one_thread_and_short_ones_pass() {
        let readers = Readers::start().expect("threads");
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (open, gate) = std::sync::mpsc::sync_channel::<()>(1);
        let gate = Arc::new(Mutex::new(gate));
        let long = (0..8).map(|_| {
            let (running, most, gate) = (running.clone(), most.clone(), gate.clone());
            readers.run(Haste::Long, move || {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let _opened = gate.lock().expect("held by one").recv();
                running.fetch_sub(1, Ordering::SeqCst);
            })
        });
        let long: Vec<_> = long.collect();
        assert_eq!(readers.run(Haste::Short, || 5).await, 5, "though long reads wait");
        for _ in 0..8 {
            open.send(()).expect("read");
        }
        for read in long {
            read.await;
        }
        assert_eq!(most.load(Ordering::SeqCst), LONG_MAX);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_not_begun() {
        let readers = Readers::start().expect("threads");
        let (open, gate) = std::sync::mpsc::sync_channel::<()>(1);
        let first = readers.run(Haste::Long, move || gate.recv());
        let begun = Arc::new(AtomicUsize::new(0));
        let count = begun.clone();
        drop(readers.run(Haste::Long, move || count.fetch_add(1, Ordering::SeqCst)));
        open.send(()).expect("read");
        assert!(first.await.is_ok());
        readers.run(Haste::Long, || ()).await;
        assert_eq!(begun.load(Ordering::SeqCst), 0);
    }
}
