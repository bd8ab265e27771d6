//! Running: the head of each ready mailbox, a bounded number of turns at a time, and what comes back
//! of operations that await and of reads that a turn waits for.

use std::{sync::Arc, time::Duration};

use stead_entities::{
    Condition, Context, EntityId, Error, ErrorKind, Origin, Version,
    context::{AnswerTo, Turn},
    entity::Argument,
};
use tracing::Span;

use super::{
    Partition,
    activations::{Stage, WaitsForRead},
    deletion::unreadable,
    envelope::{AttemptCount, Caller, Delete, Envelope, FirstTry, LockChange, Operation, Row},
    message::{Output, Returned, Start},
    named::Standing,
    persist::withdrawn,
    turn::{self, Halt, NextTry, Turned, guarded},
};
use crate::{
    rules::Rule,
    store::{
        ReadResult, ReminderPage,
        tables::{dead_letters::Cause, reminders::ReminderRecord},
    },
    telemetry,
};

/// The most turns of one entity before its neighbours get theirs.
const TURNS_PER_ENTITY_MAX: usize = 64;
/// The most turns of one step.
const TURNS_PER_STEP_MAX: usize = 1_024;
/// The wait before what writes is tried again on a disk that is nearly full.
pub(super) const ROOM_PAUSE: Duration = Duration::from_millis(500);

/// The reason of an operation that was running each time the process ended.
const ENDED_THE_PROCESS: &str = "the process ended during every attempt: the operation blocks its \
                                 thread, or uses up what the process has";

/// Whether the next entry of a mailbox can follow.
enum Next {
    Goes,
    Waits,
}

impl Partition {
    /// Runs what can run, each entity for its share.
    pub(super) fn run_ready(&mut self, is_long: impl Fn() -> bool) {
        Rule::PartitionServes.check(self.lifecycle.is_serving());
        let mut turns = TURNS_PER_STEP_MAX;
        while turns > 0
            && !self.group.is_full()
            && !self.environment.memory().waits_for_commits()
            && let Some(id) = self.activations.begin_running()
        {
            if self.lifecycle.is_stopping() && !self.activations.of(&id).is_awaited() {
                continue;
            }
            let share = turns.min(TURNS_PER_ENTITY_MAX);
            let used = self.run_entity(&id, share);
            turns -= used;
            if used == share {
                // The rest goes behind the neighbours, in this step unless it has become long: answers
                // wait for its end.
                self.activations.make_ready(&id);
                if is_long() {
                    break;
                }
            }
        }
        self.activations.end_running();
    }

    fn run_entity(&mut self, id: &EntityId, turns: usize) -> usize {
        for used in 0..turns {
            match self.activations.of(id).stage() {
                Stage::Ready(_) => {}
                Stage::Unusable(error) => {
                    let error = error.clone();
                    self.refuse_unusable(id, &error);
                    return used;
                }
                Stage::Unreadable(at) => {
                    let at = *at;
                    self.read_again(id, at);
                    return used;
                }
                Stage::Reading { .. } => {
                    self.ask_for_read(id);
                    return used;
                }
                Stage::Loading | Stage::Awaiting { .. } => return used,
            }
            let activation = self.activations.of(id);
            let Some(envelope) = activation.pop() else {
                self.ask_holder(id);
                self.page(id);
                return used;
            };
            activation.use_at(self.moment.now);
            if let Next::Waits = self.run_envelope(id, envelope) {
                return used;
            }
        }
        turns
    }

    fn run_envelope(&mut self, id: &EntityId, envelope: Envelope) -> Next {
        if self.keys.is_looking(envelope.key()) {
            self.activations.of(id).put_back(envelope);
            return Next::Waits;
        }
        let Some(envelope) = self.pass_lock(id, envelope) else { return Next::Goes };
        match envelope {
            Envelope::Lock(change) => self.run_lock_change(id, change),
            Envelope::Read(read) => {
                self.read(id, *read);
                self.unless_busy(id)
            }
            Envelope::Operation(operation) => self.run_operation(id, operation),
            Envelope::Delete(delete) => self.run_deletion(id, delete),
            Envelope::Cancel(cancel) => {
                if !cancel.reply_to.take() {
                    return Next::Goes;
                }
                if !self.moment.has_room {
                    self.refuse(cancel.reply_to, &full());
                    return Next::Goes;
                }
                self.cancel(id, cancel);
                self.unless_busy(id)
            }
            Envelope::Upgrade(version, reply_to) => {
                self.upgrade(id, version, reply_to);
                Next::Goes
            }
            Envelope::FreeLock(holder, reply_to) => {
                self.free_lock(id, holder.as_deref(), reply_to);
                Next::Goes
            }
            Envelope::Purge(mut purge) => {
                if self.moment.has_room {
                    self.wait_for_read(id, WaitsForRead::Purge(purge));
                    return Next::Waits;
                }
                // What only reads goes before it meanwhile.
                purge.permit = None;
                self.activations.of(id).push(Envelope::Purge(purge));
                self.activations.retry(self.moment.now + ROOM_PAUSE, id);
                Next::Waits
            }
            Envelope::Expire(expire) => match self.run_expiry(id, expire) {
                true => Next::Waits,
                false => Next::Goes,
            },
            Envelope::Undeliverable(undeliverable) => {
                if !self.moment.has_room {
                    return self.wait_for_room(id, Envelope::Undeliverable(undeliverable));
                }
                self.end_undeliverable(id, *undeliverable);
                Next::Goes
            }
        }
    }

    fn run_lock_change(&mut self, id: &EntityId, change: Box<LockChange>) -> Next {
        if !self.moment.has_room {
            return self.wait_for_room(id, Envelope::Lock(change));
        }
        self.change_lock(id, *change);
        Next::Goes
    }

    /// Whether an entity can run what follows, or something has to come back first.
    fn unless_busy(&mut self, id: &EntityId) -> Next {
        match self.activations.of(id).is_busy() {
            true => Next::Waits,
            false => Next::Goes,
        }
    }

    /// Puts work that writes back into its place while the disk is nearly full.
    fn wait_for_room(&mut self, id: &EntityId, mut envelope: Envelope) -> Next {
        envelope.drop_permit();
        self.activations.of(id).put_back(envelope);
        self.activations.retry(self.moment.now + ROOM_PAUSE, id);
        Next::Waits
    }

    /// The newest state of an entity, which may not be durable yet.
    fn version_of(&mut self, id: &EntityId) -> Option<Version> {
        self.activations.of(id).live_mut().version()
    }

    /// The error where a condition does not hold; `None` where it does.
    pub(super) fn objection(
        &mut self,
        id: &EntityId,
        condition: Option<&Condition>,
    ) -> Option<Error> {
        let condition = condition?;
        let version = self.version_of(id);
        if condition.holds(version) {
            return None;
        }
        let message = match version {
            Some(version) => format!("{id} is at version {version}, and not at the one required"),
            None => format!("{id} has no state"),
        };
        Some(Error::new(ErrorKind::Precondition, message))
    }

    /// The time and the entropy of a turn or query that is run for the first time.
    pub(super) fn first_try(&mut self, id: &EntityId) -> FirstTry {
        let (seed, token) = (self.environment.seed(), self.environment.token());
        let now = self.moment.now.max(self.activations.of(id).live_mut().committed_at());
        FirstTry { now, seed, token, entries: 0, bytes: 0 }
    }

    pub(super) fn new_turn(
        &mut self,
        id: &EntityId,
        token: u128,
        origin: Option<Arc<Origin>>,
        first: &FirstTry,
    ) -> Turn {
        let revision = self.activations.of(id).live_mut().revision();
        let FirstTry { now, seed, .. } = *first;
        Turn { origin, ..Turn::new(id.clone(), now, revision, (seed, token)) }
    }

    /// The context of a turn of an operation.
    fn context_of(&mut self, id: &EntityId, operation: &Operation, first: &FirstTry) -> Context {
        let mut turn = self.new_turn(id, operation.token, operation.origin.clone(), first);
        turn.answer_to = match (self.reply_address(operation), &operation.caller) {
            (Some(address), _) => AnswerTo::Asker(address),
            (None, Caller::Call(_)) => AnswerTo::Caller,
            (None, Caller::Signal { .. } | Caller::Accepted { .. }) => AnswerTo::Nobody,
        };
        turn.failure = operation.failure.as_deref().map(Into::into);
        turn.was_interrupted = matches!(operation.row, Row::Inbox(_))
            && self.attempts.was_interrupted(operation.accepted_at);
        Context::new(turn)
    }

    fn run_operation(&mut self, id: &EntityId, operation: Box<Operation>) -> Next {
        let Some(mut operation) = self.wait_for_retry(id, operation) else { return Next::Goes };
        if !operation.take() {
            self.forget(operation.key.as_ref(), operation.replays(), &withdrawn());
            return Next::Goes;
        }
        let standing = match &operation.row {
            Row::Reminder(occurrence) => self.standing(id, occurrence),
            Row::None | Row::Inbox(_) => Standing::Current,
        };
        if let (Standing::Gone, Row::Reminder(occurrence)) = (standing, &operation.row) {
            self.reminders.gone(id, occurrence);
            self.activations.of(id).put_back_answers(operation.gathered);
            return Next::Goes;
        }
        if let Some(error) = self.objection(id, operation.condition.as_ref()) {
            self.refuse_by_condition(id, *operation, error);
            return Next::Goes;
        }
        if !self.moment.has_room {
            return self.run_without_room(id, operation);
        }
        match (standing, &operation.row) {
            (Standing::Moved(due), Row::Reminder(occurrence)) => {
                self.put_off(id, occurrence, due, operation.permit.take());
                return Next::Goes;
            }
            (Standing::Missed, _) => {
                self.consume(id, &mut operation);
                return Next::Goes;
            }
            _ => {}
        }
        let Some(mut operation) = self.gather(id, operation) else { return Next::Goes };
        if let Some(due) = operation.due().filter(|due| *due > self.moment.now) {
            self.schedule(id, *operation, due);
            return Next::Goes;
        }
        if operation.count == AttemptCount::BeforeRun {
            self.attempts.clear_if_it_only_waited(id, &mut operation);
        }
        match operation.count {
            AttemptCount::BeforeRun => return self.count_attempts(id, operation),
            AttemptCount::By(group) if group > self.group.released() => {
                self.activations.of(id).put_back(Envelope::Operation(operation));
                return Next::Waits;
            }
            AttemptCount::By(_) | AttemptCount::AfterFailure => {}
        }
        let retries = self.environment.limits(id, Some(operation.index)).retries;
        if operation.attempts > retries.saturating_add(1) && operation.failure.is_none() {
            let error = Error::new(ErrorKind::Internal, ENDED_THE_PROCESS);
            if self.tell_failure(id, &mut operation, &error) {
                return self.run_turn(id, operation);
            }
            self.dead_letter(id, *operation, Cause::Failure, ENDED_THE_PROCESS);
            return Next::Goes;
        }
        match operation.awaits {
            true => self.start(id, operation),
            false => self.run_turn(id, operation),
        }
    }

    fn refuse_by_condition(&mut self, id: &EntityId, operation: Operation, error: Error) {
        if operation.row != Row::None {
            return self.fail_call(id, operation, error);
        }
        self.forget(operation.key.as_ref(), operation.replays(), &error);
        if let Some(reply_to) = operation.into_reply_to() {
            self.answer(id, reply_to, Err(error));
        }
    }

    /// Has a stored operation wait while the disk is nearly full, and refuses one that a caller waits for.
    fn run_without_room(&mut self, id: &EntityId, operation: Box<Operation>) -> Next {
        if operation.row == Row::None {
            self.refuse_operation(*operation, &full());
            return Next::Goes;
        }
        if operation.sender().is_some() {
            self.retry_at(id, operation, self.moment.now + ROOM_PAUSE);
            return Next::Goes;
        }
        self.wait_for_room(id, Envelope::Operation(operation))
    }

    /// Counts, durably, the attempts of the first operations that an unclean stop left behind.
    fn count_attempts(&mut self, id: &EntityId, operation: Box<Operation>) -> Next {
        let group = self.group.number();
        let is_one = self.attempts.knows_what_ran();
        let activation = self.activations.of(id);
        activation.put_back(Envelope::Operation(operation));
        let mut counted = Vec::new();
        for operation in activation.uncounted(is_one) {
            let retries = self.environment.limits(id, Some(operation.index)).retries;
            if self.attempts.count(id, operation, retries, group) {
                counted.push((operation.row.clone(), operation.attempts));
            }
        }
        if counted.is_empty() {
            self.activations.make_ready(id);
            return Next::Waits;
        }
        self.activations.of(id).hold_until(group);
        self.group.resume_after(group, id);
        let mailbox = self.activations.of(id).take_mailbox();
        for envelope in &mailbox {
            if let Envelope::Operation(operation) = envelope
                && operation.count == AttemptCount::By(group)
            {
                self.write_attempts(id, operation);
            }
        }
        self.activations.of(id).set_mailbox(mailbox);
        Next::Waits
    }

    /// The argument of an operation: decoded where it arrived, else here.
    fn argument(&self, id: &EntityId, operation: &mut Operation) -> Result<Argument, String> {
        if let Some(argument) = operation.argument.take() {
            return Ok(argument);
        }
        let known = self.environment.served(id);
        let decoded = known.decode_argument(operation.index, &operation.argument_json());
        decoded.map_err(|error| error.to_string())
    }

    /// A stored argument that its operation no longer takes.
    fn refuse_undecodable(&mut self, id: &EntityId, mut operation: Operation, why: String) {
        if operation.is_call() {
            return self.fail_call(id, operation, Error::new(ErrorKind::Invalid, why));
        }
        self.accept_late(&mut operation);
        self.dead_letter(id, operation, Cause::Undecodable, &why);
    }

    fn run_turn(&mut self, id: &EntityId, mut operation: Box<Operation>) -> Next {
        let argument = match self.argument(id, &mut operation) {
            Ok(argument) => argument,
            Err(why) => {
                self.refuse_undecodable(id, *operation, why);
                return Next::Goes;
            }
        };
        let known = self.environment.served(id);
        let name = known.name_of(operation.index);
        let span = telemetry::turn(id, name, operation.origin.as_deref());
        let _entered = span.enter();
        let first = operation.first_try.take().map_or_else(|| self.first_try(id), |first| *first);
        let ctx = self.context_of(id, &operation, &first);
        let limits = self.environment.config().limits(known.policy_of(operation.index));
        let (reply_to, row) = (operation.reply_to(), &operation.row);
        self.environment.watch().begin(id, name, reply_to, row, limits);
        let mark = Some(operation.token).filter(|_| operation.is_marked);
        mark.iter().for_each(|token| self.attempts.mark(Some(*token)));
        let live = self.activations.of(id).live_mut();
        let standard = live.standard(self.environment.config().state_bytes_max);
        let turned = turn::run(&*known, operation.index, live.state(), ctx, argument, standard);
        mark.iter().for_each(|_| self.attempts.mark(None));
        let turned = match self.environment.watch().end() {
            false => turned,
            true => Turned::failed(late(limits.deadline)),
        };
        operation.first_try = Some(Box::new(first)).filter(|_| matches!(turned, Turned::Missed(_)));
        #[cfg(feature = "sabotage")]
        if crate::sabotage::Sabotage::DiscardRestoresStored.is_on()
            && !matches!(turned, Turned::Applied(_))
        {
            let next = self.settle_turn(id, operation, turned);
            self.activations.forget(id);
            self.activate(id);
            return next;
        }
        self.settle_turn(id, operation, turned)
    }

    /// Settles a turn; one that deletes its entity first needs to know what is delayed.
    fn settle_turn(&mut self, id: &EntityId, operation: Box<Operation>, turned: Turned) -> Next {
        match turned {
            Turned::Applied(applied) if applied.effects.deleted => {
                let applied = Box::new(applied);
                self.wait_for_read(id, WaitsForRead::Turn(operation, applied));
                Next::Waits
            }
            turned => {
                self.settle(id, operation, turned);
                self.unless_busy(id)
            }
        }
    }

    fn run_deletion(&mut self, id: &EntityId, delete: Box<Delete>) -> Next {
        if !delete.reply_to.take() {
            self.forget(delete.key.as_ref(), None, &withdrawn());
            return Next::Goes;
        }
        if let Some(error) = self.objection(id, delete.condition.as_ref()) {
            self.forget(delete.key.as_ref(), None, &error);
            self.answer(id, delete.reply_to, Err(error));
            return Next::Goes;
        }
        if !self.moment.has_room {
            self.refuse_deletion(*delete, &full());
            return Next::Goes;
        }
        self.wait_for_read(id, WaitsForRead::Delete(delete));
        Next::Waits
    }

    /// Takes a page of an entity's reminders, which something waits for.
    pub(super) fn reminders_read(&mut self, id: &EntityId, page: ReadResult<ReminderPage>) {
        let activation = self.activations.get_mut(id);
        let is_it = |waits: &WaitsForRead| {
            !matches!(waits, WaitsForRead::Cancel(_) | WaitsForRead::Entries(..))
        };
        let Some(waits) = activation.and_then(|it| it.end_read(is_it)) else { return };
        match (waits, page) {
            (WaitsForRead::Purge(purge), Ok(page)) => self.purge_page(id, purge, page),
            (WaitsForRead::Purge(purge), Err(error)) => {
                tracing::error!(entity = %id, %error, "reminders cannot be read");
                return self.retry_purge(id, purge);
            }
            (WaitsForRead::Delete(delete), Ok(page)) => {
                let delayed = self.delayed(id, page, delete.accepted_at);
                self.delete(id, *delete, delayed);
            }
            (WaitsForRead::Delete(delete), Err(error)) => {
                self.refuse_deletion(*delete, &unreadable(&error));
            }
            (WaitsForRead::Turn(operation, applied), Ok(page)) => {
                let delayed = self.delayed(id, page, operation.accepted_at);
                // At once: what waited for a retry meanwhile must not come between.
                self.apply(id, operation, *applied, Some(delayed));
            }
            (WaitsForRead::Turn(operation, _), Err(error)) => {
                self.fail_to_read(id, operation, unreadable(&error));
            }
            (WaitsForRead::Expire(expire), page) => self.expire(id, *expire, page),
            (WaitsForRead::Cancel(_) | WaitsForRead::Entries(..), _) => {
                unreachable!("it waits for other rows")
            }
        }
        self.activations.make_ready(id);
    }

    /// Takes one reminder of an entity, which is to be cancelled.
    pub(super) fn reminder_read(
        &mut self,
        id: &EntityId,
        found: ReadResult<Option<ReminderRecord>>,
    ) {
        let activation = self.activations.get_mut(id);
        let waits =
            activation.and_then(|it| it.end_read(|it| matches!(it, WaitsForRead::Cancel(_))));
        if let Some(WaitsForRead::Cancel(cancel)) = waits {
            self.cancel_stored(id, *cancel, found);
            self.activations.make_ready(id);
        }
    }

    /// Starts an operation that awaits, once its inbox row and all earlier turns are durable.
    fn start(&mut self, id: &EntityId, mut operation: Box<Operation>) -> Next {
        if operation.row == Row::None && operation.is_call() {
            self.write_call(id, &mut operation);
        } else if operation.row == Row::None {
            // A signal is accepted here, where its condition holds.
            operation.condition = None;
            self.accept_now(id, &mut operation);
        }
        let unreleased = self.unreleased(id);
        if unreleased > self.group.released() {
            self.group.resume_after(unreleased, id);
            self.activations.of(id).put_back(Envelope::Operation(operation));
            self.accept_waiting(id);
            return Next::Waits;
        }
        // What awaits may do so for long, and keeps nobody else from being due.
        operation.permit = None;
        let argument = match self.argument(id, &mut operation) {
            Ok(argument) => argument,
            Err(why) => {
                self.refuse_undecodable(id, *operation, why);
                return Next::Goes;
            }
        };
        let live = self.activations.of(id).live_mut();
        let state = match guarded(|| live.state().clone_state()) {
            Ok(state) => state,
            Err(error) => {
                self.fail(id, operation, error, NextTry::ByPolicy);
                return Next::Goes;
            }
        };
        let span = self.turn_span(id, &operation);
        let first = operation.first_try.take().unwrap_or_else(|| Box::new(self.first_try(id)));
        let ctx = self.context_of(id, &operation, &first);
        operation.first_try = Some(first);
        let ctx = ctx.with_dependencies(self.environment.served(id).dependencies().clone());
        let (run, index) = (self.lifecycle.next_run(), operation.index);
        let (row, reply_to) = (operation.row.clone(), operation.reply_to().cloned());
        self.activations.of(id).await_on(run, operation);
        let limits = self.environment.limits(id, Some(index));
        // It may await for long, but no poll of it blocks its thread for longer than a turn may.
        let polled = limits.at_most(self.environment.config().turn_deadline);
        let start = {
            let id = id.clone();
            Start { id, run, index, state, ctx, argument, row, reply_to, limits, polled, span }
        };
        self.outputs.push(Output::Start(Box::new(start)));
        self.accept_waiting(id);
        Next::Waits
    }

    fn turn_span(&self, id: &EntityId, operation: &Operation) -> Span {
        telemetry::turn(id, self.name_of(id, operation), operation.origin.as_deref())
    }

    /// An operation that awaited is back; what it did becomes a turn, or nothing.
    pub(super) fn returned(&mut self, returned: Returned) {
        let Returned { id, run, result } = returned;
        let activation = self.activations.get_mut(&id);
        let returned = activation.and_then(|entry| entry.returned(run));
        let Some(mut operation) = returned else { return };
        let turned = match result {
            Ok((state, ctx, outcome)) => {
                let known = self.environment.served(&id);
                let bytes_max = self.environment.config().state_bytes_max;
                let standard = self.activations.of(&id).live_mut().standard(bytes_max);
                turn::settle(&*known, state, ctx, outcome, standard)
            }
            Err(Halt::Missed(miss)) => Turned::Missed(miss),
            Err(Halt::Failed(error)) => Turned::failed(error),
        };
        if !matches!(turned, Turned::Missed(_)) {
            operation.first_try = None;
        }
        let span = self.turn_span(&id, &operation);
        let _entered = span.enter();
        // The next entry follows when the entity runs again.
        let _next = self.settle_turn(&id, operation, turned);
        self.activations.make_ready(&id);
    }
}

fn late(deadline: Duration) -> Error {
    Error::new(ErrorKind::Deadline, format!("the turn took longer than {deadline:?}"))
}

pub(super) fn full() -> Error {
    Error::new(ErrorKind::Full, "the disk is nearly full")
}
