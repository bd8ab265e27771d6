#![doc = include_str!("docs/crate.md")]

extern crate self as stead_entities;

pub mod ask;
pub mod collections;
pub mod context;
pub mod dependencies;
pub mod effect;
pub mod entity;
pub mod error;
pub mod failure;
#[doc = include_str!("docs/authors.md")]
pub mod guide {
    #[doc = include_str!("docs/workflows.md")]
    pub mod workflows {}
}
pub mod id;
pub mod index;
pub mod input;
pub mod json;
mod macro_support;
pub mod operation;
pub mod origin;
pub mod policy;
#[cfg(feature = "http")]
pub mod problem;
#[doc(hidden)]
pub mod sabotage;
pub mod schedule;
pub mod state;
pub mod stock;
pub mod stored;
pub mod testing;
pub mod time;
pub mod workflow;

pub use ask::{Answer, Then};
pub use collections::{Log, Logged, Map};
pub use context::Context;
pub use dependencies::{Dependencies, Dependency};
pub use effect::Delay;
pub use entity::{Entity, OperationType, TypedReference};
pub use error::{CallError, Error, ErrorKind};
pub use failure::{Cause, DeadLetter, Failure, Rejection};
pub use id::EntityId;
pub use index::{Index, IndexType};
pub use json::Json;
pub use operation::{
    Accepted, BoxFuture, Caller, Condition, Operation, Query, Reference, ReminderId, Request,
    Unbound, Version,
};
pub use origin::{Origin, TraceContext};
pub use policy::Policy;
pub use schedule::{After, At, Cron, Every, Missed, Schedule};
pub use schemars::{self, JsonSchema};
pub use serde::{self, Deserialize, Serialize};
pub use state::Layout;
pub use stead_macros::{Layout, entity, workflow};
pub use time::{Timeout, Timestamp};
