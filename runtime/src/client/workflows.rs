//! Workflows behind a URL.

use std::time::Duration;

use serde_json::value::RawValue;
use stead_entities::{
    Accepted, BoxFuture, Caller, EntityId, Error, ErrorKind, ReminderId, Request,
    workflow::{InstanceReference, Status, TypedWorkflow, WorkflowCaller},
};

use super::{Answered, Client, DEADLINE, Method, Prepared, QUERIES, SIGNALS, Timeout, accepted};

/// The longest wait that one request asks for.
const WAIT_MAX: u64 = 60;

/// The workflows behind a URL: what [`Client::workflow`] binds references to. Operations are tried again as those of a
/// [`Client`] are.
#[derive(Debug, Clone)]
pub struct WorkflowClient(Client);

impl Client {
    /// A typed reference to a workflow behind this URL.
    ///
    /// ```no_run
    /// # use stead::{Client, stock::ApprovalWorkflow, workflow::InstanceReference};
    /// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = Client::new("http://127.0.0.1:8080")?;
    /// let approval = client.instance("approval-workflow", "trip-7");
    /// approval.start_of::<ApprovalWorkflow>(&None).await?;
    /// approval.event("ApprovalEvent", &true).await?;
    /// let result: String = approval.result_of().await?;
    /// # Ok(()) }
    /// ```
    pub fn workflow<W: TypedWorkflow>(&self, key: impl AsRef<str>) -> W::Reference<WorkflowClient> {
        W::reference(self.instance(W::NAME, key.as_ref()))
    }

    /// An untyped reference to a workflow behind this URL.
    pub fn instance(&self, workflow_type: &str, key: &str) -> InstanceReference<WorkflowClient> {
        InstanceReference::new(workflow_type, key).bind(WorkflowClient(self.clone()))
    }
}

impl WorkflowClient {
    fn send(&self, kind: &'static str, request: Request) -> BoxFuture<'static, Answered> {
        self.0.send("workflows", kind, request)
    }
}

impl Caller for WorkflowClient {
    fn call(&self, request: Request) -> BoxFuture<'static, Answered> {
        self.send("calls", request)
    }

    fn signal(&self, request: Request) -> BoxFuture<'static, Result<Accepted, Error>> {
        let sent = self.send(SIGNALS, request);
        Box::pin(async move { Ok(accepted(&sent.await?.unwrap_or_default())) })
    }

    fn query(&self, request: Request) -> BoxFuture<'static, Answered> {
        self.send(QUERIES, request)
    }

    fn cancel_reminder(&self, _: EntityId, _: ReminderId) -> BoxFuture<'static, Result<(), Error>> {
        let why = "a workflow has no reminders: what it waits for ends with it";
        Box::pin(async move { Err(Error::new(ErrorKind::Invalid, why)) })
    }
}

/// The part of a status that says how a workflow has ended.
#[derive(serde::Deserialize)]
struct Ended<'a> {
    status: Status,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
    #[serde(borrow)]
    failure: Option<&'a RawValue>,
}

impl WorkflowCaller for WorkflowClient {
    fn outcome(
        &self,
        id: EntityId,
        wait: Duration,
    ) -> BoxFuture<'static, Result<Option<Vec<u8>>, Error>> {
        let client = self.0.clone();
        Box::pin(async move {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            let mut url = client.url(&["v1", "workflows", id.entity_type(), id.key()]);
            url.set_query(Some(&format!("wait={}s", seconds.min(WAIT_MAX))));
            let asked = Prepared::bare(Method::GET, url);
            let timeout = Timeout::new(wait.saturating_add(DEADLINE), true);
            let status = client.until_answered(&asked, timeout).await?;
            let status = status.map_err(|no| Error::new(ErrorKind::Invalid, no.reason()))?;
            let ended: Ended<'_> = serde_json::from_slice(&status).map_err(|error| {
                Error::new(ErrorKind::Internal, "a status that cannot be read").with_source(error)
            })?;
            let outcome = match (ended.status.is_end(), ended.failure) {
                (false, _) => return Ok(None),
                (true, Some(failure)) => format!("{{\"Err\":{failure}}}"),
                (true, None) => {
                    format!("{{\"Ok\":{}}}", ended.output.map_or("null", RawValue::get))
                }
            };
            Ok(Some(outcome.into_bytes()))
        })
    }
}
