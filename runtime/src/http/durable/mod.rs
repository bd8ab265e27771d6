//! The HTTP API of Durable Functions, so that its published clients work unchanged with entities and workflows.
//!
//! What they send and accept was read from `azure-functions-durable` 1.7.0 (Python) and `durable-functions` 3.5.0
//! (npm), and from the public documentation of the API. Their names differ from ours: an orchestrator is a workflow type,
//! and an instance has an id without a type. So names are compared without regard to case and to `-` and `_`, and a
//! workflow type may end in `-workflow`; an instance is looked for among all workflow types.
//!
//! `call` is a request taken apart, `body` reads what arguments mean, `links` writes URLs, `instances`, `lists` and
//! `entities` are the routes, `document` and `events` show workflows as the clients know them. Every body is JSON, also that
//! of an error: clients parse it before they look at the status.

mod body;
mod call;
mod document;
mod entities;
mod events;
mod instances;
mod links;
mod lists;

use axum::{
    body::Body,
    extract::{OriginalUri, State},
    http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use stead_entities::{Error, problem::Problem};

use self::call::Call;
use super::routes::json_response;
use crate::Node;

/// The path under which the API is served.
pub(super) const PATH: &str = "/runtime/webhooks/durabletask";

/// All of its routes.
pub(super) const ROUTES: &str = "/runtime/webhooks/durabletask/{*rest}";

type Answer = Result<Response, Refusal>;

/// A refusal as the clients read it.
struct Refusal {
    status: StatusCode,
    message: String,
    retry_after: Option<HeaderValue>,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after: None }
    }

    fn not_found(id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no instance {id}"))
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        let message = problem.document()["detail"].as_str().unwrap_or_default().to_owned();
        let response = problem.into_response();
        let status = match response.status() {
            // The API has one word for all of these.
            StatusCode::UNPROCESSABLE_ENTITY | StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                StatusCode::BAD_REQUEST
            }
            status => status,
        };
        let retry_after = response.headers().get(header::RETRY_AFTER).cloned();
        Self { status, message, retry_after }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Problem::from(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, message, retry_after } = self;
        let body = match status {
            StatusCode::BAD_REQUEST => json!({
                "Message": message,
                "ExceptionMessage": message,
                "ExceptionType": "System.ArgumentException",
            }),
            _ => json!({ "Message": message }),
        };
        let mut response = json_response(status, body.to_string().into_bytes());
        response.headers_mut().extend(retry_after.map(|after| (header::RETRY_AFTER, after)));
        response
    }
}

pub(super) async fn serve(
    State(node): State<Node>,
    OriginalUri(uri): OriginalUri,
    method: Method,
    headers: HeaderMap,
    extensions: Extensions,
    body: Body,
) -> Response {
    let answer = match Call::new(node, &uri, headers, extensions) {
        Ok(call) => dispatch(&call, &method, body).await,
        Err(refusal) => Err(refusal),
    };
    answer.unwrap_or_else(Refusal::into_response)
}

/// Finds the route. The words of a path are compared without regard to case; ids, keys and names of events are not.
async fn dispatch(call: &Call, method: &Method, body: Body) -> Answer {
    let path: Vec<&str> = call.path.iter().map(String::as_str).collect();
    let kind = path.first().map(|kind| kind.to_ascii_lowercase()).unwrap_or_default();
    let operation = path.get(2).map(|word| word.to_ascii_lowercase()).unwrap_or_default();
    match (method.as_str(), kind.as_str(), path.get(1..).unwrap_or_default()) {
        ("GET", "client-binding", []) => Ok(call.binding()),
        ("POST", "orchestrators", [function]) => call.start(function, None, body).await,
        ("POST", "orchestrators", [function, id]) => call.start(function, Some(id), body).await,
        ("GET", "instances", []) => call.list_instances().await,
        ("DELETE", "instances", []) => call.purge_instances().await,
        ("GET", "instances", [id]) => call.status(id).await,
        ("DELETE", "instances", [id]) => call.purge(id).await,
        ("POST", "instances", [id, _, event]) if operation == "raiseevent" => {
            call.raise_event(id, event, body).await
        }
        ("POST", "instances", [id, _]) => call.control(id, &operation).await,
        ("GET", "entities", []) => call.list_entities(None).await,
        ("GET", "entities", [name]) => call.list_entities(Some(name)).await,
        ("GET", "entities", [name, key]) => call.read_entity(name, key).await,
        ("POST", "entities", [name, key]) => call.signal_entity(name, key, body).await,
        ("DELETE", "entities", [name, key]) => call.delete_entity(name, key).await,
        _ => Err(Refusal::new(StatusCode::NOT_FOUND, "the API has no such route")),
    }
}
