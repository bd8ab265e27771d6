//! Locks of entities over HTTP: who has one, and its end by hand.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{Extensions, HeaderMap, StatusCode, Uri},
    response::IntoResponse as _,
};
use serde_json::json;
use stead_entities::{EntityId, Error, ErrorKind};

use super::{
    Routes, headers, path,
    routes::{Answer, parameters, plain_parameters, show},
};
use crate::Node;

/// The workflow that has locked an entity, and since when.
pub(super) async fn lock(
    State(node): State<Node>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
) -> Answer {
    plain_parameters(&uri, &headers, &[])?;
    let (id, _) = path::entity(&node, &uri)?;
    let lock = node.lock_of(&id).await?.ok_or_else(|| {
        let why = format!("{id} is not locked");
        Error::new(ErrorKind::NotFound, why)
    })?;
    let routes = extensions.get::<Arc<Routes>>();
    let is_shown = routes.is_none_or(|routes| {
        EntityId::parse(&lock.holder)
            .is_ok_and(|of| routes.shows_type(of.entity_type()) && routes.shows_key(of.key()))
    });
    let holder = is_shown.then_some(lock.holder);
    Ok(show(&json!({ "holder": holder, "since": lock.since })))
}

/// Ends the lock of an entity; with `?holder=` that of this workflow alone.
pub(super) async fn free(State(node): State<Node>, uri: Uri, headers: HeaderMap) -> Answer {
    headers::check(&headers, &[])?;
    let given = parameters(&uri, &["holder"])?;
    let (id, _) = path::entity(&node, &uri)?;
    node.free_lock(&id, given.get("holder").map(String::as_str)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
