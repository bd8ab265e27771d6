//! The end of a turn: its state and effects join the open write group, or nothing remains but an attempt.

use std::sync::Arc;

use stead_entities::{
    EntityId, Error, ErrorKind, Failure, Origin, Rejection, Timestamp, Version,
    context::Effects,
    effect::{Effect, Signal, check_own_operations},
    operation::Reply,
};

use super::{
    Partition, READ_PAUSE,
    deletion::Delayed,
    envelope::{AttemptCount, Caller, Envelope, Operation, Row},
    idempotency::IdempotencyKeys,
    message::Delivery,
    reply::Response,
    steps::StepsToEnd,
    turn::{Applied, NextTry, Turned},
};
use crate::{
    map::Set,
    sabotage::Sabotage,
    store::{
        Write,
        tables::{
            dead_letters::Cause,
            idempotency::Remembered,
            inbox::{Asked, InboxKey, InboxRecord},
            origins::StoredOrigin,
            reminders::{ReminderRecord, Slot},
        },
    },
};

impl Partition {
    /// Settles a turn that deletes nothing, or has it wait for what it lacks.
    pub(super) fn settle(&mut self, id: &EntityId, operation: Box<Operation>, turned: Turned) {
        match turned {
            Turned::Applied(Applied { effects, reply, .. }) if effects.is_void => {
                self.leave(id, *operation, reply);
            }
            Turned::Applied(applied) => self.apply(id, operation, applied, None),
            Turned::Rejected(rejection) => self.reject(id, *operation, rejection),
            Turned::Missed(miss) => {
                self.wait_for_entries(id, Envelope::Operation(operation), miss);
            }
            Turned::Failed(error, next) => self.fail(id, operation, error, next),
        }
    }

    /// Why a turn may not leave what it wants to leave: too many reminders, or one that could not be
    /// applied when it is due.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`].
    fn check_effects(
        &mut self,
        id: &EntityId,
        operation: &Operation,
        effects: &Effects,
    ) -> Result<(), Error> {
        if effects.list.is_empty() {
            return Ok(());
        }
        check_own_operations(&effects.list, |operation, input| {
            let (index, _) = self.environment.operation(id, operation)?;
            let known = self.environment.served(id);
            known.decode_argument(index, input).map(drop).map_err(|error| error.to_string())
        })?;
        let heads = self.activations.of(id).live_mut().reminders();
        let mut names: Set<&str> = Set::default();
        let mut timeouts = 0;
        for effect in &effects.list {
            match effect {
                Effect::Remind(reminder)
                    if !heads.iter().any(|head| head.name == reminder.name) =>
                {
                    names.insert(&reminder.name);
                }
                Effect::Ask(ask) => timeouts += usize::from(ask.timeout.is_some()),
                _ => {}
            }
        }
        let (limit, added) = (self.environment.config().reminders_max, names.len() + timeouts);
        // Its own timeout ends with the turn.
        let ended = usize::from(operation.answer().is_some_and(|(_, asked)| asked.has_timeout));
        if added == 0 || heads.len() + added <= limit + ended {
            return Ok(());
        }
        let message = format!("an entity has at most {limit} reminders and timeouts of asks");
        Err(Error::new(ErrorKind::Invalid, message))
    }

    /// Makes a turn part of the open write group; `delayed` is what ends with the entity, where the
    /// turn deletes it.
    pub(super) fn apply(
        &mut self,
        id: &EntityId,
        mut operation: Box<Operation>,
        applied: Applied,
        delayed: Option<Delayed>,
    ) {
        let Applied { state, entries, effects, reply } = applied;
        if let Err(error) = self.check_effects(id, &operation, &effects) {
            return self.fail(id, operation, error, NextTry::ByPolicy);
        }
        if let Some(why) = &effects.trouble {
            tracing::warn!(entity = %id, why, "a workflow does not go on by itself");
        }
        let version = self.begin_revision(id, state);
        self.group.count_entries(entries);
        self.consume(id, &mut operation);
        if effects.is_deferred {
            operation.asked = None;
        }
        let ended = delayed.map(|it| self.begin_deletion(id, operation.accepted_at, it));
        let (mut index, mut expiry) = (0, None);
        for effect in effects.list {
            let origin = &operation.origin;
            match effect {
                Effect::Signal(signal) => {
                    self.send(id, (version, index), signal, origin.clone(), None);
                    index += 1;
                }
                Effect::Ask(ask) => index = self.ask(id, (version, index), ask, origin.as_ref()),
                Effect::Remind(reminder) => self.remind(id, reminder),
                Effect::CancelReminder(name) => drop(self.cancel_named(id, &name)),
                Effect::Expire(length) => expiry = Some(length),
                Effect::Step(start) => self.begin_step(start, origin.clone()),
                Effect::CancelStep(step) => self.end_steps(StepsToEnd::One(step)),
                Effect::CancelSteps(of, run) => self.end_steps(StepsToEnd::OfRun(of, run)),
                Effect::OnHosting(told) => self.on_hosting(id, told),
                Effect::Answer(address, answer) => {
                    let origin = origin.clone();
                    self.answer_later(&address, answer, origin);
                }
            }
        }
        match ended {
            Some(ended) => self.end_generation(id, ended),
            None => self.arm_expiry(id, expiry),
        }
        self.conclude(id, *operation, reply);
    }

    /// Tells how an operation came out, once the open write group is durable.
    fn conclude(&mut self, id: &EntityId, mut operation: Operation, result: Reply) {
        if let Err(rejection) = &result
            && !operation.is_call()
            && operation.question().is_none()
        {
            self.accept_late(&mut operation);
            return self.conclude_in_letter(id, operation, Cause::Rejection, rejection.reason());
        }
        self.remove_replayed(&mut operation);
        let answer = result.as_ref().map(|json| &json[..]);
        self.answer_question(&operation, answer.map_err(|no| Failure::Rejected(no.clone())));
        let (remembered, response) = match result {
            _ if !operation.is_call() => (Remembered::Accepted, Response::Done),
            Ok(json) => (Remembered::Replied(json.clone()), Response::Replied(json)),
            Err(no) => (Remembered::rejected(&no), Response::Rejected(no)),
        };
        let key = operation.key.as_ref();
        IdempotencyKeys::remember(key, remembered, self.moment.now, &mut self.group);
        match operation.into_reply_to() {
            Some(reply_to) if Sabotage::ReleaseBeforeFlush.is_on() => reply_to.answer(Ok(response)),
            Some(reply_to) => self.group.reply(reply_to, Ok(response)),
            None => {}
        }
    }

    pub(super) fn send(
        &mut self,
        from: &EntityId,
        (version, index): (Version, u32),
        signal: Signal,
        origin: Option<Arc<Origin>>,
        asked: Option<Box<Asked>>,
    ) {
        let partition = self.environment.partition_of(&signal.target);
        let (now, token) = (self.moment.now, self.environment.token());
        let operation = signal.operation.into_owned();
        if let Some(delay) = signal.delay {
            let number = self.environment.mint(now);
            let record = ReminderRecord {
                due: delay.due(now),
                number,
                schedule: None,
                operation,
                input: signal.input,
                token,
                attempts: 0,
                accepted_at: now,
                sender: from.to_string(),
                origin,
            };
            let slot = Slot::Delayed(number);
            let row = Write::Remind(partition, signal.target.clone(), slot.clone(), record.clone());
            self.group.write(row);
            return self.group.deliver(partition, Delivery::Delayed(signal.target, slot, record));
        }
        let key = InboxKey {
            partition,
            receiver: signal.target,
            sender: Arc::from(from.as_str()),
            generation: version.generation,
            revision: version.revision,
            index,
        };
        let record = InboxRecord {
            origin: origin.map(StoredOrigin),
            asked,
            ..InboxRecord::signal(token, operation, signal.input, now)
        };
        self.send_row(key, record, !Sabotage::SignalsWithoutRows.is_on());
    }

    /// A turn that changes nothing, though it is done.
    fn leave(&mut self, id: &EntityId, mut operation: Operation, reply: Reply) {
        self.consume(id, &mut operation);
        self.conclude(id, operation, reply);
    }

    /// A rejection: no state, no effects, but the operation is done with.
    fn reject(&mut self, id: &EntityId, mut operation: Operation, rejection: Rejection) {
        self.consume(id, &mut operation);
        if !operation.is_call() || operation.key.is_some() || operation.row != Row::None {
            return self.conclude(id, operation, Err(rejection));
        }
        // There is nothing to write; the answer rests on earlier turns.
        if let Some(reply_to) = operation.into_reply_to() {
            self.answer(id, reply_to, Ok(Response::Rejected(rejection)));
        }
    }

    /// A call that failed: its caller hears it, and nothing is remembered.
    pub(super) fn fail_call(&mut self, id: &EntityId, mut call: Operation, error: Error) {
        if call.row == Row::None {
            self.forget(call.key.as_ref(), None, &error);
        } else {
            self.consume(id, &mut call);
            IdempotencyKeys::forget_stored(call.key.as_ref(), &error, &mut self.group);
        }
        if let Some(reply_to) = call.into_reply_to() {
            self.group.reply(reply_to, Err(error));
        }
    }

    /// Has an operation run once more to be told why it failed, where its type wants to hear of that. What may
    /// pass by itself is tried again as any other failure.
    pub(super) fn tell_failure(
        &self,
        id: &EntityId,
        operation: &mut Operation,
        error: &Error,
    ) -> bool {
        let hears = self.environment.served(id).is_workflow();
        if !hears || operation.failure.is_some() || error.kind() == ErrorKind::Unavailable {
            return false;
        }
        operation.failure = Some(error.message().into());
        operation.first_try = None;
        true
    }

    /// A failure: nothing of the turn stays. A signal is tried again, a bounded number of times.
    pub(super) fn fail(
        &mut self,
        id: &EntityId,
        mut operation: Box<Operation>,
        error: Error,
        next_try: NextTry,
    ) {
        if self.tell_failure(id, &mut operation, &error) {
            self.activations.of(id).put_back(Envelope::Operation(operation));
            return self.activations.make_ready(id);
        }
        let attempts = operation.attempts;
        tracing::warn!(entity = %id, kind = ?error.kind(), %error, attempts, "a turn failed");
        if operation.is_call() {
            return self.fail_call(id, *operation, error);
        }
        // It is accepted with this attempt, which its condition allowed.
        operation.condition = None;
        if !matches!(operation.count, AttemptCount::By(_)) {
            operation.attempts += 1;
        }
        operation.count = AttemptCount::AfterFailure;
        let limits = self.environment.limits(id, Some(operation.index));
        if operation.attempts > limits.retries || next_try == NextTry::Never {
            self.accept_late(&mut operation);
            return self.dead_letter(id, *operation, Cause::Failure, error.message());
        }
        if operation.row == Row::None {
            self.accept_now(id, &mut operation);
        } else if !Sabotage::AttemptsInMemory.is_on() {
            self.write_attempts(id, &operation);
        }
        let pause = match next_try {
            NextTry::After(length) => length.as_duration(),
            NextTry::ByPolicy | NextTry::Never => limits.retry_after(operation.attempts),
        };
        self.retry_at(id, operation, (self.moment.now + pause).min(Timestamp::MAX));
    }

    /// A turn that lacks rows which the store could not read. What is stored is tried again until it can, and it
    /// counts for nothing; everybody else hears of it.
    pub(super) fn fail_to_read(
        &mut self,
        id: &EntityId,
        mut operation: Box<Operation>,
        error: Error,
    ) {
        operation.first_try = None;
        if error.kind() != ErrorKind::Unavailable || Sabotage::ReadsAreAttempts.is_on() {
            return self.fail(id, operation, error, NextTry::ByPolicy);
        }
        tracing::error!(entity = %id, %error, "a turn waits until the store can read");
        if operation.is_call() {
            return self.fail_call(id, *operation, error);
        }
        if operation.row == Row::None {
            return self.refuse_operation(*operation, &error);
        }
        self.retry_at(id, operation, self.moment.now + READ_PAUSE);
    }

    /// Has a signal tried again at a time, and whatever its sender sends behind it after that.
    pub(super) fn retry_at(
        &mut self,
        id: &EntityId,
        mut signal: Box<Operation>,
        retry_at: Timestamp,
    ) {
        signal.permit = None;
        let sender = signal.sender().expect("a signal that is tried again keeps an order");
        self.activations.of(id).retry_at(sender, signal, retry_at);
        self.activations.retry(retry_at, id);
    }

    /// A signal that ends in its first turn was accepted all the same: the dead letter says so.
    pub(super) fn accept_late(&mut self, signal: &mut Operation) {
        let key = signal.key.as_ref();
        IdempotencyKeys::remember(key, Remembered::Accepted, self.moment.now, &mut self.group);
        if let Caller::Signal { reply_to, .. } = &signal.caller {
            self.group.reply(reply_to.clone(), Ok(Response::Done));
        }
    }

    /// Puts a signal behind others of its sender that wait for a retry, durably.
    pub(super) fn wait_for_retry(
        &mut self,
        id: &EntityId,
        mut signal: Box<Operation>,
    ) -> Option<Box<Operation>> {
        let Some(sender) = signal.sender() else { return Some(signal) };
        if Sabotage::LaterSignalsPass.is_on() || !self.activations.of(id).has_retry(&sender) {
            return Some(signal);
        }
        signal.permit = None;
        let kept = if signal.row == Row::None { self.accept(id, signal)? } else { signal };
        self.activations.of(id).join_retry(&sender, kept)
    }
}
