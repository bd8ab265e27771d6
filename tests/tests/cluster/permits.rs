//! Real events through three nodes that are killed and replaced.

use anyhow::{Result, ensure};
use stead_tests::{binary, database::Database};

#[tokio::test(flavor = "multi_thread")]
async fn real_events_through_nodes_that_are_killed_end_without_a_difference() -> Result<()> {
    let _alone = super::BUSY.lock().await;
    let Some(database) = Database::start(&["max_connections=200"]).await? else { return Ok(()) };
    for form in ["entities", "workflows"] {
        let mut command = tokio::process::Command::new(binary("permits")?);
        command.args(["drive", "--kills", "10", "--seed", "3", "--form", form]);
        command.args(["--store", &database.url()]).kill_on_drop(true);
        let output = command.output().await?;
        let said = String::from_utf8_lossy(&output.stdout);
        let failed = String::from_utf8_lossy(&output.stderr);
        let is_same = output.status.success() && said.contains("no difference");
        ensure!(is_same, "{form}: {said}{failed}");
    }
    Ok(())
}
