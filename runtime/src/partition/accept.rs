//! Acceptance: what has to wait for longer than a step is made durable in the open write group, and its
//! caller is told then.

use stead_entities::{EntityId, Timestamp};

use super::{
    Item, Partition, Release, Row,
    arrive::withdrawn,
    reply::{ReplySender, Response},
};
use crate::store::{
    Write,
    record::{InboxKey, InboxRecord, Remembered, ReminderRecord, Slot},
};

impl Partition {
    /// Makes durable in the open write group what has to wait for longer than a step.
    pub(super) fn record(&mut self, id: &EntityId, item: &mut Item) {
        if let Some(due) = item.due.take() {
            return self.record_delayed(id, item, due);
        }
        let key = match &item.row {
            Row::Inbox(key) => key.clone(),
            Row::None => InboxKey {
                partition: self.environment.number,
                receiver: id.clone(),
                sender: "".into(),
                generation: 0,
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
                (of.caller.to_string(), of.key.to_string(), keyed.fingerprint.meaning)
            }),
            trace: None,
        };
        if item.row != Row::None {
            return self.open.writes.push(Write::Retry(key, record));
        }
        self.held_bytes += item.input.len();
        let number = self.open_number();
        if let Some(activation) = self.table.get_mut(id) {
            activation.unreleased = number;
        }
        if item.is_call {
            self.remember(item, Remembered::Pending);
            item.reply_to.iter().for_each(ReplySender::make_uncertain);
        } else {
            self.remember(item, Remembered::Accepted);
            item.key = None;
        }
        self.known.insert(key.clone());
        item.row = Row::Inbox(key.clone());
        self.drop_replayed(item);
        self.open.writes.push(Write::Accept(key, record));
    }

    pub(super) fn record_delayed(&mut self, id: &EntityId, item: &mut Item, due: Timestamp) {
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
            sender: item.sender.as_deref().unwrap_or_default().to_owned(),
        };
        item.scheduled = Some(number);
        self.remember(item, Remembered::Scheduled(number));
        self.drop_replayed(item);
        self.set_reminder(id, slot, record);
    }

    /// Removes the dead letter that an accepted operation replays.
    pub(super) fn drop_replayed(&mut self, item: &mut Item) {
        if let Some(letter) = item.replays.take() {
            self.remove_letter(letter);
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
            item.permit = None;
            let can_wait_on_disk = item.is_signal() && item.condition.is_none();
            if can_wait_on_disk && item.row == Row::None && !self.is_looking(&item) {
                kept.extend(self.accept(id, item));
            } else {
                kept.push_back(item);
            }
        }
        if let Some(activation) = self.table.get_mut(id) {
            activation.mailbox = kept;
        }
    }

    /// Records a signal that has no row and tells its caller. What has to wait in memory is returned:
    /// not a delayed signal, nor one whose caller gave up.
    pub(super) fn accept(&mut self, id: &EntityId, mut item: Item) -> Option<Item> {
        if item.reply_to.as_ref().is_some_and(|reply_to| !reply_to.take()) {
            self.forget_key(&item, &withdrawn());
            return None;
        }
        let is_delayed = item.due.is_some();
        self.record(id, &mut item);
        self.accepted(&mut item);
        (!is_delayed).then_some(item)
    }

    /// Tells the caller of a signal, once the open write group is durable, that it was accepted.
    pub(super) fn accepted(&mut self, item: &mut Item) {
        if let Some(reply_to) = item.reply_to.take() {
            item.room = Some(reply_to.clone());
            let answer = item.scheduled.map_or(Response::Done, Response::Scheduled);
            self.open.replies.push((reply_to, Ok(answer)));
        }
    }

    pub(super) fn leave_on_disk(&mut self, id: &EntityId, item: &Item) {
        let number = self.open_number();
        if let Row::Inbox(key) = &item.row {
            self.known.remove(key);
            self.held_bytes = self.held_bytes.saturating_sub(item.input.len());
        }
        if let Some(backlog) = self.backlog.get_mut(id) {
            backlog.again = true;
            backlog.since = number;
        }
        self.after_open(Release::Resume(id.clone()));
    }
}
