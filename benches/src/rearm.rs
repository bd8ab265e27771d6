//! A turn that puts a reminder off, beside the same turn without it: processor and bytes written.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use stead::{After, Context, Deserialize, JsonSchema, Layout, Node, RocksStore, Serialize, entity};

use crate::{
    cpu,
    table::{Figure, Table, median_ratio, medians},
};

const SENDERS: usize = 1_000;
const ENTITIES: usize = 10_000;
const WARM_UP: Duration = Duration::from_secs(1);
const LENGTH: Duration = Duration::from_secs(2);
const PROCESSOR_MAX: f64 = 1.5;
const BYTES_MAX: f64 = 2.0;

/// Counts, and may want to be reminded where it has not counted for an hour.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
#[serde(crate = "stead::serde")]
#[schemars(crate = "stead::schemars")]
struct Device {
    beats: u64,
}

#[entity(name = "device")]
impl Device {
    pub fn beat(&mut self) {
        self.beats += 1;
    }

    pub fn beat_and_put_off(&mut self, ctx: &mut Context) {
        self.beats += 1;
        ctx.remind("silent", After(Duration::from_secs(3_600)), Self::of(ctx.key()).silent());
    }

    pub(crate) fn silent(&mut self) {}
}

pub async fn measure(table: &mut Table, rounds: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = RocksStore::open(directory.path().join("stead"))?;
    let node = Node::builder().store(store).entity::<Device>().start().await?;
    let (mut costs, mut bytes) = (Vec::new(), Vec::new());
    // Each has its reminder before anything is measured.
    beats(&node, true).await?;
    for _ in 0..rounds {
        let (plain, with) = (beats(&node, false).await?, beats(&node, true).await?);
        costs.push((with.0, plain.0));
        bytes.push((with.1, plain.1));
    }
    node.drain().await?;
    for (name, unit, pairs, demanded, most) in [
        ("a turn that puts a reminder off, processor", "us", costs, "at most 1.5", PROCESSOR_MAX),
        ("a turn that puts a reminder off, bytes written", "bytes", bytes, "at most 2", BYTES_MAX),
    ] {
        let ((with, plain), ratio) = (medians(&pairs), median_ratio(&pairs));
        table.add(Figure {
            name,
            figure: format!("{with:.1} {unit}"),
            ceiling: format!("{plain:.1} {unit} without it"),
            ratio: format!("{ratio:.2}"),
            demanded,
            is_met: ratio <= most,
        });
    }
    Ok(())
}

/// The microseconds of processor and the bytes written of one signal.
async fn beats(node: &Node, puts_off: bool) -> Result<(f64, f64)> {
    let (sent, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut senders = tokio::task::JoinSet::new();
    for sender in 0..SENDERS {
        let (sent, is_over) = (sent.clone(), is_over.clone());
        let own = (sender..ENTITIES).step_by(SENDERS);
        let devices: Vec<_> = own.map(|it| node.entity::<Device>(format!("d{it}"))).collect();
        senders.spawn(async move {
            for device in devices.iter().cycle() {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let operation = if puts_off { device.beat_and_put_off() } else { device.beat() };
                operation.signal().await?;
                sent.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    tokio::time::sleep(WARM_UP).await;
    let before = (cpu::seconds("self")?, cpu::written()?, sent.load(Ordering::Relaxed));
    tokio::time::sleep(LENGTH).await;
    let after = (cpu::seconds("self")?, cpu::written()?, sent.load(Ordering::Relaxed));
    is_over.store(true, Ordering::Relaxed);
    while let Some(done) = senders.join_next().await {
        done??;
    }
    let signals = (after.2 - before.2) as f64;
    Ok(((after.0 - before.0) / signals * 1e6, (after.1 - before.1) / signals))
}
