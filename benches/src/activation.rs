//! Entities in memory: what an idle one takes, and how long it takes to get one there.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use stead::{Config, Node, RocksStore, stock::Counter, store::rocks::RocksSettings};

use crate::{
    ceiling::{Ceiling, key},
    recovery::create,
    table::{Figure, Table, median},
};

const ENTITIES: usize = 1_000_000;
const COLD_READS: usize = 5_000;
/// Coprime to the number of entities, so that the walk meets each once, far from the last.
const STRIDE: usize = 77_773;

/// A node whose entities stay in memory, with a small block cache.
async fn node(data: &Path) -> Result<Node> {
    let settings = RocksSettings::with(|settings| settings.block_cache_bytes = 32 << 20);
    let store = RocksStore::open_with(data, &settings)?;
    let config = Config::with(|config| {
        config.idle = Duration::from_secs(86_400);
        config.memory = 4 << 30;
    });
    Ok(Node::builder().store(store).config(config).entity::<Counter>().start().await?)
}

pub async fn measure(table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");
    let filled = node(&data).await?;
    create(&filled, ENTITIES).await?;
    filled.drain().await?;
    drop(filled);
    resident(table, &data)?;
    cold(table, &data, &directory.path().join("ceiling")).await
}

fn resident(table: &mut Table, data: &Path) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    let output = command.arg("activate").arg(data).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    table.add(Figure {
        name: "idle activation of the counter, resident",
        figure: format!("{bytes:.0} bytes"),
        ceiling: "none".into(),
        ratio: "-".into(),
        demanded: "at most 512 bytes",
        is_met: bytes <= 512.0,
    });
    Ok(())
}

/// In a process of its own: activates every entity and prints how much each adds.
pub async fn activate_all(data: &Path) -> Result<()> {
    let node = node(data).await?;
    // Twice as much as needed to fill caches, pools and queues.
    for number in 0..ENTITIES / 4 {
        node.entity::<Counter>(key(number)).value().await?;
    }
    let before = resident_bytes()?;
    for number in ENTITIES / 4..ENTITIES {
        node.entity::<Counter>(key(number)).value().await?;
    }
    let added = resident_bytes()? - before;
    println!("{}", added / (ENTITIES - ENTITIES / 4) as f64);
    Ok(())
}

pub fn resident_bytes() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1_024.0)
}

async fn cold(table: &mut Table, data: &Path, ceiling: &Path) -> Result<()> {
    let ceiling = Ceiling::open(ceiling)?;
    ceiling.fill(ENTITIES)?;
    let node = node(data).await?;
    // In a task, as a request's handler is.
    let measured = tokio::spawn(read_cold(ceiling, node.clone())).await??;
    let (mut reads, mut cold, mut warm) = measured;
    let (read, cold, warm) = (median(&mut reads), median(&mut cold), median(&mut warm));
    table.add(Figure {
        name: "cold activation, p50, above a point read",
        figure: format!("{:.1} us ({cold:.1} us; warm {warm:.1} us)", cold - read),
        ceiling: format!("{read:.1} us, a RocksDB point read"),
        ratio: "-".into(),
        demanded: "at most 20 us",
        is_met: cold - read <= 20.0,
    });
    node.drain().await?;
    Ok(())
}

/// Microseconds of raw point reads, of queries of entities that are not in memory, and of the same
/// queries right behind.
async fn read_cold(ceiling: Ceiling, node: Node) -> Result<(Vec<f64>, Vec<f64>, Vec<f64>)> {
    let (mut reads, mut cold, mut warm) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..COLD_READS {
        let number = step * STRIDE % ENTITIES;
        // A neighbour brings the block into the cache, for both alike; the row itself is untouched.
        let neighbour = if number == 0 { 1 } else { number - 1 };
        ceiling.get_micros(neighbour)?;
        reads.push(ceiling.get_micros(number)?);
        node.entity::<Counter>(key(neighbour)).value().await?;
        let counter = node.entity::<Counter>(key(number));
        let started = Instant::now();
        counter.value().await?;
        cold.push(started.elapsed().as_secs_f64() * 1e6);
        let started = Instant::now();
        counter.value().await?;
        warm.push(started.elapsed().as_secs_f64() * 1e6);
    }
    Ok((reads, cold, warm))
}
