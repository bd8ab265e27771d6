//! Admission: what becomes of an operation when it arrives, before its turn.

use stead_entities::{EntityId, Error, ErrorKind};

use super::{
    HELD_BYTES_MAX, Item, Output, Partition, Stage,
    activation::Queued,
    delete::PURGE,
    message::{Delivery, Work},
    reply::{ReplySender, Response},
};
use crate::sabotage;

impl Partition {
    /// Takes an operation of a caller outside, or refuses it before anything is accepted.
    pub(super) fn arrive(&mut self, id: &EntityId, mut item: Item) {
        if let Err(error) = self.admit(id, &item) {
            self.outputs.extend(item.reply_to.map(|reply_to| Output::Reply(reply_to, Err(error))));
            return;
        }
        if let Some(keyed) = &item.key
            && let Some(pending) = self.keys.get_mut(&keyed.key)
        {
            // The first of its key is under way: this one hears the same.
            item.reply_to.iter().for_each(ReplySender::make_uncertain);
            return pending.waiters.extend(item.reply_to);
        }
        if item.token == 0 {
            item.token = self.environment.entropy.next_wide();
        }
        item.accepted_at = self.now;
        item.deadline = item.reply_to.as_ref().map(|reply_to| self.now + reply_to.timeout());
        self.look_up(&item);
        self.enqueue(id, item);
    }

    /// Why an operation of a caller outside cannot be taken.
    fn admit(&mut self, id: &EntityId, item: &Queued) -> Result<(), Error> {
        if self.is_stopping {
            return Err(Error::new(ErrorKind::Closed, "the node is stopping"));
        }
        let limit = self.environment.config.mailbox_max;
        if let Some(entry) = self.table.get_mut(id)
            && entry.waiting() >= limit
        {
            if !sabotage::is("X13") {
                let message = format!("{limit} operations wait for {id}: back off");
                return Err(Error::new(ErrorKind::Overloaded, message));
            }
            entry.mailbox.pop_front();
        }
        if let Some(keyed) = &item.key
            && let Some(known) = self.keys.get(&keyed.key)
            && !keyed.fingerprint.fits(known.fingerprint.meaning)
        {
            return Err(conflict());
        }
        match item.replays {
            Some(letter) if !self.replayed.insert(letter) => {
                let message = "this dead letter is being replayed, or was replayed already";
                Err(Error::new(ErrorKind::NotFound, message))
            }
            _ => Ok(()),
        }
    }

    /// Puts an item at the end of its entity's order, durably at once if it has to wait for long.
    fn enqueue(&mut self, id: &EntityId, mut item: Item) {
        let now = self.now;
        let has_backlog = self.backlog.contains_key(id);
        let activation = self.activate(id);
        activation.used_at = now;
        if has_backlog {
            let is_plain = item.key.is_none() && item.due.is_none() && item.condition.is_none();
            if item.is_signal() && is_plain {
                // It waits on disk, behind what waits there already.
                match item.reply_to.take() {
                    Some(reply_to) if reply_to.take() => {
                        self.record(id, &mut item);
                        self.open.replies.push((reply_to, Ok(Response::Done)));
                        self.leave_on_disk(id, &item);
                    }
                    _ => self.forget_key(&item, &withdrawn()),
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
                if self.type_of(&id).is_none() {
                    return self.note_unserved(&id);
                }
                let limit = self.environment.config.mailbox_max;
                let crowded = self.rescan.is_running
                    || self.held_bytes > HELD_BYTES_MAX
                    || self.table.get(&id).is_some_and(|entry| entry.waiting() >= limit);
                if crowded || self.backlog.contains_key(&id) {
                    let backlog = self.backlog.entry(id.clone()).or_default();
                    backlog.again = true;
                    self.activate(&id);
                    self.make_ready(&id);
                } else {
                    self.admit_row(key, record, None);
                    let stage = self.table.get(&id).map(|entry| &entry.stage);
                    if matches!(stage, Some(Stage::Busy(..))) {
                        self.record_waiting(&id);
                    }
                }
            }
            Delivery::Delayed(id, slot, record) => self.set_due(0, id, slot, record),
        }
    }

    /// Says once of a type, until the partition starts over, that something waits for it.
    pub(super) fn note_unserved(&mut self, id: &EntityId) {
        if self.unserved.insert(id.entity_type().to_owned()) {
            let met = &self.environment.unserved;
            let mut met = met.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            met.insert(id.entity_type().to_owned());
            tracing::warn!(entity = %id, "signals or reminders wait for an entity type that is not served");
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
        let index = match work {
            Work::Operation { index, .. } | Work::Query { index } => index,
            Work::Purge => return PURGE.to_owned(),
            Work::State | Work::Delete | Work::Cancel => return String::new(),
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
