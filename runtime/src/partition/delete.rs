//! Deletion: a turn that ends an incarnation. It first asks what is delayed, so that this can be
//! buried in the same commit.

use stead_entities::{EntityId, Error, ErrorKind};

use super::{
    Item, Output, Partition, Stage, activation::Queued, bury::DELETED, message::Work, run::Next,
    ticket::Answer, turn::guarded,
};
use crate::store::{
    ReadResult, ReminderRows, Write,
    record::{Cause, ReminderRecord, Slot},
};

impl Partition {
    pub(super) fn run_delete(&mut self, id: &EntityId, item: Item) -> Next {
        if item.delayed.is_none() {
            return self.list_delayed(id, item);
        }
        self.settle_deletion(id, item);
        Next::Goes
    }

    /// Asks for the delayed signals of an entity that is about to be deleted, once the store shows
    /// everything that was accepted.
    pub(super) fn list_delayed(&mut self, id: &EntityId, item: Item) -> Next {
        let unreleased = self.unreleased(id);
        if unreleased > self.released {
            self.resume_after(unreleased, id);
            return self.put_back(id, item);
        }
        if let Some(activation) = self.table.get_mut(id) {
            activation.stage = Stage::Listing(item);
            self.outputs.push(Output::Reminders(id.clone()));
        }
        Next::Waits
    }

    /// What a deletion asked for: everything of the entity that is delayed.
    pub(super) fn listed(&mut self, id: &EntityId, rows: ReadResult<ReminderRows>) {
        let Some(activation) = self.table.get_mut(id) else {
            return;
        };
        let mut item = match std::mem::replace(&mut activation.stage, Stage::Ready) {
            Stage::Listing(item) => item,
            other => return activation.stage = other,
        };
        match rows {
            Ok(rows) => {
                let delayed = rows.into_iter().filter(|(_, slot, record)| {
                    matches!(slot, Slot::Delayed(_)) && record.accepted_at <= item.accepted_at
                });
                item.delayed = Some(delayed.map(|(_, slot, record)| (slot, record)).collect());
                // At once: what waited for a retry meanwhile must not come between.
                self.run_item(id, item);
            }
            Err(error) => {
                let message = format!("reminders cannot be read: {error}");
                self.fail(id, item, Error::new(ErrorKind::Unavailable, message));
            }
        }
        self.make_ready(id);
    }

    /// A deletion from outside.
    pub(super) fn settle_deletion(&mut self, id: &EntityId, item: Item) {
        self.delete_entity(id, item.delayed.as_deref().unwrap_or_default());
        let unreleased = self.unreleased(id);
        if let Some(ticket) = item.ticket {
            self.answer(unreleased, ticket, Ok(Answer::Done));
        }
        self.make_ready(id);
    }

    /// Ends this incarnation. What was delayed, or waited for a retry, dies with it; what waits
    /// behind applies to the next incarnation.
    pub(super) fn delete_entity(&mut self, id: &EntityId, delayed: &[(Slot, ReminderRecord)]) {
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
        let partition = self.around.number;
        for head in heads {
            let slot = Slot::Named(head.name.into());
            self.open.writes.push(Write::CancelReminder(partition, id.clone(), slot, head.due));
        }
        for (slot, record) in delayed {
            if self.due.has_fired(id, slot, record.number) {
                continue;
            }
            self.due.drop_pending(id, slot, record);
            let item = Box::new(Queued::of_reminder(Work::Delete, slot.clone(), record));
            self.bury_as(id, item, record.operation.clone(), Cause::Deleted, DELETED);
        }
        for item in blocked.into_iter().flat_map(|lane| lane.items) {
            self.bury(id, item, Cause::Deleted, DELETED);
        }
    }
}
