//! The status of an instance, as callers see it.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::{
    State,
    head::{HistoryCounts, Status, Stuck},
};
use crate::{
    Failure, Timestamp,
    workflow::{
        WorkflowType,
        history::{Delivery, Kind, Payload},
    },
};

/// The status of an instance, as a caller reads it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct StatusView<T> {
    /// None before it is started.
    pub status: Option<Status>,
    /// Why it does not go on by itself.
    pub stuck: Option<Stuck>,
    /// Why an operator has it wait.
    pub suspended: Option<String>,
    /// The number of the run.
    pub run: u32,
    /// The version of the code that the run began with.
    pub version: u32,
    /// When it was started.
    pub created_at: Option<Timestamp>,
    /// When something was handed to it last.
    pub updated_at: Option<Timestamp>,
    /// The result, once it is there.
    pub output: Option<T>,
    /// The failure that it has ended with.
    pub failure: Option<Failure>,
    /// The progress that its code shows.
    pub custom_status: serde_json::Value,
    /// The first of the operations that it waits for.
    pub waits_for: Vec<WaitView>,
    /// How many operations it waits for.
    pub outstanding: u32,
    /// How many events wait for it.
    pub waiting_events: u64,
    /// The ids of the entities that it has locked, or waits to lock.
    #[serde(default)]
    pub locks: Vec<String>,
    /// The size of the history of its run.
    pub history: HistoryCounts,
}

/// The status of an instance as JSON.
#[derive(Debug, Serialize)]
pub(super) struct View {
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suspended: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stuck: Option<Stuck>,
    run: u32,
    version: u32,
    created_at: Option<Timestamp>,
    updated_at: Option<Timestamp>,
    input: Payload,
    output: Payload,
    failure: Payload,
    custom_status: Payload,
    waits_for: Vec<WaitView>,
    outstanding: u32,
    waiting_events: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    locks: Vec<String>,
    history: HistoryCounts,
}

/// An operation that an instance waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct WaitView {
    /// Its place in the code.
    pub place: String,
    /// Its kind.
    pub kind: Kind,
    /// The name of the step, the event or the operation.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The id of the entity or the workflow that is asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// Since when it is waited for.
    pub since: Timestamp,
    /// When a timer is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Timestamp>,
    /// How many attempts of a step were in vain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_attempts: Option<u32>,
}

/// An answer, taken apart.
#[derive(Deserialize)]
enum AnswerView {
    Ok(Payload),
    Err(Payload),
}

impl State {
    pub(super) fn view(&self) -> View {
        let started = self.started();
        let empty = super::head::Head::default();
        let (status, of) = (started.map(|it| it.status), self.head.as_deref().unwrap_or(&empty));
        let time = |at: Timestamp| started.map(|_| at);
        let (output, failure) = match serde_json::from_slice(of.outcome.bytes()) {
            Ok(AnswerView::Ok(value)) => (value, Payload::default()),
            Ok(AnswerView::Err(failure)) => (Payload::default(), failure),
            Err(_) => Default::default(),
        };
        let waits_for = of.waits.iter().map(|wait| WaitView {
            place: wait.place.to_string(),
            kind: wait.kind,
            name: wait.name.to_string(),
            target: wait.target.to_string(),
            since: wait.since,
            due: wait.due,
            failed_attempts: of
                .attempts
                .iter()
                .find(|step| step.place == wait.place)
                .map(|step| step.failed),
        });
        View {
            status,
            suspended: Some(of.suspended.to_string()).filter(|reason| !reason.is_empty()),
            stuck: of.stuck.as_deref().cloned(),
            run: of.run,
            version: of.version,
            created_at: time(of.created_at),
            updated_at: time(of.updated_at),
            input: self.input(),
            output,
            failure,
            custom_status: of.shown.clone(),
            waits_for: waits_for.collect(),
            outstanding: of.outstanding,
            waiting_events: self.waiting_events(),
            locks: of.locks.iter().map(|lock| lock.target.clone()).collect(),
            history: of.history,
        }
    }

    /// The input of the present run, where entries may be read.
    fn input(&self) -> Payload {
        let is_shown = crate::collections::shows_entries();
        let turns =
            if is_shown { self.history.turns(0..1).unwrap_or_default() } else { Vec::new() };
        match turns.into_iter().next().and_then(|turn| turn.deliveries.into_iter().next()) {
            Some(Delivery::Start(input)) => input,
            _ => Payload::default(),
        }
    }
}

pub(super) fn schema<W: WorkflowType>(generator: &mut SchemaGenerator) -> Schema {
    let output = generator.subschema_for::<W::Output>();
    let input = generator.subschema_for::<W::Input>();
    let (status, stuck) =
        (generator.subschema_for::<Status>(), generator.subschema_for::<Option<Stuck>>());
    let (waits, time) = (
        generator.subschema_for::<Vec<WaitView>>(),
        generator.subschema_for::<Option<Timestamp>>(),
    );
    schemars::json_schema!({
        "type": "object",
        "description": "The status of an instance.",
        "properties": {
            "status": status, "stuck": stuck, "suspended": { "type": "string" },
            "run": { "type": "integer" }, "version": { "type": "integer" },
            "created_at": time, "updated_at": time,
            "input": { "anyOf": [input, { "type": "null" }] },
            "output": { "anyOf": [output, { "type": "null" }] },
            "failure": true, "custom_status": true,
            "waits_for": waits, "outstanding": { "type": "integer" },
            "waiting_events": { "type": "integer" },
            "locks": { "type": "array", "items": { "type": "string" } },
            "history": { "type": "object" },
        },
        "required": ["status", "run", "version"],
    })
}
