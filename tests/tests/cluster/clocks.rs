//! Wall clocks of nodes.

use std::time::Duration;

use anyhow::Result;
use stead_tests::{database::Database, leave_out, secret_file, wait::until};

use super::nodes::{NodeProcess, can_skew};

/// So long that no node loses its lease because the machine is busy; clocks are off by far more.
const LEASE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn wall_clocks_of_nodes_play_no_part() -> Result<()> {
    if !can_skew() {
        leave_out("nodes whose wall clocks differ: libfaketime is not on this machine");
        return Ok(());
    }
    let _alone = super::BUSY.lock().await;
    let Some(database) = Database::start(&[]).await? else { return Ok(()) };
    let secret = secret_file(b"the secret of a cluster under test")?;
    let mut nodes = Vec::new();
    for (name, skew) in [("ahead", "+7h"), ("behind", "-3h"), ("right", "+0")] {
        let mut node = NodeProcess::new(name, &database, Some(skew.into())).await?;
        node.lease = LEASE;
        node.start(secret.path()).await?;
        nodes.push(node);
    }
    let joined = async || {
        // The first one makes the tables.
        let members = database.number("select count(*) from stead_nodes").await;
        Ok(members.is_ok_and(|members| members == 3).then_some(()))
    };
    until("all have joined", joined).await?;
    // Each join has everybody look at everybody's lease.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let joined = database.number("select count(*) from stead_lanes").await?;
    assert_eq!(joined, 3, "nobody was evicted and joined again");
    let members = database.number("select count(*) from stead_nodes").await?;
    assert_eq!(members, 3);
    Ok(())
}
