//! The accept loop: as many connections as there is room for, and an end that clients cannot hold up.

use std::{
    collections::HashMap,
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use axum::Router;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};

use super::connection;
use crate::{
    clock,
    listen::{self, Listen},
};

/// The most connections at one time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 10_000;
/// Files that are kept for the store and everything else beside connections.
const FILES_RESERVED: u64 = 512;
/// The wait after the operating system had no room for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The settings of a [`Server`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerSettings {
    /// How long a connection may be idle between two requests. 120 s, which is longer than load
    /// balancers and clients keep one (60 to 75 s, most of them), so that they close it and no request
    /// of theirs meets a connection that this side closes at the same time.
    pub idle_connection: Duration,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self { idle_connection: Duration::from_secs(120) }
    }
}

impl ServerSettings {
    /// The defaults, with what `change` sets.
    pub fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut settings = Self::default();
        change(&mut settings);
        settings
    }
}

/// Listeners that serve a router until they are told to stop.
#[derive(Debug)]
pub struct Server {
    /// At least one.
    listeners: Vec<TcpListener>,
    settings: ServerSettings,
}

impl Server {
    /// Listens on `address`.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Self::bind_with(&address.into(), ServerSettings::default()).await
    }

    /// Listens on every address of `listen`.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn bind_with(listen: &Listen, settings: ServerSettings) -> io::Result<Self> {
        Ok(Self { listeners: listen::bind(listen).await?, settings })
    }

    /// The address on which it listens; the first, where there are several.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        let first = self.listeners.first();
        first.map_or_else(|| Err(io::ErrorKind::NotConnected.into()), TcpListener::local_addr)
    }

    /// All addresses where it listens, IPv4 first.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.listeners.iter().map(TcpListener::local_addr).collect()
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
                (accept(&self.listeners).await, permit)
            };
            let (accepted, permit) = tokio::select! {
                () = &mut stop => break,
                next = next => next,
            };
            match accepted {
                Ok((stream, peer)) => {
                    // A peer that holds more than its share is hung up on.
                    let Some(share) = peers.admit(peer.ip()) else { continue };
                    let idle = self.settings.idle_connection;
                    let connection =
                        connection::serve(stream, router.clone(), idle, closed.clone());
                    connections.spawn(async move {
                        connection.await;
                        drop((permit, share));
                    });
                }
                // The client went away before its turn came.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    clock::sleep(ACCEPT_PAUSE).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
        drop(self.listeners);
        let _all_closed_already = closing.send(true);
        let ended = async { while connections.join_next().await.is_some() {} };
        let _out_of_time = clock::within(grace, ended).await;
        connections.shutdown().await;
    }
}

/// The next connection of any listener.
async fn accept(listeners: &[TcpListener]) -> io::Result<(TcpStream, SocketAddr)> {
    poll_fn(|cx| {
        let mut accepted = listeners.iter().map(|listener| listener.poll_accept(cx));
        accepted.find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await
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
        // A socket for both families shows addresses of IPv4 as such of IPv6.
        let peer = peer.to_canonical();
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
