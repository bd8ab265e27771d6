//! Three nodes on one PostgreSQL: what a hop costs, how long a takeover takes, who notices a leave.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use reqwest::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use stead::{
    EntityId, PostgresStore,
    store::{Store as _, postgres::PostgresSettings},
};
use stead_tests::{database::Database, free_address, secret_file, server_among, wait_alive};
use tempfile::NamedTempFile;
use tokio::task::JoinSet;

use crate::table::{Figure, Table, median};

/// The default lease of `stead serve`.
const LEASE: Duration = Duration::from_secs(3);
const TAKEOVER_MAX: Duration = Duration::from_secs(5);
const LEAVE_WAIT_MAX: Duration = Duration::from_millis(500);
const HEARTBEATS_FOR: Duration = Duration::from_secs(9);
/// Calls of each kind in one round.
const CALLS: usize = 400;
/// Kills for each round: with the default number of rounds, enough for a 99th percentile.
const KILLS: usize = 10;
/// How many partitions of a dead node are asked for at one time.
const ASKERS: usize = 32;
const CALLERS: usize = 8;

/// A node, and where it listens.
struct Place {
    name: &'static str,
    listen: SocketAddr,
    child: Child,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

struct Cluster {
    places: Vec<Place>,
    /// A key of each partition.
    keys: Vec<String>,
    client: Client,
    secret: NamedTempFile,
    // Stopped last.
    database: Database,
}

pub async fn measure(table: &mut Table, rounds: usize) -> Result<()> {
    let Some(database) = Database::start(&["max_connections=200"]).await? else { return Ok(()) };
    let secret = secret_file(b"the secret of a cluster that is measured")?;
    let client = Client::builder().tcp_nodelay(true).timeout(Duration::from_secs(30)).build()?;
    let keys = keys(&database).await?;
    let mut cluster = Cluster { places: Vec::new(), keys, client, secret, database };
    for name in ["a", "b", "c"] {
        let place = cluster.start(name, free_address()?).await?;
        cluster.places.push(place);
    }
    cluster.settled().await?;
    let idle = cluster.heartbeats().await?;
    cluster.forwarded(table, rounds).await?;
    cluster.takeovers(table, rounds).await?;
    cluster.leaves(table, rounds).await?;
    let busy = cluster.heartbeats().await?;
    table.add(Figure {
        name: "heartbeats of a node, a second",
        figure: format!("{busy:.2} with {} entities", cluster.keys.len()),
        ceiling: format!("{idle:.2} with none"),
        ratio: format!("{:.2} times", busy / idle),
        demanded: "as many",
        is_met: busy <= 1.2 * idle,
    });
    Ok(())
}

/// A key of each partition.
async fn keys(database: &Database) -> Result<Vec<String>> {
    let store =
        PostgresStore::connect_shared(&database.url(), &PostgresSettings::default()).await?;
    let settings = &store.opened().settings;
    let mut keys = vec![String::new(); usize::from(settings.partitions)];
    let mut missing = keys.len();
    for number in 0.. {
        if missing == 0 {
            break;
        }
        let key = format!("k{number}");
        let partition = settings.partition_of(&EntityId::new("counter", &key)?);
        let known = &mut keys[usize::from(partition)];
        if known.is_empty() {
            *known = key;
            missing -= 1;
        }
    }
    Ok(keys)
}

impl Cluster {
    async fn start(&self, name: &'static str, listen: SocketAddr) -> Result<Place> {
        let url = self.database.url();
        let mut command = server_among("stead", &url, name, listen, self.secret.path())?;
        let child = command.stderr(Stdio::null()).spawn()?;
        wait_alive(listen).await?;
        Ok(Place { name, listen, child })
    }

    async fn get(&self, listen: SocketAddr, path: &str) -> Result<Value> {
        let url = format!("http://{listen}/v1/{path}");
        Ok(self.client.get(url).send().await?.error_for_status()?.json().await?)
    }

    /// Waits until nothing moves.
    async fn settled(&self) -> Result<()> {
        for _ in 0..300 {
            let shown = self.get(self.places[0].listen, "cluster").await?;
            let members = shown["members"].as_array().map_or(0, Vec::len);
            if shown["moves"].as_array().is_some_and(Vec::is_empty) && members == 3 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("the partitions do not settle within 30 s")
    }

    /// How often each node writes about itself in a second.
    async fn heartbeats(&self) -> Result<f64> {
        let sql = "select n_tup_upd from pg_stat_user_tables where relname = 'stead_nodes'";
        let before = self.database.number(sql).await?;
        tokio::time::sleep(HEARTBEATS_FOR).await;
        let written = self.database.number(sql).await? - before;
        Ok(written as f64 / self.places.len() as f64 / HEARTBEATS_FOR.as_secs_f64())
    }

    /// Keys by the name of their owner.
    async fn owners(&self) -> Result<BTreeMap<String, Vec<String>>> {
        let mut owners: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let shown = self.get(self.places[0].listen, "cluster").await?;
        let partitions = shown["partitions"].as_array().context("partitions")?;
        for (key, partition) in self.keys.iter().zip(partitions) {
            let owner = partition["owner"].as_str().context("an owner")?.to_owned();
            owners.entry(owner).or_default().push(key.clone());
        }
        Ok(owners)
    }

    async fn call(&self, listen: SocketAddr, key: &str) -> Result<Duration> {
        let began = Instant::now();
        let url = format!("http://{listen}/v1/entities/counter/{key}/calls/add");
        self.client.post(url).body("1").send().await?.error_for_status()?.bytes().await?;
        Ok(began.elapsed())
    }

    /// Calls that the node repeats where it is not known whether they were applied.
    async fn ask_all(&self, keys: Vec<String>, round: usize) -> Result<()> {
        let mut asking = JoinSet::new();
        for some in keys.chunks(keys.len().div_ceil(ASKERS).max(1)) {
            let (some, client, listen) =
                (some.to_vec(), self.client.clone(), self.places[0].listen);
            asking.spawn(async move {
                for key in some {
                    let url = format!("http://{listen}/v1/entities/counter/{key}/calls/add");
                    let call = client.post(url).header("idempotency-key", format!("{round}"));
                    call.body("1").send().await?.error_for_status()?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(asked) = asking.join_next().await {
            asked??;
        }
        Ok(())
    }

    async fn forwarded(&self, table: &mut Table, rounds: usize) -> Result<()> {
        let owners = self.owners().await?;
        let listen = self.places[0].listen;
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            for number in 0..CALLS {
                let key = |name: &str| &owners[name][(round + number) % owners[name].len()];
                here.push(self.call(listen, key("a")).await?.as_secs_f64());
                there.push(self.call(listen, key("b")).await?.as_secs_f64());
            }
        }
        let (here, there) = (median(&mut here) * 1e6, median(&mut there) * 1e6);
        table.add(Figure {
            name: "a call that is forwarded, p50",
            figure: format!("{there:.0} us"),
            ceiling: format!("{here:.0} us for a local one"),
            ratio: format!("{:.2} times", there / here),
            demanded: "at most 2 times",
            is_met: there <= 2.0 * here,
        });
        Ok(())
    }

    /// Kills a node and counts the time until all its partitions serve again.
    async fn takeovers(&mut self, table: &mut Table, rounds: usize) -> Result<()> {
        let mut times = Vec::new();
        for round in 0..KILLS * rounds {
            let number = 1 + round % 2;
            let name = self.places[number].name;
            let keys = self.owners().await?.remove(name).unwrap_or_default();
            let began = Instant::now();
            kill_process(Pid::from_child(&self.places[number].child), Signal::KILL)?;
            anyhow::ensure!(!keys.is_empty(), "{name} owns nothing");
            self.ask_all(keys, round).await?;
            times.push(began.elapsed());
            self.replace(number).await?;
        }
        times.sort();
        let worst = times[(times.len() * 99).div_ceil(100) - 1];
        table.add(Figure {
            name: "takeover of all partitions after a kill, p99",
            figure: format!("{:.2} s of {}", worst.as_secs_f64(), times.len()),
            ceiling: format!("a lease of {} s", LEASE.as_secs()),
            ratio: format!("{:.2} s more", worst.as_secs_f64() - LEASE.as_secs_f64()),
            demanded: "at most 2 s more",
            is_met: worst <= TAKEOVER_MAX,
        });
        Ok(())
    }

    async fn replace(&mut self, number: usize) -> Result<()> {
        let mut gone = self.places.remove(number);
        gone.child.wait()?;
        let place = self.start(gone.name, gone.listen).await?;
        self.places.insert(number, place);
        self.settled().await
    }

    /// Has a node leave while callers go on through all of them; those of the node that leaves go to
    /// another one when it takes no more connections.
    async fn leaves(&mut self, table: &mut Table, rounds: usize) -> Result<()> {
        let (mut waits, mut errors) = (Vec::new(), 0);
        for round in 0..rounds {
            let number = 1 + round % 2;
            let is_over = Arc::new(AtomicBool::new(false));
            let listens: Vec<_> = self.places.iter().map(|place| place.listen).collect();
            let callers = (0..CALLERS).map(|caller| {
                let (client, is_over) = (self.client.clone(), is_over.clone());
                let keys = self.keys.clone();
                let mut listen = listens[caller % listens.len()];
                let another = listens[0];
                tokio::spawn(async move {
                    let (mut waits, mut errors) = (Vec::new(), 0);
                    for call in 0.. {
                        if is_over.load(Ordering::SeqCst) {
                            break;
                        }
                        let key = &keys[(caller * 137 + call) % keys.len()];
                        let url = format!("http://{listen}/v1/entities/counter/{key}/calls/add");
                        let began = Instant::now();
                        match client.post(url).body("1").send().await {
                            Ok(answer) if answer.status() == 200 => waits.push(began.elapsed()),
                            Err(error) if error.is_connect() => listen = another,
                            _ => errors += 1,
                        }
                    }
                    (waits, errors)
                })
            });
            let callers: Vec<_> = callers.collect();
            kill_process(Pid::from_child(&self.places[number].child), Signal::TERM)?;
            while self.places[number].child.try_wait()?.is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            is_over.store(true, Ordering::SeqCst);
            for caller in callers {
                let (some, failed) = caller.await?;
                waits.extend(some);
                errors += failed;
            }
            self.replace(number).await?;
        }
        waits.sort();
        let p99 = waits.get(waits.len() * 99 / 100).copied().unwrap_or_default();
        let longest = waits.last().copied().unwrap_or_default();
        table.add(Figure {
            name: "calls while a node leaves, p99",
            figure: format!("{} ms of {} calls, {errors} errors", p99.as_millis(), waits.len()),
            ceiling: format!("the longest {} ms", longest.as_millis()),
            ratio: "-".into(),
            demanded: "at most 500 ms, no error",
            is_met: p99 <= LEAVE_WAIT_MAX && errors == 0,
        });
        Ok(())
    }
}
