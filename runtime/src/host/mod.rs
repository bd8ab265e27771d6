//! The partitions that a node hosts, and the session in which it commits for them.
//!
//! A *session* is what belongs to one incarnation of a node: its way to the committer, its lease and
//! its links. Losing the lease ends the session, and a node among others begins another one. Which
//! partitions are hosted is decided by `placement`, or, where the store is not shared, is all of them.

mod changes;
pub(crate) mod indexes;
pub(crate) mod layouts;
pub(crate) mod versions;

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use stead_entities::{EntityId, Error};
use tokio::sync::{Notify, Semaphore, watch};

use crate::{
    clock::Clock,
    commit::{self, ChangeLog, Committer, Fatal, Incarnation, Outbound, Subscribers},
    config::{Config, Limits},
    entropy::Entropy,
    lease::Lease,
    map::SharedSet,
    memory::Memory,
    partition::{
        self, Beginning, ForeignIndex, Handle, Hosting, Identity, Predecessor, Shell, StepRoom,
        Watches,
        message::{CommitSender, Input},
    },
    store::Store,
    threads::Threads,
    types::{EntityType, EntityTypes},
};

/// The parts of a host.
pub(crate) struct Parts {
    pub(crate) name: Arc<str>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: Arc<Config>,
    pub(crate) types: Arc<EntityTypes>,
    pub(crate) threads: Threads,
    /// Told why the node cannot go on.
    pub(crate) fatal: watch::Sender<Option<Fatal>>,
}

/// The partitions of a node, hosted or not, and its present session.
pub(crate) struct Host {
    parts: Parts,
    partitions: Arc<[Handle]>,
    watches: Arc<Watches>,
    entropy: Mutex<Entropy>,
    /// `None` while a node among others is joining.
    session: Mutex<Option<Arc<Session>>>,
    /// How much due and left-behind work runs at one time.
    permits: Arc<Semaphore>,
    step_room: Arc<StepRoom>,
    /// How many dead letters were dropped because there were too many.
    dropped: Arc<AtomicU64>,
    /// The entity types that partitions met and that this node does not serve.
    unserved: Arc<SharedSet<String>>,
    /// How often a partition has come to be hosted.
    hostings: AtomicU64,
    subscribers: Arc<Subscribers>,
    memory: Arc<Memory>,
    /// Told when partitions came to be hosted, whose states may lack indexes.
    pub(crate) has_hosted: Arc<Notify>,
}

/// The session of one incarnation of a node.
pub(crate) struct Session {
    pub(crate) incarnation: Arc<Incarnation>,
    pub(crate) committer: CommitSender,
    fatal: watch::Receiver<Option<Fatal>>,
}

impl Session {
    /// Waits until nothing more can be committed in this session.
    pub(crate) async fn cannot_go_on(&self) {
        let mut fatal = self.fatal.clone();
        if fatal.wait_for(Option::is_some).await.is_err() {
            // The committer has ended in order.
            std::future::pending::<()>().await;
        }
    }
}

impl Host {
    /// A host without a session, whose partitions take nothing in.
    pub(crate) fn new(parts: Parts, entropy: Entropy) -> Self {
        let partitions = 0..parts.store.opened().settings.partitions;
        Self {
            partitions: partitions.map(|_| Handle::new()).collect(),
            watches: Arc::default(),
            entropy: Mutex::new(entropy),
            session: Mutex::new(None),
            permits: Arc::new(Semaphore::new(parts.store.left_rows_max())),
            memory: Memory::of(&parts.config),
            step_room: Arc::new(StepRoom::new()),
            dropped: Arc::default(),
            unserved: Arc::default(),
            hostings: AtomicU64::new(0),
            subscribers: Arc::default(),
            has_hosted: Arc::default(),
            parts,
        }
    }

    /// Starts the actors of the partitions.
    ///
    /// # Errors
    /// Where one cannot be started.
    pub(crate) async fn start_partitions(&self) -> Result<(), Error> {
        for handle in self.partitions.iter() {
            let shell = Shell {
                handle: handle.clone(),
                store: self.parts.store.clone(),
                clock: self.parts.clock.clone(),
                types: self.parts.types.clone(),
                watches: self.watches.clone(),
                permits: self.permits.clone(),
                step_room: self.step_room.clone(),
            };
            partition::start(shell).await?;
        }
        Ok(())
    }

    /// Begins a session. What is for partitions of other nodes goes to `outbound`; `fatal` is told what
    /// ends the session, which among others does not end the node.
    ///
    /// # Errors
    /// Where there is no thread for the committer.
    pub(crate) fn begin_session(
        &self,
        incarnation: Arc<Incarnation>,
        outbound: Option<Arc<dyn Outbound>>,
    ) -> io::Result<Arc<Session>> {
        let (committer, queue) = commit::queue();
        let (ended, fatal) = watch::channel(None);
        let ends = if outbound.is_some() { ended } else { self.parts.fatal.clone() };
        let service = Committer::new(
            self.parts.store.clone(),
            self.parts.clock.clone(),
            self.parts.name.clone(),
            incarnation.clone(),
            (self.partitions.clone(), self.subscribers.clone()),
            ends,
        );
        service
            .with(outbound, ChangeLog::of(&self.parts.types))
            .start(&self.parts.threads, queue)?;
        let session = Arc::new(Session { incarnation, committer, fatal });
        *self.lock_session() = Some(session.clone());
        Ok(session)
    }

    /// Begins the only session of a node that shares nothing, behind so many batches of its own, and
    /// hosts all partitions.
    ///
    /// # Errors
    /// As [`Host::begin_session`].
    pub(crate) fn begin_only_session(&self, batches: u64) -> io::Result<()> {
        let opened = self.parts.store.opened();
        let incarnation = Incarnation {
            number: opened.incarnation,
            last_batch: opened.last_batch + batches,
            lease: Arc::new(Lease::for_ever()),
            link: Arc::new(AtomicU64::new(0)),
        };
        let session = self.begin_session(Arc::new(incarnation), None)?;
        for partition in 0..opened.settings.partitions {
            self.begin_hosting(&session, (partition, opened.was_unclean), &Arc::default());
        }
        Ok(())
    }

    /// Begins to host a partition, whose states `foreign` indexes lack from here on.
    pub(crate) fn begin_hosting(
        &self,
        session: &Session,
        (partition, was_unclean): (u16, bool),
        foreign: &Arc<[ForeignIndex]>,
    ) {
        let opened = self.parts.store.opened();
        let identity = Identity {
            number: partition,
            incarnation: session.incarnation.number,
            settings: opened.settings.clone(),
            types: self.parts.types.clone(),
            config: self.parts.config.clone(),
            watch: self.watches.add(),
            numbers_ahead: opened.numbers_ahead,
            unserved: self.unserved.clone(),
            memory: self.memory.clone(),
            hosting: self.hostings.fetch_add(1, Ordering::Relaxed) + 1,
            foreign: foreign.clone(),
        };
        let predecessor = Predecessor {
            was_unclean,
            ran: opened.running.as_slice().into(),
            marks: self.parts.store.running_marks(),
        };
        let beginning = Beginning {
            identity,
            predecessor,
            link: session.incarnation.link(),
            entropy: self.entropy(),
            dropped: self.dropped.clone(),
        };
        let (committer, lease) = (session.committer.clone(), session.incarnation.lease.clone());
        self.handle(partition).host(Hosting { beginning: Box::new(beginning), committer, lease });
    }

    fn entropy(&self) -> Entropy {
        let mut entropy = self.entropy.lock().unwrap_or_else(PoisonError::into_inner);
        Entropy::seeded(entropy.next())
    }

    /// Ends the session: whoever waits for it is told `error`, or that the outcome is not known.
    pub(crate) fn end_session(&self, error: &Error) {
        self.lock_session().take();
        self.partitions.iter().for_each(|handle| handle.dismiss(error.clone()));
    }

    /// The present session.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.lock_session().clone()
    }

    fn lock_session(&self) -> MutexGuard<'_, Option<Arc<Session>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn partitions(&self) -> &Arc<[Handle]> {
        &self.partitions
    }

    /// The way to a partition of the store.
    pub(crate) fn handle(&self, partition: u16) -> &Handle {
        &self.partitions[usize::from(partition)]
    }

    pub(crate) fn partition_of(&self, id: &EntityId) -> u16 {
        self.parts.store.opened().settings.partition_of(id)
    }

    /// Whether this node owns a partition and takes more in for it.
    pub(crate) fn is_open(&self, partition: u16) -> bool {
        self.partitions.get(usize::from(partition)).is_some_and(Handle::is_open)
    }

    /// Has every partition read what it may have missed.
    pub(crate) fn rescan(&self) {
        let open = self.partitions.iter().filter(|handle| handle.is_open());
        open.for_each(|handle| handle.push(Input::Rescan));
    }

    /// Goes on after a lease that had run out was renewed.
    pub(crate) fn resume(&self) {
        self.partitions.iter().for_each(Handle::resume);
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.parts.name
    }
    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.parts.store
    }
    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.parts.clock
    }
    pub(crate) fn config(&self) -> &Config {
        &self.parts.config
    }
    /// The limits of an entity.
    pub(crate) fn limits(&self, id: &EntityId) -> Limits {
        let policy = self.types().get(id.entity_type()).map(|known| *known.policy());
        self.config().limits(&policy.unwrap_or_default())
    }
    pub(crate) fn types(&self) -> &EntityTypes {
        &self.parts.types
    }
    /// The types that this node serves, by name.
    pub(crate) fn sorted_types(&self) -> Vec<&Arc<dyn EntityType>> {
        let mut types: Vec<_> = self.types().values().collect();
        types.sort_unstable_by_key(|known| known.name());
        types
    }
    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
    pub(crate) fn threads(&self) -> &Threads {
        &self.parts.threads
    }
    /// Those who wait for news of entities.
    pub(crate) fn subscribers(&self) -> &Arc<Subscribers> {
        &self.subscribers
    }
    pub(crate) fn watches(&self) -> &Watches {
        &self.watches
    }
    pub(crate) fn fatal(&self) -> &watch::Sender<Option<Fatal>> {
        &self.parts.fatal
    }

    /// How many dead letters were dropped since the node started, because there were too many.
    pub(crate) fn dropped_dead_letters(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The entity types that partitions met and that this node does not serve.
    pub(crate) fn met_unserved(&self) -> Vec<String> {
        self.unserved.iter().map(|name| name.clone()).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Nobody watches deadlines any more.
        for handle in self.partitions.iter() {
            handle.expire(None);
        }
        self.has_hosted.notify_one();
    }
}
