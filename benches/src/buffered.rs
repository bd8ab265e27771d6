//! Calls of a buffered entity by one caller, whose answers do not wait for the disk, beside those of a durable one.

use std::time::{Duration, Instant};

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead::{Layout, Node, RocksStore, entity};

use crate::table::{Figure, Table, median_ratio, medians, thousands};

const LENGTH: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Durable {
    sum: u64,
}

#[entity(name = "durable")]
impl Durable {
    pub fn add(&mut self, amount: u64) -> u64 {
        self.sum += amount;
        self.sum
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Buffered {
    sum: u64,
}

#[entity(name = "buffered", durability = "buffered")]
impl Buffered {
    pub fn add(&mut self, amount: u64) -> u64 {
        self.sum += amount;
        self.sum
    }
}

pub async fn measure(table: &mut Table, rounds: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = RocksStore::open(directory.path().join("stead"))?;
    let node =
        Node::builder().store(store).entity::<Durable>().entity::<Buffered>().start().await?;
    let (durable, buffered) = (node.entity::<Durable>("a"), node.entity::<Buffered>("a"));
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let flushed = calls_per_second(async || durable.add(1).await.map(drop)).await?;
        let written = calls_per_second(async || buffered.add(1).await.map(drop)).await?;
        rates.push((written, flushed));
    }
    node.drain().await?;
    let ((written, flushed), ratio) = (medians(&rates), median_ratio(&rates));
    table.add(Figure {
        name: "calls of a buffered entity, one caller",
        figure: thousands(written),
        ceiling: format!("{} of a durable one", thousands(flushed)),
        ratio: format!("{:.0} %", ratio * 100.0),
        demanded: "100 %",
        is_met: ratio >= 1.0,
    });
    Ok(())
}

async fn calls_per_second<E>(call: impl AsyncFn() -> Result<(), E>) -> Result<f64>
where
    anyhow::Error: From<E>,
{
    let (began, mut calls) = (Instant::now(), 0_u64);
    while began.elapsed() < LENGTH {
        call().await?;
        calls += 1;
    }
    Ok(calls as f64 / began.elapsed().as_secs_f64())
}
