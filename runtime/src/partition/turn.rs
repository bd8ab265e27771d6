//! One turn as a pure step: (state, operation, context) to (state', effects, result), or nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use stead_entities::{
    Context, EntityId, Error, ErrorKind, Rejection, Timeout, Timestamp, Version,
    collections::{self, Access, Miss, Refused},
    context::{Effects, Turn},
    entity::{Argument, Outcome},
    operation::Reply,
};

use super::reply::StateView;
use crate::{
    store::record::Damaged,
    types::{EntityType, Standard, State},
};

/// The longest result of an operation, as JSON, in bytes.
const REPLY_BYTES_MAX: usize = 16 << 20;

/// The longest text of a failure, in bytes; what is longer is cut.
const FAILURE_BYTES_MAX: usize = 8 << 10;

/// How a turn ended. Only [`Turned::Applied`] carries anything of it further.
pub(super) enum Turned {
    Applied(Applied),
    /// The entity said no, and nothing stays.
    Rejected(Rejection),
    /// It lacks entries, and is to be run again when they are there.
    Missed(Miss),
    Failed(Error, NextTry),
}

/// The part of a turn that stays.
pub(super) struct Applied {
    /// The state that it left; `None` where a rejection keeps the effects alone.
    pub(super) state: Option<State>,
    /// How many bytes of entries of its collections the turn changed.
    pub(super) entries: usize,
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

/// Why code that uses a state did not come to its end.
pub(crate) enum Halt {
    /// It lacks entries of a collection, and is to be run again when they are there.
    Missed(Miss),
    Failed(Error),
}

/// Runs an operation that does not await on a copy of the state.
pub(super) fn run(
    entity_type: &dyn EntityType,
    index: usize,
    state: &State,
    mut ctx: Context,
    argument: Argument,
    standard: Standard,
) -> Turned {
    let body = || {
        let mut copy = (**state).clone_state();
        let outcome = entity_type.run(index, &mut copy, &mut ctx, argument);
        (copy, outcome)
    };
    match attempted(entity_type, body) {
        Ok((copy, outcome)) => settle(entity_type, copy, ctx, outcome, standard),
        Err(Halt::Missed(miss)) => Turned::Missed(miss),
        Err(Halt::Failed(error)) => Turned::failed(error),
    }
}

/// Readies a state that comes into memory. It has no effects.
pub(super) fn activate(
    entity_type: &dyn EntityType,
    id: &EntityId,
    state: &mut State,
    (now, revision): (Timestamp, u64),
) {
    let turn = Turn::new(id.clone(), now, revision, (0, 0));
    entity_type.activate(state, &Context::new(turn));
}

/// Runs a query on the state itself.
pub(crate) fn query(
    entity_type: &dyn EntityType,
    index: usize,
    state: &State,
    ctx: &Context,
    argument: Argument,
) -> Result<Reply, Halt> {
    let outcome = attempted(entity_type, || entity_type.query(index, state, ctx, argument))?;
    reply(outcome).map_err(Halt::Failed)
}

/// Shows a state as JSON.
pub(crate) fn show(
    entity_type: &dyn EntityType,
    state: &State,
    version: Version,
    committed_at: Timestamp,
) -> Result<StateView, Halt> {
    let json = attempted(entity_type, || state.json())?;
    view(json, version, committed_at).map_err(Halt::Failed)
}

/// Shows a state as JSON, with no more of its collections than their lengths.
pub(crate) fn show_lengths(
    state: &State,
    version: Version,
    committed_at: Timestamp,
) -> Result<StateView, Error> {
    let json = guarded(|| collections::attempt(Access::Lengths, || state.json()))?;
    view(json.map_err(|_| failed("entries are not shown".to_owned()))?, version, committed_at)
}

fn view(
    json: Result<Vec<u8>, Damaged>,
    Version { generation, revision }: Version,
    committed_at: Timestamp,
) -> Result<StateView, Error> {
    let state = json.map_err(|why| failed(why.to_string()))?;
    Ok(StateView { generation, revision, committed_at, state })
}

/// Runs code that uses a state, and entries of its collections.
fn attempted<T>(entity_type: &dyn EntityType, code: impl FnOnce() -> T) -> Result<T, Halt> {
    if !entity_type.has_collections() {
        return guarded(code).map_err(Halt::Failed);
    }
    match guarded(|| collections::attempt(Access::Entries, code)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(miss)) => Err(Halt::Missed(miss)),
        Err(error) => Err(Halt::Failed(error)),
    }
}

/// Runs an author's code; a panic becomes an error.
pub(crate) fn guarded<T>(code: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|panic| panicked(&*panic))
}

/// Judges what an operation left behind.
pub(super) fn settle(
    entity_type: &dyn EntityType,
    mut state: State,
    ctx: Context,
    outcome: Outcome,
    standard: Standard,
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
        Err(_) => Turned::Applied(Applied { state: None, entries: 0, effects, reply }),
        Ok(_) => match guarded(|| {
            let entries = entity_type.check_state(&mut state, standard)?;
            entity_type.check_indexed(&state)?;
            Ok(entries)
        }) {
            Ok(Ok(entries)) => {
                Turned::Applied(Applied { state: Some(state), entries, effects, reply })
            }
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
    if let Some(Refused(why)) = panic.downcast_ref() {
        return failed(why.clone());
    }
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    Error::new(ErrorKind::Internal, cut(format!("the operation panicked: {text}")))
}
