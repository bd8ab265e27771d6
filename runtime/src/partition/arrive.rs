//! Admission: what becomes of an operation when it arrives, before its turn.

use std::sync::Arc;

use stead_entities::{EntityId, Error, ErrorKind, Rejection, Timestamp, entity::OperationKind};

use super::{
    Activation, Item, Output, Partition, Pending, Release, Row, Stage,
    message::{Delivery, Keyed, Request, Work},
    ticket::{Answer, Response},
};
use crate::{
    sabotage,
    store::{
        ReadResult, Write,
        record::{
            IdempotencyKey, IdempotencyRecord, InboxKey, InboxRecord, Remembered, ReminderRecord,
            Slot,
        },
    },
};

impl Partition {
    /// Takes an operation of a caller outside, or refuses it before anything is accepted.
    pub(super) fn arrive(&mut self, request: Request) {
        if self.draining.is_some() {
            let error = Error::new(ErrorKind::Closed, "the node is stopping");
            return self.outputs.push(Output::Reply(request.ticket, Err(error)));
        }
        let id = request.id.clone();
        let limit = self.around.config.mailbox_max;
        if self
            .table
            .get(&id)
            .is_some_and(|entry| entry.waiting() >= limit)
        {
            if sabotage::is("X13") {
                self.table
                    .get_mut(&id)
                    .and_then(|entry| entry.mailbox.pop_front());
            } else {
                let message = format!("{limit} operations wait for {id}: back off");
                let error = Error::new(ErrorKind::Overloaded, message);
                return self.outputs.push(Output::Reply(request.ticket, Err(error)));
            }
        }
        if let Some(keyed) = &request.key
            && let Some(pending) = self.keys.get_mut(&keyed.key)
        {
            if pending.fingerprint != keyed.fingerprint {
                return self
                    .outputs
                    .push(Output::Reply(request.ticket, Err(conflict())));
            }
            return pending.waiters.push(request.ticket);
        }
        let item = Item {
            work: request.work,
            input: request.input,
            token: request.token,
            is_call: request.is_call,
            sender: None,
            row: Row::None,
            ticket: Some(request.ticket),
            key: request.key,
            due: request.due,
            attempts: 0,
            counted: 0,
            accepted_at: self.now,
            deadline: Some(request.deadline),
            exhume: request.exhume,
            delayed: None,
        };
        self.look_up(&item);
        self.enqueue(&id, item);
    }

    fn look_up(&mut self, item: &Item) {
        let Some(keyed) = &item.key else { return };
        let is_looking = !sabotage::is("X4");
        let pending = Pending {
            fingerprint: keyed.fingerprint,
            is_looking,
            waiters: Vec::new(),
        };
        self.keys.insert(keyed.key.clone(), pending);
        if is_looking {
            self.outputs.push(Output::LookUp(keyed.key.clone()));
        }
    }

    /// Puts an item at the end of its entity's order, durably at once if it has to wait for long.
    fn enqueue(&mut self, id: &EntityId, mut item: Item) {
        let now = self.now;
        let has_backlog = self.backlog.contains_key(id);
        let activation = self.activate(id);
        activation.used_at = now;
        if has_backlog {
            if item.is_signal() && item.key.is_none() && item.due.is_none() {
                // It waits on disk, behind what waits there already.
                if let Some(ticket) = item.ticket.take()
                    && ticket.take()
                {
                    self.record(id, &mut item);
                    self.open.replies.push((ticket, Ok(Answer::Done)));
                    self.leave_on_disk(id, &item);
                }
                return;
            }
            activation.behind.push_back(item);
            return self.make_ready(id);
        }
        activation.mailbox.push_back(item);
        if matches!(activation.stage, Stage::Busy(..)) {
            self.record_waiting(id);
        }
        self.make_ready(id);
    }

    fn leave_on_disk(&mut self, id: &EntityId, item: &Item) {
        let number = self.open_number();
        if let Row::Inbox(key) = &item.row {
            self.known.remove(key);
        }
        if let Some(backlog) = self.backlog.get_mut(id) {
            backlog.again = true;
            backlog.since = number;
        }
        self.after_open(Release::Resume(id.clone()));
    }

    /// What the store remembers of an idempotency key.
    pub(super) fn looked_up(
        &mut self,
        key: &Arc<IdempotencyKey>,
        found: ReadResult<Option<IdempotencyRecord>>,
    ) {
        let Some(pending) = self.keys.get_mut(key) else {
            return;
        };
        pending.is_looking = false;
        let fingerprint = pending.fingerprint;
        let horizon = self.around.config.retention;
        let response = match found {
            Ok(Some(record)) if record.at + horizon <= self.now => None,
            Ok(Some(record)) if record.fingerprint != fingerprint => Some(Err(conflict())),
            Ok(Some(record)) => match record.outcome {
                Remembered::Accepted => Some(Ok(Answer::Done)),
                Remembered::Replied(json) => Some(Ok(Answer::Replied(json))),
                Remembered::Rejected(reason) => Some(Ok(Answer::Rejected(Rejection::new(reason)))),
                // It waits in the inbox: this caller joins the one who sent it.
                Remembered::Pending => return self.join(key),
            },
            Ok(None) => None,
            Err(error) => {
                let message = format!("idempotency keys cannot be read: {error}");
                Some(Err(Error::new(ErrorKind::Unavailable, message)))
            }
        };
        match response {
            Some(response) => self.answer_key(key, &response),
            None => self.make_ready(&key.id),
        }
    }

    /// The operation is in the inbox already; the item that asked again waits for its answer.
    fn join(&mut self, key: &Arc<IdempotencyKey>) {
        if let Some(item) = self.take_keyed(key)
            && let Some(pending) = self.keys.get_mut(key)
        {
            pending.waiters.extend(item.ticket);
        }
        self.make_ready(&key.id);
    }

    /// Answers everybody who waits under a key, from the store.
    fn answer_key(&mut self, key: &Arc<IdempotencyKey>, response: &Response) {
        let item = self.take_keyed(key);
        let Some(pending) = self.keys.remove(key) else {
            return;
        };
        let first = item.and_then(|item| item.ticket);
        for ticket in first.into_iter().chain(pending.waiters) {
            self.outputs.push(Output::Reply(ticket, response.clone()));
        }
        self.make_ready(&key.id);
    }

    fn take_keyed(&mut self, key: &Arc<IdempotencyKey>) -> Option<Item> {
        let activation = self.table.get_mut(&key.id)?;
        let is_it = |item: &Item| {
            item.key
                .as_ref()
                .is_some_and(|keyed| Arc::ptr_eq(&keyed.key, key))
        };
        let mailbox = &mut activation.mailbox;
        if let Some(index) = mailbox.iter().position(is_it) {
            return mailbox.remove(index);
        }
        let index = activation.behind.iter().position(is_it)?;
        activation.behind.remove(index)
    }

    /// An operation that another entity's commit, or this node's clock, sends.
    pub(super) fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Signal(key, record) => {
                if self.known.contains(&key) {
                    return;
                }
                let id = key.receiver.clone();
                let crowded = self
                    .table
                    .get(&id)
                    .is_some_and(|entry| entry.waiting() >= self.around.config.mailbox_max);
                if crowded || self.backlog.contains_key(&id) {
                    let backlog = self.backlog.entry(id.clone()).or_default();
                    backlog.again = true;
                    self.activate(&id);
                    self.make_ready(&id);
                } else {
                    self.admit_row(key, record);
                    if matches!(
                        self.table.get(&id),
                        Some(Activation {
                            stage: Stage::Busy(..),
                            ..
                        })
                    ) {
                        self.record_waiting(&id);
                    }
                }
            }
            Delivery::Delayed(id, slot, record) => self.set_due(0, id, slot, record),
        }
    }

    /// The operation of a name, for rows and reminders; internal ones included.
    pub(super) fn work_of(&self, id: &EntityId, operation: &str) -> Result<Work, String> {
        let known = self.type_of(id).ok_or("the entity type is not served")?;
        let found = known
            .find(operation)
            .ok_or_else(|| format!("no operation {operation}"))?;
        match found.kind {
            OperationKind::Operation => Ok(Work::Operation {
                index: found.index,
                awaits: false,
            }),
            OperationKind::Async => Ok(Work::Operation {
                index: found.index,
                awaits: true,
            }),
            OperationKind::Query => Err(format!("{operation} is a query")),
        }
    }

    pub(super) fn operation_name(&self, id: &EntityId, work: Work) -> String {
        let (Work::Operation { index, .. } | Work::Query { index }) = work else {
            return String::new();
        };
        self.type_of(id)
            .map_or(String::new(), |known| known.name_of(index).to_owned())
    }

    /// A key that a stored row carries, in use until the row is settled.
    pub(super) fn pending_key(
        &mut self,
        id: &EntityId,
        (caller, name, fingerprint): &(String, String, u128),
    ) -> Keyed {
        let key = Arc::new(IdempotencyKey {
            partition: self.around.number,
            id: id.clone(),
            caller: caller.as_str().into(),
            key: name.as_str().into(),
        });
        let fingerprint = *fingerprint;
        if let Some((key, _)) = self.keys.get_key_value(&key) {
            return Keyed {
                key: key.clone(),
                fingerprint,
            };
        }
        let pending = Pending {
            fingerprint,
            is_looking: false,
            waiters: Vec::new(),
        };
        self.keys.insert(key.clone(), pending);
        Keyed { key, fingerprint }
    }

    /// Makes durable in the open burst what has to wait for longer than a step.
    pub(super) fn record(&mut self, id: &EntityId, item: &mut Item) {
        if let Some(due) = item.due.take() {
            return self.record_delayed(id, item, due);
        }
        let key = match &item.row {
            Row::Inbox(key) => key.clone(),
            Row::None => InboxKey {
                partition: self.around.number,
                receiver: id.clone(),
                sender: "".into(),
                generation: self.around.incarnation,
                revision: self.mint(),
                index: 0,
            },
            Row::Reminder(slot, due, number) => {
                let (slot, due, number) = (slot.clone(), *due, *number);
                return self.record_attempts(id, item, slot, due, number);
            }
        };
        let record = InboxRecord {
            token: item.token,
            operation: self.operation_name(id, item.work),
            input: item.input.clone(),
            is_call: item.is_call,
            attempts: item.attempts,
            accepted_at: item.accepted_at,
            deadline: item.deadline,
            idempotency: item.key.as_ref().map(|keyed| {
                let of = &keyed.key;
                (of.caller.to_string(), of.key.to_string(), keyed.fingerprint)
            }),
            trace: None,
        };
        if item.row == Row::None {
            if item.is_call {
                self.remember(item, Remembered::Pending);
            } else {
                self.remember(item, Remembered::Accepted);
                item.key = None;
            }
            self.known.insert(key.clone());
            item.row = Row::Inbox(key.clone());
        }
        self.exhume(item);
        self.open.writes.push(Write::Accept(key, record));
    }

    fn record_delayed(&mut self, id: &EntityId, item: &mut Item, due: Timestamp) {
        let number = self.mint();
        let slot = Slot::Delayed(number);
        let record = ReminderRecord {
            due,
            number,
            schedule: None,
            operation: self.operation_name(id, item.work),
            input: item.input.clone(),
            token: item.token,
            attempts: 0,
            accepted_at: item.accepted_at,
        };
        self.remember(item, Remembered::Accepted);
        self.exhume(item);
        self.set_reminder(id, slot, record);
    }

    pub(super) fn exhume(&mut self, item: &mut Item) {
        if let Some(letter) = item.exhume.take() {
            self.open.writes.push(Write::Exhume(letter));
        }
    }

    /// Writes how an operation with an idempotency key came out. Once that is durable, those who
    /// asked again hear it, and the key is looked up in the store.
    pub(super) fn remember(&mut self, item: &Item, outcome: Remembered) {
        let Some(keyed) = &item.key else { return };
        let response = match &outcome {
            Remembered::Pending => None,
            Remembered::Accepted => Some(Ok(Answer::Done)),
            Remembered::Replied(json) => Some(Ok(Answer::Replied(json.clone()))),
            Remembered::Rejected(reason) => Some(Ok(Answer::Rejected(Rejection::new(reason)))),
        };
        let record = IdempotencyRecord {
            fingerprint: keyed.fingerprint,
            at: self.now,
            outcome,
        };
        if !sabotage::is("X4") {
            self.open
                .writes
                .push(Write::Remember((*keyed.key).clone(), record));
        }
        if let Some(response) = response {
            self.after_open(Release::Key(keyed.key.clone(), response));
        }
    }

    /// Records the signals that wait behind something slow, and tells their callers.
    pub(super) fn record_waiting(&mut self, id: &EntityId) {
        let Some(activation) = self.table.get_mut(id) else {
            return;
        };
        let mut mailbox = std::mem::take(&mut activation.mailbox);
        let mut kept = std::collections::VecDeque::with_capacity(mailbox.len());
        for mut item in mailbox.drain(..) {
            let is_looking = self.is_looking(&item);
            if item.is_signal() && item.row == Row::None && !is_looking {
                let is_delayed = item.due.is_some();
                if item.ticket.as_ref().is_some_and(|ticket| !ticket.take()) {
                    self.forget_key(&item, &withdrawn());
                    continue;
                }
                self.record(id, &mut item);
                self.accepted(&mut item);
                if is_delayed {
                    continue;
                }
            }
            kept.push_back(item);
        }
        if let Some(activation) = self.table.get_mut(id) {
            activation.mailbox = kept;
        }
    }

    /// Tells the caller of a signal, once the open burst is durable, that it was accepted.
    pub(super) fn accepted(&mut self, item: &mut Item) {
        if let Some(ticket) = item.ticket.take() {
            self.open.replies.push((ticket, Ok(Answer::Done)));
        }
    }

    pub(super) fn is_looking(&self, item: &Item) -> bool {
        let pending = item
            .key
            .as_ref()
            .and_then(|keyed| self.keys.get(&keyed.key));
        pending.is_some_and(|pending| pending.is_looking)
    }

    /// Lets go of the key of an operation that left nothing; those who asked again hear why.
    pub(super) fn forget_key(&mut self, item: &Item, error: &Error) {
        if let Some(keyed) = &item.key
            && let Some(pending) = self.keys.remove(&keyed.key)
        {
            for ticket in pending.waiters {
                self.outputs.push(Output::Reply(ticket, Err(error.clone())));
            }
        }
    }
}

fn conflict() -> Error {
    let message = "this idempotency key was used for another operation, argument or delay";
    Error::new(ErrorKind::Conflict, message)
}

/// What those hear whose operation was given up before it began.
pub(super) fn withdrawn() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the caller gave up before the operation began",
    )
}
