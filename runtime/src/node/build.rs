//! How a node is put together, checked and started.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use stead_entities::{
    Dependencies, Entity,
    entity::OperationKind,
    index::INDEXES_MAX,
    workflow::{Instance, WorkflowDescription, WorkflowType},
};
use tokio::{
    runtime::Handle as Runtime,
    sync::{oneshot, watch},
};

use super::{Inner, Node, audit::Audit, local::Local, peers::Peer, router::Router};
use crate::{
    clock::{Clock, HighWaterClock, SharedClock},
    config::Config,
    entropy::Entropy,
    guard,
    host::{Host, Parts, layouts, versions},
    memory,
    placement::{
        cluster::Cluster,
        member::{self, JoinError},
        ring::WEIGHT_MAX,
    },
    store::{
        Store,
        shared::{Registration, SharedStore},
    },
    threads::Threads,
    transport::Transport,
    types::{EntityType, EntityTypes, entity_type},
};

/// The longest name of a node, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Puts a node together.
///
/// ```
/// # use std::time::Duration;
/// # use stead::{Config, Node, stock::{Approval, Counter}, store::memory::MemoryDisk};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let node = Node::builder()
///     // `RocksStore::open_async` for data that stays.
///     .store(MemoryDisk::new().open()?)
///     .config(Config::with(|config| config.call_deadline = Duration::from_secs(5)))
///     .name("orders-1")
///     .entity::<Counter>()
///     .entity::<Approval>()
///     .start()
///     .await?;
/// node.entity::<Counter>("visits").add(1).await?;
/// node.drain().await?;
/// # Ok(()) }
/// ```
pub struct NodeBuilder {
    store: Option<Arc<dyn Store>>,
    peers: Option<Peers>,
    clock: Option<Arc<dyn Clock>>,
    config: Config,
    name: String,
    weight: u32,
    seed: Option<u64>,
    shares_threads: bool,
    dependencies: Dependencies,
    entities: Vec<MakeType>,
}

/// Makes an entity type of what is given.
type MakeType = fn(&Dependencies) -> Arc<dyn EntityType>;

/// A node's way to others.
struct Peers {
    store: Arc<dyn SharedStore>,
    transport: Arc<dyn Transport>,
    address: String,
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
    /// Another node is alive under this one's name.
    #[error("{0}")]
    InUse(String),
    /// The nodes that are alive have another secret.
    #[error("{0}")]
    Stranger(String),
}

impl NodeBuilder {
    pub(super) fn new() -> Self {
        Self {
            store: None,
            peers: None,
            clock: None,
            config: Config::default(),
            name: "node".into(),
            weight: 1,
            seed: None,
            shares_threads: false,
            dependencies: Dependencies::new(),
            entities: Vec::new(),
        }
    }

    /// Sets the store of the node.
    pub fn store(self, store: impl Store) -> Self {
        self.shared_store(Arc::new(store))
    }

    /// Sets the store of the node, shared with somebody who watches it.
    pub fn shared_store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// Shares `store` with other nodes, which reach this one at `address` by way of `transport`. All
    /// that share it have names of their own.
    pub fn share(
        mut self,
        store: impl SharedStore,
        transport: impl Transport,
        address: impl Into<String>,
    ) -> Self {
        let (store, transport) = (Arc::new(store), Arc::new(transport));
        self.store = Some(store.clone());
        self.peers = Some(Peers { store, transport, address: address.into() });
        self
    }

    /// Hosts an entity type.
    pub fn entity<E: Entity>(mut self) -> Self {
        self.entities.push(entity_type::<E>);
        self
    }

    /// Hosts a workflow type, with the value that its steps use.
    pub fn workflow<W: WorkflowType>(self, given: W) -> Self {
        self.entity::<Instance<W>>().with(given)
    }

    /// The workflow types that the node is to host; each replays histories with its code.
    pub fn workflow_descriptions(&self) -> Vec<WorkflowDescription> {
        let types = self.entities.iter().map(|make| make(&self.dependencies));
        types.filter_map(|known| known.workflow()).collect()
    }

    /// Gives a value, such as a client or a pool, to the entity types that name it
    /// (`#[entity(needs(HttpClient))]`), in place of an earlier one of its type. Their operations that await,
    /// and their queries, get it by [`Context::get`](stead_entities::Context::get).
    pub fn with<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.dependencies = self.dependencies.with(value);
        self
    }

    /// Gives these values, in place of all that were given.
    #[cfg(feature = "testing")]
    pub(crate) fn given(mut self, dependencies: Dependencies) -> Self {
        self.dependencies = dependencies;
        self
    }

    /// Replaces the settings.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// How much of the whole this node should own, beside the others: 1 to 64. 1.
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Runs everything on the threads of the present runtime, and draws everything random from
    /// `seed`: on a runtime of one thread with a paused clock a test then does the same each time it
    /// runs.
    #[cfg(feature = "testing")]
    pub fn deterministic(mut self, seed: u64) -> Self {
        (self.seed, self.shares_threads) = (Some(seed), true);
        self
    }

    /// Names the node, with 1 to 64 bytes; the name is stored as the owner of its batches.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Replaces the clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Checks everything, then starts the node. Runs on the present tokio runtime.
    ///
    /// # Errors
    /// [`StartError`]; nothing is changed where it is `Invalid` or `Layout`.
    pub async fn start(self) -> Result<Node, StartError> {
        guard::install();
        let mut problems = self.config.problems();
        problems.extend(memory::problem(&self.config));
        let mut types = EntityTypes::default();
        for entity in &self.entities {
            let known = entity(&self.dependencies);
            problems.extend(problems_of(&*known, &types));
            problems.extend(policy_problems(&*known, &self.config));
            types.insert(known.name(), known);
        }
        let is_plain = self.name.chars().all(|c| !c.is_control() && !c.is_whitespace());
        if !is_plain || self.name.is_empty() || self.name.len() > NAME_BYTES_MAX {
            problems.push(format!("a node's name has 1 to {NAME_BYTES_MAX} bytes and no blanks"));
        }
        if !(1..=WEIGHT_MAX).contains(&self.weight) {
            problems.push(format!("a node's weight is 1 to {WEIGHT_MAX}"));
        }
        let Some(store) = self.store.filter(|_| problems.is_empty()) else {
            problems.extend(problems.is_empty().then(|| "a node needs a store".to_owned()));
            return Err(StartError::Invalid(problems));
        };
        let config = Arc::new(self.config);
        let registration = Registration {
            name: self.name.into(),
            address: self.peers.as_ref().map_or("".into(), |peers| peers.address.as_str().into()),
            weight: self.weight,
            types: names(&types),
            lease: config.lease,
            secret: self.peers.as_ref().map_or_else(Vec::new, |peers| peers.transport.secret()),
        };
        let fatal = watch::Sender::new(None);
        let cluster = self.peers.map(|peers| {
            let Peers { store, transport, .. } = peers;
            let (node, fatal) = (registration.clone(), fatal.clone());
            Arc::new(Cluster::new(store, transport, node, config.handoff_deadline, fatal))
        });
        let clock = self.clock.unwrap_or_else(|| match &cluster {
            Some(_) => Arc::new(SharedClock::new()),
            None => Arc::new(HighWaterClock::new()),
        });
        clock.advance_to(store.opened().time);
        let entropy = self.seed.map_or_else(Entropy::system, Entropy::seeded);
        let threads = Threads { runtime: Runtime::current(), is_shared: self.shares_threads };
        let (name, types) = (registration.name, Arc::new(types));
        let parts = Parts { name, store, clock, config, types, threads, fatal };
        let host = Arc::new(Host::new(parts, entropy));
        let local = Local::new(host.clone(), cluster);
        let node = Inner {
            host,
            router: Arc::new(Router::new(local)),
            audit: Audit::default(),
            blocked: Mutex::default(),
            probed_at: Mutex::default(),
        };
        let node = Arc::new(node);
        node.begin().await?;
        Ok(Node(node))
    }
}

impl Inner {
    async fn begin(self: &Arc<Self>) -> Result<(), StartError> {
        let unavailable = |error: &dyn fmt::Display| StartError::Unavailable(error.to_string());
        let host = &self.host;
        host.start_partitions().await.map_err(|error| unavailable(&error))?;
        let opened = host.store().opened();
        // Before there is a lease, for it may take long.
        let left_out = versions::left_out(host).await.map_err(|error| unavailable(&error))?;
        match self.cluster() {
            None => {
                let lane = (opened.incarnation, opened.last_batch);
                let batches =
                    layouts::guard(host, &left_out, lane).await.map_err(JoinError::from)?;
                host.begin_only_session(batches).map_err(|error| unavailable(&error))?;
            }
            Some(cluster) => {
                cluster.transport.listen(Arc::new(Peer::new(self)));
                let (started, joined) = oneshot::channel();
                let running = member::run(cluster.clone(), Arc::downgrade(host), left_out, started);
                let running = host.threads().run_apart("stead-member", running);
                running.map_err(|error| unavailable(&error))?;
                joined.await.map_err(|error| unavailable(&error))??;
            }
        }
        self.check_clock();
        self.start_audit();
        self.start_indexing();
        self.start_looking();
        self.start_watchdog().map_err(|error| unavailable(&error))
    }
}

impl From<JoinError> for StartError {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Layout(problems) => Self::Layout(problems),
            JoinError::Unavailable(why) => Self::Unavailable(why),
            JoinError::InUse(why) => Self::InUse(why),
            JoinError::Stranger(why) => Self::Stranger(why),
            JoinError::Lost => Self::Unavailable(error.to_string()),
        }
    }
}

fn names(types: &EntityTypes) -> Vec<String> {
    let mut names: Vec<_> = types.keys().map(|name| (*name).to_owned()).collect();
    names.sort_unstable();
    names
}

fn problems_of(known: &dyn EntityType, others: &EntityTypes) -> Vec<String> {
    let mut problems = Vec::new();
    let name = known.name();
    if let Err(error) = stead_entities::id::check_type(name) {
        problems.push(format!("{name:?}: {error}"));
    }
    if let Err(why) = known.prove_initial_state() {
        problems.push(format!("{name}: its first state cannot be kept: {why}"));
    }
    let missing = known.missing().iter();
    problems
        .extend(missing.map(|of| format!("{name}: no {of} is given: `Node::builder().with(..)`")));
    if let Some(told) = known.on_dead_letter()
        && known.find(told).is_none_or(|found| found.kind == OperationKind::Query)
    {
        problems.push(format!("{name}: no operation {told}, which is to hear of dead letters"));
    }
    problems.extend(index_problems(known));
    let mut names = known.all_names();
    names.sort_unstable();
    let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
    problems.extend(twice.map(|pair| {
        format!("{name}: two operations are named {}, or were (`renamed_from`)", pair[0])
    }));
    if others.contains_key(name) {
        problems.push(format!("two entity types are named {name}"));
    }
    problems
}

/// The problems of the indexes of a type.
fn index_problems(known: &dyn EntityType) -> Vec<String> {
    let (name, mut problems) = (known.name(), Vec::new());
    let mut indexes: Vec<_> = known.indexes().iter().map(|index| index.name).collect();
    if indexes.len() > INDEXES_MAX {
        problems.push(format!("{name}: a type has at most {INDEXES_MAX} indexes"));
    }
    indexes.sort_unstable();
    let twice = indexes.windows(2).find(|pair| pair[0] == pair[1]);
    problems.extend(twice.map(|pair| format!("{name}: two indexes are named {}", pair[0])));
    let is_plain = |index: &&&str| {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        (1..=64).contains(&index.len()) && index.bytes().all(is_word)
    };
    let odd = indexes.iter().filter(|index| !is_plain(index));
    problems.extend(odd.map(|index| {
        format!("{name}: the name of the index {index:?} is not 1 to 64 letters, digits and _")
    }));
    problems
}

/// The policies of a type that cannot be used.
fn policy_problems(known: &dyn EntityType, config: &Config) -> Vec<String> {
    let name = known.name();
    let of_type = known.policy().problems();
    let mut problems: Vec<_> = of_type.iter().map(|why| format!("{name}: {why}")).collect();
    for operation in known.all_names() {
        let Some(found) = known.find(operation) else { continue };
        let policy = known.policy_of(found.index);
        let own = policy.problems().into_iter().filter(|why| !of_type.contains(why));
        problems.extend(own.map(|why| format!("{name}.{operation}: {why}")));
        let (deadline, limit) = (config.limits(policy).deadline, config.block_limit);
        if found.kind == OperationKind::Operation && deadline >= limit {
            problems.push(format!(
                "{name}.{operation}: the deadline is {deadline:?}, and that of an operation that does not \
                 await must be below the block limit, {limit:?}"
            ));
        }
    }
    problems
}

impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
