//! Request bodies: limited in size, JSON unless they say otherwise.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::clock;
use stead_entities::problem::Problem;

/// How long a body may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// How many bytes the body will have, or may have where it does not say.
pub(super) fn length(headers: &HeaderMap, limit: usize) -> usize {
    announced(headers).unwrap_or(limit).min(limit)
}

fn announced(headers: &HeaderMap) -> Option<usize> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return None;
    }
    let text = headers.get(header::CONTENT_LENGTH).map_or(Some("0"), |text| text.to_str().ok());
    text?.parse().ok()
}

/// The type of the body, in lower case, without its parameters.
pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().unwrap_or_default();
    Some(kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// 413 over the limit, 415 for another type than JSON, 408 for one that does not arrive, 400 for one
/// that breaks off.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<Vec<u8>, Problem> {
    if let Some(kind) = media_type(headers)
        && kind != "application/json"
        && !(kind.starts_with("application/") && kind.ends_with("+json"))
    {
        let detail = format!("a body is application/json, not {kind}");
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(Problem::new(status, "media-type", "Unsupported media type", detail));
    }
    if headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let detail = "a body is sent without a Content-Encoding";
        return Err(Problem::new(status, "media-type", "Unsupported content encoding", detail));
    }
    if announced(headers).is_some_and(|length| length > limit) {
        return Err(too_large(limit));
    }
    let reading = clock::within(BODY_DEADLINE, Limited::new(body, limit).collect());
    match reading.await {
        Some(Ok(read)) => Ok(read.to_bytes().to_vec()),
        Some(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(limit)),
        Some(Err(_)) => Err(Problem::invalid("the body broke off")),
        None => {
            let (status, title) = (StatusCode::REQUEST_TIMEOUT, "The body did not arrive");
            let detail = format!("a body arrives within {BODY_DEADLINE:?}");
            Err(Problem::new(status, "body-timeout", title, detail))
        }
    }
}

fn too_large(limit: usize) -> Problem {
    let detail = format!("a body has at most {limit} bytes");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Payload too large", detail)
}
