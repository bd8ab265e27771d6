//! How a node is put together, checked and started.

use std::{
    fmt,
    sync::{Arc, Mutex, atomic::AtomicBool},
};

use stead_entities::{Entity, Error};
use tokio::sync::watch;

use crate::{
    clock::{Clock, HighWaterClock},
    commit::{self, Committer},
    config::Config,
    entropy::Entropy,
    layout,
    partition::{self, Handle, Partition, Shell, Surroundings},
    store::Store,
    types::{EntityType, EntityTypes, entity_type},
};

use super::{Inner, Node};

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

impl NodeBuilder {
    pub(super) fn new() -> Self {
        Self {
            store: None,
            clock: Arc::new(HighWaterClock::new()),
            config: Config::default(),
            name: "node".into(),
            entities: Vec::new(),
        }
    }

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
        let mut types = EntityTypes::default();
        for known in &self.entities {
            problems.extend(problems_of(&**known, &types));
            types.insert(known.name(), known.clone());
        }
        let Some(store) = self.store.filter(|_| problems.is_empty()) else {
            problems.extend(problems.is_empty().then(|| "a node needs a store".to_owned()));
            return Err(StartError::Invalid(problems));
        };
        let opened = store.opened().clone();
        self.clock.advance_to(opened.time);
        let owner: Arc<str> = self.name.into();
        let batches = layout::guard(&*store, &types, &owner, self.clock.now()).await?;
        let partitions: Arc<[Handle]> =
            (0..opened.settings.partitions).map(|_| Handle::new()).collect();
        let (fatal_tx, fatal) = watch::channel(None);
        let (committer, queue) = commit::queue();
        let service = Committer::new(
            store.clone(),
            self.clock.clone(),
            owner,
            partitions.clone(),
            fatal_tx.clone(),
        );
        let started = service.after(batches).start(queue);
        started.map_err(|error| StartError::Unavailable(error.to_string()))?;
        let node = Node(Arc::new(Inner {
            watches: Arc::default(),
            store,
            clock: self.clock,
            config: Arc::new(self.config),
            types: Arc::new(types),
            partitions,
            committer,
            load: Arc::default(),
            fatal,
            spinning: Mutex::new(None),
            probed_at: Mutex::new(None),
            is_closing: AtomicBool::new(false),
        }));
        node.start_partitions().await.map_err(|e| StartError::Unavailable(e.to_string()))?;
        node.start_watchdog(fatal_tx).map_err(|e| StartError::Unavailable(e.to_string()))?;
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
                watch: inner.watches.add(),
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
                taken: Default::default(),
                runs: Vec::new(),
                watches: inner.watches.clone(),
            };
            partition::start(shell).await?;
        }
        Ok(())
    }
}

fn problems_of(known: &dyn EntityType, others: &EntityTypes) -> Vec<String> {
    let mut problems = Vec::new();
    let name = known.name();
    if let Err(error) = stead_entities::id::check_type(name) {
        problems.push(format!("{name:?}: {error}"));
    }
    if others.contains_key(name) {
        problems.push(format!("two entity types are named {name}"));
    }
    problems
}

impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
