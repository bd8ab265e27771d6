//! Errors and rejections as RFC 9457 problem documents, for routes of axum; with the feature `http`. One match
//! decides the status of each kind.
//!
//! `Error`, `Rejection`, `Failure` and `CallError` are answers of a handler as they are:
//! `Result<Json<i64>, CallError>` says the same as the routes of stead do.

use std::time::Duration;

use axum_core::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::{CallError, Error, ErrorKind, Failure, Rejection, input::InputError};

/// A problem document: the answer in place of a result.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    slug: &'static str,
    title: &'static str,
    detail: String,
    /// The code and the details of a rejection.
    rejection: Option<Box<Rejection>>,
    retry_after: Option<Duration>,
}

impl Problem {
    /// A problem whose type is `urn:stead:problem:` and the slug.
    pub fn new(
        status: StatusCode,
        slug: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self { status, slug, title, detail: detail.into(), rejection: None, retry_after: None }
    }

    /// A request that is to be mended.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", "Invalid request", detail)
    }

    /// The document.
    pub fn document(&self) -> serde_json::Value {
        let mut body = json!({
            "type": format!("urn:stead:problem:{}", self.slug),
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Some(rejection) = &self.rejection
            && let Some(members) = body.as_object_mut()
        {
            members.extend(rejection.code().map(|code| ("code".into(), code.into())));
            members.extend(rejection.details().map(|details| ("details".into(), details)));
        }
        body
    }
}

/// Status, slug and title of each kind of failure.
fn describe(kind: ErrorKind) -> (StatusCode, &'static str, &'static str) {
    use StatusCode as S;
    match kind {
        ErrorKind::Invalid => (S::BAD_REQUEST, "invalid", "Invalid request"),
        ErrorKind::NotFound => (S::NOT_FOUND, "not-found", "Not found"),
        ErrorKind::Overloaded => (S::TOO_MANY_REQUESTS, "overloaded", "Too many requests"),
        ErrorKind::Unavailable => {
            (S::SERVICE_UNAVAILABLE, "unavailable", "Service unavailable; nothing was applied")
        }
        ErrorKind::Full => (S::INSUFFICIENT_STORAGE, "full", "Insufficient storage"),
        ErrorKind::Deadline => (S::GATEWAY_TIMEOUT, "deadline", "Operation timed out"),
        ErrorKind::Unknown => {
            (S::GATEWAY_TIMEOUT, "unknown", "Outcome unknown; it may have been applied")
        }
        ErrorKind::Conflict => (S::CONFLICT, "conflict", "Idempotency key conflict"),
        ErrorKind::Precondition => (S::PRECONDITION_FAILED, "precondition", "Precondition failed"),
        ErrorKind::Later => (S::SERVICE_UNAVAILABLE, "later", "Not possible at the moment"),
        ErrorKind::Fenced => (S::SERVICE_UNAVAILABLE, "fenced", "Not the owner"),
        ErrorKind::Closed => (S::SERVICE_UNAVAILABLE, "closed", "Node is stopping"),
        ErrorKind::Corrupt => (S::INTERNAL_SERVER_ERROR, "corrupt", "Stored data is corrupt"),
        ErrorKind::Internal => (S::INTERNAL_SERVER_ERROR, "internal", "Internal error"),
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let (mut status, slug, title) = describe(error.kind());
        let source = std::error::Error::source(&error);
        let input = source.and_then(|s| s.downcast_ref::<InputError>());
        if input.is_some_and(|input| !input.malformed) {
            status = StatusCode::UNPROCESSABLE_ENTITY;
        }
        let retry_after = error.retry_after().map(|length| length.as_duration());
        Self { retry_after, ..Self::new(status, slug, title, error.message()) }
    }
}

/// The last part of the type of a kind's problem.
pub fn slug_of(kind: ErrorKind) -> &'static str {
    describe(kind).1
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Rejected(rejection) => rejection.into(),
            CallError::Failed(error) => error.into(),
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let internal = |message: String| Error::new(ErrorKind::Internal, message).into();
        match failure {
            Failure::Rejected(rejection) => rejection.into(),
            Failure::Failed(reason) => internal(reason),
            Failure::Conflict(reason) => Error::new(ErrorKind::Conflict, reason).into(),
            Failure::TooLarge(reason) => Error::new(ErrorKind::Invalid, reason).into(),
            Failure::Cancelled | Failure::Terminated(_) => internal(failure.to_string()),
            Failure::TimedOut => Error::new(ErrorKind::Unknown, failure.to_string()).into(),
            Failure::Retry { reason, after } => {
                let error = Error::new(ErrorKind::Later, reason);
                match after {
                    Some(after) => error.with_retry_after(after).into(),
                    None => error.into(),
                }
            }
        }
    }
}

macro_rules! answers {
    ($($error:ty),*) => {
        $(impl IntoResponse for $error {
            fn into_response(self) -> Response {
                Problem::from(self).into_response()
            }
        })*
    };
}
answers!(Error, Rejection, CallError, Failure);

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Self {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        let problem = Self::new(status, "rejected", "Rejected by the entity", rejection.reason());
        Self { rejection: Some(Box::new(rejection)), ..problem }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = self.document();
        let mut response = (self.status, body.to_string()).into_response();
        let headers = response.headers_mut();
        let problem = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, problem);
        if matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::INSUFFICIENT_STORAGE
        ) {
            let seconds = self.retry_after.map_or(1, |it| it.as_secs_f64().ceil() as u64);
            headers.insert(header::RETRY_AFTER, seconds.max(1).into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_status() {
        let rows = [
            (ErrorKind::Invalid, 400),
            (ErrorKind::NotFound, 404),
            (ErrorKind::Overloaded, 429),
            (ErrorKind::Unavailable, 503),
            (ErrorKind::Full, 507),
            (ErrorKind::Deadline, 504),
            (ErrorKind::Unknown, 504),
            (ErrorKind::Conflict, 409),
            (ErrorKind::Precondition, 412),
            (ErrorKind::Fenced, 503),
            (ErrorKind::Closed, 503),
            (ErrorKind::Corrupt, 500),
            (ErrorKind::Internal, 500),
            (ErrorKind::Later, 503),
        ];
        assert!(ErrorKind::ALL.iter().all(|kind| rows.iter().any(|(of, _)| of == kind)));
        for (kind, status) in rows {
            assert_eq!(Problem::from(Error::new(kind, "")).status.as_u16(), status, "{kind:?}");
        }
    }
}
