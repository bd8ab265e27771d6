//! Admission: what becomes of an operation when it arrives, before its turn.

use stead_entities::{EntityId, Error, ErrorKind};

use super::{
    HELD_BYTES_MAX, Item, Output, Partition, Stage,
    activation::Queued,
    message::{Delivery, Submitted, Work},
    ticket::Answer,
};
use crate::sabotage;

impl Partition {
    /// Takes an operation of a caller outside, or refuses it before anything is accepted.
    pub(super) fn arrive(&mut self, Submitted { message: request, ticket }: Submitted) {
        if self.draining.is_some() {
            let error = Error::new(ErrorKind::Closed, "the node is stopping");
            return self.outputs.push(Output::Reply(ticket, Err(error)));
        }
        let id = request.id.clone();
        let limit = self.around.config.mailbox_max;
        if self.table.get(&id).is_some_and(|entry| entry.waiting() >= limit) {
            if sabotage::is("X13") {
                self.table.get_mut(&id).and_then(|entry| entry.mailbox.pop_front());
            } else {
                let message = format!("{limit} operations wait for {id}: back off");
                let error = Error::new(ErrorKind::Overloaded, message);
                return self.outputs.push(Output::Reply(ticket, Err(error)));
            }
        }
        if let Some(letter) = request.exhume
            && !self.exhumed.insert(letter)
        {
            let error = Error::new(ErrorKind::NotFound, "this dead letter was replayed already");
            return self.outputs.push(Output::Reply(ticket, Err(error)));
        }
        if let Some(keyed) = &request.key
            && let Some(pending) = self.keys.get_mut(&keyed.key)
        {
            if pending.fingerprint != keyed.fingerprint {
                return self.outputs.push(Output::Reply(ticket, Err(conflict())));
            }
            ticket.make_uncertain();
            return pending.waiters.push(ticket);
        }
        let token = request.token.unwrap_or_else(|| self.around.entropy.next_wide());
        let item = Box::new(Queued {
            is_call: request.is_call,
            ticket: Some(ticket),
            key: request.key,
            due: request.due,
            deadline: Some(self.now + request.patience),
            exhume: request.exhume,
            ..Queued::new(request.work, request.input, token, self.now)
        });
        self.look_up(&item);
        self.enqueue(&id, item);
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

    /// An operation that another entity's commit, or this node's clock, sends.
    pub(super) fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Signal(key, record) => {
                if self.known.contains(&key) {
                    return;
                }
                let id = key.receiver.clone();
                let limit = self.around.config.mailbox_max;
                let crowded = self.held_bytes > HELD_BYTES_MAX
                    || self.table.get(&id).is_some_and(|entry| entry.waiting() >= limit);
                if crowded || self.backlog.contains_key(&id) {
                    let backlog = self.backlog.entry(id.clone()).or_default();
                    backlog.again = true;
                    self.activate(&id);
                    self.make_ready(&id);
                } else {
                    self.admit_row(key, record);
                    let stage = self.table.get(&id).map(|entry| &entry.stage);
                    if matches!(stage, Some(Stage::Busy(..))) {
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
        let found = known.find(operation).ok_or_else(|| format!("no operation {operation}"))?;
        match Work::of(found) {
            Work::Query { .. } => Err(format!("{operation} is a query")),
            work => Ok(work),
        }
    }

    pub(super) fn operation_name(&self, id: &EntityId, work: Work) -> String {
        let (Work::Operation { index, .. } | Work::Query { index }) = work else {
            return String::new();
        };
        self.type_of(id).map_or(String::new(), |known| known.name_of(index).to_owned())
    }
}

pub(super) fn conflict() -> Error {
    let message = "this idempotency key was used for another operation, argument or delay";
    Error::new(ErrorKind::Conflict, message)
}

/// What those hear whose operation was given up before it began.
pub(super) fn withdrawn() -> Error {
    Error::new(ErrorKind::Unavailable, "the caller gave up before the operation began")
}
