//! Real events through three nodes that are killed and replaced.

use std::process::Stdio;

use anyhow::{Result, ensure};
use stead_tests::{binary, database::Database};

#[tokio::test(flavor = "multi_thread")]
async fn real_events_through_nodes_that_are_killed_end_without_a_difference() -> Result<()> {
    let Some(database) = Database::start(&["max_connections=200"]).await? else { return Ok(()) };
    let mut command = tokio::process::Command::new(binary("permits")?);
    command.args(["drive", "--kills", "10", "--seed", "3", "--store", &database.url()]);
    let output = command.stderr(Stdio::null()).kill_on_drop(true).output().await?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && said.contains("no difference"), "{said}");
    Ok(())
}
