//! What a node answers its peers.

use std::sync::{Arc, Weak};

use stead_entities::{BoxFuture, Error, ErrorKind};

use super::{Inner, Node};
use crate::{
    client::route::Ask,
    partition::message::Link,
    store::record,
    transport::{
        Answers,
        wire::{Failure, Forwarded, Question, Reply, Task, Wakes},
    },
};

pub(super) struct Peer(Weak<Inner>);

impl Peer {
    pub(super) fn new(node: &Arc<Inner>) -> Self {
        Self(Arc::downgrade(node))
    }
}

impl Answers for Peer {
    fn answer(&self, question: Vec<u8>) -> BoxFuture<'static, Vec<u8>> {
        let node = self.0.upgrade().map(Node);
        Box::pin(async move {
            let reply = match (node, record::decode(&question)) {
                (None, _) => failed(ErrorKind::Closed, "the node has stopped"),
                (_, Err(error)) => failed(ErrorKind::Invalid, &error.to_string()),
                (Some(node), Ok(Question::Do(forwarded))) => node.serve_forwarded(forwarded).await,
                (Some(node), Ok(Question::Wake(wakes))) => Reply::Woken(node.0.wake_up(&wakes)),
            };
            record::encode(&reply)
        })
    }
}

fn failed(kind: ErrorKind, why: &str) -> Reply {
    Reply::Failed(Failure::from(&Error::new(kind, why)))
}

impl Node {
    /// Does what another node was asked for; what is not this node's goes back, and not on.
    async fn serve_forwarded(&self, forwarded: Forwarded) -> Reply {
        let patience = std::time::Duration::from_micros(forwarded.patience);
        // A node of an earlier program knows no other answer to a signal.
        let knows_ids = !matches!(forwarded.task, Task::Signal(_));
        let ask = match Ask::from_wire(forwarded.task, patience) {
            Ok(ask) => ask,
            Err(error) => return Reply::Failed(Failure::from(&error)),
        };
        if !self.is_open(ask.partition(self)) {
            let version = self.0.cluster.as_ref().map_or(0, |it| it.seen().view.ownership());
            return Reply::NotOwner(version);
        }
        match self.here(ask, patience).await.into() {
            Reply::Scheduled(_) if !knows_ids => Reply::Done,
            reply => reply,
        }
    }
}

impl Inner {
    /// Hands out what others made durable; returns the partitions that take nothing in.
    fn wake_up(&self, wakes: &Wakes) -> Vec<u16> {
        let is_meant = self.home().is_some_and(|home| home.incarnation.number == wakes.target);
        let mut refused = Vec::new();
        for wake in &wakes.wakes {
            let handle = self.partitions.get(usize::from(wake.partition)).filter(|_| is_meant);
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
