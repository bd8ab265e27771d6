//! Time: reminders that are due, retries, entities that are idle.
//!
//! Only the next window of reminders is in memory. The window is filled from the store, and by what
//! is set while it is being filled; a reminder leaves it when it fires and is remembered as fired
//! until the burst that removes its row is durable.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use stead_entities::{EntityId, Timestamp};

use super::{Item, Output, Partition, Reminder, activation::Retry};
use crate::{
    sabotage,
    store::{
        ReadResult, ReminderRows, Write,
        record::{Cause, ReminderRecord, Slot},
    },
};

/// How far ahead the window reaches.
const WINDOW: Duration = Duration::from_secs(60);
/// The most reminders that are read at one time.
const WINDOW_ROWS: usize = 512;

/// The reminders of a partition that are due soon.
#[derive(Default)]
pub(super) struct Window {
    pending: BTreeMap<(Timestamp, EntityId, Slot), ReminderRecord>,
    fired: HashMap<(EntityId, Slot, u64), ReminderRecord>,
    /// Everything that is due at this time or before, and durable, is in `pending` or `fired`.
    until: Option<Timestamp>,
    is_scanning: bool,
    /// Set beyond `until`, with the burst that makes it durable.
    beyond: Vec<(u64, Reminder)>,
}

impl Window {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn add(&mut self, id: EntityId, slot: Slot, record: ReminderRecord) {
        if !self.fired.contains_key(&(id.clone(), slot.clone(), record.number)) {
            self.pending.insert((record.due, id, slot), record);
        }
    }

    /// The record of a reminder that fired.
    pub(super) fn fired(&self, id: &EntityId, slot: &Slot, number: u64) -> Option<ReminderRecord> {
        self.fired.get(&(id.clone(), slot.clone(), number)).cloned()
    }

    pub(super) fn has_fired(&self, id: &EntityId, slot: &Slot, number: u64) -> bool {
        self.fired.contains_key(&(id.clone(), slot.clone(), number))
    }

    pub(super) fn forget(&mut self, id: &EntityId, slot: &Slot, number: u64) {
        self.fired.remove(&(id.clone(), slot.clone(), number));
    }

    pub(super) fn drop_pending(&mut self, id: &EntityId, slot: &Slot, record: &ReminderRecord) {
        self.pending.remove(&(record.due, id.clone(), slot.clone()));
        self.beyond.retain(|(_, (of, at, _))| of != id || at != slot);
    }

    /// What is durable will be found by the next scan.
    pub(super) fn settle(&mut self, released: u64) {
        if !self.is_scanning {
            self.beyond.retain(|(burst, _)| *burst > released);
        }
    }
}

impl Partition {
    /// Watches a reminder that is being set by the burst `burst`, or that is durable already.
    pub(super) fn set_due(&mut self, burst: u64, id: EntityId, slot: Slot, record: ReminderRecord) {
        let due = record.due;
        if self.due.until.is_some_and(|until| due <= until) {
            self.due.add(id, slot, record);
        } else {
            self.due.beyond.push((burst, (id, slot, record)));
            self.due.settle(self.released);
        }
        self.outputs.push(Output::WakeAt(due));
    }

    pub(super) fn scan_due(&mut self) {
        if self.due.is_scanning {
            return;
        }
        self.due.is_scanning = true;
        let limit = WINDOW_ROWS + self.due.fired.len();
        self.outputs.push(Output::Due(self.now + WINDOW, limit));
    }

    pub(super) fn due_read(&mut self, until: Timestamp, rows: ReadResult<ReminderRows>) {
        self.due.is_scanning = false;
        let rows = match rows {
            Ok(rows) => rows,
            Err(error) => {
                tracing::error!(partition = self.number(), %error, "reminders cannot be read");
                return self.outputs.push(Output::WakeAt(self.now + Duration::from_secs(1)));
            }
        };
        let is_all = rows.len() < WINDOW_ROWS;
        let until = match rows.last() {
            Some((_, _, last)) if !is_all => last.due,
            _ => until,
        };
        let is_first = self.due.until.is_none();
        self.due.until = Some(until);
        for (id, slot, record) in rows {
            if sabotage::is("X11") && is_first && record.due < self.now {
                continue;
            }
            self.due.add(id, slot, record);
        }
        for (burst, (id, slot, record)) in std::mem::take(&mut self.due.beyond) {
            if record.due <= until {
                self.due.add(id, slot, record);
            } else {
                self.due.beyond.push((burst, (id, slot, record)));
            }
        }
        self.due.settle(self.released);
    }

    /// Fires what is due, lets retries go, forgets who is idle, and asks to be woken next time.
    pub(super) fn wake_due(&mut self) {
        while let Some(entry) = self.due.pending.first_entry()
            && entry.key().0 <= self.now
        {
            let ((_, id, slot), record) = entry.remove_entry();
            self.fire(id, slot, record);
        }
        while let Some((at, _)) = self.retries.first()
            && *at <= self.now
            && let Some((_, id)) = self.retries.pop_first()
        {
            self.unblock(&id);
        }
        self.sweep();
        let is_drained = self.due.pending.is_empty();
        if self.due.until.is_some_and(|until| until <= self.now + WINDOW / 2 && is_drained) {
            self.scan_due();
        }
        let next_due = self.due.pending.keys().next().map(|(due, ..)| *due);
        let next_retry = self.retries.first().map(|(at, _): &Retry| *at);
        let next_scan = self.due.until.map(|until| until.max(self.now + WINDOW / 4));
        let next = [next_due, next_retry, next_scan].into_iter().flatten().min();
        self.outputs.extend(next.map(Output::WakeAt));
    }

    /// Puts a due reminder into its entity's order.
    fn fire(&mut self, id: EntityId, slot: Slot, record: ReminderRecord) {
        if self.type_of(&id).is_none() {
            tracing::warn!(entity = %id, "a reminder waits for an entity type that is not served");
            return;
        }
        if sabotage::is("X9") {
            let partition = self.around.number;
            let row = Write::CancelReminder(partition, id.clone(), slot.clone(), record.due);
            self.open.writes.push(row);
        }
        self.due.fired.insert((id.clone(), slot.clone(), record.number), record.clone());
        let mut item = Item::of_reminder(super::message::Work::State, slot, &record);
        match self.work_of(&id, &record.operation) {
            Ok(work) => {
                item.work = work;
                if self.around.was_unclean && self.generation == 1 && record.due <= self.started_at
                {
                    return self.fire_recovered(&id, item);
                }
                self.activate(&id).mailbox.push_back(item);
                self.make_ready(&id);
            }
            Err(reason) => {
                self.bury_as(&id, item, record.operation.clone(), Cause::Undecodable, &reason)
            }
        }
    }

    /// A reminder that was due when the process ended may be what ended it: its attempt is counted,
    /// and durable, before it runs.
    fn fire_recovered(&mut self, id: &EntityId, mut item: Item) {
        item.attempts += 1;
        if item.attempts > self.around.config.retries + 1 {
            return self.bury(id, item, Cause::Failure, super::bury::ENDED_THE_PROCESS);
        }
        let number = self.open_number();
        item.counted = number;
        if !sabotage::is("X32") {
            self.record(id, &mut item);
        }
        let activation = self.activate(id);
        activation.mailbox.push_back(item);
        activation.unreleased = activation.unreleased.max(number);
        self.after_open(super::Release::Resume(id.clone()));
    }

    /// Writes how often a due reminder was tried in vain; it stays due.
    pub(super) fn record_attempts(
        &mut self,
        id: &EntityId,
        item: &Item,
        slot: Slot,
        due: Timestamp,
        number: u64,
    ) {
        let Some(record) = self.due.fired(id, &slot, number) else {
            return;
        };
        let record = ReminderRecord { due, attempts: item.attempts, ..record };
        self.due.fired.insert((id.clone(), slot.clone(), number), record.clone());
        let partition = self.around.number;
        self.open.writes.push(Write::Remind(partition, id.clone(), slot, record));
    }

    fn sweep(&mut self) {
        let idle = self.around.config.idle;
        if self.now < self.swept_at + idle / 4 {
            return;
        }
        self.swept_at = self.now;
        self.prune_rejections();
        let since = Timestamp::from_micros(
            self.now.as_micros() - i64::try_from(idle.as_micros()).unwrap_or(i64::MAX / 2),
        );
        let (released, backlog) = (self.released, &self.backlog);
        self.table.retain(|id, entry| !entry.is_idle(released, since) || backlog.contains_key(id));
        if !self.table.is_empty() {
            self.outputs.push(Output::WakeAt(self.now + idle / 4));
        }
    }
}
