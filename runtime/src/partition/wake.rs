//! Time: reminders that are due, retries, entities that are idle.
//!
//! Only the next window of reminders is in memory. The window is filled from the store, and by what
//! is set while it is being filled; a reminder leaves it when it fires and is remembered as fired
//! until the burst that removes its row is durable.

use std::{collections::BTreeMap, time::Duration};

use stead_entities::{EntityId, Timestamp};

use super::{
    Item, Output, Partition, Phase, Reminder,
    activation::{Queued, Retry},
};
use crate::{
    map::{Map, Set},
    sabotage,
    store::{
        ReadResult, ReminderRows, Write,
        record::{ReminderRecord, Slot},
    },
};

/// How far ahead the window reaches.
const WINDOW: Duration = Duration::from_secs(60);
/// The most reminders that are read at one time.
const WINDOW_ROWS: usize = 512;

/// The most reminders that have fired and are not yet settled; more wait on disk.
const FIRED_MAX: usize = 4_096;
/// The wait before the store is scanned again after it could not be read.
const SCAN_PAUSE: Duration = Duration::from_secs(1);

/// One occurrence of one reminder.
type Occurrence = (EntityId, Slot, u64);

/// The reminders of a partition that are due soon.
#[derive(Default)]
pub(super) struct Window {
    pending: BTreeMap<(Timestamp, EntityId, Slot), ReminderRecord>,
    fired: Map<Occurrence, ReminderRecord>,
    /// Everything that is due at this time or before, and durable, is in `pending` or `fired`.
    until: Option<Timestamp>,
    is_scanning: bool,
    /// Whether something was stored that the scan under way may miss.
    again: bool,
    /// When to scan again after the store could not be read.
    retry_at: Option<Timestamp>,
    /// Removed from the store while it was being scanned, which may show them.
    gone: Vec<Occurrence>,
    /// Due, but of entity types that this node does not serve, or of entities that it cannot use.
    parked: Set<Occurrence>,
    /// Set beyond `until`, with the burst that makes it durable.
    beyond: Vec<(u64, Reminder)>,
}

impl Window {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn add(&mut self, id: EntityId, slot: Slot, record: ReminderRecord) {
        let occurrence = (id, slot, record.number);
        if !self.fired.contains_key(&occurrence) && !self.parked.contains(&occurrence) {
            let (id, slot, _) = occurrence;
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

    /// The occurrence is gone from the store; but a scan under way may still show it.
    pub(super) fn forget(&mut self, id: &EntityId, slot: &Slot, number: u64) {
        let occurrence = (id.clone(), slot.clone(), number);
        if self.is_scanning {
            self.gone.push(occurrence);
        } else {
            self.fired.remove(&occurrence);
        }
    }

    /// Leaves an occurrence that fired for who can use its entity.
    pub(super) fn park(&mut self, id: &EntityId, slot: Slot, number: u64) {
        let occurrence = (id.clone(), slot, number);
        self.fired.remove(&occurrence);
        self.parked.insert(occurrence);
    }

    fn end_scan(&mut self) {
        self.is_scanning = false;
        for occurrence in std::mem::take(&mut self.gone) {
            self.fired.remove(&occurrence);
        }
    }

    fn wants_scan(&self, now: Timestamp) -> bool {
        !self.is_scanning
            && (self.pending.is_empty() || self.again)
            && self.fired.len() < FIRED_MAX
            && self.retry_at.is_none_or(|at| at <= now)
            && (self.again || self.until.is_none_or(|until| until <= now + WINDOW / 2))
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

    /// Scans once more, though nothing was to be missed.
    pub(super) fn scan_due_again(&mut self) {
        self.due.again = true;
    }

    pub(super) fn scan_due(&mut self) {
        self.due.is_scanning = true;
        self.due.again = false;
        self.due.retry_at = None;
        let known = self.due.pending.len() + self.due.fired.len() + self.due.parked.len();
        let limit = WINDOW_ROWS + known;
        self.outputs.push(Output::Due(self.now + WINDOW, limit));
    }

    pub(super) fn due_read(&mut self, until: Timestamp, rows: ReadResult<ReminderRows>) {
        let rows = match rows {
            Ok(rows) => rows,
            Err(error) => {
                tracing::error!(partition = self.number(), %error, "reminders cannot be read");
                self.due.end_scan();
                self.due.retry_at = Some(self.now + SCAN_PAUSE);
                return;
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
        self.due.end_scan();
        self.due.settle(self.released);
    }

    /// Fires what is due, lets retries go and forgets who is idle.
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
        if self.due.wants_scan(self.now) {
            self.scan_due();
        }
    }

    /// Asks to be woken when the next thing is due, whatever it is. It is asked in every step: a
    /// wish is forgotten where the partition was to be woken earlier.
    pub(super) fn plan_wake(&mut self) {
        if self.phase != Phase::Serving {
            return self.outputs.extend(self.recover_at.map(Output::WakeAt));
        }
        let next_due = self.due.pending.keys().next().map(|(due, ..)| *due);
        let next_retry = self.retries.first().map(|(at, _): &Retry| *at);
        let next_scan = self.due.until.map(|until| until.max(self.now + WINDOW / 4));
        let next_try = self.due.retry_at.filter(|at| *at > self.now);
        let next_sweep = self.swept_at + self.around.config.idle / 4;
        let next_sweep = Some(next_sweep).filter(|_| !self.table.is_empty());
        let next_read = self.recover_at;
        let next = [next_due, next_retry, next_scan, next_try, next_sweep, next_read];
        let next = next.into_iter().flatten().min();
        self.outputs.extend(next.map(Output::WakeAt));
    }

    /// Puts a due reminder into its entity's order.
    fn fire(&mut self, id: EntityId, slot: Slot, record: ReminderRecord) {
        if self.type_of(&id).is_none() {
            tracing::warn!(entity = %id, "a reminder waits for an entity type that is not served");
            self.due.parked.insert((id, slot, record.number));
            return;
        }
        if sabotage::is("X9") {
            let partition = self.around.number;
            let row = Write::CancelReminder(partition, id.clone(), slot.clone(), record.due);
            self.open.writes.push(row);
        }
        self.due.fired.insert((id.clone(), slot.clone(), record.number), record.clone());
        let mut item = Box::new(Queued::of_reminder(super::message::Work::State, slot, &record));
        match self.work_of(&id, &record.operation) {
            Ok(work) => item.work = work,
            Err(reason) => item.doom = Some(Box::new((record.operation, reason))),
        }
        item.is_recovered = self.is_recovered(&id, &item);
        self.activate(&id).mailbox.push_back(item);
        self.make_ready(&id);
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
    }
}
