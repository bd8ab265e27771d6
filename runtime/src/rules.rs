//! Safety rules that are checked in every build, also in release.
//!
//! A rule that is broken is a bug of the runtime, and going on could tell somebody what is not true.
//! So it panics: the partition that broke it stops before anything of the step leaves, says which rule
//! it was, and starts over from the store. How many were broken since the process began is shown by
//! [`crate::Node::notes`] and beside readiness.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

static BROKEN: AtomicU64 = AtomicU64::new(0);

/// A safety rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// An entity that work is done for is in the table of its partition.
    EntityIsActive,
    /// An entity is in the table of its partition once.
    EntityIsOnce,
    /// An operation runs on a state that was loaded.
    StateIsLoaded,
    /// A state is loaded into an activation that waits for it.
    LoadIsAwaited,
    /// Each state that is written follows the one that was written before.
    StatesFollow,
    /// The generation of an entity grows with each creation.
    GenerationsGrow,
    /// An inbox row that a turn consumes is one that the partition has taken in.
    ConsumedRowIsKnown,
    /// A reminder that a turn consumes is one that has fired.
    ConsumedReminderHasFired,
    /// Bytes are given back that were counted before.
    BytesAreCounted,
    /// Write groups are sealed, and turns run, only while the partition serves.
    PartitionServes,
    /// A write group is reported durable only after it was sent.
    ReleasedWasSent,
    /// Answers that leave without a commit rest on no write.
    AnswersRestOnNoWrite,
}

impl Rule {
    /// Stops the partition where `holds` is false.
    #[track_caller]
    pub(crate) fn check(self, holds: bool) {
        if !holds {
            self.broken();
        }
    }

    /// Stops the partition.
    #[track_caller]
    pub(crate) fn broken(self) -> ! {
        self.count();
        panic!("the safety rule {self:?} is broken: {self}");
    }

    /// Counts and says a broken rule, for those who stop what is under way themselves.
    pub(crate) fn count(self) {
        BROKEN.fetch_add(1, Ordering::Relaxed);
        tracing::error!(rule = ?self, "a safety rule is broken: {self}");
    }
}

/// How many safety rules were broken since the process began.
pub(crate) fn broken() -> u64 {
    BROKEN.load(Ordering::Relaxed)
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EntityIsActive => "work is done for an entity that is not in memory",
            Self::EntityIsOnce => "an entity is in memory twice",
            Self::StateIsLoaded => "an operation runs without a state",
            Self::LoadIsAwaited => "a state was loaded that nobody waits for",
            Self::StatesFollow => "a state does not follow the one before it",
            Self::GenerationsGrow => "a generation does not grow",
            Self::ConsumedRowIsKnown => "an inbox row is consumed that was not taken in",
            Self::ConsumedReminderHasFired => "a reminder is consumed that has not fired",
            Self::BytesAreCounted => "more bytes are given back than were counted",
            Self::PartitionServes => "a partition that does not serve runs a turn",
            Self::ReleasedWasSent => "a write group is durable that was never sent",
            Self::AnswersRestOnNoWrite => "answers leave before their writes are durable",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_rule_is_named_and_counted() {
        let before = broken();
        let panic = std::panic::catch_unwind(|| Rule::StatesFollow.check(false));
        let text = panic.expect_err("it stops").downcast::<String>().expect("a text");
        assert!(text.contains("StatesFollow") && text.contains("does not follow"), "{text}");
        assert!(broken() > before);
        Rule::StatesFollow.check(true);
    }
}
