//! The durable data of a node, behind one trait: a commit that is atomic, flushed and fenced, and reads of
//! what was committed.
//!
//! Only `commit` calls [`Store::commit`]. A store answers how a commit ended and never guesses:
//! committed, fenced, unavailable (definitely not committed) or unknown.

mod batch;
pub(crate) mod change_log;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
pub(crate) mod find;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "rocksdb")]
mod readers;
mod reads;
#[cfg(feature = "testing")]
pub mod record;
#[cfg(not(feature = "testing"))]
#[allow(dead_code, unreachable_pub, reason = "public for tests; some of it is re-exported")]
pub(crate) mod record;
#[cfg(feature = "rocksdb")]
pub mod rocks;
mod rows;
pub mod shared;
#[cfg(feature = "testing")]
pub mod tables;
#[cfg(not(feature = "testing"))]
#[allow(dead_code, unreachable_pub, reason = "public for tests; no store uses every key")]
pub(crate) mod tables;

#[cfg(any(feature = "rocksdb", feature = "postgres"))]
use std::sync::atomic::{AtomicI64, Ordering};
use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher24};
use stead_entities::{BoxFuture, Entity, EntityId, Error, ErrorKind, Timestamp};

pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
pub use reads::TypedReads;
use record::Damaged;
#[cfg(feature = "rocksdb")]
pub use rocks::RocksStore;
pub(crate) use rows::PAGE_BYTES_MAX;
pub use rows::{EachRow, EachValue, Limit, Rows};
use tables::{
    Record, Table,
    dead_letters::{Cause, DeadLetter, DeadLetterId},
    inbox::{InboxKey, InboxRecord},
    meta::Settings,
    reminders::{ReminderRecord, Slot},
    states::{Ended, StateHead, StateRecord},
};

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
    /// Whether it may be answered before it is flushed: then it is with the next batch that may not, or by
    /// [`Store::flush`].
    pub is_buffered: bool,
    /// The writes, in order.
    pub writes: Vec<Write>,
}

/// One row to write.
#[derive(Debug, Clone)]
pub enum Write {
    /// An entity's state, with the rows of its indexed values.
    PutState(EntityId, StateRecord),
    /// An entity's end, and that of what else is stored of it.
    DeleteState(EntityId, Ended),
    /// A signal that is accepted by this batch.
    Accept(InboxKey, InboxRecord),
    /// A signal that was accepted before, and whose attempts changed.
    Retry(InboxKey, InboxRecord),
    /// An applied signal; its row must be there.
    Consume(InboxKey),
    /// A reminder, or one whose attempts changed.
    Remind(u16, EntityId, Slot, ReminderRecord),
    /// The end of a reminder; the row of a delayed signal must be there.
    CancelReminder {
        /// The entity's partition.
        partition: u16,
        /// The entity.
        id: EntityId,
        /// Which of its reminders.
        slot: Slot,
        /// When it was due.
        due: Timestamp,
        /// Whether it was written with an origin.
        has_origin: bool,
    },
    /// A row that stands for itself; see [`Write::put`].
    Put(Table, Vec<u8>, Vec<u8>),
    /// The same where the row is still as it was read; see [`Write::replace`].
    Replace {
        /// The table.
        table: Table,
        /// The key of the row.
        key: Vec<u8>,
        /// The record that must be there; none where there must be no row.
        before: Option<Vec<u8>>,
        /// The record that follows it.
        value: Vec<u8>,
    },
    /// The end of such a row, if it is there.
    Delete(Table, Vec<u8>),
    /// The end of the ownership of a partition, which must be the writer's; shared stores only.
    FreePartition(u16),
}

impl Write {
    /// Writes a row that stands for itself. States, signals and reminders have writes of their own, which
    /// check what was there, or keep an order beside the row.
    pub fn put<R: Record>(key: &R::Key, record: &R) -> Self {
        Self::Put(R::TABLE, R::key(key), record.encode())
    }

    /// Writes such a row where it is still as it was read, `before`, or still not there: the batch is refused
    /// otherwise, so that writers who read the same row follow one another.
    pub fn replace<R: Record>(key: &R::Key, before: Option<&R>, record: &R) -> Self {
        let (before, value) = (before.map(Record::encode), record.encode());
        Self::Replace { table: R::TABLE, key: R::key(key), before, value }
    }

    /// Ends such a row, if it is there.
    pub fn delete<R: Record>(key: &R::Key) -> Self {
        Self::Delete(R::TABLE, R::key(key))
    }

    /// About how many bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        const BESIDE: usize = 128;
        BESIDE
            + match self {
                Self::PutState(_, record) => {
                    record.state.len()
                        + record.changes.as_ref().map_or(0, |changes| changes.bytes())
                }
                Self::Accept(_, record) | Self::Retry(_, record) => record.input.len(),
                Self::Remind(_, _, _, record) => record.input.len(),
                Self::Put(_, key, value) | Self::Replace { key, value, .. } => {
                    key.len() + value.len()
                }
                _ => 0,
            }
    }

    /// The entity that it is of; none where it is of none, or of more than one.
    pub(crate) fn entity(&self) -> Option<Cow<'_, EntityId>> {
        match self {
            Self::PutState(id, _)
            | Self::DeleteState(id, _)
            | Self::Remind(_, id, ..)
            | Self::CancelReminder { id, .. } => Some(Cow::Borrowed(id)),
            Self::Accept(key, _) | Self::Retry(key, _) | Self::Consume(key) => {
                Some(Cow::Borrowed(&key.receiver))
            }
            Self::Put(Table::Idempotency, key, _) | Self::Delete(Table::Idempotency, key) => {
                tables::idempotency::read_key(key).ok().map(|key| Cow::Owned(key.id))
            }
            Self::Put(..) | Self::Replace { .. } | Self::Delete(..) | Self::FreePartition(_) => {
                None
            }
        }
    }
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
/// The names of operations, beside the entity type that has them.
pub type OperationsByType = Vec<(String, Vec<String>)>;
/// Some of the rows that were asked for, in key order: those that fit into a page.
#[derive(Debug)]
pub struct Page<R> {
    /// The rows.
    pub rows: Vec<R>,
    /// Whether there were no more.
    pub is_end: bool,
}

impl<R> Page<R> {
    /// The row behind which the next page begins, where there is one.
    pub(crate) fn last_before_more(&self) -> Option<&R> {
        self.rows.last().filter(|_| !self.is_end)
    }
}

/// A page of the inbox.
pub type InboxPage = Page<(InboxKey, InboxRecord)>;
/// A page of entities with what lists show of them.
pub type StatePage = Page<(EntityId, StateHead)>;
/// A stored reminder or delayed signal by entity and slot.
pub type Reminder = (EntityId, Slot, ReminderRecord);
/// A page of reminders and delayed signals.
pub type ReminderPage = Page<Reminder>;
/// The place of a reminder in the order of due times.
pub type DueKey = (Timestamp, EntityId, Slot);
/// A page of what is kept in memory of dead letters.
pub type DeadLetterHeads = Page<DeadLetterHead>;

/// A page of dead letters with their ids.
#[derive(Debug)]
pub struct DeadLetterPage {
    /// The letters that fit the filter.
    pub rows: Vec<(DeadLetterId, DeadLetter)>,
    /// The id behind which the next page begins; `None` behind the last one.
    pub next: Option<DeadLetterId>,
}

/// A dead letter without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterHead {
    /// Its key.
    pub id: DeadLetterId,
    /// The type of its entity.
    pub entity_type: String,
    /// When it was made.
    pub at: Timestamp,
    /// How many bytes it takes.
    pub bytes: usize,
}

/// Which dead letters are meant: those that fit every part that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeadLetterFilter {
    /// Letters of entities of this type.
    pub entity_type: Option<String>,
    /// Letters of the entity with this id, `type/key`.
    pub entity: Option<String>,
    /// Letters of operations of this name.
    pub operation: Option<String>,
    /// Letters with this cause.
    pub cause: Option<Cause>,
}

impl DeadLetterFilter {
    /// Letters of entities of a type.
    pub fn of<E: Entity>() -> Self {
        Self { entity_type: Some(E::NAME.to_owned()), ..Self::default() }
    }

    /// Whether a letter is meant.
    pub fn fits(&self, letter: &DeadLetter) -> bool {
        let entity_type = letter.entity.split('/').next();
        self.entity_type.as_deref().is_none_or(|wanted| Some(wanted) == entity_type)
            && self.entity.as_ref().is_none_or(|wanted| *wanted == letter.entity)
            && self.operation.as_ref().is_none_or(|wanted| *wanted == letter.operation)
            && self.cause.is_none_or(|wanted| wanted == letter.cause)
    }
}

/// A stored signal or reminder and the operation that it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The entity that it is for.
    pub id: EntityId,
    /// The operation.
    pub operation: String,
    /// Its argument as JSON; none of an answer to an ask, of which that is made later.
    pub input: Option<Vec<u8>>,
    /// Whether it is a reminder or a delayed signal.
    pub is_reminder: bool,
}

/// How long a read may take, which decides what it waits behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Haste {
    /// A turn waits for it.
    Short,
    /// It reads pages for people.
    Long,
}

/// A read of one view.
pub type Read = Box<dyn FnOnce(&dyn Rows) + Send>;

/// The state of a store when it is opened.
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
    /// How far minted numbers are ahead of the clock, because it was set back by so much.
    pub numbers_ahead: Duration,
    /// Whether the incarnation before this one ended without draining.
    pub was_unclean: bool,
    /// The tokens of the marked operations that ran when it ended.
    pub running: Vec<u128>,
}

impl Opened {
    /// The state of a shared store that was only connected to.
    pub(crate) const fn connected(settings: Settings, time: Timestamp) -> Self {
        Self {
            settings,
            incarnation: 0,
            last_batch: 0,
            time,
            numbers_ahead: Duration::ZERO,
            was_unclean: false,
            running: Vec::new(),
        }
    }
}

/// The times before which rows are forgotten, where their table has such a time
/// ([`written_at`](tables::Description::written_at)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Horizons {
    /// Of idempotency keys, by when they were written.
    pub keys: Timestamp,
    /// Of changes, by how long they are kept.
    pub changes: Timestamp,
}

impl Horizons {
    /// Nothing is forgotten.
    pub const NONE: Self =
        Self { keys: Timestamp::from_micros(i64::MIN), changes: Timestamp::from_micros(i64::MIN) };

    /// The one of a table.
    pub fn of(self, table: Table) -> Timestamp {
        match table {
            Table::Changes => self.changes,
            _ => self.keys,
        }
    }
}

/// Horizons that one thread moves while others read them.
#[cfg(any(feature = "rocksdb", feature = "postgres"))]
#[derive(Debug)]
struct MovingHorizons {
    keys: AtomicI64,
    changes: AtomicI64,
}

#[cfg(any(feature = "rocksdb", feature = "postgres"))]
impl MovingHorizons {
    fn new() -> Arc<Self> {
        Arc::new(Self { keys: i64::MIN.into(), changes: i64::MIN.into() })
    }

    fn set(&self, Horizons { keys, changes }: Horizons) {
        self.keys.store(keys.as_micros(), Ordering::Relaxed);
        self.changes.store(changes.as_micros(), Ordering::Relaxed);
    }

    fn get(&self) -> Horizons {
        let time = |of: &AtomicI64| Timestamp::from_micros(of.load(Ordering::Relaxed));
        Horizons { keys: time(&self.keys), changes: time(&self.changes) }
    }
}

/// Marks of operations that run, which outlive the process. For operations that an unclean stop left
/// behind: one of them may be what ended the process.
pub trait RunningMarks: Send + Sync + fmt::Debug {
    /// Marks the operation of a token as running in a partition, in place of the one before; `None`
    /// takes the mark away.
    fn mark(&self, partition: u16, token: Option<u128>);
}

/// Durable storage of one node.
///
/// An implementor's commit is atomic (all rows or none, also through a crash), is flushed before it
/// answers `Committed` unless the batch is buffered, takes with it the flush of all batches before it, and is
/// refused unless the fence names this incarnation and exactly the next
/// batch number. After `Unknown` every commit answers `Unknown`. Reads see every answered commit.
/// The conformance suite checks the fence, the atomicity of what is read back, and the reads; each
/// store has tests of its own for flushes, crashes and poison.
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// The state of the store when it was opened.
    fn opened(&self) -> &Opened;
    /// Writes a batch. Not cancel safe: the caller waits for the answer. It may block the thread on
    /// which it is polled: the committer has one of its own.
    fn commit(&self, batch: Batch) -> BoxFuture<'_, CommitOutcome>;
    /// Flushes the batches that were answered before they were. A store that has none, or flushes by itself
    /// in time, has nothing to do.
    fn flush(&self) -> BoxFuture<'_, CommitOutcome> {
        Box::pin(std::future::ready(CommitOutcome::Committed))
    }
    /// Called when the answers that waited for a batch have left: a time for notes that nobody waits
    /// for. Does nothing unless a store says otherwise.
    fn maintain_after_commit(&self) {}
    /// Whether there was room for writes when last looked at. Cheap: asked for every request.
    fn has_room(&self) -> bool;
    /// Called some times a second: looks at the room, and forgets, sooner or later, rows from before these times.
    fn maintain(&self, before: Horizons);

    /// Runs a read on one view of what was committed. Dropping the future before the read has begun
    /// cancels it.
    fn read_view(&self, haste: Haste, read: Read) -> BoxFuture<'static, ReadResult<()>>;
    /// The value of a key, if it is at hand without waiting for a disk; `None` if it is not.
    fn get_cached(&self, table: Table, key: &[u8]) -> Option<ReadResult<Option<Vec<u8>>>>;
    /// How many rows of due reminders and of inboxes a node has between disk and commit at one time: as
    /// many as keep the store busy, and no more, for each commit that callers wait for carries them. At
    /// least 8.
    fn left_rows_max(&self) -> usize {
        256
    }
    /// Marks of running operations that outlive the process. `None` where the store keeps none: then
    /// attempts are counted, durably, before operations run.
    fn running_marks(&self) -> Option<Arc<dyn RunningMarks>> {
        None
    }
    /// Ends the store cleanly and lets go of what it holds open. Commits after it answer
    /// `Unavailable`, and so do reads.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Runs what blocks on a thread for it; a panic goes on in whoever waits.
#[cfg(feature = "postgres")]
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
