//! The binary `stead`: a node that serves the ready-made entities and workflows over HTTP.

use stead::stock::{Approval, ApprovalWorkflow, Counter};

/// Requests are made on one thread and freed on another, which the system's allocator serialises.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    stead::server::run(|node| {
        node.entity::<Counter>().entity::<Approval>().workflow(ApprovalWorkflow)
    })
}
