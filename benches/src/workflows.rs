//! Workflows: a chain of three steps beside the durable calls that it is made of, a step more, a fan-out, a replay, a purge
//! beside others, and what one takes that waits.

use std::{
    future::Future,
    path::Path,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use stead::{
    Config, Failure, Node, RocksStore, Server, WorkflowChange,
    stock::Counter,
    store::rocks::RocksSettings,
    workflow,
    workflow::{StepError, Workflow},
};

use crate::{
    activation::resident_bytes,
    ceiling::key,
    cpu,
    http::Process,
    load::{Connection, answers_per_second, request},
    recovery::create,
    table::{Figure, Table, median, median_ratio, medians, percentile, thousands},
};

const IN_FLIGHT: usize = 64;
const LENGTH: Duration = Duration::from_secs(3);
/// More than can be started in one round.
const KEYS: usize = 200_000;
const ALONE: usize = 300;
const FAN: u32 = 1_000;
/// Just below the limit of a history, with the events behind it.
const REPLAYED: u32 = 19_900;
const BATCH: u32 = 200;
const AT_REST: usize = 60_000;
/// The bytes of the cache of the database, and of its write buffers.
const BUFFERS: (usize, usize) = (32 << 20, 16 << 20);
/// An idle time in which no workflow leaves memory.
const FOR_EVER: Duration = Duration::from_secs(86_400);
const STARTED: usize = 100_000;
const PURGED: usize = 10_000;
const CALLERS: usize = 8;

/// Steps one behind the other.
pub struct Chain;

#[workflow(name = "chain")]
impl Chain {
    pub async fn run(ctx: Workflow<Self>, steps: u32) -> Result<u32, Failure> {
        let mut sum = 0;
        for number in 0..steps {
            sum += ctx.work(number).await?;
        }
        Ok(sum)
    }

    async fn work(&self, number: u32) -> Result<u32, StepError> {
        Ok(number)
    }
}

/// Steps side by side, in one batch behind the other, and then events. Batches of one are a chain.
pub struct Fan;

#[workflow(name = "fan", events(more: u32))]
impl Fan {
    pub async fn run(
        ctx: Workflow<Self>,
        steps: u32,
        batch: u32,
        events: u32,
    ) -> Result<u32, Failure> {
        let mut sum = 0;
        for first in (0..steps).step_by(batch.max(1) as usize) {
            if batch == 1 {
                sum += ctx.work(first).await? % 7;
                continue;
            }
            let last = steps.min(first + batch);
            let done = ctx.try_all((first..last).map(|number| ctx.work(number))).await?;
            sum += done.into_iter().sum::<u32>() % 7;
        }
        for _ in 0..events {
            sum += ctx.more().await?;
        }
        Ok(sum)
    }

    async fn work(&self, number: u32) -> Result<u32, StepError> {
        Ok(number)
    }
}

/// A node whose workflows stay in memory.
async fn node(data: &Path) -> Result<Node> {
    node_with(data, BUFFERS, FOR_EVER).await
}

/// A node whose database has a cache and write buffers of so many bytes, and whose workflows leave memory once they are
/// idle for so long.
async fn node_with(data: &Path, (cache, buffer): (usize, usize), idle: Duration) -> Result<Node> {
    let settings = RocksSettings::with(|settings| {
        settings.block_cache_bytes = cache;
        settings.write_buffer_bytes = buffer;
    });
    let store = RocksStore::open_with(data, &settings)?;
    let config = Config::with(|config| {
        config.idle = idle;
        config.memory = 4 << 30;
    });
    let builder = Node::builder().store(store).config(config).entity::<Counter>();
    Ok(builder.workflow(Chain).workflow(Fan).start().await?)
}

/// Serves the workflows of this bench until it is killed.
pub async fn serve(data: &Path) -> Result<()> {
    let node = node(data).await?;
    let server = Server::bind("127.0.0.1:0".parse()?).await?;
    println!("{}", server.address()?);
    server.serve(node.router(), std::future::pending(), Duration::ZERO).await;
    Ok(())
}

/// Starts the `number`-th chain of a round of `steps`, and waits for its result.
fn chain_request(round: usize, steps: u32, number: usize) -> Vec<u8> {
    let key = key(number);
    let body = steps.to_string();
    format!(
        "POST /v1/workflows/chain/{round}-{key} HTTP/1.1\r\nhost: bench\r\nprefer: wait=30\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

pub async fn measure(table: &mut Table, rounds: usize) -> Result<()> {
    over_http(table, rounds).await?;
    let directory = tempfile::tempdir()?;
    let node = node(&directory.path().join("data")).await?;
    in_process(table, &node, rounds).await?;
    fan_out(table, &node, rounds).await?;
    purge(table, &node, rounds).await?;
    node.drain().await?;
    drop(node);
    replay(table, rounds).await?;
    starts(table, rounds).await?;
    at_rest(table)
}

async fn over_http(table: &mut Table, rounds: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut command = Command::new(std::env::current_exe()?);
    let server = Process::of_this(command.arg("workflows").arg(directory.path().join("data")))?;
    let (mut rates, mut times, mut longer, mut costs) = (vec![], vec![], vec![], vec![]);
    let mut connection = Connection::open(server.address()).await?;
    for round in 0..rounds {
        let address = server.address();
        let bound = answers_per_second(address, request, IN_FLIGHT, 10_000, LENGTH).await?;
        let chain = move |number| chain_request(round, 3, number);
        let (busy, started) = (server.cpu()?, Instant::now());
        let ours = answers_per_second(address, chain, IN_FLIGHT, KEYS, LENGTH).await?;
        let busy = (server.cpu()? - busy) / started.elapsed().as_secs_f64();
        rates.push((ours, bound / 4.0));
        costs.push(busy / ours * 1e6);
        let call = request(0);
        let (mut calls, mut chains, mut four) = (vec![], vec![], vec![]);
        for number in 0..ALONE {
            calls.push(connection.micros(&call).await?);
            chains.push(connection.micros(&chain_request(round, 3, KEYS + number)).await?);
            four.push(connection.micros(&chain_request(round, 4, 2 * KEYS + number)).await?);
        }
        let (call, chain) = (median(&mut calls), median(&mut chains));
        times.push((chain, call));
        longer.push((median(&mut four) - chain, call));
    }
    let ((ours, bound), ratio) = (medians(&rates), median_ratio(&rates));
    table.add(Figure {
        name: "a workflow of three steps over HTTP, 64 at one time",
        figure: format!("{}, {:.0} us of processor each", thousands(ours), median(&mut costs)),
        ceiling: format!("{}, a quarter of the calls of 64", thousands(bound)),
        ratio: format!("{:.0} %", ratio * 100.0),
        demanded: "60 %, or 4,000/s",
        is_met: ratio >= 0.60 || ours >= 4_000.0,
    });
    let ((ours, bound), ratio) = (medians(&times), median_ratio(&times));
    table.add(Figure {
        name: "a workflow of three steps over HTTP, alone, p50",
        figure: format!("{ours:.0} us"),
        ceiling: format!("{bound:.0} us, a durable call"),
        ratio: format!("{ratio:.1} times"),
        demanded: "at most 5 times",
        is_met: ratio <= 5.0,
    });
    let ((ours, bound), ratio) = (medians(&longer), median_ratio(&longer));
    table.add(Figure {
        name: "a fourth step, p50",
        figure: format!("{ours:.0} us"),
        ceiling: format!("{bound:.0} us, a durable call"),
        ratio: format!("{ratio:.1} times"),
        demanded: "at most 1.3 times",
        is_met: ratio <= 1.3,
    });
    Ok(())
}

/// How many a second are done of what `IN_FLIGHT` senders do again and again, each with numbers of its own.
async fn done_per_second<F>(make: impl Fn(usize) -> F + Clone + Send + 'static) -> Result<f64>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let started = Instant::now();
    let mut senders = tokio::task::JoinSet::new();
    for sender in 0..IN_FLIGHT {
        let make = make.clone();
        senders.spawn(async move {
            let mut done = 0;
            while started.elapsed() < LENGTH {
                make(done * IN_FLIGHT + sender).await?;
                done += 1;
            }
            anyhow::Ok(done)
        });
    }
    let mut done = 0;
    while let Some(of_one) = senders.join_next().await {
        done += of_one??;
    }
    Ok(done as f64 / started.elapsed().as_secs_f64())
}

async fn in_process(table: &mut Table, node: &Node, rounds: usize) -> Result<()> {
    let mut pairs = Vec::new();
    for round in 0..rounds {
        let calls = node.clone();
        let bound = done_per_second(move |number| {
            let counter = calls.entity::<Counter>(key(number % 10_000));
            async move { Ok(counter.add(1).await.map(|_| ())?) }
        });
        let bound = bound.await? / 4.0;
        let chains = node.clone();
        let ours = done_per_second(move |number| {
            let chain = chains.workflow::<Chain>(format!("{round}-{}", key(number)));
            async move {
                chain.start(3).await?;
                ensure!(chain.result().await? == 3, "another result");
                Ok(())
            }
        });
        pairs.push((ours.await?, bound));
    }
    let ((ours, bound), ratio) = (medians(&pairs), median_ratio(&pairs));
    table.add(Figure {
        name: "a workflow of three steps in process, 64 at one time",
        figure: thousands(ours),
        ceiling: format!("{}, a quarter of the calls of 64", thousands(bound)),
        ratio: format!("{:.0} %", ratio * 100.0),
        demanded: "60 %",
        is_met: ratio >= 0.60,
    });
    Ok(())
}

/// Runs one fan of `steps`: how long it takes, and how much of the processor.
async fn fan(node: &Node, name: &str, steps: u32) -> Result<(f64, f64)> {
    let (busy, started) = (cpu::seconds("self")?, Instant::now());
    let fan = node.workflow::<Fan>(name);
    fan.start(steps, steps, 0).await?;
    fan.result().await?;
    Ok((started.elapsed().as_secs_f64(), cpu::seconds("self")? - busy))
}

async fn fan_out(table: &mut Table, node: &Node, rounds: usize) -> Result<()> {
    let (mut costs, mut lengths) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let mut cost = 0.0;
        let mut length = 0.0;
        for again in 0..10 {
            let one = fan(node, &format!("{round}-{again}"), FAN).await?;
            (length, cost) = (length + one.0 / 10.0, cost + one.1 / 10.0);
        }
        let busy = cpu::seconds("self")?;
        let mut singles = tokio::task::JoinSet::new();
        for number in 0..FAN * 10 {
            let single = node.workflow::<Chain>(format!("single-{round}-{number}"));
            singles.spawn(async move {
                single.start(1).await?;
                anyhow::Ok(single.result().await?)
            });
        }
        while let Some(single) = singles.join_next().await {
            single??;
        }
        costs.push((cost, (cpu::seconds("self")? - busy) / 10.0));
        lengths.push((fan(node, &format!("{round}-long"), FAN * 10).await?.0, length));
    }
    let ((ours, bound), ratio) = (medians(&costs), median_ratio(&costs));
    table.add(Figure {
        name: "a workflow of 1,000 steps side by side, processor",
        figure: format!("{:.1} ms", ours * 1e3),
        ceiling: format!("{:.1} ms, 1,000 workflows of one step", bound * 1e3),
        ratio: format!("{ratio:.2} times"),
        demanded: "at most 1.5 times",
        is_met: ratio <= 1.5,
    });
    let ((ours, bound), ratio) = (medians(&lengths), median_ratio(&lengths));
    table.add(Figure {
        name: "a workflow of 10,000 steps side by side",
        figure: format!("{:.0} ms", ours * 1e3),
        ceiling: format!("{:.0} ms, one of 1,000", bound * 1e3),
        ratio: format!("{ratio:.1} times"),
        demanded: "at most 12 times",
        is_met: ratio <= 12.0,
    });
    Ok(())
}

/// How many milliseconds 99 of 100 calls of a few callers take at most, while something else goes on.
async fn latency_beside(node: &Node, other: impl Future<Output = Result<()>>) -> Result<f64> {
    let mut callers = tokio::task::JoinSet::new();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    for caller in 0..CALLERS {
        let (node, stopped) = (node.clone(), stopped.clone());
        callers.spawn(async move {
            let mut times = Vec::new();
            for number in 0.. {
                let started = Instant::now();
                node.entity::<Counter>(key(caller * 1_000 + number % 1_000)).add(1).await?;
                times.push(started.elapsed().as_secs_f64() * 1e3);
                if *stopped.borrow() {
                    break;
                }
            }
            anyhow::Ok(times)
        });
    }
    let done = other.await;
    stop.send_replace(true);
    let mut times = Vec::new();
    while let Some(of_one) = callers.join_next().await {
        times.extend(of_one??);
    }
    done?;
    Ok(percentile(times, 0.99))
}

/// Calls to others while very many workflows are purged.
async fn purge(table: &mut Table, node: &Node, rounds: usize) -> Result<()> {
    let mut pairs = Vec::new();
    for round in 0..rounds {
        let prefix = format!("purged-{round}-");
        let mut ending = tokio::task::JoinSet::new();
        for number in 0..PURGED {
            let chain = node.workflow::<Chain>(format!("{prefix}{number}"));
            ending.spawn(async move {
                chain.start(20).await?;
                anyhow::Ok(chain.result().await?)
            });
            if ending.len() >= 256 {
                ending.join_next().await.transpose()?.transpose()?;
            }
        }
        while let Some(ended) = ending.join_next().await {
            ended??;
        }
        let nothing = async {
            tokio::time::sleep(LENGTH).await;
            Ok(())
        };
        let alone = latency_beside(node, nothing).await?;
        let purging = async {
            let search = node.find_of("chain").prefix(prefix).limit(1_000);
            let (mut search, mut done) = (search.matching("status:completed"), 0);
            loop {
                let page = search.change(&WorkflowChange::Purge { recursive: false }).await?;
                done += page.done;
                match page.next {
                    Some(next) => search = search.after(next),
                    None => break,
                }
            }
            ensure!(done == PURGED as u64, "only {done} were purged");
            Ok(())
        };
        pairs.push((latency_beside(node, purging).await?, alone));
    }
    let ((ours, alone), ratio) = (medians(&pairs), median_ratio(&pairs));
    table.add(Figure {
        name: "calls of 8 while 10,000 workflows are purged, 99 of 100",
        figure: format!("{ours:.2} ms"),
        ceiling: format!("{alone:.2} ms, while none is"),
        ratio: format!("{ratio:.2} times"),
        demanded: "at most 2 times",
        is_met: ratio <= 2.0,
    });
    Ok(())
}

/// The time of an event to a workflow that is not in memory, and whose rows are in the cache of the database, without that
/// of an event to one that is.
async fn replay(table: &mut Table, rounds: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let idle = Duration::from_secs(1);
    let node = node_with(&directory.path().join("data"), BUFFERS, idle).await?;
    let chain = "a chain of 19,900 steps is read and replayed";
    replay_of(table, (&node, idle), (chain, 1, "at most 20 ms"), rounds).await?;
    let batches = "19,900 steps in batches of 200 are read and replayed";
    replay_of(table, (&node, idle), (batches, BATCH, "-"), rounds).await?;
    node.drain().await?;
    Ok(())
}

async fn replay_of(
    table: &mut Table,
    (node, idle): (&Node, Duration),
    (name, batch, demanded): (&'static str, u32, &'static str),
    rounds: usize,
) -> Result<()> {
    let long = node.workflow::<Fan>(batch.to_string());
    long.start(REPLAYED, batch, u32::try_from(rounds * 2 + 2)?).await?;
    for _ in 0..600 {
        let status = long.status().await?;
        if let Some(stuck) = status.stuck {
            return Err(anyhow!("{}", stuck.reason));
        }
        if status.waits_for.iter().any(|wait| wait.name == "more") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut pairs = Vec::new();
    for round in 0..=rounds {
        tokio::time::sleep(3 * idle).await;
        let mut times = [0.0; 2];
        for time in &mut times {
            let started = Instant::now();
            long.more(1).await?;
            *time = started.elapsed().as_secs_f64() * 1e3;
        }
        ensure!(times[0] > 3.0 * times[1], "the workflow did not leave memory");
        // The first one brings the rows into the cache.
        if round > 0 {
            pairs.push((times[0] - times[1], times[1]));
        }
    }
    let (ours, warm) = medians(&pairs);
    table.add(Figure {
        name,
        figure: format!("{ours:.1} ms"),
        ceiling: format!("{warm:.1} ms, an event to one in memory"),
        ratio: format!("{:.2} us a delivery", ours * 1e3 / f64::from(REPLAYED)),
        demanded,
        is_met: demanded == "-" || ours <= 20.0,
    });
    Ok(())
}

/// The time from the start of a node to its first answer, of one whose workflows wait, and of one with as many idle
/// entities.
async fn starts(table: &mut Table, rounds: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (waiting, idle) = (directory.path().join("waiting"), directory.path().join("idle"));
    let filling = node(&waiting).await?;
    start_waiting(&filling, 0, STARTED).await?;
    filling.drain().await?;
    drop(filling);
    let filling = node(&idle).await?;
    create(&filling, STARTED).await?;
    filling.drain().await?;
    drop(filling);
    let mut pairs = Vec::new();
    for _ in 0..rounds {
        let mut times = [0.0; 2];
        for (time, data) in times.iter_mut().zip([&waiting, &idle]) {
            let started = Instant::now();
            let node = node(data).await?;
            node.entity::<Counter>("first").add(1).await?;
            *time = started.elapsed().as_secs_f64() * 1e3;
            node.drain().await?;
        }
        pairs.push((times[0], times[1]));
    }
    let (ours, ceiling) = medians(&pairs);
    let ratio = median_ratio(&pairs);
    table.add(Figure {
        name: "a node with 100,000 workflows that wait starts, and answers",
        figure: format!("{ours:.0} ms"),
        ceiling: format!("{ceiling:.0} ms with as many idle entities"),
        ratio: format!("{ratio:.2} times"),
        demanded: "at most 1.1 times",
        is_met: ratio <= 1.1,
    });
    Ok(())
}

fn at_rest(table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut command = Command::new(std::env::current_exe()?);
    let output = command.arg("waiting").arg(directory.path().join("data")).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    let of_author = future_bytes(Fan::run) as f64;
    let bytes = all - of_author;
    table.add(Figure {
        name: "a workflow that waits for its third event, resident",
        figure: format!("{bytes:.0} bytes, and {of_author:.0} of the author's future"),
        ceiling: "none".into(),
        ratio: "-".into(),
        demanded: "at most 2,400 bytes",
        is_met: bytes <= 2_400.0,
    });
    Ok(())
}

/// How many bytes the future of a workflow takes.
fn future_bytes<F>(_: impl Fn(Workflow<Fan>, u32, u32, u32) -> F) -> usize {
    size_of::<F>()
}

/// In a process of its own: starts workflows that wait and prints how much each adds.
pub async fn wait_in_memory(data: &Path) -> Result<()> {
    // What the database keeps in memory comes and goes, and is no instance's.
    let node = node_with(data, (1 << 20, 1 << 20), FOR_EVER).await?;
    // Enough to fill caches, pools and queues.
    start_waiting(&node, 0, AT_REST / 2).await?;
    let before = resident_bytes()?;
    start_waiting(&node, AT_REST / 2, AT_REST).await?;
    let added = resident_bytes()? - before;
    println!("{}", added / (AT_REST - AT_REST / 2) as f64);
    node.drain().await?;
    Ok(())
}

async fn start_waiting(node: &Node, first: usize, last: usize) -> Result<()> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.store(first, Ordering::Relaxed);
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let node = node.clone();
        senders.spawn(async move {
            loop {
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                if number >= last {
                    return anyhow::Ok(());
                }
                let waiting = node.workflow::<Fan>(key(number));
                waiting.start(0, 1, 9).await?;
                waiting.more(1).await?;
                waiting.more(2).await?;
            }
        });
    }
    while let Some(done) = senders.join_next().await {
        done??;
    }
    Ok(())
}
