//! How something gets into the mailbox of its entity: what callers ask for, what other entities send,
//! what is due, what is read from the inbox. And what an entity needs for it: its state.
//!
//! An entity has one order. While rows of it wait on disk, everything that arrives waits behind them.

use std::sync::Arc;

use stead_entities::{EntityId, Error, ErrorKind, Failure, Timestamp, ask::answer_json};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Partition, READ_PAUSE,
    activations::Activation,
    envelope::{
        Caller, Cancel, Delete, Envelope, Letter, LockChange, Occurrence, Operation, Purge, Query,
        Read, ReadKind, Row, Stored, Undeliverable,
    },
    expiry::EXPIRE,
    idempotency::{IdempotencyKeys, LookUp},
    links::Place,
    loaded::corrupt,
    message::{Action, Arrival, Delivery, Invocation, Link, Output},
    persist::withdrawn,
    reminders::Due,
};
use crate::{
    sabotage::Sabotage,
    store::{
        InboxPage, ReadError, ReadResult,
        tables::{
            dead_letters::Cause,
            idempotency::{IdempotencyKey, IdempotencyRecord},
            inbox::{InboxKey, InboxRecord},
            origins::StoredOrigin,
            reminders::{ReminderRecord, Slot},
            states::StateRecord,
        },
    },
};

/// The operation that an inbox row names which stands for the rest of a deletion. No operation of an
/// entity can have this name.
pub(crate) const PURGE: &str = "~purge";

/// How many requests to end a lock are taken for one entity beyond all that may wait.
const FREED_MAX: usize = 64;

/// Why an operation ended with its entity.
pub(super) const DELETED: &str =
    "the entity was deleted while this was delayed or waited for a retry";

impl Partition {
    /// Takes what a caller outside asks for, or refuses it before anything is accepted.
    pub(super) fn arrive(&mut self, arrival: Arrival) {
        if let Err(error) = self.admit(&arrival) {
            return self.refuse(arrival.reply_to, &error);
        }
        let id = arrival.id.clone();
        if let Some(keyed) = &arrival.key {
            if self.keys.is_in_use(keyed) {
                // The first of its key is under way: this one hears the same.
                return self.keys.join(&keyed.key, arrival.reply_to);
            }
            if self.keys.begin(keyed) {
                self.outputs.push(Output::LookUp(keyed.key.clone()));
            }
        }
        let envelope = self.envelope(arrival);
        self.enqueue(&id, envelope);
    }

    /// Why something that a caller outside asks for cannot be taken.
    fn admit(&mut self, arrival: &Arrival) -> Result<(), Error> {
        if self.lifecycle.is_stopping() {
            return Err(Error::new(ErrorKind::Closed, "the node is stopping"));
        }
        let id = &arrival.id;
        let limit = self.environment.limits(id, None).mailbox_max;
        // What waits for the end of a lock does not keep an operator from ending it.
        let limit = match arrival.action {
            Action::FreeLock(_) => limit.saturating_add(FREED_MAX),
            _ => limit,
        };
        if let Some(entry) = self.activations.get_mut(id)
            && entry.waiting() >= limit
        {
            if !Sabotage::MailboxDropsOldest.is_on() {
                let message = format!("{limit} operations wait for {id}: back off");
                return Err(Error::new(ErrorKind::Overloaded, message));
            }
            entry.pop();
        }
        if let Some(keyed) = &arrival.key {
            self.keys.check(keyed)?;
        }
        match arrival.action {
            Action::Replay { letter, .. } if !self.dead_letters.begin_replay(letter) => {
                let message = "this dead letter is being replayed, or was replayed already";
                Err(Error::new(ErrorKind::NotFound, message))
            }
            _ => Ok(()),
        }
    }

    fn envelope(&mut self, arrival: Arrival) -> Envelope {
        let Arrival { reply_to, action, key, condition, origin, .. } = arrival;
        let (now, token) = (self.moment.now, self.environment.token());
        let deadline = Some(now + reply_to.timeout());
        let operation = |invocation, caller, token| {
            let Invocation { index, awaits, input, argument } = invocation;
            let origin = origin.clone();
            let stored = Stored { input, token, origin, accepted_at: now, attempts: 0 };
            let new = Operation::stored(index, awaits, Row::None, stored);
            let argument = Some(argument);
            Envelope::Operation(Box::new(Operation {
                argument,
                deadline,
                caller,
                key: key.clone(),
                condition: condition.clone(),
                ..new
            }))
        };
        match action {
            Action::State => {
                let what = ReadKind::State;
                Envelope::Read(Box::new(Read { what, condition, reply_to, first_try: None }))
            }
            Action::Query(invocation) => {
                let Invocation { index, input, argument, .. } = invocation;
                let what =
                    ReadKind::Query(Query { index, argument: Some(argument), input, origin });
                Envelope::Read(Box::new(Read { what, condition, reply_to, first_try: None }))
            }
            Action::Call(invocation) => operation(invocation, Caller::Call(Some(reply_to)), token),
            Action::Signal { invocation, due } => {
                operation(invocation, Caller::Signal { reply_to, due, replays: None }, token)
            }
            Action::Replay { invocation, letter, token } => {
                let caller = Caller::Signal { reply_to, due: None, replays: Some(letter) };
                operation(invocation, caller, token)
            }
            Action::Delete => {
                Envelope::Delete(Box::new(Delete { key, condition, accepted_at: now, reply_to }))
            }
            Action::Cancel(slot) => Envelope::Cancel(Box::new(Cancel { slot, reply_to })),
            Action::Upgrade(version) => Envelope::Upgrade(version, reply_to),
            Action::FreeLock(holder) => Envelope::FreeLock(holder, reply_to),
        }
    }

    /// Puts something at the end of its entity's order, durably at once if it has to wait for long.
    pub(super) fn enqueue(&mut self, id: &EntityId, envelope: Envelope) {
        let (now, has_backlog) = (self.moment.now, self.inbox.has_backlog(id));
        let activation = self.activate(id);
        activation.use_at(now);
        match envelope {
            Envelope::Operation(signal) if has_backlog && is_plain_signal(&signal) => {
                self.accept_on_disk(id, signal);
            }
            envelope if has_backlog && !matches!(envelope, Envelope::FreeLock(..)) => {
                activation.push_behind(envelope);
                self.activations.make_ready(id);
            }
            envelope => {
                activation.push(envelope);
                if activation.is_awaiting() {
                    self.accept_waiting(id);
                }
                self.activations.make_ready(id);
            }
        }
    }

    /// Makes a signal durable that waits on disk, behind what waits there already.
    fn accept_on_disk(&mut self, id: &EntityId, mut signal: Box<Operation>) {
        if !signal.take() {
            return self.forget(None, signal.replays(), &withdrawn());
        }
        self.accept_now(id, &mut signal);
        if let Row::Inbox(key) = &signal.row {
            let group = self.group.number();
            self.inbox.leave_on_disk(key, signal.input.len(), group);
            self.group.resume_after(group, id);
        }
    }

    /// Takes what the store remembers of an idempotency key.
    pub(super) fn looked_up(
        &mut self,
        key: &Arc<IdempotencyKey>,
        found: ReadResult<Option<IdempotencyRecord>>,
    ) {
        let (now, limits) = (self.moment.now, self.environment.limits(&key.id, None));
        let is_forgotten = |at: Timestamp| at + limits.retention <= now;
        let Some(found) = self.keys.looked_up(key, found, is_forgotten) else { return };
        match found {
            LookUp::IsNew => {}
            LookUp::IsUnderWay => {
                // This caller joins the one whose operation waits in the inbox.
                if let Some(reply_to) = self.take_keyed(key).and_then(Envelope::into_reply_to) {
                    self.keys.join(key, reply_to);
                }
            }
            LookUp::Answered(result) => {
                let first = self.take_keyed(key).and_then(Envelope::into_reply_to);
                for reply_to in first.into_iter().chain(self.keys.end(key)) {
                    self.outputs.push(Output::Reply(reply_to, result.clone()));
                }
            }
        }
        self.activations.make_ready(&key.id);
    }

    /// Takes the operation that uses a key out of its entity's order.
    fn take_keyed(&mut self, key: &Arc<IdempotencyKey>) -> Option<Envelope> {
        let activation = self.activations.get_mut(&key.id)?;
        activation.take_keyed(|keyed| Arc::ptr_eq(&keyed.key, key))
    }

    /// Takes a delivery in its place.
    pub(super) fn deliver_in_order(&mut self, delivery: Option<Box<Delivery>>, link: Link) {
        let is_missing = match self.links.place(link) {
            // It was read from the store since.
            Place::Late => return,
            Place::Next => delivery.is_none(),
            Place::BehindGap => true,
        };
        if is_missing {
            self.rescan();
        }
        match delivery.map(|delivery| *delivery) {
            Some(Delivery::Signal(key, record)) => self.deliver_signal(key, record),
            Some(Delivery::Delayed(id, slot, record)) => {
                let due = record.due;
                self.reminders.set(0, id, slot, record, self.group.released());
                self.outputs.push(Output::WakeAt(due));
            }
            None => {}
        }
    }

    /// Takes an inbox row that another entity's commit wrote, unless it has to stay on disk.
    fn deliver_signal(&mut self, key: InboxKey, record: InboxRecord) {
        if self.inbox.knows_delivered(&key) {
            return;
        }
        let id = key.receiver.clone();
        if self.environment.type_of(&id).is_none() {
            return self.environment.note_unserved(&id);
        }
        let limit = self.environment.limits(&id, None).mailbox_max;
        let is_crowded = self.links.is_rescanning()
            || self.inbox.is_crowded(self.environment.row_bytes_max())
            || self.activations.get(&id).is_some_and(|entry| entry.waiting() >= limit);
        if (is_crowded || self.inbox.has_backlog(&id)) && !self.goes_before_others(&key) {
            self.inbox.add_backlog(&id);
            self.activate(&id);
            return self.activations.make_ready(&id);
        }
        self.admit_row(key, record, None);
        if self.activations.get(&id).is_some_and(Activation::is_awaiting) {
            self.accept_waiting(&id);
        }
    }

    /// Reads the inbox and the reminders again.
    pub(super) fn rescan(&mut self) {
        self.reminders.scan_again();
        if self.links.rescan() {
            self.outputs.push(Output::Receivers);
        }
    }

    /// Takes who has inbox rows, where it may have been missed.
    pub(super) fn receivers_read(&mut self, receivers: ReadResult<Vec<EntityId>>) {
        if let Some(receivers) = self.readable(receivers) {
            self.add_receivers(receivers);
            if self.links.rescanned() {
                self.outputs.push(Output::Receivers);
            }
        }
    }

    /// The entities that have inbox rows; where those could not be read, they are read again.
    pub(super) fn readable(
        &mut self,
        receivers: ReadResult<Vec<EntityId>>,
    ) -> Option<Vec<EntityId>> {
        let failed = |error| {
            let partition = self.environment.number();
            tracing::error!(partition, %error, "the inbox cannot be read");
            self.links.retry_after(self.moment.now);
        };
        receivers.map_err(failed).ok()
    }

    /// Reads the rows of these entities, some entities at a time.
    pub(super) fn add_receivers(&mut self, receivers: Vec<EntityId>) {
        for id in receivers {
            match self.environment.type_of(&id) {
                Some(_) => {
                    self.activations.make_ready(&id);
                    self.inbox.recover(id);
                }
                None => self.environment.note_unserved(&id),
            }
        }
        self.page_recovering();
    }

    /// Reads the rows of the next entities. Each is activated when its rows are there.
    pub(super) fn page_recovering(&mut self) {
        while let Some(id) = self.inbox.next_recovering() {
            self.page(&id);
        }
    }

    /// Makes sure that an entity is in memory, and that its state is on its way.
    pub(super) fn activate(&mut self, id: &EntityId) -> &mut Activation {
        let (activation, is_new) = self.activations.activate(id, self.moment.now);
        if is_new {
            self.outputs.push(Output::Load(id.clone()));
        }
        activation
    }

    pub(super) fn loaded(&mut self, id: &EntityId, loaded: ReadResult<Option<StateRecord>>) {
        let record = loaded.as_ref().ok().and_then(Option::as_ref);
        let body = record.filter(|record| record.apart.body);
        let hash = body.map(|record| self.environment.hash(&record.state));
        self.activations.loaded(id, self.environment.type_of(id), loaded, self.moment.now);
        let activation = self.activations.get_mut(id);
        if let (Some(hash), Some(activation)) = (hash, activation)
            && activation.live().is_some()
        {
            activation.live_mut().note_body(hash);
        }
    }

    /// Reads the next inbox rows of an entity, if there are any and it has room.
    pub(super) fn page(&mut self, id: &EntityId) {
        let limit = self.environment.limits(id, None).mailbox_max;
        if !self.activations.get(id).is_none_or(|entry| entry.has_room(limit)) {
            return self.page_of_holder(id);
        }
        if let Some(after) = self.inbox.begin_page(id, self.group.released()) {
            self.outputs.push(Output::Inbox(id.clone(), after));
        }
    }

    pub(super) fn page_read(
        &mut self,
        id: &EntityId,
        page: ReadResult<InboxPage>,
        mut permits: OwnedSemaphorePermit,
    ) {
        let mut page = match self.inbox.page_read(id, page) {
            None => return,
            Some(Ok(page)) => page,
            Some(Err(error)) => {
                tracing::error!(entity = %id, %error, "the inbox of an entity cannot be read");
                return self.page_failed(id, error);
            }
        };
        for (key, record) in std::mem::take(&mut page.rows) {
            self.admit_row(key, record, permits.split(1));
        }
        let is_end = page.is_end;
        self.inbox.end_page(page);
        if is_end {
            self.push_what_waited_behind(id);
        }
        // Those of others that are left may wait for the end of a lock.
        self.page_recovering();
        if !is_end && !self.activations.contains(id) {
            // Every row of the page was known, or damaged: the next page follows at once.
            self.page(id);
        }
        self.activations.make_ready(id);
    }

    /// Lets go on what waited behind what an entity had on disk.
    fn push_what_waited_behind(&mut self, id: &EntityId) {
        let Some(activation) = self.activations.get_mut(id) else { return };
        for envelope in activation.take_behind() {
            let envelope = self.retire_if_purged(id, envelope);
            self.activations.of(id).push(envelope);
        }
    }

    /// Has the rows of an entity read again, or, where they are damaged, leaves it alone.
    fn page_failed(&mut self, id: &EntityId, error: ReadError) {
        let now = self.moment.now;
        let is_unsettled = self.activations.get(id).is_some_and(Activation::is_unsettled);
        match error {
            ReadError::Damaged(reason) if !is_unsettled => {
                // Its order would have a hole. Where it is not in memory, its state is not needed.
                let (activation, _) = self.activations.activate(id, now);
                let ended = activation.make_unusable(corrupt(id, &reason));
                let reply_to = ended.and_then(Envelope::into_reply_to);
                let error = Error::new(ErrorKind::Unknown, "the inbox of the entity is damaged");
                reply_to.into_iter().for_each(|reply_to| self.refuse(reply_to, &error));
                self.activations.make_ready(id);
            }
            _ => self.activations.retry(now + READ_PAUSE, id),
        }
    }

    /// Puts a row of the inbox into the mailbox of its entity. A row that nobody can run becomes a dead
    /// letter.
    fn admit_row(
        &mut self,
        key: InboxKey,
        record: InboxRecord,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let id = key.receiver.clone();
        self.inbox.take_in(key.clone(), record.input.len());
        if record.operation == PURGE {
            self.reminders.purge(&id, &key, record.accepted_at);
            let permit = permit.filter(|_| !self.activate(&id).is_busy());
            let purge = Purge { row: key, after: None, permit };
            self.activations.of(&id).push(Envelope::Purge(Box::new(purge)));
            return self.activations.make_ready(&id);
        }
        if let Some(mut change) = LockChange::of(&key, &record) {
            let activation = self.activate(&id);
            change.permit = permit.filter(|_| !activation.is_busy());
            activation.push(Envelope::Lock(Box::new(change)));
            return self.activations.make_ready(&id);
        }
        let (index, awaits) = match self.environment.operation(&id, &record.operation) {
            Ok(found) => found,
            Err(reason) => return self.dead_letter_row(&id, key, record, reason),
        };
        let keyed = record.idempotency.as_ref().filter(|_| record.is_call);
        let keyed = keyed.map(|keyed| self.keys.adopt(key.partition, &id, keyed));
        let stored = Stored {
            input: record.input,
            token: record.token,
            origin: record.origin.map(|StoredOrigin(origin)| origin),
            accepted_at: record.accepted_at,
            attempts: record.attempts,
        };
        let caller =
            if record.is_call { Caller::Call(None) } else { Caller::Accepted { _room: None } };
        let mut operation = Operation {
            deadline: record.deadline,
            caller,
            key: keyed,
            ..Operation::stored(index, awaits, Row::Inbox(key), stored)
        };
        operation.asked = record.asked;
        operation.count = self.attempts.count_of(&id, &operation);
        let activation = self.activate(&id);
        operation.permit = permit.filter(|_| !activation.is_busy());
        activation.push(Envelope::Operation(Box::new(operation)));
        self.activations.make_ready(&id);
    }

    fn dead_letter_row(
        &mut self,
        id: &EntityId,
        key: InboxKey,
        record: InboxRecord,
        reason: String,
    ) {
        if let Some(keyed) = record.idempotency.as_ref().filter(|_| record.is_call) {
            let keyed = self.keys.adopt(key.partition, id, keyed);
            let error = Error::new(ErrorKind::Internal, reason.clone());
            IdempotencyKeys::forget_stored(Some(&keyed), &error, &mut self.group);
        }
        if let Some(asked) = record.asked.as_deref().filter(|_| !key.is_answer()) {
            let origin = record.origin.clone();
            let answer = answer_json(Err(Failure::Failed(reason.clone())));
            self.send_answer(&key, asked, origin, answer);
        }
        let row = Row::Inbox(key);
        let letter = Letter {
            sender: row.sender_text(),
            operation: record.operation,
            token: record.token,
            cause: Cause::Undecodable,
            reason,
            attempts: record.attempts,
            accepted_at: record.accepted_at,
            input: record.input,
        };
        self.consume_row(id, &row, letter.input.len(), None);
        self.keep_letter(id, letter);
    }

    /// Puts what is due into its entity's order.
    pub(super) fn fire(&mut self, due: Due) {
        let Due { id, slot, record, permit } = due;
        if self.environment.type_of(&id).is_none() {
            // It stays on disk for a node that serves the type.
            return self.environment.note_unserved(&id);
        }
        if Sabotage::ReminderRemovedWhenFired.is_on() {
            self.remove_reminder(&id, &slot, record.due, record.origin.is_some());
        }
        self.reminders.fire(&id, &slot, record.clone());
        let envelope = self.due_envelope(&id, slot, record);
        let mut envelope = self.retire_if_purged(&id, envelope);
        // What waits on disk came before it.
        let has_backlog = self.inbox.has_backlog(&id);
        let activation = self.activate(&id);
        if !has_backlog && !activation.is_busy() {
            // What has to wait for long must not keep others waiting.
            envelope.hold_permit(permit);
        }
        match has_backlog {
            true => activation.push_behind(envelope),
            false => activation.push(envelope),
        }
        self.activations.make_ready(&id);
    }

    fn due_envelope(&mut self, id: &EntityId, slot: Slot, record: ReminderRecord) -> Envelope {
        let occurrence = Occurrence::new(slot.clone(), &record);
        if record.operation == EXPIRE {
            return Envelope::expire(occurrence);
        }
        match self.environment.operation(id, &record.operation) {
            Ok((index, awaits)) => {
                let stored = Stored {
                    input: record.input,
                    token: record.token,
                    origin: record.origin,
                    accepted_at: record.accepted_at,
                    attempts: record.attempts,
                };
                let row = Row::Reminder(occurrence);
                let mut operation = Operation::stored(index, awaits, row, stored);
                operation.count = self.attempts.count_of(id, &operation);
                Envelope::Operation(Box::new(operation))
            }
            Err(reason) => {
                let letter = Letter::of_reminder(slot, record, Cause::Undecodable, &reason);
                Envelope::Undeliverable(Box::new(Undeliverable {
                    occurrence,
                    letter,
                    permit: None,
                }))
            }
        }
    }

    /// Turns a delayed signal of a deleted generation, which came due before it was removed, into a
    /// dead letter.
    fn retire_if_purged(&self, id: &EntityId, envelope: Envelope) -> Envelope {
        let partition = self.environment.number();
        let is_purged = |occurrence: &Occurrence, accepted_at| {
            self.reminders.is_purged(partition, id, &occurrence.slot, accepted_at)
        };
        match envelope {
            Envelope::Operation(mut operation) => match &operation.row {
                Row::Reminder(occurrence) if is_purged(occurrence, operation.accepted_at) => {
                    let occurrence = occurrence.clone();
                    let name = self.name_of(id, &operation).to_owned();
                    let letter = operation.letter(name, Cause::Deleted, DELETED);
                    let permit = operation.permit.take();
                    let retired = Undeliverable { occurrence, letter, permit };
                    Envelope::Undeliverable(Box::new(retired))
                }
                _ => Envelope::Operation(operation),
            },
            Envelope::Undeliverable(mut it) if is_purged(&it.occurrence, it.letter.accepted_at) => {
                it.letter.cause = Cause::Deleted;
                it.letter.reason = DELETED.to_owned();
                Envelope::Undeliverable(it)
            }
            other => other,
        }
    }
}

/// Whether a signal can wait on disk, behind what waits there.
fn is_plain_signal(operation: &Operation) -> bool {
    matches!(operation.caller, Caller::Signal { due: None, .. })
        && operation.key.is_none()
        && operation.condition.is_none()
}
