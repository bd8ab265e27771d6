//! The store of one node on RocksDB. The home of RocksDB.
//!
//! Each batch is one `WriteBatch` with a synced write-ahead log, written on the thread that commits.
//! Any error of a write poisons the store: it takes no more commits, and recovery is by opening it
//! again. Below a floor of free space batches are refused before they are tried.
//!
//! Beside the database lie `LOCK.stead` (one process per directory), `HORIZON` (the last batch known
//! durable, so that a log that was shortened is noticed), `RUNNING` (what ran when the process ended)
//! and `RESERVE` (room to open a full disk). What is opened is one unbroken history of batches
//! (`history`), or the opening is refused.
//!
//! Closing ends the database and lets go of the directory, whoever still holds the store.

mod directory;
mod history;
mod options;
mod running;
mod tidy;
mod workflows;

use std::{
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rocksdb::{DB, ReadOptions, ReadTier, WriteBatch, WriteOptions};
use stead_entities::{BoxFuture, Timeout, Timestamp};

pub use self::directory::{OpenError, RocksSettings};
use self::{directory::Directory, history::History, running::Running, tidy::Tidy};
use super::{
    Batch, CommitOutcome, Haste, Horizons, MovingHorizons, Opened, Read, ReadError, ReadResult,
    RunningMarks, Store,
    batch::{Before, each_change},
    readers::Readers,
    record,
    rows::{EachRow, EachValue, Limit, Rows},
    tables::meta::{LaneRecord, Settings},
    tables::{self, Table},
};
use crate::{
    clock::{monotonic, since, wall_micros},
    entropy::Entropy,
    sabotage::Sabotage,
};

/// A directory with the data of one node.
pub struct RocksStore {
    shared: Arc<Shared>,
    readers: Readers,
    running: Arc<Running>,
    opened: Opened,
    tidy: Tidy,
}

struct Shared {
    /// `None` once the store is closed. Held for reading while anything uses it.
    database: RwLock<Option<Database>>,
    is_closed: AtomicBool,
    poisoned: AtomicBool,
    has_room: AtomicBool,
    forget_before: Arc<MovingHorizons>,
}

/// The database in its directory; the database ends first.
struct Database {
    db: DB,
    directory: Directory,
    /// A random number that names this process in the chain of batches.
    writer: u64,
    /// The writer of the last batch.
    follows: AtomicU64,
    /// The number of the last batch, which may not be flushed.
    written: AtomicU64,
    history_read_at: Mutex<Instant>,
    /// The ranges of keys that ended since they were compacted last.
    ended: Mutex<Vec<tidy::EndedRange>>,
}

/// How often the chain of batches is read.
const HISTORY_INTERVAL: Duration = Duration::from_secs(1);

impl RocksStore {
    /// Opens or creates the store in `path` with default settings. Blocks the thread, as
    /// [`RocksStore::open_with`] does; [`RocksStore::open_async`] does not.
    ///
    /// # Errors
    /// [`OpenError`] by what to do about it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_with(path, &RocksSettings::default())
    }

    /// Opens or creates the store in `path`. Blocks the thread while the write-ahead log is replayed,
    /// which can take seconds, and for at most two seconds while another process that ends still
    /// holds the directory.
    ///
    /// # Errors
    /// [`OpenError`] by what to do about it.
    pub fn open_with(path: impl AsRef<Path>, settings: &RocksSettings) -> Result<Self, OpenError> {
        let directory = Directory::acquire(path.as_ref(), settings)?;
        let (running, ran) = Running::open(path.as_ref())?;
        let forget_before = MovingHorizons::new();
        let db = options::open(&directory, settings, &forget_before)?;
        let lane: Option<LaneRecord> = read_meta(&db, tables::meta::LANE)?;
        let last_batch = lane.as_ref().map_or(0, |lane| lane.number);
        directory.check_horizon(last_batch)?;
        let follows = check_history(&db, last_batch)?;
        let minted = mint_settings(&db, settings)?;
        let mut time = lane.as_ref().map_or(Timestamp::default(), |lane| lane.time);
        let mut numbers_ahead: Timeout =
            read_meta(&db, tables::meta::NUMBERS_AHEAD)?.unwrap_or_default();
        let wall = Timestamp::from_micros(wall_micros());
        if settings.reset_clock && time > wall {
            tracing::warn!(from = %time, to = %wall, "the store's clock is set back");
            numbers_ahead = (numbers_ahead.as_duration() + time.since(wall)).into();
            put_meta(&db, tables::meta::NUMBERS_AHEAD, &numbers_ahead)?;
            time = wall;
        }
        let opened = Opened {
            settings: minted,
            incarnation: lane.as_ref().map_or(0, |lane| lane.incarnation) + 1,
            last_batch: last_batch + 1,
            time,
            numbers_ahead: numbers_ahead.as_duration(),
            was_unclean: lane.as_ref().is_some_and(|lane| !lane.is_clean),
            running: ran,
        };
        let writer = Entropy::system().next();
        let has_room = directory.has_room().into();
        let database = Database {
            db,
            directory,
            writer,
            follows: follows.into(),
            written: last_batch.into(),
            history_read_at: Mutex::new(monotonic()),
            ended: Mutex::default(),
        };
        let shared = Shared {
            database: RwLock::new(Some(database)),
            is_closed: false.into(),
            poisoned: false.into(),
            has_room,
            forget_before,
        };
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
            is_buffered: false,
            writes: Vec::new(),
        };
        match shared.write(&claim) {
            CommitOutcome::Committed => {}
            other => return Err(OpenError::Unreadable(format!("{other:?}"))),
        }
        // Not before: an opening that fails leaves what it found to the next one.
        running.clear()?;
        let readers = Readers::start()?;
        let tidy = Tidy::every(settings.tidy_interval, opened.settings.partitions);
        Ok(Self { shared: Arc::new(shared), readers, running: Arc::new(running), opened, tidy })
    }

    /// Opens or creates the store in `path` on a thread of its own, so that no thread of the async
    /// runtime is blocked. Where the future is dropped, the store is opened all the same, and closed
    /// at once.
    ///
    /// # Errors
    /// [`OpenError`] by what to do about it.
    pub async fn open_async(
        path: impl AsRef<Path>,
        settings: RocksSettings,
    ) -> Result<Self, OpenError> {
        let path = path.as_ref().to_owned();
        let opening = tokio::task::spawn_blocking(move || Self::open_with(path, &settings)).await;
        opening.unwrap_or_else(|error| Err(OpenError::Unreadable(error.to_string())))
    }

    /// How often RocksDB has flushed its write-ahead log since the store was opened.
    pub fn log_syncs(&self) -> u64 {
        let open = self.shared.open();
        let property = "rocksdb.options-statistics";
        let statistics = open.as_ref().and_then(|it| it.db.property_value(property).ok().flatten());
        let text = statistics.unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("rocksdb.wal.synced"));
        let count = line.and_then(|line| line.rsplit(' ').next());
        count.and_then(|count| count.parse().ok()).unwrap_or(0)
    }
}

fn closed() -> ReadError {
    ReadError::Unavailable("the store is closed".into())
}

/// The writer of the last batch, where the database has every batch up to it.
fn check_history(db: &DB, last_batch: u64) -> Result<u64, OpenError> {
    let found =
        read_meta(db, tables::meta::HISTORY).map_err(|error| OpenError::Gap(error.to_string()))?;
    match found {
        // Batches of a program that kept no history end here.
        None => {
            put_meta(db, tables::meta::HISTORY, &History::link(last_batch, 0, 0))?;
            Ok(0)
        }
        Some(History::Whole(span)) if span.last == last_batch => Ok(span.writer),
        Some(History::Whole(span)) => Err(OpenError::Gap(format!(
            "the history ends with batch {}, the last batch is {last_batch}",
            span.last
        ))),
        Some(broken @ History::Broken(..)) => Err(OpenError::Gap(broken.to_string())),
    }
}

fn mint_settings(db: &DB, settings: &RocksSettings) -> Result<Settings, OpenError> {
    if let Some(minted) = read_meta(db, tables::meta::SETTINGS)? {
        return Ok(minted);
    }
    let mut entropy = Entropy::system();
    let minted =
        Settings { partitions: settings.partitions, seed: (entropy.next(), entropy.next()) };
    put_meta(db, tables::meta::SETTINGS, &minted)?;
    Ok(minted)
}

fn read_meta<T: serde::de::DeserializeOwned>(db: &DB, key: &[u8]) -> Result<Option<T>, OpenError> {
    let bytes = db.get(key).map_err(|error| OpenError::Unreadable(error.to_string()))?;
    let decoded = bytes.map(|bytes| record::decode(&bytes)).transpose();
    decoded.map_err(|error| OpenError::Unreadable(error.to_string()))
}

/// Writes what is minted outside of batches, and flushes it.
fn put_meta(db: &DB, key: &[u8], record: &impl serde::Serialize) -> Result<(), OpenError> {
    let mut synced = WriteOptions::default();
    synced.set_sync(true);
    let written = db.put_opt(key, record::encode(record), &synced);
    written.map_err(|error| OpenError::Unreadable(error.to_string()))
}

impl Shared {
    fn open(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, batch: &Batch) -> CommitOutcome {
        if tables::meta::notes_workflows(&batch.writes)
            && let Err(error) = self.mark_workflows()
        {
            return CommitOutcome::Unavailable(error.to_string());
        }
        self.change(|database| database.write(batch))
    }

    /// Changes the database, unless it is closed or poisoned.
    fn change(&self, change: impl FnOnce(&Database) -> CommitOutcome) -> CommitOutcome {
        let open = self.open();
        let Some(database) = open.as_ref().filter(|_| !self.is_closed.load(Ordering::SeqCst))
        else {
            return CommitOutcome::Unavailable("the store is closed".into());
        };
        if self.poisoned.load(Ordering::SeqCst) {
            return CommitOutcome::Unknown("the store is poisoned by an earlier error".into());
        }
        let outcome = change(database);
        if matches!(outcome, CommitOutcome::Unknown(_)) {
            self.poisoned.store(true, Ordering::SeqCst);
        }
        outcome
    }

    /// Lets go of the database when nothing uses it any more. Blocks until then.
    fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        drop(self.database.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn cached(&self, table: Table, key: &[u8]) -> Option<ReadResult<Option<Vec<u8>>>> {
        // While the store is being closed there is nothing at hand.
        let open = self.database.try_read().ok()?;
        let database = open.as_ref()?;
        let handle = database.db.cf_handle(table.column_family())?;
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::BlockCache);
        database.db.get_cf_opt(&handle, key, &options).ok().map(Ok)
    }
}

impl Database {
    fn write(&self, batch: &Batch) -> CommitOutcome {
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
        synced.set_sync(!batch.is_buffered && !Sabotage::UnsyncedLog.is_on());
        let again = Sabotage::RetriedFlush.is_on().then(|| WriteBatch::from_data(rows.data()));
        match (self.db.write_opt(rows, &synced), again) {
            (Ok(()), _) => {
                self.follows.store(self.writer, Ordering::Relaxed);
                self.written.store(batch.fence.number, Ordering::Relaxed);
                if !batch.is_buffered {
                    self.directory.note_durable(batch.fence.number);
                }
                CommitOutcome::Committed
            }
            (Err(_), Some(again)) => {
                let _retried = self.db.write_opt(again, &synced);
                CommitOutcome::Committed
            }
            (Err(error), None) => self.failed(&error),
        }
    }

    /// Flushes the log.
    fn flush(&self) -> CommitOutcome {
        let written = self.written.load(Ordering::Relaxed);
        match self.db.flush_wal(true) {
            Ok(()) => {
                self.directory.note_durable(written);
                CommitOutcome::Committed
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&self, error: &rocksdb::Error) -> CommitOutcome {
        if error.kind() == rocksdb::ErrorKind::Corruption {
            self.directory.mark_damaged();
        }
        CommitOutcome::Unknown(error.to_string())
    }

    /// Reads the chain of batches now and then, so that its block is at hand: folding a link reads what
    /// it follows, but never from a file, and links that cannot be folded would pile up.
    fn keep_history_at_hand(&self) {
        let mut read_at = self.history_read_at.lock().unwrap_or_else(PoisonError::into_inner);
        if since(*read_at) >= HISTORY_INTERVAL {
            *read_at = monotonic();
            let _or_the_next_time = self.db.get_pinned(tables::meta::HISTORY);
        }
    }

    /// The batch as RocksDB writes it; refused where a consumed row is not there.
    fn rows(&self, batch: &Batch) -> Result<WriteBatch, String> {
        let tables = Table::ALL.map(|table| {
            self.db
                .cf_handle(table.column_family())
                .expect("every table is opened with the database")
        });
        let mut rows = WriteBatch::default();
        let follows = self.follows.load(Ordering::Relaxed);
        let link = History::link(batch.fence.number, follows, self.writer);
        rows.merge_cf(tables[Table::Meta as usize], tables::meta::HISTORY, record::encode(&link));
        // Rows of indexes go in by the order of their keys, as states do: a batch has at most one change of each,
        // and out of order they take as long as everything else together.
        let mut indexed = Vec::new();
        each_change(batch, |change| {
            let table = tables[change.table as usize];
            if let Some(to) = change.to {
                rows.delete_range_cf(table, change.key, to);
                self.note_ended((change.table, change.key.to_vec(), to.to_vec()));
                return Ok(());
            }
            if change.table == Table::Indexes {
                indexed.push((change.key.to_vec(), change.value.map(<[u8]>::to_vec)));
                return Ok(());
            }
            if change.before != Before::Any {
                let found = self.db.get_pinned_cf(table, change.key);
                let found = found.map_err(|error| error.to_string())?;
                if !change.before.is(found.as_deref()) {
                    return Err(format!("a row is not what it was read as: {:?}", change.key));
                }
            }
            match change.value {
                Some(value) => rows.put_cf(table, change.key, value),
                None => rows.delete_cf(table, change.key),
            }
            Ok(())
        })?;
        indexed.sort_unstable();
        for (key, value) in indexed {
            match value {
                Some(value) => rows.put_cf(tables[Table::Indexes as usize], key, value),
                None => rows.delete_cf(tables[Table::Indexes as usize], key),
            }
        }
        Ok(rows)
    }

    /// The lane must stand one batch before this one, under this incarnation or, for the batch that
    /// claims the store, under the one before.
    fn fence(&self, batch: &Batch) -> Result<(), CommitOutcome> {
        let bytes = self.db.get(tables::meta::LANE);
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
}

/// An error of RocksDB as a failed read, without the paths of its files.
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
struct ReadView<'d> {
    at: rocksdb::Snapshot<'d>,
    db: &'d DB,
    /// Whether what is read is kept for others: pages of lists would push out what turns need.
    fills_cache: bool,
}

impl Rows for ReadView<'_> {
    fn get(&self, table: Table, key: &[u8]) -> ReadResult<Option<Vec<u8>>> {
        let handle = self.db.cf_handle(table.column_family()).expect("every table is opened");
        self.at.get_cf(&handle, key).map_err(read_error)
    }

    fn get_each(
        &self,
        table: Table,
        keys: &[Vec<u8>],
        _heads_only: bool,
        each: &mut EachValue<'_>,
    ) -> ReadResult<()> {
        let handle = self.db.cf_handle(table.column_family()).expect("every table is opened");
        keys.iter().try_for_each(|key| {
            // Where it lies, without a copy.
            let found = self.at.get_pinned_cf(&handle, key).map_err(read_error)?;
            each(found.as_deref())
        })
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: Limit,
        each: &mut EachRow<'_>,
    ) -> ReadResult<()> {
        let handle = self.db.cf_handle(table.column_family()).expect("every table is opened");
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from.to_vec());
        options.set_iterate_upper_bound(to.to_vec());
        options.set_total_order_seek(true);
        options.fill_cache(self.fills_cache);
        let mut rows = self.at.raw_iterator_cf_opt(&handle, options);
        match limit.descends {
            true => rows.seek_to_last(),
            false => rows.seek_to_first(),
        }
        while let (Some(key), Some(value)) = (rows.key(), rows.value()) {
            if !each(key, value)? {
                return Ok(());
            }
            match limit.descends {
                true => rows.prev(),
                false => rows.next(),
            }
        }
        rows.status().map_err(read_error)
    }
}

impl Store for RocksStore {
    fn opened(&self) -> &Opened {
        &self.opened
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, CommitOutcome> {
        Box::pin(async move { self.shared.write(&batch) })
    }

    fn flush(&self) -> BoxFuture<'_, CommitOutcome> {
        Box::pin(async move { self.shared.change(Database::flush) })
    }

    fn maintain_after_commit(&self) {
        if let Some(database) = &*self.shared.open() {
            database.directory.maintain_horizon();
        }
    }

    fn has_room(&self) -> bool {
        self.shared.has_room.load(Ordering::Relaxed)
    }

    fn maintain(&self, before: Horizons) {
        self.shared.forget_before.set(before);
        self.tidy.begin(&self.shared);
        if let Some(database) = &*self.shared.open() {
            let has_room = database.directory.check_room().is_ok();
            self.shared.has_room.store(has_room, Ordering::Relaxed);
            database.directory.maintain_horizon();
            database.keep_history_at_hand();
        }
    }

    fn read_view(&self, haste: Haste, read: Read) -> BoxFuture<'static, ReadResult<()>> {
        let shared = self.shared.clone();
        Box::pin(self.readers.run(haste, move || match &*shared.open() {
            Some(database) => {
                let fills_cache = haste == Haste::Short;
                read(&ReadView { at: database.db.snapshot(), db: &database.db, fills_cache });
                Ok(())
            }
            None => Err(closed()),
        }))
    }

    fn get_cached(&self, table: Table, key: &[u8]) -> Option<ReadResult<Option<Vec<u8>>>> {
        self.shared.cached(table, key)
    }

    /// Measured by `make bench`: with 32 calls take twice as long meanwhile, with 512 twelve times, and
    /// the rows twice as many a second.
    fn left_rows_max(&self) -> usize {
        32
    }

    fn running_marks(&self) -> Option<Arc<dyn RunningMarks>> {
        Some(self.running.clone())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        let shared = self.shared.clone();
        // It blocks until every read has ended, and goes on where nobody waits for it.
        self.shared.is_closed.store(true, Ordering::SeqCst);
        Box::pin(async move {
            let closed = tokio::task::spawn_blocking(move || shared.close());
            let _or_the_runtime_ends = closed.await;
        })
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.directory.flush_horizon();
    }
}

impl fmt::Debug for RocksStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksStore").field("opened", &self.opened).finish_non_exhaustive()
    }
}
