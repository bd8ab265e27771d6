//! Workflow types in words and schemas.

use schemars::Schema;
use serde::Serialize;

use super::{EventType, SavedHistory, StepType, WorkflowType};
use crate::{Timeout, entity::whole_schema};

/// A workflow type in words and schemas, as `GET /v1/workflows` shows it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct WorkflowDescription {
    /// The name of the type.
    pub name: &'static str,
    /// The version of its code, with which runs begin.
    pub version: u32,
    /// The versions of which runs go on here, this one among them.
    pub versions: Vec<u32>,
    /// Its documentation.
    pub description: &'static str,
    /// JSON Schema (2020-12) of the input.
    pub input: Schema,
    /// JSON Schema (2020-12) of the result.
    pub output: Schema,
    /// The events that it takes; of any name where there are none.
    pub events: Vec<EventDescription>,
    /// The steps that are methods.
    pub steps: Vec<StepDescription>,
    /// How long one that has ended stays.
    pub retention: Timeout,
    /// How long its changes are kept for those who follow them; `null` where they are not.
    pub changes: Option<Timeout>,
    #[serde(skip)]
    replay: fn(&SavedHistory) -> Result<(), String>,
}

/// An event in schemas.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct EventDescription {
    /// The name.
    pub name: &'static str,
    /// JSON Schema (2020-12) of the payload.
    pub payload: Schema,
}

/// A step in words and schemas.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct StepDescription {
    /// The name.
    pub name: &'static str,
    /// Its documentation.
    pub description: &'static str,
    /// JSON Schema (2020-12) of the argument.
    pub input: Schema,
    /// JSON Schema (2020-12) of the result.
    pub output: Schema,
    /// How many of it run on a node at one time; `null` for no limit.
    pub at_most: Option<usize>,
}

impl WorkflowDescription {
    /// Replays a history with the code of the type; see [`SavedHistory::replay`].
    ///
    /// # Errors
    /// The first place at which the code does something else.
    pub fn replay(&self, history: &SavedHistory) -> Result<(), String> {
        (self.replay)(history)
    }

    /// Describes `W`.
    pub fn of<W: WorkflowType>() -> Self {
        let mut versions: Vec<_> = W::earlier().iter().map(super::Program::version).collect();
        versions.push(W::VERSION);
        versions.sort_unstable();
        let event = |event: &EventType| EventDescription {
            name: event.name(),
            payload: whole_schema(&|generator| event.schema(generator)),
        };
        let step = |step: &StepType<W>| StepDescription {
            name: step.name(),
            description: step.description(),
            input: whole_schema(&|generator| step.schemas(generator).0),
            output: whole_schema(&|generator| step.schemas(generator).1),
            at_most: step.running_max,
        };
        Self {
            name: W::NAME,
            version: W::VERSION,
            versions,
            description: W::DESCRIPTION,
            input: whole_schema(&|generator| generator.subschema_for::<W::Input>()),
            output: whole_schema(&|generator| generator.subschema_for::<W::Output>()),
            events: W::events().iter().map(event).collect(),
            steps: W::steps().iter().map(step).collect(),
            retention: W::RETENTION.into(),
            changes: W::CHANGES.map(Timeout::from),
            replay: SavedHistory::replay::<W>,
        }
    }
}
