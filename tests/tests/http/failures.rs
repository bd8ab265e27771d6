//! Operations that go wrong, layouts that change, data that is damaged, limits that are reached.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use stead::{
    EntityId, RocksStore,
    store::{Batch, CommitOutcome, Fence, Store, TypedReads as _, Write},
};
use stead_tests::{Server, command, command_of, free_address, problem};

async fn unruly(data: &Path, arguments: &[&str], shifty: &str) -> Result<Server> {
    let address = free_address()?;
    Server::run(unruly_command(data, address, arguments, shifty)?, address).await
}

fn unruly_command(
    data: &Path,
    address: SocketAddr,
    arguments: &[&str],
    shifty: &str,
) -> Result<std::process::Command> {
    let mut command = command_of("unruly", data, address, arguments)?;
    command.env("SHIFTY", shifty);
    Ok(command)
}

#[tokio::test]
async fn an_operation_that_fails_leaves_the_state_before_it() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = unruly(data.path(), &["--turn-deadline", "0.3"], "").await?;
    let path = |operation: &str| format!("/v1/entities/unruly/a/calls/{operation}");
    assert_eq!(server.call(&path("append"), "1").await?, json!([1]));
    for (operation, expected) in
        [("explode", (500, "internal")), ("refuse", (422, "rejected")), ("hang", (504, "deadline"))]
    {
        let (status, slug, _) = problem(server.post(&path(operation), "").send().await?).await?;
        assert_eq!((status, slug.as_str()), expected, "{operation}");
    }
    assert_eq!(server.call(&path("append"), "2").await?, json!([1, 2]));
    Ok(())
}

#[tokio::test]
async fn an_operation_that_blocks_its_thread_ends_the_process_and_is_retired() -> Result<()> {
    let data = tempfile::tempdir()?;
    let limits = ["--turn-deadline", "0.3", "--block-limit", "1.5"];
    let mut server = unruly(data.path(), &limits, "").await?;
    server.call("/v1/entities/unruly/to/calls/append", "1").await?;
    let blocked = server.post("/v1/entities/unruly/other/calls/block", "").send().await?;
    let (status, slug, _) = problem(blocked).await?;
    assert_eq!((status, slug.as_str()), (504, "unknown"), "told at its deadline");
    let (status, _, detail) = problem(server.get("/readyz").send().await?).await?;
    assert_eq!(status, 503);
    assert!(detail.contains("block of unruly/other"), "{detail}");
    assert_eq!(server.wait_exit().await?.code(), Some(7));
    // What was accepted is tried again after the restart, until it is retired.
    let mut server = unruly(data.path(), &limits, "").await?;
    server.call("/v1/entities/unruly/from/calls/send_block", "\"to\"").await?;
    assert_eq!(server.wait_exit().await?.code(), Some(7));
    let server = unruly(data.path(), &limits, "").await?;
    assert_eq!(
        server.call("/v1/entities/unruly/to/calls/append", "2").await?,
        json!([1, 2]),
        "the entity goes on"
    );
    let letters = server.get("/v1/dead-letters").send().await?.text().await?;
    assert!(letters.contains("\"block\"") && letters.contains("unruly/to"), "{letters}");
    Ok(())
}

#[tokio::test]
async fn a_changed_layout_is_refused_and_an_upgrade_is_not() -> Result<()> {
    let data = tempfile::tempdir()?;
    let count = "/v1/entities/shifty/a/calls/count";
    let server = unruly(data.path(), &[], "first").await?;
    assert_eq!(server.call(count, "").await?, 1);
    assert_eq!(server.terminate().await?.code(), Some(0));
    for (shifty, named) in [
        (
            "moved",
            ["shifty", "stored `state.count: u32`, now `state.count: u64`", "Raise `version`"],
        ),
        ("forgetful", ["shifty", "version 1", "upgrade_from(1 = ...)"]),
    ] {
        let output = unruly_command(data.path(), free_address()?, &[], shifty)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(5), "{said}");
        named.iter().for_each(|text| assert!(said.contains(text), "{said}"));
    }
    let server = unruly(data.path(), &[], "second").await?;
    assert_eq!(server.call(count, "").await?, 2, "upgraded");
    assert_eq!(server.terminate().await?.code(), Some(0));
    // An older program leaves what it does not know alone, and serves the rest.
    let server = unruly(data.path(), &[], "first").await?;
    let (status, slug, detail) = problem(server.post(count, "").send().await?).await?;
    assert_eq!((status, slug.as_str()), (503, "unavailable"));
    assert!(detail.contains("version 2") && detail.contains("run a newer program"), "{detail}");
    assert_eq!(server.call("/v1/entities/shifty/b/calls/count", "").await?, 1);
    assert_eq!(server.call("/v1/entities/unruly/b/calls/append", "1").await?, json!([1]));
    assert_eq!(server.terminate().await?.code(), Some(0));
    let server = unruly(data.path(), &[], "second").await?;
    assert_eq!(server.call(count, "").await?, 3, "its bytes stayed as they were");
    Ok(())
}

#[tokio::test]
async fn the_command_line_rewrites_earlier_versions_and_the_next_program_leaves_them_out()
-> Result<()> {
    let data = tempfile::tempdir()?;
    let server = unruly(data.path(), &[], "first").await?;
    for key in 0..30 {
        server.call(&format!("/v1/entities/shifty/k{key}/calls/count"), "").await?;
    }
    server.kill()?;
    let server = unruly(data.path(), &[], "second").await?;
    let versions = async |server: &Server| -> Result<serde_json::Value> {
        let types: serde_json::Value = server.get("/v1/entities").send().await?.json().await?;
        let types = types["types"].as_array().cloned().unwrap_or_default();
        let shifty = types.into_iter().find(|it| it["name"] == "shifty");
        Ok(shifty.map(|it| it["states"].clone()).unwrap_or_default())
    };
    let all = |version: u32| json!({ "versions": [{ "version": version, "entities": 30 }], "is_complete": true });
    assert_eq!(versions(&server).await?, all(1));
    let page = server.post("/v1/upgrades/shifty?limit=7", "").send().await?;
    let page: serde_json::Value = page.json().await?;
    assert_eq!((&page["rewritten"], &page["looked_at"]), (&7.into(), &7.into()));
    let (status, slug, _) = problem(server.post("/v1/upgrades/nothing", "").send().await?).await?;
    assert_eq!((status, slug.as_str()), (404, "not-found"));
    let url = format!("http://{}", server.address());
    for (types, rewritten) in [(&["shifty"][..], 23), (&[], 0)] {
        let mut upgrade = std::process::Command::new(stead_tests::binary("stead")?);
        let told = upgrade.arg("upgrade").args(types).args(["--url", &url]).output()?;
        let said = String::from_utf8(told.stdout)?;
        assert!(told.status.success(), "{said}");
        let of_shifty = said.lines().find(|line| line.contains("shifty")).unwrap_or_default();
        let told: serde_json::Value = serde_json::from_str(of_shifty)?;
        assert_eq!((&told["rewritten"], &told["failed"]), (&rewritten.into(), &0.into()), "{said}");
    }
    server.kill()?;
    let server = unruly(data.path(), &[], "forgetful").await?;
    assert_eq!(versions(&server).await?, all(2));
    assert_eq!(server.call("/v1/entities/shifty/k7/calls/count", "").await?, 2);
    assert_eq!(server.terminate().await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn a_damaged_state_is_500_for_that_entity_only() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    for key in ["a", "b"] {
        server.call(&format!("/v1/entities/counter/{key}/calls/add"), "1").await?;
    }
    assert_eq!(server.terminate().await?.code(), Some(0));
    let id = EntityId::new("counter", "a")?;
    let damaged = damage(data.path(), &id).await?;
    let server = Server::start(data.path(), &[]).await?;
    for path in ["/v1/entities/counter/a", "/v1/entities/counter/a/queries/value"] {
        let (status, slug, _) = problem(server.get(path).send().await?).await?;
        assert_eq!((status, slug.as_str()), (500, "corrupt"), "{path}");
    }
    let added = server.post("/v1/entities/counter/a/calls/add", "1").send().await?;
    assert_eq!(problem(added).await?.1, "corrupt");
    assert_eq!(server.call("/v1/entities/counter/b/calls/add", "1").await?, 2);
    assert_eq!(server.terminate().await?.code(), Some(0));
    let store = RocksStore::open(data.path())?;
    assert_eq!(store.load(id).await?.context("a state")?.state, damaged, "left as it is");
    Ok(())
}

/// Replaces the bytes of a state by others that are none.
async fn damage(data: &Path, id: &EntityId) -> Result<Vec<u8>> {
    let store = RocksStore::open(data)?;
    let mut record = store.load(id.clone()).await?.context("a state")?;
    record.state = vec![0xFF; 3];
    let damaged = record.state.clone();
    let opened = store.opened();
    let number = opened.last_batch + 1;
    let fence = Fence { incarnation: opened.incarnation, lane: 0, number };
    let writes = vec![Write::PutState(id.clone(), record)];
    let (owner, time) = ("test".into(), opened.time);
    let batch = Batch { fence, owner, time, is_clean: true, is_buffered: false, writes };
    ensure!(store.commit(batch).await == CommitOutcome::Committed);
    store.close().await;
    Ok(damaged)
}

#[tokio::test]
async fn a_full_mailbox_and_a_full_node_refuse_with_a_time_to_come_back() -> Result<()> {
    let data = tempfile::tempdir()?;
    let limits = ["--mailbox-max", "4", "--requests-max", "8", "--turn-deadline", "2"];
    let server = std::sync::Arc::new(unruly(data.path(), &limits, "").await?);
    let hang = |key: &str| {
        let request = server.post(&format!("/v1/entities/unruly/{key}/calls/hang"), "");
        tokio::spawn(request.send())
    };
    let mut hanging = vec![hang("a")];
    let append = "/v1/entities/unruly/a/signals/append";
    let (mut accepted, mut refused) = (Vec::new(), 0);
    for entry in 0..20 {
        let answer = server.post(append, entry.to_string()).send().await?;
        match answer.status().as_u16() {
            202 => accepted.push(entry),
            _ => {
                ensure!(answer.headers().contains_key("retry-after"));
                let (status, slug, _) = problem(answer).await?;
                assert_eq!((status, slug.as_str()), (429, "overloaded"));
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && !accepted.is_empty(), "{refused} refused");
    // Every request that waits takes room of the node.
    hanging.extend((0..8).map(|number| hang(&format!("b{number}"))));
    let mut full = 0;
    for hanging in hanging {
        let answer = hanging.await??;
        full += i32::from(answer.status() == 429);
    }
    assert!(full > 0, "the node was full");
    let entries = server.get("/v1/entities/unruly/a/queries/entries").send().await?;
    assert_eq!(entries.json::<Vec<u32>>().await?, accepted, "what was accepted is applied");
    Ok(())
}

#[tokio::test]
async fn a_log_that_was_shortened_ends_with_6_each_time() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    for _ in 0..50 {
        server.call("/v1/entities/counter/a/calls/add", "1").await?;
    }
    assert_eq!(server.terminate().await?.code(), Some(0));
    let copy = tempfile::tempdir()?;
    copy_files(&data.path().join("rocksdb"), copy.path())?;
    for loss in ["log", "CURRENT"] {
        for entry in fs::read_dir(data.path().join("rocksdb"))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if loss == "log" && name.ends_with(".log") {
                let length = fs::metadata(&path)?.len();
                fs::File::options().write(true).open(&path)?.set_len(length / 2)?;
            } else if loss == "CURRENT" && name == loss {
                fs::remove_file(path)?;
            }
        }
        for _ in 0..3 {
            let output = command(data.path(), free_address()?, &[])?.output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(6), "{loss}: {said}");
        }
        // Nothing was changed by the refusals: with what was lost put back, all is there.
        copy_files(copy.path(), &data.path().join("rocksdb"))?;
    }
    let server = Server::start(data.path(), &[]).await?;
    assert_eq!(server.call("/v1/entities/counter/a/calls/add", "0").await?, 50);
    Ok(())
}

/// Makes the files of `to` those of `from`.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(to)? {
        fs::remove_file(entry?.path())?;
    }
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        fs::copy(&path, to.join(path.file_name().context("a name")?))?;
    }
    Ok(())
}

#[tokio::test]
async fn idempotency_keys_are_text_and_given_once() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let add = "/v1/entities/counter/a/calls/add";
    let keyed = |key: &[u8]| {
        let key = reqwest::header::HeaderValue::from_bytes(key).expect("a header");
        server.post(add, "1").header("idempotency-key", key)
    };
    assert_eq!(keyed(b"\"k\"").send().await?.text().await?, "1");
    assert_eq!(keyed(b"k").send().await?.text().await?, "1", "quotes are not part of a key");
    let long = "k".repeat(257);
    for bad in [&b"\xff"[..], b"", long.as_bytes()] {
        assert_eq!(problem(keyed(bad).send().await?).await?.0, 400);
    }
    let twice = keyed(b"a").header("idempotency-key", "b");
    assert_eq!(problem(twice.send().await?).await?.0, 400);
    let encoded = server.post(add, "1").header("content-encoding", "gzip");
    assert_eq!(problem(encoded.send().await?).await?.0, 415);
    Ok(())
}

#[tokio::test]
async fn the_log_of_a_turn_says_who_asked_and_in_which_trace() -> Result<()> {
    let data = tempfile::tempdir()?;
    let (address, log) = (free_address()?, data.path().join("log"));
    let command = command_of("unruly", &data.path().join("data"), address, &["--log", "json"])?;
    let server = Server::run_with_log(command, address, std::fs::File::create(&log)?).await?;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let traced = server.post("/v1/entities/unruly/traced/calls/explode", "");
    assert_eq!(traced.header("traceparent", parent).send().await?.status(), 500);
    let plain = server.post("/v1/entities/unruly/plain/calls/explode", "").send().await?;
    assert_eq!(plain.status(), 500);
    server.terminate().await?;
    let log = std::fs::read_to_string(log)?;
    let lines: Vec<serde_json::Value> =
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let failed = |entity: &str| {
        let is_meant = |line: &&serde_json::Value| {
            line["fields"]["message"] == "a turn failed" && line["fields"]["entity"] == entity
        };
        lines.iter().find(is_meant).cloned().unwrap_or_default()
    };
    let span = &failed("unruly/traced")["span"];
    assert_eq!((&span["name"], &span["operation"]), (&"turn".into(), &"explode".into()), "{log}");
    assert_eq!(span["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert!(failed("unruly/plain")["span"].is_null(), "it costs nothing where it says nothing");
    Ok(())
}

#[tokio::test]
async fn the_end_of_the_process_loses_nothing_that_a_buffered_entity_has_answered() -> Result<()> {
    let data = tempfile::tempdir()?;
    let mut noted = 0;
    for _ in 0..4 {
        let server = unruly(data.path(), &[], "").await?;
        let types: serde_json::Value = server.get("/v1/entities").send().await?.json().await?;
        let types = types["types"].as_array().cloned().unwrap_or_default();
        let shown = types.iter().find(|it| it["name"] == "meter").map(|it| &it["durability"]);
        assert_eq!(shown, Some(&json!("buffered")));
        for _ in 0..20 {
            let count = server.call("/v1/entities/meter/m/calls/note", "7").await?;
            noted += 1;
            assert_eq!(count, noted);
        }
        // At once behind the last answer.
        server.kill()?;
    }
    Ok(())
}
