//! Changes over HTTP: how long until each of a thousand subscribers has one?

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};

use crate::{
    ceiling::key,
    http::Process,
    load::Connection,
    table::{Figure, Table, median},
};

const SUBSCRIBERS: usize = 1_000;
const ENTITIES: usize = 100;
const CHANGES: usize = 1_000;
/// The time between two changes.
const PAUSE: Duration = Duration::from_millis(5);
const P99_MAX_MICROS: f64 = 20_000.0;

/// The arrival of a value at one subscriber.
type Arrival = (i64, Instant);

/// Subscribes to an entity, and tells of each value that arrives.
async fn subscribe(
    address: std::net::SocketAddr,
    entity: usize,
    arrived: mpsc::UnboundedSender<Arrival>,
) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let path = format!("/v1/entities/counter/{}/changes", key(entity));
    let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = Vec::with_capacity(4_096);
    while stream.read_buf(&mut buffer).await? > 0 {
        let now = Instant::now();
        let text = String::from_utf8_lossy(&buffer);
        let Some(place) = text.rfind("\n\n") else { continue };
        let values = text[..place].split("\"value\":").skip(1);
        for value in values {
            let digits: String = value.chars().take_while(char::is_ascii_digit).collect();
            arrived.send((digits.parse()?, now))?;
        }
        let behind = place + 2;
        buffer.drain(..behind);
    }
    Ok(())
}

pub async fn measure(table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let stead = Process::stead(&directory.path().join("data")).await?;
    let mut connection = Connection::open(stead.address()).await?;
    let set = |entity: usize, value: usize| {
        let (path, value) = (format!("counter/{}/calls/set", key(entity)), value.to_string());
        format!(
            "POST /v1/entities/{path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{value}",
            value.len()
        )
    };
    for entity in 0..ENTITIES {
        connection.ask(set(entity, 0).as_bytes()).await?;
    }
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    for number in 0..SUBSCRIBERS {
        tokio::spawn(subscribe(stead.address(), number % ENTITIES, arrived.clone()));
    }
    // Each has the present state first.
    for _ in 0..SUBSCRIBERS {
        let first = tokio::time::timeout(Duration::from_secs(30), arrivals.recv()).await?;
        ensure!(first.context("a subscriber")?.0 == 0, "a change before any was made");
    }
    let mut sent = vec![Instant::now()];
    for change in 1..=CHANGES {
        sent.push(Instant::now());
        connection.ask(set(change % ENTITIES, change).as_bytes()).await?;
        tokio::time::sleep(PAUSE).await;
    }
    let (expected, mut times) = (CHANGES * SUBSCRIBERS / ENTITIES, Vec::new());
    while times.len() < expected {
        let arrival = tokio::time::timeout(Duration::from_secs(30), arrivals.recv()).await?;
        let (value, at) = arrival.context("a subscriber")?;
        let began = sent.get(usize::try_from(value)?).context("a value that was set")?;
        times.push(at.duration_since(*began).as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    let p99 = times[times.len() * 99 / 100];
    table.add(Figure {
        name: "a change, from the call that makes it to each of 1,000 subscribers, p99",
        figure: format!("{:.1} ms, p50 {:.1} ms", p99 / 1e3, median(&mut times) / 1e3),
        ceiling: "none".into(),
        ratio: "-".into(),
        demanded: "at most 20 ms",
        is_met: p99 <= P99_MAX_MICROS,
    });
    Ok(())
}
