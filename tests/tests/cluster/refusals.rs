//! What cannot join says why, and changes nothing.

use std::{
    net::SocketAddr,
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use stead_tests::{
    database::Database, free_address, proxy::Proxy, secret_file, server_among, wait::until,
    wait_alive,
};
use tempfile::NamedTempFile;

const SECRET: &[u8] = b"the secret of a cluster under test";

/// A node that ends with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Starts a node, and waits until it serves.
async fn run(mut command: Command, listen: SocketAddr) -> Result<Running> {
    let node = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    wait_alive(listen).await?;
    Ok(node)
}

/// How a node ends that is expected not to start.
async fn ends(url: &str, name: &str, secret: &NamedTempFile) -> Result<(i32, String)> {
    let mut command = server_among("stead", url, name, free_address()?, secret.path())?;
    command.args(["--lease", "1"]).stderr(Stdio::piped());
    let output: Output = tokio::task::spawn_blocking(move || command.output()).await??;
    let code = output.status.code().context("it exits by itself")?;
    Ok((code, String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_join_says_why_and_changes_nothing() -> Result<()> {
    let Some(database) = Database::start(&[]).await? else { return Ok(()) };
    let (url, known) = (database.url(), secret_file(SECRET)?);
    let address = free_address()?;
    let mut command = server_among("stead", &url, "first", address, known.path())?;
    command.args(["--lease", "1"]);
    let first = run(command, address).await?;
    let counter = format!("http://{address}/v1/entities/counter/c/calls/add");
    let add = async || reqwest::Client::new().post(&counter).body("1").send().await;
    assert_eq!(add().await?.status(), 200);

    let (code, why) = ends(&url, "first", &known).await?;
    assert_eq!(code, 3, "{why}");
    assert!(why.contains("another node is alive under the name first"), "{why}");

    let (code, why) = ends(&url, "second", &secret_file(b"another secret, as long")?).await?;
    assert_eq!(code, 2, "{why}");
    assert!(why.contains("the cluster's secret is not the one of node first"), "{why}");

    let (code, why) = ends(&url, "second", &secret_file(b"short")?).await?;
    assert_eq!(code, 2, "{why}");
    assert!(why.contains("at least 16 bytes"), "{why}");

    let (code, why) = ends(&url, &"n".repeat(65), &known).await?;
    assert_eq!(code, 2, "{why}");
    assert!(why.contains("a node's name has 1 to 64 bytes"), "{why}");

    let nobody = url.replace("stead@", "nobody@");
    let (code, why) = ends(&nobody, "second", &known).await?;
    assert_eq!(code, 1, "{why}");
    assert!(why.contains("role \"nobody\" does not exist"), "{why}");

    let nowhere = format!("postgres://stead@{}/postgres", free_address()?);
    let (code, why) = ends(&nowhere, "second", &known).await?;
    assert_eq!(code, 1, "{why}");
    assert!(why.contains("the database cannot be reached"), "{why}");

    let members = database.number("select count(*) from stead_nodes").await?;
    assert_eq!(members, 1, "nobody else has joined");
    assert_eq!(add().await?.text().await?, "2", "the first goes on");
    drop(first);

    database.execute("update stead_store set schema = 99").await?;
    let (code, why) = ends(&url, "second", &known).await?;
    assert_eq!(code, 5, "{why}");
    assert!(why.contains("use a newer one"), "{why}");
    let members = database.number("select count(*) from stead_nodes").await?;
    assert_eq!(members, 1, "nothing was changed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_gone_is_503_until_it_is_back() -> Result<()> {
    let Some(database) = Database::start(&[]).await? else { return Ok(()) };
    let (known, address) = (secret_file(SECRET)?, free_address()?);
    let proxy = Proxy::start(database.address()).await?;
    let url = database.url_at(proxy.address())?;
    let mut command = server_among("stead", &url, "only", address, known.path())?;
    command.args(["--lease", "1", "--call-deadline", "2"]);
    let _node = run(command, address).await?;
    let client = reqwest::Client::new();
    let call = async || {
        let url = format!("http://{address}/v1/entities/counter/c/calls/add");
        let keyed = client.post(url).header("idempotency-key", "one").body("1");
        anyhow::Ok(stead_tests::problem(keyed.send().await?).await)
    };
    proxy.pass(stead_tests::proxy::Passes::Nothing);
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    let (status, slug, detail) = call().await??;
    assert_eq!(status, 503, "{slug}: {detail}");
    let ready = client.get(format!("http://{address}/readyz")).send().await?;
    assert_eq!(ready.status(), 503);
    proxy.pass(stead_tests::proxy::Passes::All);
    // No problem document is a result.
    let is_back = async || Ok(call().await?.is_err().then_some(()));
    until("the node comes back", is_back).await
}

/// Waits until this node owns everything.
async fn owns_all(address: SocketAddr, name: &str) -> Result<()> {
    let owns = async || {
        let shown: Value =
            reqwest::get(format!("http://{address}/v1/cluster")).await?.json().await?;
        let mut partitions = shown["partitions"].as_array().context("partitions")?.iter();
        Ok(partitions.all(|partition| partition["owner"] == name).then_some(()))
    };
    until(&format!("{name} owns everything"), owns).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_row_was_removed_joins_again_and_owns_everything() -> Result<()> {
    let Some(database) = Database::start(&[]).await? else { return Ok(()) };
    let (known, address) = (secret_file(SECRET)?, free_address()?);
    let mut command = server_among("stead", &database.url(), "only", address, known.path())?;
    command.args(["--lease", "1"]);
    let _node = run(command, address).await?;
    owns_all(address, "only").await?;
    database.execute("delete from stead_nodes").await?;
    let lanes = "select count(*) from stead_lanes";
    until("it joins again", async || Ok((database.number(lanes).await? >= 2).then_some(())))
        .await?;
    owns_all(address, "only").await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entity_of_a_newer_version_is_503_and_left_untouched() -> Result<()> {
    let Some(database) = Database::start(&[]).await? else { return Ok(()) };
    let (url, known) = (database.url(), secret_file(SECRET)?);
    let alone = async |name: &str, version: &str| {
        let address = free_address()?;
        let mut command = server_among("unruly", &url, name, address, known.path())?;
        command.args(["--lease", "1"]).env("SHIFTY", version);
        let node = run(command, address).await?;
        owns_all(address, name).await?;
        anyhow::Ok((node, address))
    };
    let client = reqwest::Client::new();
    let post = async |address: SocketAddr, path: &str| {
        client.post(format!("http://{address}/v1/entities/shifty/s/{path}")).send().await
    };
    let (newer, address) = alone("newer", "second").await?;
    assert_eq!(post(address, "calls/count").await?.text().await?, "1");
    drop(newer);
    let (older, address) = alone("older", "first").await?;
    for path in ["calls/count", "signals/count"] {
        let (status, _, detail) = stead_tests::problem(post(address, path).await?).await?;
        assert_eq!(status, 503, "{detail}");
        assert!(
            detail.contains("version 2 of its type, and this node knows version 1"),
            "{detail}"
        );
    }
    drop(older);
    let (_newer, address) = alone("newer", "second").await?;
    assert_eq!(post(address, "calls/count").await?.text().await?, "2");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_serves_what_it_knows_and_leaves_the_rest_untouched() -> Result<()> {
    let Some(database) = Database::start(&[]).await? else { return Ok(()) };
    let (url, known) = (database.url(), secret_file(SECRET)?);
    let mut nodes = Vec::new();
    let mut addresses = Vec::new();
    for (program, name) in [("stead", "one"), ("unruly", "other")] {
        let address = free_address()?;
        nodes.push(run(server_among(program, &url, name, address, known.path())?, address).await?);
        addresses.push(address);
    }
    let client = reqwest::Client::new();
    let moves = async || {
        let shown = client.get(format!("http://{}/v1/cluster", addresses[0])).send().await?;
        let shown: Value = shown.json().await?;
        anyhow::Ok(shown["moves"].as_array().map_or(1, Vec::len))
    };
    until("everything has moved", async || Ok((moves().await? == 0).then_some(()))).await?;
    let (mut served, mut refused) = (0, 0);
    for number in 0..40 {
        let address = addresses[number % 2];
        let path = format!("http://{address}/v1/entities/counter/k{number}/calls/add");
        let answer = client.post(path).body("1").send().await?;
        let placement = format!("http://{address}/v1/placement/counter/k{number}");
        let placement: Value = client.get(placement).send().await?.json().await?;
        if placement["owner"] == "one" {
            assert_eq!(answer.status(), 200);
            served += 1;
        } else {
            let (status, _, detail) = stead_tests::problem(answer).await?;
            assert_eq!(status, 503);
            assert!(detail.contains("served by other nodes, but not by its owner"), "{detail}");
            refused += 1;
        }
    }
    assert!(served > 5 && refused > 5, "{served} served, {refused} refused");
    let unknown = format!("http://{}/v1/entities/nothing/k/calls/add", addresses[0]);
    assert_eq!(client.post(unknown).body("1").send().await?.status(), 404, "nobody serves it");
    Ok(())
}
