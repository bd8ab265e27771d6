#![doc = include_str!("docs/crate.md")]

extern crate self as stead;

mod admission;
#[cfg(feature = "client")]
mod client;
pub mod clock;
mod commit;
pub mod config;
pub mod docs;
mod entropy;
mod errors;
#[cfg(any(feature = "client", feature = "http"))]
mod escape;
mod guard;
mod host;
#[cfg(feature = "http")]
mod http;
mod lease;
#[cfg(feature = "http")]
mod listen;
mod map;
mod memory;
mod node;
mod partition;
pub mod placement;
mod rules;
#[cfg(feature = "server")]
pub mod server;
pub mod store;
pub mod telemetry;
pub mod testing;
mod threads;
pub mod transport;
mod types;

use stead_entities::sabotage;

#[cfg(feature = "client")]
pub use client::{Client, WorkflowClient};
pub use commit::Fatal;
pub use config::Config;
#[cfg(feature = "http")]
pub use http::{CallerIdentity, EntityPath, Routes, Server, ServerSettings};
#[cfg(feature = "http")]
pub use listen::{Listen, ListenError};
pub use memory::MemoryDivision;
pub use node::{
    BulkView, Change, ChangeEvent, Changes, CronView, DeadLetterView, Deletion, EntityView, Events,
    Find, Listed, LockView, Node, NodeBuilder, ReminderView, SelectedView, Snapshot, StartError,
    TypeChange, TypeChangeEvent, TypeChanges, UnservedView, UpgradeView, VersionView, VersionsView,
    WorkflowChange, WorkflowsChanged,
};
pub use partition::reply::StateView;
#[cfg(feature = "postgres")]
pub use store::PostgresStore;
#[cfg(feature = "rocksdb")]
pub use store::RocksStore;

pub use stead_entities::{
    Accepted, After, Answer, At, BoxFuture, CallError, Caller, Cause, Condition, Context, Cron,
    DeadLetter, Delay, Dependencies, Dependency, Deserialize, Entity, EntityId, Error, ErrorKind,
    Every, Failure, Index, IndexType, Json, JsonSchema, Layout, Log, Logged, Map, Missed,
    Operation, OperationType, Origin, Policy, Query, Reference, Rejection, ReminderId, Request,
    Schedule, Serialize, Then, Timeout, Timestamp, TraceContext, TypedReference, Unbound, Version,
    ask, collections, context, dependencies, effect, entity, error, failure, id, index, input,
    json, operation, policy, schedule, schemars, serde, state, stock, stored, time, workflow,
};
pub use store::DeadLetterFilter;
pub use store::tables::dead_letters::DeadLetterId;
