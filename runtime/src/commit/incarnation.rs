//! Under which right a node commits, and how it loses it for good.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::watch;

use crate::{
    lease::Lease,
    partition::message::{Delivery, Link},
};

/// The incarnation under which a node commits.
#[derive(Debug)]
pub(crate) struct Incarnation {
    pub(crate) number: u64,
    /// The last batch of its lane.
    pub(crate) last_batch: u64,
    pub(crate) lease: Arc<Lease>,
    /// The number of the link between the partitions of this node.
    pub(crate) link: Arc<AtomicU64>,
}

impl Incarnation {
    /// The link between the partitions of this node at present.
    pub(crate) fn link(&self) -> Link {
        Link { source: self.number, number: self.link.load(Ordering::SeqCst), place: 0 }
    }
}

/// Takes what was made durable for partitions of other nodes.
pub(crate) trait Outbound: Send + Sync {
    fn send(&self, partition: u16, delivery: Box<Delivery>);
}

/// Why a node cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fatal {
    /// A flush failed: what is durable is known only after the store is opened again.
    Poisoned(String),
    /// Another process has taken the store, or the name of this node.
    Fenced,
    /// An operation blocks its thread and cannot be stopped.
    Blocked(String),
}

impl Fatal {
    /// The code with which a process ends that cannot go on for this reason: 4 for a failed flush, 3
    /// where another process has taken over, 7 for an operation that does not end.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Poisoned(_) => 4,
            Self::Fenced => 3,
            Self::Blocked(_) => 7,
        }
    }

    /// Ends the node, unless an earlier reason has.
    pub(crate) fn report(self, fatals: &watch::Sender<Option<Self>>) {
        fatals.send_if_modified(|known| {
            let is_first = known.is_none();
            known.get_or_insert(self);
            is_first
        });
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poisoned(why) => write!(
                f,
                "the storage is poisoned by a failed flush ({why}); start again to recover everything \
                 that was acknowledged"
            ),
            Self::Fenced => {
                f.write_str("another process took over the store, or the name of this node")
            }
            Self::Blocked(name) => write!(
                f,
                "{name} does not end; it becomes a dead letter when its attempts are used up"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_cannot_go_on_has_a_code_for_each_reason() {
        let why = || "why".to_owned();
        let all = [Fatal::Poisoned(why()), Fatal::Fenced, Fatal::Blocked(why())];
        assert_eq!(all.map(|fatal| fatal.exit_code()), [4, 3, 7]);
    }
}
