//! Changes as server-sent events.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, Uri},
    response::{
        IntoResponse as _,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::{Stream, StreamExt as _};
use serde_json::json;
use stead_entities::{EntityId, Error, ErrorKind, problem::Problem};

use super::{
    headers, path,
    routes::{Answer, Shown, parameters},
};
use crate::{Change, ChangeEvent, Changes, Node, StateView};

/// How long a stream is silent before it says that it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The header in which a client says what it has seen.
const LAST_EVENT_ID: &str = "last-event-id";

pub(super) async fn changes(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    let parameters = parameters(&uri, &["after"])?;
    headers::check(&headers, &[])?;
    let (id, _) = path::entity(&node, &uri)?;
    let last = headers.get(LAST_EVENT_ID).map(|last| last.to_str().unwrap_or_default());
    let after = last.or(parameters.get("after").map(String::as_str));
    let changes = node.changes_of(&id, after)?;
    let alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(events(id, changes)).keep_alive(alive).into_response())
}

fn events(
    id: EntityId,
    changes: Changes<StateView>,
) -> impl Stream<Item = Result<Event, Infallible>> {
    changes.map(move |event| Ok(event.and_then(|event| told(&id, event)).unwrap_or_else(failed)))
}

/// An event as it is told.
fn told(id: &EntityId, event: ChangeEvent<StateView>) -> Result<Event, Error> {
    let ChangeEvent { position, change } = event;
    let name = json!({ "type": id.entity_type(), "key": id.key() });
    let (kind, data) = match change {
        Change::State(view) => {
            let unreadable = |error| Error::new(ErrorKind::Internal, format!("no JSON: {error}"));
            let shown = Shown::new(id, view).map_err(unreadable)?;
            ("state", serde_json::to_string(&shown).map_err(unreadable)?)
        }
        Change::Deleted => ("deleted", name.to_string()),
        Change::Gap => ("gap", name.to_string()),
    };
    let event = Event::default().event(kind).data(data);
    Ok(match position {
        Some(position) => event.id(position),
        None => event,
    })
}

/// The event of an error, behind which the stream ends.
fn failed(error: Error) -> Event {
    Event::default().event("error").data(Problem::from(error).document().to_string())
}
