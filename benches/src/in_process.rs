//! Durable signals from within the process: how near to RocksDB itself?

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead::{Error, Layout, Node, RocksStore, entity};

use crate::{
    ceiling::{Ceiling, key},
    cpu,
    table::{Figure, Table, median, median_ratio, medians, thousands},
};

const SENDERS: usize = 1_000;
const WARM_UP: Duration = Duration::from_millis(500);
const LENGTH: Duration = Duration::from_secs(2);

/// A counter without an index: a turn writes its state alone, as the ceiling does.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Sum {
    value: i64,
}

#[entity(name = "sum")]
impl Sum {
    pub fn add(&mut self, amount: i64) -> i64 {
        self.value += amount;
        self.value
    }

    pub fn value(&self) -> i64 {
        self.value
    }
}

/// Both kinds of load, or one of them.
pub async fn measure(
    table: &mut Table,
    rounds: usize,
    wanted: impl Fn(&str) -> bool,
) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let ceiling = Ceiling::open(&directory.path().join("ceiling"))?;
    let store = RocksStore::open(directory.path().join("stead"))?;
    let node = Node::builder().store(store).entity::<Sum>().start().await?;
    for (short, name, entities, demanded, floor) in [
        ("spread", "in-process signals, 1,000 senders, 10,000 entities", 10_000, "25 %", 0.25),
        ("hot", "in-process signals, 1,000 senders, one hot entity", 1, "60 %", 0.60),
    ] {
        if !wanted(short) {
            continue;
        }
        let (mut pairs, mut costs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let bound = ceiling.puts_per_second(entities, LENGTH)?;
            let (rate, cost) = signals_per_second(&node, entities).await?;
            pairs.push((rate, bound));
            costs.push(cost);
        }
        let (ours, bound) = medians(&pairs);
        let ratio = median_ratio(&pairs);
        table.add(Figure {
            name,
            figure: format!("{}, {:.1} us of processor each", thousands(ours), median(&mut costs)),
            ceiling: format!("{} puts in flushed batches of 1,000", thousands(bound)),
            ratio: format!("{:.0} %", ratio * 100.0),
            demanded,
            is_met: ratio >= floor,
        });
    }
    node.drain().await?;
    Ok(())
}

/// Signals a second of senders that each wait for the answer before they send the next, and the
/// microseconds of processor that each takes, its sender's included.
pub async fn signals_per_second(node: &Node, entities: usize) -> Result<(f64, f64)> {
    let node = node.clone();
    let sum = move |number| node.entity::<Sum>(key(number));
    sent_per_second(entities, sum, |sum| sum.add(1).signal()).await
}

/// The same of whatever is sent, to entities that are made once.
pub async fn sent_per_second<E, F, A>(
    entities: usize,
    entity: impl Fn(usize) -> E,
    send: impl Fn(&E) -> F + Clone + Send + Sync + 'static,
) -> Result<(f64, f64)>
where
    E: Send + Sync + 'static,
    F: Future<Output = Result<A, Error>> + Send + 'static,
    A: Send,
{
    let (sent, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut senders = tokio::task::JoinSet::new();
    for sender in 0..SENDERS {
        let numbers = (sender..entities.max(sender + 1)).step_by(SENDERS);
        let own: Vec<_> = numbers.map(|number| entity(number % entities)).collect();
        let (send, sent, is_over) = (send.clone(), sent.clone(), is_over.clone());
        senders.spawn(async move {
            for entity in own.iter().cycle() {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                send(entity).await?;
                sent.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    tokio::time::sleep(WARM_UP).await;
    let (started, busy, before) =
        (Instant::now(), cpu::seconds("self")?, sent.load(Ordering::Relaxed));
    tokio::time::sleep(LENGTH).await;
    let (length, after) = (started.elapsed(), sent.load(Ordering::Relaxed));
    let busy = cpu::seconds("self")? - busy;
    is_over.store(true, Ordering::Relaxed);
    while let Some(done) = senders.join_next().await {
        done??;
    }
    let signals = (after - before) as f64;
    Ok((signals / length.as_secs_f64(), busy / signals * 1e6))
}
