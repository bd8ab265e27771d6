//! Space is given back while the store is open: of rows that were deleted, and of keys and changes past their
//! retention.
//!
//! RocksDB drops a deleted row when the files that have it and its end are compacted. Files with many deletions mark
//! themselves for that, but those in memory have to become a file first, which a store that has fallen quiet never
//! does. Rows past their retention are dropped by whatever compaction meets them, so files that nothing touches are
//! compacted now and then. All of it is done by one thread that comes and goes, a small range at a time, so that
//! closing waits for little.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rocksdb::{CompactOptions, properties};

use super::{Database, Shared};
use crate::{
    clock::{deadline_after, monotonic},
    store::tables::Table,
};

/// How many deletions in memory make a file worth while.
const DELETIONS_MIN: u64 = 10_000;
/// The most ranges of keys that are compacted because they ended.
const ENDED_MAX: usize = 64;
/// How many times as seldom rows past their retention are looked for.
const FORGET_RARITY: u32 = 100;
/// How many ranges of keys are compacted one after the other.
const RANGES: u16 = 64;

/// A range of keys that has ended: from one on, and before another.
pub(super) type EndedRange = (Table, Vec<u8>, Vec<u8>);

/// When the store is tidied next.
pub(super) struct Tidy {
    interval: Duration,
    /// How many partitions are compacted at one time.
    step: u16,
    due: Mutex<Due>,
    is_running: Arc<AtomicBool>,
}

struct Due {
    look: Instant,
    forget: Instant,
}

impl Tidy {
    pub(super) fn every(interval: Duration, partitions: u16) -> Self {
        let due = Due {
            look: deadline_after(interval),
            forget: deadline_after(interval.saturating_mul(FORGET_RARITY)),
        };
        let step = partitions.div_ceil(RANGES);
        Self { interval, step, due: Mutex::new(due), is_running: Arc::default() }
    }

    /// Begins to tidy, if that is due and not under way.
    #[allow(clippy::disallowed_methods, reason = "the home of a store's tidying thread")]
    pub(super) fn begin(&self, shared: &Arc<Shared>) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let now = monotonic();
        if now < due.look || self.is_running.swap(true, Ordering::SeqCst) {
            return;
        }
        let forgets = now >= due.forget;
        due.look = deadline_after(self.interval);
        if forgets {
            due.forget = deadline_after(self.interval.saturating_mul(FORGET_RARITY));
        }
        let step = forgets.then_some(self.step);
        let (shared, is_running) = (shared.clone(), self.is_running.clone());
        let thread = std::thread::Builder::new().name("stead-tidy".into()).spawn(move || {
            let _ended = Ended(is_running);
            tidy(&shared, step);
        });
        if thread.is_err() {
            self.is_running.store(false, Ordering::SeqCst);
        }
    }
}

/// Says that a thread has ended, however it does.
struct Ended(Arc<AtomicBool>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// Gives space back; that of old rows only where it is told how many partitions to take at one time.
fn tidy(shared: &Shared, forgets: Option<u16>) {
    for table in Table::ALL {
        shared.while_open(|database| database.write_deletions_out(table));
    }
    let mut ended = Vec::new();
    shared.while_open(|database| ended = database.take_ended());
    for range in ended {
        shared.while_open(|database| database.compact_ended(range));
    }
    let Some(step) = forgets else { return };
    // The log lasts as long as something of it is in memory only, of whichever table.
    for table in Table::ALL {
        shared.while_open(|database| database.write_out(table));
    }
    let forgetful = Table::ALL.into_iter().filter(|table| table.description().written_at.is_some());
    for table in forgetful {
        // The keys of changes begin with the names of types.
        let step = if table == Table::Changes { u16::MAX.div_ceil(RANGES) } else { step };
        for range in 0..RANGES {
            shared.while_open(|database| database.compact(table, range * step, step));
        }
    }
}

impl Shared {
    /// Does something with the database, unless it is closed or damaged.
    fn while_open(&self, work: impl FnOnce(&Database)) {
        if self.is_closed.load(Ordering::SeqCst) || self.poisoned.load(Ordering::SeqCst) {
            return;
        }
        if let Some(database) = &*self.open()
            && !database.directory.is_damaged()
        {
            work(database);
        }
    }
}

impl Database {
    /// Has what is in memory of a table become a file, where it has many deletions.
    fn write_deletions_out(&self, table: Table) {
        let Some(handle) = self.db.cf_handle(table.column_family()) else { return };
        let deletions = properties::NUM_DELETES_ACTIVE_MEM_TABLE;
        let count = self.db.property_int_value_cf(&handle, deletions).ok().flatten();
        if count.is_some_and(|count| count >= DELETIONS_MIN) {
            self.write_out(table);
        }
    }

    /// Takes note of a range of keys that has ended: nothing counts its rows as deletions.
    pub(super) fn note_ended(&self, range: EndedRange) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        // A store in which so many end is busy enough to be compacted by itself.
        if ended.len() <= ENDED_MAX {
            ended.push(range);
        }
    }

    /// The ranges that ended, few enough to be compacted one by one.
    fn take_ended(&self) -> Vec<EndedRange> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = std::mem::take(&mut *ended);
        if ended.len() > ENDED_MAX { Vec::new() } else { ended }
    }

    fn compact_ended(&self, (table, from, to): EndedRange) {
        let Some(handle) = self.db.cf_handle(table.column_family()) else { return };
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        self.db.compact_range_cf_opt(&handle, Some(from), Some(to), &options);
    }

    fn write_out(&self, table: Table) {
        let Some(handle) = self.db.cf_handle(table.column_family()) else { return };
        if let Err(error) = self.db.flush_cf(&handle) {
            tracing::warn!(table = table.description().name, %error, "a table cannot be tidied");
        }
    }

    /// Compacts the rows whose keys begin with one of `count` numbers, mostly those of partitions.
    fn compact(&self, table: Table, first: u16, count: u16) {
        let Some(handle) = self.db.cf_handle(table.column_family()) else { return };
        let (from, to) = (first.to_be_bytes(), first.checked_add(count).map(u16::to_be_bytes));
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        self.db.compact_range_cf_opt(&handle, Some(from), to, &options);
    }
}
