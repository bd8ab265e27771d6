//! The state of an entity in memory, ahead of the store by what its write groups still carry.

use stead_entities::{Timestamp, Version};

use crate::{
    rules::Rule,
    store::tables::{
        indexes::IndexedValues,
        states::{ReminderHead, StateHead, StateRecord},
    },
    types::{State, Trust},
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
        };
        let Some(record) = record else { return initial };
        Self {
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

    pub(in crate::partition) fn trust(&self) -> Trust {
        self.trust
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
        (state, indexed): (Vec<u8>, IndexedValues),
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
        StateRecord { head, reminders: self.reminders.clone(), state, indexed, replaces }
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
