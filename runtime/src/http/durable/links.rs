//! The URLs that clients are told.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use serde_json::{Value, json};

use super::Call;
use crate::{
    escape::escaped,
    http::routes::{json_response, show},
};

/// The parameters that every link has: clients pass them on.
const PARAMETERS: &str = "taskHub=stead&connection=Storage";
/// The place of the id of an instance in the links of a binding.
const INSTANCE: &str = "INSTANCEID";
/// After how many seconds a client asks again for one that it has started.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("10");

impl Call {
    /// The document by which a client is pointed here.
    pub(super) fn binding(&self) -> Response {
        let base = &self.base;
        let create = format!("{base}/orchestrators/{{functionName}}[/{{instanceId}}]?{PARAMETERS}");
        let wait = "timeout={timeoutInSeconds}&pollingInterval={intervalInSeconds}";
        let mut manage = self.links(INSTANCE);
        manage["id"] = INSTANCE.into();
        show(&json!({
            "taskHubName": "stead",
            "creationUrls": {
                "createNewInstancePostUri": create,
                "createAndWaitOnNewInstancePostUri": format!("{create}&{wait}"),
            },
            "managementUrls": manage,
            "baseUrl": base,
            "requiredQueryStringParameters": PARAMETERS,
            "rpcBaseUrl": format!("{base}/"),
        }))
    }

    /// The links of an instance, with its id.
    pub(super) fn links(&self, id: &str) -> Value {
        let url = format!("{}/instances/{}", self.base, escaped(id));
        let of = |operation: &str| format!("{url}/{operation}{PARAMETERS}");
        json!({
            "id": id,
            "statusQueryGetUri": format!("{url}?{PARAMETERS}"),
            "sendEventPostUri": of("raiseEvent/{eventName}?"),
            "terminatePostUri": of("terminate?reason={text}&"),
            "rewindPostUri": of("rewind?reason={text}&"),
            "purgeHistoryDeleteUri": format!("{url}?{PARAMETERS}"),
            "restartPostUri": of("restart?"),
            "suspendPostUri": of("suspend?reason={text}&"),
            "resumePostUri": of("resume?reason={text}&"),
        })
    }

    /// The answer of a start.
    pub(super) fn started(&self, id: &str) -> Response {
        let links = self.links(id);
        let location = links["statusQueryGetUri"].as_str().unwrap_or_default();
        let location = HeaderValue::from_bytes(location.as_bytes());
        let mut response = json_response(StatusCode::ACCEPTED, links.to_string().into_bytes());
        if let Ok(location) = location {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        response
    }
}
