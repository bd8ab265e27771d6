//! Programs: the code of a workflow in its versions, with the Rust types erased.

use std::{collections::HashMap, fmt, sync::Arc};

use futures_util::FutureExt as _;

use super::{
    PAYLOAD_BYTES_MAX, Workflow, WorkflowType,
    core::Core,
    handle::not_given,
    history::Payload,
    step::{Attempt, StepError, StepResult},
};
use crate::{
    BoxFuture, Dependencies, Dependency, Failure,
    ask::answer_json,
    input::{InputError, decode},
    json,
};

type Start = fn(Arc<Core>, &[u8]) -> Result<BoxFuture<'static, Payload>, InputError>;
type Method = Box<
    dyn Fn(Arc<Attempt>, &Dependencies, &[u8]) -> Result<BoxFuture<'static, StepResult>, String>
        + Send
        + Sync,
>;

/// The code of a workflow in one version.
pub struct Program {
    version: u32,
    start: Start,
    steps: HashMap<&'static str, Method>,
    limits: HashMap<&'static str, usize>,
    given: Dependency,
}

impl Program {
    /// The code of `W`, whose runs began with it.
    pub fn of<W: WorkflowType>() -> Self {
        let (mut steps, mut limits) = (HashMap::<_, Method>::new(), HashMap::new());
        for step in W::steps() {
            let name = step.name();
            limits.extend(step.running_max.map(|limit| (name, limit)));
            let run = step.run;
            let method: Method = Box::new(move |attempt, given, input| {
                let given = given.get::<W>().ok_or_else(not_given::<W>)?;
                run(given, attempt, input).map_err(|error| error.to_string())
            });
            steps.insert(name, method);
        }
        let start: Start = |core, input| {
            let input = decode::<W::Input>(if input.is_empty() { b"null" } else { input })?;
            // An `async` block around it would have room for it twice.
            Ok(Box::pin(W::run(Workflow::new(core), input).map(recorded)))
        };
        Self { version: W::VERSION, start, steps, limits, given: Dependency::of::<W>() }
    }

    /// Its version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The value that its steps use.
    pub(super) fn given(&self) -> Dependency {
        self.given
    }

    /// Begins a run.
    pub(super) fn start(
        &self,
        core: &Arc<Core>,
        input: &[u8],
    ) -> Result<BoxFuture<'static, Payload>, InputError> {
        (self.start)(core.clone(), input)
    }

    /// The limit of how many of a step run on a node at one time.
    pub(super) fn limit_of(&self, step: &str) -> Option<usize> {
        self.limits.get(step).copied()
    }

    /// Begins an attempt of a step that is a method.
    pub(super) fn run_step(
        &self,
        name: &str,
        (attempt, given): (Arc<Attempt>, &Dependencies),
        input: &[u8],
    ) -> BoxFuture<'static, StepResult> {
        let running = match self.steps.get(name) {
            Some(method) => method(attempt, given, input),
            None => Err(format!("the program has no step {name}")),
        };
        running.unwrap_or_else(|why| Box::pin(async move { Err(StepError::fatal(why)) }))
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("version", &self.version).finish_non_exhaustive()
    }
}

/// The result of a workflow, as it is recorded.
fn recorded<T: serde::Serialize>(result: Result<T, Failure>) -> Payload {
    let failure = match result.map(|value| json::encode(&value)) {
        Ok(Ok(json)) if json.len() <= PAYLOAD_BYTES_MAX => return answer_json(Ok(&json)).into(),
        Ok(Ok(json)) => {
            let length = json.len();
            Failure::TooLarge(format!(
                "the result has {length} bytes, the limit is {PAYLOAD_BYTES_MAX}"
            ))
        }
        Ok(Err(error)) => Failure::Failed(format!("the result has no JSON form: {error}")),
        Err(failure) => failure,
    };
    answer_json(Err(failure)).into()
}
