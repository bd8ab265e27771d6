//! One turn as a pure step: (state, operation, context) to (state', effects, result), or nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use stead_entities::{
    Context, Error, ErrorKind, Rejection, context::Effects, entity::Outcome, input::InputError,
};

use crate::types::{EntityType, State};

/// The longest result of an operation, as JSON, in bytes.
const REPLY_BYTES_MAX: usize = 16 << 20;

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
    let body = || {
        let mut copy = (**state).clone_state();
        let outcome = entity_type.run(index, &mut copy, &mut ctx, input);
        (copy, outcome)
    };
    match guarded(body) {
        Ok((copy, outcome)) => settle(entity_type, copy, ctx, outcome, state_bytes_max),
        Err(error) => Turned::Failed(error),
    }
}

/// Runs an author's code; a panic becomes an error.
pub(super) fn guarded<T>(code: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|panic| panicked(&*panic))
}

/// Judges what an operation left behind.
pub(super) fn settle(
    entity_type: &dyn EntityType,
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
    if json.len() > REPLY_BYTES_MAX {
        return failed(format!("the result has more than {REPLY_BYTES_MAX} bytes"));
    }
    match guarded(|| state.encode()) {
        Ok(Ok(encoded)) if encoded.len() > state_bytes_max => {
            failed(format!("the state has {} bytes, the limit is {state_bytes_max}", encoded.len()))
        }
        Ok(Ok(encoded)) => match guarded(|| entity_type.prove(&state, &encoded)) {
            Ok(Ok(())) => Turned::Applied { state, encoded, effects, json },
            Ok(Err(why)) => failed(why),
            Err(error) => Turned::Failed(error),
        },
        Ok(Err(error)) => failed(format!("the state cannot be stored: {error}")),
        Err(error) => Turned::Failed(error),
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

impl std::fmt::Debug for Turned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Applied { .. } => "Applied",
            Self::Rejected(_) => "Rejected",
            Self::Undecodable(_) => "Undecodable",
            Self::Failed(_) => "Failed",
        })
    }
}
