//! The open write group: what it gathers, when it is sent, what becomes true when it is durable.

use stead_entities::EntityId;

use super::{
    GROUPS_IN_FLIGHT_MAX, Output, Partition, Release,
    reply::{CallResult, ReplySender},
};
use crate::{sabotage, store::Write};

impl Partition {
    /// Hands the open write group to the committer if there is room for it.
    pub(super) fn seal(&mut self) {
        if self.is_open_empty() || self.sent - self.released >= GROUPS_IN_FLIGHT_MAX {
            return;
        }
        for id in std::mem::take(&mut self.dirty) {
            self.write_state(&id);
        }
        let mut group = std::mem::take(&mut self.open);
        self.sent += 1;
        group.partition = self.environment.number;
        group.generation = self.generation;
        group.number = self.sent;
        self.outputs.push(Output::WriteGroup(group));
    }

    pub(super) fn is_open_empty(&self) -> bool {
        self.dirty.is_empty() && self.open.writes.is_empty() && self.open.replies.is_empty()
    }

    /// Whether anything goes on once a write group that was sent is durable.
    pub(super) fn waits_for_commit(&self) -> bool {
        !self.on_release.is_empty()
            || !self.is_open_empty()
            || !self.ready.is_empty()
            || self.draining.is_some()
    }

    /// Writes the last state of an entity; the turns between were never seen outside.
    pub(super) fn write_state(&mut self, id: &EntityId) {
        let incarnation = self.environment.incarnation;
        let version = self.type_of(id).map_or(0, |known| known.version());
        let Some(activation) = self.table.get_mut(id) else {
            return;
        };
        let Some(state) = activation.encoded.take() else {
            return;
        };
        let record = crate::store::record::StateRecord {
            version,
            generation: activation.generation,
            revision: activation.revision,
            follows: activation.sent_revision,
            incarnation,
            committed_at: activation.committed_at,
            reminders: activation.reminders.clone(),
            state,
        };
        activation.sent_revision = activation.revision;
        self.open.writes.push(Write::PutState(id.clone(), record));
    }

    pub(super) fn release(&mut self, number: u64) {
        self.released = self.released.max(number);
        while self.on_release.front().is_some_and(|(group, _)| *group <= self.released) {
            match self.on_release.pop_front() {
                Some((_, Release::Row(key))) => self.row_gone(key),
                Some((_, Release::Key(key, response))) => {
                    for reply_to in self.keys.remove(&key).map_or(Vec::new(), |key| key.waiters) {
                        self.outputs.push(Output::Reply(reply_to, response.clone()));
                    }
                }
                Some((_, Release::Fired(id, slot, number))) => self.due.forget(&id, &slot, number),
                Some((_, Release::Resume(id))) => self.make_ready(&id),
                None => {}
            }
        }
        self.due.settle(self.released);
    }

    /// Does `release` when the open write group is durable.
    pub(super) fn after_open(&mut self, release: Release) {
        let number = self.open_number();
        self.on_release.push_back((number, release));
    }

    /// Lets an entity go on when a write group that was sent, or the open one, is durable.
    pub(super) fn resume_after(&mut self, group: u64, id: &EntityId) {
        let place = self.on_release.partition_point(|(other, _)| *other <= group);
        self.on_release.insert(place, (group, Release::Resume(id.clone())));
    }

    /// Answers `reply sender` once everything that this entity has done so far is durable.
    pub(super) fn answer(&mut self, unreleased: u64, reply_to: ReplySender, response: CallResult) {
        if unreleased <= self.released || sabotage::is("X27") {
            self.outputs.push(Output::Reply(reply_to, response));
        } else {
            self.open.replies.push((reply_to, response));
        }
    }

    /// The number that the open write group will have.
    pub(super) fn open_number(&self) -> u64 {
        self.sent + 1
    }
}
