//! The committer: the single write path. It gathers the finished bursts of all partitions into one
//! batch, has the store commit it, and only then lets out what the bursts hold.
//!
//! This is where a signal becomes durable: [`Committer::commit`] awaits [`Store::commit`], and
//! nothing of a burst leaves before that answers `Committed`.
//!
//! - One batch is under way at a time; bursts that arrive meanwhile form the next one.
//! - A failed batch fails the generation of every partition in it: queued bursts of that generation
//!   are dropped, because they were built on what was not committed.
//! - A barrier is answered once everything sent before it is settled.
//! - After an outcome that is not known nothing is committed or answered as committed any more.

mod merge;

use std::sync::Arc;

use stead_entities::{Error, ErrorKind};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use self::merge::{Chains, Merge};
use crate::{
    clock::Clock,
    partition::{
        Handle,
        message::{Burst, Input},
        ticket::{Response, Ticket},
    },
    sabotage,
    store::{Batch, CommitOutcome, Fence, Store, Write},
};

/// How many bursts and barriers can wait for the committer.
const QUEUE_MAX: usize = 16_384;
/// The most bursts in one batch.
const BURSTS_PER_BATCH_MAX: usize = 1_024;
/// The most callers that the committer wakes itself.
const REPLIES_INLINE_MAX: usize = 8;

/// What partitions send to the committer.
#[derive(Debug)]
pub(crate) enum Work {
    Burst(Burst),
    /// Tell this partition when everything before is settled.
    Barrier(u16, u64),
    /// Mark the end of a drained node and stop.
    Close(tokio::sync::oneshot::Sender<CommitOutcome>),
}

/// The way to the committer.
pub(crate) type Sender = mpsc::Sender<Work>;

/// Why a node cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fatal {
    /// A flush failed: what is durable is known only after the store is opened again.
    Poisoned(String),
    /// Another process has taken the store.
    Fenced,
    /// An operation spins and cannot be stopped.
    Spinning(String),
}

impl Fatal {
    /// Ends the node, unless an earlier reason has.
    pub(crate) fn report(self, fatals: &watch::Sender<Option<Self>>) {
        fatals.send_if_modified(|known| {
            let is_first = known.is_none();
            known.get_or_insert(self);
            is_first
        });
    }
}

pub(crate) struct Committer {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    owner: Arc<str>,
    partitions: Arc<[Handle]>,
    number: u64,
    /// Bursts of earlier generations are dropped.
    generations: Vec<u64>,
    /// Where the entities of the last batch stand.
    last: Chains,
    fatal: watch::Sender<Option<Fatal>>,
    has_failed: bool,
    /// Tasks that tell callers.
    telling: JoinSet<()>,
}

/// A queue for bursts, before there are partitions to fill it.
pub(crate) fn queue() -> (Sender, mpsc::Receiver<Work>) {
    mpsc::channel(QUEUE_MAX)
}

impl Committer {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        owner: Arc<str>,
        partitions: Arc<[Handle]>,
        fatal: watch::Sender<Option<Fatal>>,
    ) -> Self {
        let number = store.opened().last_batch;
        let generations = vec![0; partitions.len()];
        let last = Chains::default();
        Self {
            store,
            clock,
            owner,
            partitions,
            number,
            generations,
            last,
            fatal,
            has_failed: false,
            telling: JoinSet::new(),
        }
    }

    /// Continues behind batches that were committed before it.
    pub(crate) fn after(mut self, batches: u64) -> Self {
        self.number += batches;
        self
    }

    /// Serves on a thread of its own, which a flush may block, until it is closed or its queue ends.
    #[allow(clippy::disallowed_methods, reason = "the one thread that commits")]
    pub(crate) fn start(self, queue: mpsc::Receiver<Work>) -> std::io::Result<()> {
        let runtime = tokio::runtime::Handle::current();
        let builder = std::thread::Builder::new().name("stead-committer".into());
        builder.spawn(move || runtime.block_on(self.run(queue))).map(drop)
    }

    /// Serves until it is closed or its queue ends.
    async fn run(mut self, mut queue: mpsc::Receiver<Work>) {
        let mut gathered = Vec::new();
        while queue.recv_many(&mut gathered, BURSTS_PER_BATCH_MAX).await > 0 {
            let mut bursts = Vec::with_capacity(gathered.len());
            for work in gathered.drain(..) {
                match work {
                    Work::Burst(burst) => bursts.push(burst),
                    Work::Barrier(partition, generation) => {
                        self.commit(std::mem::take(&mut bursts)).await;
                        let index = usize::from(partition);
                        self.generations[index] = self.generations[index].max(generation);
                        self.partitions[index].push(Input::Barrier(generation));
                    }
                    Work::Close(done) => {
                        self.commit(std::mem::take(&mut bursts)).await;
                        let batch = self.batch(Vec::new(), true);
                        let outcome = self.store.commit(batch).await;
                        while self.telling.join_next().await.is_some() {}
                        let _nobody_waits = done.send(outcome);
                        return;
                    }
                }
            }
            self.commit(bursts).await;
        }
    }

    /// Commits bursts as one batch, and lets them out or fails them.
    async fn commit(&mut self, bursts: Vec<Burst>) {
        let bursts = self.current(bursts);
        if bursts.is_empty() {
            return;
        }
        let needs_flush = bursts.iter().any(|burst| burst.is_probe || !burst.writes.is_empty());
        if !needs_flush {
            return self.let_out(bursts);
        }
        let mut bursts = bursts;
        let mut merge = Merge::default();
        let writes = bursts.iter_mut().map(|burst| std::mem::take(&mut burst.writes));
        let merged = { writes }.try_for_each(|writes| merge.add(&self.last, writes));
        if let Err(reason) = merged {
            tracing::error!(reason, "a turn does not follow what was committed");
            return self.fail(bursts, &Error::new(ErrorKind::Internal, reason));
        }
        let (writes, chains) = merge.finish();
        let batch = self.batch(writes, false);
        let outcome = self.store.commit(batch).await;
        match outcome {
            CommitOutcome::Committed => {
                self.number += 1;
                self.last = chains;
                self.let_out(bursts);
                self.store.tend_after_commit();
            }
            CommitOutcome::Unknown(_) if sabotage::is("X15") => {
                self.fail(bursts, &Error::new(ErrorKind::Unavailable, "the commit failed"));
            }
            CommitOutcome::Unknown(why) => {
                self.give_up(Fatal::Poisoned(why.clone()));
                let message = format!("a flush failed, so it is not known what is durable: {why}");
                self.fail(bursts, &Error::new(ErrorKind::Unknown, message));
            }
            CommitOutcome::Fenced => {
                self.give_up(Fatal::Fenced);
                self.fail(bursts, &Error::new(ErrorKind::Fenced, "another process owns the store"));
            }
            CommitOutcome::Full(why) => self.fail(bursts, &Error::new(ErrorKind::Full, why)),
            CommitOutcome::Unavailable(why) => {
                tracing::error!(why, "a batch was refused");
                self.fail(bursts, &Error::new(ErrorKind::Unavailable, why));
            }
        }
    }

    fn batch(&self, writes: Vec<Write>, is_clean: bool) -> Batch {
        let incarnation = self.store.opened().incarnation;
        let fence = Fence { incarnation, lane: 0, number: self.number + 1 };
        let (owner, time) = (self.owner.clone(), self.clock.now());
        Batch { fence, owner, time, is_clean, writes }
    }

    /// Drops bursts of generations that have ended, and all of them once a flush has failed.
    fn current(&mut self, bursts: Vec<Burst>) -> Vec<Burst> {
        let mut current = Vec::with_capacity(bursts.len());
        for burst in bursts {
            if burst.generation < self.generations[usize::from(burst.partition)]
                && !sabotage::is("X26")
            {
                refuse(burst, &Error::new(ErrorKind::Unavailable, "an earlier commit failed"));
            } else if self.has_failed {
                let error = Error::new(ErrorKind::Unavailable, "the store takes no more commits");
                self.fail(vec![burst], &error);
            } else {
                current.push(burst);
            }
        }
        current
    }

    fn let_out(&mut self, bursts: Vec<Burst>) {
        let mut settled = Vec::with_capacity(bursts.len());
        let mut replies = Vec::new();
        for mut burst in bursts {
            // Receivers hear of a row before its sender can send the next one.
            for (partition, delivery) in burst.deliveries {
                self.partitions[usize::from(partition)].push(Input::Deliver(Box::new(delivery)));
            }
            replies.append(&mut burst.replies);
            settled.push((burst.partition, burst.generation, burst.number));
        }
        for (partition, generation, number) in settled {
            self.partitions[usize::from(partition)].push(Input::Committed(generation, number));
        }
        self.tell(replies);
    }

    /// Tells callers. Many are woken by a task: waking one from a thread of the runtime costs less
    /// than from the committer's, which meanwhile goes on.
    fn tell(&mut self, replies: Vec<(Ticket, Response)>) {
        let is_long = replies.len() > REPLIES_INLINE_MAX;
        let tell =
            move || replies.into_iter().for_each(|(ticket, response)| ticket.answer(response));
        if !is_long {
            return tell();
        }
        while self.telling.try_join_next().is_some() {}
        self.telling.spawn(async move { tell() });
    }

    fn fail(&mut self, bursts: Vec<Burst>, error: &Error) {
        for burst in bursts {
            let (partition, generation) = (burst.partition, burst.generation);
            let ended = &mut self.generations[usize::from(partition)];
            *ended = (*ended).max(generation + 1);
            refuse(burst, error);
            let undone = match error.kind() {
                ErrorKind::Full => error.clone(),
                _ => Error::new(ErrorKind::Unavailable, "an earlier commit failed"),
            };
            self.partitions[usize::from(partition)].push(Input::Failed(generation, undone));
        }
    }

    fn give_up(&mut self, fatal: Fatal) {
        tracing::error!(?fatal, "the node cannot go on");
        self.has_failed = true;
        fatal.report(&self.fatal);
    }
}

/// The writes of bursts as one batch, for those who commit without a committer.
#[cfg(test)]
pub(crate) fn merged(bursts: &mut [Burst]) -> Vec<Write> {
    let mut merge = Merge::default();
    for burst in bursts {
        let writes = std::mem::take(&mut burst.writes);
        merge.add(&Chains::default(), writes).expect("states follow one another");
    }
    merge.finish().0
}

fn refuse(burst: Burst, error: &Error) {
    for (ticket, _) in burst.replies {
        ticket.answer(Err(error.clone()));
    }
}

#[cfg(test)]
mod tests {
    use stead_entities::{EntityId, Timestamp};
    use tokio::sync::watch;

    use super::*;
    use crate::{
        clock::ManualClock,
        partition::ticket::{Answer, Ticket, Waiting},
        store::{
            keys::Table,
            memory::{Fault, MemoryDisk},
            record::StateRecord,
        },
    };

    fn burst(generation: u64, number: u64, follows: u64) -> (Burst, Waiting) {
        let id = EntityId::new("counter", "a").expect("valid");
        let record = StateRecord {
            version: 1,
            generation: 1,
            revision: follows + 1,
            follows,
            incarnation: 1,
            committed_at: Timestamp::default(),
            reminders: Vec::new(),
            state: vec![number as u8],
        };
        let (ticket, waiting) = Ticket::new(std::time::Duration::from_secs(9), None);
        let burst = Burst {
            generation,
            number,
            writes: vec![Write::PutState(id, record)],
            replies: vec![(ticket, Ok(Answer::Done))],
            ..Burst::default()
        };
        (burst, waiting)
    }

    #[tokio::test]
    async fn a_burst_that_was_built_on_a_refused_one_is_not_committed() {
        let disk = MemoryDisk::new();
        let store = Arc::new(disk.open().expect("readable"));
        let clock = Arc::new(ManualClock::new(Timestamp::default()));
        let (fatal, _fatals) = watch::channel(None);
        let partitions: Arc<[Handle]> = Arc::new([Handle::new()]);
        let mut committer = Committer::new(store, clock, "t".into(), partitions, fatal);
        let (first, refused) = burst(1, 1, 0);
        let (second, dropped) = burst(1, 2, 1);
        disk.inject(Fault::Refuse);
        committer.commit(vec![first]).await;
        committer.commit(vec![second]).await;
        assert_eq!(refused.await.expect_err("refused").kind(), ErrorKind::Unavailable);
        assert_eq!(dropped.await.expect_err("dropped").kind(), ErrorKind::Unavailable);
        assert!(disk.rows(Table::States).is_empty(), "nothing of the generation is stored");
        let (next, committed) = burst(2, 1, 0);
        committer.commit(vec![next]).await;
        assert!(committed.await.is_ok(), "the next generation goes on");
    }
}
