//! One run: three nodes, clients, and what goes wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use stead::{CallError, Client, ErrorKind, TraceContext};
use stead_tests::{
    database::Database,
    events::{Follower, with_lengths},
    history::{History, Kind, compare},
    indexes,
    log::Log,
    random::Random,
    secret_file,
    wait::until,
};
use tempfile::NamedTempFile;

use super::{
    audit,
    nodes::{LEASE, NodeProcess, can_skew},
    wrong::Counts,
};

const CLIENTS: u64 = 12;
const ENTITIES: u64 = 40;
/// How long a client waits for one node.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How many things go wrong in a run.
const FAULTS: usize = 10;

/// A run that has begun.
pub struct Run {
    pub database: Database,
    pub nodes: Vec<NodeProcess>,
    pub random: Random,
    pub secret: NamedTempFile,
    pub counts: Counts,
    seed: u64,
    pub shared: Arc<Shared>,
    follower: Option<Follower>,
}

/// What clients share.
pub struct Shared {
    pub seed: u64,
    pub urls: Vec<String>,
    history: Mutex<History>,
    pub is_over: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run {
    /// Starts database and nodes, which host workflows where their steps have a file to write in; none where there is no
    /// PostgreSQL.
    pub async fn start(seed: u64, outside: Option<&Path>) -> Result<Option<Self>> {
        let Some(database) = Database::start(&["max_connections=200"]).await? else {
            return Ok(None);
        };
        let secret = secret_file(b"the secret of a cluster under test")?;
        let mut nodes = Vec::new();
        for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
            let skews = ["+0", "+7h", "-3h"];
            let skew = can_skew().then(|| skews[(number + seed as usize) % 3].to_owned());
            let mut node = NodeProcess::new(name, &database, skew).await?;
            node.outside = outside.map(Into::into);
            node.start(secret.path()).await?;
            nodes.push(node);
        }
        let shared = Shared {
            seed,
            urls: nodes.iter().map(NodeProcess::url).collect(),
            history: Mutex::default(),
            is_over: AtomicBool::new(false),
        };
        let counts = Counts::default();
        let (random, shared) = (Random(seed), Arc::new(shared));
        Ok(Some(Self { database, nodes, random, secret, counts, seed, shared, follower: None }))
    }

    /// Runs it all, and compares.
    pub async fn finish(mut self) -> Result<()> {
        let began = Instant::now();
        self.shared.wait_alive().await?;
        self.database.execute(audit::TRIGGERS).await?;
        let clients = (0..CLIENTS).map(|client| {
            let shared = self.shared.clone();
            tokio::spawn(async move { shared.client(client).await })
        });
        let clients: Vec<_> = clients.collect();
        let shared = self.shared.clone();
        let following = tokio::spawn(async move { shared.follow().await });
        self.go_wrong().await?;
        let whole = Instant::now();
        self.shared.is_over.store(true, Ordering::SeqCst);
        for client in clients {
            client.await?;
        }
        self.follower = Some(following.await?);
        let wrong = self.settled(whole).await?;
        let hits = self.database.number(audit::HITS).await?;
        let acknowledged = lock(&self.shared.history).acknowledged.len();
        let line = format!(
            "{},{:.0},{acknowledged},{},{},{},{},{},{},{},{},{hits},{}",
            self.seed,
            began.elapsed().as_secs_f64(),
            self.counts.kills,
            self.counts.leaves,
            self.counts.pauses,
            self.counts.takeovers,
            self.counts.ambiguous,
            self.counts.splits,
            self.counts.crashes,
            self.counts.thefts,
            wrong.len(),
        );
        println!("{line}");
        if let Ok(ledger) = std::env::var("STEAD_LEDGER") {
            let mut file = std::fs::File::options().create(true).append(true).open(ledger)?;
            writeln!(file, "{line}")?;
        }
        if !wrong.is_empty() || hits > 0 {
            bail!("seed {}: {hits} writes of strangers; {wrong:#?}", self.seed);
        }
        Ok(())
    }

    /// Breaks one thing after the other.
    pub async fn go_wrong(&mut self) -> Result<()> {
        for _ in 0..FAULTS {
            let pause = Duration::from_millis(self.random.below(1_000));
            tokio::time::sleep(pause).await;
            self.break_one().await?;
            self.revive().await?;
        }
        Ok(())
    }

    /// A node whose name was still held may have ended: it is started again.
    pub async fn revive(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            if !node.runs() {
                node.start(self.secret.path()).await?;
            }
        }
        Ok(())
    }

    /// Waits, at most 30 s from when everything was whole, until what was accepted is applied.
    async fn settled(&mut self, whole: Instant) -> Result<Vec<String>> {
        loop {
            self.revive().await?;
            let mut wrong = Vec::new();
            let mut logs = BTreeMap::new();
            for number in 0..ENTITIES {
                let key = format!("e{number}");
                let client = Client::new(&self.shared.urls[(number % 3) as usize])?;
                match tokio::time::timeout(TIMEOUT, client.entity::<Log>(&key).all()).await {
                    Ok(Ok(log)) => drop(logs.insert(key, log)),
                    Ok(Err(error)) => wrong.push(format!("{key} cannot be read: {error}")),
                    Err(_) => wrong.push(format!("{key} cannot be read in time")),
                }
            }
            if wrong.is_empty() {
                wrong = compare(&lock(&self.shared.history), &logs);
            }
            let lost: usize = logs.values().map(|log| log.lost.len()).sum();
            for (table, due) in [
                ("stead_inbox", 0),
                ("stead_due", 0),
                ("stead_origins", 0),
                ("stead_dead_letters", lost),
                ("stead_states where position('ember/'::bytea in key) = 1", 0),
            ] {
                let rows = self.database.number(&format!("select count(*) from {table}")).await?;
                if rows != due as i64 {
                    wrong.push(format!("{rows} rows are left in {table}, and not {due}"));
                }
            }
            let states = "2 * (select count(*) from stead_states)";
            let surplus = format!("select (select count(*) from stead_indexes) - {states}");
            match self.database.number(&surplus).await? {
                0 => {}
                rows => wrong.push(format!("{rows} rows of indexes are left over")),
            }
            let http = reqwest::Client::builder().timeout(TIMEOUT).build()?;
            let get = async |path: &str| {
                let url = format!("{}{path}", self.shared.urls[0]);
                Ok(http.get(url).send().await?.json::<serde_json::Value>().await?)
            };
            match indexes::differences(get).await {
                Ok(differences) => wrong.extend(differences),
                Err(error) => wrong.push(format!("indexes cannot be compared: {error}")),
            }
            if let Some(follower) = &mut self.follower {
                match follower.follow(&self.shared.urls[1], true).await {
                    Err(error) => wrong.push(format!("changes cannot be followed: {error}")),
                    Ok(()) => wrong.extend(follower_differs(follower, &logs)?),
                }
            }
            if wrong.is_empty() || whole.elapsed() > Duration::from_secs(30) + LEASE {
                return Ok(wrong);
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// The difference between what a follower knows and what there is.
fn follower_differs(follower: &Follower, logs: &BTreeMap<String, Log>) -> Result<Vec<String>> {
    let mut wrong = follower.wrong.clone();
    let known = follower.states();
    for (key, log) in logs.iter().filter(|(_, log)| **log != Log::default()) {
        if known.get(key) != Some(&with_lengths(serde_json::to_value(log)?)) {
            wrong.push(format!("the last state of {key} was not told"));
        }
    }
    Ok(wrong)
}

impl Shared {
    /// Follows the changes of all logs, at one node after the other, until all is over.
    async fn follow(&self) -> Follower {
        let (mut follower, mut random) = (Follower::new("log"), Random(self.seed ^ 0xF0));
        while !self.is_over.load(Ordering::SeqCst) {
            let url = &self.urls[random.below(3) as usize];
            let length = Duration::from_millis(random.below(3_000));
            // It is cut, or ends with its node; nobody answers where that is gone.
            let _cut = tokio::time::timeout(length, follower.follow(url, false)).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        follower
    }

    pub async fn wait_alive(&self) -> Result<()> {
        let client = Client::new(&self.urls[0])?;
        let why = Mutex::new(String::new());
        let answers = async || {
            let answer = client.entity::<Log>("e0").all().await;
            *lock(&why) = answer.as_ref().err().map(ToString::to_string).unwrap_or_default();
            Ok(answer.is_ok().then_some(()))
        };
        let answered = until("the cluster answers", answers).await;
        answered.with_context(|| lock(&why).clone())
    }

    /// Sends requests through any node until each is answered, until all is over.
    async fn client(&self, client: u64) {
        let mut random = Random(self.seed ^ (client + 1).wrapping_mul(0x1234_5678_9abc));
        let clients: Vec<_> =
            self.urls.iter().map(|url| Client::new(url).expect("a URL of this machine")).collect();
        let mut request = 0;
        while !self.is_over.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(random.below(30))).await;
            let key = format!("e{}", random.below(ENTITIES));
            let entry = client * 1_000_000 + request;
            request += 1;
            match random.below(11) {
                0..3 => self.send(&mut random, &clients, &key, entry, Kind::Append).await,
                3..6 => self.send(&mut random, &clients, &key, entry, Kind::Tell).await,
                6 => self.send(&mut random, &clients, &key, entry, Kind::Remind).await,
                7 => self.send(&mut random, &clients, &key, entry, Kind::Ask).await,
                8 => self.send(&mut random, &clients, &key, entry, Kind::Stumble).await,
                _ => self.read(&mut random, &clients, &key).await,
            }
        }
    }

    async fn send(
        &self,
        random: &mut Random,
        clients: &[Client],
        key: &str,
        entry: u64,
        kind: Kind,
    ) {
        lock(&self.history).sent.insert((key.to_owned(), entry), kind);
        let others: Vec<_> = (0..3).map(|_| format!("e{}", random.below(ENTITIES))).collect();
        if matches!(kind, Kind::Remind | Kind::Stumble) {
            lock(&self.history).delayed.insert(entry, others[0].clone());
        }
        if kind == Kind::Ask {
            lock(&self.history).asked.insert(entry, others.clone());
        }
        let id = format!("id-{entry}");
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(90) {
            let log = clients[random.below(3) as usize].entity::<Log>(key);
            let answered: Result<(), CallError> = match kind {
                Kind::Append => {
                    let append = log.append(entry).trace(trace());
                    append.idempotency_key(&id).deadline(TIMEOUT).await.map(drop)
                }
                Kind::Tell => {
                    let told = log.tell(entry, others.clone());
                    told.trace(trace()).idempotency_key(&id).deadline(TIMEOUT).await
                }
                Kind::Ask => {
                    let asked = log.ask(entry, others.clone());
                    asked.trace(trace()).idempotency_key(&id).deadline(TIMEOUT).await
                }
                Kind::Remind => {
                    let reminded = log.remind(entry, others[0].clone());
                    reminded.trace(trace()).idempotency_key(&id).deadline(TIMEOUT).await
                }
                Kind::Stumble => {
                    let stumbled = log.stumble(entry, others[0].clone());
                    stumbled.trace(trace()).idempotency_key(&id).deadline(TIMEOUT).await
                }
            };
            match answered {
                Ok(()) => {
                    lock(&self.history).acknowledged.insert((key.to_owned(), entry));
                    return;
                }
                Err(CallError::Failed(error)) if may_be_repeated(error.kind()) => {}
                Err(error) => return self.object(format!("{key} {entry}: {error:?}")),
            }
        }
        self.object(format!("{key} did not take {entry} within 90 s"));
    }

    async fn read(&self, random: &mut Random, clients: &[Client], key: &str) {
        let known: BTreeSet<u64> = {
            let history = lock(&self.history);
            let of_key =
                history.acknowledged.range((key.to_owned(), 0)..(key.to_owned(), u64::MAX));
            of_key.map(|(_, entry)| *entry).collect()
        };
        let log = clients[random.below(3) as usize].entity::<Log>(key);
        // Half of them beside the entity's order.
        let read = match random.below(2) {
            0 => log.all(),
            _ => log.all().committed(),
        };
        match tokio::time::timeout(TIMEOUT, read.into_future()).await {
            Ok(Ok(log)) => lock(&self.history).reads.push((key.to_owned(), log.entries, known)),
            Err(_) => {}
            Ok(Err(CallError::Failed(error))) if may_be_repeated(error.kind()) => {}
            Ok(Err(error)) => self.object(format!("{key}: {error:?}")),
        }
    }

    /// Something that must not happen has happened.
    fn object(&self, what: String) {
        lock(&self.history).wrong.push(what);
    }
}

fn may_be_repeated(kind: ErrorKind) -> bool {
    use ErrorKind::{Closed, Overloaded, Unavailable, Unknown};
    matches!(kind, Unavailable | Unknown | Closed | Overloaded)
}

/// The trace of every request, so that its origin goes wherever it goes.
fn trace() -> TraceContext {
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    TraceContext::new(parent, None).expect("valid")
}
