//! Calls over HTTP: how near to a bare handler, and to a flushed put?

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::Bytes,
    extract::{Path as Segment, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use stead::Server;

use crate::{
    ceiling::Ceiling,
    load::{Connection, answers_per_second, query, request},
    table::{Figure, Table, median, median_ratio, medians, thousands},
};

const CONNECTIONS: usize = 256;
const ENTITIES: usize = 10_000;
const LENGTH: Duration = Duration::from_secs(3);
const CALLS: usize = 1_000;

type Totals = Arc<Mutex<HashMap<String, i64>>>;

/// Serves a handler that parses the same body and adds in memory, on the same accept loop.
pub async fn serve_bare() -> Result<()> {
    let router = Router::new()
        .route("/v1/entities/counter/{key}/calls/add", post(add))
        .with_state(Totals::default());
    let server = Server::bind("127.0.0.1:0".parse()?).await?;
    println!("{}", server.address()?);
    server.serve(router, std::future::pending(), Duration::ZERO).await;
    Ok(())
}

async fn add(State(totals): State<Totals>, Segment(key): Segment<String>, body: Bytes) -> Response {
    let Ok(amount) = serde_json::from_slice::<i64>(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
    let total = totals.entry(key).or_default();
    *total += amount;
    ([(header::CONTENT_TYPE, "application/json")], total.to_string()).into_response()
}

/// A server process that is killed when it is dropped.
pub struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn bare() -> Result<Self> {
        Self::of_this(Command::new(std::env::current_exe()?).arg("bare"))
    }

    /// This program with another verb, which says its address first.
    pub fn of_this(command: &mut Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        Ok(Self { child, address: line.trim().parse()? })
    }

    pub async fn stead(data: &Path) -> Result<Self> {
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = crate::recovery::serve(data, address)?;
        crate::recovery::first_answer(address).await?;
        Ok(Self { child, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The seconds of processor that it has used.
    pub fn cpu(&self) -> Result<f64> {
        crate::cpu::seconds(&self.child.id().to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Answers a second, and microseconds of the server's processors for each.
async fn load(process: &Process, request: fn(usize) -> Vec<u8>) -> Result<(f64, f64)> {
    let (before, started) = (process.cpu()?, Instant::now());
    let (address, length) = (process.address, LENGTH);
    let rate = answers_per_second(address, request, CONNECTIONS, ENTITIES, length).await?;
    let busy = (process.cpu()? - before) / started.elapsed().as_secs_f64();
    Ok((rate, busy / rate * 1e6))
}

pub async fn throughput(table: &mut Table, rounds: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let bare = Process::bare()?;
    let stead = Process::stead(&directory.path().join("data")).await?;
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let bound = load(&bare, request).await?;
        let ours = load(&stead, request).await?;
        rates.push((ours.0, bound.0));
        costs.push((ours.1, bound.1));
    }
    let ((ours, bound), (cost, bound_cost)) = (medians(&rates), medians(&costs));
    let ratio = median_ratio(&rates);
    table.add(Figure {
        name: "HTTP calls, 256 connections, 10,000 counters",
        figure: format!("{}, {cost:.1} us of processor each", thousands(ours)),
        ceiling: format!("{}, {bound_cost:.1} us, bare axum", thousands(bound)),
        ratio: format!("{:.0} %", ratio * 100.0),
        demanded: "50 %",
        is_met: ratio >= 0.50,
    });
    Ok(())
}

/// How much less the server works for a query than for a call.
pub async fn queries(table: &mut Table, rounds: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let stead = Process::stead(&directory.path().join("data")).await?;
    let mut costs = Vec::new();
    for _ in 0..rounds {
        let call = load(&stead, request).await?;
        let query = load(&stead, query).await?;
        costs.push((query.1, call.1));
    }
    let (cost, bound) = medians(&costs);
    let ratio = median_ratio(&costs);
    table.add(Figure {
        name: "HTTP queries, 256 connections, 10,000 counters",
        figure: format!("{cost:.1} us of processor each"),
        ceiling: format!("{bound:.1} us, a call"),
        ratio: format!("{:.0} %", ratio * 100.0),
        demanded: "at most 60 %",
        is_met: ratio <= 0.60,
    });
    Ok(())
}

pub async fn latency(table: &mut Table, rounds: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let ceiling = Ceiling::open(&directory.path().join("ceiling"))?;
    let stead = Process::stead(&directory.path().join("data")).await?;
    let mut connection = Connection::open(stead.address).await?;
    let request = request(0);
    let mut pairs = Vec::new();
    for _ in 0..rounds {
        let bound = median(&mut ceiling.put_micros(CALLS)?);
        let mut times = Vec::with_capacity(CALLS);
        for _ in 0..CALLS {
            times.push(connection.micros(&request).await?);
        }
        pairs.push((median(&mut times), bound));
    }
    let (ours, bound) = medians(&pairs);
    let ratio = median_ratio(&pairs);
    table.add(Figure {
        name: "one HTTP call at a time, p50",
        figure: format!("{ours:.0} us"),
        ceiling: format!("{bound:.0} us, one flushed put"),
        ratio: format!("{ratio:.1} times"),
        demanded: "at most 3 times",
        is_met: ratio <= 3.0,
    });
    Ok(())
}
