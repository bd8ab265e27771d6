//! The driver: kills server and client, and compares the outcome with the file.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    client::events,
    entities::{Activity, Clerk, Permit},
};

type Counts = BTreeMap<String, BTreeMap<String, u64>>;

/// Runs the replay with `kills` kills at moments that `seed` decides: of one server and its directory,
/// or of three that share a database.
pub async fn drive(kills: u32, seed: u64, store: Option<String>) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let places = (0..if store.is_some() { 3 } else { 1 }).map(|number| {
        let (listen, peers) = (free()?, free()?);
        anyhow::Ok(Place { name: format!("n{number}"), listen, peers, store: store.clone() })
    });
    let places: Vec<Place> = places.collect::<Result<_>>()?;
    println!("replaying through {} servers with {kills} kills, seed {seed}", places.len());
    let start = |place: &Place| Process::server(directory.path(), place);
    let mut servers: Vec<Process> = places.iter().map(start).collect::<Result<_>>()?;
    let addresses: Vec<_> = places.iter().map(|place| place.listen).collect();
    let mut client = Process::client(directory.path(), &addresses)?;
    let mut random = Random(seed);
    for kill in 1..=kills {
        let pause = Duration::from_millis(30 + random.below(220));
        tokio::time::sleep(pause).await;
        if random.below(3) == 0 {
            client = client.replaced_by(|| Process::client(directory.path(), &addresses))?;
        } else {
            let number = random.below(places.len() as u64) as usize;
            let killed = servers.remove(number);
            servers.insert(number, killed.replaced_by(|| start(&places[number]))?);
        }
        if kill % 5 == 0 {
            println!("{kill} of {kills} kills");
        }
    }
    client.finish().await?;
    let outcome = compare(addresses[0]).await;
    drop(servers);
    outcome
}

/// The address of a server, and the place of its data.
struct Place {
    name: String,
    listen: SocketAddr,
    peers: SocketAddr,
    store: Option<String>,
}

fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A child process; dropping it kills it.
struct Process(Child);

impl Process {
    fn server(data: &Path, place: &Place) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        match &place.store {
            Some(store) => {
                command.args(["join", "--store", store, "--name", &place.name]);
                command.args(["--peers", &place.peers.to_string()]);
            }
            None => drop(command.arg("serve").arg("--data").arg(data.join("data"))),
        }
        command.arg("--listen").arg(place.listen.to_string());
        Ok(Self(command.stdin(Stdio::null()).spawn()?))
    }

    fn client(data: &Path, addresses: &[SocketAddr]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("send");
        for address in addresses {
            command.arg("--server").arg(address.to_string());
        }
        command.arg("--progress").arg(data.join("progress"));
        Ok(Self(command.stdin(Stdio::null()).spawn()?))
    }

    /// Kills the process, then starts another.
    fn replaced_by(self, start: impl FnOnce() -> Result<Self>) -> Result<Self> {
        drop(self);
        start()
    }

    async fn finish(mut self) -> Result<()> {
        for _ in 0..6_000 {
            if let Some(status) = self.0.try_wait()? {
                ensure!(status.success(), "the client failed: {status}");
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("the client does not end within two minutes")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _reaped = self.0.wait();
    }
}

async fn compare(server: SocketAddr) -> Result<()> {
    let (mut clerks, mut activities) = (Counts::new(), Counts::new());
    let mut total = 0;
    let permits = events()?;
    for (permit, lines) in &permits {
        for line in lines {
            let (activity, resource) = (&line.event.activity, &line.event.resource);
            *clerks.entry(resource.clone()).or_default().entry(activity.clone()).or_default() += 1;
            let by = activities.entry(activity.clone()).or_default();
            *by.entry(resource.clone()).or_default() += 1;
            total += 1;
        }
        let state: Permit = state(server, "permit", permit).await?;
        let expected: Vec<_> = lines.iter().map(|line| line.event.clone()).collect();
        ensure!(state.events == expected, "{permit} differs: {:?}", state.events);
    }
    for (name, expected) in &clerks {
        settled(server, "clerk", name, |clerk: Clerk| clerk.handled == *expected).await?;
    }
    for (name, expected) in &activities {
        settled(server, "activity", name, |activity: Activity| activity.done_by == *expected)
            .await?;
    }
    let letters: Value = get(server, "/v1/dead-letters").await?;
    ensure!(letters["dead_letters"] == serde_json::json!([]), "dead letters: {letters}");
    print_busiest("clerks", &clerks);
    print_busiest("activities", &activities);
    println!(
        "no difference: {total} events, {} permits, {} clerks, {} activities",
        permits.len(),
        clerks.len(),
        activities.len()
    );
    Ok(())
}

/// Waits, at most a minute, until what was accepted is applied.
async fn settled<T: serde::de::DeserializeOwned>(
    server: SocketAddr,
    entity_type: &str,
    key: &str,
    is_settled: impl Fn(T) -> bool,
) -> Result<()> {
    for _ in 0..600 {
        if state(server, entity_type, key).await.is_ok_and(&is_settled) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let found: Value = state(server, entity_type, key).await?;
    bail!("{entity_type}/{key} differs: {found}")
}

async fn state<T: serde::de::DeserializeOwned>(
    server: SocketAddr,
    entity_type: &str,
    key: &str,
) -> Result<T> {
    let key = key.replace(' ', "%20").replace('/', "%2F");
    let shown: Value = get(server, &format!("/v1/entities/{entity_type}/{key}")).await?;
    Ok(serde_json::from_value(shown["state"].clone())?)
}

async fn get(server: SocketAddr, path: &str) -> Result<Value> {
    let url = format!("http://{server}{path}");
    for _ in 0..500 {
        match reqwest::get(&url).await {
            Ok(answer) if answer.status() == 200 => return Ok(answer.json().await?),
            Ok(answer) if answer.status() == 404 => bail!("{path} is not there"),
            Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    reqwest::get(&url).await.context(path.to_owned())?.error_for_status()?;
    bail!("{path} did not answer")
}

fn print_busiest(what: &str, counts: &Counts) {
    let mut totals: Vec<_> =
        counts.iter().map(|(name, by)| (by.values().sum::<u64>(), name)).collect();
    totals.sort_unstable_by(|a, b| b.cmp(a));
    println!("the busiest {what}:");
    for (total, name) in totals.into_iter().take(5) {
        println!("{total:>6}  {name}");
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }
}
