//! `stead workflow`: what it asks a running server, what it prints, and its exit codes.

use std::process::Output;

use anyhow::{Result, ensure};
use serde_json::Value;
use stead_tests::{Server, binary, wait::until_true};
use tokio::process::Command;

/// Runs `stead workflow`: whether it went well, and what it printed.
async fn run(server: &Server, arguments: &[&str]) -> Result<(bool, String)> {
    let url = format!("http://{}", server.address());
    let mut command = Command::new(binary("stead")?);
    command.arg("workflow").args(arguments).env("STEAD_URL", url);
    let Output { status, stdout, stderr } = command.output().await?;
    let printed = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
    Ok((status.success(), printed.into_owned()))
}

#[tokio::test]
async fn workflows_are_started_shown_and_ended_from_the_command_line() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let of = |verb: &'static str, key: &'static str| vec![verb, "approval-workflow", key];
    let with = |verb, key, more: &[&'static str]| {
        of(verb, key).into_iter().chain(more.iter().copied()).collect::<Vec<_>>()
    };
    let (went_well, printed) =
        run(&server, &with("start", "a b", &["{\"timeoutMs\":600000}"])).await?;
    ensure!(went_well && printed.contains("started"), "{printed}");
    let (_, status) = run(&server, &of("status", "a b")).await?;
    for words in ["status", "running", "waits for", "event ApprovalEvent", "timer until"] {
        ensure!(status.contains(words), "{words}: {status}");
    }
    let (_, json) = run(&server, &with("status", "a b", &["--json"])).await?;
    ensure!(serde_json::from_str::<Value>(&json)?["status"] == "running", "{json}");
    ensure!(run(&server, &with("suspend", "a b", &["--reason", "lunch"])).await?.0);
    let (_, list) = run(&server, &["list", "approval-workflow", "--status", "suspended"]).await?;
    ensure!(list.lines().count() == 2 && list.contains("a b"), "{list}");
    ensure!(run(&server, &of("resume", "a b")).await?.0);
    ensure!(run(&server, &with("event", "a b", &["ApprovalEvent", "true"])).await?.0);
    let (went_well, result) = run(&server, &of("wait", "a b")).await?;
    ensure!(went_well && result.trim() == "\"approved\"", "{result}");
    let (_, history) = run(&server, &of("history", "a b")).await?;
    ensure!(history.contains("start") && history.contains("event ApprovalEvent"), "{history}");
    let (went_well, refused) = run(&server, &of("cancel", "a b")).await?;
    ensure!(!went_well && refused.contains("has ended"), "{refused}");

    let restart = with("restart", "a b", &["--new-key", "c"]);
    ensure!(run(&server, &restart).await?.0);
    let is_there =
        async || run(&server, &of("status", "c")).await.is_ok_and(|(is_there, _)| is_there);
    until_true("it is started", is_there).await;
    ensure!(run(&server, &with("terminate", "c", &["--reason", "enough"])).await?.0);
    let (went_well, result) = run(&server, &of("wait", "c")).await?;
    ensure!(!went_well && result.contains("enough"), "{result}");
    ensure!(run(&server, &of("rewind", "c")).await?.0, "it goes on from where it was");
    ensure!(run(&server, &of("terminate", "c")).await?.0);
    ensure!(run(&server, &with("purge", "c", &["--recursive"])).await?.0);
    let (went_well, gone) = run(&server, &of("status", "c")).await?;
    ensure!(!went_well && gone.contains("was purged"), "{gone}");
    for (verb, more) in [("cancel", &[][..]), ("event", &["go", "1"]), ("start", &[])] {
        let (went_well, refused) = run(&server, &with(verb, ".", more)).await?;
        ensure!(!went_well && refused.contains("key"), "{verb}: {refused}");
    }
    let (went_well, refused) = run(&server, &with("event", "d", &["..", "1"])).await?;
    ensure!(!went_well && refused.contains("event"), "{refused}");
    for key in ["e-1", "e-2"] {
        ensure!(run(&server, &["start", "approval-workflow", key]).await?.0);
    }
    let batch = ["batch", "terminate", "approval-workflow", "--prefix", "e-", "--reason", "over"];
    let (went_well, table) = run(&server, &batch).await?;
    ensure!(went_well && table.lines().last().is_some_and(|it| it.trim() == "2     0"), "{table}");
    let (went_well, json) = run(&server, &[&batch[..], &["--json"]].concat()).await?;
    ensure!(!went_well && json.contains("\"failed\":2") && json.contains("has ended"), "{json}");
    ensure!(!run(&server, &["batch", "purge", "approval-workflow"]).await?.0, "which are meant?");
    let (_, list) = run(&server, &["list", "approval-workflow"]).await?;
    ensure!(
        !list.contains("cancel") && !list.contains("event"),
        "nothing else was started: {list}"
    );
    let started = with("start", "d", &["{\"timeoutMs\":10}", "--wait", "--policy", "once"]);
    ensure!(run(&server, &started).await? == (true, "\"timed out\"\n".into()));
    Ok(())
}
