//! Ownership: looking at who owns what, taking what is free, and handing over what is due to others.
//!
//! A node hosts what the store says it owns, never more: each look at the store settles what is
//! hosted, so it does not matter whether the answer to an earlier request arrived. What must never
//! happen: a partition that was given up is hosted again on an older look, which epochs prevent.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use stead_entities::{Error, ErrorKind};
use tokio::{sync::oneshot, task::JoinSet};

use super::{
    cluster::{Cluster, Stop},
    member::Ended,
    plan::Seen,
};
use crate::{
    clock::{self, deadline_after, monotonic},
    host::{Host, Session, indexes},
    partition::{
        Handle,
        message::{CommitRequest, CommitSender, Input},
        reply::ReplySender,
    },
    store::{
        CommitOutcome,
        shared::{ClusterState, MemberError, MemberResult, Ownership},
    },
};

/// The most partitions that a node hands over at one time.
const MOVES_MAX: usize = 16;
/// The shortest time between two looks at the store.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// The time between two looks while something moves.
const MOVING_PAUSE: Duration = Duration::from_millis(50);
/// The time between two looks while the store does not answer.
const UNSEEN_PAUSE: Duration = Duration::from_millis(500);
/// The time between two looks, in leases, while nothing is known to have changed: each renewal tells.
const QUIET_LEASES: u32 = 10;
/// How long a look may take.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);
/// The wait before a partition that the store did not free is given up again.
const FREE_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Owner {
    cluster: Arc<Cluster>,
    node: Weak<Host>,
    session: Arc<Session>,
    /// The epochs in which partitions were hosted last, and given up last.
    hosted: Vec<u64>,
    given: Vec<u64>,
    moving: BTreeSet<u16>,
    moves: JoinSet<u16>,
    has_announced: bool,
    leave_by: Option<Instant>,
    looked_at: Option<Instant>,
}

impl Owner {
    pub(super) fn new(cluster: Arc<Cluster>, node: Weak<Host>, session: Arc<Session>) -> Self {
        let partitions = usize::from(cluster.store.opened().settings.partitions);
        Self {
            cluster,
            node,
            session,
            hosted: vec![0; partitions],
            given: vec![0; partitions],
            moving: BTreeSet::new(),
            moves: JoinSet::new(),
            has_announced: false,
            leave_by: None,
            looked_at: None,
        }
    }

    /// Looks and acts until the node has left or is gone.
    pub(super) async fn run(&mut self) -> Ended {
        loop {
            let stop = *self.cluster.stop.borrow();
            if stop == Stop::Abort {
                return Ended::Gone;
            }
            let pause = match self.act(stop == Stop::Leave).await {
                Ok(Next::Wait(pause)) => pause,
                Ok(Next::Again) => Duration::ZERO,
                Ok(Next::Left) => return Ended::Left,
                Ok(Next::Gone) => return Ended::Gone,
                // Whoever finds it gone has its partitions, or the answer to leaving got lost.
                Err(MemberError::Lost) if stop == Stop::Leave => return Ended::Left,
                Err(MemberError::Lost) => return Ended::Lost,
                Err(error) => {
                    tracing::warn!(%error, "cannot see who owns what");
                    UNSEEN_PAUSE
                }
            };
            self.wait(pause).await;
        }
    }

    async fn wait(&mut self, pause: Duration) {
        let mut stop = self.cluster.stop.subscribe();
        let news = async {
            tokio::select! {
                biased;
                Some(moved) = self.moves.join_next() => {
                    let mut moved = Some(moved);
                    while let Some(Ok(partition)) = moved {
                        self.moving.remove(&partition);
                        moved = self.moves.try_join_next();
                    }
                }
                () = self.cluster.look.notified() => {}
                _changed = stop.changed() => {}
            }
        };
        let _nothing_new = clock::within(pause, news).await;
        let since = self.looked_at.map_or(LOOK_PAUSE, clock::since);
        clock::sleep(LOOK_PAUSE.saturating_sub(since)).await;
    }

    async fn act(&mut self, leaves: bool) -> MemberResult<Next> {
        let (cluster, number) = (self.cluster.clone(), self.session.incarnation.number);
        if leaves && !self.has_announced {
            cluster.store.announce_leave(number).await?;
            self.has_announced = true;
        }
        self.looked_at = Some(monotonic());
        let looking = clock::within(LOOK_DEADLINE, cluster.store.view()).await;
        let unreadable = |why: String| MemberError::Unavailable(why);
        let view = looking.ok_or_else(|| unreadable("no answer".into()))?;
        let view = view.map_err(|error| unreadable(error.to_string()))?;
        if let Some(dead) = expired(&view, number) {
            // It waits for the batch in flight of the dead; renewing the lease goes on meanwhile.
            let was_evicted = cluster.store.evict(dead).await?;
            tracing::info!(incarnation = dead, was_evicted, "the lease of a node has run out");
            return Ok(Next::Again);
        }
        let Some(host) = self.node.upgrade() else { return Ok(Next::Gone) };
        let before = cluster.seen();
        let seen = Seen::new(view, cluster.store.opened().settings.seed, &before);
        self.host(&host, &seen).await?;
        rescan_after(&host, &before.view, &seen.view);
        let plan = seen.plan(number);
        let owns = seen.view.partitions.iter().filter(|it| it.owner == Some(number)).count();
        cluster.show(seen.clone());
        if !plan.acquire.is_empty() && !leaves {
            cluster.store.acquire(number, plan.acquire).await?;
            return Ok(Next::Again);
        }
        self.give(&host, &seen, &plan.give, leaves);
        if leaves && owns == 0 && self.moving.is_empty() && (seen.is_settled() || self.is_late()) {
            cluster.store.leave(number).await?;
            return Ok(Next::Left);
        }
        let is_awaited = cluster.is_awaited.swap(false, Ordering::SeqCst);
        let is_moving = plan.is_waiting || !self.moving.is_empty() || leaves || is_awaited;
        let lease = cluster.registration.lease;
        Ok(Next::Wait(if is_moving { MOVING_PAUSE } else { QUIET_LEASES * lease }))
    }

    /// Begins to host what this incarnation has come to own.
    async fn host(&mut self, host: &Host, seen: &Seen) -> MemberResult<()> {
        let number = self.session.incarnation.number;
        let is_new = |(owned, hosted): (&Ownership, &u64)| {
            owned.owner == Some(number) && owned.epoch > *hosted
        };
        if !seen.view.partitions.iter().zip(&self.hosted).any(is_new) {
            return Ok(());
        }
        // What was declared before the partitions were taken is there.
        let foreign = indexes::foreign(host).await;
        let foreign = foreign.map_err(|error| MemberError::Unavailable(error.to_string()))?.into();
        let mut has_new = false;
        for (partition, owned) in (0_u16..).zip(&seen.view.partitions) {
            let hosted = &mut self.hosted[usize::from(partition)];
            if owned.owner != Some(number) || owned.epoch <= *hosted {
                continue;
            }
            if *hosted > self.given[usize::from(partition)] {
                // It was lost and taken back between two looks.
                let moved = Error::new(ErrorKind::Fenced, "the partition has moved");
                host.handle(partition).dismiss(moved);
            }
            *hosted = owned.epoch;
            if !std::mem::replace(&mut has_new, true) {
                // What its entities sent through the node before may not have arrived.
                self.session.incarnation.link.fetch_add(1, Ordering::SeqCst);
            }
            host.begin_hosting(&self.session, (partition, owned.was_unclean), &foreign);
        }
        host.has_hosted.notify_one();
        Ok(())
    }

    /// Whether the deadline for leaving has passed.
    fn is_late(&self) -> bool {
        self.leave_by.is_some_and(|by| monotonic() >= by)
    }

    /// Hands over, a few at a time; all that is left, once the deadline for leaving has passed.
    fn give(&mut self, host: &Host, seen: &Seen, due: &[u16], leaves: bool) {
        if leaves && self.leave_by.is_none() {
            self.leave_by = Some(deadline_after(host.config().drain_deadline));
        }
        let is_late = self.is_late();
        for partition in due {
            let epoch = seen.view.partitions[usize::from(*partition)].epoch;
            let given = &mut self.given[usize::from(*partition)];
            let is_mine = self.hosted[usize::from(*partition)] == epoch && *given < epoch;
            if !is_mine || (self.moving.len() >= MOVES_MAX && !is_late) {
                continue;
            }
            *given = epoch;
            self.moving.insert(*partition);
            let deadline = if is_late { Duration::ZERO } else { self.cluster.handoff_deadline };
            let handle = host.handle(*partition).clone();
            let committer = self.session.committer.clone();
            self.moves.spawn(hand_over(*partition, handle, committer, deadline));
        }
    }
}

/// The next step of the loop.
enum Next {
    Again,
    Wait(Duration),
    Left,
    Gone,
}

/// Another member whose lease has run out.
fn expired(view: &ClusterState, number: u64) -> Option<u64> {
    let mut others = view.members.iter().filter(|member| member.incarnation != number);
    others.find(|member| member.lease_left.is_zero()).map(|member| member.incarnation)
}

/// Has partitions read their rows again after a member is gone: it may have written some and told nobody.
fn rescan_after(host: &Host, before: &ClusterState, after: &ClusterState) {
    let is_gone = |incarnation| after.member(incarnation).is_none();
    if before.members.iter().any(|member| is_gone(member.incarnation)) {
        host.rescan();
    }
}

/// Stops intake, lets the running turns finish, and gives the partition up in the node's own lane. At
/// the deadline whatever still runs is dropped.
async fn hand_over(
    partition: u16,
    handle: Handle,
    committer: CommitSender,
    deadline: Duration,
) -> u16 {
    handle.close();
    let (reply_to, drained) = ReplySender::new(deadline, None);
    handle.push(Input::Drain(reply_to));
    let in_time = clock::within(deadline, drained).await;
    if in_time.is_none() {
        tracing::warn!(partition, "a partition that moves did not finish in time");
    }
    handle.dismiss(Error::new(ErrorKind::Fenced, "the partition has moved"));
    loop {
        let (done, freed) = oneshot::channel();
        if committer.send(CommitRequest::FreePartition(partition, done)).await.is_err() {
            return partition;
        }
        match freed.await {
            Ok(CommitOutcome::Unavailable(_) | CommitOutcome::Full(_)) => {
                clock::sleep(FREE_PAUSE).await;
            }
            Ok(CommitOutcome::Committed | CommitOutcome::Fenced | CommitOutcome::Unknown(_))
            | Err(_) => return partition,
        }
    }
}
