//! An approval that nobody settles in time.
//!
//! `cargo run --release --bin approval` prints
//!
//! ```text
//! requested: pending
//! two seconds later: escalated
//! too late: rejected: the approval is escalated
//! ```

use std::time::Duration;

use anyhow::Result;
use stead::{
    Node, RocksStore,
    stock::{Approval, ApprovalRequest},
};

#[tokio::main]
async fn main() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = RocksStore::open(directory.path())?;
    let node = Node::builder().store(store).entity::<Approval>().start().await?;
    let holiday = node.entity::<Approval>("holiday-7");
    let timeout = Duration::from_secs(1).into();
    let request = ApprovalRequest { approver: "kim".into(), timeout, escalate_to: None };
    holiday.request(request).await?;
    println!("requested: {}", holiday.status().await?);
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("two seconds later: {}", holiday.status().await?);
    if let Err(error) = holiday.approve("kim".into()).await {
        println!("too late: {error}");
    }
    node.drain().await?;
    Ok(())
}
