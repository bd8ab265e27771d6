//! What a node keeps, behind one trait: a commit that is atomic, flushed and fenced, and reads of
//! what was committed.
//!
//! Only `commit` calls [`Store::commit`]. A store answers how a commit ended and never guesses:
//! committed, fenced, unavailable (definitely not committed) or unknown.

pub mod conformance;
pub mod keys;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod record;
#[cfg(feature = "rocksdb")]
pub mod rocks;
mod rows;
pub mod shared;

use std::{fmt, sync::Arc};

use siphasher::sip128::{Hasher128, SipHasher24};
use stead_entities::{BoxFuture, EntityId, Error, ErrorKind, Timestamp};

pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
use record::{
    Damaged, DeadLetter, DeadLetterId, IdempotencyKey, IdempotencyRecord, InboxKey, InboxRecord,
    ReminderRecord, Settings, Slot, StateRecord,
};
#[cfg(feature = "rocksdb")]
pub use rocks::RocksStore;

/// The right to commit: exactly the next batch of one lane of one incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// The incarnation of the node; it grows each time the store is opened.
    pub incarnation: u64,
    /// The commit lane.
    pub lane: u16,
    /// The number of this batch: one more than the last.
    pub number: u64,
}

/// One atomic write.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Checked and moved by the commit.
    pub fence: Fence,
    /// The node that owns the partitions.
    pub owner: Arc<str>,
    /// The store's time, kept as the high-water mark of its clock.
    pub time: Timestamp,
    /// Whether this is the last batch of a node that drained.
    pub is_clean: bool,
    /// What to write, in order.
    pub writes: Vec<Write>,
}

/// One row to write.
#[derive(Debug, Clone)]
pub enum Write {
    /// An entity's state.
    PutState(EntityId, StateRecord),
    /// An entity's end.
    DeleteState(EntityId),
    /// A signal that is accepted by this batch.
    Accept(InboxKey, InboxRecord),
    /// A signal that was accepted before, and whose attempts changed.
    Retry(InboxKey, InboxRecord),
    /// An applied signal; its row must be there.
    Consume(InboxKey),
    /// A reminder, or one whose attempts changed.
    Remind(u16, EntityId, Slot, ReminderRecord),
    /// A reminder that was due at this time; the row of a delayed signal must be there.
    CancelReminder(u16, EntityId, Slot, Timestamp),
    /// An idempotency key.
    Remember(IdempotencyKey, IdempotencyRecord),
    /// The end of an idempotency key whose operation left nothing.
    Forget(IdempotencyKey),
    /// A dead letter.
    Bury(DeadLetterId, DeadLetter),
    /// The end of a dead letter.
    Exhume(DeadLetterId),
    /// The layout of a version of an entity type.
    PutLayout(String, u32, String),
    /// The end of the ownership of a partition, which must be the writer's; shared stores only.
    Release(u16),
}

/// How a commit ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitOutcome {
    /// Durable.
    Committed,
    /// Another incarnation, or another batch, has moved the lane. Nothing was written.
    Fenced,
    /// Nothing was written, for this reason; it may be tried again.
    Unavailable(String),
    /// Nothing was written: there is too little room.
    Full(String),
    /// It may or may not be durable. The store is poisoned and takes no more commits.
    Unknown(String),
}

/// Why a read failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The bytes cannot be understood; they are left as they are.
    #[error("damaged: {0}")]
    Damaged(#[from] Damaged),
    /// The store could not read.
    #[error("the store cannot read: {0}")]
    Unavailable(String),
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        let kind = match error {
            ReadError::Damaged(_) => ErrorKind::Corrupt,
            ReadError::Unavailable(_) => ErrorKind::Unavailable,
        };
        Self::new(kind, error.to_string()).with_source(error)
    }
}

/// An answer of the store.
pub type ReadResult<T> = Result<T, ReadError>;
/// Some of the rows that were asked for, in key order: those that fit into a page.
#[derive(Debug)]
pub struct Page<R> {
    /// The rows.
    pub rows: Vec<R>,
    /// Whether there were no more.
    pub is_end: bool,
}

/// A page of the inbox.
pub type InboxPage = Page<(InboxKey, InboxRecord)>;
/// A page of entities with their states.
pub type StatePage = Page<(EntityId, StateRecord)>;
/// A page of dead letters with their ids.
pub type DeadLetterPage = Page<(DeadLetterId, DeadLetter)>;
/// Reminders with their keys.
pub type ReminderRows = Vec<(EntityId, Slot, ReminderRecord)>;

/// What a store knows of itself when it is opened.
///
/// A shared store that was only connected to has incarnation 0 and no lane: its nodes join it.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Minted once with the store.
    pub settings: Settings,
    /// The incarnation that this opening minted.
    pub incarnation: u64,
    /// The number of the last batch.
    pub last_batch: u64,
    /// The high-water mark of the store's clock.
    pub time: Timestamp,
    /// Whether the incarnation before this one ended without draining.
    pub was_unclean: bool,
}

/// Durable storage of one node.
///
/// An implementor's commit is atomic (all rows or none, also through a crash), is flushed before it
/// answers `Committed`, and is refused unless the fence names this incarnation and exactly the next
/// batch number. After `Unknown` every commit answers `Unknown`. Reads see every answered commit.
/// The conformance suite checks the fence, the atomicity of what is read back, and the reads; each
/// store has tests of its own for flushes, crashes and poison.
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// What the store knew when it was opened.
    fn opened(&self) -> &Opened;
    /// Writes a batch. Not cancel safe: the caller waits for the answer. It may block the thread on
    /// which it is polled: the committer has one of its own.
    fn commit(&self, batch: Batch) -> BoxFuture<'_, CommitOutcome>;
    /// Called when the answers that waited for a batch have left: a time for notes that nobody waits
    /// for. Does nothing unless a store says otherwise.
    fn tend_after_commit(&self) {}
    /// Whether there was room for writes when last looked at. Cheap: asked for every request.
    fn has_room(&self) -> bool;
    /// Called some times a second: looks at the room, and forgets, sooner or later, idempotency
    /// records from before `time`.
    fn tend(&self, time: Timestamp);

    /// The state of an entity if it is at hand without waiting for a disk; `None` if it is not.
    fn load_cached(&self, id: &EntityId) -> Option<ReadResult<Option<StateRecord>>>;
    /// What is remembered, if that is at hand without waiting for a disk; `None` if it is not.
    fn remembered_cached(
        &self,
        key: &IdempotencyKey,
    ) -> Option<ReadResult<Option<IdempotencyRecord>>>;
    /// The state of an entity.
    fn load(&self, id: EntityId) -> BoxFuture<'static, ReadResult<Option<StateRecord>>>;
    /// Up to `limit` inbox rows of a receiver after `after`; fewer where they are large.
    fn inbox(
        &self,
        partition: u16,
        receiver: EntityId,
        after: Option<InboxKey>,
        limit: usize,
    ) -> BoxFuture<'static, ReadResult<InboxPage>>;
    /// The entities of a partition that have inbox rows.
    fn receivers(&self, partition: u16) -> BoxFuture<'static, ReadResult<Vec<EntityId>>>;
    /// Up to `limit` reminders of a partition that are due at `until` or before, in order.
    fn due(
        &self,
        partition: u16,
        until: Timestamp,
        limit: usize,
    ) -> BoxFuture<'static, ReadResult<ReminderRows>>;
    /// The reminders and delayed signals of an entity; at most `limit`, and a page, if there is one.
    fn reminders(
        &self,
        partition: u16,
        id: EntityId,
        limit: Option<usize>,
    ) -> BoxFuture<'static, ReadResult<ReminderRows>>;
    /// What is remembered under a key.
    fn remembered(
        &self,
        key: IdempotencyKey,
    ) -> BoxFuture<'static, ReadResult<Option<IdempotencyRecord>>>;
    /// Up to `limit` entities of a type whose keys begin with `prefix`, after the key `after`.
    fn list(
        &self,
        entity_type: String,
        prefix: String,
        after: Option<String>,
        limit: usize,
    ) -> BoxFuture<'static, ReadResult<StatePage>>;
    /// Up to `limit` dead letters after `after`.
    fn dead_letters(
        &self,
        after: Option<DeadLetterId>,
        limit: usize,
    ) -> BoxFuture<'static, ReadResult<DeadLetterPage>>;
    /// One dead letter.
    fn dead_letter(&self, id: DeadLetterId) -> BoxFuture<'static, ReadResult<Option<DeadLetter>>>;
    /// The stored layouts of an entity type, by version.
    fn layouts(&self, entity_type: String) -> BoxFuture<'static, ReadResult<Vec<(u32, String)>>>;
    /// Ends the store cleanly. Commits after it answer `Unavailable`.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Runs what blocks on a thread for it; a panic goes on in whoever waits.
#[cfg(any(feature = "postgres", feature = "rocksdb"))]
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is being torn down, and nobody waits.
        Err(_) => std::future::pending().await,
    }
}

impl Settings {
    /// The partition of an entity: SipHash-2-4 of its id under the store's own key, modulo the
    /// number of partitions. It is stable for the life of the store.
    pub fn partition_of(&self, id: &EntityId) -> u16 {
        let hash = self.fingerprint(&[id.as_str().as_bytes()]) as u64;
        (hash % u64::from(self.partitions)) as u16
    }

    /// A stable keyed hash of `parts`, each with its length.
    pub fn fingerprint(&self, parts: &[&[u8]]) -> u128 {
        let mut hasher = SipHasher24::new_with_keys(self.seed.0, self.seed.1);
        for part in parts {
            std::hash::Hasher::write(&mut hasher, &(part.len() as u64).to_le_bytes());
            std::hash::Hasher::write(&mut hasher, part);
        }
        hasher.finish128().as_u128()
    }
}
