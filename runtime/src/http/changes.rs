//! Changes as server-sent events.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::State,
    http::{HeaderMap, Uri},
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::{Stream, StreamExt as _};
use serde_json::json;
use stead_entities::{EntityId, Error, ErrorKind, problem::Problem};

use super::{
    Routes, headers, path,
    routes::{self, Answer, Shown, parameters},
};
use crate::{Change, ChangeEvent, Node, StateView, TypeChange, TypeChangeEvent};

/// How long a stream is silent before it says that it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The header in which a client says what it has seen.
const LAST_EVENT_ID: &str = "last-event-id";

pub(super) async fn changes(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    let parameters = parameters(&uri, &["after"])?;
    headers::check(&headers, &[])?;
    let (id, _) = path::entity(&node, &uri)?;
    let changes = node.changes_of(&id, after(&headers, &parameters))?;
    Ok(answer(changes, move |event| told(&id, event)))
}

/// The changes of a type; of one that keeps none, the state of the entity of this key.
pub(super) async fn type_changes(
    State(node): State<Node>,
    shown: Option<Extension<Arc<Routes>>>,
    uri: Uri,
    headers: HeaderMap,
) -> Answer {
    let segments = path::segments(&uri)?;
    let name = segments.get(1).map(String::as_str).unwrap_or_default();
    if !node.keeps_changes(name) {
        return routes::state(State(node), uri, headers).await;
    }
    let parameters = parameters(&uri, &["where", "prefix", "after"])?;
    headers::check(&headers, &[])?;
    let prefix = parameters.get("prefix").map(String::as_str).unwrap_or_default();
    if let Some(Extension(shown)) = shown {
        shown.check_prefix(prefix)?;
    }
    let mut search = node.find_of(name).prefix(prefix);
    if let Some(filters) = parameters.get("where") {
        search = search.matching(filters);
    }
    let changes = search.change_views(after(&headers, &parameters)).await?;
    let name = name.to_owned();
    Ok(answer(changes, move |event| told_of_type(&name, event)))
}

/// The position behind which a client goes on.
fn after<'r>(headers: &'r HeaderMap, parameters: &'r HashMap<String, String>) -> Option<&'r str> {
    let last = headers.get(LAST_EVENT_ID).map(|last| last.to_str().unwrap_or_default());
    last.or(parameters.get("after").map(String::as_str))
}

/// Events as a response. Behind an error it ends.
fn answer<E>(
    events: impl Stream<Item = Result<E, Error>> + Send + 'static,
    told: impl Fn(E) -> Result<Event, Error> + Send + 'static,
) -> Response {
    let events =
        events.map(move |event| Ok::<_, Infallible>(event.and_then(&told).unwrap_or_else(failed)));
    let alive = KeepAlive::new().interval(KEEP_ALIVE);
    Sse::new(events).keep_alive(alive).into_response()
}

/// An event of an entity as it is told.
fn told(id: &EntityId, event: ChangeEvent<StateView>) -> Result<Event, Error> {
    let ChangeEvent { position, change } = event;
    let (kind, data) = match change {
        Change::State(view) => ("state", state(id, view)?),
        Change::Deleted => ("deleted", name(id)),
        Change::Gap => ("gap", name(id)),
    };
    Ok(at(position, kind, data))
}

/// An event of a type as it is told.
fn told_of_type(
    entity_type: &str,
    TypeChangeEvent { position, change }: TypeChangeEvent<StateView>,
) -> Result<Event, Error> {
    let id = |key: String| EntityId::new(entity_type, &key);
    let of_type = || json!({ "type": entity_type }).to_string();
    let (kind, data) = match change {
        TypeChange::State { key, state: view } => ("state", state(&id(key)?, view)?),
        TypeChange::Left { key } => ("left", name(&id(key)?)),
        TypeChange::Deleted { key } => ("deleted", name(&id(key)?)),
        TypeChange::Gap => ("gap", of_type()),
        TypeChange::CaughtUp => ("caught-up", of_type()),
    };
    Ok(at(position, kind, data))
}

fn name(id: &EntityId) -> String {
    json!({ "type": id.entity_type(), "key": id.key() }).to_string()
}

fn state(id: &EntityId, view: StateView) -> Result<String, Error> {
    let unreadable = |error| Error::new(ErrorKind::Internal, format!("no JSON: {error}"));
    let shown = Shown::new(id, view).map_err(unreadable)?;
    serde_json::to_string(&shown).map_err(unreadable)
}

/// An event with the position behind it, which a client sends to go on.
fn at(position: Option<String>, kind: &str, data: String) -> Event {
    let event = Event::default().event(kind).data(data);
    match position {
        Some(position) => event.id(position),
        None => event,
    }
}

/// The event of an error, behind which the stream ends.
fn failed(error: Error) -> Event {
    Event::default().event("error").data(Problem::from(error).document().to_string())
}
