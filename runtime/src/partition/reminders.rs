//! The reminders and delayed signals of a partition that are due soon, or due and not yet settled.
//!
//! Only the next rows of the order of due times are in memory, bounded in number and bytes. This
//! window is a cursor: everything durable before it is in memory, everything behind it on disk. It is
//! filled from the store page by page, each scan going on where the last one ended, and by what is set
//! while it covers its time; a reminder leaves it when it fires and is remembered as fired until the
//! write group that removes its row is durable. What fires needs one of the node's permits until it is
//! durable, so that a million reminders for one instant do not keep others waiting.
//!
//! What must never happen: something due is missed, or fires twice, whatever a scan that began earlier
//! shows; what was delayed for a deleted generation runs.

use std::{collections::BTreeMap, time::Duration};

use stead_entities::{EntityId, Timestamp};
use tokio::sync::OwnedSemaphorePermit;

use super::{envelope::Occurrence, environment::number_of_partition, message::Output};
use crate::{
    map::Map,
    rules::Rule,
    sabotage::Sabotage,
    store::{
        DueKey, ReadResult, ReminderPage,
        tables::{
            inbox::InboxKey,
            reminders::{ReminderRecord, Slot},
        },
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

/// One occurrence of one reminder, as what has fired is looked up.
type FiredKey = (EntityId, Slot, u64);

/// The reminders and delayed signals of a partition.
#[derive(Default)]
pub(super) struct Reminders {
    /// The window, each row with the write group that makes it durable.
    pending: BTreeMap<DueKey, (u64, ReminderRecord)>,
    /// Bytes of arguments in `pending`.
    pending_bytes: usize,
    fired: Map<FiredKey, ReminderRecord>,
    /// Everything durable up to this row, in the order of due times, is in `pending` or `fired`, or
    /// waits for a node that can use it.
    reached: Option<DueKey>,
    /// So is everything durable that is due at this time or before.
    until: Option<Timestamp>,
    scan: Scan,
    /// Whether something was stored that the scan under way may miss.
    again: bool,
    /// When to scan again after the store could not be read.
    retry_at: Option<Timestamp>,
    /// Set beyond what is covered, with the write group that makes it durable.
    beyond: Vec<(u64, DueKey, ReminderRecord)>,
    /// Permits for what fires next.
    permits: Option<OwnedSemaphorePermit>,
    /// The most bytes in memory, where that is less than usual.
    bytes_max: Option<usize>,
    has_asked: bool,
    /// The deleted generations whose delayed signals are not yet removed.
    purges: Map<EntityId, Purged>,
}

/// A reading of the store.
#[derive(Default)]
enum Scan {
    #[default]
    None,
    UnderWay {
        /// Whether the window has shrunk since it began, so that it proves nothing.
        has_shrunk: bool,
        /// Removed from the store meanwhile; the scan may show them.
        gone: Vec<FiredKey>,
    },
}

/// Which delayed signals ended with a deleted generation.
struct Purged {
    /// One that was accepted at this time or before.
    accepted_at: Timestamp,
    /// Of those that this partition accepted, one with a lower number: what was accepted behind the
    /// deletion, in the same microsecond, is for the next generation.
    below: u64,
    /// How many were removed since this process began.
    removed: u64,
}

/// A reminder that is due, out of the window.
pub(super) struct Due {
    pub(super) id: EntityId,
    pub(super) slot: Slot,
    pub(super) record: ReminderRecord,
    pub(super) permit: OwnedSemaphorePermit,
}

impl Reminders {
    /// Reminders of which at most so many bytes are in memory.
    pub(super) fn holding(bytes: usize) -> Self {
        Self { bytes_max: Some(bytes.min(PENDING_BYTES_MAX)), ..Self::default() }
    }

    /// Takes a reminder that is being set by the write group `group`, or that is durable already (0).
    pub(super) fn set(
        &mut self,
        group: u64,
        id: EntityId,
        slot: Slot,
        record: ReminderRecord,
        released: u64,
    ) {
        let place = (record.due, id, slot);
        if self.covers(&place) {
            self.add(group, place, record);
            self.shrink(released);
        } else {
            self.beyond.push((group, place, record));
            self.committed(released);
        }
    }

    /// Whether everything durable at this place is known.
    fn covers(&self, place: &DueKey) -> bool {
        self.until.is_some_and(|until| place.0 <= until)
            || self.reached.as_ref().is_some_and(|reached| place <= reached)
    }

    fn add(&mut self, group: u64, (due, id, slot): DueKey, record: ReminderRecord) {
        let key = (id, slot, record.number);
        if self.fired.contains_key(&key) {
            return;
        }
        let (id, slot, _) = key;
        self.pending_bytes += record.input.len();
        if let Some((_, old)) = self.pending.insert((due, id, slot), (group, record)) {
            self.pending_bytes -= old.input.len();
        }
    }

    /// Leaves the last rows to the disk where there are too many; those that are not durable yet are
    /// kept until they are.
    fn shrink(&mut self, released: u64) {
        let bytes_max = self.bytes_max.unwrap_or(PENDING_BYTES_MAX);
        let is_crowded = self.pending.len() > PENDING_MAX
            || (self.pending_bytes > bytes_max && self.pending.len() > 1);
        if !is_crowded {
            return;
        }
        while (self.pending.len() > PENDING_MAX / 2 || self.pending_bytes > bytes_max / 2)
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
        if let Scan::UnderWay { has_shrunk, .. } = &mut self.scan {
            *has_shrunk = true;
        }
    }

    /// The next reminder that is due, with a permit to fire it; `None` where none is due, too many are
    /// not settled, or permits have to be waited for.
    pub(super) fn next_due(&mut self, now: Timestamp, outputs: &mut Vec<Output>) -> Option<Due> {
        let is_due = self.pending.keys().next().is_some_and(|(due, ..)| *due <= now);
        if !is_due || self.fired.len() >= FIRED_MAX {
            return None;
        }
        let permit = self.permit(outputs)?;
        let ((_, id, slot), (_, record)) = self.pending.pop_first()?;
        self.pending_bytes -= record.input.len();
        Some(Due { id, slot, record, permit })
    }

    /// One of the node's permits, or none while they are waited for.
    fn permit(&mut self, outputs: &mut Vec<Output>) -> Option<OwnedSemaphorePermit> {
        let mut permits = self.permits.take();
        let one = permits.as_mut().and_then(|permits| permits.split(1));
        self.permits = permits.filter(|permits| permits.num_permits() > 0);
        if one.is_none() && !std::mem::replace(&mut self.has_asked, true) {
            outputs.push(Output::Permits(PERMITS_SHARE.min(self.pending.len()).max(1)));
        }
        one
    }

    /// Takes the permits that arrived, or gives them back where nothing more is to fire.
    pub(super) fn take_permits(&mut self, permits: OwnedSemaphorePermit, is_stopping: bool) {
        self.has_asked = false;
        self.permits = Some(permits).filter(|_| !is_stopping);
    }

    /// Gives back the permits that nothing fires with at once.
    pub(super) fn drop_permits(&mut self) {
        self.permits = None;
    }

    /// Notes that a reminder has fired.
    pub(super) fn fire(&mut self, id: &EntityId, slot: &Slot, record: ReminderRecord) {
        self.fired.insert((id.clone(), slot.clone(), record.number), record);
    }

    /// The record of a reminder that has fired and is now consumed.
    pub(super) fn consume(&self, id: &EntityId, occurrence: &Occurrence) -> ReminderRecord {
        match self.fired.get(&key(id, occurrence)) {
            Some(record) => record.clone(),
            None => Rule::ConsumedReminderHasFired.broken(),
        }
    }

    /// Whether the first try of an occurrence that fired is too late.
    pub(super) fn is_missed(&self, id: &EntityId, occurrence: &Occurrence, now: Timestamp) -> bool {
        let Some(record) = self.fired.get(&key(id, occurrence)) else { return false };
        let schedule = record.schedule.as_ref().filter(|_| record.attempts == 0);
        schedule.is_some_and(|schedule| schedule.is_missed(record.due, now))
    }

    /// The record of a reminder that has fired, with its attempts changed.
    pub(super) fn count_attempts(
        &mut self,
        id: &EntityId,
        occurrence: &Occurrence,
        attempts: u32,
    ) -> ReminderRecord {
        let Some(record) = self.fired.get_mut(&key(id, occurrence)) else {
            Rule::ConsumedReminderHasFired.broken()
        };
        record.attempts = attempts;
        record.clone()
    }

    pub(super) fn has_fired(&self, id: &EntityId, slot: &Slot, number: u64) -> bool {
        self.fired.contains_key(&(id.clone(), slot.clone(), number))
    }

    /// Notes that an occurrence is gone from the store; but a scan under way may still show it.
    pub(super) fn gone(&mut self, id: &EntityId, occurrence: &Occurrence) {
        let key = key(id, occurrence);
        match &mut self.scan {
            Scan::UnderWay { gone, .. } => gone.push(key),
            Scan::None => drop(self.fired.remove(&key)),
        }
    }

    /// Leaves an occurrence that fired on disk, for who can use its entity.
    pub(super) fn leave_on_disk(&mut self, id: &EntityId, occurrence: &Occurrence) {
        self.fired.remove(&key(id, occurrence));
    }

    /// Takes back a stored row that is to fire no more. The caller removes it from the store, and says
    /// so with [`super::write_group::Release::Fired`].
    pub(super) fn withdraw(&mut self, id: &EntityId, slot: &Slot, record: &ReminderRecord) {
        let place = (record.due, id.clone(), slot.clone());
        if let Some((_, dropped)) = self.pending.remove(&place) {
            self.pending_bytes -= dropped.input.len();
        }
        self.beyond.retain(|(_, at, _)| *at != place);
        // A scan may still show it until that is durable.
        self.fired.insert((place.1, place.2, record.number), record.clone());
    }

    /// Notes that the groups up to this number are durable: what they set beyond the window will be
    /// found by the next scan.
    pub(super) fn committed(&mut self, released: u64) {
        if matches!(self.scan, Scan::None) {
            self.beyond.retain(|(group, ..)| *group > released);
        }
    }

    /// Scans once more from the beginning, though nothing was to be missed.
    pub(super) fn scan_again(&mut self) {
        self.again = true;
    }

    /// Begins a scan where the window has room for more.
    pub(super) fn scan_if_wanted(&mut self, now: Timestamp, released: u64) -> Option<Output> {
        let is_wanted = matches!(self.scan, Scan::None)
            && (self.again || self.pending.len() < PENDING_MAX / 4)
            && self.fired.len() < FIRED_MAX
            && self.retry_at.is_none_or(|at| at <= now)
            && (self.again || self.until.is_none_or(|until| until <= now + WINDOW / 2));
        is_wanted.then(|| self.begin_scan(now, released))
    }

    /// Begins a scan.
    pub(super) fn begin_scan(&mut self, now: Timestamp, released: u64) -> Output {
        self.scan = Scan::UnderWay { has_shrunk: false, gone: Vec::new() };
        self.retry_at = None;
        if std::mem::take(&mut self.again) {
            // What is on disk is forgotten, to be read from the beginning.
            (self.reached, self.until, self.pending_bytes) = (None, None, 0);
            for (place, (group, record)) in std::mem::take(&mut self.pending) {
                if group > released {
                    self.beyond.push((group, place, record));
                }
            }
        }
        Output::Due(self.reached.clone(), now + WINDOW, PAGE_ROWS)
    }

    fn end_scan(&mut self) {
        if let Scan::UnderWay { gone, .. } = std::mem::take(&mut self.scan) {
            for key in gone {
                self.fired.remove(&key);
            }
        }
    }

    /// Takes what a scan found, which looked for what is due until `until`.
    ///
    /// # Errors
    /// Why the store could not be read; it is scanned again after a pause.
    pub(super) fn scanned(
        &mut self,
        until: Timestamp,
        page: ReadResult<ReminderPage>,
        now: Timestamp,
        released: u64,
    ) -> ReadResult<()> {
        let page = page.inspect_err(|_| {
            self.end_scan();
            self.retry_at = Some(now + SCAN_PAUSE);
        })?;
        if matches!(self.scan, Scan::UnderWay { has_shrunk: true, .. }) {
            self.end_scan();
            return Ok(());
        }
        let is_first = self.until.is_none() && self.reached.is_none();
        if let Some((id, slot, last)) = page.rows.last() {
            self.reached = Some((last.due, id.clone(), slot.clone()));
        }
        if page.is_end {
            self.until = Some(until);
        }
        for (id, slot, record) in page.rows {
            if Sabotage::OverdueRemindersSkipped.is_on() && is_first && record.due < now {
                continue;
            }
            self.add(0, (record.due, id, slot), record);
        }
        for (group, place, record) in std::mem::take(&mut self.beyond) {
            if self.covers(&place) {
                self.add(group, place, record);
            } else {
                self.beyond.push((group, place, record));
            }
        }
        self.end_scan();
        self.committed(released);
        self.shrink(released);
        Ok(())
    }

    /// When something is to be done by itself: firing, or scanning. What is due already waits for
    /// permits, or for room, and goes on when they come.
    pub(super) fn next_wake(&self, now: Timestamp) -> [Option<Timestamp>; 3] {
        let due = self.pending.keys().next().map(|(due, ..)| *due);
        let scan = self.until.map(|until| until.max(now + WINDOW / 4));
        [due.filter(|due| *due > now), scan, self.retry_at.filter(|at| *at > now)]
    }

    /// Notes that what was delayed for a deleted generation is removed by the rest of the deletion,
    /// which has this row.
    pub(super) fn purge(&mut self, id: &EntityId, row: &InboxKey, accepted_at: Timestamp) {
        let purged = Purged { accepted_at, below: row.revision, removed: 0 };
        self.purges.insert(id.clone(), purged);
    }

    /// Whether a delayed signal ended with a deleted generation.
    pub(super) fn is_purged(
        &self,
        partition: u16,
        id: &EntityId,
        slot: &Slot,
        accepted_at: Timestamp,
    ) -> bool {
        self.purges.get(id).is_some_and(|purged| purged.takes(partition, slot, accepted_at))
    }

    /// Counts delayed signals that were removed; returns how many were since this process began.
    pub(super) fn count_purged(&mut self, id: &EntityId, removed: usize) -> u64 {
        self.purges.get_mut(id).map_or(0, |purged| {
            purged.removed += removed as u64;
            purged.removed
        })
    }

    /// Forgets what was deleted of entities that are not in memory.
    pub(super) fn retain_purges(&mut self, keeps: impl Fn(&EntityId) -> bool) {
        self.purges.retain(|id, _| keeps(id));
    }

    /// Ends the term.
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
}

fn key(id: &EntityId, occurrence: &Occurrence) -> FiredKey {
    (id.clone(), occurrence.slot.clone(), occurrence.number)
}

impl Purged {
    fn takes(&self, partition: u16, slot: &Slot, accepted_at: Timestamp) -> bool {
        let Slot::Delayed(number) = slot else { return false };
        let is_own = number_of_partition(*number) == partition;
        accepted_at <= self.accepted_at && (!is_own || *number < self.below)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    fn id() -> EntityId {
        EntityId::new("log", "a").expect("valid")
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn record(number: u64, due: Timestamp) -> ReminderRecord {
        ReminderRecord {
            due,
            number,
            schedule: None,
            operation: "append".into(),
            input: Vec::new(),
            token: 0,
            attempts: 0,
            accepted_at: at(0),
            sender: String::new(),
            origin: None,
        }
    }

    fn set(reminders: &mut Reminders, group: u64, number: u64, due: i64) {
        reminders.set(group, id(), Slot::Delayed(number), record(number, at(due)), 0);
    }

    fn page(rows: &[(u64, i64)], is_end: bool) -> ReadResult<ReminderPage> {
        let row =
            |(number, due): &(u64, i64)| (id(), Slot::Delayed(*number), record(*number, at(*due)));
        Ok(ReminderPage { rows: rows.iter().map(row).collect(), is_end })
    }

    /// A window that has seen that nothing is stored.
    fn scanned() -> Reminders {
        let mut reminders = Reminders::default();
        reminders.begin_scan(at(0), 0);
        reminders.scanned(at(60), page(&[], true), at(0), 0).expect("readable");
        reminders
    }

    fn fire(reminders: &mut Reminders, now: i64) -> Vec<u64> {
        let permits = Arc::new(Semaphore::new(100));
        let permits = permits.try_acquire_many_owned(100).expect("free");
        reminders.take_permits(permits, false);
        let mut fired = Vec::new();
        while let Some(due) = reminders.next_due(at(now), &mut Vec::new()) {
            fired.push(due.record.number);
            reminders.fire(&due.id, &due.slot, due.record);
        }
        fired
    }

    #[test]
    fn what_is_due_fires_in_order_and_never_early() {
        let mut reminders = scanned();
        for (number, due) in [(1, 30), (2, 10), (3, 20)] {
            set(&mut reminders, 1, number, due);
        }
        assert_eq!(reminders.next_wake(at(0))[0], Some(at(10)));
        assert!(fire(&mut reminders, 9).is_empty());
        assert_eq!(fire(&mut reminders, 20), [2, 3]);
        assert_eq!(fire(&mut reminders, 99), [1]);
    }

    #[test]
    fn without_a_permit_nothing_fires_and_permits_are_asked_for_once() {
        let (mut reminders, mut outputs) = (scanned(), Vec::new());
        set(&mut reminders, 1, 1, 10);
        for _ in 0..3 {
            assert!(reminders.next_due(at(10), &mut outputs).is_none());
        }
        assert!(matches!(outputs[..], [Output::Permits(1)]));
    }

    #[test]
    fn a_scan_that_began_earlier_fires_nothing_twice() {
        let mut reminders = scanned();
        set(&mut reminders, 1, 1, 10);
        assert_eq!(fire(&mut reminders, 10), [1]);
        reminders.begin_scan(at(10), 1);
        let occurrence = Occurrence::new(Slot::Delayed(1), &record(1, at(10)));
        reminders.gone(&id(), &occurrence);
        reminders.scanned(at(70), page(&[(1, 10), (2, 10)], true), at(10), 2).expect("readable");
        assert_eq!(fire(&mut reminders, 10), [2]);
    }

    #[test]
    fn what_is_set_beyond_the_window_is_found_by_the_next_scan() {
        let mut reminders = scanned();
        set(&mut reminders, 1, 1, 500);
        assert_eq!(reminders.in_memory(), 0);
        // It is not durable when the scan begins, so the scan may miss it.
        reminders.begin_scan(at(470), 0);
        reminders.scanned(at(530), page(&[], true), at(470), 1).expect("readable");
        assert_eq!(fire(&mut reminders, 500), [1]);
    }

    #[test]
    fn a_crowded_window_leaves_the_last_rows_on_disk() {
        let mut reminders = scanned();
        (0..2_000).for_each(|number| set(&mut reminders, 0, number, 10 + (number % 40) as i64));
        assert!(reminders.in_memory() <= PENDING_MAX);
        let first = fire(&mut reminders, 12);
        assert!(!first.is_empty() && first.iter().all(|number| number % 40 < 3), "the earliest");
        while !fire(&mut reminders, 99).is_empty() {}
        let scan = reminders.scan_if_wanted(at(99), 9);
        assert!(matches!(scan, Some(Output::Due(Some(_), ..))), "from where it left off");
    }

    #[test]
    fn what_was_delayed_for_a_deleted_generation_is_told_from_what_came_behind() {
        let mut reminders = Reminders::default();
        let key = |revision| InboxKey {
            partition: 3,
            receiver: id(),
            sender: "".into(),
            generation: 0,
            revision,
            index: 0,
        };
        // Numbers end with the partition that minted them.
        let own = |number: u64| Slot::Delayed((number << 12) | 3);
        reminders.purge(&id(), &key((10 << 12) | 3), at(5));
        let is_purged = |slot: &Slot, accepted| reminders.is_purged(3, &id(), slot, at(accepted));
        assert!(is_purged(&own(9), 5) && !is_purged(&own(11), 5) && !is_purged(&own(9), 6));
        assert!(is_purged(&Slot::Delayed((99 << 12) | 4), 5), "another partition's");
        assert!(!is_purged(&Slot::Named("name".into()), 1), "named ones went with the state");
    }
}
