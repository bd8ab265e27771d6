//! Turns that change one entry of a large map, or append to a large log, beside turns of a counter.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead::{
    BoxFuture, CallError, Context, Layout, Log, Map, Node, RocksStore, entity, stock::Counter,
};

use crate::{
    cpu,
    table::{Figure, Table, median_ratio, medians, thousands},
};

const ENTRIES: u64 = 100_000;
/// About 10 MB in all.
const ENTRY_BYTES: usize = 100;
const FILLED_AT_ONCE: u64 = 5_000;
const CALLERS: u64 = 64;
const CALLS: u64 = 150_000;
const CALLS_OF_ONE: u64 = 1_000;

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Large {
    entries: Map<u64, String>,
    log: Log<String>,
}

#[entity(name = "large")]
impl Large {
    pub fn fill(&mut self, ctx: &mut Context, from: u64) {
        for number in from..from + FILLED_AT_ONCE {
            self.entries.insert(number, "x".repeat(ENTRY_BYTES));
            self.log.push(ctx.now(), "x".repeat(ENTRY_BYTES));
        }
    }
    pub fn set(&mut self, number: u64) -> u64 {
        self.entries.insert(number, format!("{number:0>100}"));
        self.entries.len()
    }
    pub fn append(&mut self, ctx: &mut Context, number: u64) -> u64 {
        let index = self.log.push(ctx.now(), format!("{number:0>100}"));
        self.log.trim_to(ENTRIES);
        index
    }
}

type Call = Arc<dyn Fn(u64) -> BoxFuture<'static, Result<(), CallError>> + Send + Sync>;

/// Turns from 64 callers, and the bytes that those of one caller write.
pub async fn measure(table: &mut Table, rounds: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = RocksStore::open(directory.path().join("stead"))?;
    let node = Node::builder().store(store).entity::<Large>().entity::<Counter>().start().await?;
    for from in (0..ENTRIES).step_by(FILLED_AT_ONCE as usize) {
        node.entity::<Large>("a").fill(from).await?;
    }
    let calls: [Call; 3] = {
        let (counter, map, log) = (node.clone(), node.clone(), node.clone());
        [
            Arc::new(move |_| {
                let call = counter.entity::<Counter>("a").add(1);
                Box::pin(async move { call.await.map(drop) })
            }),
            Arc::new(move |number| {
                let call = map.entity::<Large>("a").set(number * 7_919 % ENTRIES);
                Box::pin(async move { call.await.map(drop) })
            }),
            Arc::new(move |number| {
                let call = log.entity::<Large>("a").append(number);
                Box::pin(async move { call.await.map(drop) })
            }),
        ]
    };
    let (mut maps, mut logs) = (Vec::new(), Vec::new());
    let (mut map_bytes, mut log_bytes) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let [mut rates, mut bytes] = [[0.0; 3]; 2];
        for (kind, call) in calls.iter().enumerate() {
            rates[kind] = per_second(call, CALLERS, CALLS).await?;
            let before = cpu::written()?;
            per_second(call, 1, CALLS_OF_ONE).await?;
            bytes[kind] = (cpu::written()? - before) / CALLS_OF_ONE as f64;
        }
        maps.push((rates[1], rates[0]));
        logs.push((rates[2], rates[0]));
        map_bytes.push((bytes[1], bytes[0]));
        log_bytes.push((bytes[2], bytes[0]));
    }
    node.drain().await?;
    for (name, pairs) in [
        ("calls to one entity from 64, each one entry of a map of 100,000", maps),
        ("calls to one entity from 64, each one more in a log of 100,000", logs),
    ] {
        let ((figure, counter), ratio) = (medians(&pairs), median_ratio(&pairs));
        table.add(Figure {
            name,
            figure: thousands(figure),
            ceiling: format!("{} to a counter", thousands(counter)),
            ratio: format!("{:.0} %", ratio * 100.0),
            demanded: "50 %",
            is_met: ratio >= 0.50,
        });
    }
    for (name, pairs) in [
        ("bytes that a call of one caller writes, one entry of the map", map_bytes),
        ("bytes that a call of one caller writes, one more in the log", log_bytes),
    ] {
        let ((figure, counter), ratio) = (medians(&pairs), median_ratio(&pairs));
        table.add(Figure {
            name,
            figure: format!("{figure:.0}"),
            ceiling: format!("{counter:.0}, a counter's"),
            ratio: format!("{ratio:.1} times"),
            demanded: "at most 4 times",
            is_met: ratio <= 4.0,
        });
    }
    Ok(())
}

/// Calls by so many callers at one time.
async fn per_second(call: &Call, callers: u64, calls: u64) -> Result<f64> {
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let (call, next) = (call.clone(), next.clone());
        running.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= calls {
                    return Ok::<_, CallError>(());
                }
                call(number).await?;
            }
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(calls as f64 / began.elapsed().as_secs_f64())
}
