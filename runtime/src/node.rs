//! One node: its parts put together, started, watched, drained.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool, atomic::Ordering},
    time::Duration,
};

use stead_entities::{
    Entity, EntityId, Error, ErrorKind, Reference, Timestamp, TypedReference,
    entity::EntityDescription,
};
use tokio::sync::watch;

use crate::{
    client::Load,
    clock::{self, Clock, HighWaterClock},
    commit::{self, Committer, Fatal, Work},
    config::Config,
    entropy::Entropy,
    layout,
    partition::{
        self, Handle, Partition, Shell, Surroundings, Watch, message::Input, ticket::Ticket,
    },
    store::{CommitOutcome, ReminderRows, Store, record::DeadLetterId},
    types::{EntityType, EntityTypes, entity_type},
};

/// How often the watchdog looks.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);
/// How old the last commit of a partition may be for the node to be ready.
const READY_AGE: Duration = Duration::from_secs(5);
/// How long readiness waits for the commits it asks for.
const PROBE_DEADLINE: Duration = Duration::from_secs(3);

/// One process that hosts entities. Cheap to clone; all clones are the same node.
///
/// A node is also what typed references are bound to.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    config: Arc<Config>,
    types: Arc<EntityTypes>,
    partitions: Arc<[Handle]>,
    watches: Vec<Arc<Watch>>,
    committer: commit::Sender,
    load: Arc<Load>,
    entropy: Mutex<Entropy>,
    fatal: watch::Receiver<Option<Fatal>>,
    spinning: Mutex<Option<String>>,
    probed_at: Mutex<Option<Timestamp>>,
    is_closing: AtomicBool,
}

/// Puts a node together.
pub struct NodeBuilder {
    store: Option<Arc<dyn Store>>,
    clock: Arc<dyn Clock>,
    config: Config,
    name: String,
    entities: Vec<Arc<dyn EntityType>>,
}

/// Why a node does not start. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Settings or entity types cannot be used; every problem is named.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
    /// A layout changed without a new version, or a version is not known.
    #[error("{}", .0.join("\n"))]
    Layout(Vec<String>),
    /// The store cannot be read or written.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
}

impl Node {
    /// Begins to put a node together.
    ///
    /// ```
    /// # use stead::{Node, stock::Counter, store::memory::MemoryDisk};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryDisk::new().open()?;
    /// let node = Node::builder().store(store).entity::<Counter>().start().await?;
    /// let visits = node.entity::<Counter>("visits");
    /// assert_eq!(visits.add(5).await?, 5);
    /// # Ok(()) }
    /// ```
    pub fn builder() -> NodeBuilder {
        NodeBuilder {
            store: None,
            clock: Arc::new(HighWaterClock::new()),
            config: Config::default(),
            name: "node".into(),
            entities: Vec::new(),
        }
    }

    /// A typed reference to an entity, bound to this node.
    pub fn entity<E: TypedReference>(&self, key: impl AsRef<str>) -> E::Reference<Self> {
        E::reference(Reference::new(E::NAME, key.as_ref()).bind(self.clone()))
    }

    /// The entity types of this node, by name.
    pub fn descriptions(&self) -> Vec<EntityDescription> {
        let mut all: Vec<_> = self
            .0
            .types
            .values()
            .map(|known| known.description())
            .collect();
        all.sort_by_key(|description| description.name);
        all
    }

    /// The committed reminders and delayed signals of an entity.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an unknown type, [`ErrorKind::Unavailable`] where the store
    /// cannot be read.
    pub async fn reminders(&self, id: &EntityId) -> Result<ReminderRows, Error> {
        self.entity_type(id)?;
        let partition = self.0.store.opened().settings.partition_of(id);
        let rows = self.0.store.reminders(partition, id.clone()).await;
        rows.map_err(|error| Error::new(ErrorKind::Unavailable, error.to_string()))
    }

    /// Whether every partition has committed within the last five seconds; partitions that have not
    /// are asked to.
    ///
    /// # Errors
    /// What is in the way, in words.
    pub async fn ready(&self) -> Result<(), String> {
        if crate::sabotage::is("X21") {
            return Ok(());
        }
        if self.0.is_closing.load(Ordering::SeqCst) {
            return Err("the node is stopping".into());
        }
        if let Some(fatal) = &*self.0.fatal.borrow() {
            return Err(format!("the node cannot go on: {fatal:?}"));
        }
        let spinning = self
            .0
            .spinning
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(name) = spinning {
            return Err(format!("an operation spins: {name}"));
        }
        let now = self.0.clock.now();
        let probed_at = *self
            .0
            .probed_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Commits of a second ago are young enough not to ask again.
        if probed_at.is_some_and(|at| at + READY_AGE / 5 > now) {
            return Ok(());
        }
        self.probe().await?;
        *self
            .0
            .probed_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(now);
        Ok(())
    }

    async fn probe(&self) -> Result<(), String> {
        let waiting: Vec<_> = self
            .0
            .partitions
            .iter()
            .map(|handle| {
                let (ticket, answered) = Ticket::new(None);
                handle.push(Input::Probe(ticket.clone()));
                (ticket, answered)
            })
            .collect();
        let mut stuck = Vec::new();
        let deadline = clock::monotonic() + PROBE_DEADLINE;
        for (number, (ticket, answered)) in waiting.into_iter().enumerate() {
            let left = deadline.saturating_duration_since(clock::monotonic());
            if let Err(error) = self.wait(ticket, answered, left).await {
                stuck.push(format!("{number} ({error})"));
            }
        }
        if stuck.is_empty() {
            return Ok(());
        }
        let first: Vec<_> = stuck.iter().take(3).map(String::as_str).collect();
        Err(format!(
            "{} partitions do not commit, among them {}",
            stuck.len(),
            first.join(", ")
        ))
    }

    /// Waits until the node cannot go on, and says why. Never ends for a healthy node.
    pub async fn failed(&self) -> Fatal {
        let mut fatal = self.0.fatal.clone();
        loop {
            let known = fatal.borrow_and_update().clone();
            if let Some(fatal) = known {
                return fatal;
            }
            if fatal.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Stops cleanly: admits nothing more, finishes what was taken, commits it, closes the store.
    /// What was accepted and waits is in the store and goes on with the next start.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where the node could not finish within its drain deadline, or the
    /// store could not be closed cleanly.
    pub async fn drain(&self) -> Result<(), Error> {
        self.0.is_closing.store(true, Ordering::SeqCst);
        let deadline = clock::monotonic() + self.0.config.drain_deadline;
        let waiting: Vec<_> = self
            .0
            .partitions
            .iter()
            .map(|handle| {
                let (ticket, answered) = Ticket::new(None);
                handle.push(Input::Drain(ticket.clone()));
                (ticket, answered)
            })
            .collect();
        let mut is_clean = true;
        for (ticket, answered) in waiting {
            let left = deadline.saturating_duration_since(clock::monotonic());
            is_clean &= self.wait(ticket, answered, left).await.is_ok();
        }
        self.close(is_clean).await
    }

    async fn close(&self, is_clean: bool) -> Result<(), Error> {
        let mut outcome = None;
        if is_clean {
            let (tx, rx) = tokio::sync::oneshot::channel();
            if self.0.committer.send(Work::Close(tx)).await.is_ok() {
                outcome = clock::within(Duration::from_secs(2), rx)
                    .await
                    .and_then(Result::ok);
            }
        }
        for handle in self.0.partitions.iter() {
            handle.stop();
        }
        self.0.store.close().await;
        if outcome == Some(CommitOutcome::Committed) {
            return Ok(());
        }
        let message = "not everything ended within the drain deadline; what was accepted is kept";
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    pub(crate) fn entity_type(&self, id: &EntityId) -> Result<Arc<dyn EntityType>, Error> {
        self.0.types.get(id.entity_type()).cloned().ok_or_else(|| {
            let mut names: Vec<_> = self.0.types.keys().copied().collect();
            names.sort_unstable();
            let (wanted, names) = (id.entity_type(), names.join(", "));
            let message = format!("there is no entity type {wanted}; there are: {names}");
            Error::new(ErrorKind::NotFound, message)
        })
    }

    pub(crate) fn partition(&self, number: u16) -> Result<&Handle, Error> {
        if self.0.is_closing.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Closed, "the node is stopping"));
        }
        let found = self.0.partitions.get(usize::from(number));
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no partition {number}")))
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.0.store
    }
    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.0.clock
    }
    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }
    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.0.load
    }
    pub(crate) fn mint_token(&self) -> u128 {
        self.0
            .entropy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next_wide()
    }
}

impl NodeBuilder {
    /// Where the node keeps its data.
    pub fn store(self, store: impl Store) -> Self {
        self.shared_store(Arc::new(store))
    }

    /// Where the node keeps its data, shared with somebody who watches the store.
    pub fn shared_store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// Hosts an entity type.
    pub fn entity<E: Entity>(mut self) -> Self {
        self.entities.push(entity_type::<E>());
        self
    }

    /// Replaces the settings.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Names the node; the name is stored as the owner of its batches.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Replaces the clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Checks everything, then starts the node. Runs on the present tokio runtime.
    ///
    /// # Errors
    /// [`StartError`]; nothing is changed where it is `Invalid` or `Layout`.
    pub async fn start(self) -> Result<Node, StartError> {
        let mut problems = self.config.problems();
        let mut types = EntityTypes::new();
        for known in &self.entities {
            problems.extend(problems_of(&**known, &types));
            types.insert(known.description().name, known.clone());
        }
        let Some(store) = self.store.filter(|_| problems.is_empty()) else {
            problems.extend(
                problems
                    .is_empty()
                    .then(|| "a node needs a store".to_owned()),
            );
            return Err(StartError::Invalid(problems));
        };
        let opened = store.opened().clone();
        self.clock.advance_to(opened.time);
        let owner: Arc<str> = self.name.into();
        let batches = layout::guard(&*store, &types, &owner, self.clock.now()).await?;
        let partitions: Arc<[Handle]> = (0..opened.settings.partitions)
            .map(|_| Handle::new())
            .collect();
        let (fatal_tx, fatal) = watch::channel(None);
        let (committer, queue) = commit::queue();
        let service = Committer::new(
            store.clone(),
            self.clock.clone(),
            owner,
            partitions.clone(),
            fatal_tx.clone(),
        );
        spawn(service.after(batches).run(queue));
        let node = Node(Arc::new(Inner {
            watches: partitions.iter().map(|_| Arc::default()).collect(),
            store,
            clock: self.clock,
            config: Arc::new(self.config),
            types: Arc::new(types),
            partitions,
            committer,
            load: Arc::default(),
            entropy: Mutex::new(Entropy::system()),
            fatal,
            spinning: Mutex::new(None),
            probed_at: Mutex::new(None),
            is_closing: AtomicBool::new(false),
        }));
        node.start_partitions()
            .await
            .map_err(|e| StartError::Unavailable(e.to_string()))?;
        node.start_watchdog(fatal_tx)
            .map_err(|e| StartError::Unavailable(e.to_string()))?;
        Ok(node)
    }
}

impl Node {
    async fn start_partitions(&self) -> Result<(), Error> {
        let inner = &self.0;
        let opened = inner.store.opened();
        for (number, handle) in (0_u16..).zip(inner.partitions.iter()) {
            let around = Surroundings {
                number,
                incarnation: opened.incarnation,
                was_unclean: opened.was_unclean,
                settings: opened.settings.clone(),
                types: inner.types.clone(),
                config: inner.config.clone(),
                entropy: Entropy::system(),
                watch: inner.watches[usize::from(number)].clone(),
            };
            let shell = Shell {
                handle: handle.clone(),
                partition: Partition::new(around, inner.clock.now()),
                store: inner.store.clone(),
                clock: inner.clock.clone(),
                committer: inner.committer.clone(),
                types: inner.types.clone(),
                config: inner.config.clone(),
                wake_at: None,
            };
            partition::start(shell).await?;
        }
        Ok(())
    }

    /// The watchdog has a thread of its own, so that an operation that spins cannot stop it.
    #[allow(clippy::disallowed_methods, reason = "the home of the watchdog")]
    fn start_watchdog(&self, fatal: watch::Sender<Option<Fatal>>) -> std::io::Result<()> {
        let inner = Arc::downgrade(&self.0);
        let builder = std::thread::Builder::new().name("stead-watchdog".into());
        let watch = move || {
            while let Some(inner) = inner.upgrade() {
                inner.watch(&fatal);
                drop(inner);
                std::thread::sleep(WATCH_INTERVAL);
            }
        };
        builder.spawn(watch).map(drop)
    }
}

impl Inner {
    fn watch(&self, fatal: &watch::Sender<Option<Fatal>>) {
        let retention = i64::try_from(self.config.retention.as_micros()).unwrap_or(i64::MAX);
        let forgotten = self.clock.now().as_micros().saturating_sub(retention);
        self.store.forget_before(Timestamp::from_micros(forgotten));
        let mut spinning = None;
        for watch in &self.watches {
            let Some((name, length)) = watch.check(self.config.turn_deadline) else {
                continue;
            };
            if length >= self.config.spin_limit {
                fatal.send_if_modified(|known| {
                    let is_first = known.is_none();
                    known.get_or_insert(Fatal::Spinning(name.clone()));
                    is_first
                });
            }
            spinning = Some(name);
        }
        *self.spinning.lock().unwrap_or_else(PoisonError::into_inner) = spinning;
    }
}

fn problems_of(known: &dyn EntityType, others: &EntityTypes) -> Vec<String> {
    let mut problems = Vec::new();
    let name = known.description().name;
    if let Err(error) = stead_entities::id::check_type(name) {
        problems.push(format!("{name:?}: {error}"));
    }
    if others.contains_key(name) {
        problems.push(format!("two entity types are named {name}"));
    }
    problems
}

#[allow(clippy::disallowed_methods, reason = "the home of a node's tasks")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(task));
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let types: Vec<_> = self.0.types.keys().collect();
        f.debug_struct("Node")
            .field("types", &types)
            .finish_non_exhaustive()
    }
}
impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeBuilder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Names a dead letter in paths.
impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = if self.is_rejection { 'r' } else { 'f' };
        write!(f, "{}-{class}-{}", self.partition, self.number)
    }
}
