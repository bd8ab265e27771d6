//! The inbox rows of a partition: which are in memory, and which entities have more on disk.
//!
//! A mailbox is a window on the inbox. The rows of an entity are read page by page, in order, when it
//! has nothing else to do; while some of them are on disk, what arrives waits behind them. What must
//! never happen: a row is taken in twice, though a read that began before its commit still shows it; a row on
//! disk is forgotten; arguments of more than a bounded number of bytes are in memory.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use stead_entities::{EntityId, Timestamp};

use crate::{
    map::{Map, Set},
    rules::Rule,
    store::{
        InboxPage, ReadError, ReadResult,
        tables::inbox::{InboxKey, InboxRecord},
    },
};

/// The most bytes of arguments of stored signals in memory; what other entities send beyond it stays
/// on disk until its entity has nothing else to do.
const HELD_BYTES_MAX: usize = 1 << 20;
/// How many rows that were read and consumed are remembered, and for how long: the node that wrote one may
/// still deliver it. A delivery that comes later yet fails the commit that consumes the row once more.
const LATE_MAX: usize = 256;
const LATE_AGE: Duration = Duration::from_secs(30);
/// How many entities with rows of an earlier term are woken at one time.
const RECOVERING_MAX: usize = 64;

/// The inbox of a partition.
#[derive(Default)]
pub(super) struct Inbox {
    /// Rows in memory, or consumed by a write group that is not yet durable, or in `late`.
    known: Set<InboxKey>,
    /// Those of them that were read and not delivered.
    read: Set<InboxKey>,
    /// Rows that were read and are consumed, and may still be delivered; the first consumed comes first.
    late: VecDeque<(Timestamp, InboxKey)>,
    /// Bytes of arguments of the rows in memory.
    held_bytes: usize,
    /// Entities with rows on disk that are not in memory.
    backlogs: Map<EntityId, Backlog>,
    /// Those of an earlier term whose rows are still to be asked for.
    recovering: VecDeque<EntityId>,
    /// Those of which no more rows are read until their lock ends.
    locked: Set<EntityId>,
    /// Rows that are in memory for nothing but to be read where the partition is hosted anew.
    for_hosting: Map<EntityId, InboxKey>,
}

/// Rows of one entity that are on disk and not in memory.
#[derive(Debug, Default)]
struct Backlog {
    after: Option<InboxKey>,
    is_loading: bool,
    /// Whether rows were added behind the reader's back.
    again: bool,
    /// The write group that must be durable before the disk shows everything.
    since: u64,
    /// Rows that were removed while a page was being read, which may show them.
    gone: Vec<InboxKey>,
    /// Which rows were read of who has locked the entity, where its other rows are not.
    of_holder: OfHolder,
    /// The sender whose rows alone are being read.
    reading_of: Option<Arc<str>>,
}

/// How far the rows are read of who has locked an entity.
#[derive(Debug, Default)]
enum OfHolder {
    /// Those behind this one may be on disk.
    Behind(InboxKey),
    /// Any may be.
    #[default]
    Any,
    /// None is.
    None,
}

/// A page of the rows of an entity, without those that are known.
pub(super) struct NewRows {
    pub(super) rows: Vec<(InboxKey, InboxRecord)>,
    /// Whether everything that the entity has on disk is in memory now.
    pub(super) is_end: bool,
    gone: Vec<InboxKey>,
}

impl Inbox {
    /// Whether a row is in memory, or was consumed and is not gone yet.
    pub(super) fn knows(&self, key: &InboxKey) -> bool {
        self.known.contains(key)
    }

    /// Whether a row that was delivered is known. It will not be delivered once more.
    pub(super) fn knows_delivered(&mut self, key: &InboxKey) -> bool {
        self.forget_read(key);
        self.knows(key)
    }

    /// Forgets that a row was read; says whether it was. Most rows are not: they need no hash here.
    fn forget_read(&mut self, key: &InboxKey) -> bool {
        !self.read.is_empty() && self.read.remove(key)
    }

    /// Whether so much is in memory that what other entities send stays on disk.
    pub(super) fn is_crowded(&self, share: usize) -> bool {
        self.held_bytes > HELD_BYTES_MAX.min(share)
    }

    /// Notes a row that is in memory from here on.
    pub(super) fn take_in(&mut self, key: InboxKey, bytes: usize) {
        self.known.insert(key);
        self.held_bytes += bytes;
    }

    /// Keeps a row that was taken in for nothing but to be read where the partition is hosted anew.
    pub(super) fn keep_hosting_row(&mut self, key: InboxKey) {
        self.for_hosting.insert(key.receiver.clone(), key);
    }

    /// Takes such a row, which is to be consumed.
    pub(super) fn take_hosting_row(&mut self, id: &EntityId) -> Option<InboxKey> {
        self.for_hosting.remove(id)
    }

    /// Notes that the open write group consumes a row.
    pub(super) fn consume(&mut self, key: &InboxKey, bytes: usize) {
        Rule::ConsumedRowIsKnown.check(self.known.contains(key));
        self.give_back(bytes);
    }

    /// Notes that a row in memory is left on disk, where it is read again when this write group is
    /// durable.
    pub(super) fn leave_on_disk(&mut self, key: &InboxKey, bytes: usize, group: u64) {
        self.known.remove(key);
        self.forget_read(key);
        self.give_back(bytes);
        if let Some(backlog) = self.backlogs.get_mut(&key.receiver) {
            backlog.again = true;
            backlog.since = group;
        }
    }

    /// Notes that a row in memory is left on disk for good, because its entity cannot be used.
    pub(super) fn abandon(&mut self, key: InboxKey, bytes: usize) {
        self.forget_read(&key);
        self.give_back(bytes);
        self.gone(key);
    }

    fn give_back(&mut self, bytes: usize) {
        Rule::BytesAreCounted.check(bytes <= self.held_bytes);
        self.held_bytes -= bytes;
    }

    /// Notes that a row was consumed, durably.
    pub(super) fn consumed(&mut self, key: InboxKey, now: Timestamp) {
        if self.forget_read(&key) && !key.sender.is_empty() {
            self.late.push_back((now, key));
        } else {
            self.gone(key);
        }
        self.forget_late(now);
    }

    /// Forgets consumed rows that would have been delivered by now.
    pub(super) fn forget_late(&mut self, now: Timestamp) {
        while let Some((since, _)) = self.late.front()
            && (self.late.len() > LATE_MAX || *since + LATE_AGE <= now)
            && let Some((_, key)) = self.late.pop_front()
        {
            self.gone(key);
        }
    }

    /// Notes that a row is gone from the store; but a page that is being read may still show it.
    pub(super) fn gone(&mut self, key: InboxKey) {
        match self.backlogs.get_mut(&key.receiver) {
            Some(backlog) if backlog.is_loading => backlog.gone.push(key),
            _ => drop(self.known.remove(&key)),
        }
    }

    /// Whether an entity has rows on disk that are not in memory.
    pub(super) fn has_backlog(&self, id: &EntityId) -> bool {
        self.backlogs.contains_key(id)
    }

    /// Notes that an entity has rows on disk which may not be read yet.
    pub(super) fn add_backlog(&mut self, id: &EntityId) {
        let backlog = self.backlogs.entry(id.clone()).or_default();
        (backlog.again, backlog.of_holder) = (true, OfHolder::Any);
    }

    /// Notes that somebody else has locked an entity, or nobody.
    pub(super) fn lock_changed(&mut self, id: &EntityId) {
        self.locked.remove(id);
        if let Some(backlog) = self.backlogs.get_mut(id) {
            backlog.of_holder = OfHolder::Any;
        }
    }

    /// Whether rows of who has locked an entity may be on disk and not in memory.
    pub(super) fn may_have_of_holder(&self, id: &EntityId) -> bool {
        self.backlogs.get(id).is_some_and(|it| !matches!(it.of_holder, OfHolder::None))
    }

    /// Begins to read the next rows of who has locked an entity, though it has no room for others: returns the key
    /// behind which they begin. `None` as for [`Inbox::begin_page`].
    pub(super) fn begin_page_of_holder(
        &mut self,
        (id, holder): (&EntityId, &str),
        partition: u16,
        released: u64,
    ) -> Option<InboxKey> {
        let backlog = self.backlogs.get_mut(id)?;
        if backlog.is_loading || backlog.since > released {
            return None;
        }
        let after = match std::mem::replace(&mut backlog.of_holder, OfHolder::None) {
            OfHolder::None => return None,
            OfHolder::Behind(key) => key,
            OfHolder::Any => InboxKey {
                partition,
                receiver: id.clone(),
                sender: holder.into(),
                generation: 0,
                revision: 0,
                index: 0,
            },
        };
        (backlog.is_loading, backlog.reading_of) = (true, Some(after.sender.clone()));
        Some(after)
    }

    /// Notes that an entity has rows of an earlier term, to be read when others have been.
    pub(super) fn recover(&mut self, id: EntityId) {
        match self.backlogs.get_mut(&id) {
            Some(backlog) => (backlog.again, backlog.of_holder) = (true, OfHolder::Any),
            None => {
                self.backlogs.insert(id.clone(), Backlog::default());
                self.recovering.push_back(id);
            }
        }
    }

    /// The next entity whose rows of an earlier term are to be asked for: some entities at a time.
    pub(super) fn next_recovering(&mut self) -> Option<EntityId> {
        let waiting = self.recovering.len() + self.locked.len();
        let under_way = self.backlogs.len().saturating_sub(waiting);
        (under_way < RECOVERING_MAX).then(|| self.recovering.pop_front()).flatten()
    }

    /// Forgets what an entity has on disk, because it cannot be used. Says whether it had anything.
    pub(super) fn forget_backlog(&mut self, id: &EntityId) -> bool {
        self.recovering.retain(|known| known != id);
        self.locked.remove(id);
        self.backlogs.remove(id).is_some()
    }

    /// Begins to read the next rows of an entity: returns the key behind which they begin. `None` where
    /// it has none, they are being read, or the disk does not show all of them yet.
    pub(super) fn begin_page(&mut self, id: &EntityId, released: u64) -> Option<Option<InboxKey>> {
        let backlog = self.backlogs.get_mut(id)?;
        if backlog.is_loading || backlog.since > released {
            return None;
        }
        backlog.is_loading = true;
        self.locked.remove(id);
        Some(backlog.after.clone())
    }

    /// Takes a page that was read; `None` where nobody waits for it. [`Inbox::end_page`] ends it.
    pub(super) fn page_read(
        &mut self,
        id: &EntityId,
        page: ReadResult<InboxPage>,
    ) -> Option<Result<NewRows, ReadError>> {
        let backlog = self.backlogs.get_mut(id)?;
        backlog.is_loading = false;
        let (gone, holder) = (std::mem::take(&mut backlog.gone), backlog.reading_of.take());
        let InboxPage { mut rows, is_end } = match page {
            Ok(page) => page,
            Err(error) => {
                backlog.of_holder = OfHolder::Any;
                self.forget(gone);
                return Some(Err(error));
            }
        };
        if let Some(holder) = holder {
            let last = rows.last().map(|(key, _)| key).filter(|key| key.sender == holder);
            match (&backlog.of_holder, last.filter(|_| !is_end)) {
                (OfHolder::None, Some(last)) => backlog.of_holder = OfHolder::Behind(last.clone()),
                (OfHolder::None, None) => {
                    self.recovering.retain(|known| known != id);
                    self.locked.insert(id.clone());
                }
                // Rows were added meanwhile.
                (OfHolder::Any | OfHolder::Behind(_), _) => {}
            }
            rows.retain(|(key, _)| key.sender == holder && !self.known.contains(key));
            self.read.extend(rows.iter().map(|(key, _)| key.clone()));
            return Some(Ok(NewRows { rows, is_end: false, gone }));
        }
        backlog.after = rows.last().map(|(key, _)| key.clone());
        if is_end && backlog.again {
            backlog.again = false;
            backlog.after = None;
        } else if is_end {
            self.backlogs.remove(id);
        }
        rows.retain(|(key, _)| !self.known.contains(key));
        self.read.extend(rows.iter().map(|(key, _)| key.clone()));
        Some(Ok(NewRows { rows, is_end: !self.has_backlog(id), gone }))
    }

    /// Ends a page whose rows were taken in.
    pub(super) fn end_page(&mut self, page: NewRows) {
        self.forget(page.gone);
    }

    fn forget(&mut self, gone: Vec<InboxKey>) {
        for key in gone {
            self.known.remove(&key);
        }
    }

    /// Ends the term.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use stead_entities::Timestamp;

    use super::*;

    fn id(key: &str) -> EntityId {
        EntityId::new("log", key).expect("valid")
    }

    fn row(revision: u64) -> (InboxKey, InboxRecord) {
        let (receiver, sender) = (id("a"), "log/b".into());
        let key = InboxKey { partition: 0, receiver, sender, generation: 1, revision, index: 0 };
        let record = InboxRecord::signal(0, "append".into(), vec![0; 10], Timestamp::default());
        (key, record)
    }

    fn page(revisions: std::ops::Range<u64>, is_end: bool) -> ReadResult<InboxPage> {
        Ok(InboxPage { rows: revisions.map(row).collect(), is_end })
    }

    /// The revisions of the rows that are new, taken in.
    fn take(inbox: &mut Inbox, page: ReadResult<InboxPage>) -> Vec<u64> {
        let mut read = inbox.page_read(&id("a"), page).expect("awaited").expect("readable");
        let rows = std::mem::take(&mut read.rows);
        let revisions = rows.iter().map(|(key, _)| key.revision).collect();
        rows.into_iter().for_each(|(key, record)| inbox.take_in(key, record.input.len()));
        inbox.end_page(read);
        revisions
    }

    #[test]
    fn pages_follow_each_other_and_no_row_is_taken_in_twice() {
        let mut inbox = Inbox::default();
        inbox.recover(id("a"));
        assert_eq!(inbox.next_recovering(), Some(id("a")));
        assert_eq!(inbox.begin_page(&id("a"), 0), Some(None));
        assert_eq!(inbox.begin_page(&id("a"), 0), None, "it is being read");
        assert_eq!(take(&mut inbox, page(0..3, false)), [0, 1, 2]);
        let after = inbox.begin_page(&id("a"), 0).expect("there are more");
        assert_eq!(after.map(|key| key.revision), Some(2));
        assert_eq!(take(&mut inbox, page(2..5, true)), [3, 4], "the first of them is known");
        assert!(!inbox.has_backlog(&id("a")));
    }

    #[test]
    fn a_row_that_is_consumed_while_a_page_is_read_is_not_taken_in_again() {
        let mut inbox = Inbox::default();
        inbox.recover(id("a"));
        inbox.begin_page(&id("a"), 0);
        take(&mut inbox, page(0..1, false));
        inbox.begin_page(&id("a"), 0);
        // Its commit lands while a page that began before it is on its way.
        inbox.consume(&row(0).0, 10);
        inbox.gone(row(0).0);
        assert_eq!(take(&mut inbox, page(0..2, true)), [1]);
        assert!(!inbox.knows(&row(0).0) && inbox.knows(&row(1).0));
    }

    #[test]
    fn a_delivery_of_a_row_that_was_read_and_consumed_does_not_bring_it_back() {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let mut inbox = Inbox::default();
        inbox.recover(id("a"));
        inbox.begin_page(&id("a"), 0);
        take(&mut inbox, page(0..1, true));
        inbox.take_in(row(1).0, 10);
        for revision in 0..2 {
            inbox.consume(&row(revision).0, 10);
            inbox.consumed(row(revision).0, at(0));
        }
        assert!(inbox.knows(&row(0).0), "its delivery may be on its way");
        assert!(!inbox.knows(&row(1).0), "this one was delivered");
        inbox.forget_late(at(29));
        assert!(inbox.knows(&row(0).0));
        inbox.forget_late(at(30));
        assert!(!inbox.knows(&row(0).0));
    }

    #[test]
    fn rows_that_come_behind_the_reader_are_read_from_the_beginning() {
        let mut inbox = Inbox::default();
        inbox.recover(id("a"));
        inbox.begin_page(&id("a"), 0);
        inbox.add_backlog(&id("a"));
        take(&mut inbox, page(0..2, true));
        assert_eq!(inbox.begin_page(&id("a"), 0), Some(None), "once more");
        assert_eq!(take(&mut inbox, page(0..3, true)), [2]);
        assert!(!inbox.has_backlog(&id("a")));
    }

    #[test]
    fn a_row_left_on_disk_is_read_when_it_is_durable() {
        let mut inbox = Inbox::default();
        inbox.add_backlog(&id("a"));
        inbox.take_in(row(5).0, 10);
        inbox.leave_on_disk(&row(5).0, 10, 3);
        assert_eq!(inbox.begin_page(&id("a"), 2), None, "the disk does not show it yet");
        assert_eq!(inbox.begin_page(&id("a"), 3), Some(None));
    }

    #[test]
    fn few_entities_are_woken_at_one_time() {
        let mut inbox = Inbox::default();
        (0..200).for_each(|number| inbox.recover(id(&number.to_string())));
        let woken = std::iter::from_fn(|| inbox.next_recovering()).count();
        assert_eq!(woken, RECOVERING_MAX);
        assert!(inbox.forget_backlog(&id("0")));
        assert!(inbox.next_recovering().is_some(), "one more");
    }

    #[test]
    #[should_panic(expected = "ConsumedRowIsKnown")]
    fn a_row_that_was_not_taken_in_is_not_consumed() {
        Inbox::default().consume(&row(0).0, 10);
    }
}
