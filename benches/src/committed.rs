//! Committed reads of one hot entity while it is written at full rate: what one costs beside a call, and what
//! the writes lose.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use stead::{Node, RocksStore};

use crate::{
    ceiling::key,
    cpu,
    in_process::{self, Sum},
    table::{Figure, Table, median, median_ratio, medians, thousands},
};

const CALLERS: usize = 64;
const WARM_UP: Duration = Duration::from_millis(300);
const LENGTH: Duration = Duration::from_secs(2);
/// How many reads a second the writes go on beside.
const READS_PER_SECOND: u64 = 20_000;
const COST_MAX: f64 = 0.40;
const LOSS_MAX: f64 = 0.20;

pub async fn measure(table: &mut Table, rounds: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = RocksStore::open(directory.path().join("stead"))?;
    let node = Node::builder().store(store).entity::<Sum>().start().await?;
    let (mut costs, mut rates, mut losses) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let call = cost_of_a_call(&node).await?;
        let (alone, _) = in_process::signals_per_second(&node, 1).await?;
        let reader = Reader::start(&node, Some(READS_PER_SECOND));
        let (beside, _) = in_process::signals_per_second(&node, 1).await?;
        reader.stop()?;
        let reader = Reader::start(&node, None);
        in_process::signals_per_second(&node, 1).await?;
        costs.push((reader.stop()?, call));
        rates.push((beside, alone));
        losses.push(1.0 - beside / alone);
    }
    node.drain().await?;
    let ((read, call), ratio) = (medians(&costs), median_ratio(&costs));
    table.add(Figure {
        name: "a committed read of a hot entity that is written at full rate, processor",
        figure: format!("{read:.1} us"),
        ceiling: format!("{call:.1} us of a call, 64 callers"),
        ratio: format!("{:.0} %", ratio * 100.0),
        demanded: "at most 40 %",
        is_met: ratio <= COST_MAX,
    });
    let ((beside, alone), loss) = (medians(&rates), median(&mut losses));
    table.add(Figure {
        name: "signals to one hot entity beside 20,000 committed reads of it a second",
        figure: thousands(beside),
        ceiling: format!("{} without", thousands(alone)),
        ratio: format!("{:.0} % lost", loss * 100.0),
        demanded: "at most 20 %",
        is_met: loss <= LOSS_MAX,
    });
    Ok(())
}

/// The microseconds of processor of a call of the hot entity.
async fn cost_of_a_call(node: &Node) -> Result<f64> {
    let (calls, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        let (calls, is_over) = (calls.clone(), is_over.clone());
        let counter = node.entity::<Sum>(key(0));
        callers.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                counter.add(1).await?;
                calls.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    tokio::time::sleep(WARM_UP).await;
    let (busy, before) = (cpu::seconds("self")?, calls.load(Ordering::Relaxed));
    tokio::time::sleep(LENGTH).await;
    let (busy, after) = (cpu::seconds("self")? - busy, calls.load(Ordering::Relaxed));
    is_over.store(true, Ordering::Relaxed);
    while let Some(done) = callers.join_next().await {
        done??;
    }
    Ok(busy / (after - before) as f64 * 1e6)
}

/// A thread that reads the hot entity.
struct Reader {
    is_over: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<f64>>,
}

impl Reader {
    /// Begins to read, at most so often a second.
    fn start(node: &Node, rate: Option<u64>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (counter, over) = (node.entity::<Sum>(key(0)), is_over.clone());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (began, busy) = (Instant::now(), cpu::seconds("thread-self")?);
            let mut reads = 0_u64;
            while !over.load(Ordering::Relaxed) {
                if rate
                    .is_some_and(|rate| reads as f64 > began.elapsed().as_secs_f64() * rate as f64)
                {
                    thread::sleep(Duration::from_millis(1));
                    continue;
                }
                runtime.block_on(async {
                    for _ in 0..20 {
                        counter.value().committed().await?;
                    }
                    anyhow::Ok(())
                })?;
                reads += 20;
            }
            Ok((cpu::seconds("thread-self")? - busy) / reads as f64 * 1e6)
        });
        Self { is_over, thread }
    }

    /// Ends, and returns the microseconds of processor of one read.
    fn stop(self) -> Result<f64> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?
    }
}
