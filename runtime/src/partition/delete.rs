//! Deletion: a turn that ends an incarnation. It first asks what is delayed, so that this can be
//! buried in the same commit.

use stead_entities::EntityId;

use super::{
    Item, Output, Partition, Release, Row, Stage, bury::reason_of_deletion, message::Work,
    run::Next, ticket::Answer,
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
            self.on_release.push_back((unreleased, Release::Resume(id.clone())));
            self.sort_releases();
        } else if let Some(activation) = self.table.get_mut(id) {
            activation.stage = Stage::Listing;
            self.outputs.push(Output::Reminders(id.clone()));
        }
        self.put_back(id, item)
    }

    /// Puts a deletion in front of everything that waits.
    pub(super) fn delete_next(&mut self, id: &EntityId) {
        let item = Item {
            work: Work::Delete,
            input: Vec::new(),
            token: 0,
            is_call: true,
            sender: None,
            row: Row::None,
            ticket: None,
            key: None,
            due: None,
            attempts: 0,
            counted: 0,
            accepted_at: self.now,
            deadline: None,
            exhume: None,
            delayed: None,
        };
        if let Some(activation) = self.table.get_mut(id) {
            activation.mailbox.push_front(item);
        }
    }

    /// What a deletion asked for: everything of the entity that is delayed.
    pub(super) fn listed(&mut self, id: &EntityId, rows: ReadResult<ReminderRows>) {
        let Some(activation) = self.table.get_mut(id) else {
            return;
        };
        activation.stage = super::Stage::Ready;
        let Some(item) = activation.mailbox.front_mut() else {
            return;
        };
        match rows {
            Ok(rows) => {
                let delayed = rows.into_iter().filter(|(_, slot, record)| {
                    matches!(slot, Slot::Delayed(_)) && record.accepted_at <= item.accepted_at
                });
                item.delayed = Some(delayed.map(|(_, slot, record)| (slot, record)).collect());
            }
            Err(error) => {
                let error = super::unavailable(&format!("reminders cannot be read: {error}"));
                if let Some(item) = activation.mailbox.pop_front() {
                    self.fail(id, item, error);
                }
            }
        }
        self.make_ready(id);
    }

    /// A deletion from outside, or by an operation that awaited.
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
        let fresh = self.type_of(id).map(|known| known.fresh());
        let Some(activation) = self.table.get_mut(id) else {
            return;
        };
        let existed = activation.generation > 0;
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
            let row = Write::CancelReminder(partition, id.clone(), slot.clone(), record.due);
            self.open.writes.push(row);
            self.bury_record(id, record, Cause::Deleted, reason_of_deletion());
        }
        for item in blocked.into_iter().flat_map(|lane| lane.items) {
            self.bury_for(id, item, Cause::Deleted, reason_of_deletion());
        }
        // The committer sees these writes after the states of this burst.
        if self.open.writes.is_empty() {
            return;
        }
        self.after_open(Release::Resume(id.clone()));
    }
}
