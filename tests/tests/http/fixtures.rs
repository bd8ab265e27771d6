//! Data directories of released formats, which every later build must open.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;
use stead::{
    Client, RocksStore,
    stock::Counter,
    store::{Store as _, conformance::check_rows, tables::Table},
};
use stead_tests::{Server, wait::until};

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().context("a name")?);
        match path.is_dir() {
            true => copy(&path, &target)?,
            false => drop(fs::copy(&path, &target)?),
        }
    }
    Ok(())
}

/// The program that wrote a directory reads the entries of collections back, and adds to them.
async fn has_its_collections(data: &Path) -> Result<()> {
    let address = stead_tests::free_address()?;
    let server =
        Server::run(stead_tests::command_of("unruly", data, address, &[])?, address).await?;
    assert_eq!(server.call("/v1/entities/log/a/calls/append", "4").await?, 4);
    let all: Value = server.get("/v1/entities/log/a/queries/all").send().await?.json().await?;
    let values = |entries: &Value| -> Vec<u64> {
        let entries = entries.as_array().into_iter().flatten();
        entries.filter_map(|entry| entry["value"].as_u64()).collect()
    };
    assert_eq!(values(&all["order"]["entries"]), [1, 2, 3, 4], "{all}");
    assert_eq!(all["places"]["length"], 4);
    Ok(())
}

/// The workflows of a directory go on where they were, under the locks that they had, and those that have ended are shown.
async fn has_its_workflows(data: &Path) -> Result<()> {
    let (address, outside) = (stead_tests::free_address()?, tempfile::NamedTempFile::new()?);
    let mut command = stead_tests::command_of("unruly", data, address, &[])?;
    command.env("ERRAND", "first").env("STEPS", outside.path()).env("READY_MADE", "yes");
    let _server = Server::run(command, address).await?;
    let client = Client::new(&format!("http://{address}"))?;
    let errand = client.instance("errand", "waits");
    errand.event("go", &7).await?;
    assert_eq!(errand.result_of::<u32>().await?, 12, "5 was fetched");
    let held = client.entity::<Counter>("d").add(1).deadline(Duration::from_millis(300)).await;
    assert!(held.is_err(), "it is locked: {held:?}");
    let locks = client.instance("interpreter", "locks");
    locks.event("event-0", &1).await?;
    locks.result_of::<u64>().await?;
    // What waited for the lock is applied behind it, if it was not withdrawn.
    client.entity::<Counter>("d").add(1).await?;
    let done = client.instance("approval-workflow", "done");
    assert_eq!(done.result_of::<String>().await?, "approved");
    for of in [&errand, &locks, &done] {
        assert!(of.history().await?.deliveries() > 1);
    }
    Ok(())
}

#[tokio::test]
async fn a_directory_of_an_earlier_format_opens() -> Result<()> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut opened = 0;
    for entry in fs::read_dir(fixtures)? {
        let fixture = entry?.path();
        if !fixture.is_dir() {
            continue;
        }
        let data = tempfile::tempdir()?;
        copy(&fixture, &data.path().join("data"))?;
        let store = RocksStore::open(data.path().join("data"))?;
        let rows = check_rows(&store).await;
        store.close().await;
        drop(store);
        // The version of its tables.
        let version = match fixture.file_name().and_then(|name| name.to_str()) {
            Some("format-1") => 1,
            other => other
                .and_then(|name| name.strip_prefix("format-1."))
                .and_then(|name| name.split('-').next())
                .context("a version")?
                .parse()?,
        };
        for (table, count) in rows {
            let is_later = table.description().since > version;
            let is_empty = table == Table::Inbox || is_later;
            assert_eq!(count == 0, is_empty, "{table:?} of {}", fixture.display());
        }
        if version >= 6 {
            has_its_collections(&data.path().join("data")).await?;
        }
        if fixture.ends_with("format-1.6-workflows") {
            has_its_workflows(&data.path().join("data")).await?;
        }
        let server = Server::start(&data.path().join("data"), &[]).await?;
        let json =
            async |path: &str| anyhow::Ok(server.get(path).send().await?.json::<Value>().await?);
        let visits = json("/v1/entities/counter/visits").await?;
        assert_eq!((&visits["state"]["value"], &visits["revision"]), (&12.into(), &2.into()));
        assert_eq!(json("/v1/entities/counter/a%2Fb").await?["state"]["value"], 1);
        let trip = json("/v1/entities/approval/trip").await?;
        assert_eq!(trip["state"]["status"], "pending");
        assert_eq!(trip["state"]["request"]["escalate_to"]["key"], "x");
        let reminders = json("/v1/entities/approval/trip/reminders").await?;
        assert_eq!(reminders["reminders"][0]["name"], "timeout");
        let delayed = json("/v1/entities/counter/later/reminders").await?;
        assert_eq!(delayed["reminders"][0]["due"], "2100-01-01T00:00:00Z");
        let letters = json("/v1/dead-letters").await?;
        assert_eq!(letters["dead_letters"][0]["reason"], "the approval is new");
        // Indexes that its program did not have are built.
        let found = async || {
            let found = json("/v1/entities/counter?where=value:12").await?;
            Ok((found["entities"][0]["key"] == "visits").then_some(()))
        };
        until("the index finds it", found).await?;
        let pending = json("/v1/entities/approval?where=status:pending,approver:kim").await?;
        assert_eq!(pending["entities"][0]["key"], "trip", "{pending}");
        assert_eq!(server.call("/v1/entities/counter/visits/calls/add", "1").await?, 13);
        let found = json("/v1/entities/counter?where=value:12..14").await?;
        assert_eq!(found["entities"][0]["key"], "visits", "{found}");
        opened += 1;
    }
    assert!(opened > 0, "there are fixtures");
    Ok(())
}
