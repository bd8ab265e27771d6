//! One connection: how long its client may take for what, and what becomes of a body that nobody
//! reads.
//!
//! The state is shared by the socket, the service and the bodies of a connection, which say what
//! begins and ends; the connection's task looks at it after each step and does what is due. So there
//! is one alarm a connection, and none has to be set for each request.
//!
//! What must never happen: a client that sends a body, and is refused before it was read, meets a
//! reset instead of the answer. The system resets a connection that is closed with bytes unread; so
//! they are read and thrown away first, within limits.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header},
    response::IntoResponse,
};
use hyper::{
    body::{Frame, Incoming, SizeHint},
    service::Service,
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
    time::Sleep,
};

use super::host;
use crate::clock::{self, deadline_after, monotonic};

/// How long the head of a request may take from its first byte on, and how long a new connection may
/// be silent.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// The most bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// The most headers of a request.
const HEADERS_MAX: usize = 100;
/// How long a client may take to read a part of its answer.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// The most bytes of a body that are read and thrown away where its request is answered before.
const UNREAD_BYTES_MAX: u64 = 64 << 20;
/// How long they may take.
const UNREAD_DEADLINE: Duration = Duration::from_secs(30);
/// How long a client may be silent that was answered, and is to close the connection.
const SILENCE_DEADLINE: Duration = Duration::from_secs(5);

/// The thing that a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// The first byte of the next request, until then.
    Request(Instant),
    /// The rest of a head, or the first byte of the first one, until then.
    Head(Instant),
    /// This side: an operation, or the end of a body, which has limits of its own.
    Answer,
}

#[derive(Debug)]
struct State {
    wait: Wait,
    idle_max: Duration,
    /// When a client that does not take what is written is given up.
    write_deadline: Option<Instant>,
    /// The bodies of the request and of the answer that have not ended.
    bodies: usize,
    /// The body that its handler did not read to the end.
    unread: Option<Unread>,
    /// Whether the rest of a body is not waited for, so that the connection ends behind the answer.
    is_closing: bool,
    task: Option<Waker>,
}

#[derive(Debug)]
struct Unread {
    body: Incoming,
    bytes: u64,
    deadline: Instant,
}

#[derive(Debug, Clone)]
struct Shared(Arc<Mutex<State>>);

impl Shared {
    fn new(idle_max: Duration) -> Self {
        Self(Arc::new(Mutex::new(State {
            wait: Wait::Head(deadline_after(HEAD_DEADLINE)),
            idle_max,
            write_deadline: None,
            bodies: 0,
            unread: None,
            is_closing: false,
            task: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn received(&mut self, bytes: &[u8]) {
        // Empty lines before a request count for nothing (RFC 9112, section 2.2).
        if matches!(self.wait, Wait::Request(_)) && bytes.iter().any(|it| !b"\r\n".contains(it)) {
            self.wait = Wait::Head(deadline_after(HEAD_DEADLINE));
        }
    }

    fn wrote(&mut self, is_blocked: bool) {
        if is_blocked {
            self.write_deadline.get_or_insert_with(|| deadline_after(WRITE_DEADLINE));
            return;
        }
        self.write_deadline = None;
        if let Wait::Request(_) = self.wait {
            self.wait = Wait::Request(deadline_after(self.idle_max));
        }
    }

    /// A request begins, with these bodies, its answer's among them.
    fn begin(&mut self, bodies: usize) {
        self.wait = Wait::Answer;
        self.bodies = bodies;
        self.unread = None;
    }

    fn end_body(&mut self) {
        self.bodies = self.bodies.saturating_sub(1);
        self.settle();
    }

    fn settle(&mut self) {
        if self.bodies == 0 && self.unread.is_none() {
            self.wait = Wait::Request(deadline_after(self.idle_max));
        }
    }

    /// Takes over the body of a request whose handler is done with it.
    fn leave(&mut self, body: Incoming, is_held_back: bool) {
        // What the client sends only when it is told to is not asked for.
        if is_held_back || body.size_hint().lower() > UNREAD_BYTES_MAX {
            self.is_closing = true;
        } else {
            let deadline = deadline_after(UNREAD_DEADLINE);
            self.unread = Some(Unread { body, bytes: 0, deadline });
        }
    }

    /// Whether the connection ends after the answer of this status.
    fn answer(&mut self, status: StatusCode) -> bool {
        // A body that has used up its time is not waited for again.
        if status == StatusCode::REQUEST_TIMEOUT && self.unread.take().is_some() {
            self.is_closing = true;
        }
        self.is_closing
    }

    /// Throws away what has arrived of a body that nobody reads. Beyond the limits the body is let go,
    /// which ends the connection behind the answer.
    fn throw_away(&mut self, cx: &mut Context<'_>) {
        while let Some(unread) = &mut self.unread {
            match Pin::new(&mut unread.body).poll_frame(cx) {
                Poll::Pending if monotonic() < unread.deadline => return,
                Poll::Ready(Some(Ok(frame))) => {
                    let length = frame.data_ref().map_or(0, Bytes::len);
                    unread.bytes = unread.bytes.saturating_add(length as u64);
                    if unread.bytes <= UNREAD_BYTES_MAX {
                        continue;
                    }
                }
                _over_or_at_its_end => {}
            }
            self.unread = None;
            self.settle();
            // The connection goes on, or ends, now that the body is let go.
            cx.waker().wake_by_ref();
        }
    }

    /// When the client is given up, or the state has to be looked at again.
    fn deadline(&self) -> Option<Instant> {
        let wait = match (self.write_deadline, self.wait) {
            (Some(deadline), _) => Some(deadline),
            (None, Wait::Request(deadline) | Wait::Head(deadline)) => Some(deadline),
            (None, Wait::Answer) => None,
        };
        let unread = self.unread.as_ref().map(|unread| unread.deadline);
        wait.into_iter().chain(unread).min()
    }

    /// Does what is due; ready when the client is given up.
    fn poll(&mut self, alarm: &mut Alarm, cx: &mut Context<'_>) -> Poll<()> {
        if self.task.as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
        }
        self.throw_away(cx);
        loop {
            let Some(deadline) = self.deadline() else { return Poll::Pending };
            ready!(alarm.poll(deadline, cx));
            if self.unread.as_ref().is_none_or(|unread| deadline < unread.deadline) {
                return Poll::Ready(());
            }
            self.throw_away(cx);
        }
    }
}

/// The one alarm of a connection. It may go off early, which costs a look.
struct Alarm {
    sleep: Pin<Box<Sleep>>,
    at: Instant,
}

impl Alarm {
    fn new(at: Instant) -> Self {
        Self { sleep: Box::pin(clock::sleep_until(at)), at }
    }

    /// Ready when `deadline` is over.
    fn poll(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // An earlier alarm stays: most deadlines are moved before they are over.
            if deadline < self.at || self.sleep.is_elapsed() {
                self.at = deadline;
                self.sleep.as_mut().reset(deadline.into());
            }
            ready!(self.sleep.as_mut().poll(cx));
            if monotonic() >= deadline {
                return Poll::Ready(());
            }
        }
    }
}

/// A socket that says what goes through it.
struct Watched {
    stream: TcpStream,
    shared: Shared,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = room.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, room))?;
        self.shared.lock().received(&room.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.shared.lock().wrote(written.is_pending());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.shared.lock().wrote(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The body of a request, on its way through a handler.
struct Asked {
    body: Option<Incoming>,
    /// Whether the client waits to be told that the body is wanted, which reading it does.
    is_held_back: bool,
    shared: Shared,
}

impl Asked {
    fn end(&mut self) {
        if self.body.take().is_some() {
            self.shared.lock().end_body();
        }
    }
}

impl HttpBody for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.is_held_back = false;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        if body.is_end_stream() || !matches!(frame, Some(Ok(_))) {
            self.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let Some(body) = self.body.take() else { return };
        let mut state = self.shared.lock();
        state.leave(body, self.is_held_back);
        state.end_body();
        // Whoever drops it may be another task than the connection's.
        if let Some(task) = &state.task {
            task.wake_by_ref();
        }
    }
}

/// The body of an answer.
struct Answer {
    body: Body,
    shared: Shared,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.shared.lock().end_body();
    }
}

/// Requests on their way to a router.
struct Requests {
    router: TowerToHyperService<Router>,
    shared: Shared,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answer>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let checked = host::check(request.version(), request.headers());
        let shared = self.shared.clone();
        let is_held_back = is_held_back(request.version(), request.headers());
        shared.lock().begin(if request.body().is_end_stream() { 1 } else { 2 });
        let request = request.map(|body| match body.is_end_stream() {
            true => Body::empty(),
            false => Body::new(Asked { body: Some(body), is_held_back, shared: shared.clone() }),
        });
        let answering = checked.map(|()| self.router.call(request));
        Box::pin(async move {
            let response = match answering {
                Ok(answering) => answering.await.unwrap_or_else(|never| match never {}),
                Err(refusal) => refusal.into_response(),
            };
            let is_closing = shared.lock().answer(response.status());
            let mut response = response.map(|body| Answer { body, shared });
            if is_closing {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            Ok(response)
        })
    }
}

/// Whether the client sends its body only when it is told to.
fn is_held_back(version: Version, headers: &HeaderMap) -> bool {
    let expected = headers.get_all(header::EXPECT).iter();
    version > Version::HTTP_10
        && expected.into_iter().any(|it| it.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Serves a connection until its client is done or given up; when `closed` says so, until the request
/// under way is answered.
pub(super) async fn serve(
    stream: TcpStream,
    router: Router,
    idle_max: Duration,
    mut closed: watch::Receiver<bool>,
) {
    let _slower_without = stream.set_nodelay(true);
    let shared = Shared::new(idle_max);
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        // It would end connections that are kept and idle, too.
        .header_read_timeout(None)
        // A client may close its half once it has sent its request.
        .half_close(true)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    let requests = Requests { router: TowerToHyperService::new(router), shared: shared.clone() };
    let watched = Watched { stream, shared: shared.clone() };
    let mut served = builder.serve_connection(TokioIo::new(watched), requests);
    let mut alarm = Alarm::new(deadline_after(HEAD_DEADLINE));
    let mut is_stopping = false;
    let ended = loop {
        tokio::select! {
            // What the connection does comes first: it changes what is due.
            biased;
            ended = &mut served => break ended,
            () = poll_fn(|cx| shared.lock().poll(&mut alarm, cx)) => return,
            _closing = closed.wait_for(|closing| *closing), if !is_stopping => {
                is_stopping = true;
                Pin::new(&mut served).graceful_shutdown();
            }
        }
    };
    // A client that breaks off is no news.
    let is_no_request = ended.is_err_and(|error| error.is_parse());
    let is_closing = shared.lock().is_closing;
    if is_no_request || is_closing {
        linger(served.into_parts().io.into_inner().stream).await;
    }
}

/// Throws away what a client still sends that has its answer, until it closes the connection.
async fn linger(mut stream: TcpStream) {
    let mut room = vec![0; HEAD_BYTES_MAX];
    let throwing_away = async {
        let mut bytes = 0;
        while bytes <= UNREAD_BYTES_MAX {
            match clock::within(SILENCE_DEADLINE, stream.read(&mut room)).await {
                Some(Ok(length @ 1..)) => bytes += length as u64,
                _ended => break,
            }
        }
    };
    let _ended = clock::within(UNREAD_DEADLINE, throwing_away).await;
}
