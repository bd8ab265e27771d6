//! What waits, and what will not be tried again: reminders, delayed signals and dead letters, listed to
//! the end, cancelled, replayed and dropped.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;
use stead_tests::{Server, command_of, free_address, problem, wait::until};
use tokio::task::JoinSet;

const C: &str = "/v1/entities/counter/c";

async fn unruly(data: &std::path::Path) -> Result<Server> {
    let address = free_address()?;
    Server::run(command_of("unruly", data, address, &["--retries", "0"])?, address).await
}

async fn json(server: &Server, path: &str) -> Result<Value> {
    Ok(server.get(path).send().await?.error_for_status()?.json().await?)
}

/// All rows of a list, page by page.
async fn pages(server: &Server, path: &str, name: &str) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    let mut after = String::new();
    loop {
        let sign = if path.contains('?') { '&' } else { '?' };
        let page = json(server, &format!("{path}{sign}limit=400{after}")).await?;
        rows.extend(page[name].as_array().context("rows")?.iter().cloned());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return Ok(rows),
        }
    }
}

#[tokio::test]
async fn every_delayed_signal_is_listed_under_the_id_that_its_acceptance_told() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let mut told = Vec::new();
    for round in 0..21 {
        let sends = (0..50).map(|_| {
            let path = format!("{C}/signals/add?delay=PT{}H", round + 1);
            server.post(&path, "1").send()
        });
        for sent in sends.collect::<Vec<_>>() {
            let accepted = sent.await?;
            assert_eq!(accepted.status(), 202);
            let body: Value = accepted.json().await?;
            told.push(body["reminder"].as_str().context("an id")?.to_owned());
        }
    }
    let listed = pages(&server, &format!("{C}/reminders"), "reminders").await?;
    let mut listed: Vec<_> = listed.iter().filter_map(|row| row["id"].as_str()).collect();
    assert_eq!(listed.len(), 1_050, "more than one page, and all of them");
    listed.sort_unstable();
    told.sort_unstable();
    assert_eq!(listed, told);
    let bad = server.get(&format!("{C}/reminders?after=nonsense")).send().await?;
    assert_eq!(problem(bad).await?.0, 400);
    Ok(())
}

#[tokio::test]
async fn a_delayed_signal_is_cancelled_and_causes_no_turn() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let delayed = async |delay: &str, body: &str| {
        let path = format!("{C}/signals/add?delay={delay}");
        let accepted =
            server.post(&path, body.to_owned()).header("idempotency-key", body.to_owned());
        let body: Value = accepted.send().await?.json().await?;
        anyhow::Ok(body["reminder"].as_str().context("an id")?.to_owned())
    };
    let (soon, later) = (delayed("PT1S", "1").await?, delayed("PT1.2S", "10").await?);
    assert_eq!(delayed("PT1S", "1").await?, soon, "a repeat is told the same id");
    let cancel = |id: &str| server.delete(&format!("{C}/reminders/{id}")).send();
    assert_eq!(cancel(&soon).await?.status(), 204);
    assert_eq!(problem(cancel(&soon).await?).await?.0, 404, "it is gone");
    for wrong in ["delayed-1", "named-nothing"] {
        assert_eq!(problem(cancel(wrong).await?).await?.0, 404, "{wrong}");
    }
    assert_eq!(problem(cancel("nonsense").await?).await?.0, 400);
    let queried = async || {
        let value = server.get(&format!("{C}/queries/value")).send().await?;
        anyhow::Ok(value.text().await?)
    };
    until("the other one is applied", async || Ok((queried().await? == "10").then_some(())))
        .await?;
    assert_eq!(queried().await?, "10", "only the other one was applied");
    assert_eq!(problem(cancel(&later).await?).await?.0, 404, "it was applied");
    server.kill()?;
    let server = Server::start(data.path(), &[]).await?;
    let value = server.get(&format!("{C}/queries/value")).send().await?.text().await?;
    assert_eq!(value, "10");
    Ok(())
}

#[tokio::test]
async fn an_operator_cancels_a_named_reminder() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let body = r#"{"approver":"kim","timeout":"PT1H","escalate_to":null}"#;
    server.call("/v1/entities/approval/a%2Fb/calls/request", body).await?;
    let path = "/v1/entities/approval/a%2Fb/reminders";
    let listed = json(&server, path).await?;
    let id = listed["reminders"][0]["id"].as_str().context("a reminder")?.to_owned();
    assert!(id.starts_with("named-"), "{id}");
    assert_eq!(server.delete(&format!("{path}/{id}")).send().await?.status(), 204);
    assert_eq!(problem(server.delete(&format!("{path}/{id}")).send().await?).await?.0, 404);
    assert_eq!(json(&server, path).await?["reminders"], serde_json::json!([]));
    server.kill()?;
    let server = Server::start(data.path(), &[]).await?;
    assert_eq!(json(&server, path).await?["reminders"], serde_json::json!([]), "after a crash too");
    Ok(())
}

async fn letters(server: &Server, filter: &str) -> Result<Vec<Value>> {
    pages(server, &format!("/v1/dead-letters{filter}"), "dead_letters").await
}

async fn wait_for_letters(server: &Server, filter: &str, count: usize) -> Result<Vec<Value>> {
    let found = async || Ok(Some(letters(server, filter).await?).filter(|it| it.len() == count));
    until(&format!("there are {count} letters"), found).await
}

#[tokio::test]
async fn dead_letters_are_filtered_replayed_and_dropped_in_bulk() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = unruly(data.path()).await?;
    for number in 0..30 {
        let path = format!("/v1/entities/unruly/u{number}/signals/explode");
        assert_eq!(server.post(&path, "").send().await?.status(), 202);
        let path = format!("/v1/entities/unruly/u{number}/signals/refuse");
        assert_eq!(server.post(&path, "").send().await?.status(), 202);
    }
    wait_for_letters(&server, "", 60).await?;
    assert_eq!(letters(&server, "?cause=failure").await?.len(), 30);
    assert_eq!(letters(&server, "?operation=refuse&type=unruly").await?.len(), 30);
    assert_eq!(letters(&server, "?entity=unruly%2Fu7").await?.len(), 2);
    assert_eq!(letters(&server, "?type=counter").await?.len(), 0);
    for wrong in ["?cause=boredom", "?colour=red"] {
        let answer = server.get(&format!("/v1/dead-letters{wrong}")).send().await?;
        assert_eq!(problem(answer).await?.0, 400, "{wrong}");
    }
    for wrong in ["", "?all=true&type=unruly", "?all=yes"] {
        let answer = server.delete(&format!("/v1/dead-letters{wrong}")).send().await?;
        assert_eq!(problem(answer).await?.0, 400, "{wrong}: never all of them by mistake");
    }
    // What is replayed fails again, each of them once.
    let replayed: Value =
        server.post("/v1/dead-letters/replay?cause=failure", "").send().await?.json().await?;
    assert_eq!((&replayed["done"], &replayed["failed"]), (&30.into(), &0.into()));
    let again = wait_for_letters(&server, "?cause=failure", 30).await?;
    assert!(again.iter().all(|letter| letter["reason"].as_str().is_some()));
    let dropped: Value =
        server.delete("/v1/dead-letters?operation=explode").send().await?.json().await?;
    assert_eq!(dropped["done"], 30);
    assert_eq!(letters(&server, "").await?.len(), 30, "the others are still there");
    let dropped: Value = server.delete("/v1/dead-letters?all=true").send().await?.json().await?;
    assert_eq!(dropped["done"], 30);
    assert_eq!(letters(&server, "").await?.len(), 0);
    Ok(())
}

#[tokio::test]
async fn a_replay_at_the_cap_of_rejections_loses_no_other() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = unruly(data.path()).await?;
    // One entity is in one partition, which keeps 100 rejections.
    for _ in 0..100 {
        server.post("/v1/entities/unruly/full/signals/refuse", "").send().await?;
    }
    let kept = wait_for_letters(&server, "", 100).await?;
    for letter in kept.iter().take(10) {
        let id = letter["id"].as_str().context("an id")?;
        let replayed = server.post(&format!("/v1/dead-letters/{id}/replay"), "").send().await?;
        assert_eq!(replayed.status(), 202);
    }
    let after = wait_for_letters(&server, "", 100).await?;
    let ids = |letters: &[Value]| -> Vec<String> {
        letters.iter().filter_map(|letter| Some(letter["id"].as_str()?.to_owned())).collect()
    };
    let (before, after) = (ids(&kept), ids(&after));
    assert!(before[10..].iter().all(|id| after.contains(id)), "those that were not replayed");
    Ok(())
}

#[tokio::test]
async fn a_letter_whose_replay_was_withdrawn_can_be_replayed_again() -> Result<()> {
    let data = tempfile::tempdir()?;
    let address = free_address()?;
    let arguments = ["--retries", "0", "--call-deadline", "1", "--turn-deadline", "4"];
    let server =
        Server::run(command_of("unruly", data.path(), address, &arguments)?, address).await?;
    server.post("/v1/entities/unruly/u/signals/explode", "").send().await?;
    let letter =
        wait_for_letters(&server, "", 1).await?[0]["id"].as_str().context("id")?.to_owned();
    // The entity is busy for longer than the replay's deadline.
    let busy = server.post("/v1/entities/unruly/u/signals/hang", "").send().await?;
    assert_eq!(busy.status(), 202);
    let replay =
        async || server.post(&format!("/v1/dead-letters/{letter}/replay"), "").send().await;
    let mut withdrawn = 0;
    let mut replayed = 0;
    for _ in 0..100 {
        match replay().await?.status().as_u16() {
            202 => {
                replayed += 1;
                break;
            }
            503 | 504 => withdrawn += 1,
            other => anyhow::bail!("{other} after {withdrawn} withdrawn replays"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(replayed, 1, "{withdrawn} were withdrawn");
    Ok(())
}

/// A letter is replayed, or is still there and can be: whatever became of the tries before.
async fn replay_until_accepted(server: &Server, letter: &str) -> Result<u32> {
    let mut withdrawn = 0;
    for _ in 0..300 {
        let replay = server.post(&format!("/v1/dead-letters/{letter}/replay"), "").send().await?;
        match replay.status().as_u16() {
            202 => return Ok(withdrawn),
            429 | 503 | 504 => withdrawn += 1,
            // One of the tries that nobody waited for any more may have been carried out.
            404 => {
                if let Ok(listed) = letters(server, "?operation=explode").await {
                    let is_there = listed.iter().any(|row| row["id"] == letter);
                    anyhow::ensure!(!is_there, "{letter} is listed and cannot be replayed");
                    return Ok(withdrawn);
                }
            }
            other => anyhow::bail!("{other} after {withdrawn} withdrawn replays"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("{letter} was not replayed, {withdrawn} were withdrawn")
}

#[tokio::test]
async fn letters_whose_replays_are_withdrawn_during_a_storm_can_be_replayed() -> Result<()> {
    const LETTERS: usize = 32;
    let data = tempfile::tempdir()?;
    let server = unruly(data.path()).await?;
    for key in 0..LETTERS {
        server.post(&format!("/v1/entities/unruly/{key}/signals/explode"), "").send().await?;
    }
    let mut found = wait_for_letters(&server, "?operation=explode", LETTERS).await?;
    assert_eq!(server.terminate().await?.code(), Some(0));
    // What is not accepted within this is withdrawn.
    let arguments = ["--retries", "0", "--call-deadline", "0.02", "--turn-deadline", "3"];
    let address = free_address()?;
    let server =
        Server::run(command_of("unruly", data.path(), address, &arguments)?, address).await?;
    // Half of the entities hang, and all of them are called by many.
    for key in (0..LETTERS).step_by(2) {
        server.post(&format!("/v1/entities/unruly/{key}/signals/hang"), "").send().await?;
    }
    let server = Arc::new(server);
    let mut withdrawn = 0;
    // A replay makes a new letter: another round, where none was withdrawn.
    for _ in 0..20 {
        let mut tasks = JoinSet::<Result<u32>>::new();
        for caller in 0..64 {
            let server = server.clone();
            tasks.spawn(async move {
                for round in 0..60 {
                    let key = (caller * 7 + round) % LETTERS;
                    let call = server.post(&format!("/v1/entities/unruly/{key}/calls/append"), "1");
                    let _whatever_is_answered = call.send().await?;
                }
                Ok(0)
            });
        }
        for letter in std::mem::take(&mut found) {
            let server = server.clone();
            tasks.spawn(async move {
                replay_until_accepted(&server, letter["id"].as_str().context("id")?).await
            });
        }
        while let Some(ended) = tasks.join_next().await {
            withdrawn += ended??;
        }
        if withdrawn > 0 {
            break;
        }
        found = letters(&server, "?operation=explode").await?;
    }
    assert!(withdrawn > 0, "no replay was withdrawn: nothing was tested");
    Ok(())
}

#[tokio::test]
async fn what_nobody_serves_is_listed_and_told_by_readiness() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = unruly(data.path()).await?;
    for key in ["a", "b"] {
        let path = format!("/v1/entities/unruly/{key}/signals/append?delay=PT10H");
        assert_eq!(server.post(&path, "1").send().await?.status(), 202);
    }
    assert_eq!(json(&server, "/v1/unserved").await?["unserved"], serde_json::json!([]));
    assert_eq!(server.terminate().await?.code(), Some(0));
    // The plain server does not know the type.
    let server = Server::start(data.path(), &[]).await?;
    let listed = json(&server, "/v1/unserved").await?;
    let row = &listed["unserved"][0];
    assert_eq!((&row["type"], &row["reminders"]), (&"unruly".into(), &2.into()), "{listed}");
    assert_eq!(row["operation"], Value::Null);
    let told = async || {
        let ready = server.get("/readyz").send().await?;
        assert_eq!(ready.status(), 200, "it serves");
        Ok(Some(ready.text().await?).filter(|text| text.contains("unruly")))
    };
    let text = until("readiness tells of it", told).await?;
    assert!(text.starts_with("ready\n"), "{text}");
    Ok(())
}

#[tokio::test]
async fn what_names_an_operation_that_no_longer_exists_is_listed_before_it_is_due() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = unruly(data.path()).await?;
    let path = "/v1/entities/shifty/a/signals/count";
    assert_eq!(server.post(&format!("{path}?delay=PT10H"), "").send().await?.status(), 202);
    assert_eq!(server.terminate().await?.code(), Some(0));
    let address = free_address()?;
    let mut command = command_of("unruly", data.path(), address, &[])?;
    command.env("SHIFTY", "renamed");
    let server = Server::run(command, address).await?;
    let listed = json(&server, "/v1/unserved").await?;
    let row = &listed["unserved"][0];
    assert_eq!((&row["operation"], &row["reminders"]), (&"count".into(), &1.into()), "{listed}");
    assert_eq!(row["example"], "shifty/a");
    // It is gone from the list once it is cancelled.
    let reminders = json(&server, "/v1/entities/shifty/a/reminders").await?;
    let id = reminders["reminders"][0]["id"].as_str().context("an id")?.to_owned();
    let cancelled = server.delete(&format!("/v1/entities/shifty/a/reminders/{id}")).send().await?;
    assert_eq!(cancelled.status(), 204);
    assert_eq!(json(&server, "/v1/unserved").await?["unserved"], serde_json::json!([]));
    Ok(())
}
