//! Workflows: ordinary `async` code that survives everything.
//!
//! A workflow is an `async fn` beside the entities. What it does goes through [`Workflow`]: steps outside, calls to
//! entities, timers, events, other workflows. Each of its turns is committed like one of an entity: what arrived, what
//! the code began on it, and everything that follows, in one batch. Between turns its future rests in memory, and is
//! only a cache: after a crash, at another node, or when it was idle, its *history* is replayed, and the code goes on
//! where it was.
//!
//! `place` is the identity of an operation, `history` what is stored, `core` what is in memory of a run, `operation` and
//! `combine` the futures over it, `activation` hands over deliveries one by one and replays, `program` is the code in its
//! versions, `step` what runs outside, `instance` the entity that all of this is to a runtime.
//!
//! What must never happen: a history that is replayed, from any prefix, begins or cancels something else; anything that
//! decides is not recorded; a turn that is refused leaves more than the reason.

mod activation;
mod combine;
mod core;
mod description;
mod guard;
mod handle;
mod history;
mod instance;
mod open;
mod operation;
mod place;
mod program;
mod reference;
mod saved;
mod section;
mod start;
mod step;

use std::{fmt, future::Future, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Failure,
    input::{InputError, decode},
};

pub use self::{
    combine::{All, Branches, Of2, Of3, Of4, Of5, Of6, Race},
    description::{EventDescription, StepDescription, WorkflowDescription},
    guard::{Guard, install_guard},
    handle::Workflow,
    history::Kind,
    instance::{
        HistoryCounts, Instance, LOCK_ASKED, LockAsked, STEP_ENDED, StartPolicy, Started, Status,
        StatusView, Stuck, WaitView,
    },
    operation::{EventWait, Operation, StepOperation},
    program::Program,
    reference::{
        InstanceReference, ResultError, Start, TypedWorkflow, WorkflowCaller, WorkflowReference,
    },
    saved::SavedHistory,
    section::{LOCKED_MAX, Section},
    start::{StepId, StepStart},
    step::{
        ATTEMPT_TIMEOUT, ATTEMPTS, Attempt, BACKOFF, BACKOFF_MAX, CANCEL_GRACE, Cancellation, Step,
        StepError, StepResult, StepType,
    },
};

/// The result of a workflow's code.
#[diagnostic::on_unimplemented(
    message = "the code of a workflow returns a `Result<T, Failure>`",
    label = "not `{Self}`"
)]
pub trait WorkflowResult {
    /// The result, where there is no failure.
    type Value;
}
impl<T> WorkflowResult for Result<T, Failure> {
    type Value = T;
}

/// The result of a step.
#[diagnostic::on_unimplemented(
    message = "a step returns a `Result<T, StepError>`: its errors decide whether it is tried again",
    label = "not `{Self}`"
)]
pub trait StepReturn {
    /// The result, where there is no error.
    type Value;
    /// The result, with its error as one of a step.
    ///
    /// # Errors
    /// The error.
    fn into_result(self) -> Result<Self::Value, StepError>;
}
impl<T, E: Into<StepError>> StepReturn for Result<T, E> {
    type Value = T;
    fn into_result(self) -> Result<T, StepError> {
        self.map_err(Into::into)
    }
}

/// The most bytes of an input, an event, an argument or a result.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// The most bytes of a status.
pub const STATUS_BYTES_MAX: usize = 16 << 10;
/// How many operations of a run are outstanding at one time; further ones begin when others are done.
pub const OUTSTANDING_MAX: usize = 10_000;
/// How many operations begin in one turn, and how many bytes of arguments they have; further ones begin in the next.
pub const BEGUN_PER_TURN_MAX: usize = 1_024;
/// The most bytes of arguments of the operations that begin in one turn.
pub const BEGUN_BYTES_PER_TURN_MAX: usize = 4 << 20;

/// How many deliveries one turn hands over; further ones are handed over in the next.
pub const DELIVERIES_PER_TURN_MAX: usize = 256;
/// How many bytes of deliveries one turn hands over before it leaves further ones to the next.
pub const DELIVERED_BYTES_PER_TURN_MAX: usize = 4 << 20;
/// How many deliveries a history has before it counts as long.
pub const LONG_DELIVERIES: u64 = 2_000;
/// How many bytes a history has before it counts as long.
pub const LONG_BYTES: u64 = 4 << 20;
/// The most deliveries of a history.
pub const HISTORY_DELIVERIES_MAX: u64 = 20_000;
/// The most bytes of a history.
pub const HISTORY_BYTES_MAX: u64 = 64 << 20;
/// The most events that wait for an instance.
pub const EVENTS_KEPT_MAX: u32 = 4_096;
/// The most bytes of the events that wait for an instance.
pub const EVENT_BYTES_KEPT_MAX: u64 = 8 << 20;
/// The most events of signals that wait for an instance behind those, on disk alone.
pub const EVENTS_LATER_MAX: u64 = 1_000_000;
/// The most bytes of the events of signals that wait for an instance behind those.
pub const EVENT_BYTES_LATER_MAX: u64 = 1 << 30;
/// The most bytes of the text of a failure.
pub const FAILURE_BYTES_MAX: usize = 8 << 10;
/// The wait before an instance that is stuck by a panic is tried again; it doubles with each try.
pub const STUCK_RETRY: Duration = Duration::from_millis(100);
/// How often an instance that is stuck by a panic is tried again by itself.
pub const STUCK_RETRIES_MAX: u32 = 8;
/// How many attempts of a step the process may end before it fails.
pub const INTERRUPTED_MAX: u32 = 8;

/// An event that instances of a type take.
#[derive(Clone)]
pub struct EventType {
    name: &'static str,
    check: fn(&[u8]) -> Result<(), InputError>,
    schema: fn(&mut SchemaGenerator) -> Schema,
}

impl EventType {
    /// An event with a payload of this type.
    pub fn new<T: DeserializeOwned + JsonSchema + 'static>(name: &'static str) -> Self {
        let check = |payload: &[u8]| decode::<T>(payload).map(drop);
        Self { name, check, schema: |generator| generator.subschema_for::<T>() }
    }

    /// The name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    fn check(&self, payload: &[u8]) -> Result<(), InputError> {
        (self.check)(payload)
    }

    /// The JSON Schema of the payload.
    pub fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        (self.schema)(generator)
    }
}

impl fmt::Debug for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EventType").field(&self.name).finish()
    }
}

/// A kind of workflow. `#[workflow]` on an `impl` block writes this implementation; by hand it is a name, a version, a
/// function and a table of steps. A value of the type is what its steps need: a client, a pool.
pub trait WorkflowType: Sized + Send + Sync + 'static {
    /// The name of the type, as in `order/o-1`.
    const NAME: &'static str;
    /// The version of the code. A run keeps the one that it began with.
    const VERSION: u32 = 1;
    /// The documentation of the type.
    const DESCRIPTION: &'static str = "";
    /// The input.
    type Input: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
    /// The result.
    type Output: Serialize + DeserializeOwned + JsonSchema + Send + 'static;

    /// The code.
    fn run(
        ctx: Workflow<Self>,
        input: Self::Input,
    ) -> impl Future<Output = Result<Self::Output, Failure>> + Send + 'static;

    /// How long an instance that has ended stays, with its result.
    const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

    /// How long the changes of all instances are kept for those who follow them: each turn writes its status once more.
    /// None where nobody does.
    const CHANGES: Option<Duration> = None;

    /// The steps that are methods.
    fn steps() -> Vec<StepType<Self>> {
        Vec::new()
    }

    /// The events that instances take, with the types of their payloads. Where any are named, others are refused.
    fn events() -> Vec<EventType> {
        Vec::new()
    }

    /// The code of earlier versions, for runs that began with it.
    fn earlier() -> Vec<Program> {
        Vec::new()
    }
}
