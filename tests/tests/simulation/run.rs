//! One run: nodes, clients, and what goes wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use stead::{
    CallError, Change, Config, ErrorKind, Node, TypeChange, TypedReference,
    stock::Counter,
    store::memory::{MemoryDisk, MemoryStore, Reach},
    transport::{Faults, Network},
};

use stead_tests::{
    history::{History, Kind, compare},
    log::{Ember, Log},
    random::Random,
    workflows::{Workflows, interpreter},
};
use tempfile::NamedTempFile;

/// How much happens in a run.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub nodes: usize,
    pub clients: usize,
    /// Clients that run workflows.
    pub workflows: usize,
    pub requests: usize,
    pub entities: u64,
    pub faults: usize,
    /// Nodes leave in order, and nothing else happens: no caller may notice.
    pub only_leaves: bool,
    /// The longest pause of a client between two requests, in milliseconds.
    pub pause: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            nodes: 3,
            clients: 6,
            workflows: 0,
            requests: 60,
            entities: 10,
            faults: 25,
            only_leaves: false,
            pause: 900,
        }
    }
}

const LEASE: Duration = Duration::from_secs(1);

/// A node that runs, and its way to the store.
pub struct Place {
    pub node: Node,
    store: MemoryStore,
}

pub struct Run {
    pub seed: u64,
    pub settings: Settings,
    pub workflows: Workflows,
    /// Where the steps of workflows write.
    outside: NamedTempFile,
    disk: MemoryDisk,
    network: Network,
    places: Mutex<Vec<Option<Arc<Place>>>>,
    history: Mutex<History>,
    trace: Mutex<Vec<String>>,
    started: Mutex<Option<tokio::time::Instant>>,
    /// What a stream of changes has shown last: the revision and the state.
    seen: Mutex<Option<(u64, Log)>>,
    /// What who follows all logs knows of them.
    followed: Mutex<BTreeMap<String, (u64, Log)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run {
    pub fn new(seed: u64, settings: Settings) -> Arc<Self> {
        let outside = NamedTempFile::new().expect("a file");
        Arc::new(Self {
            seed,
            settings,
            workflows: Workflows::new(outside.path().into(), Duration::from_secs(10)),
            outside,
            disk: MemoryDisk::new(),
            network: Network::new(seed, Faults::default()),
            places: Mutex::new((0..settings.nodes).map(|_| None).collect()),
            history: Mutex::default(),
            trace: Mutex::default(),
            started: Mutex::new(None),
            seen: Mutex::default(),
            followed: Mutex::default(),
        })
    }

    /// Runs it all, and returns what happened.
    pub fn finish(self: Arc<Self>) -> Vec<String> {
        let builder = &mut tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().start_paused(true).build().expect("a runtime");
        let wrong = runtime.block_on(self.clone().all());
        let trace = std::mem::take(&mut *lock(&self.trace));
        if !wrong.is_empty() {
            let shown = trace.iter().rev().take(90).rev();
            shown.for_each(|line| eprintln!("{line}"));
            panic!("seed {}: {wrong:#?}", self.seed);
        }
        trace
    }

    pub fn note(&self, what: String) {
        let began = lock(&self.started).expect("it has started");
        let at = began.elapsed().as_millis();
        lock(&self.trace).push(format!("{at:>6} {what}"));
    }

    async fn all(self: Arc<Self>) -> Vec<String> {
        *lock(&self.started) = Some(tokio::time::Instant::now());
        for number in 0..self.settings.nodes {
            self.start(number).await;
        }
        let clients = (0..self.settings.clients).map(|client| {
            let run = self.clone();
            tokio::spawn(async move { run.client(client as u64).await })
        });
        let workflows = (0..self.settings.workflows)
            .map(|client| tokio::spawn(self.clone().run_workflows(client as u64)));
        let clients: Vec<_> = clients.chain(workflows).collect();
        let run = self.clone();
        let watcher = tokio::spawn(async move { run.watch("e0").await });
        let run = self.clone();
        let follower = tokio::spawn(async move { run.follow().await });
        self.go_wrong().await;
        for client in clients {
            client.await.expect("a client ends");
        }
        let wrong = self.settled().await;
        watcher.abort();
        follower.abort();
        wrong
    }

    async fn start(&self, number: usize) {
        let name = format!("n{number}");
        let seed = self.seed.wrapping_mul(31).wrapping_add(number as u64);
        let slow = || self.disk.share_slowly(seed, Duration::from_millis(8));
        let config = Config::with(|config| {
            config.lease = LEASE;
            config.idle = Duration::from_millis(50);
            config.call_deadline = Duration::from_secs(3);
        });
        loop {
            let store = slow();
            let started = Node::builder()
                .share(store.clone(), self.network.at(&name), &name)
                .name(&name)
                .config(config.clone())
                .deterministic(seed)
                .entity::<Log>()
                .entity::<Ember>()
                .entity::<Counter>()
                .workflow(interpreter(self.outside.path()).expect("a file"))
                .start()
                .await;
            match started {
                Ok(node) => {
                    self.note(format!("{name} has started"));
                    lock(&self.places)[number] = Some(Arc::new(Place { node, store }));
                    return;
                }
                Err(error) => self.note(format!("{name} does not start: {error}")),
            }
        }
    }

    pub fn place(&self, number: usize) -> Option<Arc<Place>> {
        lock(&self.places)[number].clone()
    }

    /// Breaks something, again and again; in the end everything is whole again.
    async fn go_wrong(&self) {
        let mut random = Random(self.seed);
        let nodes = self.settings.nodes;
        for _ in 0..self.settings.faults {
            tokio::time::sleep(Duration::from_millis(100 + random.below(1_500))).await;
            let number = random.below(nodes as u64) as usize;
            let Some(place) = self.place(number) else { continue };
            let pause = LEASE * (1 + random.below(5) as u32) / 2;
            match if self.settings.only_leaves { 2 } else { random.below(9) } {
                0 | 1 => {
                    self.note(format!("n{number} dies"));
                    lock(&self.places)[number] = None;
                    self.network.forget(&format!("n{number}"));
                    place.node.abort().await;
                    drop(place);
                    tokio::time::sleep(pause).await;
                    self.start(number).await;
                }
                2 => {
                    self.note(format!("n{number} leaves"));
                    // Nobody begins anything there any more.
                    lock(&self.places)[number] = None;
                    let left = place.node.drain().await;
                    self.note(format!("n{number} has left: {left:?}"));
                    drop(place);
                    self.start(number).await;
                }
                3 => {
                    self.note(format!("n{number} does not reach the store"));
                    place.store.set_reach(Reach::RequestsLost);
                    tokio::time::sleep(pause).await;
                    place.store.set_reach(Reach::Open);
                }
                4 => {
                    self.note(format!("the store's answers do not reach n{number}"));
                    place.store.set_reach(Reach::ResponsesLost);
                    tokio::time::sleep(pause).await;
                    place.store.set_reach(Reach::Open);
                }
                5 => {
                    let other = random.below(nodes as u64);
                    self.note(format!("n{number} does not reach n{other}"));
                    self.network.cut(&format!("n{number}"), &format!("n{other}"));
                    tokio::time::sleep(pause).await;
                    self.network.heal();
                }
                6 => {
                    self.note(format!("the lease of n{number} is stolen"));
                    self.disk.steal_lease(&format!("n{number}"));
                }
                7 => {
                    self.note(format!("every other read of n{number} fails"));
                    place.store.set_reach(Reach::ReadsLost);
                    tokio::time::sleep(pause).await;
                    place.store.set_reach(Reach::Open);
                }
                _ => {
                    self.note("the network loses and doubles".into());
                    let delay = Duration::from_millis(40);
                    self.network.set_faults(Faults { delay, loss: 0.1, doubling: 0.2 });
                    tokio::time::sleep(pause).await;
                    self.network.set_faults(Faults::default());
                }
            }
        }
        self.note("everything is whole".into());
    }

    /// Sends requests through any node until each is answered.
    async fn client(&self, client: u64) {
        let mut random = Random(self.seed ^ (client + 1).wrapping_mul(0x1234_5678_9abc));
        for request in 0..self.settings.requests as u64 {
            tokio::time::sleep(Duration::from_millis(random.below(self.settings.pause))).await;
            let key = format!("e{}", random.below(self.settings.entities));
            let entry = client * 1_000_000 + request;
            match random.below(11) {
                0..3 => self.send(&mut random, &key, entry, Kind::Append).await,
                3..6 => self.send(&mut random, &key, entry, Kind::Tell).await,
                6 => self.send(&mut random, &key, entry, Kind::Remind).await,
                7 => self.send(&mut random, &key, entry, Kind::Ask).await,
                8 => self.send(&mut random, &key, entry, Kind::Stumble).await,
                9 => self.find(&mut random, &key).await,
                _ => self.read(&mut random, &key).await,
            }
        }
    }

    fn any(
        &self,
        random: &mut Random,
        key: &str,
    ) -> Option<<Log as TypedReference>::Reference<Node>> {
        let number = random.below(self.settings.nodes as u64) as usize;
        Some(self.place(number)?.node.entity::<Log>(key))
    }

    async fn send(&self, random: &mut Random, key: &str, entry: u64, kind: Kind) {
        lock(&self.history).sent.insert((key.to_owned(), entry), kind);
        let other = |random: &mut Random| format!("e{}", random.below(self.settings.entities));
        let others: Vec<_> = (0..3).map(|_| other(random)).collect();
        if matches!(kind, Kind::Remind | Kind::Stumble) {
            lock(&self.history).delayed.insert(entry, others[0].clone());
        }
        if kind == Kind::Ask {
            lock(&self.history).asked.insert(entry, others.clone());
        }
        let id = format!("id-{entry}");
        for attempt in 0..2_000 {
            let Some(log) = self.any(random, key) else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let answered: Result<(), CallError> = match kind {
                Kind::Append => log.append(entry).idempotency_key(&id).await.map(drop),
                Kind::Tell => log.tell(entry, others.clone()).idempotency_key(&id).await,
                Kind::Ask => log.ask(entry, others.clone()).idempotency_key(&id).await,
                Kind::Remind => log.remind(entry, others[0].clone()).idempotency_key(&id).await,
                Kind::Stumble => log.stumble(entry, others[0].clone()).idempotency_key(&id).await,
            };
            match answered {
                Ok(()) => {
                    self.note(format!("{key} took {entry} at try {attempt}"));
                    lock(&self.history).acknowledged.insert((key.to_owned(), entry));
                    return;
                }
                Err(CallError::Failed(error)) if self.may_be_repeated(error.kind()) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => return self.object(format!("{key} {entry}: {error:?}")),
            }
        }
        self.object(format!("{key} never took {entry}"));
    }

    fn may_be_repeated(&self, kind: ErrorKind) -> bool {
        let is_passing =
            matches!(kind, ErrorKind::Unavailable | ErrorKind::Unknown | ErrorKind::Closed);
        is_passing && !self.settings.only_leaves
    }

    /// Something that must not happen has happened.
    fn object(&self, what: String) {
        self.note(what.clone());
        lock(&self.history).wrong.push(what);
    }

    async fn read(&self, random: &mut Random, key: &str) {
        let known: BTreeSet<u64> = {
            let history = lock(&self.history);
            let of_key = history.acknowledged.iter().filter(|(of, _)| of == key);
            of_key.map(|(_, entry)| *entry).collect()
        };
        let Some(log) = self.any(random, key) else { return };
        // Half of them beside the entity's order.
        let read = match random.below(2) {
            0 => log.all().await,
            _ => log.all().committed().await,
        };
        match read {
            Ok(log) => lock(&self.history).reads.push((key.to_owned(), log.entries, known)),
            Err(CallError::Failed(error)) if self.may_be_repeated(error.kind()) => {}
            Err(error) => self.object(format!("{key}: {error:?}")),
        }
    }

    /// Finds entities while everything goes on: each is what its index says, and none is missing that was
    /// acknowledged before.
    async fn find(&self, random: &mut Random, key: &str) {
        let is_known = lock(&self.history).acknowledged.iter().any(|(of, _)| of == key);
        let number = random.below(self.settings.nodes as u64) as usize;
        let Some(place) = self.place(number) else { return };
        let size = random.below(6);
        let search = place.node.find::<Log>().filter(Log::by_size().within(size..));
        match search.order_by(Log::by_size()).states().await {
            Ok(found) => {
                let sizes = found.rows.iter().map(|(_, it)| it.state.entries.len() as u64);
                let sizes: Vec<_> = sizes.collect();
                if !sizes.is_sorted() || sizes.first().is_some_and(|first| *first < size) {
                    self.object(format!("entities of size {size} and more have {sizes:?}"));
                }
                if is_known && size == 0 && !found.rows.iter().any(|(of, _)| of == key) {
                    self.object(format!("{key} is not found"));
                }
            }
            // It says so while it is being built, which goes on as partitions move.
            Err(error) if error.kind() == ErrorKind::Unavailable => {}
            Err(error) if self.may_be_repeated(error.kind()) => {}
            Err(error) => self.object(format!("entities cannot be found: {error}")),
        }
    }

    /// Hears the changes of an entity at one node after the other, and keeps what it has seen last.
    async fn watch(&self, key: &str) {
        let mut random = Random(self.seed ^ 0x5EE);
        let mut after = None::<String>;
        loop {
            let number = random.below(self.settings.nodes as u64) as usize;
            let Some(place) = self.place(number) else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let changes = place.node.changes::<Log>(key, after.as_deref());
            drop(place);
            let Ok(mut changes) = changes else { continue };
            let length = Duration::from_millis(random.below(3_000));
            let _cut = tokio::time::timeout(length, async {
                while let Some(event) = changes.next().await {
                    let Ok(event) = event else { return self.object(format!("{key}: {event:?}")) };
                    match event.change {
                        Change::State(it) => self.see(it.version.revision, it.state),
                        other => self.object(format!("{key}: {other:?}")),
                    }
                    after = event.position;
                }
            })
            .await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Follows the changes of all logs at one node after the other, and keeps what it knows.
    async fn follow(&self) {
        let (mut random, mut after) = (Random(self.seed ^ 0xF0110), None::<String>);
        loop {
            tokio::time::sleep(Duration::from_millis(1 + random.below(50))).await;
            let number = random.below(self.settings.nodes as u64) as usize;
            let Some(search) = self.place(number).map(|place| place.node.find::<Log>()) else {
                continue;
            };
            let length = Duration::from_millis(random.below(3_000));
            let _cut = tokio::time::timeout(length, async {
                let Ok(mut changes) = search.changes(after.as_deref()).await else { return };
                while let Some(event) = changes.next().await {
                    let Ok(event) = event else { return self.object(format!("{event:?}")) };
                    match event.change {
                        TypeChange::State { key, state } => {
                            let (was, is) = ((0, Log::default()), state.version.revision);
                            let mut followed = lock(&self.followed);
                            let before = followed.insert(key.clone(), (is, state.state));
                            if before.unwrap_or(was).0 > is {
                                self.object(format!("{key} goes back to {is}"));
                            }
                        }
                        TypeChange::CaughtUp => {}
                        other => self.object(format!("logs: {other:?}")),
                    }
                    after = event.position;
                }
            })
            .await;
        }
    }

    /// Takes in a state that a stream has shown: it goes on with the one before.
    fn see(&self, revision: u64, state: Log) {
        let entries = state.entries.clone();
        let before = lock(&self.seen).replace((revision, state));
        if let Some((was, before)) = before
            && (revision <= was || !entries.starts_with(&before.entries))
        {
            self.object(format!("a stream goes from {was} to {revision}"));
        }
    }

    /// Waits, at most 30 s, until everything that was accepted is applied, and says what is wrong.
    async fn settled(&self) -> Vec<String> {
        let mut wrong = self.workflows_ended().await;
        for _ in 0..if wrong.is_empty() { 60 } else { 0 } {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let mut logs = BTreeMap::new();
            wrong.clear();
            for number in 0..self.settings.entities {
                let key = format!("e{number}");
                let place = self.place(0).expect("it runs");
                match place.node.entity::<Log>(&key).all().await {
                    Ok(log) => drop(logs.insert(key, log)),
                    Err(error) => wrong.push(format!("{key} cannot be read: {error}")),
                }
            }
            if wrong.is_empty() {
                wrong = compare(&lock(&self.history), &logs);
                let seen = lock(&self.seen).clone().map(|(_, state)| state).unwrap_or_default();
                if logs.get("e0").is_some_and(|last| *last != seen) {
                    wrong.push("the last state of e0 was not shown".into());
                }
                let followed = lock(&self.followed);
                let is_known = |(key, log): &(&String, &Log)| {
                    followed.get(*key).is_some_and(|(_, known)| known == *log)
                };
                let changed = logs.iter().filter(|(_, log)| **log != Log::default());
                let unknown: Vec<_> = changed.filter(|of| !is_known(of)).map(|of| of.0).collect();
                if !unknown.is_empty() {
                    wrong.push(format!("the last states of {unknown:?} were not told"));
                }
            }
            let place = self.place(0).expect("it runs");
            match place.node.list_of("ember", "", None, 10).await {
                Ok(left) if left.rows.is_empty() => {}
                left => wrong.push(format!("embers are left: {left:?}")),
            }
            match place.node.check_indexes().await {
                Ok(differences) => wrong.extend(differences),
                Err(error) => wrong.push(format!("indexes cannot be checked: {error}")),
            }
            if let Err(error) =
                place.node.find::<Log>().filter(Log::by_size().is(0_u64)).count().await
            {
                wrong.push(format!("an index is not complete at last: {error}"));
            }
            if wrong.is_empty() {
                break;
            }
        }
        for number in 0..self.settings.nodes {
            let place = lock(&self.places)[number].take();
            if let Some(place) = place {
                place.node.abort().await;
            }
        }
        wrong
    }
}
