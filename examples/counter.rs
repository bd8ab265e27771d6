//! A counter in the process: define nothing, embed the ready-made entity, lose nothing.
//!
//! `cargo run --release --bin counter` prints
//!
//! ```text
//! 1
//! 3
//! the state survives: 3
//! ```

use anyhow::Result;
use stead::{Node, RocksStore, stock::Counter};

#[tokio::main]
async fn main() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let node = Node::builder()
        .store(RocksStore::open(directory.path())?)
        .entity::<Counter>()
        .start()
        .await?;
    let visits = node.entity::<Counter>("visits");
    println!("{}", visits.add(1).await?);
    println!("{}", visits.add(2).await?);
    node.drain().await?;
    // The directory is free again when the node and its references are gone.
    drop((visits, node));

    let node = Node::builder()
        .store(RocksStore::open(directory.path())?)
        .entity::<Counter>()
        .start()
        .await?;
    println!("the state survives: {}", node.entity::<Counter>("visits").value().await?);
    node.drain().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use stead::testing::NodeTest;

    use super::*;

    #[test]
    fn a_counter_counts_once_wherever_the_process_ends() {
        NodeTest::new().entity::<Counter>().crash_everywhere(async |node| {
            let visits = node.entity::<Counter>("visits");
            assert_eq!(visits.add(1).await.unwrap(), 1);
            visits.add(2).signal().await.unwrap();
            node.restart().await;
            assert_eq!(visits.value().await.unwrap(), 3);
        });
    }
}
