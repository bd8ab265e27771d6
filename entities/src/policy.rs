//! Policies: how long, how often and how much, for one operation or for all of a type. What is not set comes
//! from the type, and then from the node's settings.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::Timeout;

/// The longest of a policy's times, but for the retentions and the time to live.
pub const POLICY_TIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// The longest retention and time to live: 10 years.
pub const RETENTION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The most retries.
pub const RETRIES_MAX: u32 = 1_000;
/// The largest mailbox.
pub const MAILBOX_MAX: usize = 1 << 20;

/// How safe an answer is, by type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Durability {
    /// It leaves when what it rests on is flushed to disk: a power cut takes nothing of it.
    #[default]
    Durable,
    /// It leaves when what it rests on is written, which the end of the process does not undo; flushed at most
    /// 100 ms later, or with the next commit of a durable entity. A power cut may take the last moments: always
    /// the end of the one log, and never a part of a turn. What such an entity sends to a durable one is flushed.
    Buffered,
}

/// A policy of an operation, or of a type. `#[entity]` and `#[operation]` write it of their attributes:
///
/// ```
/// # use std::time::Duration;
/// # use stead_entities::*;
/// # #[derive(Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
/// # struct Payment { cents: u64 }
/// #[entity(name = "payment", retries = 3, idle = Duration::from_secs(600))]
/// impl Payment {
///     #[operation(deadline = Duration::from_secs(30), backoff = Duration::from_secs(1))]
///     pub async fn charge(&mut self, cents: u64) { self.cents += cents; }
/// }
/// ```
///
/// A value out of its range is an error when the node starts, which lists all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct Policy {
    /// How long a turn of the operation may take. One that awaits is discarded then; the caller of one that
    /// blocks its thread is told that the outcome is unknown. 1 ms to 24 h, and for one that does not await
    /// less than the node's block limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timeout>,
    /// How often a failed signal or reminder is tried again before it is a dead letter. At most 1,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// The wait before the first retry; it doubles with each further one, up to a minute. 1 ms to 24 h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Timeout>,
    /// The most operations that wait for one entity in memory; of a type. 1 to 1,048,576.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mailbox: Option<usize>,
    /// How long an unused entity stays in memory; of a type. 1 ms to 24 h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Timeout>,
    /// How long idempotency keys are remembered; of a type. 1 s to 10 years.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Timeout>,
    /// How long an entity lives after its last turn, unless that says otherwise; of a type. For ever where
    /// nothing is set. 1 s to 10 years.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Timeout>,
    /// How long dead letters are kept, of whichever cause; of a type. Their number and bytes are bounded too.
    /// 1 s to 10 years.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letters: Option<Timeout>,
    /// How long the changes of all entities of a type are kept for those who follow them, deletions too; of a
    /// type. None are kept where nothing is set. 1 s to 10 years.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<Timeout>,
    /// How safe answers are; of a type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
}

impl Policy {
    /// Sets [`Policy::deadline`].
    #[must_use]
    pub fn deadline(mut self, length: impl Into<Timeout>) -> Self {
        self.deadline = Some(length.into());
        self
    }
    /// Sets [`Policy::retries`].
    #[must_use]
    pub fn retries(mut self, count: u32) -> Self {
        self.retries = Some(count);
        self
    }
    /// Sets [`Policy::backoff`].
    #[must_use]
    pub fn backoff(mut self, length: impl Into<Timeout>) -> Self {
        self.backoff = Some(length.into());
        self
    }
    /// Sets [`Policy::mailbox`].
    #[must_use]
    pub fn mailbox(mut self, count: usize) -> Self {
        self.mailbox = Some(count);
        self
    }
    /// Sets [`Policy::idle`].
    #[must_use]
    pub fn idle(mut self, length: impl Into<Timeout>) -> Self {
        self.idle = Some(length.into());
        self
    }
    /// Sets [`Policy::retention`].
    #[must_use]
    pub fn retention(mut self, length: impl Into<Timeout>) -> Self {
        self.retention = Some(length.into());
        self
    }

    /// Sets [`Policy::ttl`].
    #[must_use]
    pub fn ttl(mut self, length: impl Into<Timeout>) -> Self {
        self.ttl = Some(length.into());
        self
    }

    /// Sets [`Policy::dead_letters`].
    #[must_use]
    pub fn dead_letters(mut self, length: impl Into<Timeout>) -> Self {
        self.dead_letters = Some(length.into());
        self
    }

    /// Sets [`Policy::changes`].
    #[must_use]
    pub fn changes(mut self, length: impl Into<Timeout>) -> Self {
        self.changes = Some(length.into());
        self
    }

    /// Sets [`Policy::durability`].
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// The policy with what it leaves open taken from another one.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            deadline: self.deadline.or(other.deadline),
            retries: self.retries.or(other.retries),
            backoff: self.backoff.or(other.backoff),
            mailbox: self.mailbox.or(other.mailbox),
            idle: self.idle.or(other.idle),
            retention: self.retention.or(other.retention),
            ttl: self.ttl.or(other.ttl),
            dead_letters: self.dead_letters.or(other.dead_letters),
            changes: self.changes.or(other.changes),
            durability: self.durability.or(other.durability),
        }
    }

    /// The parts of it that an operation can have.
    #[must_use]
    pub fn of_operation(self) -> Self {
        Self {
            mailbox: None,
            idle: None,
            retention: None,
            ttl: None,
            dead_letters: None,
            changes: None,
            durability: None,
            ..self
        }
    }

    /// Everything in it that is out of its range, in words.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut within = |name: &str,
                          value: Option<Timeout>,
                          (least, most): (Duration, Duration)| {
            let value = value.map(|value| value.as_duration());
            if let Some(value) = value.filter(|value| !(least..=most).contains(value)) {
                problems
                    .push(format!("the {name} is {value:?}, and must be {least:?} to {most:?}"));
            }
        };
        let times = (Duration::from_millis(1), POLICY_TIME_MAX);
        within("deadline", self.deadline, times);
        within("backoff", self.backoff, times);
        within("idle time", self.idle, times);
        let long = (Duration::from_secs(1), RETENTION_MAX);
        within("retention", self.retention, long);
        within("time to live", self.ttl, long);
        within("retention of dead letters", self.dead_letters, long);
        within("retention of changes", self.changes, long);
        if let Some(retries) = self.retries.filter(|retries| *retries > RETRIES_MAX) {
            problems
                .push(format!("there are {retries} retries, and must be at most {RETRIES_MAX}"));
        }
        if let Some(mailbox) = self.mailbox.filter(|it| !(1..=MAILBOX_MAX).contains(it)) {
            problems.push(format!("the mailbox holds {mailbox}, and must hold 1 to {MAILBOX_MAX}"));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_out_of_its_range_is_named() {
        let (zero, long) = (Duration::ZERO, RETENTION_MAX * 2);
        let bad = Policy::default().deadline(zero).backoff(long).idle(zero).retention(long);
        let bad =
            bad.retries(RETRIES_MAX + 1).mailbox(0).ttl(zero).dead_letters(long).changes(zero);
        assert_eq!(bad.problems().len(), 9, "{:?}", bad.problems());
        let minute = Duration::from_secs(60);
        let good = Policy::default().deadline(minute).backoff(minute).idle(minute);
        let good = good.retention(RETENTION_MAX).retries(RETRIES_MAX).mailbox(MAILBOX_MAX);
        assert_eq!(good.problems(), Vec::<String>::new());
    }

    #[test]
    fn what_is_set_nearer_counts() {
        let (one, two) = (Policy::default().retries(1), Policy::default().retries(2).mailbox(5));
        assert_eq!(one.or(two), one.mailbox(5));
        assert_eq!(one.mailbox(5).of_operation(), one);
    }
}
