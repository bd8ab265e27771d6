//! Server-sent events as a client reads them, and what one who follows a type knows by them.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// One event: its kind, its id and its data.
pub type Event = (String, Option<String>, Value);

/// A stream of events as it arrives.
#[derive(Debug)]
pub struct Events {
    response: reqwest::Response,
    rest: String,
}

impl Events {
    /// The events of a response.
    ///
    /// # Errors
    /// Where it is none with events.
    pub async fn of(response: reqwest::Response) -> Result<Self> {
        let status = response.status();
        let kind = response.headers().get("content-type").cloned();
        if status != 200 || kind.is_none_or(|kind| kind != "text/event-stream") {
            anyhow::bail!("{status}: {}", response.text().await?);
        }
        Ok(Self { response, rest: String::new() })
    }

    /// The next event; none where the stream ends, or its server was killed.
    ///
    /// # Errors
    /// Where nothing comes for 30 s, not even a sign of life.
    pub async fn next(&mut self) -> Result<Option<Event>> {
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
                Err(error) if error.is_body() || error.is_decode() => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Who follows the entities of a type, at one server after the other.
#[derive(Debug)]
pub struct Follower {
    entity_type: &'static str,
    client: reqwest::Client,
    /// The version and the state of each entity that is there.
    known: BTreeMap<String, (Value, Value)>,
    after: Option<String>,
    /// What must not happen, and has.
    pub wrong: Vec<String>,
}

impl Follower {
    /// Who knows nothing yet.
    pub fn new(entity_type: &'static str) -> Self {
        let (client, known) = (reqwest::Client::new(), BTreeMap::new());
        Self { entity_type, client, known, after: None, wrong: Vec::new() }
    }

    /// Takes in what a server tells until it ends, or until the follower has caught up where that is meant.
    ///
    /// # Errors
    /// Where the server does not answer, or tells an error.
    pub async fn follow(&mut self, url: &str, until_caught_up: bool) -> Result<()> {
        let mut request =
            self.client.get(format!("{url}/v1/entities/{}/changes", self.entity_type));
        if let Some(after) = &self.after {
            request = request.header("last-event-id", after);
        }
        let mut events = Events::of(request.send().await?).await?;
        while let Some((kind, id, data)) = events.next().await? {
            ensure!(kind != "error", "{data}");
            let key = data["key"].as_str().unwrap_or_default().to_owned();
            match &*kind {
                "state" => self.see(key, &data),
                "deleted" => drop(self.known.remove(&key)),
                "caught-up" if until_caught_up => return Ok(()),
                "caught-up" => {}
                other => self.wrong.push(format!("{other}: {data}")),
            }
            self.after = id.or(self.after.take());
        }
        ensure!(!until_caught_up, "it ended before that");
        Ok(())
    }

    fn see(&mut self, key: String, shown: &Value) {
        let (revision, state) = (shown["revision"].clone(), shown["state"].clone());
        if let Some((last, _)) = self.known.get(&key)
            && last.as_u64() > revision.as_u64()
        {
            self.wrong.push(format!("{key} goes from {last} back to {revision}"));
        }
        self.known.insert(key, (revision, state));
    }

    /// The states that it knows.
    pub fn states(&self) -> BTreeMap<String, Value> {
        self.known.iter().map(|(key, (_, state))| (key.clone(), state.clone())).collect()
    }
}

/// A state as streams of types show it: of collections their lengths.
pub fn with_lengths(mut state: Value) -> Value {
    for field in state.as_object_mut().into_iter().flat_map(|fields| fields.values_mut()) {
        if let Some(collection) = field.as_object_mut().filter(|it| it.contains_key("length")) {
            collection.remove("entries");
        }
    }
    state
}
