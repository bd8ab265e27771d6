//! The write group under construction, and what becomes true when those before it are durable.
//!
//! Everything that the turns of a step write, and everybody who is told of it, goes into the open
//! group. It is sent to the committer when there is room for it; further turns join the next one.
//! What must never happen: somebody is told of a turn before the group with its writes is durable.

use std::{collections::VecDeque, sync::Arc};

use stead_entities::EntityId;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    envelope::Occurrence,
    message::{Delivery, WriteGroup},
    reply::{CallResult, ReplySender},
    steps::{NewStep, StepsToEnd},
};
use crate::{
    memory::{CommitShare, Memory},
    rules::Rule,
    store::{
        Write,
        tables::{idempotency::IdempotencyKey, inbox::InboxKey},
    },
};

/// The most write groups of one partition that the committer holds; more turns join the open one.
const GROUPS_IN_FLIGHT_MAX: u64 = 2;
/// The most writes in the open group; then it waits for the committer.
const WRITES_PER_GROUP_MAX: usize = 16_384;

/// The most bytes, as far as they are known, in the open group; then it waits for the committer.
const GROUP_BYTES_MAX: usize = 4 << 20;

/// The write group that is open, and those that are under way.
#[derive(Default)]
pub(super) struct OpenGroup {
    open: WriteGroup,
    /// The entities whose states the open group will write, in the order of their first turns.
    unwritten: Vec<EntityId>,
    /// How many bytes the open group writes, and about how many the states will add.
    bytes: usize,
    unwritten_bytes: usize,
    /// The number of the last group that was sent, and of the last that is durable.
    sent: u64,
    released: u64,
    on_release: VecDeque<(u64, Release)>,
    /// Whether a group of this term has noted that the store has workflows.
    has_noted_workflows: bool,
}

/// Something that becomes true when a write group is durable.
pub(super) enum Release {
    /// The inbox row is gone from the store.
    Row(InboxKey),
    /// The answer under the key can be found in the store.
    Key(Arc<IdempotencyKey>, CallResult),
    /// The reminder is gone from the store.
    Fired(EntityId, Occurrence),
    /// The entity can go on.
    Resume(EntityId),
    /// The attempt of a step may begin.
    Step(Box<NewStep>),
    /// Attempts of steps are to end.
    EndSteps(StepsToEnd),
}

impl OpenGroup {
    /// The number that the open group will have.
    pub(super) fn number(&self) -> u64 {
        self.sent + 1
    }

    /// The number of the last group that is durable.
    pub(super) fn released(&self) -> u64 {
        self.released
    }

    pub(super) fn write(&mut self, write: Write) {
        self.bytes += write.bytes();
        self.open.writes.push(write);
    }

    /// Whether a group of this term notes that the store has workflows; from here on one does.
    pub(super) fn has_noted_workflows(&mut self) -> bool {
        std::mem::replace(&mut self.has_noted_workflows, true)
    }

    /// Tells `reply_to` when the open group is durable.
    pub(super) fn reply(&mut self, reply_to: ReplySender, result: CallResult) {
        self.open.replies.push((reply_to, result));
    }

    /// Hands a row that the open group writes to its receiver's partition, once it is durable.
    pub(super) fn deliver(&mut self, partition: u16, delivery: Delivery) {
        self.open.deliveries.push((partition, delivery));
    }

    /// Gives a permit back when the open group is durable.
    pub(super) fn hold(&mut self, permit: Option<OwnedSemaphorePermit>) {
        self.open.permits.extend(permit);
    }

    /// Flushes the open group though it may write nothing.
    pub(super) fn probe(&mut self) {
        self.open.is_probe = true;
    }

    /// Has the open group write the state of an entity, which is not among its states yet, of about so many bytes.
    pub(super) fn write_state_of(&mut self, id: &EntityId, bytes: usize) {
        self.unwritten_bytes += bytes;
        self.unwritten.push(id.clone());
    }

    /// Counts entries of collections that the open group will write with a state.
    pub(super) fn count_entries(&mut self, bytes: usize) {
        self.unwritten_bytes += bytes;
    }

    /// Takes back that the open group writes the state of an entity.
    pub(super) fn forget_state_of(&mut self, id: &EntityId) {
        self.unwritten.retain(|known| known != id);
    }

    /// Does `release` when the open group is durable.
    pub(super) fn after_open(&mut self, release: Release) {
        self.on_release.push_back((self.number(), release));
    }

    /// Lets an entity go on when a group that was sent, or the open one, is durable.
    pub(super) fn resume_after(&mut self, group: u64, id: &EntityId) {
        let place = self.on_release.partition_point(|(other, _)| *other <= group);
        self.on_release.insert(place, (group, Release::Resume(id.clone())));
    }

    /// Whether no more turns may join it for now.
    pub(super) fn is_full(&self) -> bool {
        self.open.writes.len() + self.unwritten.len() >= WRITES_PER_GROUP_MAX
            || self.bytes + self.unwritten_bytes >= GROUP_BYTES_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unwritten.is_empty() && self.open.writes.is_empty() && self.open.replies.is_empty()
    }

    /// Whether everything is durable and nothing is open.
    pub(super) fn is_settled(&self) -> bool {
        self.sent == self.released && self.is_empty()
    }

    /// Whether anything goes on once a group that was sent is durable.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.on_release.is_empty() || !self.is_empty()
    }

    /// The entities whose states are to be written now, because there is room for the open group;
    /// `None` where there is not, or nothing is open.
    pub(super) fn take_unwritten(&mut self) -> Option<Vec<EntityId>> {
        let has_room = self.sent - self.released < GROUPS_IN_FLIGHT_MAX;
        (has_room && !self.is_empty()).then(|| std::mem::take(&mut self.unwritten))
    }

    /// Closes the open group, whose states were written, for the committer.
    pub(super) fn seal(&mut self, partition: u16, term: u64, memory: &Arc<Memory>) -> WriteGroup {
        self.sent += 1;
        self.unwritten_bytes = 0;
        let bytes = std::mem::take(&mut self.bytes);
        let open = std::mem::take(&mut self.open);
        let _share = Some(CommitShare::new(memory, bytes));
        WriteGroup { partition, term, number: self.sent, _share, ..open }
    }

    /// Whether each of its writes is of an entity that fits.
    pub(super) fn is_all_of(&self, fits: impl Fn(&EntityId) -> bool) -> bool {
        self.open.writes.iter().all(|write| write.entity().is_some_and(|id| fits(&id)))
    }

    /// Notes that the group of this number, and all before it, are durable. What becomes true by
    /// that is taken by [`OpenGroup::next_release`].
    pub(super) fn committed(&mut self, number: u64) {
        Rule::ReleasedWasSent.check(number <= self.sent);
        self.released = self.released.max(number);
    }

    /// The next thing that has become true.
    pub(super) fn next_release(&mut self) -> Option<Release> {
        let is_true = self.on_release.front().is_some_and(|(group, _)| *group <= self.released);
        is_true.then(|| self.on_release.pop_front()).flatten().map(|(_, release)| release)
    }

    /// Ends the term: what was open is dropped. Returns who waited for it.
    pub(super) fn clear(&mut self) -> Vec<ReplySender> {
        let ended = std::mem::take(self);
        ended.open.replies.into_iter().map(|(reply_to, _)| reply_to).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn id(key: &str) -> EntityId {
        EntityId::new("log", key).expect("valid")
    }

    fn memory() -> Arc<Memory> {
        Memory::of(&Config::default())
    }

    /// The keys of the entities that go on.
    fn resumed(group: &mut OpenGroup) -> Vec<String> {
        std::iter::from_fn(|| group.next_release())
            .map(|release| match release {
                Release::Resume(id) => id.key().to_owned(),
                _ => panic!("something else"),
            })
            .collect()
    }

    #[test]
    fn at_most_two_groups_are_under_way() {
        let mut group = OpenGroup::default();
        for number in 1..=2 {
            group.write_state_of(&id("a"), 0);
            assert_eq!(group.take_unwritten().map(|it| it.len()), Some(1));
            assert_eq!(group.seal(3, 7, &memory()).number, number);
        }
        group.write_state_of(&id("a"), 0);
        assert!(group.take_unwritten().is_none(), "there is no room");
        assert!(!group.is_settled() && group.is_waited_for());
        group.committed(1);
        assert!(group.take_unwritten().is_some());
        group.seal(3, 7, &memory());
        group.committed(3);
        assert!(group.is_settled());
    }

    #[test]
    fn what_becomes_true_comes_in_the_order_of_the_groups() {
        let mut group = OpenGroup::default();
        group.after_open(Release::Resume(id("first")));
        group.write_state_of(&id("a"), 0);
        group.take_unwritten();
        group.seal(0, 1, &memory());
        group.after_open(Release::Resume(id("third")));
        group.resume_after(1, &id("second"));
        assert!(resumed(&mut group).is_empty());
        group.committed(1);
        assert_eq!(resumed(&mut group), ["first", "second"]);
        group.write_state_of(&id("a"), 0);
        group.take_unwritten();
        group.seal(0, 1, &memory());
        group.committed(2);
        assert_eq!(resumed(&mut group), ["third"]);
    }
}
