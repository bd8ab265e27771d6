//! Effects: what a turn wants done outside its own state. They are values, and become real only in the
//! commit of the turn that produced them: `partition::settle` of the runtime says which rows each one
//! writes, `testing` what it does without a runtime.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{
    EntityId, Error, ErrorKind, Failure, Layout, Schedule, Timeout, Timestamp,
    ask::{Ask, answer_json},
    state::LayoutText,
    workflow::{StepId, StepStart},
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
    /// Begin an attempt of a workflow's step, after the commit.
    Step(StepStart),
    /// Tell the attempt of a workflow's step that it is to end.
    CancelStep(StepId),
    /// Tell all attempts of this run of a workflow that they are to end.
    CancelSteps(EntityId, u32),
    /// Have this operation applied where the partition is hosted anew, until there is another wish; or none.
    OnHosting(Option<Cow<'static, str>>),
    /// Answer a question whose answer was deferred, with an answer as JSON.
    Answer(ReplyAddress, Vec<u8>),
}

/// The operation that locks an entity for whom asks: only operations that are asked under this lock, by its fence, are
/// applied from its answer on. For runtimes; no operation of an author has this name.
pub const LOCK: &str = "~lock";
/// The operation that ends a lock, or the wait for one. Its argument is the fence.
pub const UNLOCK: &str = "~unlock";

/// The address to which the answer to a question goes: the asker, and what of it takes the answer. Only a runtime can
/// read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyAddress(pub Vec<u8>);

impl Layout for ReplyAddress {
    fn describe(layout: &mut LayoutText) {
        layout.part::<Vec<u8>>("");
    }
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
            Effect::Signal(_)
            | Effect::CancelReminder(_)
            | Effect::Expire(_)
            | Effect::Step(_)
            | Effect::CancelStep(_)
            | Effect::CancelSteps(..)
            | Effect::OnHosting(_)
            | Effect::Answer(..) => {}
        }
    }
    Ok(())
}
