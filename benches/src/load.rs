//! A client that costs little: requests written beforehand, answers read to their announced length.
//!
//! A client of a library would take more of the two cores than the servers it is to measure.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::ceiling::key;

/// One kept connection.
pub struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, answer: Vec::with_capacity(1_024) })
    }

    /// The microseconds that an answer takes.
    pub async fn micros(&mut self, request: &[u8]) -> Result<f64> {
        let started = Instant::now();
        self.ask(request).await?;
        Ok(started.elapsed().as_secs_f64() * 1e6)
    }

    /// Sends `request` and waits for the whole answer, which must be 200.
    pub async fn ask(&mut self, request: &[u8]) -> Result<()> {
        self.stream.write_all(request).await?;
        self.answer.clear();
        loop {
            ensure!(self.stream.read_buf(&mut self.answer).await? > 0, "the server hung up");
            if let Some(length) = length(&self.answer)?
                && self.answer.len() >= length
            {
                return Ok(());
            }
        }
    }
}

/// The length of head and body, once the head is there.
fn length(answer: &[u8]) -> Result<Option<usize>> {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = str::from_utf8(&answer[..end])?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{}", String::from_utf8_lossy(answer));
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.context("a content length")?.trim().parse()?;
    Ok(Some(end + 4 + length))
}

/// A call that adds one to the `number`-th counter.
pub fn request(number: usize) -> Vec<u8> {
    let key = key(number);
    format!(
        "POST /v1/entities/counter/{key}/calls/add HTTP/1.1\r\nhost: bench\r\n\
         content-type: application/json\r\ncontent-length: 1\r\n\r\n1"
    )
    .into_bytes()
}

/// A query of the `number`-th counter.
pub fn query(number: usize) -> Vec<u8> {
    let key = key(number);
    format!("GET /v1/entities/counter/{key}/queries/value HTTP/1.1\r\nhost: bench\r\n\r\n")
        .into_bytes()
}

/// Answers a second over `connections` kept connections, spread over `entities` counters.
pub async fn answers_per_second(
    address: SocketAddr,
    request: impl Fn(usize) -> Vec<u8> + Clone + Send + 'static,
    connections: usize,
    entities: usize,
    length: Duration,
) -> Result<f64> {
    let (answered, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut tasks = tokio::task::JoinSet::new();
    for first in 0..connections {
        let (answered, is_over, request) = (answered.clone(), is_over.clone(), request.clone());
        tasks.spawn(async move {
            let requests: Vec<_> = (first..entities).step_by(connections).map(request).collect();
            let mut connection = Connection::open(address).await?;
            for request in requests.iter().cycle() {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                connection.ask(request).await?;
                answered.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    tokio::time::sleep(length / 4).await;
    let (started, before) = (Instant::now(), answered.load(Ordering::Relaxed));
    tokio::time::sleep(length).await;
    let (elapsed, after) = (started.elapsed(), answered.load(Ordering::Relaxed));
    is_over.store(true, Ordering::Relaxed);
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok((after - before) as f64 / elapsed.as_secs_f64())
}
