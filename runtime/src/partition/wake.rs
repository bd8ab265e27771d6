//! Time: reminders that are due, retries, entities that are idle.
//!
//! Only the next rows of the order of due times are in memory, bounded in number and bytes. The window
//! is filled from the store page by page, each scan going on where the last one ended, and by what is
//! set while it covers its time; a reminder leaves it when it fires and is remembered as fired until the
//! write group that removes its row is durable. What fires needs one of the node's permits until it is
//! durable, so that a million reminders for one instant do not keep others waiting.

use std::{collections::BTreeMap, time::Duration};

use stead_entities::{EntityId, Timestamp};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Item, Output, Partition, Phase,
    activation::{Queued, Retry, Undeliverable},
};
use crate::{
    map::Map,
    sabotage,
    store::{
        DueKey, ReadResult, ReminderPage, Write,
        record::{Cause, ReminderRecord, Slot},
    },
};

/// How far ahead the window reaches.
const WINDOW: Duration = Duration::from_secs(60);
/// The most reminders that are read at one time.
const PAGE_ROWS: usize = 128;
/// The most reminders in the window. What is set beyond it stays on disk.
const PENDING_MAX: usize = 512;
/// The most bytes of arguments in the window.
const PENDING_BYTES_MAX: usize = 512 << 10;
/// The most reminders that have fired and are not yet settled, those included that wait for a retry;
/// more wait on disk.
const FIRED_MAX: usize = 4_096;
/// How many permits are asked for at one time.
const PERMITS_SHARE: usize = 8;
/// The wait before the store is scanned again after it could not be read.
const SCAN_PAUSE: Duration = Duration::from_secs(1);
/// The most entities in memory before those that were not used for a second leave.
const CROWDED: usize = 1_024;

/// One occurrence of one reminder.
type Occurrence = (EntityId, Slot, u64);

/// The reminders of a partition that are due soon.
#[derive(Default)]
pub(super) struct Window {
    /// With the write group that makes each durable.
    pending: BTreeMap<DueKey, (u64, ReminderRecord)>,
    /// Bytes of arguments in `pending`.
    pending_bytes: usize,
    fired: Map<Occurrence, ReminderRecord>,
    /// Everything durable up to this row, in the order of due times, is in `pending` or `fired`, or
    /// waits for a node that can use it.
    reached: Option<DueKey>,
    /// So is everything durable that is due at this time or before.
    until: Option<Timestamp>,
    is_scanning: bool,
    /// Whether the window has shrunk since the scan under way began, which then proves nothing.
    has_shrunk: bool,
    /// Whether something was stored that the scan under way may miss.
    again: bool,
    /// When to scan again after the store could not be read.
    retry_at: Option<Timestamp>,
    /// Removed from the store while it was being scanned, which may show them.
    gone: Vec<Occurrence>,
    /// Set beyond what is covered, with the write group that makes it durable.
    beyond: Vec<(u64, DueKey, ReminderRecord)>,
    /// Permits for what fires next.
    permits: Option<OwnedSemaphorePermit>,
    has_asked: bool,
}

impl Window {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// How many rows are held in memory.
    #[cfg(test)]
    pub(super) fn in_memory(&self) -> usize {
        self.pending.len() + self.fired.len()
    }

    /// How many have fired and are not settled.
    #[cfg(test)]
    pub(super) fn fired_count(&self) -> usize {
        self.fired.len()
    }

    /// Whether everything durable at this place is known.
    fn covers(&self, place: &DueKey) -> bool {
        self.until.is_some_and(|until| place.0 <= until)
            || self.reached.as_ref().is_some_and(|reached| place <= reached)
    }

    fn add(&mut self, group: u64, (due, id, slot): DueKey, record: ReminderRecord) {
        let occurrence = (id, slot, record.number);
        if self.fired.contains_key(&occurrence) {
            return;
        }
        let (id, slot, _) = occurrence;
        self.pending_bytes += record.input.len();
        if let Some((_, old)) = self.pending.insert((due, id, slot), (group, record)) {
            self.pending_bytes -= old.input.len();
        }
    }

    fn is_crowded(&self) -> bool {
        self.pending.len() > PENDING_MAX
            || (self.pending_bytes > PENDING_BYTES_MAX && self.pending.len() > 1)
    }

    /// Leaves the last rows to the disk where there are too many; those that are not durable yet are
    /// kept until they are.
    fn shrink(&mut self, released: u64) {
        if !self.is_crowded() {
            return;
        }
        while (self.pending.len() > PENDING_MAX / 2 || self.pending_bytes > PENDING_BYTES_MAX / 2)
            && self.pending.len() > 1
            && let Some((place, (group, record))) = self.pending.pop_last()
        {
            self.pending_bytes -= record.input.len();
            if group > released {
                self.beyond.push((group, place, record));
            }
        }
        self.until = None;
        self.reached = self.pending.keys().next_back().cloned();
        self.has_shrunk = self.is_scanning;
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

    /// Leaves an occurrence that fired on disk, for who can use its entity.
    pub(super) fn leave(&mut self, id: &EntityId, slot: Slot, number: u64) {
        self.fired.remove(&(id.clone(), slot, number));
    }

    fn end_scan(&mut self) {
        self.is_scanning = false;
        self.has_shrunk = false;
        for occurrence in std::mem::take(&mut self.gone) {
            self.fired.remove(&occurrence);
        }
    }

    fn wants_scan(&self, now: Timestamp) -> bool {
        !self.is_scanning
            && (self.again || self.pending.len() < PENDING_MAX / 4)
            && self.fired.len() < FIRED_MAX
            && self.retry_at.is_none_or(|at| at <= now)
            && (self.again || self.until.is_none_or(|until| until <= now + WINDOW / 2))
    }

    /// Takes back a row that is to fire no more. The caller removes it from the store, and says so with
    /// [`super::Release::Fired`].
    pub(super) fn drop_pending(&mut self, id: &EntityId, slot: &Slot, record: &ReminderRecord) {
        let place = (record.due, id.clone(), slot.clone());
        if let Some((_, dropped)) = self.pending.remove(&place) {
            self.pending_bytes -= dropped.input.len();
        }
        self.beyond.retain(|(_, at, _)| *at != place);
        // A scan may still show it until that is durable.
        self.fired.insert((place.1, place.2, record.number), record.clone());
    }

    /// What is durable will be found by the next scan.
    pub(super) fn settle(&mut self, released: u64) {
        if !self.is_scanning {
            self.beyond.retain(|(group, ..)| *group > released);
        }
    }

    /// Forgets what is on disk, to read it from the beginning; what is not durable yet is kept.
    fn begin_anew(&mut self, released: u64) {
        (self.reached, self.until, self.pending_bytes) = (None, None, 0);
        for (place, (group, record)) in std::mem::take(&mut self.pending) {
            if group > released {
                self.beyond.push((group, place, record));
            }
        }
    }

    /// Takes the permits that arrived, or gives them back where nothing more is to fire.
    pub(super) fn take_permits(&mut self, permits: OwnedSemaphorePermit, is_stopping: bool) {
        self.has_asked = false;
        self.permits = Some(permits).filter(|_| !is_stopping);
    }
}

impl Partition {
    /// Watches a reminder that is being set by the write group `group`, or that is durable already.
    pub(super) fn set_due(&mut self, group: u64, id: EntityId, slot: Slot, record: ReminderRecord) {
        let due = record.due;
        let place = (due, id, slot);
        if self.due.covers(&place) {
            self.due.add(group, place, record);
            self.due.shrink(self.released);
        } else {
            self.due.beyond.push((group, place, record));
            self.due.settle(self.released);
        }
        self.outputs.push(Output::WakeAt(due));
    }

    /// Scans once more from the beginning, though nothing was to be missed.
    pub(super) fn scan_due_again(&mut self) {
        self.due.again = true;
    }

    pub(super) fn scan_due(&mut self) {
        self.due.is_scanning = true;
        self.due.retry_at = None;
        if std::mem::take(&mut self.due.again) {
            self.due.begin_anew(self.released);
        }
        let after = self.due.reached.clone();
        self.outputs.push(Output::Due(after, self.now + WINDOW, PAGE_ROWS));
    }

    pub(super) fn due_read(&mut self, until: Timestamp, page: ReadResult<ReminderPage>) {
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                tracing::error!(partition = self.number(), %error, "reminders cannot be read");
                self.due.end_scan();
                self.due.retry_at = Some(self.now + SCAN_PAUSE);
                return;
            }
        };
        if self.due.has_shrunk {
            return self.due.end_scan();
        }
        let is_first = self.due.until.is_none() && self.due.reached.is_none();
        if let Some((id, slot, last)) = page.rows.last() {
            self.due.reached = Some((last.due, id.clone(), slot.clone()));
        }
        if page.is_end {
            self.due.until = Some(until);
        }
        for (id, slot, record) in page.rows {
            if sabotage::is("X11") && is_first && record.due < self.now {
                continue;
            }
            self.due.add(0, (record.due, id, slot), record);
        }
        for (group, place, record) in std::mem::take(&mut self.due.beyond) {
            if self.due.covers(&place) {
                self.due.add(group, place, record);
            } else {
                self.due.beyond.push((group, place, record));
            }
        }
        self.due.end_scan();
        self.due.settle(self.released);
        self.due.shrink(self.released);
    }

    /// Fires what is due, lets retries go and forgets who is idle.
    pub(super) fn wake_due(&mut self) {
        while self.due.fired.len() < FIRED_MAX
            && self.due.pending.keys().next().is_some_and(|(due, ..)| *due <= self.now)
        {
            let Some(permit) = self.permit_to_fire() else { break };
            if let Some(((_, id, slot), (_, record))) = self.due.pending.pop_first() {
                self.due.pending_bytes -= record.input.len();
                self.fire(id, slot, record, permit);
            }
        }
        // What is not needed at once is for others.
        self.due.permits = None;
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

    /// One of the node's permits, or none while they are waited for.
    fn permit_to_fire(&mut self) -> Option<OwnedSemaphorePermit> {
        let mut permits = self.due.permits.take();
        let one = permits.as_mut().and_then(|permits| permits.split(1));
        self.due.permits = permits.filter(|permits| permits.num_permits() > 0);
        if one.is_none() && !std::mem::replace(&mut self.due.has_asked, true) {
            let wanted = PERMITS_SHARE.min(self.due.pending.len()).max(1);
            self.outputs.push(Output::Permits(wanted));
        }
        one
    }

    /// Gives every permit back: nothing more is begun.
    pub(super) fn drop_permits(&mut self) {
        self.due.permits = None;
        for activation in self.table.values_mut() {
            activation.mailbox.iter_mut().for_each(|item| item.permit = None);
        }
    }

    /// Asks to be woken when the next thing is due, whatever it is. It is asked in every step: a
    /// wish is forgotten where the partition was to be woken earlier.
    pub(super) fn plan_wake(&mut self) {
        if self.phase != Phase::Serving {
            return self.outputs.extend(self.recover_at.map(Output::WakeAt));
        }
        // What is due already waits for permits, or for room, and is gone on with when they come.
        let next_due = self.due.pending.keys().next().map(|(due, ..)| *due);
        let next_due = next_due.filter(|due| *due > self.now);
        let next_retry = self.retries.first().map(|(at, _): &Retry| *at);
        let next_scan = self.due.until.map(|until| until.max(self.now + WINDOW / 4));
        let next_try = self.due.retry_at.filter(|at| *at > self.now);
        let idle = self.environment.config.idle;
        let next_sweep = match self.table.len() > CROWDED {
            true => self.swept_at + idle.min(Duration::from_secs(1)) / 4,
            false => self.swept_at + idle / 4,
        };
        let next_sweep = Some(next_sweep).filter(|_| !self.table.is_empty());
        let next_read = self.recover_at;
        let next_letters = self.letters.read_again_at();
        let next = [next_due, next_retry, next_scan, next_try, next_sweep, next_read, next_letters];
        let next = next.into_iter().flatten().min();
        self.outputs.extend(next.map(Output::WakeAt));
    }

    /// Puts a due reminder into its entity's order.
    fn fire(
        &mut self,
        id: EntityId,
        slot: Slot,
        record: ReminderRecord,
        permit: OwnedSemaphorePermit,
    ) {
        if self.type_of(&id).is_none() {
            // It stays on disk for a node that serves the type.
            return self.note_unserved(&id);
        }
        if sabotage::is("X9") {
            let partition = self.environment.number;
            let row = Write::CancelReminder(partition, id.clone(), slot.clone(), record.due);
            self.open.writes.push(row);
        }
        self.due.fired.insert((id.clone(), slot.clone(), record.number), record.clone());
        let mut item = Box::new(Queued::of_reminder(super::message::Work::State, slot, &record));
        match self.work_of(&id, &record.operation) {
            Ok(work) => item.work = work,
            Err(reason) => {
                let cause = Cause::Undecodable;
                item.undeliverable =
                    Some(Box::new(Undeliverable { operation: record.operation, cause, reason }));
            }
        }
        item.is_recovered = self.is_recovered(&id, &item);
        self.retire_if_purged(&id, &mut item);
        // What waits on disk came before it.
        let has_backlog = self.backlog.contains_key(&id);
        let activation = self.activate(&id);
        // What has to wait for long must not keep others waiting.
        item.permit = Some(permit).filter(|_| !has_backlog && !activation.is_busy());
        match has_backlog {
            true => activation.behind.push_back(item),
            false => activation.mailbox.push_back(item),
        }
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
        let partition = self.environment.number;
        self.open.writes.push(Write::Remind(partition, id.clone(), slot, record));
    }

    /// Forgets entities that were not used for a while; for a shorter while, where there are many.
    fn sweep(&mut self) {
        let idle = match self.table.len() > CROWDED {
            true => self.environment.config.idle.min(Duration::from_secs(1)),
            false => self.environment.config.idle,
        };
        if self.now < self.swept_at + idle / 4 {
            return;
        }
        self.swept_at = self.now;
        self.prune_letters();
        let since = Timestamp::from_micros(
            self.now.as_micros() - i64::try_from(idle.as_micros()).unwrap_or(i64::MAX / 2),
        );
        let (released, backlog) = (self.released, &self.backlog);
        self.table.retain(|id, entry| !entry.is_idle(released, since) || backlog.contains_key(id));
        let table = &self.table;
        self.purges.retain(|id, _| table.contains_key(id) || backlog.contains_key(id));
        if self.table.capacity() > 4 * self.table.len().max(64) {
            self.table.shrink_to_fit();
        }
    }
}
