//! A store in memory with two images, a live and a durable one, so that a crash can be modelled.
//!
//! A commit changes the live image and, when it is flushed, the durable one. [`MemoryDisk::crash`]
//! throws the live image away, and the next opening sees the durable one, under a new incarnation.
//!
//! [`MemoryDisk::share`] gives many nodes a way to one disk, each of which can be slow or cut off.

#[cfg(any(test, feature = "testing"))]
mod faults;
mod shared;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use stead_entities::{BoxFuture, Timestamp};
use tokio::sync::Notify;

use self::shared::{Cluster, Way};
#[cfg(any(test, feature = "testing"))]
pub use self::{faults::CommitWatch, shared::Reach};
use super::{
    Batch, CommitOutcome, Fence, Haste, Horizons, Opened, Read, ReadError, ReadResult, Store,
    batch::each_change,
    record,
    rows::{EachRow, Limit, Rows},
    tables::meta::{LaneRecord, Settings},
    tables::{self, Table},
};
use crate::{clock, sabotage::Sabotage};

type Key = (Table, Vec<u8>);
type Image = BTreeMap<Key, Vec<u8>>;

/// The fault of the next commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(any(test, feature = "testing")),
    allow(dead_code, unreachable_pub, reason = "injected by tests only")
)]
pub enum Fault {
    /// Nothing is written; answered unavailable.
    Refuse,
    /// Nothing is written; answered full.
    Full,
    /// Nothing is written; answered unknown.
    LoseAndPoison,
    /// All is written; answered unknown.
    KeepAndPoison,
    /// All is written, after so long.
    Delay(Duration),
    /// The process ends, before the batch is written or behind it: nothing is answered any more.
    Stop {
        /// Whether the batch is durable.
        is_written: bool,
    },
}

/// The disk that a [`MemoryStore`] is opened on. It outlives the store.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Disk>>, Arc<Notify>);

#[derive(Debug, Default)]
struct Disk {
    live: Image,
    durable: Image,
    /// The keys in which the two images may differ.
    unflushed: Vec<Key>,
    /// The former values of what the durable image has of batches that were answered before they were
    /// flushed: a power cut takes them back.
    buffered: Vec<(Key, Option<Vec<u8>>)>,
    incarnation: u64,
    fault: Option<Fault>,
    #[cfg(any(test, feature = "testing"))]
    watch: Option<Arc<dyn CommitWatch>>,
    commits: u64,
    stalled: bool,
    cluster: Cluster,
}

/// A store without a directory, for tests. It keeps nothing when its [`MemoryDisk`] is dropped.
/// Clones are the same store.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    disk: MemoryDisk,
    opened: Opened,
    poisoned: Arc<AtomicBool>,
    way: Arc<Way>,
}

/// How many partitions every disk has.
pub(crate) const PARTITIONS: u16 = 16;
/// The settings of every disk.
const SETTINGS: Settings = Settings { partitions: PARTITIONS, seed: (7, 11) };

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the disk under a new incarnation, which fences every earlier store on it.
    ///
    /// # Errors
    /// Where a stored row is damaged.
    pub fn open(&self) -> ReadResult<MemoryStore> {
        let mut disk = self.lock();
        disk.incarnation += 1;
        let incarnation = disk.incarnation;
        disk.cluster.close();
        let lane = disk.live.get(&(Table::Meta, tables::meta::LANE.to_vec()));
        let lane: Option<LaneRecord> = lane.map(|bytes| record::decode(bytes)).transpose()?;
        if let Some(lane) = &lane {
            // Whatever ends this incarnation, short of a drain, is not clean.
            let claim = record::encode(&LaneRecord { is_clean: false, ..lane.clone() });
            disk.apply(vec![((Table::Meta, tables::meta::LANE.to_vec()), Some(claim))]);
            disk.flush();
        }
        let time = lane.as_ref().map_or(Timestamp::default(), |lane| lane.time);
        let opened = Opened {
            settings: SETTINGS,
            incarnation,
            last_batch: lane.as_ref().map_or(0, |lane| lane.number),
            time,
            numbers_ahead: Duration::ZERO,
            was_unclean: lane.is_some_and(|lane| !lane.is_clean),
            running: Vec::new(),
        };
        drop(disk);
        let way = Arc::default();
        Ok(MemoryStore { disk: self.clone(), opened, poisoned: Arc::default(), way })
    }

    /// Throws away what was not flushed, as a power cut does.
    pub fn crash(&self) {
        let mut disk = self.lock();
        for (key, former) in std::mem::take(&mut disk.buffered).into_iter().rev() {
            match former {
                Some(value) => drop(disk.durable.insert(key, value)),
                None => drop(disk.durable.remove(&key)),
            }
        }
        disk.live = disk.durable.clone();
        disk.unflushed.clear();
        disk.fault = None;
        disk.stalled = false;
    }

    /// How many batches were committed.
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    /// Makes the live image durable, a batch with it, unless flushes are held.
    fn flush(&self, batch: &Batch) -> bool {
        let mut disk = self.lock();
        if !disk.stalled {
            match batch.is_buffered {
                true => disk.buffer(),
                false => disk.flush(),
            }
            disk.tell(batch);
        }
        !disk.stalled
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryStore {
    /// The fault that befalls a batch, if its turn has come.
    fn fault_of(&self, batch: &Batch) -> Option<Fault> {
        let mut disk = self.disk.lock();
        let is_shared = !self.way.is_plain();
        let is_next = disk.is_next(&batch.fence, is_shared);
        (is_next && !self.poisoned.load(Ordering::SeqCst)).then(|| disk.next_fault(batch))?
    }

    /// Writes the live image, or says why not.
    fn write(&self, batch: &Batch, fault: Option<Fault>) -> Option<CommitOutcome> {
        let mut disk = self.disk.lock();
        if self.poisoned.load(Ordering::SeqCst) {
            return Some(CommitOutcome::Unknown("poisoned".into()));
        }
        let is_shared = !self.way.is_plain();
        if !disk.is_next(&batch.fence, is_shared) {
            return Some(CommitOutcome::Fenced);
        }
        match fault {
            Some(Fault::Refuse) => return Some(CommitOutcome::Unavailable("injected".into())),
            Some(Fault::Full) => return Some(CommitOutcome::Full("injected".into())),
            Some(Fault::LoseAndPoison) => return Some(self.poison()),
            Some(Fault::KeepAndPoison | Fault::Delay(_) | Fault::Stop { .. }) | None => {}
        }
        let mut changes = Vec::new();
        let gathered = each_change(batch, |change| {
            let key = (change.table, change.key.to_vec());
            if !change.before.is(disk.live.get(&key).map(Vec::as_slice))
                && !Sabotage::ConsumedRowNotNeeded.is_on()
            {
                return Err(format!("a row is not what it was read as: {:?}", change.key));
            }
            if let Some(to) = change.to {
                let ended = disk.live.range(key..(change.table, to.to_vec()));
                changes.extend(ended.map(|(key, _)| (key.clone(), None)));
                return Ok(());
            }
            if is_shared && key.1 == tables::meta::LANE {
                // It is a member's, and kept with the members.
                return Ok(());
            }
            changes.push((key, change.value.map(<[u8]>::to_vec)));
            Ok(())
        });
        let gathered = gathered.and_then(|()| match is_shared {
            true => disk.move_lane(batch),
            false => Ok(()),
        });
        if let Err(reason) = gathered {
            return Some(CommitOutcome::Unavailable(reason));
        }
        disk.apply(changes);
        disk.commits += 1;
        if fault == Some(Fault::KeepAndPoison) {
            disk.flush();
            disk.tell(batch);
            return Some(self.poison());
        }
        None
    }

    fn poison(&self) -> CommitOutcome {
        self.poisoned.store(true, Ordering::SeqCst);
        CommitOutcome::Unknown("injected".into())
    }
}

impl Disk {
    /// Whether a batch is the next of its lane.
    fn is_next(&self, fence: &Fence, is_shared: bool) -> bool {
        if is_shared {
            return self.cluster.is_next(fence);
        }
        let last = self.live.get(&(Table::Meta, tables::meta::LANE.to_vec()));
        let last = last.and_then(|bytes| record::decode::<LaneRecord>(bytes).ok());
        let next = last.map_or(0, |lane| lane.number) + 1;
        fence.incarnation == self.incarnation && fence.number == next
    }

    fn next_fault(&mut self, batch: &Batch) -> Option<Fault> {
        #[cfg(any(test, feature = "testing"))]
        if let Some(watch) = &self.watch {
            let decided = watch.fault(batch);
            return self.fault.take().or(decided);
        }
        let _of_every_batch = batch;
        self.fault.take()
    }

    /// Tells whoever watches that a batch is durable.
    fn tell(&self, batch: &Batch) {
        #[cfg(any(test, feature = "testing"))]
        if let Some(watch) = &self.watch {
            watch.committed(batch);
        }
        let _to_nobody = batch;
    }

    fn apply(&mut self, changes: Vec<(Key, Option<Vec<u8>>)>) {
        for (key, value) in changes {
            self.unflushed.push(key.clone());
            match value {
                Some(value) => drop(self.live.insert(key, value)),
                None => drop(self.live.remove(&key)),
            }
        }
    }

    /// Shows what was written, which a power cut still takes.
    fn buffer(&mut self) {
        let keys = self.unflushed.iter();
        let former = keys.map(|key| (key.clone(), self.durable.get(key).cloned()));
        let former: Vec<_> = former.collect();
        self.buffered.extend(former);
        let buffered = std::mem::take(&mut self.buffered);
        self.flush();
        self.buffered = buffered;
    }

    fn flush(&mut self) {
        self.buffered.clear();
        for key in self.unflushed.drain(..) {
            match self.live.get(&key) {
                Some(value) => drop(self.durable.insert(key, value.clone())),
                None => drop(self.durable.remove(&key)),
            }
        }
    }
}

/// Reads show what is flushed, as those of the other stores do.
impl Rows for Disk {
    fn get(&self, table: Table, key: &[u8]) -> ReadResult<Option<Vec<u8>>> {
        Ok(self.durable.get(&(table, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: Limit,
        each: &mut EachRow<'_>,
    ) -> ReadResult<()> {
        let range = (table, from.to_vec())..(table, to.max(from).to_vec());
        let mut rows = self.durable.range(range);
        let mut next = || if limit.descends { rows.next_back() } else { rows.next() };
        while let Some(((_, key), value)) = next() {
            if !each(key, value)? {
                break;
            }
        }
        Ok(())
    }
}

impl Store for MemoryStore {
    fn opened(&self) -> &Opened {
        &self.opened
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, CommitOutcome> {
        Box::pin(async move {
            if let Err(why) = self.way.there().await {
                return self.settle(&batch.fence, why).await;
            }
            let fault = self.fault_of(&batch);
            match fault {
                Some(Fault::Delay(length)) => clock::sleep(length).await,
                Some(Fault::Stop { is_written: false }) => std::future::pending().await,
                _ => {}
            }
            let refused = self.write(&batch, fault);
            if let Err(why) = self.way.back().await {
                return self.settle(&batch.fence, why).await;
            }
            if let Some(refused) = refused {
                return refused;
            }
            loop {
                let mut resumed = std::pin::pin!(self.disk.1.notified());
                resumed.as_mut().enable();
                if self.disk.flush(&batch) {
                    if fault == Some(Fault::Stop { is_written: true }) {
                        std::future::pending().await
                    }
                    return CommitOutcome::Committed;
                }
                resumed.await;
            }
        })
    }

    fn flush(&self) -> BoxFuture<'_, CommitOutcome> {
        self.disk.lock().buffered.clear();
        Box::pin(std::future::ready(CommitOutcome::Committed))
    }

    fn has_room(&self) -> bool {
        true
    }

    fn maintain(&self, _before: Horizons) {}

    fn read_view(&self, _haste: Haste, read: Read) -> BoxFuture<'static, ReadResult<()>> {
        if self.way.is_plain() {
            read(&*self.disk.lock());
            return Box::pin(std::future::ready(Ok(())));
        }
        let (way, disk) = (self.way.clone(), self.disk.clone());
        Box::pin(async move {
            way.read_there().await.map_err(ReadError::Unavailable)?;
            read(&*disk.lock());
            way.back().await.map_err(ReadError::Unavailable)
        })
    }

    fn get_cached(&self, table: Table, key: &[u8]) -> Option<ReadResult<Option<Vec<u8>>>> {
        self.way.is_plain().then(|| self.disk.lock().get(table, key))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
