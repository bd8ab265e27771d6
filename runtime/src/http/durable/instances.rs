//! Starting workflows, and what is asked of one.

use std::{future::Future, time::Duration};

use axum::{body::Body, http::StatusCode, response::IntoResponse as _};
use serde_json::{Value, json};
use stead_entities::{
    Caller as _, EntityId, Error, ErrorKind, Rejection,
    operation::Reply,
    workflow::{Started, Status, WorkflowCaller as _},
};

use super::{Answer, Call, Refusal, body::meanings, document::Instance, events::events};
use crate::{
    entropy::Entropy,
    escape::escaped,
    http::{routes::show, workflows},
    node::workflows::until_started,
    store::PAGE_BYTES_MAX,
};

/// The longest that a start waits for the end.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How many turns of a history are read at one time.
const HISTORY_PAGE: usize = 100;

impl Call {
    /// Starts a workflow, under an id of its own where none is given.
    pub(super) async fn start(&self, function: &str, id: Option<&str>, body: Body) -> Answer {
        let Some(workflow_type) = self.workflow_type(function) else {
            let why = format!(
                "The function '{function}' doesn't exist, or is not an orchestrator function."
            );
            return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
        };
        let new = || format!("{:032x}", Entropy::system().next_wide());
        let key = id.map_or_else(new, str::to_owned);
        let id = EntityId::new(workflow_type, &key)?;
        let other = self.find(&key).await?.filter(|other| !other.status.is_end());
        if other.is_some() {
            return Err(goes_on(&key));
        }
        let wait = self.wait()?;
        let inputs = meanings(self, body).await?;
        let start = |input: &[u8]| {
            let input = if input.is_empty() { b"null" } else { input };
            self.node.call(self.request(id.clone(), "start", member(b"{\"input\":", input)))
        };
        let started = of_first(&inputs, start).await?.map_err(refused)?;
        let started: Started = serde_json::from_slice(&started).map_err(unreadable)?;
        if !started.is_new {
            return Err(goes_on(&key));
        }
        // It has been started, whatever comes of the wait.
        if let Some(wait) = wait
            && let Ok(Some(_)) = self.node.outcome(id, wait).await
            && let Ok(Some(instance)) = self.find(&key).await
        {
            return Ok(match instance.status {
                Status::Completed => show(&instance.output()),
                _ => show(&instance.document(true)),
            });
        }
        Ok(self.started(&key))
    }

    /// How long a start waits for the end.
    fn wait(&self) -> Result<Option<Duration>, Refusal> {
        let Some(seconds) = self.parsed::<f64>("timeout")? else { return Ok(None) };
        let wait = Duration::try_from_secs_f64(seconds);
        let wrong = |_| {
            let why = format!("timeout is a number of seconds, not {seconds}");
            Refusal::new(StatusCode::BAD_REQUEST, why)
        };
        Ok(Some(wait.map_err(wrong)?.min(WAIT_MAX)).filter(|wait| !wait.is_zero()))
    }

    pub(super) async fn status(&self, key: &str) -> Answer {
        let instance = self.instance(key).await?;
        let mut document = instance.document(self.is_set("showInput", true));
        if self.is_set("showHistory", false) {
            document["historyEvents"] = self.history(&instance).await?.into();
        }
        Ok(self.answer_status(&instance, &document))
    }

    /// The history, which has to be as small as a page of a list.
    async fn history(&self, instance: &Instance) -> Result<Vec<Value>, Refusal> {
        let (mut turns, mut bytes, mut after) = (Vec::new(), 0, Some(0_u64));
        while let Some(from) = after {
            let argument = json!({ "after": from, "limit": HISTORY_PAGE }).to_string().into_bytes();
            let mut request = self.request(instance.id.clone(), "history", argument);
            request.reads_committed = true;
            let page = self.node.query(request).await?.map_err(refused)?;
            bytes += page.len();
            if bytes > PAGE_BYTES_MAX {
                let (of, key) = (instance.id.entity_type(), escaped(instance.id.key()));
                let why = format!(
                    "the history has more than {PAGE_BYTES_MAX} bytes: read it page by page at \
                     /v1/workflows/{of}/{key}/history"
                );
                return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
            }
            let mut page: Value = serde_json::from_slice(&page).map_err(unreadable)?;
            after = page["next"].as_u64();
            if let Some(page) = page["turns"].as_array_mut() {
                turns.append(page);
            }
        }
        Ok(events(instance, &turns, self.is_set("showHistoryOutput", false)))
    }

    pub(super) async fn raise_event(&self, key: &str, event: &str, body: Body) -> Answer {
        let instance = self.instance(key).await?;
        let payloads = meanings(self, body).await?;
        let name = Value::from(event);
        let raise = |payload: &[u8]| {
            let payload = if payload.is_empty() { b"null" } else { payload };
            let before = format!("{{\"name\":{name},\"payload\":");
            let argument = member(before.as_bytes(), payload);
            self.node.call(self.request(instance.id.clone(), "event", argument))
        };
        of_first(&payloads, raise).await?.map_err(refused)?;
        Ok(StatusCode::ACCEPTED.into_response())
    }

    /// Terminates, suspends, resumes, rewinds or restarts a workflow.
    pub(super) async fn control(&self, key: &str, operation: &str) -> Answer {
        let instance = self.instance(key).await?;
        let reason = json!({ "reason": self.text("reason").unwrap_or_default() });
        let (operation, argument) = match operation {
            "terminate" => ("terminate", reason),
            "suspend" => ("suspend", reason),
            "resume" => ("resume", Value::Null),
            "rewind" => {
                check_rewind(&instance)?;
                ("rewind", json!({}))
            }
            "restart" => return self.restart(&instance).await,
            other => {
                let why = format!("an instance has no operation {other:?}");
                return Err(Refusal::new(StatusCode::NOT_FOUND, why));
            }
        };
        let argument = if argument.is_null() { String::new() } else { argument.to_string() };
        let request = self.request(instance.id.clone(), operation, argument.into_bytes());
        self.node.call(request).await?.map_err(refused)?;
        Ok(StatusCode::ACCEPTED.into_response())
    }

    async fn restart(&self, instance: &Instance) -> Answer {
        let is_new = self.is_set("restartWithNewInstanceId", true);
        let key = match is_new {
            true => format!("{:032x}", Entropy::system().next_wide()),
            false => instance.id.key().to_owned(),
        };
        let argument = json!({ "key": key }).to_string().into_bytes();
        let request = self.request(instance.id.clone(), "restart", argument);
        self.node.call(request).await?.map_err(refused)?;
        let restarted = EntityId::new(instance.id.entity_type(), &key)?;
        until_started(&self.node, &restarted).await;
        Ok(self.started(&key))
    }

    /// Purges what has this id, of whatever type, where all of it has ended.
    pub(super) async fn purge(&self, key: &str) -> Answer {
        let instances = self.all_of(key).await?;
        if instances.iter().any(|instance| !instance.status.is_end()) {
            let why = format!("{key} goes on: terminate it first");
            return Err(Refusal::new(StatusCode::NOT_FOUND, why));
        }
        let mut count = 0_u64;
        for instance in instances {
            count += u64::from(self.purge_one(&instance).await?);
        }
        match count {
            0 => Err(Refusal::not_found(key)),
            count => Ok(show(&json!({ "instancesDeleted": count }))),
        }
    }

    /// Purges a workflow that has ended; says whether it has.
    pub(super) async fn purge_one(&self, instance: &Instance) -> Result<bool, Refusal> {
        if !instance.status.is_end() {
            return Ok(false);
        }
        let request = self.request(instance.id.clone(), "purge", b"{}".to_vec());
        Ok(self.node.call(request).await?.is_ok())
    }
}

/// An object whose last member is this value.
fn member(before: &[u8], value: &[u8]) -> Vec<u8> {
    [before, value, b"}"].concat()
}

/// The answer of the first of these values that fits what is asked.
pub(super) async fn of_first<F>(
    values: &[Vec<u8>],
    ask: impl Fn(&[u8]) -> F,
) -> Result<Reply, Error>
where
    F: Future<Output = Result<Reply, Error>>,
{
    let mut answer = ask(values.first().map_or(&[], |value| value)).await;
    for value in values.iter().skip(1) {
        if !answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Invalid) {
            break;
        }
        answer = ask(value).await;
    }
    answer
}

/// Says why one that has ended otherwise, or goes on, is not rewound.
fn check_rewind(instance: &Instance) -> Result<(), Refusal> {
    let why =
        format!("only failed instances are rewound: this one is {}", instance.runtime_status());
    match instance.status {
        Status::Failed => Ok(()),
        status if status.is_end() => Err(Refusal::new(StatusCode::GONE, why)),
        _ => Err(Refusal::new(StatusCode::PRECONDITION_FAILED, why)),
    }
}

fn goes_on(key: &str) -> Refusal {
    let why = format!("An instance with the id '{key}' goes on already.");
    Refusal::new(StatusCode::CONFLICT, why)
}

fn refused(no: Rejection) -> Refusal {
    match no.code() {
        Some("unknown_event") => Refusal::new(StatusCode::BAD_REQUEST, no.reason()),
        _ => workflows::refused(no).into(),
    }
}

fn unreadable(error: serde_json::Error) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("a document cannot be read: {error}"))
}
