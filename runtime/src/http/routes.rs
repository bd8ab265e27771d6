//! One function a route.

use std::{collections::HashMap, str::FromStr};

use axum::{
    body::Body,
    extract::{Request as HttpRequest, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json, value::RawValue};
use stead_entities::{
    Caller, Delay, Error, ErrorKind, Request, Timeout, Timestamp, operation::Reply,
};

use super::{body, path, problem::Problem};
use crate::{
    Node,
    store::record::{DeadLetterId, Slot, StoredSchedule},
};

type Answer = Result<Response, Problem>;

/// How many rows a page has unless the request says otherwise, and at most.
const PAGE: usize = 100;
const PAGE_MAX: usize = 1_000;

pub(super) async fn signal(
    State(node): State<Node>,
    uri: Uri,
    headers: HeaderMap,
    http_body: Body,
) -> Answer {
    let parameters = parameters(&uri, &["delay", "at"])?;
    let mut request = request(&node, &uri, &headers, http_body).await?;
    request.delay = delay(&parameters)?;
    node.signal(request).await?;
    Ok(StatusCode::ACCEPTED.into_response())
}

pub(super) async fn call(
    State(node): State<Node>,
    uri: Uri,
    headers: HeaderMap,
    http_body: Body,
) -> Answer {
    parameters(&uri, &[])?;
    let request = request(&node, &uri, &headers, http_body).await?;
    result(node.call(request).await?)
}

pub(super) async fn query(State(node): State<Node>, uri: Uri) -> Answer {
    let mut parameters = parameters(&uri, &["input"])?;
    let (id, rest) = path::entity(&node, &uri)?;
    let input = parameters.remove("input").unwrap_or_default().into_bytes();
    let operation = rest.into_iter().nth(1).unwrap_or_default().into();
    let request =
        Request { id, operation, input, delay: None, idempotency_key: None, deadline: None };
    result(node.query(request).await?)
}

async fn request(
    node: &Node,
    uri: &Uri,
    headers: &HeaderMap,
    http_body: Body,
) -> Result<Request, Problem> {
    let (id, rest) = path::entity(node, uri)?;
    let operation = rest.into_iter().nth(1).unwrap_or_default();
    if node.is_open(node.partition_of(&id)) {
        node.find(&id, &operation)?;
    }
    let idempotency_key = idempotency_key(headers)?;
    let limit = node.config().body_bytes_max;
    // Room is taken before the body is read, so that many bodies at one time are bounded too.
    let room = node.load().admit(body::length(headers, limit), node.config());
    let room =
        room.ok_or_else(|| Error::new(ErrorKind::Overloaded, "too many bodies at a time"))?;
    let input = body::read(headers, http_body, limit).await?;
    drop(room);
    let operation = operation.into();
    Ok(Request { id, operation, input, delay: None, idempotency_key, deadline: None })
}

/// The idempotency key, which may be quoted, as the IETF's draft has it.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut given = headers.get_all("idempotency-key").iter();
    let Some(key) = given.next() else { return Ok(None) };
    if given.next().is_some() {
        return Err(Problem::invalid("Idempotency-Key is given twice"));
    }
    let key = str::from_utf8(key.as_bytes());
    let key = key.map_err(|_| Problem::invalid("Idempotency-Key is not UTF-8"))?;
    let bare = key.strip_prefix('"').and_then(|key| key.strip_suffix('"'));
    Ok(Some(bare.unwrap_or(key).to_owned()))
}

fn result(reply: Reply) -> Answer {
    let json = reply.map_err(Problem::from)?;
    Ok(json_response(StatusCode::OK, json))
}

fn json_response(status: StatusCode, json: Vec<u8>) -> Response {
    let kind = HeaderValue::from_static("application/json");
    (status, [(header::CONTENT_TYPE, kind)], json).into_response()
}

fn show(value: &Value) -> Response {
    json_response(StatusCode::OK, value.to_string().into_bytes())
}

pub(super) async fn state(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    parameters(&uri, &[])?;
    let (id, _) = path::entity(&node, &uri)?;
    let view = node.state(&id).await?.ok_or_else(|| {
        Problem::from(Error::new(ErrorKind::NotFound, format!("{id} has no state yet")))
    })?;
    let tag = format!("\"{:x}-{}\"", view.generation, view.revision);
    let known = headers.get_all(header::IF_NONE_MATCH).iter();
    let tags = known.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
    // A weak comparison, as RFC 9110 has it for If-None-Match.
    let tags = tags.map(|known| known.trim().trim_start_matches("W/"));
    let is_known = tags.into_iter().any(|known| known == "*" || known == tag);
    let tag = HeaderValue::from_str(&tag).map_err(|_| Problem::invalid("the tag"))?;
    if is_known {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let shown = Shown {
        entity_type: id.entity_type(),
        key: id.key(),
        revision: view.revision,
        committed_at: view.committed_at,
        state: raw(view.state)?,
    };
    let json = serde_json::to_vec(&shown).map_err(unreadable)?;
    let mut response = json_response(StatusCode::OK, json);
    response.headers_mut().insert(header::ETAG, tag);
    Ok(response)
}

/// A committed state.
#[derive(serde::Serialize)]
struct Shown<'i> {
    #[serde(rename = "type")]
    entity_type: &'i str,
    key: &'i str,
    revision: u64,
    committed_at: Timestamp,
    state: Box<RawValue>,
}

/// JSON that is passed on as it is.
fn raw(json: Vec<u8>) -> Result<Box<RawValue>, Problem> {
    serde_json::from_slice(&json).map_err(unreadable)
}

fn unreadable(error: serde_json::Error) -> Problem {
    let message = format!("stored JSON cannot be read: {error}");
    Error::new(ErrorKind::Internal, message).into()
}

pub(super) async fn delete(State(node): State<Node>, uri: Uri) -> Answer {
    parameters(&uri, &[])?;
    let (id, _) = path::entity(&node, &uri)?;
    node.delete(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn reminders(State(node): State<Node>, uri: Uri) -> Answer {
    parameters(&uri, &[])?;
    let (id, _) = path::entity(&node, &uri)?;
    let rows = node.reminders(&id).await?.into_iter().map(|(_, slot, record)| {
        let (name, is_signal) = match slot {
            Slot::Named(name) => (Some(name.to_string()), false),
            Slot::Delayed(_) => (None, true),
        };
        let every = match record.schedule {
            Some(StoredSchedule::Every(micros)) => Some(Timeout::from_micros(micros)),
            Some(StoredSchedule::Once) | None => None,
        };
        json!({
            "name": name,
            "is_delayed_signal": is_signal,
            "due": record.due,
            "every": every,
            "operation": record.operation,
            "attempts": record.attempts,
        })
    });
    Ok(show(&json!({ "reminders": rows.collect::<Vec<_>>() })))
}

pub(super) async fn types(State(node): State<Node>, uri: Uri) -> Answer {
    parameters(&uri, &[])?;
    Ok(show(&json!({ "types": node.descriptions() })))
}

pub(super) async fn list(State(node): State<Node>, uri: Uri) -> Answer {
    let parameters = parameters(&uri, &["prefix", "after", "limit"])?;
    let segments = path::segments(&uri)?;
    let entity_type = segments.into_iter().nth(1).unwrap_or_default();
    node.check_served(&entity_type)?;
    let limit = limit(&parameters)?;
    let prefix = parameters.get("prefix").cloned().unwrap_or_default();
    let after = parameters.get("after").cloned();
    let page = node.store().list(entity_type, prefix, after, limit).await;
    let page = page.map_err(Error::from)?;
    let next = page.rows.last().filter(|_| !page.is_end).map(|(id, _)| id.key().to_owned());
    let entities: Vec<_> = page
        .rows
        .iter()
        .map(|(id, record)| {
            json!({
                "type": id.entity_type(),
                "key": id.key(),
                "revision": record.revision,
                "committed_at": record.committed_at,
            })
        })
        .collect();
    Ok(show(&json!({ "entities": entities, "next": next })))
}

pub(super) async fn dead_letters(State(node): State<Node>, uri: Uri) -> Answer {
    let parameters = parameters(&uri, &["after", "limit"])?;
    let limit = limit(&parameters)?;
    let after = parameters.get("after").map(|text| letter(text)).transpose()?;
    let page = node.store().dead_letters(after, limit).await;
    let page = page.map_err(Error::from)?;
    let next = page.rows.last().filter(|_| !page.is_end).map(|(id, _)| id.to_string());
    let letters = page.rows.into_iter().map(|(id, letter)| {
        let input = match serde_json::from_slice::<Box<RawValue>>(&letter.input) {
            Ok(input) => serde_json::from_str(input.get()).unwrap_or(Value::Null),
            Err(_) => Value::String(String::from_utf8_lossy(&letter.input).into_owned()),
        };
        json!({
            "id": id.to_string(),
            "entity": letter.entity,
            "sender": letter.sender,
            "operation": letter.operation,
            "input": input,
            "cause": letter.cause,
            "reason": letter.reason,
            "attempts": letter.attempts,
            "accepted_at": letter.accepted_at,
            "buried_at": letter.buried_at,
        })
    });
    Ok(show(&json!({ "dead_letters": letters.collect::<Vec<_>>(), "next": next })))
}

pub(super) async fn replay(State(node): State<Node>, uri: Uri) -> Answer {
    node.replay(letter_of(&uri)?).await?;
    Ok(StatusCode::ACCEPTED.into_response())
}

pub(super) async fn drop_dead_letter(State(node): State<Node>, uri: Uri) -> Answer {
    node.drop_dead_letter(letter_of(&uri)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn letter_of(uri: &Uri) -> Result<DeadLetterId, Problem> {
    letter(&path::segments(uri)?.into_iter().nth(1).unwrap_or_default())
}

fn letter(text: &str) -> Result<DeadLetterId, Problem> {
    let parts: Vec<_> = text.split('-').collect();
    let parsed = match parts[..] {
        [partition, class @ ("f" | "r"), number] => {
            partition.parse().ok().zip(number.parse().ok()).map(|(partition, number)| {
                DeadLetterId { partition, is_rejection: class == "r", number }
            })
        }
        _ => None,
    };
    parsed.ok_or_else(|| Problem::invalid(format!("{text:?} is not the id of a dead letter")))
}

pub(super) async fn placement(State(node): State<Node>, uri: Uri) -> Answer {
    parameters(&uri, &[])?;
    let (id, _) = path::entity(&node, &uri)?;
    Ok(show(&json!(node.placement(&id).await)))
}

pub(super) async fn cluster(State(node): State<Node>, uri: Uri) -> Answer {
    parameters(&uri, &[])?;
    Ok(show(&json!(node.cluster_view().await)))
}

pub(super) async fn livez() -> &'static str {
    "alive\n"
}

pub(super) async fn readyz(State(node): State<Node>) -> Answer {
    match node.ready().await {
        Ok(()) => Ok("ready\n".into_response()),
        Err(why) => Err(Error::new(ErrorKind::Unavailable, why).into()),
    }
}

pub(super) async fn not_found(State(node): State<Node>, request: HttpRequest) -> Problem {
    // A path of an entity that no route takes has a bad key, which says more than "not found".
    if request.uri().path().starts_with("/v1/entities/")
        && let Err(problem) = path::entity(&node, request.uri())
    {
        return problem;
    }
    let detail = format!("there is no {}; GET /v1/entities lists the types", request.uri().path());
    Error::new(ErrorKind::NotFound, detail).into()
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let detail = format!("{method} is not for {}", uri.path());
    let (status, title) = (StatusCode::METHOD_NOT_ALLOWED, "Another method is meant");
    Problem::new(status, "method", title, detail)
}

/// The query parameters, each known and given once.
fn parameters(uri: &Uri, known: &[&str]) -> Result<HashMap<String, String>, Problem> {
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
    let pairs = pairs.map_err(|error| Problem::invalid(error.body_text()))?.0;
    let mut found = HashMap::new();
    for (name, value) in pairs {
        if !known.contains(&name.as_str()) {
            let names = if known.is_empty() { "none".into() } else { known.join(", ") };
            return Err(Problem::invalid(format!("unknown parameter {name}; known: {names}")));
        }
        if found.insert(name.clone(), value).is_some() {
            return Err(Problem::invalid(format!("the parameter {name} is given twice")));
        }
    }
    Ok(found)
}

fn limit(parameters: &HashMap<String, String>) -> Result<usize, Problem> {
    let Some(text) = parameters.get("limit") else {
        return Ok(PAGE);
    };
    let limit = usize::from_str(text).ok().filter(|limit| (1..=PAGE_MAX).contains(limit));
    limit.ok_or_else(|| Problem::invalid(format!("limit is 1 to {PAGE_MAX}, not {text:?}")))
}

fn delay(parameters: &HashMap<String, String>) -> Result<Option<Delay>, Problem> {
    let wrong = |error: Error| Problem::invalid(error.message());
    match (parameters.get("delay"), parameters.get("at")) {
        (None, None) => Ok(None),
        (Some(length), None) => Ok(Some(Delay::After(length.parse::<Timeout>().map_err(wrong)?))),
        (None, Some(moment)) => Ok(Some(Delay::At(moment.parse::<Timestamp>().map_err(wrong)?))),
        (Some(_), Some(_)) => Err(Problem::invalid("give either delay or at")),
    }
}
