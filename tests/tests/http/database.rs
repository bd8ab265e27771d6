//! A server whose data is in PostgreSQL.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use stead_tests::{Server, command_on, database::Database, free_address};

use super::ADD;

async fn start(database: &Database) -> Result<Server> {
    let address = free_address()?;
    Server::run(command_on(&database.url(), address)?, address).await
}

#[tokio::test]
async fn a_server_on_a_database_loses_nothing_when_it_is_killed() -> Result<()> {
    let Some(database) = Database::any().await? else { return Ok(()) };
    for total in 1..=3 {
        let server = start(&database).await?;
        assert_eq!(server.call(ADD, "1").await?, total);
        let signal = server.post("/v1/entities/counter/other/signals/add", "1").send().await?;
        assert_eq!(signal.status(), 202);
        server.kill()?;
    }
    let server = start(&database).await?;
    assert_eq!(server.call("/v1/entities/counter/other/calls/add", "0").await?, 3);
    assert_eq!(server.terminate().await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn calls_at_once_to_one_entity_are_all_taken() -> Result<()> {
    let Some(database) = Database::any().await? else { return Ok(()) };
    let server = Arc::new(start(&database).await?);
    let callers = (0..16).map(|_| {
        let server = server.clone();
        tokio::spawn(async move {
            for _ in 0..20 {
                server.call(ADD, "1").await?;
            }
            anyhow::Ok(())
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await??;
    }
    assert_eq!(server.call(ADD, "0").await?, 16 * 20);
    Ok(())
}

#[tokio::test]
async fn a_second_server_takes_the_database_over_and_the_first_ends_with_3() -> Result<()> {
    let Some(database) = Database::any().await? else { return Ok(()) };
    let mut first = start(&database).await?;
    assert_eq!(first.call(ADD, "1").await?, 1);
    let second = start(&database).await?;
    assert_eq!(second.call(ADD, "1").await?, 2);
    // Its next commit tells it; who sends it is told that nothing was applied, or nothing at all.
    let late = first.post(ADD, "1").send().await;
    assert!(late.map_or(true, |answer| answer.status() != 200));
    assert_eq!(first.wait_exit().await?.code(), Some(3));
    assert_eq!(second.call(ADD, "1").await?, 3);
    Ok(())
}

#[tokio::test]
async fn a_database_that_cannot_be_used_ends_the_start_with_its_reason() -> Result<()> {
    let nobody = format!("postgres://stead@{}/stead", free_address()?);
    for (store, code, said) in [
        ("mysql://somewhere", 2, "postgres://USER"),
        (nobody.as_str(), 1, "the database cannot be reached"),
    ] {
        let ended = command_on(store, free_address()?)?.output()?;
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(code), "{text}");
        assert!(text.contains(said), "{text}");
    }
    let Some(database) = Database::start(&[]).await? else { return Ok(()) };
    start(&database).await?.terminate().await.context("a first start")?;
    database.execute("update stead_store set schema = 99").await?;
    let ended = command_on(&database.url(), free_address()?)?.output()?;
    assert_eq!(ended.status.code(), Some(5));
    Ok(())
}
