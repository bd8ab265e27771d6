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

#[cfg(test)]
mod tests {
    use stead::{stock::Status, testing::NodeTest};

    use super::*;

    #[test]
    fn an_approval_is_escalated_in_time_also_after_downtime() {
        NodeTest::new().entity::<Approval>().crash_everywhere(async |node| {
            let holiday = node.entity::<Approval>("holiday-7");
            let (approver, timeout) =
                ("kim".to_owned(), Duration::from_secs(7 * 24 * 3_600).into());
            let request = ApprovalRequest { approver, timeout, escalate_to: None };
            holiday.request(request).await.unwrap();
            node.advance(Duration::from_secs(6 * 24 * 3_600)).await;
            assert_eq!(holiday.status().await.unwrap(), Status::Pending);
            node.kill().await;
            node.advance(Duration::from_secs(2 * 24 * 3_600)).await;
            node.restart().await;
            node.assert_settles().await;
            assert_eq!(holiday.status().await.unwrap(), Status::Escalated);
            let late = holiday.approve("kim".into()).await.unwrap_err();
            assert!(late.rejection().is_some(), "{late}");
        });
    }
}
