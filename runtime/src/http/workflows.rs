//! Workflows over HTTP: starting and waiting, events, and what operators ask for.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{Extensions, HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json, value::RawValue};
use stead_entities::{
    Caller as _, EntityId, Error, ErrorKind, Rejection, Request, Timeout, problem::Problem,
    workflow::WorkflowCaller as _,
};

use super::{
    Routes, changes,
    headers::{self, IDEMPOTENCY_KEY},
    path,
    routes::{
        Answer, caller_of, json_response, limit, parameters, plain_parameters, read_body, show,
    },
};
use crate::{
    Node,
    escape::escaped,
    node::{EntityView, Find, WorkflowChange, workflows::until_started},
};

/// The longest wait for the end of a workflow; who waits longer asks again.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// The header in which a client says how long it waits.
const PREFER: HeaderName = HeaderName::from_static("prefer");
/// After how long a client should ask again whether a workflow has ended.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// Starts a workflow; waits for its result as long as `Prefer: wait` says.
pub(super) async fn start(
    State(node): State<Node>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
    http_body: Body,
) -> Answer {
    headers::check(&headers, &[IDEMPOTENCY_KEY])?;
    let given = parameters(&uri, &["policy", "deadline"])?;
    let (id, _) = path::entity(&node, &uri)?;
    let wait = preferred_wait(&headers)?;
    let input = read_body(&node, &headers, http_body).await?;
    let mut options = serde_json::Map::new();
    if let Some(policy) = given.get("policy") {
        options.insert("policy".into(), policy.as_str().into());
    }
    if let Some(deadline) = given.get("deadline") {
        let length =
            deadline.parse::<Timeout>().map_err(|error| Problem::invalid(error.message()))?;
        options.insert("deadline".into(), json!(length));
    }
    let argument = with_input("input", &input, options)?;
    let request = request(id.clone(), "start", argument, (&headers, &extensions))?;
    let started = node.call(request).await?.map_err(refused)?;
    let outcome = match wait {
        Some(wait) => node.outcome(id.clone(), wait).await?,
        None => None,
    };
    match outcome {
        Some(outcome) => ended(&outcome),
        None => Ok(accepted(&id, started)),
    }
}

/// The request of an operation of an instance, with its idempotency key, who asks, and the trace.
fn request(
    id: EntityId,
    operation: impl Into<Cow<'static, str>>,
    argument: Vec<u8>,
    (headers, extensions): (&HeaderMap, &Extensions),
) -> Result<Request, Problem> {
    let mut request = Request::new(id, operation, argument);
    request.idempotency_key = headers::idempotency_key(headers)?;
    (request.caller, request.trace) = (caller_of(extensions), headers::trace(headers));
    Ok(request)
}

/// The answer of what goes on: where to ask for its end.
fn accepted(id: &EntityId, body: Vec<u8>) -> Response {
    let mut response = json_response(StatusCode::ACCEPTED, body);
    let location = format!("/v1/workflows/{}/{}", id.entity_type(), escaped(id.key()));
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    response
}

/// The result of a workflow that has ended, or the problem that it ended with.
fn ended(outcome: &[u8]) -> Answer {
    let answer = serde_json::from_slice::<stead_entities::Answer<Box<RawValue>>>(outcome);
    match answer.map_err(|error| {
        Error::new(ErrorKind::Internal, "an outcome that cannot be read").with_source(error)
    })? {
        Ok(result) => Ok(json_response(StatusCode::OK, result.get().as_bytes().to_vec())),
        Err(failure) => Err(failure.into()),
    }
}

/// The status of a workflow; `?wait=30s` waits for its end.
pub(super) async fn status(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    let given = plain_parameters(&uri, &headers, &["wait"])?;
    let (id, _) = path::entity(&node, &uri)?;
    if let Some(wait) = given.get("wait") {
        node.outcome(id.clone(), wait_of(wait)?).await?;
    }
    let view = node.committed_state_of(&id).await?.ok_or_else(|| unknown(&id))?;
    let shown = shown(&id, &view.state)?;
    Ok(json_response(StatusCode::OK, shown))
}

fn unknown(id: &EntityId) -> Problem {
    Error::new(ErrorKind::NotFound, format!("{id} was not started, or was purged")).into()
}

/// A status with the id before it.
fn shown(id: &EntityId, status: &[u8]) -> Result<Vec<u8>, Problem> {
    let mut members = members(status)?;
    if members.get("status").is_none_or(Value::is_null) {
        return Err(unknown(id));
    }
    members.insert("type".into(), id.entity_type().into());
    members.insert("key".into(), id.key().into());
    serde_json::to_vec(&members).map_err(unreadable)
}

/// The members of a status.
fn members(status: &[u8]) -> Result<serde_json::Map<String, Value>, Problem> {
    serde_json::from_slice(status).map_err(unreadable)
}

fn unreadable(error: serde_json::Error) -> Problem {
    Error::new(ErrorKind::Internal, format!("a status cannot be read: {error}")).into()
}

/// A page of the history.
pub(super) async fn history(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    let given = plain_parameters(&uri, &headers, &["after", "limit"])?;
    let (id, _) = path::entity(&node, &uri)?;
    let after = given.get("after").map_or(Ok(0), |after| after.parse::<u64>());
    let after = after.map_err(|_| Problem::invalid("after is the `next` of the page before"))?;
    let argument = json!({ "after": after, "limit": limit(&given)? });
    let mut request = Request::new(id, "history", argument.to_string().into_bytes());
    request.reads_committed = true;
    let page = node.query(request).await?.map_err(refused)?;
    Ok(json_response(StatusCode::OK, page))
}

/// Raises an event.
pub(super) async fn event(
    State(node): State<Node>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
    http_body: Body,
) -> Answer {
    headers::check(&headers, &[IDEMPOTENCY_KEY])?;
    parameters(&uri, &[])?;
    let (id, rest) = path::entity(&node, &uri)?;
    let payload = read_body(&node, &headers, http_body).await?;
    let name = rest.into_iter().nth(1).unwrap_or_default();
    let options = serde_json::Map::from_iter([("name".to_owned(), Value::from(name))]);
    let argument = with_input("payload", &payload, options)?;
    let request = request(id, "event", argument, (&headers, &extensions))?;
    node.call(request).await?.map_err(refused)?;
    Ok(StatusCode::ACCEPTED.into_response())
}

/// Takes the request of an operator: cancel, terminate, suspend, resume, retry, rewind, restart.
pub(super) async fn control(
    State(node): State<Node>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
    http_body: Body,
) -> Answer {
    headers::check(&headers, &[IDEMPOTENCY_KEY])?;
    let given = parameters(&uri, &["reason", "key", "place"])?;
    let (id, rest) = path::entity(&node, &uri)?;
    let operation = rest.into_iter().next().unwrap_or_default();
    let argument = match operation.as_str() {
        "cancel" | "resume" | "retry" => Vec::new(),
        "terminate" | "suspend" => {
            json!({ "reason": given.get("reason").cloned().unwrap_or_default() })
                .to_string()
                .into_bytes()
        }
        "rewind" => json!({ "place": given.get("place") }).to_string().into_bytes(),
        _ => json!({ "key": given.get("key") }).to_string().into_bytes(),
    };
    let body = read_body(&node, &headers, http_body).await?;
    let argument = if body.is_empty() { argument } else { body };
    let restarted = check_shown((&id, &operation), &argument, &extensions)?;
    let request = request(id, operation, argument, (&headers, &extensions))?;
    let answer = node.call(request).await?.map_err(refused)?;
    if let Some(restarted) = restarted {
        until_started(&node, &restarted).await;
    }
    Ok(json_response(StatusCode::ACCEPTED, answer))
}

/// The other workflow as which an operation starts one anew, if it does.
///
/// # Errors
/// 404 where its key is not shown here, 400 for what cannot be read.
pub(super) fn check_shown(
    (id, operation): (&EntityId, &str),
    argument: &[u8],
    extensions: &Extensions,
) -> Result<Option<EntityId>, Problem> {
    if operation != "restart" {
        return Ok(None);
    }
    #[derive(serde::Deserialize)]
    struct Argument {
        key: Option<String>,
    }
    let argument: Argument = serde_json::from_slice(argument)
        .map_err(|error| Problem::invalid(format!("{{\"key\": ...}} is expected: {error}")))?;
    let Some(key) = argument.key.filter(|key| key != id.key()) else { return Ok(None) };
    let routes = extensions.get::<Arc<Routes>>();
    if routes.is_some_and(|routes| !routes.shows_key(&key)) {
        let why = format!("there is no {}/{key} here", id.entity_type());
        return Err(Error::new(ErrorKind::NotFound, why).into());
    }
    let other = EntityId::new(id.entity_type(), &key);
    other.map(Some).map_err(|error| Problem::invalid(error.message()))
}

/// Deletes a workflow that has ended, with everything of it; `?recursive=true` its children too.
pub(super) async fn purge(
    State(node): State<Node>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
) -> Answer {
    headers::check(&headers, &[IDEMPOTENCY_KEY])?;
    let given = parameters(&uri, &["recursive"])?;
    let (id, _) = path::entity(&node, &uri)?;
    let argument = json!({ "recursive": flag(&given, "recursive")? }).to_string().into_bytes();
    let request = request(id, "purge", argument, (&headers, &extensions))?;
    node.call(request).await?.map_err(refused)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The workflow types.
pub(super) async fn types(
    State(node): State<Node>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
) -> Answer {
    plain_parameters(&uri, &headers, &[])?;
    let routes = extensions.get::<Arc<Routes>>();
    let mut types = node.workflow_descriptions();
    types.retain(|it| routes.is_none_or(|routes| routes.shows_type(it.name)));
    Ok(show(&json!({ "types": types })))
}

/// The parameters of a list.
const LIST: [&str; 7] = ["status", "stuck", "version", "created", "prefix", "after", "limit"];
/// The parameters of a list that are filters, each of the index of its name.
const FILTERS: [&str; 4] = ["status", "stuck", "version", "created"];
/// The members of a status that a list shows.
const LISTED: [&str; 12] = [
    "status",
    "stuck",
    "suspended",
    "run",
    "version",
    "created_at",
    "updated_at",
    "failure",
    "locks",
    "waits_for",
    "outstanding",
    "waiting_events",
];

/// The parameters of an operation for many.
const BULK: [&str; 4] = ["operation", "reason", "recursive", "all"];

/// The prefix of keys that a list, or an operation for many, asks for, and whether they are to be found by an index.
pub(super) fn listed(uri: &Uri) -> Result<(String, bool), Problem> {
    let mut given = parameters(uri, &[&LIST[..], &BULK].concat())?;
    let finds = FILTERS.iter().any(|name| given.contains_key(*name));
    let finds = finds || given.contains_key("operation");
    Ok((given.remove("prefix").unwrap_or_default(), finds))
}

/// A workflow as a list shows it.
#[derive(serde::Serialize)]
struct Row {
    #[serde(flatten)]
    entity: EntityView,
    #[serde(flatten)]
    status: serde_json::Map<String, Value>,
}

/// The workflows of a type: by key, or as an index finds them.
pub(super) async fn list(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    let given = plain_parameters(&uri, &headers, &LIST)?;
    let name = path::workflow_type(&node, &uri)?;
    let page = match filters(&given).is_empty() {
        true => {
            let prefix = given.get("prefix").map(String::as_str).unwrap_or_default();
            let after = given.get("after").map(String::as_str);
            node.states_of(&name, prefix, after, limit(&given)?).await?
        }
        false => search(&node, &name, &given)?.read_states().await?,
    };
    let rows = page.rows.into_iter().map(|(entity, view)| {
        let mut status = members(&view.state)?;
        status.retain(|name, _| LISTED.contains(&name.as_str()));
        Ok(Row { entity, status })
    });
    let rows = rows.collect::<Result<Vec<_>, Problem>>()?;
    Ok(show(&json!({ "workflows": rows, "next": page.next })))
}

/// The filters that are given, by their indexes.
fn filters(given: &HashMap<String, String>) -> String {
    let filters = FILTERS.into_iter().filter_map(|name| {
        let value = given.get(name)?;
        Some(format!("{name}:{value}"))
    });
    filters.collect::<Vec<_>>().join(",")
}

/// The search by what is given, the oldest first where it has no filter.
fn search(node: &Node, name: &str, given: &HashMap<String, String>) -> Result<Find<()>, Problem> {
    let (filters, prefix) = (filters(given), given.get("prefix").cloned().unwrap_or_default());
    let search = node.find_of(name).prefix(prefix).limit(limit(given)?);
    let search = match filters.is_empty() {
        true => search.order_by_name("created"),
        false => search.matching(&filters),
    };
    Ok(match given.get("after") {
        Some(after) => search.after(after),
        None => search,
    })
}

/// Has every workflow of a page that fits a filter do what an operator asks for.
pub(super) async fn change_many(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    headers::check(&headers, &[])?;
    let given = parameters(&uri, &[&LIST[..], &BULK].concat())?;
    let name = path::workflow_type(&node, &uri)?;
    let is_all = flag(&given, "all")?;
    if is_all != (filters(&given).is_empty() && !given.contains_key("prefix")) {
        let rule = "say which workflows are meant: by status, stuck, version, created or prefix, or all=true";
        return Err(Problem::invalid(rule));
    }
    let reason = given.get("reason").cloned().unwrap_or_default();
    let operation = given.get("operation").map(String::as_str).unwrap_or_default();
    let change = match operation {
        "cancel" => WorkflowChange::Cancel,
        "terminate" => WorkflowChange::Terminate(reason),
        "suspend" => WorkflowChange::Suspend(reason),
        "resume" => WorkflowChange::Resume,
        "retry" => WorkflowChange::Retry,
        "rewind" => WorkflowChange::Rewind,
        "restart" => WorkflowChange::Restart,
        "purge" => WorkflowChange::Purge { recursive: flag(&given, "recursive")? },
        other => {
            let rule =
                "operation is cancel, terminate, suspend, resume, retry, rewind, restart or purge";
            return Err(Problem::invalid(format!("{rule}, not {other:?}")));
        }
    };
    Ok(show(&json!(search(&node, &name, &given)?.change(&change).await?)))
}

/// A parameter that is true or false, and false where it is not given.
fn flag(given: &HashMap<String, String>, name: &str) -> Result<bool, Problem> {
    match given.get(name).map(String::as_str) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(Problem::invalid(format!("{name} is true or false, not {other:?}"))),
    }
}

/// The changes of a type; of one that keeps none, the status of the workflow of this key.
pub(super) async fn type_changes(
    State(node): State<Node>,
    shown: Option<Extension<Arc<Routes>>>,
    uri: Uri,
    headers: HeaderMap,
) -> Answer {
    let name = path::segments(&uri)?.into_iter().nth(1).unwrap_or_default();
    if !node.keeps_changes(&name) {
        return status(State(node), uri, headers).await;
    }
    path::workflow_type(&node, &uri)?;
    changes::type_changes(State(node), shown, uri, headers).await
}

/// An object with the body of a request as one of its members.
fn with_input(
    name: &str,
    body: &[u8],
    mut options: serde_json::Map<String, Value>,
) -> Result<Vec<u8>, Problem> {
    let body = if body.trim_ascii().is_empty() { b"null" } else { body };
    let value: &RawValue = serde_json::from_slice(body)
        .map_err(|error| Problem::invalid(format!("the body is no JSON: {error}")))?;
    options.remove(name);
    let options = Value::Object(options).to_string();
    let mut json = options.strip_suffix('}').unwrap_or("{").to_owned();
    if json.len() > 1 {
        json.push(',');
    }
    json.push_str(&format!("\"{name}\":{}}}", value.get()));
    Ok(json.into_bytes())
}

/// Why an instance has refused something, as a problem document.
pub(super) fn refused(rejection: Rejection) -> Problem {
    let of = |kind| Problem::from(Error::new(kind, rejection.reason()));
    match rejection.code() {
        Some("unknown" | "unknown_event") => of(ErrorKind::NotFound),
        Some("too_many_events") => of(ErrorKind::Overloaded),
        Some("ended") => {
            Problem::new(StatusCode::GONE, "ended", "The workflow has ended", rejection.reason())
        }
        Some("conflict") => Problem::new(
            StatusCode::CONFLICT,
            "workflow-conflict",
            "The workflow is not in a state for this",
            rejection.reason(),
        ),
        _ => rejection.into(),
    }
}

/// How long `Prefer: wait=5` waits. Other preferences are passed over, as RFC 7240 has it.
fn preferred_wait(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    for value in headers.get_all(PREFER) {
        let text = value.to_str().unwrap_or_default();
        for preference in text.split(',').map(str::trim) {
            if let Some(seconds) = preference.strip_prefix("wait=") {
                return wait_of(seconds.trim_matches('"')).map(Some);
            }
        }
    }
    Ok(None)
}

/// A wait in seconds, with or without their unit, at most [`WAIT_MAX`].
fn wait_of(text: &str) -> Result<Duration, Problem> {
    let seconds = text.strip_suffix('s').unwrap_or(text).parse::<u64>();
    let wait = seconds.map(Duration::from_secs);
    let wrong =
        || Problem::invalid(format!("a wait is a number of seconds such as 30s, not {text:?}"));
    wait.map(|wait| wait.min(WAIT_MAX)).map_err(|_| wrong())
}
