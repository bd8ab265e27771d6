//! The attempts of operations that an unclean stop left behind: which have to be counted before they run.
//!
//! An operation that was left behind may be what ended the process, so its attempt is counted,
//! durably, before it runs again. Where the store keeps marks of what runs, only what ran when the
//! process ended is counted; elsewhere everything that was left behind is.

use std::sync::Arc;

use stead_entities::{EntityId, Timestamp};

use super::envelope::{AttemptCount, Operation, Row};
use crate::{map::Map, sabotage::Sabotage, store::RunningMarks};

/// The state in which the previous owner of a partition left it.
pub(crate) struct Predecessor {
    /// Whether it stopped without draining.
    pub(crate) was_unclean: bool,
    /// The tokens of the marked operations that ran when it ended.
    pub(crate) ran: Arc<[u128]>,
    /// Marks the operations that were left behind while they run.
    pub(crate) marks: Option<Arc<dyn RunningMarks>>,
}

/// The attempts of what was left behind.
pub(super) struct Attempts {
    predecessor: Predecessor,
    partition: u16,
    /// The time before which everything accepted was left behind.
    began_at: Timestamp,
    /// Left-behind rows whose attempts were counted by this owner, with the counts.
    counted: Map<(EntityId, Row), u32>,
}

impl Attempts {
    pub(super) fn new(predecessor: Predecessor, partition: u16, began_at: Timestamp) -> Self {
        Self { predecessor, partition, began_at, counted: Map::default() }
    }

    /// Whether an operation was left behind by an unclean stop, and its attempt was not counted since.
    pub(super) fn count_of(&self, id: &EntityId, operation: &Operation) -> AttemptCount {
        let began = match &operation.row {
            Row::Reminder(occurrence) => occurrence.due,
            Row::None | Row::Inbox(_) => operation.accepted_at,
        };
        let known = self.counted.get(&(id.clone(), operation.row.clone()));
        let must_count = self.predecessor.was_unclean
            && began <= self.began_at
            && known.is_none_or(|attempts| operation.attempts < *attempts);
        if must_count { AttemptCount::BeforeRun } else { AttemptCount::AfterFailure }
    }

    /// Lets a left-behind operation run without its attempt being counted first, where it is known
    /// that it did not run when the process ended. It is marked while it runs.
    pub(super) fn clear_if_it_only_waited(&self, id: &EntityId, operation: &mut Operation) {
        if self.predecessor.marks.is_none() || operation.awaits {
            return;
        }
        operation.is_marked = true;
        let was_counted = self.counted.contains_key(&(id.clone(), operation.row.clone()));
        if was_counted || !self.predecessor.ran.contains(&operation.token) {
            operation.count = AttemptCount::AfterFailure;
        }
    }

    /// Whether an operation was left behind by an owner that stopped without draining.
    pub(super) fn was_interrupted(&self, accepted_at: Timestamp) -> bool {
        self.predecessor.was_unclean && accepted_at <= self.began_at
    }

    /// Whether what ran is known, so that one operation is counted at a time.
    pub(super) fn knows_what_ran(&self) -> bool {
        self.predecessor.marks.is_some()
    }

    /// Counts the attempt of a left-behind operation that is about to run. Says whether the count has
    /// to be durable first; else the operation has used up its attempts.
    pub(super) fn count(
        &mut self,
        id: &EntityId,
        operation: &mut Operation,
        retries: u32,
        group: u64,
    ) -> bool {
        operation.count = AttemptCount::AfterFailure;
        operation.attempts += 1;
        if operation.attempts > retries.saturating_add(1) || Sabotage::AttemptsInMemory.is_on() {
            return false;
        }
        operation.count = AttemptCount::By(group);
        self.counted.insert((id.clone(), operation.row.clone()), operation.attempts);
        true
    }

    /// Forgets the count of a row that is consumed.
    pub(super) fn forget(&mut self, id: &EntityId, row: &Row) {
        if !self.counted.is_empty() {
            self.counted.remove(&(id.clone(), row.clone()));
        }
    }

    /// Marks a left-behind operation as running, or takes the mark away.
    pub(super) fn mark(&self, token: Option<u128>) {
        if let Some(marks) = &self.predecessor.marks {
            marks.mark(self.partition, token);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;
    use crate::{partition::envelope::Stored, store::tables::inbox::InboxKey};

    #[derive(Debug, Default)]
    struct Marks(Mutex<Option<u128>>);

    impl RunningMarks for Marks {
        fn mark(&self, _partition: u16, token: Option<u128>) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = token;
        }
    }

    fn id() -> EntityId {
        EntityId::new("log", "a").expect("valid")
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn operation(token: u128, accepted_at: Timestamp) -> Operation {
        let (receiver, sender) = (id(), "".into());
        let revision = token as u64;
        let key = InboxKey { partition: 0, receiver, sender, generation: 0, revision, index: 0 };
        let stored = Stored { input: Vec::new(), token, origin: None, accepted_at, attempts: 0 };
        Operation::stored(0, false, Row::Inbox(key), stored)
    }

    fn attempts(was_unclean: bool, marks: Option<Arc<dyn RunningMarks>>) -> Attempts {
        let predecessor = Predecessor { was_unclean, ran: [7].into(), marks };
        Attempts::new(predecessor, 0, at(100))
    }

    #[test]
    fn what_an_unclean_stop_left_behind_is_counted_once() {
        let mut attempts = attempts(true, None);
        let mut left = operation(7, at(50));
        assert_eq!(attempts.count_of(&id(), &left), AttemptCount::BeforeRun);
        assert_eq!(attempts.count_of(&id(), &operation(8, at(101))), AttemptCount::AfterFailure);
        assert!(attempts.count(&id(), &mut left, 3, 5), "durably");
        assert_eq!((left.count, left.attempts), (AttemptCount::By(5), 1));
        assert_eq!(attempts.count_of(&id(), &left), AttemptCount::AfterFailure, "read once more");
        left.attempts = 4;
        assert!(!attempts.count(&id(), &mut left, 3, 6), "there are none left");
        let clean = super::tests::attempts(false, None);
        assert_eq!(clean.count_of(&id(), &left), AttemptCount::AfterFailure);
    }

    #[test]
    fn with_marks_only_what_ran_is_counted() {
        let marks: Arc<dyn RunningMarks> = Arc::new(Marks::default());
        let mut attempts = attempts(true, Some(marks));
        let (mut ran, mut waited) = (operation(7, at(50)), operation(8, at(50)));
        for operation in [&mut ran, &mut waited] {
            operation.count = attempts.count_of(&id(), operation);
            attempts.clear_if_it_only_waited(&id(), operation);
        }
        assert_eq!((ran.count, ran.is_marked), (AttemptCount::BeforeRun, true));
        assert_eq!((waited.count, waited.is_marked), (AttemptCount::AfterFailure, true));
        attempts.count(&id(), &mut ran, 3, 1);
        let mut again = operation(7, at(50));
        again.count = AttemptCount::BeforeRun;
        attempts.clear_if_it_only_waited(&id(), &mut again);
        assert_eq!(again.count, AttemptCount::AfterFailure, "it was counted");
    }
}
