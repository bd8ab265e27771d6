//! The chat room of the examples, as its page and its callers use it, through a kill.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use stead_tests::events::Events;

use super::*;

/// Starts the example.
async fn chat(data: &Path) -> Result<Server> {
    let address = stead_tests::free_address()?;
    let mut command = std::process::Command::new(stead_tests::binary("chat")?);
    command.arg("--data").arg(data).args(["--listen", &address.to_string()]);
    Server::run(command, address).await
}

fn path(path: &str) -> String {
    format!("/stead/v1/entities/room/lobby/{path}")
}

#[tokio::test]
async fn what_is_said_in_a_chat_room_is_heard_live_and_read_later() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = chat(data.path()).await?;
    let page = server.get("/").send().await?.text().await?;
    assert!(page.contains("new EventSource"), "{page}");
    let say = |text: String| {
        let body = json!({ "from": "kim", "text": text });
        let say = server.post(&path("calls/say"), body.to_string());
        say.header("content-type", "application/json").send()
    };
    assert_eq!(say("0".into()).await?.json::<Value>().await?, 0);
    let mut events = Events::of(server.get(&path("changes")).send().await?).await?;
    let (_, _, shown) = events.next().await?.context("an event")?;
    let log = &shown["state"]["messages"];
    assert_eq!((&log["length"], &log["entries"][0]["value"]["text"]), (&1.into(), &"0".into()));
    for index in 1..150 {
        assert_eq!(say(format!("{index}")).await?.json::<Value>().await?, index);
    }
    let newest = loop {
        let (kind, _, shown) = events.next().await?.context("an event")?;
        assert_eq!(kind, "state");
        let log = &shown["state"]["messages"];
        let entries = log["entries"].as_array().context("a page")?;
        let last = entries.last().context("a message")?.clone();
        assert_eq!(log["length"], last["index"].as_u64().context("an index")? + 1);
        if last["index"] == 149 {
            assert_eq!((entries.len(), &entries[0]["index"]), (100, &50.into()), "a page");
            break last;
        }
    };
    assert_eq!(newest["value"], json!({ "from": "kim", "text": "149" }));
    let refused = say(" ".into()).await?;
    assert_eq!(refused.status(), 422, "said nothing");
    server.kill()?;

    let server = chat(data.path()).await?;
    let older = server.get(&path("queries/before?input=50")).send().await?;
    let older: Vec<Value> = older.json().await?;
    assert_eq!((older.len(), &older[49]["text"]), (50, &"49".into()));
    let member = server.get(&path("queries/member?input=%22kim%22")).send().await?;
    assert_eq!(member.json::<Value>().await?["messages"], 150);
    Ok(())
}
