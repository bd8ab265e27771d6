//! One node: its parts put together, started, watched, drained. And all that a node offers to the
//! program that embeds it, in one place: [`Node`].
//!
//! ```text
//! Node --> Router --> Local --> a partition of this node (host)
//!              \--> one hop to the owner (transport)
//! ```
//!
//! `host` has the partitions, `placement` decides which of them are hosted. This folder holds what is
//! above both: `build` (put together and start), `router` and `local` (the way of a request), `peers`
//! (requests of other nodes), `lists`, `unserved`, `upgrades`, `readiness`, `stop`, `watchdog`, `audit`.

mod audit;
mod build;
mod bulk;
mod caller;
mod changes;
mod committed;
mod find;
#[cfg(feature = "testing")]
mod index_check;
mod indexing;
mod lists;
pub(crate) mod local;
mod locks;
mod peers;
mod readiness;
mod router;
mod sealed;
mod stop;
mod type_changes;
mod unserved;
mod upgrades;
mod watchdog;
pub(crate) mod workflows;

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use stead_entities::{
    Entity, EntityId, Error, ErrorKind, Reference, ReminderId, Timestamp, TypedReference,
    entity::EntityDescription,
    workflow::{InstanceReference, TypedWorkflow, WorkflowDescription},
};

use self::{
    local::Local,
    router::{Command, Router},
    unserved::{Depth, For},
};
use crate::{
    commit::Fatal,
    host::Host,
    partition::reply::{CallResult, Response, StateView},
    placement::{ClusterView, Placement, cluster::Cluster},
    store::{DeadLetterFilter, tables::dead_letters::DeadLetterId},
};

pub use build::{NodeBuilder, StartError};
pub use bulk::{WorkflowChange, WorkflowsChanged};
pub use changes::{Change, ChangeEvent, Changes, Events};
pub use find::{Find, SelectedView};
#[cfg(feature = "http")]
pub(crate) use lists::PAGE_ROWS_MAX;
pub use lists::{BulkView, CronView, DeadLetterView, EntityView, Listed, ReminderView, Snapshot};
pub use locks::LockView;
pub use router::Deletion;
pub use type_changes::{TypeChange, TypeChangeEvent, TypeChanges};
pub use unserved::UnservedView;
#[cfg(feature = "http")]
pub(crate) use upgrades::COUNTED_MAX;
pub use upgrades::{UpgradeView, VersionView, VersionsView};

/// How long a fresh look at the cluster is waited for.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// One process that hosts entities. Cheap to clone; all clones are the same node.
///
/// A node is also what typed references are bound to.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

pub(crate) struct Inner {
    host: Arc<Host>,
    router: Arc<Router>,
    audit: audit::Audit,
    /// The operation that blocks its thread at present.
    blocked: Mutex<Option<String>>,
    probed_at: Mutex<Option<Timestamp>>,
}

impl Inner {
    fn local(&self) -> &Local {
        self.router.local()
    }

    fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.local().cluster.as_ref()
    }
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

    /// A typed reference to a workflow, bound to this node.
    pub fn workflow<W: TypedWorkflow>(&self, key: impl AsRef<str>) -> W::Reference<Self> {
        W::reference(InstanceReference::new(W::NAME, key.as_ref()).bind(self.clone()))
    }

    /// The entity types of this node, by name.
    pub fn descriptions(&self) -> Vec<EntityDescription> {
        let (types, policy) = (self.0.host.types(), self.0.host.config().policy());
        let mut all: Vec<_> = types.values().map(|known| known.description(policy)).collect();
        all.sort_by_key(|description| description.name);
        all
    }

    /// The workflow types of this node, by name.
    pub fn workflow_descriptions(&self) -> Vec<WorkflowDescription> {
        let types = self.0.host.sorted_types().into_iter();
        types.filter_map(|known| known.workflow()).collect()
    }

    /// The committed state of an entity as its type, `None` before its first commit. It is read in the entity's
    /// order and shows only what is durable. It comes as JSON: what serde leaves out there has its default.
    ///
    /// # Errors
    /// As [`Node::state_of`].
    pub async fn state<E: Entity>(
        &self,
        key: impl AsRef<str>,
    ) -> Result<Option<Snapshot<E>>, Error> {
        let id = EntityId::new(E::NAME, key.as_ref())?;
        self.state_of(&id).await?.map(Snapshot::new).transpose()
    }

    /// A page of the entities of a type, as [`Node::list_of`] shows it.
    ///
    /// # Errors
    /// As [`Node::list_of`].
    pub async fn list<E: Entity>(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Listed<EntityView>, Error> {
        self.list_of(E::NAME, prefix, after, limit).await
    }

    /// The changes of an entity as a stream: its present state, if it has one, then each newer committed one and
    /// its deletion. Revisions rise, and skip where they come faster than they are taken; nothing is shown before
    /// it is committed, which of buffered entities is before it is durable. `after` is the position of the last
    /// event that was seen, to go on behind it.
    ///
    /// ```
    /// # use stead::{Change, Node, stock::Counter, store::memory::MemoryDisk};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = MemoryDisk::new().open()?;
    /// # let node = Node::builder().store(store).entity::<Counter>().start().await?;
    /// let mut changes = node.changes::<Counter>("visits", None)?;
    /// node.entity::<Counter>("visits").add(5).await?;
    /// let Some(Ok(event)) = changes.next().await else { return Ok(()) };
    /// assert!(matches!(event.change, Change::State(it) if it.version.revision == 1));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a key that is none, and [`ErrorKind::NotFound`] for a type that nobody serves.
    /// What goes wrong later comes from the stream.
    pub fn changes<E: Entity>(
        &self,
        key: impl AsRef<str>,
        after: Option<&str>,
    ) -> Result<Changes<Snapshot<E>>, Error> {
        let id = EntityId::new(E::NAME, key.as_ref())?;
        Ok(changes::of(self, &id, after)?.typed())
    }

    /// The same by an id, with states as they are shown.
    ///
    /// # Errors
    /// As [`Node::changes`].
    pub fn changes_of(
        &self,
        id: &EntityId,
        after: Option<&str>,
    ) -> Result<Changes<StateView>, Error> {
        changes::of(self, id, after)
    }

    /// Whether a type is served here and its changes are kept.
    #[cfg(feature = "http")]
    pub(crate) fn keeps_changes(&self, entity_type: &str) -> bool {
        let known = self.0.host.types().get(entity_type);
        known.is_some_and(|known| known.policy().changes.is_some())
    }

    /// Ends every stream of changes, so that a server that stops does not wait for them.
    /// [`Node::drain`] does it first; streams that are begun later end at once.
    pub fn end_changes(&self) {
        self.0.host.subscribers().close();
    }

    /// Begins a search for entities of a type by its indexes.
    ///
    /// ```
    /// # use stead::{Node, stock::Counter, store::memory::MemoryDisk};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = MemoryDisk::new().open()?;
    /// # let node = Node::builder().store(store).entity::<Counter>().start().await?;
    /// node.entity::<Counter>("visits").add(5).await?;
    /// let large = node.find::<Counter>().filter(Counter::by_value().within(3..));
    /// assert_eq!(large.page().await?.rows[0].key, "visits");
    /// # Ok(()) }
    /// ```
    pub fn find<E: Entity>(&self) -> Find<E> {
        Find::new(self, E::NAME)
    }

    /// The same for a type by its name, where filters come as text.
    pub fn find_of(&self, entity_type: impl Into<String>) -> Find<()> {
        Find::new(self, entity_type)
    }

    /// Recomputes every index of this node's types from the stored states, and returns what differs: rows that
    /// are missing, stale or too many, values that do not follow from their state, and states that lack an index
    /// that is said to be complete. States that cannot be read are passed over.
    ///
    /// # Errors
    /// Where the store cannot be read.
    #[cfg(feature = "testing")]
    pub async fn check_indexes(&self) -> Result<Vec<String>, Error> {
        index_check::check(&self.0).await
    }

    /// How many entities of a type have a state and a key that begins with `prefix`. It reads a row of each,
    /// a page at a time.
    ///
    /// # Errors
    /// As [`Node::list_of`].
    pub async fn count<E: Entity>(&self, prefix: &str) -> Result<u64, Error> {
        let (mut count, mut after) = (0, None::<String>);
        loop {
            let page = self.list::<E>(prefix, after.as_deref(), lists::PAGE_ROWS_MAX).await?;
            count += page.rows.len() as u64;
            after = page.next;
            if after.is_none() {
                return Ok(count);
            }
        }
    }

    /// How many states of a type are stored in each of its versions. It reads a row of each, a page at a time.
    ///
    /// # Errors
    /// As [`Node::list_of`].
    pub async fn versions<E: Entity>(&self) -> Result<VersionsView, Error> {
        self.versions_of(E::NAME, usize::MAX).await
    }

    /// Stores every state of a type that an earlier version wrote as the present version does, page by page, as
    /// [`Node::upgrade_page`] does. When nothing failed, the earlier versions can be left out of the next
    /// program.
    ///
    /// Dropping the future stops it between two states; what was rewritten stays so, and the next run goes
    /// on with the rest.
    ///
    /// # Errors
    /// Where states cannot be listed. What becomes of each state is counted in the answer.
    pub async fn upgrade_all<E: Entity>(&self) -> Result<UpgradeView, Error> {
        let mut done = UpgradeView::default();
        loop {
            let after = done.next.take();
            let page = self.upgrade_page(E::NAME, after.as_deref(), lists::PAGE_ROWS_MAX).await?;
            done.and_then(page);
            if done.next.is_none() {
                return Ok(done);
            }
        }
    }

    /// How many states of a type are stored in each of its versions: of the first `max` states, rounded up to
    /// whole pages.
    ///
    /// # Errors
    /// As [`Node::list_of`].
    pub async fn versions_of(&self, entity_type: &str, max: usize) -> Result<VersionsView, Error> {
        upgrades::versions(&self.0, entity_type, max).await
    }

    /// Looks at a page of the states of a type, by key, behind the key `after`, at most `limit` and at most
    /// 1,000, and stores those that an earlier version wrote as the present version does. Each is rewritten by
    /// its owner in its entity's order, which is no turn: its revision stays, and nobody hears of it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a type that this node does not serve, else as [`Node::list_of`]. What becomes
    /// of each state is counted in the answer.
    pub async fn upgrade_page(
        &self,
        entity_type: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<UpgradeView, Error> {
        upgrades::page(&self.0, entity_type, after, limit).await
    }

    /// The committed state of an entity, `None` before its first commit. It is read in the entity's
    /// order and shows only what is durable.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an unknown type, [`ErrorKind::Corrupt`] where the stored state
    /// cannot be read, and what can befall any request.
    pub async fn state_of(&self, id: &EntityId) -> Result<Option<StateView>, Error> {
        view(self.perform(Command::State(id.clone())).await?)
    }

    /// The last durable state of an entity, `None` before its first commit: read at once, beside the entity's
    /// order, also while an operation of it awaits or many wait. It is never ahead of what was acknowledged,
    /// and has everything that was acknowledged before it was asked for.
    ///
    /// # Errors
    /// As [`Node::state_of`].
    pub async fn committed_state_of(&self, id: &EntityId) -> Result<Option<StateView>, Error> {
        let read = Command::Committed(Box::new(Command::State(id.clone())));
        view(self.perform(read).await?)
    }

    /// Deletes an entity in its order: its state and its reminders. What was delayed, or waited for
    /// a retry, becomes a dead letter; where more than 512 signals are delayed, those behind them do so
    /// after this is answered, page by page. None of them is applied.
    ///
    /// # Errors
    /// As [`Node::state_of`].
    pub async fn delete(&self, id: &EntityId) -> Result<(), Error> {
        self.delete_with(Deletion::new(id.clone())).await
    }

    /// The same, once under an idempotency key, and only under a condition.
    ///
    /// # Errors
    /// As [`Node::state_of`]; [`ErrorKind::Precondition`] where the condition does not hold, and
    /// [`ErrorKind::Conflict`] where the key was used for something else.
    pub async fn delete_with(&self, deletion: Deletion) -> Result<(), Error> {
        self.perform(Command::Delete(deletion)).await.map(drop)
    }

    /// Sends the operation of a dead letter again, behind everything that its entity has accepted.
    /// The letter is gone once the operation is accepted.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an unknown letter, or where its entity no longer has the
    /// operation.
    pub async fn replay(&self, letter: DeadLetterId) -> Result<(), Error> {
        self.perform(Command::Replay(letter)).await.map(drop)
    }

    /// Drops a dead letter. Dropping one that is gone does nothing.
    ///
    /// # Errors
    /// What can befall any request.
    pub async fn drop_dead_letter(&self, letter: DeadLetterId) -> Result<(), Error> {
        self.perform(Command::Drop(letter)).await.map(drop)
    }

    /// A page of the entities of a type whose keys begin with `prefix`, by key, behind the key
    /// `after`: at most `limit`, and at most 1,000; fewer where their states are large.
    ///
    /// Lists read the store whichever node is asked, and show what is durable.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a type that nobody serves, [`ErrorKind::Overloaded`] where too much
    /// is read at one time, [`ErrorKind::Unavailable`] where the store cannot be read.
    pub async fn list_of(
        &self,
        entity_type: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Listed<EntityView>, Error> {
        lists::entities(&self.0, entity_type, prefix, after, limit).await
    }

    /// The same with states.
    #[cfg(feature = "http")]
    pub(crate) async fn states_of(
        &self,
        entity_type: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Listed<(EntityView, StateView)>, Error> {
        lists::states(&self.0, entity_type, prefix, after, limit).await
    }

    /// The lock of an entity, as the store has it; none while nobody has one.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for a type that this node does not serve, and what can befall any
    /// read.
    pub async fn lock_of(&self, id: &EntityId) -> Result<Option<LockView>, Error> {
        locks::of(&self.0, id).await
    }

    /// Ends the lock of an entity in the place of who has it; where a holder is named, only that one's. Durable when it
    /// returns. What waited for the lock goes on, and what its holder still asks for under it fails there, as
    /// [`Failure::Failed`](crate::Failure::Failed). A holder that runs lets its locks go by itself; this is for one that
    /// does not go on.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) where the entity is not locked,
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) where another workflow than the named one has the lock, and what
    /// can befall any request. It waits behind an operation of the entity that is under way. Not cancel safe: the lock may
    /// be ended though nobody hears of it.
    pub async fn free_lock(&self, id: &EntityId, holder: Option<&str>) -> Result<(), Error> {
        self.perform(Command::FreeLock(id.clone(), holder.map(str::to_owned))).await.map(drop)
    }

    /// A page of the committed reminders and delayed signals of an entity behind the one with the id
    /// `after`: reminders by name, then delayed signals in the order in which they were accepted; at
    /// most `limit`, and at most 1,000.
    ///
    /// # Errors
    /// As [`Node::list_of`].
    pub async fn reminders(
        &self,
        id: &EntityId,
        after: Option<&ReminderId>,
        limit: usize,
    ) -> Result<Listed<ReminderView>, Error> {
        lists::reminders(&self.0, id, after, limit).await
    }

    /// A page of the dead letters that fit a filter, behind the one with the id `after`: at most
    /// `limit`, and at most 1,000; fewer, perhaps none, where many do not fit.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for what is no id, else as [`Node::list_of`].
    pub async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Listed<DeadLetterView>, Error> {
        lists::dead_letters(&self.0, filter, after, limit).await
    }

    /// How many dead letters this node has dropped since it started, because there were too many.
    pub fn dropped_dead_letters(&self) -> u64 {
        self.0.host.dropped_dead_letters()
    }

    /// Replays every dead letter that fits a filter and was there when this began, one after the other
    /// for each entity, as [`Node::replay`] does. Dropping the future stops it between two letters.
    ///
    /// # Errors
    /// Where letters cannot be read. What becomes of each letter is counted in the answer.
    pub async fn replay_all(&self, filter: &DeadLetterFilter) -> Result<BulkView, Error> {
        lists::each_letter(&self.0, filter, Command::Replay).await
    }

    /// Drops every dead letter that fits a filter and was there when this began.
    ///
    /// # Errors
    /// As [`Node::replay_all`].
    pub async fn drop_all(&self, filter: &DeadLetterFilter) -> Result<BulkView, Error> {
        lists::each_letter(&self.0, filter, Command::Drop).await
    }

    /// Stored signals and reminders that nobody can apply: for types that no node serves, for operations that
    /// their types no longer have, and with arguments that no longer fit. Of the last two each becomes a dead
    /// letter when its turn comes. Of each type and partition at most 1,000 signals, and as many reminders,
    /// are looked at.
    ///
    /// # Errors
    /// As [`Node::list_of`].
    pub async fn unserved(&self) -> Result<Vec<UnservedView>, Error> {
        unserved::look(&self.0, Depth::Arguments, For::Caller).await
    }

    /// Which node owns an entity, as far as this one knows, and which one should.
    pub async fn placement(&self, id: &EntityId) -> Placement {
        let (host, partition) = (&self.0.host, self.0.host.partition_of(id));
        match self.0.cluster() {
            None => Placement::alone(id, partition, host.name(), host.store().opened()),
            Some(cluster) => {
                cluster.look(LOOK_TIMEOUT).await;
                Placement::seen(id, partition, &cluster.seen())
            }
        }
    }

    /// The members and the owners of partitions, by a fresh look where the store answers in time.
    pub async fn cluster_view(&self) -> ClusterView {
        let host = &self.0.host;
        match self.0.cluster() {
            None => {
                let types = self.descriptions().iter().map(|it| it.name.to_owned()).collect();
                ClusterView::alone(host.name(), types, host.store().opened())
            }
            Some(cluster) => {
                cluster.look(LOOK_TIMEOUT).await;
                ClusterView::seen(host.name(), &cluster.seen())
            }
        }
    }

    /// Whether every partition has committed within the last five seconds; partitions that have not
    /// are asked to.
    ///
    /// # Errors
    /// What is in the way, in words.
    pub async fn ready(&self) -> Result<(), String> {
        self.0.ready().await
    }

    /// The warnings for an operator of a node that serves, in words: a clock far ahead of the wall
    /// clock, safety rules of the runtime that were broken, signals and reminders that nobody can
    /// apply. Readiness shows it too.
    pub fn notes(&self) -> Vec<String> {
        self.0.notes()
    }

    /// Waits until the node cannot go on, and says why. Never ends for a healthy node.
    pub async fn failed(&self) -> Fatal {
        self.0.failed().await
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
        self.0.drain().await
    }

    /// Stops at once, as if the process had been killed: nothing is finished or given up. For tests
    /// of what others do then.
    #[cfg(feature = "testing")]
    pub async fn abort(&self) {
        self.0.abort().await;
    }

    async fn perform(&self, command: Command) -> CallResult {
        self.0.router.perform(command).await
    }

    /// This node, for those who check requests before they are made.
    #[cfg(feature = "http")]
    pub(crate) fn local(&self) -> &Local {
        self.0.local()
    }
}

fn view(response: Response) -> Result<Option<StateView>, Error> {
    match response {
        Response::State(view) => Ok(view),
        _ => Err(Error::new(ErrorKind::Internal, "another answer than a state")),
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let types: Vec<_> = self.0.host.types().keys().collect();
        f.debug_struct("Node").field("types", &types).finish_non_exhaustive()
    }
}
