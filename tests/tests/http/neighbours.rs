//! Workflows beside others that wait for what is not theirs, panic, block their thread or end the process.

use anyhow::{Result, ensure};
use serde_json::Value;
use stead_tests::{Server, command_of, free_address, wait::until};

/// How many go on beside those in trouble.
const OTHERS: u32 = 1_000;
/// How the code of those goes wrong, and a part of the reason that is told.
const TROUBLES: [(&str, &str); 4] = [
    ("panic", "on purpose"),
    ("wait", "not the workflow's"),
    ("block", "the process ended"),
    ("end", "the process ended"),
];

/// Starts, or tells, all of those that are in no trouble.
async fn all_others(server: &Server, route: &str) -> Result<()> {
    for number in 0..OTHERS {
        let path = format!("/v1/workflows/errand/{number}{route}");
        let answer = server.post(&path, number.to_string()).send().await?;
        ensure!(answer.status() == 202, "{path}: {}", answer.text().await?);
    }
    Ok(())
}

async fn status(server: &Server, path: &str) -> Result<Value> {
    Ok(server.get(path).send().await?.json().await?)
}

#[tokio::test]
async fn others_go_on_beside_workflows_in_every_trouble_and_those_are_stuck() -> Result<()> {
    let data = tempfile::tempdir()?;
    let start = async || {
        let address = free_address()?;
        let limits = ["--turn-deadline", "0.3", "--block-limit", "1"];
        let mut command = command_of("unruly", data.path(), address, &limits)?;
        command.env("ERRAND", "first").env("RUST_LOG", "error");
        Server::run(command, address).await
    };
    let mut server = start().await?;
    all_others(&server, "").await?;
    for (how, _) in TROUBLES {
        // The process may end before it has answered.
        let _answered =
            server.post(&format!("/v1/workflows/trouble/{how}"), format!("{how:?}")).send().await;
        for _ in 0..10 {
            let shown = status(&server, &format!("/v1/workflows/trouble/{how}?wait=2s")).await;
            if shown.is_ok_and(|shown| !shown["stuck"].is_null()) {
                break;
            }
            if server.get("/readyz").send().await.is_err() {
                server.wait_exit().await?;
                // It may end again before it answers.
                server = until("a server", async || Ok(start().await.ok())).await?;
            }
        }
    }
    for (how, why) in TROUBLES {
        let shown = status(&server, &format!("/v1/workflows/trouble/{how}")).await?;
        let reason = shown["stuck"]["reason"].as_str().unwrap_or_default();
        ensure!(reason.contains(why), "{how}: {shown}");
    }
    all_others(&server, "/events/go").await?;
    for number in 0..OTHERS {
        let shown = status(&server, &format!("/v1/workflows/errand/{number}?wait=30s")).await?;
        ensure!(shown["output"] == 2 * number, "{number}: {shown}");
    }
    Ok(())
}
