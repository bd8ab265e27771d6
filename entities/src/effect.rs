//! Effects: what a turn wants done outside its own state. They are values, and become real only in the
//! commit of the turn that produced them: `partition::settle` of the runtime says which rows each one
//! writes, `testing` what it does without a runtime.

use std::{borrow::Cow, time::Duration};

use crate::{
    EntityId, Error, ErrorKind, Failure, Timeout, Timestamp,
    ask::{Ask, answer_json},
};

/// One wish of a turn, in the order in which the operation uttered them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send an operation to an entity, now or later.
    Signal(Signal),
    /// Ask entities, and have what comes of it return.
    Ask(Ask),
    /// Set the reminder of this name, in place of an earlier one of the same name.
    Remind(Reminder),
    /// Cancel the reminder of this name, if there is one.
    CancelReminder(String),
    /// Delete the entity this long after the turn, or, where it is `None`, not by itself.
    Expire(Option<Timeout>),
}

/// An operation for another entity, or for the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signal {
    /// The receiver.
    pub target: EntityId,
    /// The name of the operation.
    pub operation: Cow<'static, str>,
    /// Its argument as JSON.
    pub input: Vec<u8>,
    /// When it joins the receiver's order; at once if `None`.
    pub delay: Option<Delay>,
}

/// A durable wake-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reminder {
    /// Its name, unique within the entity.
    pub name: String,
    /// When it is due.
    pub schedule: Schedule,
    /// The operation of the same entity that it applies.
    pub operation: Cow<'static, str>,
    /// The operation's argument as JSON.
    pub input: Vec<u8>,
}

/// When a delayed signal joins its receiver's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delay {
    /// This long after it was accepted.
    After(Timeout),
    /// At this moment; at once if it has passed.
    At(Timestamp),
}

impl Delay {
    /// The due time of what is accepted at `now`.
    pub fn due(self, now: Timestamp) -> Timestamp {
        match self {
            Self::After(length) => now + length.as_duration(),
            Self::At(moment) => moment,
        }
    }
}

/// When a reminder is due. Times are the store's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// Once, this long after the turn that sets it.
    After(Timeout),
    /// Once, at this moment; at once if it has passed.
    At(Timestamp),
    /// Again and again, first after one interval. Occurrences missed in a downtime are caught up
    /// once; the next one keeps the original rhythm.
    Every(Timeout),
}

/// The shortest interval of a recurring reminder.
pub const INTERVAL_MIN: Duration = Duration::from_millis(10);

impl Schedule {
    /// The due time of the first occurrence when the reminder is set at `now`.
    pub fn first(self, now: Timestamp) -> Timestamp {
        match self {
            Self::After(length) | Self::Every(length) => now + length.as_duration(),
            Self::At(moment) => moment,
        }
    }

    /// The due time of the occurrence after the one that was due at `due`, when that one is
    /// settled at `now`: the first later point of the rhythm that has not passed.
    pub fn next(self, due: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let Self::Every(interval) = self else {
            return None;
        };
        let interval = interval.as_duration().max(INTERVAL_MIN);
        let missed = now.since(due).as_micros() / interval.as_micros();
        let steps = u32::try_from(missed + 1).unwrap_or(u32::MAX);
        Some(due + interval.saturating_mul(steps))
    }
}

/// `After(duration)`: a one-shot reminder, counted from the turn that sets it.
#[derive(Debug, Clone, Copy)]
pub struct After<L: Into<Timeout>>(
    /// A [`Timeout`] or a [`Duration`].
    pub L,
);
/// `At(timestamp)`: a one-shot reminder at a moment.
#[derive(Debug, Clone, Copy)]
pub struct At(
    /// The moment.
    pub Timestamp,
);
/// `Every(interval)`: a recurring reminder; the interval is at least [`INTERVAL_MIN`].
#[derive(Debug, Clone, Copy)]
pub struct Every<L: Into<Timeout>>(
    /// A [`Timeout`] or a [`Duration`].
    pub L,
);

impl<L: Into<Timeout>> From<After<L>> for Schedule {
    fn from(after: After<L>) -> Self {
        Self::After(after.0.into())
    }
}
impl From<At> for Schedule {
    fn from(at: At) -> Self {
        Self::At(at.0)
    }
}
impl<L: Into<Timeout>> From<Every<L>> for Schedule {
    fn from(every: Every<L>) -> Self {
        Self::Every(every.0.into())
    }
}

/// Checks the operations of its own that an entity is to apply later: those of the reminders that a turn
/// sets and of the asks that it makes. `check` says of an operation and its argument why the entity does
/// not take them.
///
/// # Errors
/// [`ErrorKind::Invalid`], for the first that cannot be applied.
pub fn check_own_operations(
    effects: &[Effect],
    check: impl Fn(&str, &[u8]) -> Result<(), String>,
) -> Result<(), Error> {
    let refused = |what: String, why: String| {
        Error::new(ErrorKind::Invalid, format!("{what} was refused: {why}"))
    };
    for effect in effects {
        match effect {
            Effect::Remind(Reminder { name, operation, input, .. }) => {
                check(operation, input)
                    .map_err(|why| refused(format!("the reminder {name:?}"), why))?;
            }
            Effect::Ask(Ask { questions, then, .. }) => {
                let late = answer_json(Err(Failure::TimedOut));
                let input = then.input(questions.iter().map(|_| &late[..]));
                check(&then.operation, &input).map_err(|why| {
                    refused(format!("an ask that {} answers", then.operation), why)
                })?;
            }
            Effect::Signal(_) | Effect::CancelReminder(_) | Effect::Expire(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_missed_recurrence_is_caught_up_once_and_keeps_its_rhythm() {
        let every = Schedule::Every(Timeout::from(Duration::from_secs(10)));
        assert_eq!(every.first(at(100)), at(110));
        assert_eq!(every.next(at(110), at(110)), Some(at(120)));
        assert_eq!(every.next(at(110), at(119)), Some(at(120)));
        assert_eq!(every.next(at(110), at(155)), Some(at(160)));
        assert_eq!(every.next(at(110), at(160)), Some(at(170)));
    }

    #[test]
    fn a_one_shot_has_no_next() {
        assert_eq!(Schedule::At(at(1)).next(at(1), at(5)), None);
        assert_eq!(Schedule::After(Timeout::default()).next(at(1), at(5)), None);
    }
}
