//! Ready-made entities, written with the public interface only: read them first.

mod approval;
mod approval_workflow;
mod counter;
mod topic;

pub use approval::{Approval, ApprovalRef, Request as ApprovalRequest, Status, Target};
pub use approval_workflow::{ApprovalTimeout, ApprovalWorkflow};
pub use counter::{Counter, CounterRef};
pub use topic::{Published, Subscriber, Topic, TopicRef};
