//! One turn as a pure step: (state, operation, context) to (state', effects, result), or nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use stead_entities::{
    Context, Error, ErrorKind, Rejection,
    context::Effects,
    entity::{Argument, Outcome},
};

use crate::types::{EntityType, State, Trust};

/// The longest result of an operation, as JSON, in bytes.
const REPLY_BYTES_MAX: usize = 16 << 20;

/// How a turn ended. Only [`Turned::Applied`] carries anything of it further.
pub(super) enum Turned {
    Applied(Applied),
    Rejected(Rejection),
    Failed(Error),
}

/// The result of a turn that succeeded.
pub(super) struct Applied {
    pub(super) state: State,
    pub(super) effects: Effects,
    /// The result as JSON.
    pub(super) json: Vec<u8>,
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
        Err(error) => Turned::Failed(error),
    }
}

/// Runs a query on the state itself.
pub(super) fn query(
    entity_type: &dyn EntityType,
    index: usize,
    state: &State,
    ctx: &Context,
    argument: Argument,
) -> Result<Result<Vec<u8>, Rejection>, Error> {
    json(guarded(|| entity_type.query(index, state, ctx, argument))?)
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
    (state_bytes_max, trust): (usize, Trust),
) -> Turned {
    let json = match json(outcome) {
        Ok(Ok(json)) => json,
        Ok(Err(rejection)) => return Turned::Rejected(rejection),
        Err(error) => return Turned::Failed(error),
    };
    let effects = match ctx.finish() {
        Ok(effects) => effects,
        Err(error) => return Turned::Failed(failed(format!("an effect was refused: {error}"))),
    };
    match guarded(|| entity_type.check_state(&state, state_bytes_max, trust)) {
        Ok(Ok(())) => Turned::Applied(Applied { state, effects, json }),
        Ok(Err(why)) => Turned::Failed(failed(why)),
        Err(error) => Turned::Failed(error),
    }
}

/// The result as JSON, or the rejection.
fn json(outcome: Outcome) -> Result<Result<Vec<u8>, Rejection>, Error> {
    match outcome {
        Outcome::Replied(json) if json.len() > REPLY_BYTES_MAX => {
            Err(failed(format!("the result has more than {REPLY_BYTES_MAX} bytes")))
        }
        Outcome::Replied(json) => Ok(Ok(json)),
        Outcome::Rejected(rejection) => Ok(Err(rejection)),
        Outcome::Unencodable(why) => {
            Err(failed(format!("the result cannot be written as JSON: {why}")))
        }
    }
}

fn failed(message: String) -> Error {
    Error::new(ErrorKind::Internal, message)
}

/// A panic of an author's code, as an error.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    Error::new(ErrorKind::Internal, format!("the operation panicked: {text}"))
}
