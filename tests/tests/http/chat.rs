//! The chat room of the examples, as its page and its callers use it, through a kill.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Stdio},
};

use anyhow::Context as _;
use serde_json::{Value, json};

use stead_tests::events::Events;

use super::*;

/// The example, which is killed when it is dropped.
struct Chat {
    child: Child,
    url: String,
}

impl Chat {
    fn start(data: &Path) -> Result<Self> {
        let mut command = std::process::Command::new(stead_tests::binary("chat")?);
        let command = command.arg("--data").arg(data).args(["--listen", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut said = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut said)?;
        let url = said.trim().strip_prefix("listening on ").context("an address")?.to_owned();
        Ok(Self { child, url })
    }

    fn path(&self, path: &str) -> String {
        format!("{}/stead/v1/entities/room/lobby/{path}", self.url)
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

#[tokio::test]
async fn what_is_said_in_a_chat_room_is_heard_live_and_read_later() -> Result<()> {
    let (data, client) = (tempfile::tempdir()?, reqwest::Client::new());
    let chat = Chat::start(data.path())?;
    let page = client.get(&chat.url).send().await?.text().await?;
    assert!(page.contains("new EventSource"), "{page}");
    let say = |text: String| {
        let body = json!({ "from": "kim", "text": text });
        client.post(chat.path("calls/say")).json(&body).send()
    };
    assert_eq!(say("0".into()).await?.json::<Value>().await?, 0);
    let mut events = Events::of(client.get(chat.path("changes")).send().await?).await?;
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
    drop(chat);

    let chat = Chat::start(data.path())?;
    let older = client.get(chat.path("queries/before?input=50")).send().await?;
    let older: Vec<Value> = older.json().await?;
    assert_eq!((older.len(), &older[49]["text"]), (50, &"49".into()));
    let member = client.get(chat.path("queries/member?input=%22kim%22")).send().await?;
    assert_eq!(member.json::<Value>().await?["messages"], 150);
    Ok(())
}
