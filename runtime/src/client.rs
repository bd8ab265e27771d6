//! References bound to a URL: requests as HTTP, and problem documents as errors again.
//!
//! What must never happen: an operation is sent again that may have been applied, unless it has an
//! idempotency key; or an outcome that is not known is told as a failure. So only a connection that
//! could not be made, and an answer that says so, mean "not applied".
//!
//! The home of reqwest.

#[cfg(feature = "server")]
mod show;
mod workflows;

#[cfg(feature = "server")]
pub(crate) use self::show::Ask;
pub use self::workflows::WorkflowClient;

use std::time::{Duration, Instant};

use reqwest::{
    Method, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, IF_MATCH, RETRY_AFTER},
};
use stead_entities::{
    Accepted, BoxFuture, Caller, Condition, Delay, EntityId, Error, ErrorKind, Reference,
    Rejection, ReminderId, Request, TypedReference, operation::Reply,
};

use crate::{
    clock::{self, deadline_after, monotonic},
    errors::in_doubt,
    escape::escaped,
};

/// How long an operation is waited for, retries included, where it does not say: longer than a
/// server waits, so that its own answer arrives.
const DEADLINE: Duration = Duration::from_secs(35);
/// How long a connection may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection is kept idle: shorter than servers and load balancers keep one (60 s or more),
/// so that a request does not meet a connection that the other side closes at the same time.
const IDLE_CONNECTION: Duration = Duration::from_secs(50);
/// The wait before the first retry; it doubles up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(2);
/// The longest URL, in bytes: what a server reads of a head, with room for the rest of it. The
/// argument of a query is a part of it.
const URL_BYTES_MAX: usize = 8 << 10;
/// The longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 17 << 20;

/// The entities behind a URL, such as `http://127.0.0.1:8080`. Cheap to clone; clones share their
/// connections.
///
/// An operation is tried again, until its deadline (35 s unless it says otherwise), where nothing of
/// it can have been applied, or where it has an idempotency key; then the answer is the one of the
/// first try that was applied. The deadline is this side's: the server keeps its own, and what was
/// sent is not withdrawn when it passes. Dropping a future cancels nothing that was accepted.
///
/// The argument of a query travels in the URL, which has at most 8 KiB.
///
/// URLs are `http://`: encryption is left to what stands before the server.
///
/// ```no_run
/// # use stead::{Client, stock::Counter};
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::new("http://127.0.0.1:8080")?;
/// let visits = client.entity::<Counter>("visits");
/// let total = visits.add(5).idempotency_key("visit-17").await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    base: Url,
    http: reqwest::Client,
}

impl Client {
    /// The entities behind `url`: the address of a server, with the path under which a router is
    /// nested, if it is.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for what is no `http://` URL.
    pub fn new(url: &str) -> Result<Self, Error> {
        let base = url.parse::<Url>().map_err(|error| wrong_url(url, &error.to_string()))?;
        if base.scheme() != "http" || base.query().is_some() || base.fragment().is_some() {
            return Err(wrong_url(url, "it is http://HOST:PORT, with a path or without"));
        }
        let http = reqwest::Client::builder().connect_timeout(CONNECT_DEADLINE).tcp_nodelay(true);
        let http = http.pool_idle_timeout(IDLE_CONNECTION);
        // Another address than the one that was given may be nobody's to trust.
        let http = http.redirect(reqwest::redirect::Policy::none()).no_proxy().build();
        let http = http.map_err(|error| {
            Error::new(ErrorKind::Internal, "no HTTP client can be made").with_source(error)
        })?;
        Ok(Self { base, http })
    }

    /// A typed reference to an entity behind this URL.
    pub fn entity<E: TypedReference>(&self, key: impl AsRef<str>) -> E::Reference<Self> {
        E::reference(Reference::new(E::NAME, key.as_ref()).bind(self.clone()))
    }

    /// The URL of a path, each part of which is escaped.
    fn url(&self, path: &[&str]) -> Url {
        let escaped = path.iter().map(|part| escaped(part));
        let path = escaped.collect::<Vec<_>>().join("/");
        let mut url = self.base.clone();
        url.set_path(&format!("{}/{path}", self.base.path().trim_end_matches('/')));
        url
    }

    /// Sends a request to one of the `entities`, or `workflows`.
    fn send(
        &self,
        among: &'static str,
        kind: &'static str,
        request: Request,
    ) -> BoxFuture<'static, Answered> {
        let client = self.clone();
        Box::pin(async move {
            let prepared = client.prepare(among, kind, &request)?;
            let deadline = request.deadline.map_or(DEADLINE, |deadline| deadline.as_duration());
            let is_safe = kind == QUERIES || request.idempotency_key.is_some();
            client.until_answered(&prepared, Timeout::new(deadline, is_safe)).await
        })
    }

    /// Sends a request until it is answered, or another try could do harm or would come too late.
    async fn until_answered(&self, prepared: &Prepared, mut timeout: Timeout) -> Answered {
        loop {
            match self.once(prepared, timeout.left()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => clock::sleep(timeout.pause_after(error)?).await,
            }
        }
    }

    fn prepare(&self, among: &str, kind: &str, request: &Request) -> Result<Prepared, Error> {
        let (id, is_query) = (&request.id, kind == QUERIES);
        if matches!(&*request.operation, "" | "." | "..") {
            return Err(Error::new(ErrorKind::Invalid, "an operation has a name"));
        }
        let (entity_type, key) = (id.entity_type(), id.key());
        let mut url = self.url(&["v1", among, entity_type, key, kind, &request.operation]);
        let query = match &request.delay {
            _ if is_query && !request.input.is_empty() => {
                let input = str::from_utf8(&request.input);
                let input = input.map_err(|_| Error::new(ErrorKind::Invalid, "not UTF-8"))?;
                Some(format!("input={}", escaped(input)))
            }
            Some(Delay::After(length)) => Some(format!("delay={}", escaped(&length.to_string()))),
            Some(Delay::At(moment)) => Some(format!("at={}", escaped(&moment.to_string()))),
            None => None,
        };
        let query = match (query, request.reads_committed && is_query) {
            (Some(query), true) => Some(format!("{query}&{READ_COMMITTED}")),
            (None, true) => Some(READ_COMMITTED.to_owned()),
            (query, false) => query,
        };
        url.set_query(query.as_deref());
        if url.as_str().len() > URL_BYTES_MAX {
            let rule = format!("key and argument of a query fill a URL of {URL_BYTES_MAX} bytes");
            return Err(Error::new(ErrorKind::Invalid, rule));
        }
        let mut headers = HeaderMap::new();
        if !is_query {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        }
        if let Some(key) = &request.idempotency_key {
            // Quoted, as the IETF's draft has it, so that quotes within a key stay its own.
            let value = HeaderValue::from_bytes(format!("\"{key}\"").as_bytes());
            let rule = "an idempotency key has no control characters";
            let value = value.map_err(|_| Error::new(ErrorKind::Invalid, rule))?;
            headers.insert("idempotency-key", value);
        }
        if let Some(condition) = request.condition.as_ref().filter(|_| !is_query) {
            let tags = match condition {
                Condition::Exists => "*".to_owned(),
                Condition::OneOf(versions) => {
                    let tags = versions.iter().map(|version| format!("\"{version}\""));
                    tags.collect::<Vec<_>>().join(", ")
                }
            };
            let value = HeaderValue::from_str(&tags);
            let value = value.map_err(|_| Error::new(ErrorKind::Invalid, "a condition"))?;
            headers.insert(IF_MATCH, value);
        }
        if let Some(trace) = &request.trace {
            let value = |text: &str| HeaderValue::from_str(text).ok();
            headers.extend(value(trace.parent()).map(|it| (TRACE_PARENT, it)));
            headers.extend(trace.state().and_then(value).map(|it| (TRACE_STATE, it)));
        }
        let (method, body) = match is_query {
            true => (Method::GET, Vec::new()),
            false => (Method::POST, request.input.clone()),
        };
        let success = if kind == SIGNALS { StatusCode::ACCEPTED } else { StatusCode::OK };
        Ok(Prepared { method, url, headers, body, success })
    }

    /// One try.
    async fn once(&self, prepared: &Prepared, left: Duration) -> Answered {
        let is_query = prepared.method == Method::GET;
        let sending = self
            .http
            .request(prepared.method.clone(), prepared.url.clone())
            .headers(prepared.headers.clone())
            .body(prepared.body.clone())
            .timeout(left)
            .send();
        let mut response = match sending.await {
            Ok(response) => response,
            Err(error) => return Err(broken(error, is_query)),
        };
        let status = response.status();
        let is_json = response.headers().get(CONTENT_TYPE).is_some_and(|it| it == JSON);
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|it| it.to_str().ok());
        let retry_after = retry_after.and_then(|it| it.parse().ok()).map(Duration::from_secs);
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() <= ANSWER_BYTES_MAX => {
                    body.extend_from_slice(&chunk);
                }
                Ok(Some(_)) => {
                    let rule = format!("the answer has more than {ANSWER_BYTES_MAX} bytes");
                    return Err(Error::new(doubt(is_query), rule));
                }
                Ok(None) => break,
                Err(error) => return Err(broken(error, is_query)),
            }
        }
        // A proxy may have answered in the server's stead, with a page of its own.
        let is_success = status == prepared.success && (is_json || status != StatusCode::OK);
        if is_success {
            return Ok(Ok(body));
        }
        refusal(status, &body, is_query).map_err(|error| match retry_after {
            // A server that does not know says one second.
            Some(length) if length > Duration::from_secs(1) => error.with_retry_after(length),
            _ => error,
        })
    }
}

impl Caller for Client {
    fn call(&self, request: Request) -> BoxFuture<'static, Answered> {
        self.send("entities", "calls", request)
    }

    fn signal(&self, request: Request) -> BoxFuture<'static, Result<Accepted, Error>> {
        let sent = self.send("entities", SIGNALS, request);
        Box::pin(async move { Ok(accepted(&sent.await?.unwrap_or_default())) })
    }

    fn query(&self, request: Request) -> BoxFuture<'static, Answered> {
        self.send("entities", QUERIES, request)
    }

    fn cancel_reminder(
        &self,
        id: EntityId,
        reminder: ReminderId,
    ) -> BoxFuture<'static, Result<(), Error>> {
        let client = self.clone();
        Box::pin(async move {
            let reminder = reminder.to_string();
            let path = ["v1", "entities", id.entity_type(), id.key(), "reminders", &reminder];
            let prepared = Prepared::bare(Method::DELETE, client.url(&path));
            let prepared = Prepared { success: StatusCode::NO_CONTENT, ..prepared };
            // A second try could find nothing because the first one was carried out.
            let mut timeout = Timeout::new(DEADLINE, false);
            loop {
                match client.once(&prepared, timeout.left()).await {
                    Ok(_) => return Ok(()),
                    Err(error) => clock::sleep(timeout.pause_after(error)?).await,
                }
            }
        })
    }
}

/// The meaning of the body of an accepted signal.
fn accepted(body: &[u8]) -> Accepted {
    let scheduled = serde_json::from_slice::<Scheduled>(body).ok();
    Accepted::new(scheduled.and_then(|scheduled| scheduled.reminder.parse().ok()))
}

/// The body of an accepted signal that is delayed.
#[derive(serde::Deserialize)]
struct Scheduled {
    reminder: String,
}

const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");
const QUERIES: &str = "queries";
const SIGNALS: &str = "signals";
const READ_COMMITTED: &str = "read=committed";
const JSON: &str = "application/json";

type Answered = Result<Reply, Error>;

/// A request that can be sent more than once.
struct Prepared {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Vec<u8>,
    /// The status of success.
    success: StatusCode,
}

impl Prepared {
    /// A request without a body.
    fn bare(method: Method, url: Url) -> Self {
        let (headers, body) = (HeaderMap::new(), Vec::new());
        Self { method, url, headers, body, success: StatusCode::OK }
    }
}

/// The state of repeated tries.
struct Timeout {
    deadline: Instant,
    /// Whether a request that may have been applied can be sent again.
    is_safe: bool,
    pause: Duration,
    is_unknown: bool,
}

impl Timeout {
    fn new(length: Duration, is_safe: bool) -> Self {
        Self { deadline: deadline_after(length), is_safe, pause: RETRY_FIRST, is_unknown: false }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(monotonic())
    }

    /// The wait before the next try; the error, where another one could do harm or would come too
    /// late.
    fn pause_after(&mut self, error: Error) -> Result<Duration, Error> {
        let is_retried = match error.kind() {
            ErrorKind::Unavailable | ErrorKind::Overloaded | ErrorKind::Closed => true,
            ErrorKind::Unknown => self.is_safe,
            _ => false,
        };
        self.is_unknown |= error.kind() == ErrorKind::Unknown;
        let asked = error.retry_after().map_or(Duration::ZERO, |length| length.as_duration());
        let pause = self.pause.max(asked);
        if is_retried && self.left() > pause {
            self.pause = (self.pause * 2).min(RETRY_LONGEST);
            return Ok(pause);
        }
        Err(if self.is_unknown { in_doubt(error) } else { error })
    }
}

fn wrong_url(url: &str, why: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("{url:?} is not the URL of a server: {why}"))
}

/// The kind of error where no answer came.
fn doubt(is_query: bool) -> ErrorKind {
    if is_query { ErrorKind::Unavailable } else { ErrorKind::Unknown }
}

fn broken(error: reqwest::Error, is_query: bool) -> Error {
    if error.is_builder() {
        let message = "the request cannot be sent";
        return Error::new(ErrorKind::Invalid, message).with_source(error);
    }
    if error.is_connect() {
        return Error::new(ErrorKind::Unavailable, "the server cannot be reached")
            .with_source(error);
    }
    let message = "the server's answer did not arrive";
    Error::new(doubt(is_query), message).with_source(error)
}

/// The part of a problem document that decides.
#[derive(serde::Deserialize)]
struct Problem {
    #[serde(rename = "type")]
    slug: String,
    #[serde(default)]
    detail: String,
    code: Option<String>,
    details: Option<serde_json::Value>,
}

impl From<Problem> for Rejection {
    fn from(problem: Problem) -> Self {
        let mut rejection = Self::new(problem.detail);
        if let Some(code) = problem.code {
            rejection = rejection.with_code(code);
        }
        match &problem.details {
            Some(details) => rejection.with_details(details),
            None => rejection,
        }
    }
}

fn refusal(status: StatusCode, body: &[u8], is_query: bool) -> Answered {
    let problem = serde_json::from_slice::<Problem>(body).ok();
    let slug_of =
        |known: &Problem| known.slug.strip_prefix("urn:stead:problem:").map(ToOwned::to_owned);
    match (problem.as_ref().and_then(slug_of).as_deref(), problem) {
        (Some("rejected"), Some(problem)) => Ok(Err(problem.into())),
        (Some(slug), Some(problem)) => {
            let kind = kind_of(slug).unwrap_or(doubt(is_query));
            Err(Error::new(kind, problem.detail))
        }
        _ if status.is_client_error() => {
            Err(Error::new(ErrorKind::Invalid, format!("no server of stead answered: {status}")))
        }
        _ => Err(Error::new(doubt(is_query), format!("a proxy answered {status}"))),
    }
}

/// The kind behind the last part of a problem's `type`.
pub(crate) fn kind_of(slug: &str) -> Option<ErrorKind> {
    Some(match slug {
        "invalid" | "media-type" | "method" | "too-large" | "ended" | "workflow-conflict" => {
            ErrorKind::Invalid
        }
        "not-found" => ErrorKind::NotFound,
        "overloaded" => ErrorKind::Overloaded,
        "unavailable" | "body-timeout" => ErrorKind::Unavailable,
        "full" => ErrorKind::Full,
        "deadline" => ErrorKind::Deadline,
        "unknown" => ErrorKind::Unknown,
        "conflict" => ErrorKind::Conflict,
        "precondition" => ErrorKind::Precondition,
        "fenced" => ErrorKind::Fenced,
        "closed" => ErrorKind::Closed,
        "corrupt" => ErrorKind::Corrupt,
        "internal" => ErrorKind::Internal,
        "later" => ErrorKind::Later,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use stead_entities::{CallError, stock::Counter};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        task::JoinSet,
    };

    use super::*;

    #[cfg(feature = "http")]
    #[test]
    fn every_kind_of_problem_is_known() {
        for kind in ErrorKind::ALL {
            assert_eq!(kind_of(stead_entities::problem::slug_of(kind)), Some(kind));
        }
    }

    fn kind_after(is_safe: bool, deadline: Duration, kinds: &[ErrorKind]) -> Option<ErrorKind> {
        let mut timeout = Timeout::new(deadline, is_safe);
        let mut tries = kinds.iter().map(|kind| timeout.pause_after(Error::new(*kind, "")));
        tries.find_map(Result::err).map(|error| error.kind())
    }

    #[test]
    fn only_what_can_do_no_harm_is_tried_again() {
        use ErrorKind::{
            Conflict, Deadline, Fenced, Full, Invalid, NotFound, Overloaded, Unavailable, Unknown,
        };
        let hour = Duration::from_secs(3_600);
        assert_eq!(kind_after(false, hour, &[Unavailable, Overloaded]), None);
        assert_eq!(kind_after(false, hour, &[Unavailable, Unknown]), Some(Unknown));
        assert_eq!(kind_after(true, hour, &[Unknown, Unavailable]), None);
        assert_eq!(kind_after(true, hour, &[Unknown, Conflict]), Some(Conflict));
        assert_eq!(kind_after(true, hour, &[Deadline]), Some(Deadline));
        for refused in [Full, Invalid, NotFound, Fenced] {
            assert_eq!(kind_after(true, hour, &[refused]), Some(refused));
            assert_eq!(kind_after(true, hour, &[Unknown, refused]), Some(Unknown), "{refused:?}");
        }
    }

    #[test]
    fn an_unknown_outcome_stays_unknown_when_time_is_up() {
        use ErrorKind::{Unavailable, Unknown};
        let mut timeout = Timeout::new(Duration::from_secs(3_600), true);
        assert!(timeout.pause_after(Error::new(Unknown, "")).is_ok());
        timeout.deadline = monotonic();
        let told = timeout.pause_after(Error::new(Unavailable, "")).map_err(|error| error.kind());
        assert_eq!(told, Err(Unknown));
        assert_eq!(kind_after(true, Duration::ZERO, &[Unavailable]), Some(Unavailable));
    }

    /// A server that answers each request with the number of its connection, one connection after the
    /// other. It closes a connection without an answer where the request has `close` in its path.
    async fn numbering() -> (String, Arc<AtomicUsize>, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let requests = Arc::new(AtomicUsize::new(0));
        let seen = requests.clone();
        let serving = async move {
            for number in 1.. {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut head = [0; 4_096];
                while let Ok(length @ 1..) = stream.read(&mut head).await {
                    seen.fetch_add(1, Ordering::SeqCst);
                    if head[..length].windows(5).any(|part| part == b"close") {
                        break;
                    }
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
                         Content-Length: 1\r\n\r\n{number}"
                    );
                    stream.write_all(answer.as_bytes()).await.expect("a client");
                }
            }
        };
        (url, requests, JoinSet::from_iter([serving]))
    }

    #[tokio::test]
    async fn a_connection_is_given_up_before_the_other_side_does() {
        let (url, _, _serving) = numbering().await;
        let client = Client::new(&url).expect("a URL");
        let value = async || client.entity::<Counter>("c").value().await.expect("an answer");
        assert_eq!((value().await, value().await), (1, 1), "one connection for both");
        let mut waited = Duration::ZERO;
        for (idle, connection) in [(45, 1), (45, 1), (55, 2)] {
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(idle)).await;
            tokio::time::resume();
            waited += Duration::from_secs(idle);
            assert_eq!(value().await, connection, "idle for {idle} s, {waited:?} in all");
        }
    }

    #[tokio::test]
    async fn a_request_whose_kept_connection_is_closed_is_repeated_under_a_key_only() {
        let (url, requests, _serving) = numbering().await;
        let client = Client::new(&url).expect("a URL");
        let kind = |error: CallError| match error {
            CallError::Failed(error) => Some(error.kind()),
            CallError::Rejected(_) => None,
        };
        let kept = client.entity::<Counter>("c");
        let closing = client.entity::<Counter>("close");
        assert_eq!(kept.value().await.expect("an answer"), 1);
        let told = closing.add(1).await.expect_err("no answer");
        assert_eq!(kind(told), Some(ErrorKind::Unknown));
        assert_eq!(requests.load(Ordering::SeqCst), 2, "sent once");
        let keyed = closing.add(1).idempotency_key("k").deadline(Duration::from_millis(300));
        assert_eq!(kind(keyed.await.expect_err("no answer")), Some(ErrorKind::Unknown));
        assert!(requests.load(Ordering::SeqCst) > 3, "sent again under its key");
    }
}
