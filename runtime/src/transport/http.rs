//! Messages and answers over HTTP/2: one kept connection for each pair of nodes, many messages on it
//! at one time.
//!
//! A node takes messages on a listener of its own, and only from who knows the cluster's secret:
//! each carries the code (HMAC-SHA-256, RFC 2104) of its bytes and of the address that it is meant
//! for. That keeps strangers out; it hides nothing and does not keep a listener from repeating what it
//! heard, so the network between nodes has to be one's own.

use std::{
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Body as _, Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use sha2::Sha256;
use stead_entities::BoxFuture;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::{JoinHandle, JoinSet},
};

use super::{PeerHandler, SendError, Transport};
use crate::{clock, listen};

/// The largest message, in bytes, and the largest answer.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// The most connections of peers at one time.
const CONNECTIONS_MAX: usize = 4_096;
/// The most messages on one connection at one time.
const STREAMS_MAX: u32 = 4_096;
/// How many bytes a connection begins with (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
/// How long a connection may take, and to say what it is.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// How often a silent connection is tried, and how long that may take.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// The wait after the operating system refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The shortest secret, in bytes.
pub const SECRET_BYTES_MIN: usize = 16;
/// The most bytes of messages that are read at one time, in units of a kilobyte.
const READING_MAX: usize = 256 << 10;
/// How long a message may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(10);
const CODE: &str = "x-stead-code";

/// The secret that all nodes of a cluster know, and nobody else.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

impl Secret {
    /// A secret of at least [`SECRET_BYTES_MIN`] bytes; white space around it does not count.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.trim_ascii();
        let is_long = bytes.len() >= SECRET_BYTES_MIN;
        is_long.then(|| Hmac::new_from_slice(bytes).ok().map(Self)).flatten()
    }

    fn of(&self, address: &str, message: &[u8]) -> Hmac<Sha256> {
        let mut code = self.0.clone();
        code.update(&(address.len() as u64).to_be_bytes());
        code.update(address.as_bytes());
        code.update(message);
        code
    }

    fn code(&self, address: &str, message: &[u8]) -> String {
        let code = self.of(address, message).finalize().into_bytes();
        code.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Compares in a time that does not depend on where the two differ.
    fn is_code(&self, address: &str, message: &[u8], code: &str) -> bool {
        let digit =
            |at: usize| code.get(at..at + 2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let bytes: Option<Vec<u8>> = (0..code.len()).step_by(2).map(digit).collect();
        bytes.is_some_and(|bytes| self.of(address, message).verify_slice(&bytes).is_ok())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A way to peers over the network.
#[derive(Debug)]
pub struct HttpTransport {
    listener: Mutex<Option<TcpListener>>,
    accepting: Mutex<Option<JoinHandle<()>>>,
    closing: watch::Sender<bool>,
    /// The address under which peers know this node.
    address: Arc<str>,
    secret: Secret,
    client: reqwest::Client,
}

impl HttpTransport {
    /// Listens for peers on `listen`. They reach this node at `address`, which is where it listens
    /// unless it says otherwise.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn bind(
        listen: SocketAddr,
        address: Option<String>,
        secret: Secret,
    ) -> io::Result<Self> {
        Self::on(listen::open(listen)?, address, secret)
    }

    /// The same on a socket that listens already.
    pub(crate) fn on(
        listener: TcpListener,
        address: Option<String>,
        secret: Secret,
    ) -> io::Result<Self> {
        let address = match address {
            Some(address) => address,
            None => listener.local_addr()?.to_string(),
        };
        let client = reqwest::Client::builder()
            .http2_prior_knowledge()
            .http2_adaptive_window(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_INTERVAL)
            .http2_keep_alive_while_idle(true)
            .connect_timeout(CONNECT_DEADLINE)
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(io::Error::other)?;
        Ok(Self {
            listener: Mutex::new(Some(listener)),
            accepting: Mutex::default(),
            closing: watch::Sender::new(false),
            address: address.into(),
            secret,
            client,
        })
    }

    /// The address under which peers know this node.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Transport for HttpTransport {
    fn secret(&self) -> Vec<u8> {
        self.secret.of("", b"which cluster").finalize().into_bytes().to_vec()
    }

    #[allow(clippy::disallowed_methods, reason = "the one task that accepts peers")]
    fn listen(&self, node: Arc<dyn PeerHandler>) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        let service = PeerService {
            node,
            address: self.address.clone(),
            secret: self.secret.clone(),
            reading: Semaphore::new(READING_MAX),
        };
        let accepting = listener.map(|listener| {
            tokio::spawn(accept(listener, Arc::new(service), self.closing.subscribe()))
        });
        *self.accepting.lock().unwrap_or_else(PoisonError::into_inner) = accepting;
    }

    fn request(
        &self,
        address: Arc<str>,
        message: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, SendError>> {
        let code = self.secret.code(&address, &message);
        let asking = self
            .client
            .post(format!("http://{address}/v1/peer"))
            .header(CODE, code)
            .body(message)
            .timeout(timeout)
            .send();
        Box::pin(async move {
            let response = asking.await.map_err(|error| match error.is_connect() {
                true => SendError::NotSent(told(&error)),
                false => SendError::Lost(told(&error)),
            })?;
            let status = response.status();
            if response.content_length().is_some_and(|length| length > MESSAGE_BYTES_MAX as u64) {
                return Err(SendError::Lost("the answer is too long".into()));
            }
            let body = response.bytes().await.map_err(|error| SendError::Lost(told(&error)))?;
            match status.as_u16() {
                200 => Ok(body.to_vec()),
                401 => Err(SendError::Refused(String::from_utf8_lossy(&body).into_owned())),
                other => Err(SendError::Lost(format!("a peer answered {other}"))),
            }
        })
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.closing.send_replace(true);
        let accepting = self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take();
        Box::pin(async move {
            if let Some(accepting) = accepting {
                // It does not panic, and nobody cancels it.
                let _ended = accepting.await;
            }
        })
    }
}

/// An error with the cause that says most.
fn told(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// The service that peers connect to.
struct PeerService {
    node: Arc<dyn PeerHandler>,
    address: Arc<str>,
    secret: Secret,
    reading: Semaphore,
}

async fn accept(
    listener: TcpListener,
    service: Arc<PeerService>,
    mut closing: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _closing = closing.wait_for(|closing| *closing) => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(serve(stream, service.clone(), closing.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a peer's connection cannot be accepted");
                clock::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Waits until a connection has said what it is.
async fn has_begun(stream: &TcpStream) -> bool {
    let mut preface = [0; PREFACE_BYTES];
    let begun = async {
        while matches!(stream.peek(&mut preface).await, Ok(1..PREFACE_BYTES)) {
            clock::sleep(ACCEPT_PAUSE).await;
        }
    };
    let in_time = clock::within(CONNECT_DEADLINE, begun).await;
    in_time.is_some()
}

async fn serve(stream: TcpStream, service: Arc<PeerService>, mut closing: watch::Receiver<bool>) {
    let _slower_without = stream.set_nodelay(true);
    if !has_begun(&stream).await {
        return;
    }
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .adaptive_window(true)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(2 * PING_INTERVAL);
    let answer = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.answer(request).await) }
    });
    let served = builder.serve_connection(TokioIo::new(stream), answer);
    let mut served = std::pin::pin!(served);
    tokio::select! {
        // A peer that breaks off is no news.
        _ended = served.as_mut() => return,
        _closing = closing.wait_for(|closing| *closing) => {}
    }
    served.as_mut().graceful_shutdown();
    let _ended = served.await;
}

impl PeerService {
    /// A message, whoever asks it: so there is room for some of them only.
    async fn read(&self, body: Incoming) -> Option<Vec<u8>> {
        let length = body.size_hint().exact().filter(|it| *it <= MESSAGE_BYTES_MAX as u64)?;
        let kilobytes = u32::try_from(length >> 10).ok()? + 1;
        let reading = async {
            // The semaphore is never closed.
            let _room = self.reading.acquire_many(kilobytes).await.ok()?;
            Some(Limited::new(body, MESSAGE_BYTES_MAX).collect().await.ok()?.to_bytes().to_vec())
        };
        clock::within(BODY_DEADLINE, reading).await.flatten()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let code = request.headers().get(CODE).and_then(|code| code.to_str().ok());
        let Some(code) = code.map(str::to_owned) else {
            return refuse(StatusCode::UNAUTHORIZED, "this listener is for peers");
        };
        let Some(message) = self.read(request.into_body()).await else {
            return refuse(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the message broke off, is too long or says no length",
            );
        };
        if !self.secret.is_code(&self.address, &message, &code) {
            tracing::warn!(
                "a peer with another cluster secret, or address of this node, was refused"
            );
            return refuse(
                StatusCode::UNAUTHORIZED,
                "the cluster secrets differ, or the address is not the one that this node gave",
            );
        }
        Response::new(Full::new(self.node.handle(message).await.into()))
    }
}

fn refuse(status: StatusCode, why: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(why.as_bytes())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_knows_the_secret_makes_the_code() {
        let secret = Secret::new(b"  sixteen letters!\n").expect("long enough");
        let other = Secret::new(b"other sixteen letters").expect("long enough");
        let code = secret.code("a:1", b"message");
        assert!(secret.is_code("a:1", b"message", &code));
        assert!(!secret.is_code("a:2", b"message", &code), "meant for another node");
        assert!(!secret.is_code("a:1", b"messages", &code), "another message");
        assert!(!other.is_code("a:1", b"message", &code), "another secret");
        for wrong in ["", "0", "zz", &code[2..], "\u{fc}\u{fc}"] {
            assert!(!secret.is_code("a:1", b"message", wrong), "{wrong}");
        }
        assert!(Secret::new(b"too short").is_none());
    }
}
