//! The disk as a store that many nodes share, in one process: for tests of clusters.
//!
//! Its clock is the monotonic one, so that a test that pauses it moves leases too. Each node's way
//! to the disk can be slow by chance, which a seed decides, and can be cut in either direction.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use stead_entities::{BoxFuture, Timestamp};
use tokio::sync::Notify;

use super::{Disk, MemoryDisk, MemoryStore, SETTINGS};
use crate::{
    clock,
    entropy::Entropy,
    sabotage::Sabotage,
    store::{
        Batch, CommitOutcome, Fence, Opened, ReadError, ReadResult, Write,
        shared::{
            ClusterState, Joined, Member, MemberError, MemberResult, Ownership, Registration,
            Renewed, SharedStore,
        },
        tables::states::StateRecord,
        tables::{self, Record as _, Table},
    },
};

/// The beginning of the disk's clock: the first of November 2023.
const BEGINNING: i64 = 1_698_796_800_000_000;

/// How a node reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(any(test, feature = "testing")),
    allow(dead_code, unreachable_pub, reason = "set by tests only")
)]
#[repr(u8)]
pub enum Reach {
    /// Both ways.
    Open,
    /// Requests are lost.
    RequestsLost,
    /// Requests are carried out, but their answers are lost.
    ResponsesLost,
    /// Both ways, but every other read of rows fails, as chance has it.
    ReadsLost,
}

/// One node's way to the disk.
#[derive(Debug, Default)]
pub(super) struct Way {
    pub(super) reach: AtomicU8,
    pub(super) changed: Notify,
    /// The longest that one direction takes, and what decides how long it does.
    slow: Option<(Duration, Mutex<Entropy>)>,
    is_shared: AtomicBool,
}

impl Way {
    pub(super) fn is_plain(&self) -> bool {
        !self.is_shared.load(Ordering::Relaxed)
    }

    async fn pass(&self, shut: Reach) -> Result<(), String> {
        if self.is_plain() {
            return Ok(());
        }
        if let Some((longest, part)) = self.chance(1_000) {
            clock::sleep(longest.mul_f64(part as f64 / 1_000.0)).await;
        }
        match self.reach() == shut as u8 {
            true => Err("cut off".into()),
            false => Ok(()),
        }
    }

    /// The longest way, and a number below `bound`, where chance decides how long it is.
    fn chance(&self, bound: u64) -> Option<(Duration, u64)> {
        let (longest, entropy) = self.slow.as_ref()?;
        let mut entropy = entropy.lock().unwrap_or_else(PoisonError::into_inner);
        Some((*longest, entropy.next() % bound))
    }

    fn reach(&self) -> u8 {
        self.reach.load(Ordering::SeqCst)
    }

    pub(super) async fn there(&self) -> Result<(), String> {
        self.pass(Reach::RequestsLost).await
    }

    /// Brings a read there.
    pub(super) async fn read_there(&self) -> Result<(), String> {
        self.there().await?;
        let is_lost = self.reach() == Reach::ReadsLost as u8
            && self.chance(2).is_none_or(|(_, number)| number == 0);
        if is_lost { Err("the read was lost".into()) } else { Ok(()) }
    }

    pub(super) async fn back(&self) -> Result<(), String> {
        self.pass(Reach::ResponsesLost).await
    }

    async fn healed(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if ![Reach::RequestsLost as u8, Reach::ResponsesLost as u8].contains(&self.reach()) {
                return;
            }
            changed.await;
        }
    }
}

/// Members, owners and lanes.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    started: Option<Instant>,
    membership: u64,
    nodes: Vec<Node>,
    /// The nodes that were removed last.
    #[cfg(feature = "sabotage")]
    gone: Vec<Node>,
    partitions: Vec<Ownership>,
    /// The last batch of each open lane, by incarnation.
    lanes: BTreeMap<u64, u64>,
}

#[derive(Debug, Clone)]
struct Node {
    registration: Registration,
    incarnation: u64,
    expires: Instant,
    is_leaving: bool,
}

impl Cluster {
    /// Fences everybody.
    pub(super) fn close(&mut self) {
        *self = Self { started: self.started, membership: self.membership + 1, ..Self::default() };
    }

    pub(super) fn is_next(&self, fence: &Fence) -> bool {
        let last = self.lanes.get(&fence.incarnation).copied();
        last == Some(fence.number.wrapping_sub(1)) || Sabotage::AdvisoryFence.is_on()
    }

    /// The incarnation of the member of a name.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn incarnation_of(&self, name: &str) -> Option<u64> {
        let found = self.nodes.iter().find(|node| &*node.registration.name == name);
        found.map(|node| node.incarnation)
    }

    fn member(&mut self, incarnation: u64) -> MemberResult<&mut Node> {
        let found = self.nodes.iter_mut().find(|node| node.incarnation == incarnation);
        found.ok_or(MemberError::Lost)
    }

    /// A renewal that inserts.
    #[cfg(feature = "sabotage")]
    fn take_back(&mut self, incarnation: u64) {
        if let Some(place) = self.gone.iter().position(|node| node.incarnation == incarnation) {
            let node = self.gone.remove(place);
            self.nodes.push(node);
        }
    }

    /// Removes a member, and frees what it owns.
    pub(super) fn remove(&mut self, incarnation: u64, is_clean: bool) {
        self.lanes.remove(&incarnation);
        #[cfg(feature = "sabotage")]
        self.gone.extend(self.nodes.iter().filter(|it| it.incarnation == incarnation).cloned());
        self.nodes.retain(|node| node.incarnation != incarnation);
        for partition in &mut self.partitions {
            if partition.owner == Some(incarnation) {
                let epoch = partition.epoch + 1;
                *partition = Ownership { owner: None, epoch, was_unclean: !is_clean };
            }
        }
        self.membership += 1;
    }

    fn time(&mut self) -> Timestamp {
        let started = *self.started.get_or_insert_with(clock::monotonic);
        let elapsed = i64::try_from(clock::since(started).as_micros()).unwrap_or(i64::MAX);
        Timestamp::from_micros(BEGINNING.saturating_add(elapsed))
    }
}

impl Disk {
    /// Moves the lane of a node that joined, and gives up the partitions that the batch names; says
    /// why a batch that does not follow what is stored cannot be taken.
    pub(super) fn move_lane(&mut self, batch: &Batch) -> Result<(), String> {
        let incarnation = batch.fence.incarnation;
        for write in &batch.writes {
            match write {
                Write::PutState(id, state) => {
                    let key = (Table::States, tables::states::key(id).to_vec());
                    let stored = self.live.get(&key).map(|bytes| StateRecord::decode(bytes));
                    let stored: Option<StateRecord> =
                        stored.transpose().map_err(|e| e.to_string())?;
                    let follows = match &stored {
                        Some(stored) if stored.head.generation == state.head.generation => {
                            state.head.follows == stored.head.revision
                        }
                        Some(stored) => {
                            state.head.generation > stored.head.generation
                                && state.head.follows == 0
                        }
                        None => state.head.follows == 0,
                    };
                    if !follows && !Sabotage::AdvisoryFence.is_on() {
                        return Err(format!("{id} does not follow what is stored"));
                    }
                }
                Write::FreePartition(partition) => {
                    let owned = self.cluster.partitions.get(usize::from(*partition));
                    if owned.is_none_or(|owned| owned.owner != Some(incarnation)) {
                        return Err(format!("partition {partition} is not the writer's"));
                    }
                }
                _ => {}
            }
        }
        for write in &batch.writes {
            if let Write::FreePartition(partition) = write
                && let Some(owned) = self.cluster.partitions.get_mut(usize::from(*partition))
            {
                *owned = Ownership { owner: None, epoch: owned.epoch + 1, was_unclean: false };
            }
        }
        self.cluster.lanes.insert(incarnation, batch.fence.number);
        Ok(())
    }
}

impl MemoryDisk {
    /// A way to this disk for a node that shares it.
    pub fn share(&self) -> MemoryStore {
        self.shared(None)
    }

    pub(super) fn shared(&self, slow: Option<(Duration, Mutex<Entropy>)>) -> MemoryStore {
        let mut disk = self.lock();
        let time = disk.cluster.time();
        disk.cluster.partitions.resize(usize::from(SETTINGS.partitions), Ownership::default());
        drop(disk);
        let way = Arc::new(Way { slow, is_shared: true.into(), ..Way::default() });
        let opened = Opened::connected(SETTINGS, time);
        MemoryStore { disk: self.clone(), opened, poisoned: Arc::default(), way }
    }
}

impl MemoryStore {
    /// Learns how a batch ended whose answer did not arrive, once the disk can be reached again.
    pub(super) async fn settle(&self, fence: &Fence, _why: String) -> CommitOutcome {
        self.way.healed().await;
        match self.disk.lock().cluster.lanes.get(&fence.incarnation) {
            None => CommitOutcome::Fenced,
            Some(number) if *number >= fence.number => CommitOutcome::Committed,
            Some(_) => CommitOutcome::Unavailable("the batch was not committed".into()),
        }
    }

    /// Does something with the cluster, if the disk can be reached.
    fn with<'s, T: Send + 's>(
        &'s self,
        change: impl FnOnce(&mut Disk) -> MemberResult<T> + Send + 's,
    ) -> BoxFuture<'s, MemberResult<T>> {
        Box::pin(async move {
            self.way.there().await.map_err(MemberError::Unavailable)?;
            let done = change(&mut self.disk.lock());
            self.way.back().await.map_err(MemberError::Unavailable)?;
            done
        })
    }
}

impl SharedStore for MemoryStore {
    fn join(&self, node: Registration) -> BoxFuture<'_, MemberResult<Joined>> {
        self.with(move |disk| {
            let now = clock::monotonic();
            let others = disk.cluster.nodes.iter().filter(|known| known.expires > now);
            let stranger =
                others.map(|known| &known.registration).find(|known| known.secret != node.secret);
            if let Some(stranger) = stranger {
                return Err(MemberError::Stranger(stranger.name.clone()));
            }
            let mut holders = disk.cluster.nodes.iter();
            let holder = holders.find(|known| known.registration.name == node.name);
            if let Some(holder) = holder {
                let (incarnation, left) =
                    (holder.incarnation, holder.expires.saturating_duration_since(now));
                if !left.is_zero() {
                    return Err(MemberError::Held { incarnation, left });
                }
                disk.cluster.remove(incarnation, false);
            }
            disk.incarnation += 1;
            let (incarnation, expires) = (disk.incarnation, now + node.lease);
            let joining = Node { registration: node, incarnation, expires, is_leaving: false };
            disk.cluster.nodes.push(joining);
            disk.cluster.lanes.insert(incarnation, 0);
            disk.cluster.membership += 1;
            Ok(Joined { incarnation, time: disk.cluster.time() })
        })
    }

    fn renew(&self, incarnation: u64) -> BoxFuture<'_, MemberResult<Renewed>> {
        self.with(move |disk| {
            let now = clock::monotonic();
            #[cfg(feature = "sabotage")]
            if Sabotage::RenewalThatInserts.is_on() {
                disk.cluster.take_back(incarnation);
            }
            let node = disk.cluster.member(incarnation)?;
            if node.expires <= now && !Sabotage::RenewalThatInserts.is_on() {
                return Err(MemberError::Lost);
            }
            node.expires = now + node.registration.lease;
            let membership = disk.cluster.membership;
            let ownership = disk.cluster.partitions.iter().map(|it| it.epoch).sum();
            let has_expired = disk.cluster.nodes.iter().any(|node| node.expires <= now);
            Ok(Renewed { membership, ownership, has_expired, time: disk.cluster.time() })
        })
    }

    fn view(&self) -> BoxFuture<'_, ReadResult<ClusterState>> {
        let viewing = self.with(|disk| {
            let now = clock::monotonic();
            let members = disk.cluster.nodes.iter().map(|node| Member {
                name: node.registration.name.clone(),
                incarnation: node.incarnation,
                address: node.registration.address.clone(),
                weight: node.registration.weight,
                types: node.registration.types.clone(),
                is_leaving: node.is_leaving,
                lease_left: node.expires.saturating_duration_since(now),
            });
            let mut members: Vec<_> = members.collect();
            members.sort_by(|one, other| one.name.cmp(&other.name));
            let partitions = disk.cluster.partitions.clone();
            Ok(ClusterState { membership: disk.cluster.membership, members, partitions })
        });
        Box::pin(
            async move { viewing.await.map_err(|error| ReadError::Unavailable(error.to_string())) },
        )
    }

    fn evict(&self, incarnation: u64) -> BoxFuture<'_, MemberResult<bool>> {
        self.with(move |disk| {
            let now = clock::monotonic();
            let Ok(node) = disk.cluster.member(incarnation) else { return Ok(false) };
            if node.expires > now {
                return Ok(false);
            }
            disk.cluster.remove(incarnation, false);
            Ok(true)
        })
    }

    fn acquire(&self, incarnation: u64, partitions: Vec<u16>) -> BoxFuture<'_, MemberResult<()>> {
        self.with(move |disk| {
            disk.cluster.member(incarnation)?;
            for partition in partitions {
                if let Some(free) = disk.cluster.partitions.get_mut(usize::from(partition))
                    && free.owner.is_none()
                {
                    free.owner = Some(incarnation);
                    free.epoch += 1;
                }
            }
            Ok(())
        })
    }

    fn announce_leave(&self, incarnation: u64) -> BoxFuture<'_, MemberResult<()>> {
        self.with(move |disk| {
            disk.cluster.member(incarnation)?.is_leaving = true;
            disk.cluster.membership += 1;
            Ok(())
        })
    }

    fn leave(&self, incarnation: u64) -> BoxFuture<'_, MemberResult<()>> {
        self.with(move |disk| {
            disk.cluster.member(incarnation)?;
            disk.cluster.remove(incarnation, false);
            Ok(())
        })
    }
}
