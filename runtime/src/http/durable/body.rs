//! The meanings of a body. The Python client sends JSON inside of a JSON text, the one of JavaScript an empty text where
//! there is no input, and both nothing at all with some content type.

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};

use super::{Call, Refusal};
use crate::http::{body::media_type, routes::read_body};

/// The values that a body may mean, as JSON: the first one that fits is meant. No bytes stand for no value.
pub(super) async fn meanings(call: &Call, body: Body) -> Result<Vec<Vec<u8>>, Refusal> {
    let mut headers = call.headers.clone();
    headers.remove(header::CONTENT_TYPE);
    let text = read_body(&call.node, &headers, body).await?;
    if text.trim_ascii().is_empty() {
        return Ok(vec![Vec::new()]);
    }
    if !is_json(&call.headers) {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "a body is application/json"));
    }
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, format!("the body is no JSON: {error}"))
    })?;
    let inner = value.as_str().map(|inner| inner.trim().as_bytes().to_vec());
    let inner = inner.filter(|inner| {
        inner.is_empty() || serde_json::from_slice::<serde::de::IgnoredAny>(inner).is_ok()
    });
    Ok(std::iter::once(text).chain(inner).collect())
}

fn is_json(headers: &HeaderMap) -> bool {
    media_type(headers).is_none_or(|kind| {
        kind == "application/json" || kind == "text/json" || kind.ends_with("+json")
    })
}
