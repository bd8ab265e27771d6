//! The accept loop: connections with deadlines and a cap, and an end that clients cannot hold up.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::Router;
use hyper_util::{rt::TokioIo, rt::TokioTimer, service::TowerToHyperService};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_io_timeout::TimeoutStream;

use crate::clock;

/// How long the head of a request may take, also the first one of a silent connection.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// The most connections at one time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 10_000;
/// The most bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// The most headers of a request.
const HEADERS_MAX: usize = 100;
/// Files that are kept for the store and everything else beside connections.
const FILES_RESERVED: u64 = 512;
/// How long a client may take to read a part of its answer.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// The wait after the operating system refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener that serves a router until it is told to stop.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
}

impl Server {
    /// Listens on `address`.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await? })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is ready; then lets requests under way end for at most `grace`, and
    /// closes every connection.
    pub async fn serve(self, router: Router, stop: impl Future<Output = ()>, grace: Duration) {
        let (closing, closed) = watch::channel(false);
        let room = Arc::new(Semaphore::new(connections_max()));
        let peers = Peers::new(connections_max());
        let mut connections = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            let next = async {
                // The semaphore is never closed.
                let permit = room.clone().acquire_owned().await.ok();
                (self.listener.accept().await, permit)
            };
            let (accepted, permit) = tokio::select! {
                () = &mut stop => break,
                next = next => next,
            };
            match accepted {
                Ok((stream, peer)) => {
                    // A peer that holds more than its share is hung up on.
                    let Some(share) = peers.admit(peer.ip()) else { continue };
                    let connection = connection(stream, router.clone(), closed.clone());
                    connections.spawn(async move {
                        connection.await;
                        drop((permit, share));
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    clock::sleep(ACCEPT_PAUSE).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
        drop(self.listener);
        let _all_closed_already = closing.send(true);
        let ended = async { while connections.join_next().await.is_some() {} };
        let _out_of_patience = clock::within(grace, ended).await;
        connections.shutdown().await;
    }
}

/// The most connections that the process has files for.
fn connections_max() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let room = files.unwrap_or(u64::MAX).saturating_sub(FILES_RESERVED).max(16);
    usize::try_from(room).unwrap_or(usize::MAX).min(CONNECTIONS_MAX)
}

/// How many connections each address holds. One address may hold three quarters of all, because it
/// may be that of a proxy.
#[derive(Clone)]
struct Peers(Arc<(Mutex<HashMap<IpAddr, usize>>, usize)>);

/// One connection of an address; given back when it is dropped.
struct Share(Peers, IpAddr);

impl Peers {
    fn new(connections: usize) -> Self {
        Self(Arc::new((Mutex::default(), connections / 4 * 3)))
    }

    fn admit(&self, peer: IpAddr) -> Option<Share> {
        let mut held = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(peer).or_default();
        if *count >= self.0.1 {
            return None;
        }
        *count += 1;
        Some(Share(self.clone(), peer))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.0.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.1);
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router, mut closed: watch::Receiver<bool>) {
    let _slower_without = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_DEADLINE));
    let stream = Box::pin(stream);
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        // A client may close its half once it has sent its request.
        .half_close(true)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = std::pin::pin!(served);
    tokio::select! {
        // A client that breaks off is no news.
        _ended = served.as_mut() => return,
        _closing = closed.wait_for(|closing| *closing) => {}
    }
    served.as_mut().graceful_shutdown();
    let _ended = served.await;
}
