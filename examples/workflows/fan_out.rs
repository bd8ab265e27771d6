//! Fan-out and fan-in: one step for each part of the work, a few at one time, and a sum at the end.
//!
//! `cargo run --release --bin fan_out` prints
//!
//! ```text
//! 40 pages have 780 words, at most 8 were counted at one time
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use stead::{
    Failure, Node, RocksStore, workflow,
    workflow::{StepError, Workflow},
};

/// How many pages are counted, and the most that were at one time.
#[derive(Debug, Default)]
struct Counts {
    running: AtomicU32,
    most: AtomicU32,
}

/// Counts the words of a book.
struct WordCounts(Arc<Counts>);

#[workflow(name = "word-count")]
impl WordCounts {
    pub async fn run(ctx: Workflow<Self>, pages: u32) -> Result<u32, Failure> {
        let counts = ctx.try_all((0..pages).map(|page| ctx.count(page))).await?;
        Ok(counts.into_iter().sum())
    }

    /// On one node eight of them run at one time; the others wait their turn.
    #[step(at_most = 8)]
    async fn count(&self, page: u32) -> Result<u32, StepError> {
        let running = self.0.running.fetch_add(1, Ordering::Relaxed) + 1;
        self.0.most.fetch_max(running, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.0.running.fetch_sub(1, Ordering::Relaxed);
        Ok(page)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let data = tempfile::tempdir()?;
    let store = RocksStore::open(data.path())?;
    let counts = Arc::new(Counts::default());
    let node = Node::builder().store(store).workflow(WordCounts(counts.clone())).start().await?;
    let book = node.workflow::<WordCounts>("a-book");
    book.start(40).await?;
    let words = book.result().await?;
    let most = counts.most.load(Ordering::Relaxed);
    println!("40 pages have {words} words, at most {most} were counted at one time");
    node.drain().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use stead::testing::WorkflowDriver;

    use super::*;

    #[test]
    fn each_page_is_counted_wherever_the_process_ends() {
        WorkflowDriver::crash_everywhere(
            || WorkflowDriver::new("a-book", WordCounts(Arc::default())),
            |book| {
                book.step("count").fails("illegible").returns(100);
                book.start(5).unwrap();
                book.run_to_end().unwrap();
                assert_eq!(book.result(), Ok(5 * 100));
            },
        );
    }
}
