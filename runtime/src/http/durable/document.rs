//! A workflow as the clients know it.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use serde_json::{Value, json};
use stead_entities::{EntityId, Failure, Timestamp, workflow::Status};

use super::{Call, Refusal, call::function_name};
use crate::http::routes::json_response;

/// After how many seconds a client asks again for one that goes on.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// A workflow that was found.
pub(super) struct Instance {
    pub(super) id: EntityId,
    pub(super) status: Status,
    view: Value,
}

impl Instance {
    /// Reads what a node shows; `None` before a start.
    pub(super) fn new(id: EntityId, shown: &[u8]) -> Option<Self> {
        let view: Value = serde_json::from_slice(shown).ok()?;
        let status = serde_json::from_value::<Option<Status>>(view["status"].clone()).ok()??;
        Some(Self { id, status, view })
    }

    /// The status, as the clients know it.
    pub(super) fn runtime_status(&self) -> &'static str {
        runtime_status(self.status)
    }

    /// The result, or why there is none.
    pub(super) fn output(&self) -> Value {
        let failure = self.view["failure"].clone();
        if failure.is_null() {
            return self.view["output"].clone();
        }
        match serde_json::from_value::<Failure>(failure) {
            Ok(Failure::Terminated(why) | Failure::Failed(why)) => why.into(),
            Ok(Failure::Rejected(no)) => no.reason().into(),
            Ok(other) => other.to_string().into(),
            Err(_) => Value::Null,
        }
    }

    /// The document. Input and output are there though they may be null: a client relies on it.
    pub(super) fn document(&self, shows_input: bool) -> Value {
        let input = if shows_input { self.view["input"].clone() } else { Value::Null };
        json!({
            "name": function_name(self.id.entity_type()),
            "instanceId": self.id.key(),
            "runtimeStatus": self.runtime_status(),
            "input": input,
            "customStatus": self.view["custom_status"],
            "output": self.output(),
            "createdTime": self.view["created_at"],
            "lastUpdatedTime": self.view["updated_at"],
        })
    }

    fn created_at(&self) -> Option<Timestamp> {
        self.view["created_at"].as_str()?.parse().ok()
    }
}

fn runtime_status(status: Status) -> &'static str {
    match status {
        Status::Pending => "Pending",
        Status::Running => "Running",
        Status::Suspended => "Suspended",
        Status::Completed => "Completed",
        Status::Failed => "Failed",
        Status::Terminated => "Terminated",
        Status::Cancelled => "Canceled",
    }
}

/// The status that the clients know by this word.
pub(super) fn status_of(word: &str) -> Option<Status> {
    let all = [
        Status::Pending,
        Status::Running,
        Status::Suspended,
        Status::Completed,
        Status::Failed,
        Status::Terminated,
        Status::Cancelled,
    ];
    all.into_iter().find(|status| runtime_status(*status).eq_ignore_ascii_case(word))
}

impl Call {
    /// The instance of an id, of whatever type: one that goes on before one that has ended, then the newest.
    pub(super) async fn find(&self, key: &str) -> Result<Option<Instance>, Refusal> {
        let rank = |it: &Instance| (!it.status.is_end(), it.created_at());
        Ok(self.all_of(key).await?.into_iter().max_by_key(rank))
    }

    /// The workflows that have this id, at most one of each type.
    pub(super) async fn all_of(&self, key: &str) -> Result<Vec<Instance>, Refusal> {
        let mut found = Vec::new();
        for name in self.types(true) {
            let Ok(id) = EntityId::new(name, key) else { continue };
            let Some(view) = self.node.committed_state_of(&id).await? else { continue };
            found.extend(Instance::new(id, &view.state));
        }
        Ok(found)
    }

    /// The same, where there is one.
    pub(super) async fn instance(&self, key: &str) -> Result<Instance, Refusal> {
        self.find(key).await?.ok_or_else(|| Refusal::not_found(key))
    }

    /// The answer of a status query.
    pub(super) fn answer_status(&self, instance: &Instance, document: &Value) -> Response {
        let body = document.to_string().into_bytes();
        if !instance.status.is_end() {
            let mut response = json_response(StatusCode::ACCEPTED, body);
            if let Ok(location) = HeaderValue::from_bytes(self.url.as_bytes()) {
                response.headers_mut().insert(header::LOCATION, location);
            }
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
            return response;
        }
        let is_error = instance.status == Status::Failed
            && self.is_set("returnInternalServerErrorOnFailure", false);
        let status = if is_error { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
        json_response(status, body)
    }
}
