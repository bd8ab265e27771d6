//! Changes as server-sent events, from a real server that is killed and stopped.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use stead_tests::events::{Event, Events};

use super::*;

/// The changes of a counter.
async fn open(server: &Server, key: &str, last: Option<&str>) -> Result<Events> {
    let mut request = server.get(&format!("/v1/entities/counter/{key}/changes"));
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    Events::of(request.send().await?).await
}

async fn one(events: &mut Events) -> Result<Event> {
    events.next().await?.context("an event")
}

#[tokio::test]
async fn changes_of_a_counter_are_heard_through_a_kill_a_deletion_and_a_stop() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let mut events = open(&server, "c", None).await?;
    assert_eq!(server.call(ADD, "5").await?, 5);
    let (kind, first, shown) = one(&mut events).await?;
    assert_eq!(
        (&*kind, &shown["state"]["value"], &shown["revision"]),
        ("state", &5.into(), &1.into())
    );
    assert_eq!((&shown["type"], &shown["key"]), (&"counter".into(), &"c".into()));
    let first = first.context("an id")?;
    server.kill()?;
    assert!(events.next().await?.is_none(), "it ends with its server");

    let server = Server::start(data.path(), &[]).await?;
    let mut events = open(&server, "c", Some(&first)).await?;
    assert_eq!(server.call(ADD, "2").await?, 7);
    let (kind, _, shown) = one(&mut events).await?;
    assert_eq!((&*kind, &shown["state"]["value"]), ("state", &7.into()), "nothing comes twice");
    assert_eq!(server.delete("/v1/entities/counter/c").send().await?.status(), 204);
    let (kind, deleted, data_of) = one(&mut events).await?;
    assert_eq!((&*kind, data_of), ("deleted", json!({ "type": "counter", "key": "c" })));
    assert!(deleted.is_some_and(|id| id.ends_with("-deleted")));
    assert_eq!(server.call(ADD, "1").await?, 1);
    let (kind, _, shown) = one(&mut events).await?;
    assert_eq!((&*kind, &shown["state"]["value"]), ("state", &1.into()));
    for last in ["ffffffffffffffff-9", "of another kind"] {
        let mut events = open(&server, "c", Some(last)).await?;
        let (kind, id, data) = one(&mut events).await?;
        assert_eq!((&*kind, id, &data["key"]), ("gap", None, &"c".into()));
        let (kind, _, shown) = one(&mut events).await?;
        assert_eq!((&*kind, &shown["revision"]), ("state", &1.into()));
    }
    // What was missed comes first: the deletion, and what is there now.
    let mut late = open(&server, "c", Some(&first)).await?;
    assert_eq!(one(&mut late).await?.0, "deleted");
    assert_eq!(one(&mut late).await?.0, "state");
    // Another key hears nothing of it, and a key of an encoded path is one.
    let mut other = open(&server, "a%2Fb", None).await?;
    assert_eq!(server.call("/v1/entities/counter/a%2Fb/calls/add", "3").await?, 3);
    assert_eq!(one(&mut other).await?.2["key"], "a/b");
    // A stop waits for nobody who listens.
    let stopped = std::time::Instant::now();
    assert_eq!(server.terminate().await?.code(), Some(0));
    assert!(events.next().await?.is_none() && other.next().await?.is_none());
    assert!(stopped.elapsed() < Duration::from_secs(20));
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_heard_is_refused() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    for (path, expected) in [
        ("/v1/entities/nothing/c/changes", (404, "not-found")),
        ("/v1/entities/counter/c/changes?from=1", (400, "invalid")),
        ("/v1/entities/counter/%00/changes", (400, "invalid")),
    ] {
        let (status, slug, said) = problem(server.get(path).send().await?).await?;
        assert_eq!((status, slug.as_str()), expected, "{path}: {said}");
    }
    let (status, slug, _) =
        problem(server.post("/v1/entities/counter/c/changes", "1").send().await?).await?;
    assert_eq!((status, slug.as_str()), (405, "method"));
    Ok(())
}
