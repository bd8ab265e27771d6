//! One turn as a pure step: (state, operation, context) to (state', effects, result), or nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use stead_entities::{
    Context, Error, ErrorKind, Rejection, context::Effects, entity::Outcome, input::InputError,
};

use crate::types::{EntityType, State};

/// How a turn ended. Only `Applied` carries anything of it further.
pub(super) enum Turned {
    Applied { state: State, encoded: Vec<u8>, effects: Effects, json: Vec<u8> },
    Rejected(Rejection),
    Undecodable(InputError),
    Failed(Error),
}

/// Runs a synchronous operation on a copy of the state.
pub(super) fn run(
    entity_type: &dyn EntityType,
    index: usize,
    state: &State,
    mut ctx: Context,
    input: &[u8],
    state_bytes_max: usize,
) -> Turned {
    let mut copy = (**state).clone_state();
    let body = || entity_type.run(index, &mut copy, &mut ctx, input);
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(outcome) => settle(copy, ctx, outcome, state_bytes_max),
        Err(panic) => Turned::Failed(panicked(&*panic)),
    }
}

/// Judges what an operation left behind.
pub(super) fn settle(
    state: State,
    ctx: Context,
    outcome: Outcome,
    state_bytes_max: usize,
) -> Turned {
    let json = match outcome {
        Outcome::Replied(json) => json,
        Outcome::Rejected(rejection) => return Turned::Rejected(rejection),
        Outcome::Undecodable(error) => return Turned::Undecodable(error),
        Outcome::Unencodable(why) => {
            return failed(format!("the result cannot be written as JSON: {why}"));
        }
    };
    let effects = match ctx.finish() {
        Ok(effects) => effects,
        Err(error) => return failed(format!("an effect was refused: {error}")),
    };
    match catch_unwind(AssertUnwindSafe(|| state.encode())) {
        Ok(Ok(encoded)) if encoded.len() > state_bytes_max => {
            failed(format!("the state has {} bytes, the limit is {state_bytes_max}", encoded.len()))
        }
        Ok(Ok(encoded)) => Turned::Applied { state, encoded, effects, json },
        Ok(Err(error)) => failed(format!("the state cannot be stored: {error}")),
        Err(panic) => Turned::Failed(panicked(&*panic)),
    }
}

fn failed(message: String) -> Turned {
    Turned::Failed(Error::new(ErrorKind::Internal, message))
}

/// A panic of an author's code, as an error.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    Error::new(ErrorKind::Internal, format!("the operation panicked: {text}"))
}
