//! Cancelling a reminder or a delayed signal from outside, in its entity's order.

use stead_entities::{EntityId, Error, ErrorKind};

use super::{
    Item, Output, Partition, Release, Row, Stage, message::Work, reply::Response, run::Next,
};
use crate::store::{
    ReadResult, Write,
    record::{ReminderRecord, Slot},
};

impl Partition {
    pub(super) fn run_cancel(&mut self, id: &EntityId, item: Item) -> Next {
        let Some(slot) = item.cancels.clone() else { return Next::Goes };
        if self.cancel_waiting(id, &slot) {
            self.end_cancel(id, item, true);
            return Next::Goes;
        }
        match &slot {
            Slot::Named(name) => {
                let heads = self.table.get(id).map_or(&[][..], |entry| &entry.reminders);
                let is_set = heads.iter().any(|head| head.name == **name);
                self.cancel(id, name);
                self.end_cancel(id, item, is_set);
                Next::Goes
            }
            Slot::Delayed(_) => {
                let unreleased = self.unreleased(id);
                if unreleased > self.released {
                    self.resume_after(unreleased, id);
                    return self.put_back(id, item);
                }
                if let Some(activation) = self.table.get_mut(id) {
                    activation.stage = Stage::Listing(item);
                    self.outputs.push(Output::Reminder(id.clone(), slot));
                }
                Next::Waits
            }
        }
    }

    /// Takes a delayed signal that is due, and waits for its turn or its retry, out of its entity's
    /// order.
    fn cancel_waiting(&mut self, id: &EntityId, slot: &Slot) -> bool {
        let is_it = |item: &Item| matches!((&item.row, slot), (Row::Reminder(of, ..), Slot::Delayed(_)) if of == slot);
        let Some(activation) = self.table.get_mut(id) else { return false };
        let lanes = activation.blocked.iter_mut().map(|lane| &mut lane.items);
        let queues = [&mut activation.mailbox, &mut activation.behind].into_iter().chain(lanes);
        let mut found = None;
        for queue in queues {
            if let Some(place) = queue.iter().position(is_it) {
                found = queue.remove(place);
                break;
            }
        }
        activation.blocked.retain(|lane| !lane.items.is_empty());
        let Some(mut item) = found else { return false };
        self.consume(id, &mut item);
        true
    }

    /// What is stored of a delayed signal that is to be cancelled.
    pub(super) fn reminder_read(
        &mut self,
        id: &EntityId,
        slot: &Slot,
        found: ReadResult<Option<ReminderRecord>>,
    ) {
        let Some(activation) = self.table.get_mut(id) else { return };
        let item = match std::mem::replace(&mut activation.stage, Stage::Ready) {
            Stage::Listing(item) if item.work == Work::Cancel => item,
            other => return activation.stage = other,
        };
        match found {
            Err(error) => {
                let message = format!("reminders cannot be read: {error}");
                self.fail(id, item, Error::new(ErrorKind::Unavailable, message));
            }
            // It became due meanwhile, and waits behind this.
            Ok(_) if self.cancel_waiting(id, slot) => self.end_cancel(id, item, true),
            Ok(Some(record)) if !self.due.has_fired(id, slot, record.number) => {
                self.due.drop_pending(id, slot, &record);
                let (partition, due) = (self.environment.number, record.due);
                let row = Write::CancelReminder(partition, id.clone(), slot.clone(), due);
                self.open.writes.push(row);
                self.after_open(Release::Fired(id.clone(), slot.clone(), record.number));
                self.end_cancel(id, item, true);
            }
            Ok(_) => self.end_cancel(id, item, false),
        }
        self.make_ready(id);
    }

    fn end_cancel(&mut self, id: &EntityId, item: Item, was_set: bool) {
        let number = self.open_number();
        let Some(activation) = self.table.get_mut(id) else { return };
        if was_set {
            activation.unreleased = number;
        }
        let unreleased = activation.unreleased;
        let message = "there is no such reminder: it was applied, cancelled or never set";
        let answer = was_set.then_some(Response::Done);
        let answer = answer.ok_or_else(|| Error::new(ErrorKind::NotFound, message));
        if let Some(reply_to) = item.reply_to {
            self.answer(unreleased, reply_to, answer);
        }
    }
}
