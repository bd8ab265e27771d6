//! The client: one task per permit, its requests in order, each under its own idempotency key.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, OpenOptions},
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use reqwest::Client;
use serde_json::json;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{Form, applications::Application, entities::Event};

const EVENTS: &str = include_str!("events.csv");
const PERMITS_AT_ONCE: usize = 64;
/// Of an application: longer than everything takes.
const DEADLINE: Duration = Duration::from_secs(24 * 3_600);

/// One line of the file.
#[derive(Debug, Clone)]
pub struct Line {
    /// Names the event; unique.
    pub instance: String,
    /// The history.
    pub event: Event,
}

/// The events of every permit, in order.
pub fn events() -> Result<BTreeMap<String, Vec<Line>>> {
    let mut permits: BTreeMap<String, Vec<Line>> = BTreeMap::new();
    for row in csv::Reader::from_reader(EVENTS.as_bytes()).records() {
        let row = row?;
        let column = |index: usize| row.get(index).map(str::to_owned).context("five columns");
        let event = Event { activity: column(2)?, resource: column(3)? };
        permits.entry(column(0)?).or_default().push(Line { instance: column(1)?, event });
    }
    Ok(permits)
}

/// A request that is sent until it is accepted.
struct Request {
    /// Names it; unique.
    idempotency_key: String,
    path: String,
    body: serde_json::Value,
}

/// The requests for a permit, in order.
fn requests(form: Form, permit: &str, lines: &[Line]) -> Vec<Request> {
    let event = |line: &Line| Request {
        idempotency_key: line.instance.clone(),
        path: match form {
            Form::Entities => format!("/v1/entities/permit/{permit}/signals/record"),
            Form::Workflows => format!("/v1/workflows/application/{permit}/events/happened"),
        },
        body: json!(line.event),
    };
    let start = (form == Form::Workflows).then(|| Request {
        idempotency_key: permit.to_owned(),
        path: format!("/v1/workflows/application/{permit}"),
        body: json!(Application { events: lines.len(), deadline: DEADLINE }),
    });
    start.into_iter().chain(lines.iter().map(event)).collect()
}

/// Sends what was not yet accepted. Notes each accepted request; what is accepted and not noted when
/// the process is killed is sent again, under the same key.
pub async fn send(servers: Vec<SocketAddr>, progress: PathBuf, form: Form) -> Result<()> {
    let noted = fs::read_to_string(&progress).unwrap_or_default();
    let noted: Arc<HashSet<String>> = Arc::new(noted.lines().map(str::to_owned).collect());
    let file = OpenOptions::new().create(true).append(true).open(progress)?;
    let notes = Arc::new(Mutex::new(file));
    let client = Client::builder().timeout(Duration::from_secs(5)).build()?;
    let servers: Arc<[SocketAddr]> = servers.into();
    let room = Arc::new(Semaphore::new(PERMITS_AT_ONCE));
    let mut tasks = JoinSet::new();
    for (permit, lines) in events()? {
        let (client, notes, noted) = (client.clone(), notes.clone(), noted.clone());
        let (room, servers) = (room.clone(), servers.clone());
        tasks.spawn(async move {
            let _room = room.acquire().await?;
            for request in requests(form, &permit, &lines) {
                if noted.contains(&request.idempotency_key) {
                    continue;
                }
                send_one(&client, &servers, &request).await?;
                let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
                notes.write_all(format!("{}\n", request.idempotency_key).as_bytes())?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Sends one request, to any server, until it is accepted.
async fn send_one(client: &Client, servers: &[SocketAddr], request: &Request) -> Result<()> {
    let Request { idempotency_key, path, body } = request;
    for server in servers.iter().cycle().skip(idempotency_key.len()).take(3_000) {
        let post = client.post(format!("http://{server}{path}"));
        match post.header("idempotency-key", idempotency_key).json(body).send().await {
            Ok(answer) if answer.status() == 202 => return Ok(()),
            Ok(answer) if answer.status().is_client_error() && answer.status() != 429 => {
                bail!("{idempotency_key} refused: {}", answer.text().await?);
            }
            // Not accepted, or not known to be: the key makes it safe to ask again.
            Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    bail!("{idempotency_key} was not accepted within a minute")
}
