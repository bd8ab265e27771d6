//! The way to a partition: a queue of our own before its actor.
//!
//! ractor's mailbox is unbounded, so inputs wait here, where admission bounds them; at most one
//! wake-up is under way. The queue is open while this node owns the partition. Whoever finds it closed has
//! changed nothing, and asks elsewhere.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use stead_entities::Error;

use super::{
    Beginning,
    actor::Wakes,
    message::{CommitSender, Delivery, Input, Link},
    reply::{PendingReplies, ReplySender},
};
use crate::lease::Lease;

/// A way to one partition. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Handle(Arc<Queue>);

#[derive(Debug)]
struct Queue {
    inputs: Mutex<Inputs>,
    actor: OnceLock<Wakes>,
}

#[derive(Default)]
struct Inputs {
    waiting: VecDeque<Input>,
    is_awake: bool,
    /// Whether news of a commit lets anything go on. Where it does not, the news waits for company.
    waits_for_commit: bool,
    pending: PendingReplies,
    /// Whether this node owns the partition and takes more in for it.
    is_open: bool,
    /// The number of the last hosting.
    hosting: u64,
    assignments: VecDeque<Assignment>,
}

/// A change of what the actor hosts.
pub(super) enum Assignment {
    Host(Box<Hosting>),
    /// The partition is somebody else's from here on; whoever waits is told so.
    Drop(Error),
}

/// A partition that begins at this node.
pub(crate) struct Hosting {
    pub(crate) beginning: Box<Beginning>,
    pub(crate) committer: CommitSender,
    pub(crate) lease: Arc<Lease>,
}

type Body = Option<Box<Delivery>>;

/// The partition is not this node's at present.
#[derive(Debug)]
pub(crate) struct Closed;

impl std::fmt::Debug for Inputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inputs").field("waiting", &self.waiting.len()).finish()
    }
}

impl Handle {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Queue { inputs: Mutex::default(), actor: OnceLock::new() }))
    }

    /// Binds the handle to its actor, once.
    pub(super) fn bind(&self, actor: Wakes) {
        let _bound_already = self.0.actor.set(actor);
        self.resume();
    }

    /// Gives the partition an input. Inputs are taken in the order in which they are pushed.
    pub(crate) fn push(&self, input: Input) {
        self.push_to(self.lock(), input);
    }

    /// Gives the partition an input that somebody waits for, and watches their deadline.
    ///
    /// # Errors
    /// Where the partition takes nothing in; then nothing was done.
    pub(crate) fn submit(
        &self,
        reply_to: &ReplySender,
        input: impl FnOnce(ReplySender) -> Input,
    ) -> Result<(), Closed> {
        let input = input(reply_to.clone());
        let mut inputs = self.lock();
        if !inputs.is_open {
            return Err(Closed);
        }
        inputs.pending.add(reply_to);
        self.push_to(inputs, input);
        Ok(())
    }

    /// Gives the partition what another one's commit made durable, or, without a body, word of it.
    ///
    /// # Errors
    /// Gives it back where the partition takes nothing in.
    pub(crate) fn deliver(&self, delivery: Body, link: Link) -> Result<(), Body> {
        let inputs = self.lock();
        if !inputs.is_open {
            return Err(delivery);
        }
        self.push_to(inputs, Input::Deliver(delivery, link));
        Ok(())
    }

    /// Whether the partition takes more in.
    pub(crate) fn is_open(&self) -> bool {
        self.lock().is_open
    }

    /// The number of the hosting; `None` where the partition is not hosted here.
    pub(crate) fn hosting(&self) -> Option<u64> {
        let inputs = self.lock();
        inputs.is_open.then_some(inputs.hosting)
    }

    /// Begins to host the partition.
    pub(crate) fn host(&self, hosting: Hosting) {
        let mut inputs = self.lock();
        inputs.is_open = true;
        inputs.hosting = hosting.beginning.identity.hosting;
        inputs.assignments.push_back(Assignment::Host(Box::new(hosting)));
        self.push_to(inputs, Input::Tick);
    }

    /// Takes nothing more in; what was taken in goes on.
    pub(crate) fn close(&self) {
        self.lock().is_open = false;
    }

    /// Drops the partition. Whoever waits for it is told `error`, or that the outcome is not known.
    pub(crate) fn dismiss(&self, error: Error) {
        let mut inputs = self.lock();
        inputs.is_open = false;
        inputs.assignments.push_back(Assignment::Drop(error));
        self.push_to(inputs, Input::Tick);
    }

    /// Goes on after a lease that had run out was renewed.
    pub(crate) fn resume(&self) {
        self.lock().is_awake = true;
        self.wake();
    }

    /// Parks, whatever waits, until something else happens.
    pub(super) fn park(&self) {
        self.lock().is_awake = false;
    }

    /// Tells those who wait past their deadlines; everybody, where `now` is `None`.
    pub(crate) fn expire(&self, now: Option<Instant>) {
        let overdue = self.lock().pending.overdue(now);
        overdue.expire();
    }

    fn lock(&self) -> MutexGuard<'_, Inputs> {
        self.0.inputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push_to(&self, mut inputs: MutexGuard<'_, Inputs>, input: Input) {
        let can_wait = matches!(input, Input::Committed(..)) && !inputs.waits_for_commit;
        inputs.waiting.push_back(input);
        if can_wait || std::mem::replace(&mut inputs.is_awake, true) {
            return;
        }
        drop(inputs);
        self.wake();
    }

    pub(super) fn wake(&self) {
        if let Some(actor) = self.0.actor.get() {
            actor.wake();
        }
    }

    pub(super) fn take_assignments(&self) -> VecDeque<Assignment> {
        std::mem::take(&mut self.lock().assignments)
    }

    /// Swaps what waits for the empty queue `inputs`.
    pub(super) fn take(&self, inputs: &mut VecDeque<Input>) {
        std::mem::swap(&mut self.lock().waiting, inputs);
    }

    /// Goes to sleep if nothing waits; says whether it does.
    pub(super) fn rest(&self, has_more: bool, waits_for_commit: bool) -> bool {
        let mut inputs = self.lock();
        inputs.waits_for_commit = waits_for_commit;
        let mut waiting = inputs.waiting.iter();
        let is_news = |input: &Input| waits_for_commit || !matches!(input, Input::Committed(..));
        inputs.is_awake = has_more || waiting.any(is_news) || !inputs.assignments.is_empty();
        !inputs.is_awake
    }

    /// Lets the actor end when it has finished its step.
    pub(crate) fn stop(&self) {
        if let Some(actor) = self.0.actor.get() {
            actor.stop();
        }
    }

    /// Waits until the actor has ended and let go of the store.
    pub(crate) async fn stopped(&self) {
        if let Some(actor) = self.0.actor.get() {
            actor.stopped().await;
        }
    }
}
