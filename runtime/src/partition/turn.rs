//! One turn as a pure step: (state, operation, context) to (state', effects, result), or nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use stead_entities::{
    Context, EntityId, Error, ErrorKind, Rejection, Timeout, Timestamp, Version,
    context::{Effects, Turn},
    entity::{Argument, Outcome},
    operation::Reply,
};

use super::reply::StateView;
use crate::types::{EntityType, State, Trust};

/// The longest result of an operation, as JSON, in bytes.
const REPLY_BYTES_MAX: usize = 16 << 20;

/// The longest text of a failure, in bytes; what is longer is cut.
const FAILURE_BYTES_MAX: usize = 8 << 10;

/// How a turn ended. Only [`Turned::Applied`] carries anything of it further.
pub(super) enum Turned {
    Applied(Applied),
    /// The entity said no, and nothing stays.
    Rejected(Rejection),
    Failed(Error, NextTry),
}

/// The part of a turn that stays.
pub(super) struct Applied {
    /// The state that it left; `None` where a rejection keeps the effects alone.
    pub(super) state: Option<State>,
    pub(super) effects: Effects,
    /// The result as JSON, or the rejection that keeps the effects.
    pub(super) reply: Reply,
}

/// When a failed turn is tried again, if it is a signal's or a reminder's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextTry {
    /// As often, and after as long, as the policy says.
    ByPolicy,
    /// As often as the policy says, after this long.
    After(Timeout),
    Never,
}

/// Runs an operation that does not await on a copy of the state.
pub(super) fn run(
    entity_type: &dyn EntityType,
    index: usize,
    state: &State,
    mut ctx: Context,
    argument: Argument,
    (state_bytes_max, trust): (usize, Trust),
) -> Turned {
    let body = || {
        let mut copy = (**state).clone_state();
        let outcome = entity_type.run(index, &mut copy, &mut ctx, argument);
        (copy, outcome)
    };
    match guarded(body) {
        Ok((copy, outcome)) => settle(entity_type, copy, ctx, outcome, (state_bytes_max, trust)),
        Err(error) => Turned::failed(error),
    }
}

/// Readies a state that comes into memory. It has no effects.
pub(super) fn activate(
    entity_type: &dyn EntityType,
    id: &EntityId,
    state: &mut State,
    (now, revision): (Timestamp, u64),
) {
    let turn = Turn { id: id.clone(), now, revision, seed: 0, token: 0, origin: None };
    entity_type.activate(state, &Context::new(turn));
}

/// Runs a query on the state itself.
pub(crate) fn query(
    entity_type: &dyn EntityType,
    index: usize,
    state: &State,
    ctx: &Context,
    argument: Argument,
) -> Result<Reply, Error> {
    reply(guarded(|| entity_type.query(index, state, ctx, argument))?)
}

/// Shows a state as JSON.
pub(crate) fn show(
    state: &State,
    version: Version,
    committed_at: Timestamp,
) -> Result<StateView, Error> {
    let state = guarded(|| state.json())?;
    let state = state.map_err(|why| failed(why.to_string()))?;
    let Version { generation, revision } = version;
    Ok(StateView { generation, revision, committed_at, state })
}

/// Runs an author's code; a panic becomes an error.
pub(crate) fn guarded<T>(code: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|panic| panicked(&*panic))
}

/// Judges what an operation left behind.
pub(super) fn settle(
    entity_type: &dyn EntityType,
    state: State,
    ctx: Context,
    outcome: Outcome,
    (state_bytes_max, trust): (usize, Trust),
) -> Turned {
    let next_try = match &outcome {
        Outcome::Retry(_, Some(after)) => NextTry::After(*after),
        Outcome::Failed(_) => NextTry::Never,
        _ => NextTry::ByPolicy,
    };
    let reply = match reply(outcome) {
        Ok(reply) => reply,
        Err(error) => return Turned::Failed(error, next_try),
    };
    let effects = match &reply {
        Ok(_) => ctx.finish(),
        Err(rejection) => ctx.finish_rejected(rejection),
    };
    let effects = match effects {
        Ok(effects) => effects,
        Err(error) => return Turned::failed(failed(format!("an effect was refused: {error}"))),
    };
    match reply {
        Err(rejection) if effects.list.is_empty() => Turned::Rejected(rejection),
        Err(_) => Turned::Applied(Applied { state: None, effects, reply }),
        Ok(_) => match guarded(|| {
            entity_type.check_state(&state, state_bytes_max, trust)?;
            entity_type.check_indexed(&state)
        }) {
            Ok(Ok(())) => Turned::Applied(Applied { state: Some(state), effects, reply }),
            Ok(Err(why)) => Turned::failed(failed(why)),
            Err(error) => Turned::failed(error),
        },
    }
}

impl Turned {
    /// A failure that is tried again as the policy says.
    pub(super) fn failed(error: Error) -> Self {
        Self::Failed(error, NextTry::ByPolicy)
    }
}

/// The result as JSON, or the rejection.
fn reply(outcome: Outcome) -> Result<Reply, Error> {
    match outcome {
        Outcome::Replied(json) if json.len() > REPLY_BYTES_MAX => {
            Err(failed(format!("the result has more than {REPLY_BYTES_MAX} bytes")))
        }
        Outcome::Failed(why) => Outcome::Failed(cut(why)).into_reply(),
        Outcome::Retry(why, after) => Outcome::Retry(cut(why), after).into_reply(),
        other => other.into_reply(),
    }
}

/// A text of an author's, as long as texts may be.
fn cut(mut text: String) -> String {
    let end = (0..=FAILURE_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or_default());
    text
}

fn failed(message: String) -> Error {
    Error::new(ErrorKind::Internal, message)
}

/// A panic of an author's code, as an error.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    Error::new(ErrorKind::Internal, cut(format!("the operation panicked: {text}")))
}
