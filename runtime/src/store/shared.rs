//! The trait of a store that many nodes share: membership, leases and ownership, beside the data.
//!
//! Everything here is judged by the store's own clock and changed by compare-and-set, so that it
//! does not matter how late or how often a node asks. A node is known by its incarnation; whatever an
//! incarnation asks for that has lost its lease is answered [`MemberError::Lost`] and changes
//! nothing.
//!
//! What must never happen: a lease that ran out is renewed; a partition changes hands while its owner
//! can still commit. So evicting a node closes its commit lanes, which waits for a batch in flight,
//! in the same step that frees its partitions.

use std::{sync::Arc, time::Duration};

use stead_entities::{BoxFuture, Timestamp};

use super::{ReadResult, Store};

/// A node as it presents itself to the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Its name; one node at a time holds it.
    pub name: Arc<str>,
    /// The address at which its peers reach it.
    pub address: Arc<str>,
    /// Its share of the partitions, beside the others': 1 to 64.
    pub weight: u32,
    /// The entity types that it serves, in order.
    pub types: Vec<String>,
    /// How long its lease lasts without being renewed.
    pub lease: Duration,
    /// A code by which nodes compare their secrets without telling them.
    pub secret: Vec<u8>,
}

/// The result of joining.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joined {
    /// The incarnation of the node; it grows with each join. Its lane begins behind batch 0.
    pub incarnation: u64,
    /// The store's time.
    pub time: Timestamp,
}

/// The result of renewing a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// The version of the membership: it grows with each join, leave and eviction.
    pub membership: u64,
    /// The version of the ownership: it grows with each partition that is taken or given up.
    pub ownership: u64,
    /// Whether the lease of any member has run out.
    pub has_expired: bool,
    /// The store's time.
    pub time: Timestamp,
}

/// The members and the owners of partitions at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterState {
    /// The version of the membership.
    pub membership: u64,
    /// The members, by name; those whose leases have run out too, until they are evicted.
    pub members: Vec<Member>,
    /// The owners, by partition.
    pub partitions: Vec<Ownership>,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: Arc<str>,
    /// Its incarnation.
    pub incarnation: u64,
    /// The address at which its peers reach it.
    pub address: Arc<str>,
    /// Its share of the partitions, beside the others'.
    pub weight: u32,
    /// The entity types that it serves, in order.
    pub types: Vec<String>,
    /// Whether it is giving up its partitions in order to stop.
    pub is_leaving: bool,
    /// How much of its lease was left when the view was read.
    pub lease_left: Duration,
}

/// The owner of a partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ownership {
    /// The incarnation of the owner; `None` where it has been given up.
    pub owner: Option<u64>,
    /// Grows each time the partition is taken or given up.
    pub epoch: u64,
    /// Whether its last owner lost it instead of giving it up.
    pub was_unclean: bool,
}

impl ClusterState {
    /// The version of the ownership: every change of an owner raises one epoch.
    pub fn ownership(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.epoch).sum()
    }

    /// The member of this incarnation.
    pub fn member(&self, incarnation: u64) -> Option<&Member> {
        self.members.iter().find(|member| member.incarnation == incarnation)
    }
}

/// Why a node cannot do what it asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// Another node holds the name, and its lease has so much left.
    #[error("the name is held by incarnation {incarnation} for another {left:?}")]
    Held {
        /// The incarnation that holds it.
        incarnation: u64,
        /// The time left of its lease.
        left: Duration,
    },
    /// A member that is alive has another secret.
    #[error("the cluster's secret is not the one of node {0}")]
    Stranger(Arc<str>),
    /// This incarnation is no longer a member.
    #[error("the lease is lost")]
    Lost,
    /// The store does not answer; whether it was done is told by the next view.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
}

/// An answer about membership.
pub type MemberResult<T> = Result<T, MemberError>;

/// A store that many nodes share. The conformance suite checks every implementation.
///
/// A future of it that is dropped may or may not have taken effect, never in part.
pub trait SharedStore: Store {
    /// Joins under a new incarnation, with a commit lane of its own. A node of the same name whose
    /// lease has run out is evicted. Refused where a member that is alive has another secret.
    fn join(&self, node: Registration) -> BoxFuture<'_, MemberResult<Joined>>;
    /// Renews the lease of a member, if it has not run out.
    fn renew(&self, incarnation: u64) -> BoxFuture<'_, MemberResult<Renewed>>;
    /// Reads who is there and who owns what.
    fn view(&self) -> BoxFuture<'_, ReadResult<ClusterState>>;
    /// Removes a member whose lease has run out: closes its lanes, then frees its partitions. Says
    /// whether it did; it does nothing where the lease has not run out.
    fn evict(&self, incarnation: u64) -> BoxFuture<'_, MemberResult<bool>>;
    /// Takes those of `partitions` that are free.
    fn acquire(&self, incarnation: u64, partitions: Vec<u16>) -> BoxFuture<'_, MemberResult<()>>;
    /// Announces that a member will stop: it keeps what it owns, and is due nothing more.
    fn announce_leave(&self, incarnation: u64) -> BoxFuture<'_, MemberResult<()>>;
    /// Ends a membership: closes the lanes and frees what the member still owns.
    fn leave(&self, incarnation: u64) -> BoxFuture<'_, MemberResult<()>>;
}
