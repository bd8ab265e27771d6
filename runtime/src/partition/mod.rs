//! One partition: a state machine that owns a fixed share of all entities and runs their turns.
//!
//! ```text
//! inputs --> step --> turns on in-memory states --> the open write group --> sent to the committer
//!                \--> loads, look-ups, scans, tasks that await (answered by later inputs)
//! ```
//!
//! [`Partition::step`] is plain synchronous code: inputs in, outputs out. It never writes to the
//! store, reads no clock and awaits nothing; `actor` does that for it.
//!
//! A partition is a few parts and an order. Each part owns its fields and keeps its own rules:
//! `activations`, `inbox`, `attempts`, `idempotency`, `reminders`, `dead_letters`, `links`,
//! `write_group` (what is written, and what becomes true when it is durable), `lifecycle` and
//! `environment`. What a step does with them is in six layers, each of which uses only those before
//! it: `persist` (rows, keys, answers), `intake` (into mailboxes), `unusable` (entities that cannot be
//! read), `deletion` and `upgrade`, `settle` (what a turn leaves behind), `run` (mailboxes and turns). This file keeps
//! the order of a step.
//!
//! What must never happen:
//!
//! - an answer leaves before the turns it rests on are durable: answers ride in the write group of the
//!   turn, or in the open one while the entity has unreleased turns;
//! - a write group is committed on top of one that was not: groups carry the partition's term, and a
//!   failed group ends the term;
//! - an inbox row is applied twice: its key stays known until the group that consumes it is durable;
//! - a reminder that was cancelled or set again causes a turn: it runs only if the entity still knows
//!   its number.

mod activations;
mod actor;
mod asks;
mod attempts;
mod dead_letters;
mod deletion;
mod entries;
mod envelope;
mod environment;
mod expiry;
mod handle;
mod idempotency;
mod inbox;
mod intake;
mod lifecycle;
mod links;
pub(crate) mod loaded;
mod locks;
pub(crate) mod message;
mod named;
mod persist;
mod reading;
mod reminders;
pub(crate) mod reply;
mod run;
mod sealing;
mod settle;
mod step_tasks;
pub(crate) mod steps;
mod task;
#[cfg(test)]
#[allow(unreachable_pub, reason = "operations of an entity are `pub`")]
mod tests;
pub(crate) mod turn;
mod unusable;
mod upgrade;
mod watch;
mod write_group;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use stead_entities::{EntityId, Error, ErrorKind, Timestamp};

use self::{
    activations::Activations,
    attempts::Attempts,
    dead_letters::DeadLetters,
    environment::Environment,
    idempotency::IdempotencyKeys,
    inbox::Inbox,
    lifecycle::{Lifecycle, Phase},
    links::Links,
    message::{Input, Link, Output},
    reminders::Reminders,
    reply::Response,
    steps::StepsToEnd,
    write_group::{OpenGroup, Release},
};
pub(crate) use self::{
    actor::{Shell, start},
    attempts::Predecessor,
    envelope::{Occurrence, Row},
    environment::{ForeignIndex, Identity},
    expiry::EXPIRE,
    handle::{Closed, Handle, Hosting},
    intake::PURGE,
    step_tasks::StepRoom,
    watch::{Late, Watches},
};
use crate::{entropy::Entropy, sabotage::Sabotage, store::ReadResult};

/// The most inbox rows of one entity that are read at one time.
const INBOX_PAGE: usize = 8;
/// The most reminders and delayed signals of a deleted entity that are read at one time.
const REMINDERS_PAGE: usize = 512;
/// The wait before the store is read again after it could not be.
const READ_PAUSE: Duration = Duration::from_millis(200);
/// The wait before more turns run, where so much waits to be committed that none may.
const COMMIT_PAUSE: Duration = Duration::from_millis(2);

/// The beginning of a partition at a node.
pub(crate) struct Beginning {
    pub(crate) identity: Identity,
    pub(crate) predecessor: Predecessor,
    /// The link of this node, whose deliveries the first reads will not miss.
    pub(crate) link: Link,
    pub(crate) entropy: Entropy,
    /// How many dead letters the node has dropped because there were too many.
    pub(crate) dropped: Arc<AtomicU64>,
}

/// The state machine of one partition.
pub(crate) struct Partition {
    environment: Environment,
    moment: Moment,
    lifecycle: Lifecycle,
    activations: Activations,
    inbox: Inbox,
    attempts: Attempts,
    keys: IdempotencyKeys,
    reminders: Reminders,
    dead_letters: DeadLetters,
    links: Links,
    group: OpenGroup,
    outputs: Vec<Output>,
}

/// The time and the room for writes during one step.
#[derive(Debug, Clone, Copy)]
struct Moment {
    now: Timestamp,
    /// Whether the store had room for writes when the step began.
    has_room: bool,
}

impl Partition {
    /// A partition that begins behind `term`.
    pub(crate) fn new(beginning: Beginning, now: Timestamp, term: u64) -> Self {
        let Beginning { identity, predecessor, link, entropy, dropped } = beginning;
        let number = identity.number;
        let memory = identity.memory.clone();
        let environment = Environment::new(identity, entropy, now);
        let row_bytes_max = environment.row_bytes_max();
        // Of a clock that was set back, what was accepted later is earlier all the same.
        let began_at = environment.numbered(now);
        let mut partition = Self {
            environment,
            moment: Moment { now, has_room: true },
            lifecycle: Lifecycle::new(term),
            activations: Activations::new(now, memory),
            inbox: Inbox::default(),
            attempts: Attempts::new(predecessor, number, began_at),
            keys: IdempotencyKeys::default(),
            reminders: Reminders::holding(row_bytes_max / 2),
            dead_letters: DeadLetters::new(number, dropped),
            links: Links::new(link),
            group: OpenGroup::default(),
            outputs: Vec::new(),
        };
        partition.begin_term();
        partition
    }

    pub(crate) fn number(&self) -> u16 {
        self.environment.number()
    }

    pub(crate) fn term(&self) -> u64 {
        self.lifecycle.term()
    }

    /// Takes what has happened, runs what can run, and says what it wants done. Once `is_long` says that the
    /// step has taken long, busy entities leave their next turns to another one.
    pub(crate) fn step(
        &mut self,
        now: Timestamp,
        has_room: bool,
        inputs: impl IntoIterator<Item = Input>,
        is_long: impl Fn() -> bool,
    ) -> Vec<Output> {
        self.moment = Moment { now: self.moment.now.max(now), has_room };
        for input in inputs {
            self.take(input);
        }
        if self.lifecycle.is_serving() {
            if !self.lifecycle.is_stopping() {
                self.wake_due();
            }
            self.run_ready(is_long);
        }
        if !self.lifecycle.is_stopping() {
            self.plan_wake();
        }
        self.seal();
        self.finish_drain();
        if self.activations.has_ready() && !self.group.is_full() {
            self.outputs.push(match self.environment.memory().waits_for_commits() {
                true => Output::WakeAt(self.moment.now + COMMIT_PAUSE),
                false => Output::Again,
            });
        }
        std::mem::take(&mut self.outputs)
    }

    fn take(&mut self, input: Input) {
        if input.term().is_some_and(|term| term != self.term()) {
            // What another term asked for is of no use to this one.
            return;
        }
        let (phase, is_stopping) = (self.lifecycle.phase(), self.lifecycle.is_stopping());
        match input {
            Input::Committed(_, number) => self.release(number),
            Input::Failed(_, error) => self.restart(&error),
            Input::Barrier(_) => self.recover(),
            Input::Recovered(_, receivers) => self.recovered(receivers),
            Input::Letters(_, page) => {
                let age = |of: &str, is_no| self.environment.letter_age(of, is_no);
                self.outputs.extend(self.dead_letters.read(page, (self.moment.now, age)));
                self.prune_letters();
            }
            // A partition that stops fires nothing more: others need them.
            Input::Permits(_, permits) => self.reminders.take_permits(permits, is_stopping),
            // Rows that were delivered before the barrier are in the store that is read after it.
            Input::Deliver(..) | Input::Rescan if phase == Phase::Fencing || is_stopping => {}
            Input::Tick => self.retry_recovery(),
            Input::Drain(reply_to) => {
                self.lifecycle.drain(reply_to);
                self.reminders.drop_permits();
                self.activations.drop_permits();
                // They begin again where the partition is hosted next.
                self.outputs.push(Output::EndSteps(StepsToEnd::All));
            }
            input if phase != Phase::Serving => self.lifecycle.keep_early(input),
            Input::Arrival(arrival) => self.arrive(*arrival),
            Input::Deliver(delivery, link) => self.deliver_in_order(delivery, link),
            Input::Rescan => self.rescan(),
            Input::Receivers(_, receivers) => self.receivers_read(receivers),
            Input::Probe(reply_to) => {
                self.group.probe();
                self.group.reply(reply_to, Ok(Response::Done));
            }
            Input::DropDeadLetter(letter, reply_to) => {
                self.dead_letters.remove(letter, &mut self.group);
                self.group.reply(reply_to, Ok(Response::Done));
            }
            Input::Indexed(indexed, reply_to) => self.indexed(indexed, reply_to),
            Input::Loaded(_, id, loaded) => self.loaded(&id, *loaded),
            Input::Inbox(_, id, rows, permits) => self.page_read(&id, rows, permits),
            Input::LookedUp(_, key, found) => self.looked_up(&key, *found),
            Input::Due(_, until, page) => self.scanned(until, page),
            Input::Reminder(_, id, found) => self.reminder_read(&id, *found),
            Input::Reminders(_, id, page) => self.reminders_read(&id, page),
            Input::Entries(_, id, loaded) => self.entries_read(&id, *loaded),
            Input::Returned(_, returned) => self.returned(*returned),
            Input::StepEnded(_, ended) => self.step_ended(*ended),
        }
    }

    /// Fires what is due, lets retries go, forgets who is idle, and goes on with what was left for
    /// later.
    fn wake_due(&mut self) {
        let now = self.moment.now;
        while let Some(due) = self.reminders.next_due(now, &mut self.outputs) {
            self.fire(due);
        }
        // What is not needed at once is for others.
        self.reminders.drop_permits();
        while let Some(id) = self.activations.next_retry(now) {
            match self.activations.get_mut(&id) {
                Some(activation) => {
                    activation.retry_due(now);
                    self.activations.make_ready(&id);
                }
                // Rows that could not be read are read again.
                None => self.page(&id),
            }
        }
        let (idle_min, released) = (self.environment.idle_min(), self.group.released());
        let idle = |id: &EntityId| self.environment.limits(id, None).idle;
        if self.activations.sweep(now, (idle_min, idle), released, |id| self.inbox.has_backlog(id))
        {
            let is_there =
                |id: &EntityId| self.activations.contains(id) || self.inbox.has_backlog(id);
            self.reminders.retain_purges(is_there);
            self.inbox.forget_late(now);
            self.prune_letters();
        }
        self.activations.shed(now, released, |id| self.inbox.has_backlog(id));
        self.outputs.extend(self.reminders.scan_if_wanted(now, released));
        if self.dead_letters.has_more_to_drop() || self.dead_letters.has_old(now) {
            self.prune_letters();
        }
        self.outputs.extend(self.dead_letters.read_again(now));
    }

    /// Asks to be woken when the next thing is due, whatever it is. It is asked in every step: a
    /// wish is forgotten where the partition was to be woken earlier.
    fn plan_wake(&mut self) {
        let retry = self.links.next_wake();
        let next = match self.lifecycle.is_serving() {
            false => retry,
            true => {
                let reminders = self.reminders.next_wake(self.moment.now);
                let activations = self.activations.next_wake(self.environment.idle_min());
                let others = [retry, self.dead_letters.next_wake()];
                let all = reminders.into_iter().chain(activations).chain(others);
                all.flatten().min()
            }
        };
        self.outputs.extend(next.map(Output::WakeAt));
    }

    /// Takes what a scan of the reminders found.
    fn scanned(&mut self, until: Timestamp, page: ReadResult<crate::store::ReminderPage>) {
        let (now, released) = (self.moment.now, self.group.released());
        if let Err(error) = self.reminders.scanned(until, page, now, released) {
            tracing::error!(partition = self.number(), %error, "reminders cannot be read");
        }
    }

    /// Hands the open write group to the committer if there is room for it.
    fn seal(&mut self) {
        let Some(unwritten) = self.group.take_unwritten() else { return };
        for id in unwritten {
            // The last state of an entity; the turns between were never seen outside.
            match self.state_record(&id) {
                Ok(record) => self.group.write(crate::store::Write::PutState(id, record)),
                Err(why) => {
                    tracing::error!(entity = %id, why, "a state could not be read back");
                    let message =
                        "a state could not be read back, so nothing was applied: try again";
                    return self.restart(&Error::new(ErrorKind::Unavailable, message));
                }
            }
        }
        let is_buffered = self.environment.has_buffered()
            && self.group.is_all_of(|id| self.environment.is_buffered(id));
        let mut group = self.group.seal(
            self.environment.number(),
            self.lifecycle.term(),
            self.environment.memory(),
        );
        group.is_buffered = is_buffered;
        self.outputs.push(Output::Commit(group));
    }

    /// Releases what waited for the write groups up to this number, which are durable.
    fn release(&mut self, number: u64) {
        self.group.committed(number);
        while let Some(release) = self.group.next_release() {
            match release {
                Release::Row(key) => self.inbox.consumed(key, self.moment.now),
                Release::Key(key, result) => {
                    for reply_to in self.keys.end(&key) {
                        self.outputs.push(Output::Reply(reply_to, result.clone()));
                    }
                }
                Release::Fired(id, occurrence) => self.reminders.gone(&id, &occurrence),
                Release::Resume(id) => self.activations.make_ready(&id),
                Release::Step(step) => self.outputs.push(Output::Step(step)),
                Release::EndSteps(which) => self.outputs.push(Output::EndSteps(which)),
            }
        }
        self.reminders.committed(self.group.released());
    }

    /// Whether anything goes on once a write group that was sent is durable.
    fn waits_for_commit(&self) -> bool {
        self.group.is_waited_for() || self.activations.has_ready() || self.lifecycle.is_draining()
    }

    fn finish_drain(&mut self) {
        if self.lifecycle.is_draining()
            && self.group.is_settled()
            && !self.activations.is_awaited()
            && let Some(reply_to) = self.lifecycle.end_drain()
        {
            self.outputs.push(Output::Reply(reply_to, Ok(Response::Done)));
        }
    }

    /// Starts over: the next thing that is read is behind the committer's barrier.
    fn begin_term(&mut self) {
        let term = self.lifecycle.begin_term();
        if Sabotage::GroupOnFailedOne.is_on() {
            self.recover();
        } else {
            self.outputs.push(Output::Barrier(term));
        }
    }

    /// Starts over after a panic of its own. An entity that was being worked on too often when that
    /// happened is left alone from here on.
    fn panicked(&mut self, error: &Error) {
        self.activations.blame_running();
        self.restart(error);
    }

    /// Ends a term whose write group was not committed. Everything in memory was built on it.
    fn restart(&mut self, error: &Error) {
        self.end_term(error);
        self.begin_term();
    }

    /// Ends for good; what is to be done is told to nobody but those who wait, in these and in
    /// earlier inputs.
    fn dissolve(&mut self, error: &Error, inputs: impl IntoIterator<Item = Input>) -> Vec<Output> {
        let waiting =
            self.lifecycle.end().chain(inputs.into_iter().filter_map(Input::into_reply_to));
        let waiting: Vec<_> = waiting.collect();
        waiting.into_iter().for_each(|reply_to| self.refuse(reply_to, error));
        self.end_term(error);
        std::mem::take(&mut self.outputs)
    }

    fn end_term(&mut self, error: &Error) {
        // Reads that were asked for belong to this term; answers and write groups left it already.
        self.outputs.retain(|output| matches!(output, Output::Reply(..) | Output::Commit(_)));
        let envelopes = self.activations.clear();
        let waiting = self.group.clear().into_iter();
        let waiting = waiting.chain(envelopes.filter_map(envelope::Envelope::into_reply_to));
        let waiting: Vec<_> = waiting.chain(self.keys.clear()).collect();
        waiting.into_iter().for_each(|reply_to| self.refuse(reply_to, error));
        self.inbox.clear();
        self.reminders.clear();
        self.dead_letters.clear();
        self.links.clear();
    }

    fn recover(&mut self) {
        self.lifecycle.begin_recovery();
        self.outputs.push(Output::Recover);
    }

    fn recovered(&mut self, receivers: ReadResult<Vec<EntityId>>) {
        let Some(receivers) = self.readable(receivers) else { return };
        let early = self.lifecycle.begin_service();
        for note in self.environment.foreign_notes() {
            self.group.write(note);
        }
        self.add_receivers(receivers);
        let (now, released) = (self.moment.now, self.group.released());
        self.outputs.push(self.reminders.begin_scan(now, released));
        self.outputs.push(Output::Letters(None));
        for input in early {
            self.take(input);
        }
    }

    /// Reads again what could not be read.
    fn retry_recovery(&mut self) {
        if self.links.is_retry_due(self.moment.now) {
            match self.lifecycle.phase() {
                Phase::Serving => self.outputs.push(Output::Receivers),
                Phase::Fencing => {}
                Phase::Recovering => self.recover(),
            }
        }
    }
}
