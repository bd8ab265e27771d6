//! A million entities on disk, the last million signals only in the log, SIGKILL: how long until
//! the first flushed answer?

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use stead::{Node, RocksStore, stock::Counter, store::rocks::RocksSettings};

use crate::{
    ceiling::key,
    load::{Connection, request},
    table::{Figure, Table},
};

const ENTITIES: usize = 1_000_000;
const SENDERS: usize = 1_000;

/// `stead serve` on `data`.
pub fn serve(data: &Path, address: SocketAddr) -> Result<Child> {
    let binary = std::env::current_exe()?.with_file_name("stead");
    let mut command = Command::new(&binary);
    command.arg("serve").arg("--data").arg(data).arg("--listen").arg(address.to_string());
    command.stdin(Stdio::null()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("{}: run `make build` first", binary.display()))
}

/// Asks until the first flushed answer.
pub async fn first_answer(address: SocketAddr) -> Result<()> {
    for _ in 0..60_000 {
        if let Ok(mut connection) = Connection::open(address).await {
            return connection.ask(&request(0)).await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bail!("the server does not answer within a minute")
}

/// One signal to each of `entities` counters.
pub async fn create(node: &Node, entities: usize) -> Result<()> {
    let mut senders = tokio::task::JoinSet::new();
    for sender in 0..SENDERS {
        let node = node.clone();
        senders.spawn(async move {
            for number in (sender..entities).step_by(SENDERS) {
                node.entity::<Counter>(key(number)).add(1).signal().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = senders.join_next().await {
        done??;
    }
    Ok(())
}

/// In a process of its own: entities into sorted files, then signals into the log only.
pub async fn fill(data: &Path) -> Result<()> {
    let node = Node::builder().store(RocksStore::open(data)?).entity::<Counter>().start().await?;
    create(&node, ENTITIES).await?;
    node.drain().await?;
    drop(node);
    // A memory table that holds all of it, so that nothing of it reaches a sorted file.
    let settings = RocksSettings::with(|settings| settings.write_buffer_bytes = 2 << 30);
    let store = RocksStore::open_with(data, &settings)?;
    let node = Node::builder().store(store).entity::<Counter>().start().await?;
    create(&node, ENTITIES).await?;
    println!("filled");
    std::future::pending().await
}

pub async fn measure(table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");
    let mut command = Command::new(std::env::current_exe()?);
    let mut filler = command.arg("fill").arg(&data).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(filler.stdout.take().context("its output")?).read_line(&mut line)?;
    filler.kill()?;
    filler.wait()?;
    ensure!(line.trim() == "filled", "the store could not be filled");
    let log: u64 = std::fs::read_dir(data.join("rocksdb"))?
        .filter_map(|file| file.ok())
        .filter(|file| file.path().extension().is_some_and(|kind| kind == "log"))
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum();
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let started = Instant::now();
    let mut server = serve(&data, address)?;
    let answered = first_answer(address).await;
    let seconds = started.elapsed().as_secs_f64();
    server.kill()?;
    server.wait()?;
    answered?;
    table.add(Figure {
        name: "first flushed answer after SIGKILL, 1 M entities, 1 M signals in the log",
        figure: format!("{seconds:.2} s"),
        ceiling: format!("{} MB of log to replay", log >> 20),
        ratio: "-".into(),
        demanded: "at most 3 s",
        is_met: seconds <= 3.0,
    });
    Ok(())
}
