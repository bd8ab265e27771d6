//! The committer: the single write path. It gathers the finished write groups of all partitions into one
//! batch, has the store commit it, and only then releases what the write groups hold.
//!
//! This is where a signal becomes durable: [`Committer::commit`] awaits [`Store::commit`], and
//! nothing of a write group leaves before that answers `Committed`.
//!
//! - One batch is under way at a time; write groups that arrive meanwhile form the next one.
//! - A failed batch fails the term of every partition in it: queued write groups of that term
//!   are dropped, because they were built on what was not committed.
//! - A barrier is answered once everything sent before it is settled.
//! - After an outcome that is not known nothing is committed or answered as committed any more.
//! - What buffered entities alone have written is answered before it is flushed, and flushed with the next batch
//!   of others, or a little later.
//! - What was not flushed, because nothing of it writes, is told only while the node's lease holds.
//! - Giving up a partition ends its term: what its turns still bring is never committed.

mod changes;
mod incarnation;
mod merge;
mod subscribers;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use stead_entities::{Error, ErrorKind};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

pub(crate) use self::changes::ChangeLog;
pub use self::incarnation::Fatal;
pub(crate) use self::incarnation::{Incarnation, Outbound};
use self::merge::{Chains, Merge};
pub(crate) use self::subscribers::{Subscribers, Subscription, Watched};
use crate::{
    clock::{self, Clock},
    partition::{
        Handle,
        message::{CommitRequest, CommitSender, Input, WriteGroup},
        reply::{CallResult, ReplySender},
    },
    rules::Rule,
    sabotage::Sabotage,
    store::{Batch, CommitOutcome, Fence, Store, Write},
    threads::Threads,
};

/// How many write groups and barriers can wait for the committer.
const QUEUE_MAX: usize = 16_384;
/// The most write groups in one batch.
const GROUPS_PER_BATCH_MAX: usize = 1_024;
/// How long what a buffered entity has answered may stay unflushed.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// The most callers that the committer wakes itself.
const REPLIES_INLINE_MAX: usize = 8;

pub(crate) struct Committer {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    owner: Arc<str>,
    incarnation: Arc<Incarnation>,
    outbound: Option<Arc<dyn Outbound>>,
    partitions: Arc<[Handle]>,
    number: u64,
    /// Write groups of earlier terms are dropped.
    terms: Vec<u64>,
    /// The last term of each partition that began, and that was given up.
    begun: Vec<u64>,
    freed: Vec<u64>,
    /// The last version of each entity of the last batch.
    last: Chains,
    fatal: watch::Sender<Option<Fatal>>,
    has_failed: bool,
    is_fenced: bool,
    /// Tasks that tell callers.
    telling: JoinSet<()>,
    subscribers: Arc<Subscribers>,
    change_log: ChangeLog,
    /// When what was answered before it was flushed is flushed; none where there is none.
    flush_at: Option<Instant>,
}

/// A queue for write groups, before there are partitions to fill it.
pub(crate) fn queue() -> (CommitSender, mpsc::Receiver<CommitRequest>) {
    mpsc::channel(QUEUE_MAX)
}

impl Committer {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        owner: Arc<str>,
        incarnation: Arc<Incarnation>,
        (partitions, subscribers): (Arc<[Handle]>, Arc<Subscribers>),
        fatal: watch::Sender<Option<Fatal>>,
    ) -> Self {
        let number = incarnation.last_batch;
        let terms = vec![0; partitions.len()];
        let last = Chains::default();
        Self {
            store,
            clock,
            owner,
            incarnation,
            outbound: None,
            partitions,
            number,
            begun: terms.clone(),
            freed: terms.clone(),
            terms,
            last,
            fatal,
            has_failed: false,
            is_fenced: false,
            telling: JoinSet::new(),
            subscribers,
            change_log: ChangeLog::default(),
            flush_at: None,
        }
    }

    /// Hands what is for other nodes to `outbound`, and keeps a log of changes.
    pub(crate) fn with(mut self, outbound: Option<Arc<dyn Outbound>>, log: ChangeLog) -> Self {
        self.outbound = outbound;
        self.change_log = log;
        self
    }

    /// Serves on a thread of its own, which a flush may block, until it is closed or its queue ends.
    ///
    /// # Errors
    /// Where there is no thread.
    pub(crate) fn start(
        self,
        threads: &Threads,
        queue: mpsc::Receiver<CommitRequest>,
    ) -> std::io::Result<()> {
        threads.run("stead-committer", self.run(queue))
    }

    /// Serves until it is closed or its queue ends.
    async fn run(mut self, mut queue: mpsc::Receiver<CommitRequest>) {
        let mut gathered = Vec::new();
        while self.receive(&mut queue, &mut gathered).await > 0 {
            let mut groups = Vec::with_capacity(gathered.len());
            let mut freed = Vec::new();
            for work in gathered.drain(..) {
                match work {
                    CommitRequest::Group(group) => groups.push(group),
                    CommitRequest::FreePartition(partition, done) => freed.push((partition, done)),
                    CommitRequest::Barrier(partition, term) => {
                        self.commit(std::mem::take(&mut groups)).await;
                        self.free(std::mem::take(&mut freed)).await;
                        let index = usize::from(partition);
                        self.begun[index] = self.begun[index].max(term);
                        self.terms[index] = self.terms[index].max(term);
                        self.partitions[index].push(Input::Barrier(term));
                    }
                    CommitRequest::Close(done) => {
                        self.commit(std::mem::take(&mut groups)).await;
                        let batch = self.batch(Vec::new(), true);
                        let outcome = self.store.commit(batch).await;
                        while self.telling.join_next().await.is_some() {}
                        let _nobody_waits = done.send(outcome);
                        return;
                    }
                }
            }
            self.commit(groups).await;
            self.free(freed).await;
        }
    }

    /// Receives what is to be committed next. What was answered before it was flushed is flushed meanwhile.
    async fn receive(
        &mut self,
        queue: &mut mpsc::Receiver<CommitRequest>,
        gathered: &mut Vec<CommitRequest>,
    ) -> usize {
        while let Some(due) = self.flush_at {
            let left = due.saturating_duration_since(clock::monotonic());
            let receiving = queue.recv_many(gathered, GROUPS_PER_BATCH_MAX);
            if let Some(count) = clock::within(left, receiving).await {
                return count;
            }
            self.flush().await;
        }
        queue.recv_many(gathered, GROUPS_PER_BATCH_MAX).await
    }

    /// When a batch that is not flushed now is flushed at the latest.
    fn next_flush(&self) -> Instant {
        self.flush_at.unwrap_or_else(|| clock::deadline_after(FLUSH_INTERVAL))
    }

    async fn flush(&mut self) {
        self.flush_at = None;
        if self.has_failed || Sabotage::BufferedNeverFlushed.is_on() {
            return;
        }
        match self.store.flush().await {
            CommitOutcome::Committed => {}
            CommitOutcome::Unknown(why) => self.give_up(Fatal::Poisoned(why)),
            CommitOutcome::Fenced => self.give_up(Fatal::Fenced),
            CommitOutcome::Unavailable(why) | CommitOutcome::Full(why) => {
                tracing::warn!(why, "what was answered cannot be flushed yet");
                self.flush_at = Some(self.next_flush());
            }
        }
    }

    /// Gives up partitions. Whatever their turns still bring is dropped, also where the store did not
    /// take it.
    async fn free(&mut self, freed: Vec<(u16, oneshot::Sender<CommitOutcome>)>) {
        if freed.is_empty() {
            return;
        }
        for (partition, _) in &freed {
            let index = usize::from(*partition);
            self.freed[index] = self.begun[index];
            if !Sabotage::MovedPartitionCommits.is_on() {
                self.terms[index] = self.terms[index].max(self.begun[index] + 1);
            }
        }
        let writes = freed.iter().map(|(partition, _)| Write::FreePartition(*partition)).collect();
        let outcome = match self.has_failed {
            true => CommitOutcome::Fenced,
            false => self.store.commit(self.batch(writes, false)).await,
        };
        match &outcome {
            CommitOutcome::Committed => {
                self.number += 1;
                // Others move these entities on from here; the store compares with what it has.
                self.last.clear();
            }
            CommitOutcome::Fenced => self.give_up(Fatal::Fenced),
            CommitOutcome::Unknown(why) => self.give_up(Fatal::Poisoned(why.clone())),
            CommitOutcome::Unavailable(_) | CommitOutcome::Full(_) => {}
        }
        for (_, done) in freed {
            let _nobody_waits = done.send(outcome.clone());
        }
    }

    /// Commits write groups as one batch, and lets them out or fails them.
    async fn commit(&mut self, groups: Vec<WriteGroup>) {
        let groups = self.current(groups);
        if groups.is_empty() {
            return;
        }
        let needs_flush = groups.iter().any(|group| group.is_probe || !group.writes.is_empty());
        if !needs_flush {
            // What was read was read before the lease is looked at.
            if self.incarnation.lease.holds() {
                return self.release_outputs(groups);
            }
            return self.fail(groups, &Error::new(ErrorKind::Fenced, "the lease has run out"));
        }
        let is_buffered = groups
            .iter()
            .all(|group| (group.is_buffered || Sabotage::AllBuffered.is_on()) && !group.is_probe);
        let mut groups = groups;
        let mut merge = Merge::default();
        let writes = groups.iter_mut().map(|group| std::mem::take(&mut group.writes));
        let merged = { writes }.try_for_each(|writes| merge.add(&self.last, writes));
        if let Err(reason) = merged {
            tracing::error!(reason, "a turn does not follow what was committed");
            if self.outbound.is_none() {
                Rule::StatesFollow.count();
                return self.fail(groups, &Error::new(ErrorKind::Internal, reason));
            }
            // It follows what another owner has committed.
            self.give_up(Fatal::Fenced);
            return self.fail(groups, &Error::new(ErrorKind::Fenced, reason));
        }
        let (writes, chains) = merge.finish();
        let mut batch = self.batch(writes, false);
        self.change_log.add(&mut batch.writes, batch.fence, batch.time);
        let is_late = self.flush_at.is_some_and(|due| due <= clock::monotonic());
        batch.is_buffered = is_buffered && !is_late;
        let flush_at = batch.is_buffered.then(|| self.next_flush());
        let changed = self.subscribers.changed_by(&batch.writes);
        #[cfg(feature = "sabotage")]
        let batch = self.without_states_first(batch).await;
        let outcome = self.store.commit(batch).await;
        match outcome {
            CommitOutcome::Committed => {
                self.number += 1;
                self.last = chains;
                self.flush_at = flush_at;
                self.release_outputs(groups);
                self.subscribers.tell_of(changed);
                self.store.maintain_after_commit();
            }
            CommitOutcome::Unknown(_) if Sabotage::UnknownCalledFailed.is_on() => {
                self.fail(groups, &Error::new(ErrorKind::Unavailable, "the commit failed"));
            }
            CommitOutcome::Unknown(why) => {
                self.give_up(Fatal::Poisoned(why.clone()));
                let message = format!("a flush failed, so it is not known what is durable: {why}");
                self.fail(groups, &Error::new(ErrorKind::Unknown, message));
            }
            CommitOutcome::Fenced => {
                self.give_up(Fatal::Fenced);
                self.fail(groups, &Error::new(ErrorKind::Fenced, "another process owns the store"));
            }
            CommitOutcome::Full(why) => self.fail(groups, &Error::new(ErrorKind::Full, why)),
            CommitOutcome::Unavailable(why) => {
                tracing::error!(why, "a batch was refused");
                self.fail(groups, &Error::new(ErrorKind::Unavailable, why));
            }
        }
    }

    /// Commits what is no state of a batch; returns the rest.
    #[cfg(feature = "sabotage")]
    async fn without_states_first(&mut self, mut batch: Batch) -> Batch {
        let is_state = |write: &Write| matches!(write, Write::PutState(..));
        if !Sabotage::HeadInSecondBatch.is_on() || batch.writes.iter().all(is_state) {
            return batch;
        }
        let writes = std::mem::take(&mut batch.writes);
        let (states, rest) = writes.into_iter().partition(is_state);
        batch.writes = rest;
        if self.store.commit(batch).await == CommitOutcome::Committed {
            self.number += 1;
        }
        self.batch(states, false)
    }

    /// Why nothing is committed any more: another owner may do it, or nobody.
    fn refusal(&self) -> ErrorKind {
        if self.is_fenced { ErrorKind::Fenced } else { ErrorKind::Unavailable }
    }

    fn batch(&self, writes: Vec<Write>, is_clean: bool) -> Batch {
        let incarnation = self.incarnation.number;
        let fence = Fence { incarnation, lane: 0, number: self.number + 1 };
        let (owner, time) = (self.owner.clone(), self.clock.now());
        Batch { fence, owner, time, is_clean, is_buffered: false, writes }
    }

    /// Drops write groups of terms that have ended, and all of them once a flush has failed.
    fn current(&mut self, groups: Vec<WriteGroup>) -> Vec<WriteGroup> {
        let mut current = Vec::with_capacity(groups.len());
        for group in groups {
            if group.term < self.terms[usize::from(group.partition)]
                && !Sabotage::GroupOnFailedOne.is_on()
            {
                let why = match group.term <= self.freed[usize::from(group.partition)] {
                    true => Error::new(ErrorKind::Fenced, "the partition has moved"),
                    false => Error::new(ErrorKind::Unavailable, "an earlier commit failed"),
                };
                refuse(group, &why);
            } else if self.has_failed {
                let error = Error::new(self.refusal(), "the store takes no more commits");
                self.fail(vec![group], &error);
            } else {
                current.push(group);
            }
        }
        current
    }

    fn release_outputs(&mut self, groups: Vec<WriteGroup>) {
        if groups.iter().any(|group| !group.writes.is_empty()) {
            Rule::AnswersRestOnNoWrite.count();
            self.give_up(Fatal::Poisoned(Rule::AnswersRestOnNoWrite.to_string()));
            let error = Error::new(ErrorKind::Unknown, "a safety rule of the runtime is broken");
            return self.fail(groups, &error);
        }
        let mut settled = Vec::with_capacity(groups.len());
        let mut replies = Vec::new();
        let link = self.incarnation.link();
        for mut group in groups {
            // Receivers hear of a row before its sender can send the next one.
            for (partition, delivery) in group.deliveries {
                let partition_of = &self.partitions[usize::from(partition)];
                let delivered = partition_of.deliver(Some(Box::new(delivery)), link);
                if let (Err(Some(delivery)), Some(outbound)) = (delivered, &self.outbound) {
                    outbound.send(partition, delivery);
                }
            }
            replies.append(&mut group.replies);
            settled.push((group.partition, group.term, group.number));
        }
        for (partition, term, number) in settled {
            self.partitions[usize::from(partition)].push(Input::Committed(term, number));
        }
        self.tell(replies);
    }

    /// Tells callers. Many are woken by a task: waking one from a thread of the runtime costs less
    /// than from the committer's, which meanwhile goes on.
    fn tell(&mut self, replies: Vec<(ReplySender, CallResult)>) {
        let is_long = replies.len() > REPLIES_INLINE_MAX;
        let tell =
            move || replies.into_iter().for_each(|(reply_to, response)| reply_to.answer(response));
        if !is_long {
            return tell();
        }
        while self.telling.try_join_next().is_some() {}
        self.telling.spawn(async move { tell() });
    }

    fn fail(&mut self, groups: Vec<WriteGroup>, error: &Error) {
        for group in groups {
            let (partition, term) = (group.partition, group.term);
            let ended = &mut self.terms[usize::from(partition)];
            *ended = (*ended).max(term + 1);
            let undone = match error.kind() {
                ErrorKind::Full => error.clone(),
                _ => Error::new(ErrorKind::Unavailable, "an earlier commit failed"),
            };
            // Whoever is told and asks again finds the partition starting over.
            self.partitions[usize::from(partition)].push(Input::Failed(term, undone));
            refuse(group, error);
        }
    }

    fn give_up(&mut self, fatal: Fatal) {
        tracing::error!(?fatal, "this incarnation cannot go on");
        self.has_failed = true;
        self.is_fenced = fatal == Fatal::Fenced;
        fatal.report(&self.fatal);
    }
}

/// The writes of write groups as one batch, for those who commit without a committer.
#[cfg(test)]
pub(crate) fn merged(groups: &mut [WriteGroup]) -> Vec<Write> {
    let mut merge = Merge::default();
    for group in groups {
        let writes = std::mem::take(&mut group.writes);
        merge.add(&Chains::default(), writes).expect("states follow one another");
    }
    merge.finish().0
}

fn refuse(group: WriteGroup, error: &Error) {
    for (reply_to, _) in group.replies {
        reply_to.answer(Err(error.clone()));
    }
}

#[cfg(test)]
mod tests;
