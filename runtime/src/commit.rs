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

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
};

use stead_entities::{EntityId, Error, ErrorKind};
use tokio::sync::{mpsc, watch};

use crate::{
    clock::Clock,
    partition::{
        Handle,
        message::{Burst, Input},
    },
    sabotage,
    store::{Batch, CommitOutcome, Fence, Store, Write, record::InboxKey},
};

/// How many bursts and barriers can wait for the committer.
const QUEUE_MAX: usize = 16_384;
/// The most bursts in one batch.
const BURSTS_PER_BATCH_MAX: usize = 1_024;

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

pub(crate) struct Committer {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    owner: Arc<str>,
    partitions: Arc<[Handle]>,
    number: u64,
    /// Bursts of earlier generations are dropped.
    generations: Vec<u64>,
    /// The revision last committed for the entities of the last batch.
    last: HashMap<EntityId, (u64, u64)>,
    fatal: watch::Sender<Option<Fatal>>,
    has_failed: AtomicBool,
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
        let (last, has_failed) = (HashMap::new(), AtomicBool::new(false));
        Self { store, clock, owner, partitions, number, generations, last, fatal, has_failed }
    }

    /// Continues behind batches that were committed before it.
    pub(crate) fn after(mut self, batches: u64) -> Self {
        self.number += batches;
        self
    }

    /// Serves until it is closed or its queue ends.
    pub(crate) async fn run(mut self, mut queue: mpsc::Receiver<Work>) {
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
                        let _nobody_waits = done.send(self.store.commit(batch).await);
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
        let (writes, bursts) = merge(bursts);
        let revisions = revisions(&writes);
        let batch = self.batch(writes, false);
        let outcome = self.store.commit(batch).await;
        match outcome {
            CommitOutcome::Committed => {
                self.number += 1;
                self.last = revisions;
                self.let_out(bursts);
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

    /// Drops bursts of generations that have ended, and refuses those that do not follow what was
    /// committed.
    fn current(&mut self, bursts: Vec<Burst>) -> Vec<Burst> {
        let mut current = Vec::with_capacity(bursts.len());
        for burst in bursts {
            if burst.generation < self.generations[usize::from(burst.partition)]
                && !sabotage::is("X26")
            {
                refuse(burst, &Error::new(ErrorKind::Unavailable, "an earlier commit failed"));
            } else if self.has_failed.load(Ordering::SeqCst) {
                let error = Error::new(ErrorKind::Unavailable, "the store takes no more commits");
                self.fail(vec![burst], &error);
            } else if let Some(reason) = self.breaks_chain(&burst) {
                tracing::error!(reason, "a burst does not follow what was committed");
                self.fail(vec![burst], &Error::new(ErrorKind::Internal, reason));
            } else {
                current.push(burst);
            }
        }
        current
    }

    fn breaks_chain(&self, burst: &Burst) -> Option<String> {
        burst.writes.iter().find_map(|write| {
            let Write::PutState(id, record) = write else {
                return None;
            };
            let (generation, revision) = *self.last.get(id)?;
            let follows = generation != record.generation || record.follows >= revision;
            (!follows).then(|| format!("{id} follows revision {}, not {revision}", record.follows))
        })
    }

    fn let_out(&self, bursts: Vec<Burst>) {
        let mut settled = Vec::with_capacity(bursts.len());
        for burst in bursts {
            // Receivers hear of a row before its sender can send the next one.
            for (partition, delivery) in burst.deliveries {
                self.partitions[usize::from(partition)].push(Input::Deliver(Box::new(delivery)));
            }
            for (ticket, response) in burst.replies {
                ticket.answer(response);
            }
            settled.push((burst.partition, burst.generation, burst.number));
        }
        for (partition, generation, number) in settled {
            self.partitions[usize::from(partition)].push(Input::Committed(generation, number));
        }
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

    fn give_up(&self, fatal: Fatal) {
        tracing::error!(?fatal, "the node cannot go on");
        self.has_failed.store(true, Ordering::SeqCst);
        self.fatal.send_if_modified(|known| {
            let is_first = known.is_none();
            known.get_or_insert(fatal);
            is_first
        });
    }
}

/// The generation and revision of each state that is written.
fn revisions(writes: &[Write]) -> HashMap<EntityId, (u64, u64)> {
    let states = writes.iter().filter_map(|write| match write {
        Write::PutState(id, record) => Some((id.clone(), (record.generation, record.revision))),
        _ => None,
    });
    states.collect()
}

fn refuse(burst: Burst, error: &Error) {
    for (ticket, _) in burst.replies {
        ticket.answer(Err(error.clone()));
    }
}

/// The writes of all bursts in order, without states that a later burst replaces and without inbox
/// rows that a later burst consumes.
fn merge(mut bursts: Vec<Burst>) -> (Vec<Write>, Vec<Burst>) {
    if let [burst] = &mut bursts[..] {
        return (std::mem::take(&mut burst.writes), bursts);
    }
    let mut writes: Vec<Option<Write>> = Vec::new();
    let mut states: HashMap<EntityId, usize> = HashMap::new();
    let mut rows: HashMap<InboxKey, usize> = HashMap::new();
    for burst in &mut bursts {
        for write in std::mem::take(&mut burst.writes) {
            match &write {
                Write::PutState(id, _) | Write::DeleteState(id) => {
                    if let Some(earlier) = states.insert(id.clone(), writes.len()) {
                        writes[earlier] = None;
                    }
                }
                Write::Accept(key, record) if record.attempts == 0 => {
                    rows.insert(key.clone(), writes.len());
                }
                Write::Consume(key) => {
                    if let Some(earlier) = rows.remove(key) {
                        writes[earlier] = None;
                        continue;
                    }
                }
                _ => {}
            }
            writes.push(Some(write));
        }
    }
    (writes.into_iter().flatten().collect(), bursts)
}
