//! Placement: which node should own which partition.
//!
//! [`ring`] decides, as plain code on the members and the seed of a store. It reads and writes
//! nothing; who owns a partition at present is for the store to say.

pub(crate) mod cluster;
pub(crate) mod lease;
pub(crate) mod member;
mod owner;
pub(crate) mod plan;
pub mod ring;
