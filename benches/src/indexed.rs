//! Turns of a type with two indexes, and finding one of a million entities.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead::{Layout, Node, RocksStore, entity, stock::Counter};

use crate::{
    ceiling::key,
    http::Process,
    in_process::sent_per_second,
    load::Connection,
    table::{Figure, Table, median, median_ratio, medians, thousands},
};

const ENTITIES: usize = 10_000;
const FOUND_AMONG: usize = 1_000_000;
const SENDERS: usize = 1_000;
const LOOKUPS: usize = 5_000;

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Plain {
    sum: u64,
    name: String,
}

#[entity(name = "plain")]
impl Plain {
    pub fn add(&mut self, amount: u64) {
        self.sum += amount;
        self.name = format!("n{}", self.sum);
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Kept {
    sum: u64,
    name: String,
}

#[entity(name = "kept", changes = Duration::from_secs(60))]
impl Kept {
    pub fn add(&mut self, amount: u64) {
        self.sum += amount;
        self.name = format!("n{}", self.sum);
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Indexed {
    sum: u64,
    name: String,
}

#[entity(name = "indexed", index(sum: u64, name: String))]
impl Indexed {
    pub fn add(&mut self, amount: u64) {
        self.sum += amount;
        self.name = format!("n{}", self.sum);
    }
}

/// Signals to a type with two indexes whose values change each turn, and to one that keeps its changes, beside the
/// same type without.
pub async fn turns(table: &mut Table, rounds: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = RocksStore::open(directory.path().join("stead"))?;
    let builder = Node::builder().store(store).entity::<Plain>().entity::<Indexed>();
    let node = builder.entity::<Kept>().start().await?;
    let (mut rates, mut kept_rates) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let of = node.clone();
        let plain = move |number| of.entity::<Plain>(key(number));
        let (plain, _) = sent_per_second(ENTITIES, plain, |it| it.add(1).signal()).await?;
        let of = node.clone();
        let indexed = move |number| of.entity::<Indexed>(key(number));
        let (indexed, _) = sent_per_second(ENTITIES, indexed, |it| it.add(1).signal()).await?;
        let of = node.clone();
        let kept = move |number| of.entity::<Kept>(key(number));
        let (kept, _) = sent_per_second(ENTITIES, kept, |it| it.add(1).signal()).await?;
        rates.push((indexed, plain));
        kept_rates.push((kept, plain));
    }
    node.drain().await?;
    let ((indexed, plain), ratio) = (medians(&rates), median_ratio(&rates));
    table.add(Figure {
        name: "signals to 10,000 entities, two indexes that change each turn",
        figure: thousands(indexed),
        ceiling: format!("{} without indexes", thousands(plain)),
        ratio: format!("{:.0} %", ratio * 100.0),
        demanded: "50 %",
        is_met: ratio >= 0.50,
    });
    let ((kept, plain), ratio) = (medians(&kept_rates), median_ratio(&kept_rates));
    table.add(Figure {
        name: "signals to 10,000 entities of a type that keeps its changes",
        figure: thousands(kept),
        ceiling: format!("{} without", thousands(plain)),
        ratio: format!("{:.0} %", ratio * 100.0),
        demanded: "-",
        is_met: true,
    });
    Ok(())
}

/// In a process of its own: a million counters, each with a value of its own.
pub async fn fill(data: &std::path::Path) -> Result<()> {
    let node = Node::builder().store(RocksStore::open(data)?).entity::<Counter>().start().await?;
    let mut senders = tokio::task::JoinSet::new();
    for sender in 0..SENDERS {
        let node = node.clone();
        senders.spawn(async move {
            for number in (sender..FOUND_AMONG).step_by(SENDERS) {
                node.entity::<Counter>(key(number)).set(number as i64).signal().await?;
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

/// One lookup at a time over HTTP, beside one `GET` by key at a time.
pub async fn lookups(table: &mut Table, rounds: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");
    let mut command = Command::new(std::env::current_exe()?);
    let filled = command.arg("fill-values").arg(&data).status().context("the filler")?;
    ensure!(filled.success(), "the store could not be filled");
    let stead = Process::stead(&data).await?;
    let mut connection = Connection::open(stead.address()).await?;
    let get = |number: usize| format!("/v1/entities/counter/{}", key(number));
    let find = |number: usize| format!("/v1/entities/counter?where=value:{number}");
    let mut pairs = Vec::new();
    for round in 0..rounds {
        let bound = micros(&mut connection, round, get).await?;
        pairs.push((micros(&mut connection, round, find).await?, bound));
    }
    let ((found, bound), ratio) = (medians(&pairs), median_ratio(&pairs));
    table.add(Figure {
        name: "one of 1 M entities by an index over HTTP, one at a time, p50",
        figure: format!("{found:.0} us"),
        ceiling: format!("{bound:.0} us, a GET by key"),
        ratio: format!("{ratio:.1} times"),
        demanded: "at most 2 times",
        is_met: ratio <= 2.0,
    });
    Ok(())
}

/// The median of requests for entities all over the store.
async fn micros(
    connection: &mut Connection,
    round: usize,
    path: impl Fn(usize) -> String,
) -> Result<f64> {
    let mut times = Vec::with_capacity(LOOKUPS);
    for lookup in 0..LOOKUPS {
        // A step that shares no factor with the number of entities.
        let number = (lookup + round * LOOKUPS) * 7_919 % FOUND_AMONG;
        let request = format!("GET {} HTTP/1.1\r\nhost: bench\r\n\r\n", path(number)).into_bytes();
        times.push(connection.micros(&request).await?);
    }
    Ok(median(&mut times))
}
