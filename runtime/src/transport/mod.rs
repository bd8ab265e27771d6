//! The transport between nodes: messages and answers as bytes, from one address to another.
//!
//! A transport knows neither entities nor partitions. What it must tell apart is whether a message
//! that brought no answer was never sent, so that it can be asked elsewhere, or may have arrived.

#[cfg(feature = "peers")]
mod http;
#[cfg(any(test, feature = "testing"))]
mod memory;
pub(crate) mod wire;

use std::{fmt, sync::Arc, time::Duration};

use stead_entities::BoxFuture;

#[cfg(feature = "peers")]
pub use http::{HttpTransport, SECRET_BYTES_MIN, Secret};
#[cfg(any(test, feature = "testing"))]
pub use memory::{Faults, Network};

/// Why a message brought no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// It did not leave, or did not arrive.
    #[error("the peer cannot be reached: {0}")]
    NotSent(String),
    /// It may have arrived.
    #[error("the peer's answer did not arrive: {0}")]
    Lost(String),
    /// The peer does not know this node's secret.
    #[error("the peer refuses this node: {0}")]
    Refused(String),
}

/// Answers the messages of peers.
pub trait PeerHandler: Send + Sync + 'static {
    /// Answers a message. Dropping the answer, because the asker went away, cancels nothing that was
    /// accepted.
    fn handle(&self, message: Vec<u8>) -> BoxFuture<'static, Vec<u8>>;
}

/// A way to the peers of a node.
pub trait Transport: Send + Sync + fmt::Debug + 'static {
    /// A code by which nodes compare their secrets without telling them; empty where there is
    /// none.
    fn secret(&self) -> Vec<u8> {
        Vec::new()
    }
    /// Begins to answer at the address under which this node is known.
    fn listen(&self, node: Arc<dyn PeerHandler>);
    /// Asks the node at `address`, and waits for at most `timeout`.
    fn request(
        &self,
        address: Arc<str>,
        message: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, SendError>>;
    /// Takes no more messages, and lets those that were taken be answered. What is asked after that
    /// is [`SendError::NotSent`].
    fn close(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}
