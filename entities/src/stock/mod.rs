//! Ready-made entities, written with the public interface only: read them first.

mod approval;
mod counter;

pub use approval::{Approval, ApprovalRef, Request as ApprovalRequest, Status, Target};
pub use counter::{Counter, CounterRef};
