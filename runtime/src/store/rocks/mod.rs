//! The store of one node on RocksDB. The home of RocksDB.
//!
//! Each batch is one `WriteBatch` with a synced write-ahead log, written on the thread that commits.
//! Any error of a write poisons the store: it takes no more commits, and recovery is by opening it again. Below
//! a floor of free space batches are refused before they are tried.
//!
//! Beside the database lie `LOCK.stead` (one process per directory), `HORIZON` (the last batch known
//! durable, so that a log that was shortened is noticed) and `RESERVE` (room to open a full disk).

mod directory;
mod options;

use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use rocksdb::{DB, ReadOptions, ReadTier, WriteBatch, WriteOptions};
use stead_entities::{BoxFuture, EntityId, Timestamp};

use self::directory::Directory;
pub use self::directory::{OpenError, RocksSettings};
use super::{
    Batch, CommitOutcome, DeadLetterPage, InboxPage, Opened, ReadError, ReadResult, ReminderRows,
    StatePage, Store,
    keys::{self, Table},
    on_thread,
    record::{
        self, DeadLetter, DeadLetterId, IdempotencyKey, IdempotencyRecord, InboxKey, LaneRecord,
        Settings, StateRecord,
    },
    rows::{self, Limit, Rows, Scanned},
};
use crate::{entropy::Entropy, sabotage};

/// A directory with the data of one node.
pub struct RocksStore {
    shared: Arc<Shared>,
    opened: Opened,
    is_closed: AtomicBool,
}

struct Shared {
    db: DB,
    directory: Directory,
    poisoned: AtomicBool,
    forget_before: Arc<AtomicI64>,
}

impl RocksStore {
    /// Opens or creates the store in `path` with default settings.
    ///
    /// # Errors
    /// [`OpenError`] by what to do about it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_with(path, &RocksSettings::default())
    }

    /// Opens or creates the store in `path`. Blocks while the write-ahead log is replayed.
    ///
    /// # Errors
    /// [`OpenError`] by what to do about it.
    pub fn open_with(path: impl AsRef<Path>, settings: &RocksSettings) -> Result<Self, OpenError> {
        let directory = Directory::acquire(path.as_ref(), settings)?;
        let forget_before = Arc::new(AtomicI64::new(i64::MIN));
        let db = options::open(&directory, settings, &forget_before)?;
        let lane: Option<LaneRecord> = read_meta(&db, keys::LANE)?;
        let last_batch = lane.as_ref().map_or(0, |lane| lane.number);
        directory.check_horizon(last_batch)?;
        let minted = mint_settings(&db, settings)?;
        let opened = Opened {
            settings: minted,
            incarnation: lane.as_ref().map_or(0, |lane| lane.incarnation) + 1,
            last_batch: last_batch + 1,
            time: lane.as_ref().map_or(Timestamp::default(), |lane| lane.time),
            was_unclean: lane.as_ref().is_some_and(|lane| !lane.is_clean),
        };
        let shared = Arc::new(Shared { db, directory, poisoned: false.into(), forget_before });
        let claim = Batch {
            fence: super::Fence {
                incarnation: opened.incarnation,
                lane: 0,
                number: last_batch + 1,
            },
            owner: settings.node.clone(),
            time: opened.time,
            // Whatever ends the process from here on, short of a drain, was not clean.
            is_clean: false,
            writes: Vec::new(),
        };
        match shared.write(&claim) {
            CommitOutcome::Committed => {}
            other => return Err(OpenError::Unreadable(format!("{other:?}"))),
        }
        Ok(Self { shared, opened, is_closed: false.into() })
    }

    /// How often RocksDB has flushed its write-ahead log since the store was opened.
    pub fn log_syncs(&self) -> u64 {
        let statistics = self.shared.db.property_value("rocksdb.options-statistics").ok().flatten();
        let text = statistics.unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("rocksdb.wal.synced"));
        let count = line.and_then(|line| line.rsplit(' ').next());
        count.and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Rows) -> T + Send + 'static,
    ) -> BoxFuture<'static, T> {
        let shared = self.shared.clone();
        // One view for the whole read: a batch is seen as a whole or not at all.
        Box::pin(on_thread(move || read(&View(shared.db.snapshot(), &shared.db))))
    }
}

fn mint_settings(db: &DB, settings: &RocksSettings) -> Result<Settings, OpenError> {
    if let Some(minted) = read_meta(db, keys::SETTINGS)? {
        return Ok(minted);
    }
    let mut entropy = Entropy::system();
    let minted =
        Settings { partitions: settings.partitions, seed: (entropy.next(), entropy.next()) };
    let mut synced = WriteOptions::default();
    synced.set_sync(true);
    db.put_opt(keys::SETTINGS, record::encode(&minted), &synced)
        .map_err(|error| OpenError::Unreadable(error.to_string()))?;
    Ok(minted)
}

fn read_meta<T: serde::de::DeserializeOwned>(db: &DB, key: &[u8]) -> Result<Option<T>, OpenError> {
    let bytes = db.get(key).map_err(|error| OpenError::Unreadable(error.to_string()))?;
    let decoded = bytes.map(|bytes| record::decode(&bytes)).transpose();
    decoded.map_err(|error| OpenError::Unreadable(error.to_string()))
}

impl Shared {
    fn write(&self, batch: &Batch) -> CommitOutcome {
        if self.poisoned.load(Ordering::SeqCst) {
            return CommitOutcome::Unknown("the store is poisoned by an earlier error".into());
        }
        // What only moves the lane fits always: a node starts, and stops, on a full disk.
        if !batch.writes.is_empty()
            && let Err(why) = self.directory.check_room()
        {
            return CommitOutcome::Full(why);
        }
        match self.fence(batch) {
            Ok(()) => {}
            Err(outcome) => return outcome,
        }
        let rows = match self.rows(batch) {
            Ok(rows) => rows,
            Err(reason) => return CommitOutcome::Unavailable(reason),
        };
        let mut synced = WriteOptions::default();
        synced.set_sync(!sabotage::is("X1"));
        let again = sabotage::is("X8").then(|| WriteBatch::from_data(rows.data()));
        match (self.db.write_opt(rows, &synced), again) {
            (Ok(()), _) => CommitOutcome::Committed,
            (Err(_), Some(again)) => {
                let _retried = self.db.write_opt(again, &synced);
                CommitOutcome::Committed
            }
            (Err(error), None) => {
                if error.kind() == rocksdb::ErrorKind::Corruption {
                    self.directory.mark_damaged();
                }
                self.poisoned.store(true, Ordering::SeqCst);
                CommitOutcome::Unknown(error.to_string())
            }
        }
    }

    /// The batch as RocksDB writes it; refused where a consumed row is not there.
    fn rows(&self, batch: &Batch) -> Result<WriteBatch, String> {
        let tables = Table::ALL.map(|table| {
            self.db.cf_handle(table.name()).expect("every table is opened with the database")
        });
        let mut rows = WriteBatch::default();
        rows::each_change(batch, |change| {
            let table = tables[change.table as usize];
            if change.must_exist && !matches!(self.db.get_pinned_cf(table, change.key), Ok(Some(_)))
            {
                return Err(format!("a consumed row is not there: {:?}", change.key));
            }
            match change.value {
                Some(value) => rows.put_cf(table, change.key, value),
                None => rows.delete_cf(table, change.key),
            }
            Ok(())
        })?;
        Ok(rows)
    }

    /// The lane must stand one batch before this one, under this incarnation or, for the batch that
    /// claims the store, under the one before.
    fn fence(&self, batch: &Batch) -> Result<(), CommitOutcome> {
        let bytes = self.db.get(keys::LANE);
        let bytes = bytes.map_err(|error| CommitOutcome::Unavailable(error.to_string()))?;
        let Some(bytes) = bytes else { return Ok(()) };
        let last: LaneRecord = record::decode(&bytes)
            .map_err(|error| CommitOutcome::Unavailable(error.to_string()))?;
        let claims = batch.writes.is_empty() && batch.fence.incarnation == last.incarnation + 1;
        let continues = batch.fence.incarnation == last.incarnation;
        if (claims || continues) && batch.fence.number == last.number + 1 {
            return Ok(());
        }
        Err(CommitOutcome::Fenced)
    }

    fn cached<T>(
        &self,
        table: Table,
        key: &[u8],
        read: impl FnOnce(Option<Vec<u8>>) -> ReadResult<T>,
    ) -> Option<ReadResult<T>> {
        let handle = self.db.cf_handle(table.name())?;
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::BlockCache);
        match self.db.get_cf_opt(&handle, key, &options) {
            Ok(found) => Some(read(found)),
            Err(_) => None,
        }
    }
}

/// What RocksDB says of a read, without the paths of its files.
fn read_error(error: rocksdb::Error) -> ReadError {
    tracing::error!(%error, "the database cannot read");
    match error.kind() {
        rocksdb::ErrorKind::Corruption => {
            ReadError::Damaged(record::Damaged("a block of the database is damaged".into()))
        }
        kind => ReadError::Unavailable(format!("{kind:?}")),
    }
}

/// The database as it stood at one moment.
struct View<'d>(rocksdb::Snapshot<'d>, &'d DB);

impl Rows for View<'_> {
    fn get(&self, table: Table, key: &[u8]) -> ReadResult<Option<Vec<u8>>> {
        let handle = self.1.cf_handle(table.name()).expect("every table is opened");
        self.0.get_cf(&handle, key).map_err(read_error)
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: Limit) -> ReadResult<Scanned> {
        let handle = self.1.cf_handle(table.name()).expect("every table is opened");
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(to.to_vec());
        options.set_total_order_seek(true);
        let mode = rocksdb::IteratorMode::From(from, rocksdb::Direction::Forward);
        let found = self.0.iterator_cf_opt(&handle, options, mode).map(|row| {
            let (key, value) = row.map_err(read_error)?;
            Ok((key.into_vec(), value.into_vec()))
        });
        Scanned::take(found, limit)
    }
}

impl Store for RocksStore {
    fn opened(&self) -> &Opened {
        &self.opened
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, CommitOutcome> {
        Box::pin(async move {
            if self.is_closed.load(Ordering::SeqCst) {
                return CommitOutcome::Unavailable("the store is closed".into());
            }
            let outcome = self.shared.write(&batch);
            if outcome == CommitOutcome::Committed {
                self.shared.directory.note_durable(batch.fence.number);
            }
            outcome
        })
    }

    fn tend_after_commit(&self) {
        self.shared.directory.tend_horizon();
    }

    fn has_room(&self) -> bool {
        self.shared.directory.has_room()
    }

    fn tend(&self, time: Timestamp) {
        self.shared.forget_before.store(time.as_micros(), Ordering::Relaxed);
        let _known_by_has_room = self.shared.directory.check_room();
        self.shared.directory.tend_horizon();
    }

    fn load_cached(&self, id: &EntityId) -> Option<ReadResult<Option<StateRecord>>> {
        self.shared.cached(Table::States, id.as_str().as_bytes(), rows::state)
    }

    fn remembered_cached(
        &self,
        key: &IdempotencyKey,
    ) -> Option<ReadResult<Option<IdempotencyRecord>>> {
        self.shared.cached(Table::Idempotency, &keys::idempotency(key), |found| {
            Ok(found.map(|bytes| record::decode(&bytes)).transpose()?)
        })
    }

    rows::reads!(blocking);

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.is_closed.store(true, Ordering::SeqCst);
            let shared = self.shared.clone();
            let noted = tokio::task::spawn_blocking(move || shared.directory.flush_horizon());
            let _or_the_runtime_ends = noted.await;
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.directory.flush_horizon();
    }
}

impl fmt::Debug for RocksStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksStore").field("opened", &self.opened).finish_non_exhaustive()
    }
}
