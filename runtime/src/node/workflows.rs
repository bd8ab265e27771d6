//! Waiting for the end of a workflow, at whichever node is asked: it reads what is durable, whenever there is news.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use stead_entities::{
    BoxFuture, Caller as _, EntityId, Error, ErrorKind, Request, operation::Reply,
    workflow::WorkflowCaller,
};

use super::Node;
#[cfg(feature = "http")]
use super::local::Local;
use crate::{clock, commit::Watched};

/// The query of an instance that gives the answer that it ended with.
const OUTCOME: &str = "outcome";
/// How long a workflow that is restarted under another key is waited for.
#[cfg(feature = "http")]
const START_MAX: Duration = Duration::from_secs(10);

impl WorkflowCaller for Node {
    fn outcome(
        &self,
        id: EntityId,
        wait: Duration,
    ) -> BoxFuture<'static, Result<Option<Vec<u8>>, Error>> {
        let node = self.clone();
        Box::pin(async move { outcome(&node, &id, wait).await })
    }
}

/// Waits until a workflow is there that another one was asked to start, a while at most. Cancel safe.
#[cfg(feature = "http")]
pub(crate) async fn until_started(node: &Node, id: &EntityId) {
    let Ok(mut news) = node.0.host.subscribers().subscribe(Watched::Entity(id.clone())) else {
        return;
    };
    let deadline = clock::deadline_after(START_MAX);
    while !matches!(node.committed_state_of(id).await, Ok(Some(_))) {
        let left = deadline.saturating_duration_since(clock::monotonic());
        if clock::within(left, news.news()).await != Some(true) {
            return;
        }
    }
}

#[cfg(feature = "http")]
impl Local {
    /// Whether a type that this node serves is a workflow.
    pub(crate) fn is_workflow(&self, name: &str) -> bool {
        self.host.types().get(name).is_some_and(|known| known.is_workflow())
    }
}

/// The answer that a workflow ended with. Cancel safe.
async fn outcome(node: &Node, id: &EntityId, wait: Duration) -> Result<Option<Vec<u8>>, Error> {
    let subscribers = node.0.host.subscribers();
    // Who subscribes before it reads misses nothing.
    let mut news = subscribers.subscribe(Watched::Entity(id.clone()))?;
    let deadline = clock::deadline_after(wait);
    loop {
        let mut request = Request::new(id.clone(), OUTCOME, Vec::new());
        request.reads_committed = true;
        let outcome = read::<Option<Box<RawValue>>>(node.query(request).await?)?;
        if let Some(outcome) = outcome {
            return Ok(Some(outcome.get().as_bytes().to_vec()));
        }
        let left = deadline.saturating_duration_since(clock::monotonic());
        match clock::within(left, news.news()).await {
            Some(true) => {}
            Some(false) => {
                let why = "the node is stopping: ask another one, or again";
                return Err(Error::new(ErrorKind::Closed, why));
            }
            None => return Ok(None),
        }
    }
}

fn read<T: DeserializeOwned>(reply: Reply) -> Result<T, Error> {
    let json = reply.map_err(|no| Error::new(ErrorKind::NotFound, no.reason()))?;
    serde_json::from_slice(&json).map_err(|error| {
        Error::new(ErrorKind::Internal, "an outcome that cannot be read").with_source(error)
    })
}
