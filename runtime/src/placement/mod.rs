//! Placement: who is there, who owns what, and who should.
//!
//! ```text
//! member: joins, renews the lease --- lost ---> all partitions are dropped, and it joins again
//! owner:  looks at the store -> evicts the dead, takes what is free and due to it,
//!                               hands over what is due to others, hosts what it owns
//! plan, ring, lease: plain code
//! ```
//!
//! [`ring`] says which node should own which partition, as plain code on the members and the seed of a
//! store. Who owns one at present is for the store to say; nothing here is ever stronger than the
//! fence in it.

pub(crate) mod cluster;
mod links;
pub(crate) mod member;
mod owner;
pub(crate) mod plan;
pub mod ring;
mod view;

pub use view::{ClusterView, MemberView, MoveView, PartitionView, Placement};
