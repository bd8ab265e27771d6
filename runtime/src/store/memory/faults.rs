//! Faults of a disk in memory, and looks at it, for tests.

use std::{
    fmt,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use stead_entities::EntityId;

use super::{Fault, MemoryDisk, MemoryStore, Reach};
use crate::{
    entropy::Entropy,
    store::{
        Batch,
        tables::{self, Table},
    },
};

/// Sees every batch of a disk, and decides what becomes of it. It is called under the disk's lock, which it
/// does not take.
pub trait CommitWatch: Send + Sync + fmt::Debug {
    /// The fault of a batch whose turn has come, where no other was injected.
    fn fault(&self, batch: &Batch) -> Option<Fault>;
    /// Told of a batch that is durable, before anybody else is.
    fn committed(&self, batch: &Batch);
}

impl MemoryDisk {
    /// Shows every batch from here on to `watch`.
    pub fn watch(&self, watch: Arc<dyn CommitWatch>) {
        self.lock().watch = Some(watch);
    }

    /// Throws away what was not written, as the end of a process does: what was answered stays, also where it
    /// was not flushed.
    pub fn end_process(&self) {
        self.lock().buffered.clear();
        self.crash();
    }

    /// Lets the next commit end as `fault` says.
    pub fn inject(&self, fault: Fault) {
        self.lock().fault = Some(fault);
    }

    /// Holds every commit between writing and flushing, until [`MemoryDisk::resume`].
    pub fn stall(&self) {
        self.lock().stalled = true;
    }

    /// Flushes again.
    pub fn resume(&self) {
        self.lock().stalled = false;
        self.1.notify_waiters();
    }

    /// Changes the bytes of an entity's stored state.
    pub fn damage(&self, id: &EntityId, change: impl FnOnce(&mut Vec<u8>)) {
        self.damage_row(Table::States, tables::states::key(id), change);
    }

    /// Changes the bytes of a row.
    pub fn damage_row(&self, table: Table, key: &[u8], change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.lock();
        let key = (table, key.to_vec());
        if let Some(bytes) = disk.live.get_mut(&key) {
            change(bytes);
            let bytes = bytes.clone();
            disk.durable.insert(key, bytes);
        }
    }

    /// Every row of a table, for audits.
    pub fn rows(&self, table: Table) -> Vec<(Vec<u8>, Vec<u8>)> {
        let disk = self.lock();
        let from = disk.live.range((table, Vec::new())..);
        let in_table = from.take_while(|((of, _), _)| *of == table);
        in_table.map(|((_, key), value)| (key.clone(), value.clone())).collect()
    }

    /// Up to `limit` rows of a table with `from <= key < to`.
    #[cfg(feature = "testing")]
    pub(crate) fn rows_between(
        &self,
        table: Table,
        (from, to): (&[u8], &[u8]),
        limit: usize,
    ) -> Vec<(Vec<u8>, Vec<u8>)> {
        let disk = self.lock();
        let range = disk.live.range((table, from.to_vec())..(table, to.to_vec()));
        range.take(limit).map(|((_, key), value)| (key.clone(), value.clone())).collect()
    }

    /// A way to this disk as [`MemoryDisk::share`] gives, where each direction takes up to `longest`, as
    /// `seed` decides.
    pub fn share_slowly(&self, seed: u64, longest: Duration) -> MemoryStore {
        self.shared(Some((longest, Mutex::new(Entropy::seeded(seed)))))
    }

    /// Evicts the member of this name, though its lease has not run out, which it learns only when it
    /// asks.
    pub fn steal_lease(&self, name: &str) {
        let mut disk = self.lock();
        let found = disk.cluster.incarnation_of(name);
        if let Some(incarnation) = found {
            disk.cluster.remove(incarnation, false);
        }
    }
}

impl MemoryStore {
    /// Cuts or heals the way to the disk.
    pub fn set_reach(&self, reach: Reach) {
        self.way.reach.store(reach as u8, Ordering::SeqCst);
        self.way.changed.notify_waiters();
    }
}
