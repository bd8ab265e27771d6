//! Many write groups become one batch: the last state of an entity wins, and a row that is written and
//! removed again is never written.
//!
//! The last state ends the rows of what the store has indexed, which is what the first one follows.
//!
//! Each state must follow the one before it, in this batch or the last: two chains of turns for one
//! entity can never both be committed.

use stead_entities::{EntityId, collections::EntryKey};

use crate::{
    map::Map,
    sabotage::Sabotage,
    store::{
        Write,
        tables::{
            inbox::InboxKey,
            reminders::Slot,
            states::{Ended, EndedRows, StateRecord},
        },
    },
};

/// The last version of each entity of a batch.
pub(super) type Chains = Map<EntityId, Chain>;

/// The last version of one entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    generation: u64,
    revision: u64,
    is_deleted: bool,
    /// The revision that the store has while the batch is under way.
    follows: u64,
    /// The place of the write in its batch.
    place: usize,
}

impl Chain {
    fn goes_on_with(self, next: &StateRecord) -> bool {
        if self.is_deleted {
            return next.head.generation > self.generation && next.head.follows == 0;
        }
        next.head.generation == self.generation && next.head.follows == self.revision
    }
}

/// Writes under way to a batch.
#[derive(Debug, Default)]
pub(super) struct Merge {
    writes: Vec<Option<Write>>,
    chains: Chains,
    /// Rows that this batch writes: their places, and whether they are new to the store.
    rows: Map<RowKey, (usize, bool)>,
}

/// A row that is written once, and removed once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum RowKey {
    Inbox(InboxKey),
    Delayed(EntityId, u64),
}

impl StateRecord {
    /// Takes the place of an earlier record of the entity, which the batch does not write.
    fn follow(&mut self, earlier: Self) {
        if !Sabotage::IndexedByLastTurn.is_on() {
            self.replaces = earlier.replaces;
        }
        self.ends = earlier.ends;
        if let Some(mut changes) = earlier.changes.filter(|_| !Sabotage::EntriesOfLastTurn.is_on())
        {
            changes.merge(self.changes.take().map(|later| *later).unwrap_or_default());
            self.changes = Some(changes);
        }
    }

    /// The end of the entity, where it is deleted before this record is written. Where its generation began in the
    /// batch, only the one before it may have entries.
    fn ended(self) -> Ended {
        let has_entries = self.changes.as_ref().is_some_and(|changes| {
            let is_entry = |(number, _): &EntryKey| *number != 0;
            !changes.ended.is_empty() || changes.entries.keys().any(is_entry)
        });
        let generation = self.head.generation;
        let rows = match has_entries || !self.apart.collections.is_empty() {
            true => Some(EndedRows::All(generation)),
            false if self.changes.is_some() || self.apart.body => Some(EndedRows::Body(generation)),
            false => None,
        };
        Ended { indexed: self.replaces, entries: self.ends.or(rows) }
    }
}

impl Merge {
    /// Adds the writes of the next write group.
    ///
    /// # Errors
    /// Names a state that does not follow the one before it; then nothing of it all may be written.
    pub(super) fn add(&mut self, last: &Chains, writes: Vec<Write>) -> Result<(), String> {
        for write in writes {
            let write = match write {
                Write::PutState(id, record) => self.put_state(last, id, record)?,
                Write::DeleteState(id, ended) => self.delete_state(last, id, ended),
                Write::Accept(key, record) => {
                    self.rows.insert(RowKey::Inbox(key.clone()), (self.writes.len(), true));
                    Write::Accept(key, record)
                }
                Write::Retry(key, record) => match self.replace_row(RowKey::Inbox(key.clone())) {
                    true => Write::Accept(key, record),
                    false => Write::Retry(key, record),
                },
                Write::Remind(partition, id, slot @ Slot::Delayed(number), record) => {
                    let row = RowKey::Delayed(id.clone(), number);
                    if !self.replace_row(row.clone()) && record.attempts == 0 {
                        self.rows.insert(row, (self.writes.len(), true));
                    }
                    Write::Remind(partition, id, slot, record)
                }
                Write::Consume(key) if self.is_removed(&RowKey::Inbox(key.clone())) => continue,
                Write::CancelReminder { id, slot: Slot::Delayed(number), .. }
                    if self.is_removed(&RowKey::Delayed(id.clone(), number)) =>
                {
                    continue;
                }
                other => other,
            };
            self.writes.push(Some(write));
        }
        Ok(())
    }

    /// The writes, and where their entities stand once they are committed. States come first, in
    /// the order of their keys, in which an ordered store takes them fastest; nothing else touches
    /// their rows. The rest keeps its order.
    pub(super) fn finish(self) -> (Vec<Write>, Chains) {
        let mut writes: Vec<Write> = self.writes.into_iter().flatten().collect();
        writes.sort_by(|one, other| match (one, other) {
            (Write::PutState(one, _), Write::PutState(other, _)) => one.cmp(other),
            (one, other) => is_state(other).cmp(&is_state(one)),
        });
        (writes, self.chains)
    }

    fn put_state(
        &mut self,
        last: &Chains,
        id: EntityId,
        mut record: StateRecord,
    ) -> Result<Write, String> {
        let here = self.chains.get(&id).copied();
        if let Some(known) = here.or_else(|| last.get(&id).copied())
            && !known.goes_on_with(&record)
        {
            return Err(format!(
                "{id} follows revision {}, but stands at {known:?}",
                record.head.follows
            ));
        }
        if let Some(known) = here {
            match self.take_state(known) {
                Some(Write::PutState(_, earlier)) => record.follow(earlier),
                Some(Write::DeleteState(_, ended)) => {
                    record.replaces = ended.indexed;
                    record.ends = ended.entries;
                }
                _ => {}
            }
            if !known.is_deleted {
                record.head.follows = known.follows;
            }
        }
        let next = Chain {
            generation: record.head.generation,
            revision: record.head.revision,
            is_deleted: false,
            follows: record.head.follows,
            place: self.writes.len(),
        };
        self.chains.insert(id.clone(), next);
        Ok(Write::PutState(id, record))
    }

    /// Takes back what this batch writes of an entity.
    fn take_state(&mut self, known: Chain) -> Option<Write> {
        self.writes[known.place].take()
    }

    fn delete_state(&mut self, last: &Chains, id: EntityId, ended: Ended) -> Write {
        let known = self.chains.get(&id).copied();
        // What is stored ends, and not what the batch would have written.
        let ended = match known.and_then(|known| self.take_state(known)) {
            Some(Write::PutState(_, earlier)) => earlier.ended(),
            Some(Write::DeleteState(_, earlier)) => earlier,
            _ => ended,
        };
        let generation = known.or_else(|| last.get(&id).copied()).map_or(0, |it| it.generation);
        let place = self.writes.len();
        let chain = Chain { generation, revision: 0, is_deleted: true, follows: 0, place };
        self.chains.insert(id.clone(), chain);
        Write::DeleteState(id, ended)
    }

    /// Makes room for another version of a row; says whether the row is new to the store.
    fn replace_row(&mut self, key: RowKey) -> bool {
        let place = self.writes.len();
        let (earlier, is_new) = self.rows.get(&key).copied().unwrap_or((place, false));
        if let Some(write) = self.writes.get_mut(earlier) {
            *write = None;
        }
        self.rows.insert(key, (place, is_new));
        is_new
    }

    /// Takes back what this batch writes to a row that is removed; says whether that was all there
    /// is of it.
    fn is_removed(&mut self, key: &RowKey) -> bool {
        let Some((place, is_new)) = self.rows.remove(key) else {
            return false;
        };
        self.writes[place] = None;
        is_new
    }
}

fn is_state(write: &Write) -> bool {
    matches!(write, Write::PutState(..))
}

#[cfg(test)]
mod tests {
    use stead_entities::{Timestamp, collections::EntryChanges};

    use super::*;
    use crate::store::tables::{inbox::InboxRecord, indexes::IndexedValues, states::StateHead};

    fn id() -> EntityId {
        EntityId::new("counter", "a").expect("valid")
    }

    fn key(revision: u64) -> InboxKey {
        let sender = "".into();
        InboxKey { partition: 0, receiver: id(), sender, generation: 0, revision, index: 0 }
    }

    fn row(attempts: u32) -> InboxRecord {
        let record = InboxRecord::signal(0, "add".into(), Vec::new(), Timestamp::default());
        InboxRecord { attempts, ..record }
    }

    fn state(generation: u64, follows: u64, revision: u64) -> Write {
        let head = StateHead {
            version: 1,
            generation,
            revision,
            follows,
            incarnation: 1,
            committed_at: Timestamp::default(),
        };
        Write::PutState(id(), StateRecord::new(head, Vec::new(), Vec::new()))
    }

    fn indexed(value: u8) -> IndexedValues {
        IndexedValues::new([("by", [1, value])])
    }

    /// A state that has one indexed value in place of another.
    fn reindexed(generation: u64, follows: u64, (before, present): (u8, u8)) -> Write {
        let Write::PutState(id, mut record) = state(generation, follows, follows + 1) else {
            unreachable!("a state")
        };
        (record.replaces, record.indexed) = (indexed(before), indexed(present));
        Write::PutState(id, record)
    }

    fn deleted(indexed: IndexedValues) -> Write {
        Write::DeleteState(id(), Ended { indexed, entries: None })
    }

    fn merged(groups: Vec<Vec<Write>>) -> Vec<String> {
        let mut merge = Merge::default();
        for writes in groups {
            merge.add(&Chains::default(), writes).expect("a chain");
        }
        let shorten = |write: &Write| match write {
            Write::PutState(_, it) => format!("put {} after {}", it.head.revision, it.head.follows),
            Write::DeleteState(..) => "delete".into(),
            Write::Accept(key, record) => format!("accept {} {}", key.revision, record.attempts),
            Write::Retry(key, record) => format!("retry {} {}", key.revision, record.attempts),
            Write::Consume(key) => format!("consume {}", key.revision),
            other => format!("{other:?}"),
        };
        merge.finish().0.iter().map(shorten).collect()
    }

    #[test]
    fn the_last_state_wins_and_follows_what_is_stored() {
        assert_eq!(merged(vec![vec![state(9, 0, 4)], vec![state(9, 4, 7)]]), ["put 7 after 0"]);
        let three = vec![vec![state(9, 2, 4)], vec![state(9, 4, 7)], vec![state(9, 7, 8)]];
        assert_eq!(merged(three), ["put 8 after 2"]);
        let again = vec![vec![state(9, 0, 4)], vec![deleted(indexed(1))], vec![state(10, 0, 1)]];
        assert_eq!(merged(again), ["put 1 after 0"]);
    }

    #[test]
    fn the_last_state_ends_the_rows_that_are_stored() {
        let kept = |groups: Vec<Vec<Write>>| {
            let mut merge = Merge::default();
            for writes in groups {
                merge.add(&Chains::default(), writes).expect("a chain");
            }
            let (mut writes, _) = merge.finish();
            assert_eq!(writes.len(), 1);
            match writes.remove(0) {
                Write::PutState(_, record) => (record.replaces, record.indexed),
                Write::DeleteState(_, stored) => (stored.indexed, IndexedValues::default()),
                other => panic!("{other:?}"),
            }
        };
        let turns = || [reindexed(9, 2, (1, 2)), reindexed(9, 3, (2, 3)), reindexed(9, 4, (3, 4))];
        let groups: Vec<_> = turns().into_iter().map(|write| vec![write]).collect();
        assert_eq!(kept(groups), (indexed(1), indexed(4)), "across write groups");
        let mut ended = turns().to_vec();
        ended.push(deleted(indexed(4)));
        assert_eq!(kept(vec![ended.clone()]), (indexed(1), IndexedValues::default()));
        let Write::PutState(id, record) = reindexed(10, 0, (0, 7)) else { unreachable!("a state") };
        let again = StateRecord { replaces: IndexedValues::default(), ..record };
        ended.push(Write::PutState(id, again));
        assert_eq!(kept(vec![ended]), (indexed(1), indexed(7)), "of the next generation");
    }

    #[test]
    fn what_entries_are_written_in_one_batch_follows_the_last_state() {
        let with = |write: Write, change: &dyn Fn(&mut EntryChanges)| {
            let Write::PutState(id, mut record) = write else { unreachable!("a state") };
            let mut changes = EntryChanges::default();
            change(&mut changes);
            (record.changes, record.apart.collections) = (Some(Box::new(changes)), vec![(1, 9)]);
            Write::PutState(id, record)
        };
        let put = |key: u8, value: u8| {
            move |changes: &mut EntryChanges| {
                changes.entries.insert((1, [key].into()), Some(vec![value]));
            }
        };
        let last = |writes: Vec<Write>| {
            let mut merge = Merge::default();
            merge.add(&Chains::default(), writes).expect("a chain");
            let (mut writes, _) = merge.finish();
            assert_eq!(writes.len(), 1);
            writes.remove(0)
        };
        let turns = || {
            vec![with(state(9, 2, 3), &put(1, 1)), with(state(9, 3, 4), &put(2, 1)), state(9, 4, 5)]
        };
        let Write::PutState(_, record) = last(turns()) else { panic!("a state") };
        assert_eq!(record.changes.map(|changes| changes.entries.len()), Some(2), "of all turns");
        let mut ended = turns();
        ended.push(deleted(indexed(1)));
        let Write::DeleteState(_, of) = last(ended.clone()) else { panic!("a deletion") };
        assert_eq!(of.entries, Some(EndedRows::All(9)), "what is stored of the generation");
        ended.push(with(state(10, 0, 1), &put(3, 1)));
        let Write::PutState(_, record) = last(ended.clone()) else { panic!("a state") };
        assert_eq!(
            (record.ends, record.changes.map(|of| of.entries.len())),
            (Some(EndedRows::All(9)), Some(1))
        );
        ended.push(deleted(indexed(1)));
        let Write::DeleteState(_, of) = last(ended) else { panic!("a deletion") };
        assert_eq!(of.entries, Some(EndedRows::All(9)), "nothing of the next one was stored");
    }

    #[test]
    fn a_row_that_is_written_and_removed_in_one_batch_is_never_written() {
        let (accept, consume) = (|n| Write::Accept(key(n), row(0)), |n| Write::Consume(key(n)));
        assert!(merged(vec![vec![accept(1), consume(1)]]).is_empty(), "within one write group");
        assert!(merged(vec![vec![accept(1)], vec![consume(1)]]).is_empty(), "across write groups");
        let retried = vec![vec![accept(1), Write::Retry(key(1), row(1)), consume(1)]];
        assert!(merged(retried).is_empty(), "with an attempt between");
        let retried = vec![vec![accept(1), accept(2)], vec![Write::Retry(key(1), row(1))]];
        assert_eq!(merged(retried), ["accept 2 0", "accept 1 1"]);
        let stored = vec![vec![Write::Retry(key(1), row(1))], vec![consume(1)]];
        assert_eq!(merged(stored), ["consume 1"], "a stored row is removed");
    }

    #[test]
    fn a_state_that_does_not_follow_is_refused() {
        let after = |write: Write| {
            let mut merge = Merge::default();
            merge.add(&Chains::default(), vec![write]).expect("the first");
            merge.finish().1
        };
        let stands = after(state(9, 0, 4));
        assert!(Merge::default().add(&stands, vec![state(9, 4, 5)]).is_ok());
        for fork in [state(9, 3, 5), state(9, 5, 6), state(10, 0, 1)] {
            assert!(Merge::default().add(&stands, vec![fork]).is_err());
        }
        let mut merge = Merge::default();
        assert!(merge.add(&Chains::default(), vec![state(9, 0, 4), state(9, 3, 5)]).is_err());
        let ended = after(deleted(indexed(1)));
        assert!(Merge::default().add(&ended, vec![state(10, 0, 1)]).is_ok());
        assert!(Merge::default().add(&ended, vec![state(10, 4, 5)]).is_err());
    }
}
