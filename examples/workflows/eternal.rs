//! An eternal workflow: a counter that never ends, beside the same counter as an entity.
//!
//! `cargo run --release --bin eternal` prints
//!
//! ```text
//! the workflow counts to 3000 in more than one run, the entity to 3000
//! ```
//!
//! The entity is the better one. An event to the workflow is acknowledged before it is counted, so nobody hears the new
//! sum from it; each is kept in a history until the run goes on as another one; and the sum is shown as a status, which no
//! index finds. What has a state and answers is an entity. What goes through steps and waits is a workflow.

use anyhow::Result;
use stead::{Failure, Node, RocksStore, stock::Counter, workflow, workflow::Workflow};

/// Counts for ever.
struct Counting;

#[workflow(name = "counting", events(add: i64))]
impl Counting {
    pub async fn run(ctx: Workflow<Self>, mut sum: i64) -> Result<(), Failure> {
        loop {
            sum += ctx.add().await?;
            ctx.set_status(&sum);
            if ctx.history_is_long() {
                // Another run of the same key, with this input and an empty history. Events that wait go along.
                return ctx.continue_as(sum).await;
            }
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let data = tempfile::tempdir()?;
    let store = RocksStore::open(data.path())?;
    let builder = Node::builder().store(store).entity::<Counter>().workflow(Counting);
    let node = builder.start().await?;
    let (counting, counter) = (node.workflow::<Counting>("a"), node.entity::<Counter>("a"));
    counting.start(0).await?;
    let mut sum = 0;
    for _ in 0..3_000 {
        counting.add(1).await?;
        sum = counter.add(1).await?;
    }
    let status = counting.status().await?;
    let counted = status.custom_status;
    let runs = if status.run > 1 { "more than one run" } else { "one run" };
    println!("the workflow counts to {counted} in {runs}, the entity to {sum}");
    node.drain().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use stead::testing::WorkflowDriver;

    use super::*;

    #[test]
    fn it_counts_wherever_the_process_ends() {
        WorkflowDriver::crash_everywhere(
            || WorkflowDriver::new("a", Counting),
            |counting| {
                counting.start(5).unwrap();
                for number in 1..=4 {
                    counting.event("add", number).unwrap();
                }
                assert_eq!(counting.custom_status::<i64>(), Some(15));
            },
        );
    }
}
