//! Tests of entities, without a store, a network or a clock that ticks by itself.
//!
//! Three things, of which each costs more than the one before and shows more:
//!
//! - [`Driver`] drives one entity by hand: its operations, its reminders, what it sends.
//! - [`Drivers`] drives entities of several types that reach one another.
//! - [`NodeTest`] runs a whole node in memory: real turns, commits, retries and recoveries, with time that
//!   moves when told, faults by seed, and a crash before and behind every commit. It needs the feature `testing`, and no
//!   RocksDB.

#[cfg(feature = "testing")]
mod commits;
#[cfg(feature = "testing")]
mod node;
#[cfg(feature = "testing")]
mod run;

#[cfg(feature = "testing")]
pub use self::{
    commits::{CommitFaults, Committed},
    node::TestNode,
    run::NodeTest,
};
#[cfg(feature = "testing")]
pub use crate::store::memory::Fault;
pub use stead_entities::testing::*;
