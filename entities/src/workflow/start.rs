//! Attempts of steps as a turn asks for them: what a runtime or a test driver begins after the commit, and hands back as
//! an operation of the instance.

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    instance::{Attempted, StepEnd},
    program::Program,
    step::{ATTEMPT_TIMEOUT, Attempt, Cancellation, StepBody, StepResult},
};
use crate::{
    BoxFuture, Dependencies, EntityId, Failure, ask::answer_json, operation::Argument as _,
};

/// The identity of a step: its workflow, the run of that, and the place.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepId {
    pub(super) workflow: EntityId,
    pub(super) run: u32,
    pub(super) place: super::place::Place,
}

impl StepId {
    /// The id of the workflow.
    pub fn workflow(&self) -> &EntityId {
        &self.workflow
    }

    /// The number of the run.
    pub fn run(&self) -> u32 {
        self.run
    }

    /// The place in the code.
    pub fn place(&self) -> String {
        self.place.to_string()
    }
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "place {} of {}, run {}", self.place, self.workflow, self.run)
    }
}

/// An attempt of a step that is to begin after the commit.
#[derive(Clone)]
pub struct StepStart(Arc<Inner>);

struct Inner {
    id: StepId,
    name: Cow<'static, str>,
    token: u128,
    number: u32,
    timeout: Option<Duration>,
    running_max: Option<usize>,
    argument: super::history::Payload,
    cancellation: Cancellation,
    program: Arc<Program>,
    /// The code of a step in place, until it begins.
    body: Mutex<Option<StepBody>>,
}

/// An attempt as the engine asks for it.
pub(super) struct NewAttempt {
    pub(super) id: StepId,
    pub(super) name: Cow<'static, str>,
    pub(super) token: u128,
    pub(super) number: u32,
    /// The limit that the step sets; zero for none.
    pub(super) timeout: Option<Duration>,
    pub(super) argument: super::history::Payload,
    pub(super) program: Arc<Program>,
    pub(super) body: Option<StepBody>,
}

impl StepStart {
    pub(super) fn new(attempt: NewAttempt) -> Self {
        let NewAttempt { id, name, token, number, timeout, argument, program, body } = attempt;
        let timeout = Some(timeout.unwrap_or(ATTEMPT_TIMEOUT)).filter(|length| !length.is_zero());
        let running_max = program.limit_of(&name);
        let (cancellation, body) = (Cancellation::default(), Mutex::new(body));
        Self(Arc::new(Inner {
            id,
            name,
            token,
            number,
            timeout,
            running_max,
            argument,
            cancellation,
            program,
            body,
        }))
    }

    /// The step.
    pub fn id(&self) -> &StepId {
        &self.0.id
    }

    /// The name of the step.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The argument as JSON; empty for a step in place.
    pub fn argument(&self) -> &[u8] {
        self.0.argument.bytes()
    }

    /// The number of the attempt, from 1 on.
    pub fn attempt(&self) -> u32 {
        self.0.number
    }

    /// How long it may take.
    pub fn timeout(&self) -> Option<Duration> {
        self.0.timeout
    }

    /// How many of this step run on a node at one time.
    pub fn running_max(&self) -> Option<usize> {
        self.0.running_max
    }

    /// Tells it that it is to end.
    pub fn cancellation(&self) -> &Cancellation {
        &self.0.cancellation
    }

    /// Begins it, once.
    pub fn begin(&self, given: &Dependencies) -> BoxFuture<'static, StepResult> {
        let inner = &self.0;
        let attempt = Arc::new(Attempt {
            workflow: inner.id.workflow.clone(),
            token: inner.token,
            number: inner.number,
            cancellation: inner.cancellation.clone(),
        });
        match inner.body.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(body) => body(attempt, given),
            None => inner.program.run_step(&inner.name, (attempt, given), inner.argument.bytes()),
        }
    }

    /// The argument of the operation [`STEP_ENDED`](super::STEP_ENDED) that tells the instance of its end: a result,
    /// `None` where it took too long.
    pub fn ended(&self, result: Option<StepResult>) -> Vec<u8> {
        let end = match result {
            None => StepEnd::TimedOut,
            Some(Ok(json)) => StepEnd::Outcome(answer_json(Ok(&json)).into()),
            Some(Err(error)) => match error.into_failure() {
                Failure::Retry { reason, after } => StepEnd::Retry(cut(reason), after),
                Failure::Failed(reason) => {
                    StepEnd::Outcome(answer_json(Err(Failure::Failed(cut(reason)))).into())
                }
                failure => StepEnd::Outcome(answer_json(Err(failure)).into()),
            },
        };
        let (place, run) = (self.0.id.place.clone(), self.0.id.run);
        let ended = Attempted { place, run, number: self.0.number, end };
        ended.to_json().expect("texts and numbers have a JSON form")
    }
}

/// A text of a failure, as long as those may be.
pub(super) fn cut(mut text: String) -> String {
    let end = (0..=super::FAILURE_BYTES_MAX.min(text.len())).rev();
    let end = end.into_iter().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or_default());
    text
}

impl PartialEq for StepStart {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id && self.0.number == other.0.number
    }
}
impl Eq for StepStart {}

impl fmt::Debug for StepStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepStart")
            .field("id", &self.0.id)
            .field("name", &self.0.name)
            .field("attempt", &self.0.number)
            .finish_non_exhaustive()
    }
}
