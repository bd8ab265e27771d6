//! The head of an instance: what is known of it without its history.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::events::Later;
use crate::{
    Layout, Timeout, Timestamp,
    effect::ReplyAddress,
    sabotage::Sabotage,
    workflow::{
        EVENT_BYTES_KEPT_MAX, EVENTS_KEPT_MAX,
        history::{Kind, Payload},
        place::Place,
    },
};

/// How many of the operations that an instance waits for are named in its status.
pub(super) const WAITS_SHOWN_MAX: usize = 8;

/// The status of an instance.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, Layout,
)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It was started, and its code has not run yet.
    #[default]
    Pending,
    /// It goes on.
    Running,
    /// An operator has it wait: what arrives is kept.
    Suspended,
    /// It has a result.
    Completed,
    /// It has failed.
    Failed,
    /// An operator has ended it.
    Terminated,
    /// It was cancelled, and has ended on that.
    Cancelled,
}

impl Status {
    /// Whether it has ended.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Terminated | Self::Cancelled)
    }

    /// The name, as JSON shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Suspended => "suspended",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Terminated => "terminated",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Everything that is known of an instance without its history.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, Layout)]
pub(super) struct Head {
    pub(super) status: Status,
    /// The version of the code that the run began with.
    pub(super) version: u32,
    pub(super) run: u32,
    /// How many of the runs began with a part of the history of the one before.
    pub(super) rewinds: u32,
    /// When the last of these began.
    pub(super) rewound_at: Timestamp,
    /// Drawn for each run that begins anew.
    pub(super) seed: u128,
    /// Of the input with which it was started, to tell another one.
    pub(super) fingerprint: u128,
    pub(super) created_at: Timestamp,
    pub(super) updated_at: Timestamp,
    /// The answer that it ended with.
    pub(super) outcome: Payload,
    /// The progress that its code shows.
    pub(super) shown: Payload,
    /// The one who hears of its end.
    pub(super) reply_to: Option<Box<ReplyAddress>>,
    pub(super) history: HistoryCounts,
    pub(super) kept: KeptCounts,
    /// Events for which there was no room among those.
    pub(super) later: Option<Box<Later>>,
    /// Steps that were tried in vain, and are not done.
    pub(super) attempts: Vec<StepAttempts>,
    pub(super) stuck: Option<Box<Stuck>>,
    /// Why it is suspended.
    pub(super) suspended: Box<str>,
    /// When it is woken next.
    pub(super) wake_at: Option<Timestamp>,
    /// Whether a row brings it back when its partition is hosted.
    pub(super) is_marked: bool,
    /// How many operations are outstanding, how many of them are children, and the first of them.
    pub(super) outstanding: u32,
    pub(super) children: u32,
    pub(super) waits: Vec<Wait>,
    pub(super) has_steps: bool,
    /// The locks that it has, or waits for.
    pub(super) locks: Vec<HeldLock>,
    /// Whether its partition was hosted anew since its steps were begun, and whether the process before had ended
    /// without a word.
    pub(super) lacks_steps: bool,
    pub(super) was_interrupted: bool,
    /// When the whole has to be done, and whether that has passed once.
    pub(super) deadline: Option<Timestamp>,
    pub(super) is_overdue: bool,
}

impl Head {
    /// The number of the run as its code knows it, which is the same where it goes on from an earlier place.
    pub(super) fn code_run(&self) -> u32 {
        self.run - self.rewinds
    }
}

/// The size of a history.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, Layout,
)]
pub struct HistoryCounts {
    /// Turns that handed something over.
    pub turns: u64,
    /// Deliveries that they handed over.
    pub deliveries: u64,
    /// The bytes of both.
    pub bytes: u64,
}

/// Counts of what has arrived and was not handed over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, Layout)]
pub(super) struct KeptCounts {
    /// The number of the next one.
    pub(super) next: u64,
    pub(super) events: u32,
    pub(super) event_bytes: u64,
    /// Those that are no events, and only wait while it is suspended or stuck.
    pub(super) others: u32,
}

impl KeptCounts {
    /// Whether there is room for one more event.
    pub(super) fn has_room(&self) -> bool {
        self.events < EVENTS_KEPT_MAX && self.event_bytes < EVENT_BYTES_KEPT_MAX
    }
}

/// The lock of an entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Layout)]
pub(super) struct HeldLock {
    pub(super) place: Place,
    pub(super) target: String,
}

/// The attempts of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Layout)]
pub(super) struct StepAttempts {
    pub(super) place: Place,
    /// How many have failed.
    pub(super) failed: u32,
    /// How many ended with the process.
    pub(super) interrupted: u32,
    /// When the next one begins; none while one is under way.
    pub(super) next_at: Option<Timestamp>,
}

impl StepAttempts {
    pub(super) fn none(place: Place) -> Self {
        Self { place, failed: 0, interrupted: 0, next_at: None }
    }

    /// The number of the next one.
    pub(super) fn number(&self) -> u32 {
        self.failed + self.interrupted + 1
    }
}

/// Why an instance does not go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, Layout)]
pub struct Stuck {
    /// Since when.
    pub since: Timestamp,
    /// Why, and what helps.
    pub reason: String,
    /// How often it was tried; 0 where that ended the process, or blocked its thread: it is not tried by itself then.
    pub attempts: u32,
    /// When it is tried again by itself. It is tried too when its partition is hosted by another process, and where an
    /// operator asks for it.
    pub retry_at: Option<Timestamp>,
}

impl Stuck {
    /// Whether it must not be tried but where an operator asks for it.
    pub(super) fn is_poisoned(&self) -> bool {
        self.attempts == 0 && !Sabotage::PoisonedTriedAgain.is_on()
    }
}

/// An operation that an instance waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Layout)]
pub(super) struct Wait {
    pub(super) place: Place,
    pub(super) kind: Kind,
    pub(super) name: Cow<'static, str>,
    pub(super) target: Box<str>,
    pub(super) since: Timestamp,
    pub(super) due: Option<Timestamp>,
}

impl Wait {
    /// Names it, and when it is due.
    pub(super) fn in_words(&self, now: Timestamp) -> String {
        let Self { kind, name, target, due, .. } = self;
        let mut words = format!("{kind:?}").to_lowercase();
        for part in [&**name, target].into_iter().filter(|part| !part.is_empty()) {
            words = format!("{words} {part}");
        }
        match due {
            Some(due) => format!("{words} in {}", Timeout::from(due.since(now))),
            None => words,
        }
    }
}

/// Something that has arrived and was not handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Layout)]
pub(super) struct Kept {
    pub(super) at: Timestamp,
    pub(super) what: Arrived,
}

/// Something that can arrive at an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Layout)]
pub(super) enum Arrived {
    /// The beginning of a run, with its input.
    Start(Payload),
    /// An event, with its payload.
    Event(String, Payload),
    /// The end of a call, a child or a lock, as an answer.
    Answer(Place, Payload),
    /// The end of an attempt of a step.
    Attempt(Place, StepEnd),
    /// The wish that it ends.
    Cancel,
}

impl Arrived {
    /// The operation to which it belongs.
    pub(super) fn place(&self) -> Option<&Place> {
        match self {
            Self::Answer(place, _) | Self::Attempt(place, _) => Some(place),
            Self::Start(_) | Self::Event(..) | Self::Cancel => None,
        }
    }

    /// Whether it fails what waits for it.
    pub(super) fn is_failure(&self) -> bool {
        match self {
            Self::Answer(_, answer) => answer.is_failure(),
            Self::Cancel => true,
            Self::Start(_) | Self::Event(..) | Self::Attempt(..) => false,
        }
    }

    /// About how many bytes it has.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Event(name, payload) => name.len() + payload.len(),
            Self::Start(payload) | Self::Answer(_, payload) => payload.len(),
            Self::Attempt(_, StepEnd::Outcome(payload)) => payload.len(),
            Self::Attempt(_, StepEnd::Retry(reason, _)) => reason.len(),
            Self::Attempt(_, StepEnd::TimedOut) | Self::Cancel => 0,
        }
    }
}

/// How an attempt of a step came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, Layout)]
pub(in crate::workflow) enum StepEnd {
    /// The result as an answer, which may be a failure that is not tried again.
    Outcome(Payload),
    /// Why it failed, and after how long it is to be tried again.
    Retry(String, Option<Timeout>),
    /// It took too long.
    TimedOut,
}
