//! Nodes that start at the same time.

use std::{future::IntoFuture as _, time::Duration};

use anyhow::{Result, ensure};
use stead::Client;
use stead_tests::{database::Database, log::Log, random::seeds, secret_file, wait::until};

use super::nodes::NodeProcess;

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_start_at_once_on_an_empty_database_all_serve() -> Result<()> {
    let _alone = super::BUSY.lock().await;
    let Some(database) = Database::start(&["max_connections=200"]).await? else { return Ok(()) };
    let secret = secret_file(b"the secret of a cluster under test")?;
    for round in seeds(1..4) {
        database.execute("drop schema public cascade; create schema public").await?;
        let mut nodes = Vec::new();
        for name in ["a", "b", "c", "d"] {
            let mut node = NodeProcess::new(name, &database, None).await?;
            node.start(secret.path()).await?;
            nodes.push(node);
        }
        for node in &mut nodes {
            let log = Client::new(&node.url())?;
            let log = log.entity::<Log>("e0");
            let name = node.name.clone();
            let answers = async || {
                ensure!(node.runs(), "round {round}: {name} has ended");
                let answered =
                    tokio::time::timeout(Duration::from_secs(1), log.all().into_future());
                Ok(matches!(answered.await, Ok(Ok(_))).then_some(()))
            };
            until(&format!("{name} answers"), answers).await?;
        }
        // Nobody declares again what another one has declared, behind who went through its partitions.
        let notes =
            "select count(*) from stead_meta where position('not_indexed/'::bytea in key) = 1";
        let are_gone = async || Ok((database.number(notes).await? == 0).then_some(()));
        until("the notes of indexes are gone", are_gone).await?;
        let declarations =
            database.number("select count(*) from stead_meta where key = 'declarations'");
        ensure!(declarations.await? == 1);
    }
    Ok(())
}

/// Another one has the row of the declarations locked for longer than a lease lasts.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_loses_its_lease_while_it_declares_joins_again() -> Result<()> {
    let _alone = super::BUSY.lock().await;
    let Some(database) = Database::start(&["max_connections=200"]).await? else { return Ok(()) };
    let secret = secret_file(b"the secret of a cluster under test")?;
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let mut node = NodeProcess::new(name, &database, None).await?;
        if name == "b" {
            let forgotten =
                "delete from stead_meta where position('operations/'::bytea in key) = 1";
            database.execute(forgotten).await?;
            let locked = "begin; select 1 from stead_meta where key = 'declarations' for update; \
                          select pg_sleep_for('3 s'); commit";
            let locked = database.execute(locked);
            node.start(secret.path()).await?;
            locked.await?;
        } else {
            node.start(secret.path()).await?;
        }
        let log = Client::new(&node.url())?;
        let log = log.entity::<Log>("e0");
        let answers = async || {
            ensure!(node.runs(), "it has ended");
            let answered = tokio::time::timeout(Duration::from_secs(1), log.all().into_future());
            Ok(matches!(answered.await, Ok(Ok(_))).then_some(()))
        };
        until("it answers", answers).await?;
        nodes.push(node);
    }
    let joined = database.number("select incarnations from stead_store").await?;
    ensure!(joined >= 3, "only {joined} incarnations: it has not lost its lease");
    Ok(())
}
