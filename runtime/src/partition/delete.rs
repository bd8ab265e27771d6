//! Deletion: a turn that ends an incarnation. What is delayed for it becomes dead letters: what fits
//! into one page in the same commit, the rest behind it, a page at a time, with the entity's other
//! operations between. The rest is remembered by an inbox row of its own, so that it goes on after a
//! restart, and what becomes due meanwhile does not run.

use stead_entities::{EntityId, Error, ErrorKind, Timestamp};

use super::{
    Item, Output, Partition, Row, Stage,
    activation::{Delayed, Queued, Undeliverable},
    dead_letter::DELETED,
    message::Work,
    number_of_partition,
    recover::RECOVERY_PAUSE,
    reply::Response,
    run::Next,
    turn::guarded,
};
use crate::store::{
    ReadResult, ReminderPage, Write,
    record::{Cause, Remembered, ReminderRecord, Slot},
};

/// The operation that an inbox row names which stands for the rest of a deletion. No operation of an
/// entity can have this name.
pub(crate) const PURGE: &str = "~purge";

/// Which delayed signals died with an incarnation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Purge {
    /// A signal died that was accepted at this time or before.
    accepted_at: Timestamp,
    /// One that this partition accepted died if its number is lower: what was accepted behind the
    /// deletion, in the same microsecond, is for the next incarnation.
    below: u64,
    /// How many were removed since this process began.
    removed: u64,
}

impl Purge {
    fn takes(&self, partition: u16, slot: &Slot, accepted_at: Timestamp) -> bool {
        let Slot::Delayed(number) = slot else { return false };
        let is_own = number_of_partition(*number) == partition;
        accepted_at <= self.accepted_at && (!is_own || *number < self.below)
    }
}

impl Partition {
    pub(super) fn run_delete(&mut self, id: &EntityId, mut item: Item) -> Next {
        if item.delayed.is_none() {
            return self.list_delayed(id, item);
        }
        self.begin_purge(id, &mut item);
        self.settle_deletion(id, item);
        Next::Goes
    }

    /// Asks for delayed signals of an entity that is deleted, once the store shows everything that was
    /// accepted.
    pub(super) fn list_delayed(&mut self, id: &EntityId, item: Item) -> Next {
        let unreleased = self.unreleased(id);
        if unreleased > self.released {
            self.resume_after(unreleased, id);
            return self.put_back(id, item);
        }
        let after = item.delayed.as_ref().and_then(|delayed| delayed.rest.clone());
        if let Some(activation) = self.table.get_mut(id) {
            activation.stage = Stage::Listing(item);
            self.outputs.push(Output::Reminders(id.clone(), after));
        }
        Next::Waits
    }

    /// A page of what is delayed.
    pub(super) fn listed(&mut self, id: &EntityId, page: ReadResult<ReminderPage>) {
        let Some(activation) = self.table.get_mut(id) else {
            return;
        };
        let mut item = match std::mem::replace(&mut activation.stage, Stage::Ready) {
            Stage::Listing(item) => item,
            other => return activation.stage = other,
        };
        match page {
            Ok(page) if item.work == Work::Purge => self.purge_page(id, item, page),
            Ok(page) => {
                let rest = page.last_before_more();
                let rest = rest.map(|(_, slot, _)| slot.clone());
                let rows = page.rows.into_iter().filter(|(_, slot, record)| {
                    matches!(slot, Slot::Delayed(_)) && record.accepted_at <= item.accepted_at
                });
                let rows: Vec<_> = rows.map(|(_, slot, record)| (slot, record)).collect();
                if !rows.is_empty() {
                    let (removed, more) = (rows.len(), rest.is_some());
                    tracing::info!(entity = %id, removed, more, "delayed signals die with their entity");
                }
                item.delayed = Some(Delayed { rows, rest });
                // At once: what waited for a retry meanwhile must not come between.
                self.run_item(id, item);
            }
            Err(error) if item.work == Work::Purge => {
                tracing::error!(entity = %id, %error, "reminders cannot be read");
                self.put_back(id, item);
                self.retries.insert((self.now + RECOVERY_PAUSE, id.clone()));
                return;
            }
            Err(error) => {
                let message = format!("reminders cannot be read: {error}");
                self.fail(id, item, Error::new(ErrorKind::Unavailable, message));
            }
        }
        self.make_ready(id);
    }

    /// Accepts the rest of a deletion, if there is more than a page of delayed signals.
    pub(super) fn begin_purge(&mut self, id: &EntityId, item: &mut Item) {
        let Some(rest) = item.delayed.as_mut().and_then(|delayed| delayed.rest.take()) else {
            return;
        };
        let token = self.environment.entropy.next_wide();
        let mut purge = Box::new(Queued::new(Work::Purge, Vec::new(), token, item.accepted_at));
        purge.delayed = Some(Delayed { rows: Vec::new(), rest: Some(rest) });
        self.record(id, &mut purge);
        self.note_purge(id, &purge);
        if let Some(activation) = self.table.get_mut(id) {
            activation.mailbox.push_back(purge);
        }
    }

    /// The rest of a deletion, as its row tells of it.
    pub(super) fn purge_of(&mut self, id: &EntityId, mut item: Item) -> Option<Item> {
        item.work = Work::Purge;
        self.note_purge(id, &item);
        Some(item)
    }

    fn note_purge(&mut self, id: &EntityId, item: &Item) {
        if let Row::Inbox(key) = &item.row {
            let purge = Purge { accepted_at: item.accepted_at, below: key.revision, removed: 0 };
            self.purges.insert(id.clone(), purge);
        }
    }

    /// What was delayed for a deleted incarnation, and is due before it was removed, does not run.
    pub(super) fn retire_if_purged(&self, id: &EntityId, item: &mut Item) {
        let Row::Reminder(slot, ..) = &item.row else { return };
        let (partition, accepted_at) = (self.environment.number, item.accepted_at);
        if self.purges.get(id).is_some_and(|purge| purge.takes(partition, slot, accepted_at)) {
            let (cause, reason) = (Cause::Deleted, DELETED.to_owned());
            let operation = self.operation_name(id, item.work);
            item.undeliverable = Some(Box::new(Undeliverable { operation, cause, reason }));
        }
    }

    fn purge_page(&mut self, id: &EntityId, mut item: Item, page: ReminderPage) {
        let rest = page.last_before_more().map(|(_, slot, _)| slot.clone());
        let (mut removed, partition) = (0, self.environment.number);
        if let Some(purge) = self.purges.get_mut(id) {
            let takes = |(slot, record): &(Slot, ReminderRecord)| {
                purge.takes(partition, slot, record.accepted_at)
            };
            let rows = page.rows.into_iter().map(|(_, slot, record)| (slot, record));
            let dead: Vec<_> = rows.filter(takes).collect();
            purge.removed += dead.len() as u64;
            removed = purge.removed;
            self.dead_letter_delayed(id, dead);
        }
        let number = self.open_number();
        let Some(activation) = self.table.get_mut(id) else { return };
        activation.unreleased = number;
        if rest.is_none() {
            self.consume(id, &mut item);
            return tracing::info!(entity = %id, removed, "what was delayed for a deleted entity is dead");
        }
        item.delayed = Some(Delayed { rows: Vec::new(), rest });
        // Behind whatever else the entity has to do.
        activation.mailbox.push_back(item);
    }

    /// A deletion from outside.
    pub(super) fn settle_deletion(&mut self, id: &EntityId, mut item: Item) {
        self.delete_entity(id, item.delayed.take().unwrap_or_default());
        self.remember(&item, Remembered::Accepted);
        let unreleased = self.unreleased(id);
        if let Some(reply_to) = item.reply_to {
            self.answer(unreleased, reply_to, Ok(Response::Done));
        }
        self.make_ready(id);
    }

    /// Ends this incarnation. What was delayed, or waited for a retry, dies with it; what waits
    /// behind applies to the next incarnation.
    pub(super) fn delete_entity(&mut self, id: &EntityId, delayed: Delayed) {
        let number = self.open_number();
        let fresh = self.type_of(id).and_then(|known| guarded(|| known.fresh()).ok());
        let Some(activation) = self.table.get_mut(id) else {
            return;
        };
        let existed = activation.generation > 0;
        if fresh.is_none() {
            let error = format!("{id}: its default value panics");
            activation.stage = Stage::Unusable(Error::new(ErrorKind::Corrupt, error));
        }
        activation.state = fresh;
        activation.encoded = None;
        activation.generation = 0;
        activation.revision = 0;
        activation.sent_revision = 0;
        activation.unreleased = number;
        let heads = std::mem::take(&mut activation.reminders);
        let blocked = std::mem::take(&mut activation.blocked);
        self.dirty.retain(|dirty| dirty != id);
        if existed {
            self.open.writes.push(Write::DeleteState(id.clone()));
        }
        let partition = self.environment.number;
        for head in heads {
            let slot = Slot::Named(head.name.into());
            self.open.writes.push(Write::CancelReminder(partition, id.clone(), slot, head.due));
        }
        self.dead_letter_delayed(id, delayed.rows);
        for item in blocked.into_iter().flat_map(|lane| lane.items) {
            self.dead_letter(id, item, Cause::Deleted, DELETED);
        }
    }

    /// Turns delayed signals into dead letters; those that are in their entity's order already go on.
    fn dead_letter_delayed(&mut self, id: &EntityId, delayed: Vec<(Slot, ReminderRecord)>) {
        for (slot, record) in delayed {
            if self.due.has_fired(id, &slot, record.number) {
                continue;
            }
            self.due.drop_pending(id, &slot, &record);
            let item = Box::new(Queued::of_reminder(Work::Delete, slot, &record));
            self.dead_letter_as(id, item, record.operation, Cause::Deleted, DELETED);
        }
    }
}
