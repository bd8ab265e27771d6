//! The handlers, one function a route. The list of routes is in `http::mod`; what a handler reads or changes
//! is a typed method of [`Node`](crate::Node).

use std::{collections::HashMap, str::FromStr, sync::Arc};

use axum::{
    body::Body,
    extract::{Request as HttpRequest, State},
    http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json, value::RawValue};
use stead_entities::{
    Caller, Delay, EntityId, Error, ErrorKind, ReminderId, Request, Timeout, Timestamp,
    entity::EntityDescription, operation::Reply, problem::Problem,
};

use super::{
    CallerIdentity, Routes, body,
    headers::{self, IDEMPOTENCY_KEY, IF_MATCH, IF_NONE_MATCH},
    path, workflows,
};
use crate::{
    Deletion, Node, StateView, VersionsView,
    node::{COUNTED_MAX, PAGE_ROWS_MAX},
    store::{DeadLetterFilter, tables::dead_letters::DeadLetterId},
};

pub(super) type Answer = Result<Response, Problem>;

/// How many rows a page has unless the request says otherwise.
const PAGE: usize = 100;

pub(super) async fn signal(
    State(node): State<Node>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
    http_body: Body,
) -> Answer {
    let parameters = parameters(&uri, &["delay", "at"])?;
    let mut request = request(&node, &uri, &headers, &extensions, http_body).await?;
    request.delay = delay(&parameters)?;
    let Some(reminder) = node.signal(request).await?.reminder else {
        return Ok(StatusCode::ACCEPTED.into_response());
    };
    let id = reminder.to_string();
    let body = json!({ "reminder": id }).to_string().into_bytes();
    Ok(json_response(StatusCode::ACCEPTED, body))
}

pub(super) async fn call(
    State(node): State<Node>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
    http_body: Body,
) -> Answer {
    parameters(&uri, &[])?;
    let request = request(&node, &uri, &headers, &extensions, http_body).await?;
    result(node.call(request).await?)
}

pub(super) async fn query(
    State(node): State<Node>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
) -> Answer {
    headers::check(&headers, &[])?;
    let mut parameters = parameters(&uri, &["input", "read"])?;
    let reads_committed = reads_committed(&parameters)?;
    let (id, rest) = path::entity(&node, &uri)?;
    let input = parameters.remove("input").unwrap_or_default().into_bytes();
    let operation = rest.into_iter().nth(1).unwrap_or_default();
    let mut request = Request::new(id, operation, input);
    (request.caller, request.trace) = (caller_of(&extensions), headers::trace(&headers));
    request.reads_committed = reads_committed;
    result(node.query(request).await?)
}

/// Whether a read is of the last durable state, beside the entity's order.
fn reads_committed(parameters: &HashMap<String, String>) -> Result<bool, Problem> {
    match parameters.get("read").map(String::as_str) {
        None => Ok(false),
        Some("committed") => Ok(true),
        Some(other) => Err(Problem::invalid(format!(
            "read={other}: there is `committed`, the last durable state at once; without it a read comes in \
             the entity's order"
        ))),
    }
}

async fn request(
    node: &Node,
    uri: &Uri,
    headers: &HeaderMap,
    extensions: &Extensions,
    http_body: Body,
) -> Result<Request, Problem> {
    headers::check(headers, &[IF_MATCH, IDEMPOTENCY_KEY])?;
    let (id, rest) = path::entity(node, uri)?;
    let operation = rest.into_iter().nth(1).unwrap_or_default();
    let local = node.local();
    if local.host.is_open(local.host.partition_of(&id)) {
        local.find(&id, &operation)?;
    }
    let idempotency_key = headers::idempotency_key(headers)?;
    let condition = headers::if_match(headers)?;
    let input = read_body(node, headers, http_body).await?;
    if local.is_workflow(id.entity_type()) {
        workflows::check_shown((&id, &operation), &input, extensions)?;
    }
    let mut request = Request::new(id, operation, input);
    (request.idempotency_key, request.condition) = (idempotency_key, condition);
    (request.caller, request.trace) = (caller_of(extensions), headers::trace(headers));
    Ok(request)
}

pub(super) async fn read_body(
    node: &Node,
    headers: &HeaderMap,
    http_body: Body,
) -> Result<Vec<u8>, Problem> {
    let local = node.local();
    let limit = local.host.config().body_bytes_max;
    // Room is taken before the body is read, so that many bodies at one time are bounded too.
    let room = local.admit(body::length(headers, limit))?;
    let read = body::read(headers, http_body, limit).await?;
    drop(room);
    Ok(read)
}

pub(super) fn caller_of(extensions: &Extensions) -> Option<String> {
    extensions.get::<CallerIdentity>().map(|caller| caller.0.clone())
}

fn result(reply: Reply) -> Answer {
    let json = reply.map_err(Problem::from)?;
    Ok(json_response(StatusCode::OK, json))
}

pub(super) fn json_response(status: StatusCode, json: Vec<u8>) -> Response {
    let kind = HeaderValue::from_static("application/json");
    (status, [(header::CONTENT_TYPE, kind)], json).into_response()
}

pub(super) fn show(value: &Value) -> Response {
    json_response(StatusCode::OK, value.to_string().into_bytes())
}

pub(super) async fn state(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    let reads_committed = reads_committed(&parameters(&uri, &["read"])?)?;
    headers::check(&headers, &[IF_MATCH, IF_NONE_MATCH])?;
    let (id, _) = path::entity(&node, &uri)?;
    let view = match reads_committed {
        true => node.committed_state_of(&id).await?,
        false => node.state_of(&id).await?,
    };
    let version = view.as_ref().map(StateView::version);
    if let Some(condition) = headers::if_match(&headers)?
        && !condition.holds(version)
    {
        let message = format!("{id} is not at the version required");
        return Err(Error::new(ErrorKind::Precondition, message).into());
    }
    let view = view.ok_or_else(|| {
        Problem::from(Error::new(ErrorKind::NotFound, format!("{id} has no state yet")))
    })?;
    let tag = format!("\"{}\"", view.version());
    let is_known = headers::if_none_match(&headers, &tag);
    let tag = HeaderValue::from_str(&tag).map_err(|_| Problem::invalid("the tag"))?;
    if is_known {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let shown = Shown::new(&id, view).map_err(unreadable)?;
    let json = serde_json::to_vec(&shown).map_err(unreadable)?;
    let mut response = json_response(StatusCode::OK, json);
    response.headers_mut().insert(header::ETAG, tag);
    Ok(response)
}

/// A committed state.
#[derive(serde::Serialize)]
pub(super) struct Shown<'i> {
    #[serde(rename = "type")]
    entity_type: &'i str,
    key: &'i str,
    revision: u64,
    committed_at: Timestamp,
    state: Box<RawValue>,
}

impl<'i> Shown<'i> {
    pub(super) fn new(id: &'i EntityId, view: StateView) -> serde_json::Result<Self> {
        Ok(Self {
            entity_type: id.entity_type(),
            key: id.key(),
            revision: view.revision,
            committed_at: view.committed_at,
            // It is passed on as it is.
            state: serde_json::from_slice(&view.state)?,
        })
    }
}

fn unreadable(error: serde_json::Error) -> Problem {
    let message = format!("stored JSON cannot be read: {error}");
    Error::new(ErrorKind::Internal, message).into()
}

pub(super) async fn delete(
    State(node): State<Node>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
) -> Answer {
    parameters(&uri, &[])?;
    headers::check(&headers, &[IF_MATCH, IDEMPOTENCY_KEY])?;
    let (id, _) = path::entity(&node, &uri)?;
    let (key, condition) = (headers::idempotency_key(&headers)?, headers::if_match(&headers)?);
    let mut deletion = Deletion::new(id);
    (deletion.idempotency_key, deletion.condition) = (key, condition);
    deletion.caller = caller_of(&extensions);
    node.delete_with(deletion).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn reminders(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    let parameters = plain_parameters(&uri, &headers, &["after", "limit"])?;
    let (id, _) = path::entity(&node, &uri)?;
    let after = parameters.get("after").map(|after| reminder_id(after)).transpose()?;
    let page = node.reminders(&id, after.as_ref(), limit(&parameters)?).await?;
    Ok(show(&json!({ "reminders": page.rows, "next": page.next })))
}

pub(super) async fn cancel_reminder(
    State(node): State<Node>,
    uri: Uri,
    headers: HeaderMap,
) -> Answer {
    plain_parameters(&uri, &headers, &[])?;
    let (id, rest) = path::entity(&node, &uri)?;
    let reminder = reminder_id(&rest.into_iter().nth(1).unwrap_or_default())?;
    node.cancel_reminder(id, reminder).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn reminder_id(text: &str) -> Result<ReminderId, Problem> {
    text.parse().map_err(|error: Error| Problem::invalid(error.message()))
}

pub(super) async fn types(
    State(node): State<Node>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
) -> Answer {
    let parameters = plain_parameters(&uri, &headers, &["count"])?;
    let max = match parameters.get("count").map(String::as_str) {
        None => COUNTED_MAX,
        Some("all") => usize::MAX,
        Some("none") => 0,
        Some(other) => {
            return Err(Problem::invalid(format!("count is all or none, not {other:?}")));
        }
    };
    let mut types = node.descriptions();
    types.retain(|description| !node.local().is_workflow(description.name));
    let routes = extensions.get::<Arc<Routes>>();
    if let Some(routes) = routes {
        types.retain(|description| routes.shows_type(description.name));
    }
    let mut shown = Vec::with_capacity(types.len());
    // A part of the node does not have all of it read.
    let max = if routes.is_some() { max.min(COUNTED_MAX) } else { max };
    let counts = max > 0 && routes.is_none_or(|routes| routes.shows_all_keys());
    for description in types {
        // What a type is does not depend on the store; what is stored of it does.
        let states = match counts {
            true => node.versions_of(description.name, max).await.ok(),
            false => None,
        };
        shown.push(Described { description, states });
    }
    Ok(show(&json!({ "types": shown })))
}

/// A type in words, and how many states are stored of it; `null` where they are not counted: the store
/// cannot be read at present, a part of the keys is shown, or nobody wants to know.
#[derive(serde::Serialize)]
struct Described {
    #[serde(flatten)]
    description: EntityDescription,
    states: Option<VersionsView>,
}

pub(super) async fn upgrade(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    let parameters = plain_parameters(&uri, &headers, &["after", "limit"])?;
    let entity_type = path::segments(&uri)?.into_iter().nth(1).unwrap_or_default();
    let after = parameters.get("after").map(String::as_str);
    Ok(show(&json!(node.upgrade_page(&entity_type, after, limit(&parameters)?).await?)))
}

/// The parameters of a list of entities.
const LIST: [&str; 7] = ["prefix", "after", "limit", "where", "order", "select", "count"];

pub(super) async fn list(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    let parameters = plain_parameters(&uri, &headers, &LIST)?;
    let segments = path::segments(&uri)?;
    let entity_type = segments.into_iter().nth(1).unwrap_or_default();
    let text = |name| parameters.get(name).map(String::as_str);
    let (prefix, limit) = (text("prefix").unwrap_or_default(), limit(&parameters)?);
    if !finds(&parameters) {
        if let Some(name) = ["select", "count"].into_iter().find(|name| text(name).is_some()) {
            let rule = format!("`{name}` is for what an index finds: give `where` or `order`");
            return Err(Problem::invalid(rule));
        }
        let page = node.list_of(&entity_type, prefix, text("after"), limit).await?;
        return Ok(show(&json!({ "entities": page.rows, "next": page.next })));
    }
    let mut search = node.find_of(entity_type).prefix(prefix).limit(limit);
    if let Some(filters) = text("where") {
        search = search.matching(filters);
    }
    if let Some(order) = text("order") {
        search = match order.strip_prefix('-') {
            Some(index) => search.order_by_name(index).descending(),
            None => search.order_by_name(order),
        };
    }
    if let Some(after) = text("after") {
        search = search.after(after);
    }
    match (text("count"), text("select")) {
        (None, None) => {
            let page = search.page().await?;
            Ok(show(&json!({ "entities": page.rows, "next": page.next })))
        }
        (None, Some(fields)) => {
            let page = search.select(&fields.split(',').collect::<Vec<_>>()).await?;
            Ok(show(&json!({ "entities": page.rows, "next": page.next })))
        }
        (Some("only"), None) => Ok(show(&json!({ "count": search.count().await? }))),
        (Some("only"), Some(_)) => Err(Problem::invalid("give either `count` or `select`")),
        (Some(other), _) => Err(Problem::invalid(format!("count is only, not {other:?}"))),
    }
}

/// The parameters that say which dead letters are meant.
const FILTER: [&str; 4] = ["type", "entity", "operation", "cause"];

pub(super) async fn dead_letters(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    let known: Vec<_> = FILTER.into_iter().chain(["after", "limit"]).collect();
    let parameters = plain_parameters(&uri, &headers, &known)?;
    let after = parameters.get("after").map(String::as_str);
    let page = node.dead_letters(&filter(&parameters)?, after, limit(&parameters)?).await?;
    let dropped = node.dropped_dead_letters();
    Ok(show(&json!({ "dead_letters": page.rows, "next": page.next, "dropped": dropped })))
}

pub(super) async fn replay_all(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    let filter = meant(&uri, &headers)?;
    Ok(show(&json!(node.replay_all(&filter).await?)))
}

pub(super) async fn drop_all(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    let filter = meant(&uri, &headers)?;
    Ok(show(&json!(node.drop_all(&filter).await?)))
}

/// Which dead letters are to be replayed or dropped: never all of them by mistake.
fn meant(uri: &Uri, headers: &HeaderMap) -> Result<DeadLetterFilter, Problem> {
    let known: Vec<_> = FILTER.into_iter().chain(["all"]).collect();
    let parameters = parameters(uri, &known)?;
    headers::check(headers, &[])?;
    let is_all = match parameters.get("all").map(String::as_str) {
        None => false,
        Some("true") => true,
        Some(other) => return Err(Problem::invalid(format!("all is true, not {other:?}"))),
    };
    if is_all == parameters.keys().any(|name| name != "all") {
        let rule =
            "say which dead letters are meant: by type, entity, operation or cause, or all=true";
        return Err(Problem::invalid(rule));
    }
    filter(&parameters)
}

fn filter(parameters: &HashMap<String, String>) -> Result<DeadLetterFilter, Problem> {
    let cause = parameters.get("cause").map(|text| {
        serde_json::from_value(Value::String(text.clone())).map_err(|_| {
            let rule = "a cause is failure, rejection, undecodable or deleted";
            Problem::invalid(format!("{rule}, not {text:?}"))
        })
    });
    Ok(DeadLetterFilter {
        entity_type: parameters.get("type").cloned(),
        entity: parameters.get("entity").cloned(),
        operation: parameters.get("operation").cloned(),
        cause: cause.transpose()?,
    })
}

pub(super) async fn replay(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    plain_parameters(&uri, &headers, &[])?;
    node.replay(letter_of(&uri)?).await?;
    Ok(StatusCode::ACCEPTED.into_response())
}

pub(super) async fn drop_dead_letter(
    State(node): State<Node>,
    uri: Uri,
    headers: HeaderMap,
) -> Answer {
    plain_parameters(&uri, &headers, &[])?;
    node.drop_dead_letter(letter_of(&uri)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn letter_of(uri: &Uri) -> Result<DeadLetterId, Problem> {
    let text = path::segments(uri)?.into_iter().nth(1).unwrap_or_default();
    text.parse().map_err(|error: Error| Problem::invalid(error.message()))
}

pub(super) async fn unserved(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    plain_parameters(&uri, &headers, &[])?;
    Ok(show(&json!({ "unserved": node.unserved().await? })))
}

pub(super) async fn placement(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    plain_parameters(&uri, &headers, &[])?;
    let (id, _) = path::entity(&node, &uri)?;
    Ok(show(&json!(node.placement(&id).await)))
}

pub(super) async fn cluster(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    plain_parameters(&uri, &headers, &[])?;
    Ok(show(&json!(node.cluster_view().await)))
}

pub(super) async fn livez() -> &'static str {
    "alive\n"
}

pub(super) async fn readyz(State(node): State<Node>) -> Answer {
    match node.ready().await {
        Ok(()) => {
            let notes = node.notes().into_iter().map(|note| format!("note: {note}\n"));
            Ok(format!("ready\n{}", notes.collect::<String>()).into_response())
        }
        Err(why) => Err(Error::new(ErrorKind::Unavailable, why).into()),
    }
}

pub(super) async fn not_found(State(node): State<Node>, request: HttpRequest) -> Problem {
    // A path of an entity that no route takes has a bad key, which says more than "not found".
    let path = request.uri().path();
    if ["/v1/entities/", "/v1/workflows/"].iter().any(|known| path.starts_with(known))
        && let Err(problem) = path::entity(&node, request.uri())
    {
        return problem;
    }
    let detail = format!("there is no {}; GET /v1/entities lists the types", request.uri().path());
    Error::new(ErrorKind::NotFound, detail).into()
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let detail = format!("{method} is not for {}", uri.path());
    let (status, title) = (StatusCode::METHOD_NOT_ALLOWED, "Method not allowed");
    Problem::new(status, "method", title, detail)
}

/// The query parameters of a request that no header gives another meaning.
pub(super) fn plain_parameters(
    uri: &Uri,
    headers: &HeaderMap,
    known: &[&str],
) -> Result<HashMap<String, String>, Problem> {
    let found = parameters(uri, known)?;
    headers::check(headers, &[])?;
    Ok(found)
}

/// The prefix of keys that a list asks for, and whether it is to be found by an index.
pub(super) fn listed(uri: &Uri) -> Result<(String, bool), Problem> {
    let mut parameters = parameters(uri, &LIST)?;
    let finds = finds(&parameters);
    Ok((parameters.remove("prefix").unwrap_or_default(), finds))
}

/// Whether what is listed is found by an index.
fn finds(parameters: &HashMap<String, String>) -> bool {
    ["where", "order"].into_iter().any(|name| parameters.contains_key(name))
}

/// The query parameters, each known and given once.
pub(super) fn parameters(uri: &Uri, known: &[&str]) -> Result<HashMap<String, String>, Problem> {
    if uri.query().is_none() {
        return Ok(HashMap::new());
    }
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

pub(super) fn limit(parameters: &HashMap<String, String>) -> Result<usize, Problem> {
    let Some(text) = parameters.get("limit") else {
        return Ok(PAGE);
    };
    let limit = usize::from_str(text).ok().filter(|limit| (1..=PAGE_ROWS_MAX).contains(limit));
    limit.ok_or_else(|| Problem::invalid(format!("limit is 1 to {PAGE_ROWS_MAX}, not {text:?}")))
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
