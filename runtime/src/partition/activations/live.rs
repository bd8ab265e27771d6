//! The state of an entity in memory, ahead of the store by what its write groups still carry.

use stead_entities::{
    Timestamp, Version,
    collections::{self, Sealed},
};

use crate::{
    rules::Rule,
    store::tables::{
        self,
        indexes::IndexedValues,
        states::{Apart, EndedRows, Lock, ReminderHead, StateHead, StateRecord},
    },
    types::{Encoded, Standard, State, Trust},
};

/// The newest state of an entity, which may not be durable yet.
pub(in crate::partition) struct Live {
    state: State,
    /// 0 while nothing was committed.
    generation: u64,
    /// The generation that was deleted last; 0 if none was.
    ended: u64,
    revision: u64,
    /// The revision that was last sent to the committer.
    sent_revision: u64,
    committed_at: Timestamp,
    reminders: Vec<ReminderHead>,
    /// Whether the open write group is to write it.
    is_unwritten: bool,
    /// The version of the type in which it was last sent, or read; none before the first turn.
    stored_version: Option<u32>,
    /// The indexed values that were last sent, or read.
    indexed: IndexedValues,
    trust: Trust,
    /// Its lock, and its rows beside the record as last sent or read; none of nearly all entities.
    apart: Option<Box<SentApart>>,
}

/// The lock of an entity, and the rows of its state beside the record, as last sent or read.
#[derive(Default)]
struct SentApart {
    lock: Option<Box<Lock>>,
    has_rows: bool,
    collections: Vec<(u32, u64)>,
    /// The hash of the state, where it has a row.
    body: Option<u128>,
}

/// A state in its stored form, as the open group writes it.
pub(in crate::partition) struct Sent {
    pub(in crate::partition) encoded: Encoded,
    pub(in crate::partition) indexed: IndexedValues,
    /// The hash of a state that is so large that it has a row of its own.
    pub(in crate::partition) hash: Option<u128>,
}

impl Live {
    /// A state that was loaded, or the one before the first turn.
    pub(in crate::partition) fn new(state: State, record: Option<StateRecord>) -> Self {
        let initial = Self {
            state,
            generation: 0,
            ended: 0,
            revision: 0,
            sent_revision: 0,
            committed_at: Timestamp::from_micros(i64::MIN),
            reminders: Vec::new(),
            is_unwritten: false,
            stored_version: None,
            indexed: IndexedValues::default(),
            trust: Trust::Unproven,
            apart: None,
        };
        let Some(record) = record else { return initial };
        let (has_rows, lock) = (!record.apart.is_empty(), record.lock);
        let is_plain = !has_rows && lock.is_none();
        let apart = SentApart { lock, has_rows, collections: record.apart.collections, body: None };
        Self {
            apart: (!is_plain).then(|| Box::new(apart)),
            generation: record.head.generation,
            revision: record.head.revision,
            sent_revision: record.head.revision,
            committed_at: record.head.committed_at,
            stored_version: Some(record.head.version),
            reminders: record.reminders,
            indexed: record.indexed,
            ..initial
        }
    }

    pub(in crate::partition) fn state(&self) -> &State {
        &self.state
    }

    pub(in crate::partition) fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// The collections that were last sent to the committer, or read.
    pub(in crate::partition) fn collections(&self) -> &[(u32, u64)] {
        self.apart.as_ref().map_or(&[], |apart| &apart.collections)
    }

    /// The rows that are stored beside the record, if there are any.
    pub(in crate::partition) fn rows(&self) -> Option<EndedRows> {
        let apart = self.apart.as_ref().filter(|apart| apart.has_rows)?;
        Some(match apart.collections.is_empty() {
            true => EndedRows::Body(self.generation),
            false => EndedRows::All(self.generation),
        })
    }

    /// The lock under which alone operations are applied.
    pub(in crate::partition) fn lock(&self) -> Option<&Lock> {
        self.apart.as_ref()?.lock.as_deref()
    }

    pub(in crate::partition) fn set_lock(&mut self, lock: Option<Lock>) {
        self.apart.get_or_insert_default().lock = lock.map(Box::new);
    }

    /// Takes note of the hash of the state's row, which was read.
    pub(in crate::partition) fn note_body(&mut self, hash: u128) {
        self.apart.get_or_insert_default().body = Some(hash);
    }

    /// The rules for the state that the next turn leaves.
    pub(in crate::partition) fn standard(&self, bytes_max: usize) -> Standard {
        let collections = collections::highest(self.collections());
        Standard { bytes_max, trust: self.trust, collections }
    }

    /// The version of the state; none before the first turn.
    pub(in crate::partition) fn version(&self) -> Option<Version> {
        let (generation, revision) = (self.generation, self.revision);
        (generation > 0).then_some(Version { generation, revision })
    }

    /// The version of the type in which it was last sent, or read; none before the first turn.
    pub(in crate::partition) fn stored_version(&self) -> Option<u32> {
        self.stored_version
    }

    pub(in crate::partition) fn revision(&self) -> u64 {
        self.revision
    }

    pub(in crate::partition) fn committed_at(&self) -> Timestamp {
        self.committed_at
    }

    pub(in crate::partition) fn reminders(&self) -> &[ReminderHead] {
        &self.reminders
    }

    /// Takes over the state that a turn left, in the present generation or the one that it begins; `None`
    /// where the turn leaves the state as it is. Returns the version of the state.
    pub(in crate::partition) fn apply(
        &mut self,
        state: Option<State>,
        now: Timestamp,
        generation: u64,
    ) -> Version {
        match self.generation {
            0 => Rule::GenerationsGrow.check(generation > self.ended),
            known => Rule::GenerationsGrow.check(generation == known),
        }
        self.generation = generation;
        if let Some(state) = state {
            self.state = state;
            self.trust = Trust::Proven;
        }
        self.revision += 1;
        self.committed_at = self.committed_at.max(now);
        Version { generation: self.generation, revision: self.revision }
    }

    /// Sets or removes what is remembered of a reminder.
    pub(in crate::partition) fn replace_reminder(
        &mut self,
        name: &str,
        head: Option<ReminderHead>,
    ) {
        self.reminders.retain(|known| known.name != name);
        self.reminders.extend(head);
    }

    /// Moves a reminder to a later time, where nothing else of it changes. Says whether it did.
    pub(in crate::partition) fn move_reminder(
        &mut self,
        name: &str,
        due: Timestamp,
        content: Option<u128>,
    ) -> bool {
        let known = self.reminders.iter_mut().find(|known| known.name == name);
        let is_same = |head: &&mut ReminderHead| {
            content.is_some() && head.content == content && due >= head.row_due()
        };
        let Some(head) = known.filter(is_same) else { return false };
        let row_due = head.row_due();
        (head.due, head.moved_from) = (due, (due > row_due).then_some(row_due));
        true
    }

    /// Notes that the open group is to write the entity. Says whether that is news, and there is something
    /// to write.
    pub(in crate::partition) fn write_once(&mut self) -> bool {
        self.generation > 0 && !std::mem::replace(&mut self.is_unwritten, true)
    }

    /// Whether the reminder of this number is set, and not cancelled or set again since.
    pub(in crate::partition) fn has_reminder(&self, number: u64) -> bool {
        self.reminders.iter().any(|head| head.number == number)
    }

    /// The record that the open group writes, of the state in its stored form.
    pub(in crate::partition) fn write(
        &mut self,
        version: u32,
        incarnation: u64,
        Sent { encoded: Encoded { mut state, sealed }, indexed, hash }: Sent,
    ) -> StateRecord {
        Rule::StatesFollow.check(self.generation > 0 && self.revision >= self.sent_revision);
        let follows = std::mem::replace(&mut self.sent_revision, self.revision);
        self.is_unwritten = false;
        self.stored_version = Some(version);
        let head = StateHead {
            version,
            generation: self.generation,
            revision: self.revision,
            follows,
            incarnation,
            committed_at: self.committed_at,
        };
        let replaces = std::mem::replace(&mut self.indexed, indexed.clone());
        let Sealed { collections, mut changes } = sealed;
        let (before, lock) = self.apart.take().map_or((None, None), |it| (it.body, it.lock));
        if hash.is_some() {
            let body = std::mem::take(&mut state);
            if hash != before {
                changes.entries.insert(tables::entries::body(), Some(body));
            }
        } else if before.is_some() {
            changes.entries.insert(tables::entries::body(), None);
        }
        let apart = Apart { body: hash.is_some(), collections };
        let has_rows = !apart.is_empty();
        if has_rows || lock.is_some() {
            let (collections, lock) = (apart.collections.clone(), lock.clone());
            self.apart = Some(Box::new(SentApart { lock, has_rows, collections, body: hash }));
        }
        StateRecord {
            head,
            reminders: self.reminders.clone(),
            state,
            indexed,
            replaces,
            apart,
            lock,
            changes: (!changes.is_empty()).then(|| Box::new(changes)),
            ends: None,
        }
    }

    /// The indexed values that were last sent to the committer, or read.
    pub(in crate::partition) fn indexed(&self) -> &IndexedValues {
        &self.indexed
    }

    /// Whether the open group is to write it.
    pub(in crate::partition) fn is_unwritten(&self) -> bool {
        self.is_unwritten
    }

    /// Ends the generation, and returns the reminders that end with it. The next turn begins another
    /// one on `state`.
    pub(in crate::partition) fn end_generation(&mut self, state: State) -> Vec<ReminderHead> {
        let ended = std::mem::replace(self, Self::new(state, None));
        self.committed_at = ended.committed_at;
        self.ended = ended.generation.max(ended.ended);
        ended.reminders
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_state_is_written_when_it_changes() {
        let given = stead_entities::Dependencies::default();
        let known = crate::types::entity_type::<stead_entities::stock::Counter>(&given);
        let mut live = Live::new(known.initial_state(), None);
        let mut written = |hash: Option<u128>| {
            live.apply(None, Timestamp::default(), 7);
            let encoded = Encoded { state: vec![9; 5], sealed: Sealed::default() };
            let record = live.write(1, 1, Sent { encoded, indexed: Default::default(), hash });
            let body = record.changes.map(|changes| changes.entries.into_values().next());
            (record.state.len(), record.apart.body, body.flatten(), live.rows())
        };
        assert_eq!(written(None), (5, false, None, None));
        assert_eq!(written(Some(1)), (0, true, Some(Some(vec![9; 5])), Some(EndedRows::Body(7))));
        assert_eq!(written(Some(1)), (0, true, None, Some(EndedRows::Body(7))), "it is unchanged");
        assert_eq!(written(Some(2)), (0, true, Some(Some(vec![9; 5])), Some(EndedRows::Body(7))));
        assert_eq!(written(None), (5, false, Some(None), None), "its row ends");
        assert_eq!(written(None), (5, false, None, None));
    }
}
