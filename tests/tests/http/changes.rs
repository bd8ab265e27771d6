//! Changes as server-sent events, from a real server that is killed and stopped.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::*;

/// A stream of events as it arrives.
struct Events {
    response: reqwest::Response,
    rest: String,
}

/// One event: its kind, its id and its data.
type Event = (String, Option<String>, Value);

impl Events {
    async fn open(server: &Server, key: &str, last: Option<&str>) -> Result<Self> {
        let mut request = server.get(&format!("/v1/entities/counter/{key}/changes"));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await?;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Ok(Self { response, rest: String::new() })
    }

    /// The next event; none where the stream ends.
    async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some((event, rest)) = self.rest.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.rest = rest;
                let field = |name: &str| {
                    let lines = event.lines().filter_map(|line| line.split_once(": "));
                    lines.into_iter().find(|(of, _)| *of == name).map(|(_, value)| value.to_owned())
                };
                // A line that begins with a colon says only that the server is there.
                let Some(kind) = field("event") else { continue };
                let data = serde_json::from_str(&field("data").context("data")?)?;
                return Ok(Some((kind, field("id"), data)));
            }
            match tokio::time::timeout(Duration::from_secs(30), self.response.chunk()).await? {
                Ok(Some(bytes)) => self.rest.push_str(str::from_utf8(&bytes)?),
                Ok(None) => return Ok(None),
                // The server was killed.
                Err(error) if error.is_body() || error.is_decode() => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn one(&mut self) -> Result<Event> {
        self.next().await?.context("an event")
    }
}

#[tokio::test]
async fn changes_of_a_counter_are_heard_through_a_kill_a_deletion_and_a_stop() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let mut events = Events::open(&server, "c", None).await?;
    assert_eq!(server.call(ADD, "5").await?, 5);
    let (kind, first, shown) = events.one().await?;
    assert_eq!(
        (&*kind, &shown["state"]["value"], &shown["revision"]),
        ("state", &5.into(), &1.into())
    );
    assert_eq!((&shown["type"], &shown["key"]), (&"counter".into(), &"c".into()));
    let first = first.context("an id")?;
    server.kill()?;
    assert!(events.next().await?.is_none(), "it ends with its server");

    let server = Server::start(data.path(), &[]).await?;
    let mut events = Events::open(&server, "c", Some(&first)).await?;
    assert_eq!(server.call(ADD, "2").await?, 7);
    let (kind, _, shown) = events.one().await?;
    assert_eq!((&*kind, &shown["state"]["value"]), ("state", &7.into()), "nothing comes twice");
    assert_eq!(server.delete("/v1/entities/counter/c").send().await?.status(), 204);
    let (kind, deleted, data_of) = events.one().await?;
    assert_eq!((&*kind, data_of), ("deleted", json!({ "type": "counter", "key": "c" })));
    assert!(deleted.is_some_and(|id| id.ends_with("-deleted")));
    assert_eq!(server.call(ADD, "1").await?, 1);
    let (kind, _, shown) = events.one().await?;
    assert_eq!((&*kind, &shown["state"]["value"]), ("state", &1.into()));
    for last in ["ffffffffffffffff-9", "of another kind"] {
        let mut events = Events::open(&server, "c", Some(last)).await?;
        let (kind, id, data) = events.one().await?;
        assert_eq!((&*kind, id, &data["key"]), ("gap", None, &"c".into()));
        let (kind, _, shown) = events.one().await?;
        assert_eq!((&*kind, &shown["revision"]), ("state", &1.into()));
    }
    // What was missed comes first: the deletion, and what is there now.
    let mut late = Events::open(&server, "c", Some(&first)).await?;
    assert_eq!(late.one().await?.0, "deleted");
    assert_eq!(late.one().await?.0, "state");
    // Another key hears nothing of it, and a key of an encoded path is one.
    let mut other = Events::open(&server, "a%2Fb", None).await?;
    assert_eq!(server.call("/v1/entities/counter/a%2Fb/calls/add", "3").await?, 3);
    assert_eq!(other.one().await?.2["key"], "a/b");
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
