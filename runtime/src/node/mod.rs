//! One node: its parts put together, started, watched, drained.

mod audit;
mod build;
mod lists;
mod peers;
mod session;
mod threads;
mod view;
mod watchdog;

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use stead_entities::{
    EntityId, Error, ErrorKind, Reference, Timestamp, TypedReference, entity::EntityDescription,
};
use tokio::sync::{Semaphore, watch};

use crate::{
    admission::Load,
    clock::{self, Clock},
    commit::{self, Fatal},
    config::Config,
    entropy::Entropy,
    partition::{
        Handle, Watches,
        message::Input,
        reply::{ReplyReceiver, ReplySender},
    },
    placement::cluster::{Cluster, Stop},
    store::{CommitOutcome, Store, record::DeadLetterId},
    types::{EntityType, EntityTypes},
};

pub use build::{NodeBuilder, StartError};
pub(crate) use lists::PAGE_ROWS_MAX;
pub use lists::{BulkView, DeadLetterView, EntityView, Listed, ReminderView, UnservedView};
pub(crate) use session::Session;
pub(crate) use threads::Threads;
pub use view::{ClusterView, MemberView, MoveView, PartitionView, Placement};

/// How old the last probe may be for readiness to rest on it.
const PROBE_AGE: Duration = Duration::from_secs(1);
/// How long the last commit, and closing the store, may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);
/// What a stop says that was not in order.
const LATE: &str = "not everything ended within the drain deadline; what was accepted is kept";
/// How long readiness waits for the commits it asks for.
const PROBE_DEADLINE: Duration = Duration::from_secs(3);

/// One process that hosts entities. Cheap to clone; all clones are the same node.
///
/// A node is also what typed references are bound to.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

pub(crate) struct Inner {
    name: Arc<str>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    config: Arc<Config>,
    types: Arc<EntityTypes>,
    partitions: Arc<[Handle]>,
    watches: Arc<Watches>,
    threads: Threads,
    entropy: Mutex<Entropy>,
    /// None while a node among others is joining.
    session: Mutex<Option<Arc<Session>>>,
    cluster: Option<Arc<Cluster>>,
    load: Arc<Load>,
    /// How much due and left-behind work runs at one time.
    permits: Arc<Semaphore>,
    /// How many dead letters were dropped because there were too many.
    dropped: Arc<AtomicU64>,
    audit: audit::Audit,
    fatal: watch::Sender<Option<Fatal>>,
    blocked: Mutex<Option<String>>,
    probed_at: Mutex<Option<Timestamp>>,
    is_closing: AtomicBool,
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
        NodeBuilder::new()
    }

    /// A typed reference to an entity, bound to this node.
    pub fn entity<E: TypedReference>(&self, key: impl AsRef<str>) -> E::Reference<Self> {
        E::reference(Reference::new(E::NAME, key.as_ref()).bind(self.clone()))
    }

    /// The entity types of this node, by name.
    pub fn descriptions(&self) -> Vec<EntityDescription> {
        let mut all: Vec<_> = self.0.types.values().map(|known| known.description()).collect();
        all.sort_by_key(|description| description.name);
        all
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
        let is_leaving = self.cluster().is_some_and(|it| *it.stop.borrow() != Stop::No);
        if is_leaving || self.0.is_closing.load(Ordering::SeqCst) {
            return Err("the node is stopping".into());
        }
        if let Some(fatal) = &*self.0.fatal.borrow() {
            return Err(format!("the node cannot go on: {fatal:?}"));
        }
        let blocked = self.0.blocked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(name) = blocked {
            return Err(format!("an operation blocks its thread: {name}"));
        }
        let now = self.0.clock.now();
        let probed_at = *self.0.probed_at.lock().unwrap_or_else(PoisonError::into_inner);
        if probed_at.is_some_and(|at| at + PROBE_AGE > now) {
            return Ok(());
        }
        self.probe().await?;
        *self.0.probed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        Ok(())
    }

    /// Asks every partition of this node the same.
    fn ask_all(
        &self,
        question: fn(ReplySender) -> Input,
        timeout: Duration,
    ) -> Vec<(usize, ReplyReceiver)> {
        let ask = |(number, handle): (usize, &Handle)| {
            let (reply_to, answered) = ReplySender::new(timeout, None);
            handle.ask(&reply_to, question).is_ok().then_some((number, answered))
        };
        self.0.partitions.iter().enumerate().filter_map(ask).collect()
    }

    async fn probe(&self) -> Result<(), String> {
        let session = self.0.session().ok_or("the node is joining")?;
        if !session.incarnation.lease.holds() {
            return Err("the lease has run out".into());
        }
        let waiting = self.ask_all(Input::Probe, PROBE_DEADLINE);
        let mut stuck = Vec::new();
        for (number, answered) in waiting {
            if let Err(error) = answered.await {
                stuck.push(format!("{number} ({error})"));
            }
        }
        if stuck.is_empty() {
            return Ok(());
        }
        let first: Vec<_> = stuck.iter().take(3).map(String::as_str).collect();
        Err(format!("{} partitions do not commit, among them {}", stuck.len(), first.join(", ")))
    }

    /// Waits until the node cannot go on, and says why. Never ends for a healthy node.
    pub async fn failed(&self) -> Fatal {
        let mut fatal = self.0.fatal.subscribe();
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

    /// Stops cleanly: admits nothing more, finishes what was taken, commits it, closes the store. The
    /// directory can be opened again, also by this process, once every clone of the
    /// node and every reference to its entities is dropped.
    /// What was accepted and waits is in the store and goes on with the next start.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where the node could not finish within its drain deadline, or the
    /// store could not be closed cleanly.
    pub async fn drain(&self) -> Result<(), Error> {
        if let Some(cluster) = &self.0.cluster {
            return self.leave(cluster).await;
        }
        self.0.is_closing.store(true, Ordering::SeqCst);
        let waiting = self.ask_all(Input::Drain, self.0.config.drain_deadline);
        let mut is_clean = true;
        for (_, answered) in waiting {
            is_clean &= answered.await.is_ok();
        }
        self.close(is_clean).await
    }

    /// Stops at once, as if the process had been killed: nothing is finished or given up. For tests
    /// of what others do then.
    pub async fn abort(&self) {
        self.0.is_closing.store(true, Ordering::SeqCst);
        if let Some(cluster) = &self.0.cluster {
            cluster.stop.send_replace(Stop::Abort);
        }
        if let Some(session) = self.0.session() {
            session.incarnation.lease.end();
        }
        self.0.end_session(&Error::new(ErrorKind::Closed, "the node has stopped"));
        self.end().await;
    }

    /// Hands everything over, then stops.
    async fn leave(&self, cluster: &Cluster) -> Result<(), Error> {
        cluster.stop.send_replace(Stop::Leave);
        let timeout = self.0.config.drain_deadline + self.0.config.drain_deadline;
        let has_left = clock::within(timeout, cluster.left()).await.is_some();
        self.0.is_closing.store(true, Ordering::SeqCst);
        cluster.stop.send_replace(Stop::Abort);
        self.0.end_session(&Error::new(ErrorKind::Closed, "the node has stopped"));
        // Peers that have not seen yet who owns what are told to look.
        let _or_one_hangs = clock::within(CLOSE_DEADLINE, cluster.transport.close()).await;
        self.end().await;
        match has_left {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Unavailable, LATE)),
        }
    }

    async fn close(&self, is_clean: bool) -> Result<(), Error> {
        let mut outcome = None;
        if is_clean {
            let (tx, rx) = tokio::sync::oneshot::channel();
            if let Some(session) = self.0.session()
                && session.committer.send(commit::Message::Close(tx)).await.is_ok()
            {
                outcome = clock::within(CLOSE_DEADLINE, rx).await.and_then(Result::ok);
            }
        }
        self.end().await;
        if outcome == Some(CommitOutcome::Committed) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unavailable, LATE))
    }

    /// Stops the partitions, and closes the store.
    async fn end(&self) {
        for handle in self.0.partitions.iter() {
            handle.stop();
            handle.expire(None);
        }
        let stopped = async {
            for handle in self.0.partitions.iter() {
                handle.stopped().await;
            }
        };
        let _or_one_blocks = clock::within(CLOSE_DEADLINE, stopped).await;
        // A flush that does not return must not keep the process from ending.
        let _or_out_of_time = clock::within(CLOSE_DEADLINE, self.0.store.close()).await;
    }

    pub(crate) fn known_type(&self, name: &str) -> Result<&dyn EntityType, Error> {
        self.0.types.get(name).map(|known| &**known).ok_or_else(|| {
            let mut names: Vec<_> = self.0.types.keys().copied().collect();
            names.sort_unstable();
            let names = names.join(", ");
            if self.serves(name) {
                let message = format!("{name} is served by other nodes, but not by its owner");
                return Error::new(ErrorKind::Unavailable, message);
            }
            let message = format!("there is no entity type {name:?}; there are: {names}");
            Error::new(ErrorKind::NotFound, message)
        })
    }

    /// Refuses an entity type that no node serves.
    pub(crate) fn check_served(&self, name: &str) -> Result<(), Error> {
        if self.serves(name) { Ok(()) } else { self.known_type(name).map(drop) }
    }

    /// Whether this node, or another one, serves an entity type.
    pub(crate) fn serves(&self, name: &str) -> bool {
        let others = self.0.cluster.as_ref();
        self.0.types.contains_key(name) || others.is_some_and(|others| others.serves(name))
    }

    pub(crate) fn partition(&self, number: u16) -> Result<&Handle, Error> {
        if self.0.is_closing.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Closed, "the node is stopping"));
        }
        let found = self.0.partitions.get(usize::from(number));
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no partition {number}")))
    }

    pub(crate) fn partition_of(&self, id: &EntityId) -> u16 {
        self.0.store.opened().settings.partition_of(id)
    }
    /// Whether this node owns a partition and takes more in for it.
    pub(crate) fn is_open(&self, partition: u16) -> bool {
        self.0.partitions.get(usize::from(partition)).is_some_and(Handle::is_open)
    }
    pub(crate) fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.0.cluster.as_ref()
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
}

impl Inner {
    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// How long a node that stops waits for what runs.
    pub(crate) fn drain_deadline(&self) -> Duration {
        self.config.drain_deadline
    }

    pub(crate) fn types(&self) -> &EntityTypes {
        &self.types
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Nobody watches deadlines any more.
        for handle in self.partitions.iter() {
            handle.expire(None);
        }
    }
}

/// Names a dead letter in paths.
impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = if self.is_rejection { 'r' } else { 'f' };
        write!(f, "{}-{class}-{}", self.partition, self.number)
    }
}

impl FromStr for DeadLetterId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<_> = text.split('-').collect();
        let parsed = match parts[..] {
            [partition, class @ ("f" | "r"), number] => partition
                .parse()
                .ok()
                .zip(number.parse().ok())
                .map(|(partition, number)| Self { partition, is_rejection: class == "r", number }),
            _ => None,
        };
        parsed.ok_or_else(|| {
            Error::new(ErrorKind::Invalid, format!("{text:?} is not the id of a dead letter"))
        })
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let types: Vec<_> = self.0.types.keys().collect();
        f.debug_struct("Node").field("types", &types).finish_non_exhaustive()
    }
}
