//! The writes and answers of operations: rows written and removed, keys
//! remembered and forgotten, dead letters, answers. All of it goes into the open write group.
//!
//! This is the lowest layer of what a partition does with its parts; everything above uses it.

use std::collections::VecDeque;

use stead_entities::{DeadLetter, EntityId, Error, ErrorKind, Failure, Timestamp, Version};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Partition,
    envelope::{Caller, Delete, Envelope, Letter, Occurrence, Operation, Row},
    idempotency::IdempotencyKeys,
    message::{Delivery, Keyed, Output},
    reply::{CallResult, ReplySender, Response},
    write_group::Release,
};
use crate::{
    sabotage::Sabotage,
    store::{
        Write,
        tables::{
            dead_letters::{Cause, DeadLetterId},
            idempotency::Remembered,
            inbox::{InboxKey, InboxRecord},
            origins::StoredOrigin,
            reminders::{ReminderRecord, Slot},
            states::ReminderHead,
        },
    },
    types::State,
};

impl Partition {
    /// Answers `reply_to` once everything that this entity has done so far is durable.
    pub(super) fn answer(&mut self, id: &EntityId, reply_to: ReplySender, result: CallResult) {
        let unreleased = self.unreleased(id);
        let is_early =
            Sabotage::AnswerBeforeEarlierTurns.is_on() || Sabotage::CommittedReadOfLive.is_on();
        if unreleased <= self.group.released() || is_early {
            self.outputs.push(Output::Reply(reply_to, result));
        } else {
            self.group.reply(reply_to, result);
        }
    }

    /// Answers at once, because nothing was done.
    pub(super) fn refuse(&mut self, reply_to: ReplySender, error: &Error) {
        self.outputs.push(Output::Reply(reply_to, Err(error.clone())));
    }

    /// The last write group with something of an entity.
    pub(super) fn unreleased(&self, id: &EntityId) -> u64 {
        self.activations.get(id).map_or(0, |entry| entry.unreleased())
    }

    /// Notes that the open write group has something of an entity, if that is in memory.
    pub(super) fn hold_until_durable(&mut self, id: &EntityId) {
        let group = self.group.number();
        if let Some(activation) = self.activations.get_mut(id) {
            activation.hold_until(group);
        }
    }

    /// Makes a signal durable that has to wait for longer than a step, and tells its caller. Returns
    /// it, unless it is for later or its caller gave up.
    pub(super) fn accept(
        &mut self,
        id: &EntityId,
        mut signal: Box<Operation>,
    ) -> Option<Box<Operation>> {
        if !signal.take() {
            self.forget(signal.key.as_ref(), signal.replays(), &withdrawn());
            return None;
        }
        if let Some(due) = signal.due() {
            self.schedule(id, *signal, due);
            return None;
        }
        self.accept_now(id, &mut signal);
        Some(signal)
    }

    /// Makes a signal durable that was begun, unless it is; its caller is told then.
    pub(super) fn accept_now(&mut self, id: &EntityId, signal: &mut Operation) {
        if signal.row == Row::None {
            IdempotencyKeys::remember(
                signal.key.take().as_ref(),
                Remembered::Accepted,
                self.moment.now,
                &mut self.group,
            );
            self.remove_replayed(signal);
            self.write_row(id, signal);
        }
        if let Caller::Signal { reply_to, .. } = &signal.caller {
            let reply_to = reply_to.clone();
            signal.caller = Caller::Accepted { _room: Some(reply_to.clone()) };
            self.group.reply(reply_to, Ok(Response::Done));
        }
    }

    /// Makes a call durable that has to wait for longer than a step.
    pub(super) fn write_call(&mut self, id: &EntityId, call: &mut Operation) {
        IdempotencyKeys::remember(
            call.key.as_ref(),
            Remembered::Pending,
            self.moment.now,
            &mut self.group,
        );
        call.reply_to().into_iter().for_each(ReplySender::make_uncertain);
        self.write_row(id, call);
    }

    /// Writes the inbox row of an operation that has none.
    fn write_row(&mut self, id: &EntityId, operation: &mut Operation) {
        let key = self.new_row(id);
        let record = self.inbox_record(id, operation);
        self.inbox.take_in(key.clone(), operation.input.len());
        self.hold_until_durable(id);
        operation.row = Row::Inbox(key.clone());
        self.group.write(Write::Accept(key, record));
    }

    /// The key of an inbox row that a caller outside, or the runtime, brings about.
    pub(super) fn new_row(&mut self, id: &EntityId) -> InboxKey {
        InboxKey {
            partition: self.environment.number(),
            receiver: id.clone(),
            sender: "".into(),
            generation: 0,
            revision: self.environment.mint(self.moment.now),
            index: 0,
        }
    }

    /// Writes an inbox row of this or another partition, and has that told of it once the row is durable.
    pub(super) fn send_row(&mut self, key: InboxKey, record: InboxRecord, is_written: bool) {
        if is_written {
            self.group.write(Write::Accept(key.clone(), record.clone()));
        }
        self.group.deliver(key.partition, Delivery::Signal(key, record));
    }

    fn inbox_record(&self, id: &EntityId, operation: &Operation) -> InboxRecord {
        InboxRecord {
            token: operation.token,
            operation: self.name_of(id, operation).to_owned(),
            input: operation.input.clone(),
            is_call: operation.is_call(),
            attempts: operation.attempts,
            accepted_at: operation.accepted_at,
            deadline: operation.deadline,
            idempotency: operation.key.as_ref().map(|keyed| {
                let of = &keyed.key;
                (of.caller.to_string(), of.key.to_string(), keyed.fingerprint.meaning)
            }),
            origin: operation.origin.clone().map(StoredOrigin),
            asked: operation.asked.clone(),
        }
    }

    pub(super) fn name_of(&self, id: &EntityId, operation: &Operation) -> &'static str {
        self.environment.served(id).name_of(operation.index)
    }

    /// Writes how often a stored operation was tried.
    pub(super) fn write_attempts(&mut self, id: &EntityId, operation: &Operation) {
        match &operation.row {
            Row::None => {}
            Row::Inbox(key) => {
                let record = self.inbox_record(id, operation);
                self.group.write(Write::Retry(key.clone(), record));
            }
            Row::Reminder(occurrence) => {
                // It stays due.
                let record = self.reminders.count_attempts(id, occurrence, operation.attempts);
                let (partition, slot) = (self.environment.number(), occurrence.slot.clone());
                self.group.write(Write::Remind(partition, id.clone(), slot, record));
            }
        }
    }

    /// Makes a signal durable that joins its entity's order later, and tells its caller.
    pub(super) fn schedule(&mut self, id: &EntityId, mut signal: Operation, due: Timestamp) {
        let number = self.environment.mint(self.moment.now);
        let record = ReminderRecord {
            due,
            number,
            schedule: None,
            operation: self.name_of(id, &signal).to_owned(),
            input: std::mem::take(&mut signal.input),
            token: signal.token,
            attempts: 0,
            accepted_at: signal.accepted_at,
            sender: String::new(),
            origin: signal.origin.take(),
        };
        IdempotencyKeys::remember(
            signal.key.as_ref(),
            Remembered::Scheduled(number),
            self.moment.now,
            &mut self.group,
        );
        self.remove_replayed(&mut signal);
        self.set_reminder(id, Slot::Delayed(number), record);
        if let Caller::Signal { reply_to, .. } = signal.caller {
            self.group.reply(reply_to, Ok(Response::Scheduled(number)));
        }
    }

    /// Makes durable the signals that wait behind something slow, and tells their callers.
    pub(super) fn accept_waiting(&mut self, id: &EntityId) {
        let mailbox = self.activations.of(id).take_mailbox();
        let mut kept = VecDeque::with_capacity(mailbox.len());
        for envelope in mailbox {
            kept.extend(self.ready_to_wait(id, envelope));
        }
        self.activations.of(id).set_mailbox(kept);
    }

    /// Has something wait behind something slow, a signal durably. Returns it, unless it is for later or its caller
    /// gave up.
    pub(super) fn ready_to_wait(
        &mut self,
        id: &EntityId,
        mut envelope: Envelope,
    ) -> Option<Envelope> {
        envelope.drop_permit();
        let is_written = envelope.can_wait_on_disk()
            && !envelope.is_stored()
            && !self.keys.is_looking(envelope.key());
        match envelope {
            Envelope::Operation(signal) if is_written => {
                self.accept(id, signal).map(Envelope::Operation)
            }
            envelope => Some(envelope),
        }
    }

    /// Takes an applied operation off the disk. Until that is durable the store still shows it.
    pub(super) fn consume(&mut self, id: &EntityId, operation: &mut Operation) {
        let (row, permit) = (operation.row.clone(), operation.permit.take());
        self.consume_row(id, &row, operation.input.len(), permit);
        self.end_ask(id, operation);
    }

    pub(super) fn consume_row(
        &mut self,
        id: &EntityId,
        row: &Row,
        bytes: usize,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        self.group.hold(permit);
        if *row == Row::None {
            return;
        }
        self.hold_until_durable(id);
        self.attempts.forget(id, row);
        match row {
            Row::None => {}
            Row::Inbox(key) => {
                self.inbox.consume(key, bytes);
                self.group.write(Write::Consume(key.clone()));
                self.group.after_open(Release::Row(key.clone()));
            }
            Row::Reminder(occurrence) => self.consume_reminder(id, occurrence),
        }
    }

    fn consume_reminder(&mut self, id: &EntityId, occurrence: &Occurrence) {
        let Occurrence { slot, due, number, .. } = occurrence;
        let record = self.reminders.consume(id, occurrence);
        self.remove_reminder(id, slot, *due, record.origin.is_some());
        self.group.after_open(Release::Fired(id.clone(), occurrence.clone()));
        let Slot::Named(name) = slot else { return };
        let live = self.activations.get(id).and_then(|entry| entry.live());
        if !live.is_some_and(|live| live.has_reminder(*number)) {
            // It was cancelled, or its entity deleted, while it waited for a retry.
            return;
        }
        let now = self.moment.now;
        let next = record.schedule.as_ref().and_then(|schedule| schedule.next(*due, now));
        if next.is_none() && record.schedule.as_ref().is_some_and(|it| it.recurring().is_some()) {
            tracing::error!(entity = %id, reminder = %name, "a recurring reminder has no next time, and ends");
        }
        let head = next.map(|due| {
            let number = self.environment.mint(now);
            ReminderHead::new(&**name, due, number)
        });
        self.replace_reminder(id, name, head.clone());
        if let Some(head) = head {
            let next = ReminderRecord { due: head.due, number: head.number, attempts: 0, ..record };
            self.set_reminder(id, slot.clone(), next);
        }
    }

    /// Begins a revision, on a state that a turn left, or on the present one; returns its version.
    pub(super) fn begin_revision(&mut self, id: &EntityId, state: Option<State>) -> Version {
        let now = self.moment.now;
        let known = self.activations.of(id).live_mut().version();
        let generation = known.map_or_else(|| self.environment.mint(now), |it| it.generation);
        if known.is_none() && self.environment.served(id).is_workflow() {
            self.note_workflows();
        }
        let version = self.activations.of(id).live_mut().apply(state, now, generation);
        self.write_state_of(id);
        version
    }

    /// Has the open group write the state of an entity, if it has one.
    pub(super) fn write_state_of(&mut self, id: &EntityId) {
        let group = self.group.number();
        let activation = self.activations.of(id);
        if activation.live_mut().write_once() {
            activation.hold_until(group);
            self.group.write_state_of(id, activation.state_bytes() / 2);
        }
    }

    /// Takes a reminder or delayed signal off the disk.
    pub(super) fn remove_reminder(
        &mut self,
        id: &EntityId,
        slot: &Slot,
        due: Timestamp,
        has_origin: bool,
    ) {
        let partition = self.environment.number();
        let (id, slot) = (id.clone(), slot.clone());
        self.group.write(Write::CancelReminder { partition, id, slot, due, has_origin });
    }

    /// Writes a reminder or delayed signal, and waits for its due time.
    pub(super) fn set_reminder(&mut self, id: &EntityId, slot: Slot, record: ReminderRecord) {
        let (partition, group, due) = (self.environment.number(), self.group.number(), record.due);
        self.group.write(Write::Remind(partition, id.clone(), slot.clone(), record.clone()));
        if matches!(slot, Slot::Delayed(_)) {
            self.hold_until_durable(id);
        }
        self.reminders.set(group, id.clone(), slot, record, self.group.released());
        self.outputs.push(Output::WakeAt(due));
    }

    /// Lets go of what an operation that left nothing holds: the dead letter that it was to replay,
    /// and its key, of which those who asked again hear why.
    pub(super) fn forget(
        &mut self,
        key: Option<&Keyed>,
        replays: Option<DeadLetterId>,
        error: &Error,
    ) {
        if let Some(letter) = replays {
            self.dead_letters.give_up_replay(letter);
        }
        let waiters = key.map_or_else(Vec::new, |keyed| self.keys.end(&keyed.key));
        for reply_to in waiters {
            self.refuse(reply_to, error);
        }
    }

    /// Refuses an operation that was not begun, and lets go of what it holds.
    pub(super) fn refuse_operation(&mut self, operation: Operation, error: &Error) {
        self.forget(operation.key.as_ref(), operation.replays(), error);
        if let Some(reply_to) = operation.into_reply_to() {
            self.refuse(reply_to, error);
        }
    }

    /// The same of a deletion.
    pub(super) fn refuse_deletion(&mut self, delete: Delete, error: &Error) {
        self.forget(delete.key.as_ref(), None, error);
        self.refuse(delete.reply_to, error);
    }

    /// Removes the dead letter that an accepted operation replays.
    pub(super) fn remove_replayed(&mut self, operation: &mut Operation) {
        if let Caller::Signal { replays, .. } = &mut operation.caller
            && let Some(letter) = replays.take()
        {
            self.dead_letters.remove(letter, &mut self.group);
        }
    }

    /// Takes an operation off the disk and keeps it as a dead letter, in one write group.
    pub(super) fn dead_letter(
        &mut self,
        id: &EntityId,
        mut operation: Operation,
        cause: Cause,
        reason: &str,
    ) {
        self.consume(id, &mut operation);
        self.conclude_in_letter(id, operation, cause, reason);
    }

    /// Keeps an operation that was taken off the disk as a dead letter.
    pub(super) fn conclude_in_letter(
        &mut self,
        id: &EntityId,
        mut operation: Operation,
        cause: Cause,
        reason: &str,
    ) {
        if operation.is_call() && matches!(operation.row, Row::Inbox(_)) {
            let error = Error::new(ErrorKind::Internal, reason);
            IdempotencyKeys::forget_stored(operation.key.as_ref(), &error, &mut self.group);
        }
        self.remove_replayed(&mut operation);
        if !Sabotage::NoAnswerOfLetter.is_on() {
            self.answer_question(&operation, Err(Failure::Failed(reason.to_owned())));
        }
        let name = self.name_of(id, &operation).to_owned();
        self.keep_letter(id, operation.letter(name, cause, reason));
    }

    /// Keeps a dead letter, and drops others where there are too many.
    pub(super) fn keep_letter(&mut self, id: &EntityId, letter: Letter) {
        let now = self.moment.now;
        let number = self.environment.mint(now);
        self.tell_of_letter(id, &letter);
        let age = |of: &str, is_no| self.environment.letter_age(of, is_no);
        self.dead_letters.keep(number, id, letter, (now, age), &mut self.group);
        self.prune_letters();
    }

    /// Sends an entity, as a signal, the dead letter of one of its operations, where its type wants to hear
    /// of them. It has no letter of a deleted entity, which that would bring back, nor of the operation that
    /// hears of them, which would be told for ever.
    fn tell_of_letter(&mut self, id: &EntityId, letter: &Letter) {
        let known = self.environment.type_of(id).and_then(|known| known.on_dead_letter());
        let Some(operation) = known.filter(|told| *told != letter.operation) else { return };
        if matches!(letter.cause, Cause::Deleted | Cause::Orphan) {
            return;
        }
        let input = String::from_utf8_lossy(&letter.input);
        let mut told = DeadLetter::new(&letter.operation, &input, letter.cause, &letter.reason);
        (told.sender, told.attempts) = (letter.sender.clone(), letter.attempts);
        told.accepted_at = letter.accepted_at;
        let input = serde_json::to_vec(&told).expect("texts and numbers have a JSON form");
        let (key, token) = (self.new_row(id), self.environment.token());
        let record = InboxRecord::signal(token, operation.to_owned(), input, self.moment.now);
        self.send_row(key, record, !Sabotage::LetterToldOutsideCommit.is_on());
    }

    pub(super) fn prune_letters(&mut self) {
        self.dead_letters.prune(self.environment.config(), self.moment.now, &mut self.group);
        if self.dead_letters.has_more_to_drop() {
            self.outputs.push(Output::Again);
        }
    }
}

/// The error of an operation that was given up before it began.
pub(super) fn withdrawn() -> Error {
    Error::new(ErrorKind::Unavailable, "the caller gave up before the operation began")
}
