//! The answers of a node to its peers.

use std::sync::{Arc, Weak};

use stead_entities::{BoxFuture, Error, ErrorKind};

use super::{Inner, router::Command};
use crate::{
    partition::message::Link,
    store::record,
    transport::{
        PeerHandler,
        wire::{Failure, Forwarded, PeerRequest, PeerResponse, Task, Wakes},
    },
};

pub(super) struct Peer(Weak<Inner>);

impl Peer {
    pub(super) fn new(node: &Arc<Inner>) -> Self {
        Self(Arc::downgrade(node))
    }
}

impl PeerHandler for Peer {
    fn handle(&self, message: Vec<u8>) -> BoxFuture<'static, Vec<u8>> {
        let node = self.0.upgrade();
        Box::pin(async move {
            let reply = match (node, record::decode(&message)) {
                (None, _) => failed(ErrorKind::Closed, "the node has stopped"),
                (_, Err(error)) => failed(ErrorKind::Invalid, &error.to_string()),
                (Some(node), Ok(PeerRequest::Do(forwarded))) => {
                    node.serve_forwarded(forwarded).await
                }
                (
                    Some(node),
                    Ok(PeerRequest::Wake(wakes) | PeerRequest::WakeWithOrigins(wakes)),
                ) => PeerResponse::Woken(node.wake_up(&wakes)),
            };
            record::encode(&reply)
        })
    }
}

fn failed(kind: ErrorKind, why: &str) -> PeerResponse {
    PeerResponse::Failed(Failure::from(&Error::new(kind, why)))
}

impl Inner {
    /// Does what another node was asked for; what is not this node's goes back, and not on.
    async fn serve_forwarded(&self, forwarded: Forwarded) -> PeerResponse {
        let timeout = std::time::Duration::from_micros(forwarded.timeout);
        // A node of an earlier program knows no other answer to a signal.
        let knows_ids = !matches!(forwarded.task, Task::Signal(_));
        let command = match Command::from_wire(forwarded.task, timeout) {
            Ok(command) => command,
            Err(error) => return PeerResponse::Failed(Failure::from(&error)),
        };
        let local = self.router.local();
        if !local.host.is_open(command.partition(&local.host)) {
            let version = self.cluster().map_or(0, |it| it.seen().view.ownership());
            return PeerResponse::NotOwner(version);
        }
        match local.perform(command, timeout).await.into() {
            PeerResponse::Scheduled(_) if !knows_ids => PeerResponse::Done,
            reply => reply,
        }
    }

    /// Hands out what others made durable; returns the partitions that take nothing in.
    fn wake_up(&self, wakes: &Wakes) -> Vec<u16> {
        let session = self.host.session();
        let is_meant = session.is_some_and(|it| it.incarnation.number == wakes.target);
        let mut refused = Vec::new();
        for wake in &wakes.wakes {
            let handle =
                self.host.partitions().get(usize::from(wake.partition)).filter(|_| is_meant);
            let link = Link { source: wakes.source, number: wake.link, place: wake.place };
            // A row that cannot be read here is read from the store, where that is said.
            let delivery = wake.row.as_ref().and_then(|row| row.read().ok()).map(Box::new);
            if handle.is_none_or(|handle| handle.deliver(delivery, link).is_err()) {
                refused.push(wake.partition);
            }
        }
        refused
    }
}
