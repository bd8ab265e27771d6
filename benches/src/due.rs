//! Many signals for one instant: how long do calls to other entities take meanwhile, and how much
//! memory does the server?

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use stead::{Client, Node, RocksStore, Timestamp, stock::Counter};
use tokio::task::JoinSet;

use crate::{
    ceiling::key,
    load::{Connection, request},
    recovery::{first_answer, serve},
    table::{Figure, Table, percentile},
};

/// How many signals are due at one instant, and for how many entities, from the second on: the first
/// one tells whether the server answers.
const SIGNALS: usize = 200_000;
const ENTITIES: usize = 10_000;
const SENDERS: usize = 1_000;
/// The first of the entities that callers use meanwhile.
const OTHERS: usize = 1_000_000;
const CALLERS: usize = 8;
/// The pause of a caller between two calls.
const PAUSE: Duration = Duration::from_millis(2);
/// How long calls are measured before the instant.
const QUIET: Duration = Duration::from_secs(5);
/// The time from the start of the server to the instant.
const AHEAD: Duration = Duration::from_secs(8);
/// How long all signals may take.
const TIMEOUT: Duration = Duration::from_secs(300);

/// In a process of its own: stores the signals.
pub async fn fill(data: &Path, at: i64) -> Result<()> {
    let at = Timestamp::from_micros(at);
    let node = Node::builder().store(RocksStore::open(data)?).entity::<Counter>().start().await?;
    let mut senders = JoinSet::new();
    for sender in 0..SENDERS {
        let node = node.clone();
        senders.spawn(async move {
            for number in (sender..SIGNALS).step_by(SENDERS) {
                node.entity::<Counter>(key(1 + number % ENTITIES)).add(1).at(at).signal().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = senders.join_next().await {
        done??;
    }
    node.drain().await?;
    Ok(())
}

/// A server that is killed when it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Calls `OTHERS` until `is_over`; the milliseconds of each call, by when it began.
async fn calls(
    address: std::net::SocketAddr,
    caller: usize,
    is_over: Arc<AtomicBool>,
) -> Result<Vec<(Instant, f64)>> {
    let mut connection = Connection::open(address).await?;
    let mut times = Vec::new();
    let mut number = caller;
    while !is_over.load(Ordering::Relaxed) {
        let began = Instant::now();
        connection.ask(&request(OTHERS + number % 1_000)).await?;
        times.push((began, began.elapsed().as_secs_f64() * 1e3));
        number += CALLERS;
        tokio::time::sleep(PAUSE).await;
    }
    Ok(times)
}

/// The most memory that a process had, in megabytes.
fn peak(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes: u64 = line.context("VmHWM")?.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes >> 10)
}

/// Waits until every signal is applied.
async fn all_applied(client: &Client) -> Result<()> {
    let began = Instant::now();
    let each = (SIGNALS / ENTITIES) as i64;
    let mut number = 0;
    while number < ENTITIES {
        if client.entity::<Counter>(key(1 + number)).value().await? == each {
            number += 1;
            continue;
        }
        ensure!(began.elapsed() < TIMEOUT, "the signals are not applied in time");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

pub async fn measure(table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // Filling takes some seconds; the instant must lie behind the start of the server.
    let instant = now()? + Duration::from_secs(25);
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("fill-due").arg(&data).arg(instant.as_micros().to_string());
    ensure!(command.stdout(Stdio::null()).status()?.success(), "the signals cannot be stored");
    let left = instant.checked_sub(now()?).context("filling took too long")?;
    ensure!(left > AHEAD, "filling took too long");
    tokio::time::sleep(left - AHEAD).await;
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let server = Server(serve(&data, address)?);
    first_answer(address).await?;
    let due = Instant::now() + instant.checked_sub(now()?).context("the start took too long")?;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        callers.spawn(calls(address, caller, is_over.clone()));
    }
    tokio::time::sleep_until(due.into()).await;
    let before = peak(server.0.id())?;
    all_applied(&Client::new(&format!("http://{address}"))?).await?;
    let took = due.elapsed();
    is_over.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    while let Some(done) = callers.join_next().await {
        times.extend(done??);
    }
    let within = |from: Instant, to: Instant| {
        let times = times.iter().filter(|(began, _)| *began >= from && *began < to);
        percentile(times.map(|(_, time)| *time).collect(), 0.99)
    };
    let (quiet, storm) = (within(due - QUIET, due), within(due, due + took));
    let ratio = storm / quiet;
    table.add(Figure {
        name: "calls to others while 200,000 signals come due at one instant, p99",
        figure: format!("{storm:.1} ms, for {:.1} s", took.as_secs_f64()),
        ceiling: format!("{quiet:.1} ms before"),
        ratio: format!("{ratio:.1} times"),
        demanded: "at most 5 times",
        is_met: ratio <= 5.0,
    });
    let memory = peak(server.0.id())?;
    table.add(Figure {
        name: "the server's memory at most, meanwhile",
        figure: format!("{memory} MB"),
        ceiling: format!("{before} MB before"),
        ratio: "-".into(),
        demanded: "at most 512 MB",
        is_met: memory <= 512,
    });
    Ok(())
}
