//! `stead workflow`: what it asks a running server, what it prints, and its exit codes.

use std::{path::Path, process::Output};

use anyhow::{Result, ensure};
use serde_json::Value;
use stead_tests::{Server, binary, command_of, free_address, wait::until_true};
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

#[tokio::test]
async fn a_program_is_tried_on_the_workflows_that_run_before_it_is_deployed() -> Result<()> {
    let (data, address) = (tempfile::tempdir()?, free_address()?);
    let mut command = command_of("unruly", data.path(), address, &[])?;
    command.env("ERRAND", "first");
    let server = Server::run(command, address).await?;
    let url = format!("http://{address}");
    let client = stead::Client::new(&url)?;
    for number in 0..130_u32 {
        let errand = client.instance("errand", &format!("e-{number}"));
        let start = server.post(&format!("/v1/workflows/errand/e-{number}"), "5").send().await?;
        ensure!(start.status() == 202, "{start:?}");
        match number {
            0..10 => {
                errand.event("go", &1).await?;
                ensure!(errand.result_of::<u32>().await? == 6);
            }
            10..13 => errand.suspend("lunch").await?,
            _ => {}
        }
    }
    let is_fetched = async || {
        let of = async |number| client.instance("errand", &format!("e-{number}")).history().await;
        let histories = [of(0).await, of(20).await, of(129).await];
        histories.iter().all(|it| it.as_ref().is_ok_and(|it| it.deliveries() >= 2))
    };
    until_true("the steps have ended", is_fetched).await;
    let replay = async |program: &str, arguments: &[&str]| {
        let mut command = Command::new(binary("unruly")?);
        command.arg("replay").args(arguments).env("STEAD_URL", &url).env("ERRAND", program);
        let Output { status, stdout, stderr } = command.output().await?;
        let printed = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
        anyhow::Ok((status.code(), printed.into_owned()))
    };
    for program in ["first", "later"] {
        let (code, printed) = replay(program, &[]).await?;
        ensure!(code == Some(0) && printed.contains("all 120 workflows fit"), "{printed}");
    }
    let (code, printed) = replay("hasty", &["errand"]).await?;
    ensure!(code == Some(1) && printed.contains("0 workflows fit, 120 do not"), "{printed}");
    ensure!(printed.contains("step fetch at place 1"), "{printed}");
    ensure!(printed.lines().count() == 102, "a hundred are shown: {printed}");
    let (code, json) = replay("hasty", &["--json"]).await?;
    let json: Value = serde_json::from_str(json.lines().next().unwrap_or_default())?;
    ensure!(code == Some(1) && json["misfits"].as_array().map(Vec::len) == Some(120), "{json}");
    let (code, printed) = replay("none", &[]).await?;
    ensure!(code == Some(1) && printed.contains("does not host the type"), "{printed}");
    let (code, printed) = replay("first", &["erand"]).await?;
    ensure!(
        code == Some(1) && printed.contains("no workflow type erand, only errand"),
        "{printed}"
    );
    // Nothing was changed.
    let shown = client.instance("errand", "e-20").status_of::<u32>().await?;
    ensure!(shown.stuck.is_none() && shown.history.turns == 2, "{shown:?}");

    // What is saved from the command line is what tests replay.
    let (went_well, saved) = run(&server, &["history", "errand", "e-20", "--json"]).await?;
    let file = data.path().join("saved.json");
    std::fs::write(&file, &saved)?;
    let known = client.instance("errand", "e-20").history().await?;
    let saved = stead::workflow::SavedHistory::read(&file).map_err(anyhow::Error::msg)?;
    ensure!(went_well && saved == known, "{saved:?}");
    ensure!(server.terminate().await?.success());
    stuck_ones_are_listed_with_their_reasons(data.path()).await
}

/// Hosts what runs by code that does not fit.
async fn stuck_ones_are_listed_with_their_reasons(data: &Path) -> Result<()> {
    let (address, log) = (free_address()?, data.join("log"));
    let mut command = command_of("unruly", data, address, &[])?;
    command.env("ERRAND", "hasty");
    let server = Server::run_with_log(command, address, std::fs::File::create(&log)?).await?;
    for key in ["e-20", "e-21"] {
        let event = format!("/v1/workflows/errand/{key}/events/go");
        ensure!(server.post(&event, "1").send().await?.status() == 202);
    }
    let (_, list) = run(&server, &["list", "errand", "--stuck", "--version", "1"]).await?;
    let reason = "at place 1 the history began step fetch";
    for key in ["e-20", "e-21"] {
        let row = list.lines().find(|row| row.starts_with(key)).unwrap_or_default();
        ensure!(row.contains("running, stuck  1    1  ") && row.contains(reason), "{list}");
    }
    ensure!(list.lines().count() == 3, "{list}");
    let (_, none) = run(&server, &["list", "errand", "--version", "2"]).await?;
    ensure!(none.lines().count() == 1, "{none}");
    let rows: Value =
        server.get("/v1/workflows/errand?prefix=e-2&limit=2").send().await?.json().await?;
    let (first, second) = (&rows["workflows"][0], &rows["workflows"][1]);
    ensure!(first["key"] == "e-2" && first["status"] == "completed", "{rows}");
    ensure!(second["stuck"]["attempts"] == 1 && second.get("input").is_none(), "{rows}");
    let (log, told) = (std::fs::read_to_string(&log)?, "run 1 of version 1 is stuck");
    let told = log.lines().filter(|line| line.contains(told) && line.contains(reason));
    ensure!(told.count() == 2, "{log}");
    Ok(())
}
