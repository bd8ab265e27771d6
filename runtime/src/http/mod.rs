//! The HTTP surface: routes, bodies, problems. The home of axum.
//!
//! Every answer that is not a result is an RFC 9457 problem document with a stable `type`, also
//! where the router or an extractor refuses. Handlers only wait: a client that goes away cancels
//! nothing.

mod body;
mod changes;
mod connection;
mod durable;
mod extract;
mod headers;
mod host;
mod locks;
mod narrow;
mod path;
mod routes;
mod serve;
mod workflows;

pub use extract::EntityPath;
pub use narrow::Routes;
pub use serve::{Server, ServerSettings};

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{any, delete, get, post},
};

use crate::Node;

/// The caller's identity, as the application in front of the routes established it: it puts this into
/// the extensions of a request, and the turn sees it as
/// [`Context::caller`](stead_entities::Context::caller). The server of `stead serve` knows no callers
/// yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerIdentity(pub String);

impl Node {
    /// The HTTP surface of this node, for any axum application: nest it where it suits.
    pub fn router<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
        router(self)
    }

    /// A part of the HTTP surface of this node: some types, some keys, or what only reads.
    pub fn router_of<S: Clone + Send + Sync + 'static>(&self, routes: Routes) -> Router<S> {
        let shown = Arc::new(routes);
        router(self).layer(middleware::from_fn_with_state(shown, narrow::narrow))
    }
}

fn router<S: Clone + Send + Sync + 'static>(node: &Node) -> Router<S> {
    Router::new()
        .route("/v1/entities", get(routes::types))
        .route("/v1/entities/{type}", get(routes::list))
        .route("/v1/entities/{type}/{key}", get(routes::state).delete(routes::delete))
        .route("/v1/entities/{type}/{key}/signals/{operation}", post(routes::signal))
        .route("/v1/entities/{type}/{key}/calls/{operation}", post(routes::call))
        .route("/v1/entities/{type}/{key}/queries/{query}", get(routes::query))
        .route("/v1/entities/{type}/{key}/changes", get(changes::changes))
        .route("/v1/entities/{type}/changes", get(changes::type_changes).delete(routes::delete))
        .route("/v1/entities/{type}/{key}/lock", get(locks::lock).delete(locks::free))
        .route("/v1/entities/{type}/{key}/reminders", get(routes::reminders))
        .route("/v1/entities/{type}/{key}/reminders/{id}", delete(routes::cancel_reminder))
        .route("/v1/workflows", get(workflows::types))
        .route("/v1/workflows/{type}", get(workflows::list).post(workflows::change_many))
        .route(
            "/v1/workflows/{type}/changes",
            get(workflows::type_changes).post(workflows::start).delete(workflows::purge),
        )
        .route("/v1/workflows/{type}/{key}/changes", get(changes::changes))
        .route("/v1/workflows/{type}/{key}/signals/{operation}", post(routes::signal))
        .route("/v1/workflows/{type}/{key}/calls/{operation}", post(routes::call))
        .route("/v1/workflows/{type}/{key}/queries/{query}", get(routes::query))
        .route(
            "/v1/workflows/{type}/{key}",
            get(workflows::status).post(workflows::start).delete(workflows::purge),
        )
        .route("/v1/workflows/{type}/{key}/history", get(workflows::history))
        .route("/v1/workflows/{type}/{key}/events/{name}", post(workflows::event))
        .route("/v1/workflows/{type}/{key}/cancel", post(workflows::control))
        .route("/v1/workflows/{type}/{key}/terminate", post(workflows::control))
        .route("/v1/workflows/{type}/{key}/suspend", post(workflows::control))
        .route("/v1/workflows/{type}/{key}/resume", post(workflows::control))
        .route("/v1/workflows/{type}/{key}/retry", post(workflows::control))
        .route("/v1/workflows/{type}/{key}/rewind", post(workflows::control))
        .route("/v1/workflows/{type}/{key}/restart", post(workflows::control))
        .route("/v1/dead-letters", get(routes::dead_letters).delete(routes::drop_all))
        .route("/v1/dead-letters/replay", post(routes::replay_all))
        .route("/v1/unserved", get(routes::unserved))
        .route("/v1/upgrades/{type}", post(routes::upgrade))
        .route("/v1/dead-letters/{id}", delete(routes::drop_dead_letter))
        .route("/v1/dead-letters/{id}/replay", post(routes::replay))
        .route("/v1/placement/{type}/{key}", get(routes::placement))
        .route("/v1/cluster", get(routes::cluster))
        .route(durable::ROUTES, any(durable::serve))
        .route("/livez", get(routes::livez))
        .route("/readyz", get(routes::readyz))
        .fallback(routes::not_found)
        .method_not_allowed_fallback(routes::method_not_allowed)
        // Bodies are limited where they are read, so that the refusal is a problem document.
        .layer(DefaultBodyLimit::disable())
        .with_state(node.clone())
}
