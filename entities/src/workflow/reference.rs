//! Typed references to workflows, as plain values or bound to a node or a URL.

use std::{fmt, marker::PhantomData, ops::Deref, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{SavedHistory, StartPolicy, Started, StatusView, WorkflowType};
use crate::{
    Answer, BoxFuture, CallError, EntityId, Error, ErrorKind, Failure, Operation, Query, Reference,
    Timeout, Unbound,
    operation::{Argument, Caller},
};

/// The untyped core of a reference to a workflow: its id, and what it is bound to. Its methods make operations: awaited they
/// are calls, answered when what they ask for is durable; as plain values they are signals for entities and other
/// workflows to send.
#[derive(Debug, Clone)]
pub struct InstanceReference<B = Unbound>(Reference<B>);

/// A reference to the workflow of a key, by its type.
pub struct WorkflowReference<W, B = Unbound> {
    instance: InstanceReference<B>,
    of: PhantomData<fn() -> W>,
}

/// A workflow with a typed reference; `#[workflow]` writes this.
pub trait TypedWorkflow: WorkflowType {
    /// The reference, bound to `B`.
    type Reference<B: Clone>;
    /// Dresses an untyped reference.
    fn reference<B: Clone>(instance: InstanceReference<B>) -> Self::Reference<B>;
}

/// Something that can wait for the end of workflows: a node, a cluster or a URL.
pub trait WorkflowCaller: Caller {
    /// The answer that a workflow ended with, as JSON, once that is durable; `None` where it has not ended after so
    /// long.
    fn outcome(
        &self,
        id: EntityId,
        wait: Duration,
    ) -> BoxFuture<'static, Result<Option<Vec<u8>>, Error>>;
}

impl<B: WorkflowCaller> InstanceReference<B> {
    /// Waits for a result of this type, however long it takes. Dropping the future cancels nothing.
    ///
    /// # Errors
    /// The failure that it ended with; [`ErrorKind::NotFound`] where it was not started.
    pub async fn result_of<T: DeserializeOwned>(&self) -> Result<T, ResultError> {
        loop {
            if let Some(result) = self.result_within(WAIT).await? {
                return Ok(result);
            }
        }
    }

    /// Waits for a result of this type for so long; `None` where it is not there by then.
    ///
    /// # Errors
    /// As [`InstanceReference::result_of`].
    pub async fn result_within<T: DeserializeOwned>(
        &self,
        wait: Duration,
    ) -> Result<Option<T>, ResultError> {
        let (id, caller) = self.0.parts()?;
        let Some(outcome) = caller.outcome(id, wait).await? else { return Ok(None) };
        let answer = serde_json::from_slice::<Answer<T>>(&outcome).map_err(unreadable)?;
        Ok(Some(answer?))
    }
}

impl<W: WorkflowType, B: WorkflowCaller> WorkflowReference<W, B> {
    /// Waits for its result, however long it takes. Dropping the future cancels nothing.
    ///
    /// # Errors
    /// As [`InstanceReference::result_of`].
    pub async fn result(&self) -> Result<W::Output, ResultError> {
        self.instance.result_of().await
    }
}

/// Why there is no result of a workflow.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResultError {
    /// It ended with a failure.
    #[error(transparent)]
    Ended(#[from] Failure),
    /// It could not be asked.
    #[error(transparent)]
    Failed(#[from] Error),
}

fn unreadable(error: serde_json::Error) -> Error {
    let message = "the result does not have the type that this reference expects";
    Error::new(ErrorKind::Internal, message).with_source(error)
}

/// How long one wait for a result is, before it is begun again.
const WAIT: Duration = Duration::from_secs(30);

/// The part of a page of a history that says where the next one begins.
#[derive(Deserialize)]
struct NextPage {
    next: Option<u64>,
}

/// JSON text as an argument.
struct Raw(Result<Vec<u8>, Error>);

impl Argument for Raw {
    fn to_json(&self) -> Result<Vec<u8>, Error> {
        self.0.clone()
    }
}

impl InstanceReference {
    /// The workflow of a type and key. A key that breaks the rules of [`EntityId`] surfaces when an operation is used.
    pub fn new(workflow_type: &str, key: &str) -> Self {
        Self(Reference::new(workflow_type, key))
    }
}

impl<B: Clone> InstanceReference<B> {
    /// The same workflow, bound to `bound`.
    pub fn bind<C>(self, bound: C) -> InstanceReference<C> {
        InstanceReference(self.0.bind(bound))
    }

    /// Starts it as a `W`; see [`WorkflowReference::start`].
    pub fn start_of<W: WorkflowType>(&self, input: &W::Input) -> Start<W, B> {
        let (policy, deadline, input) = (StartPolicy::default(), None, input.to_json());
        Start { reference: self.0.clone(), input, policy, deadline, of: PhantomData }
    }

    /// Its status, with a result of this type.
    pub fn status_of<T>(&self) -> Query<StatusView<T>, B> {
        self.0.query("status", None)
    }

    /// The history of its present run, with which later code can be tried: see [`SavedHistory::replay`]. It is read in
    /// pages, anew where it begins another run meanwhile.
    ///
    /// # Errors
    /// As a query has.
    pub async fn history(&self) -> Result<SavedHistory, CallError>
    where
        B: Caller,
    {
        let mut history = None::<SavedHistory>;
        let mut after = Some(0);
        while let Some(from) = after {
            let argument = Raw(Ok(serde_json::json!({ "after": from }).to_string().into_bytes()));
            let page: Box<RawValue> = self.0.query("history", Some(&argument)).committed().await?;
            let read = |error| CallError::Failed(unreadable(error));
            let found: SavedHistory = serde_json::from_str(page.get()).map_err(read)?;
            after = serde_json::from_str::<NextPage>(page.get()).map_err(read)?.next;
            match &mut history {
                Some(known) if known.is_before(&found) => known.turns.extend(found.turns),
                Some(_) => (history, after) = (None, Some(0)),
                None => history = Some(found),
            }
        }
        Ok(history.unwrap_or_default())
    }

    /// Raises an event: it is taken by the oldest wait for its name, also by one that is to come. It is rejected with
    /// the code `unknown` before the start, `ended` behind the end, and `too_many_events` where too many wait. As a signal,
    /// whose sender hears of no rejection, it waits for a start, seven days at most, and behind too many others until some of
    /// those were taken; what is rejected becomes a dead letter.
    pub fn event<T: Serialize + ?Sized>(&self, name: &str, payload: &T) -> Operation<(), B> {
        let name = serde_json::Value::from(name);
        let json = payload.to_json().map(|payload| {
            [format!("{{\"name\":{name},\"payload\":").as_bytes(), &payload, b"}"].concat()
        });
        self.0.operation("event", Some(&Raw(json)))
    }

    /// Has everything that is outstanding fail with [`Failure::Cancelled`](crate::Failure::Cancelled), once, so that the
    /// code ends in order.
    pub fn cancel(&self) -> Operation<(), B> {
        self.0.operation("cancel", None)
    }

    /// Ends it at once, without its code. Its steps are told, and its children terminated.
    pub fn terminate(&self, reason: &str) -> Operation<(), B> {
        self.0.operation("terminate", Some(&reasoned(reason)))
    }

    /// Has it wait: what arrives is kept, and handed over when it is resumed.
    pub fn suspend(&self, reason: &str) -> Operation<(), B> {
        self.0.operation("suspend", Some(&reasoned(reason)))
    }

    /// Has it go on.
    pub fn resume(&self) -> Operation<(), B> {
        self.0.operation("resume", None)
    }

    /// Tries it again where it is stuck.
    pub fn retry(&self) -> Operation<(), B> {
        self.0.operation("retry", None)
    }

    /// Has one that has ended otherwise than with a result go on from before the failures with which it did: those that
    /// came since it last began something, while successes among them stay; where there are none, the last one, with
    /// everything behind it. What was begun before and is not done begins again; children that have failed are rewound
    /// too. The new run has the next number, and its steps other tokens.
    ///
    /// It is rejected with the code `conflict` where it goes on, has a result, or its code no longer fits.
    pub fn rewind(&self) -> Operation<Started, B> {
        self.0.operation("rewind", Some(&Raw(Ok(b"{}".to_vec()))))
    }

    /// Has one that has ended, or is stuck, go on from before the operation at a place, such as `3.1`, and what began in
    /// the same turn. What led to that is kept, and not made again; everything behind it is void, and is done anew by the
    /// code as it is now. Events that were taken behind it are gone: who raised them does so again.
    ///
    /// It is rejected as [`InstanceReference::rewind`], and with `unknown_place` where its history has no such place.
    pub fn rewind_to(&self, place: &str) -> Operation<Started, B> {
        let json = serde_json::json!({ "place": place }).to_string().into_bytes();
        self.0.operation("rewind", Some(&Raw(Ok(json))))
    }

    /// Begins one that has ended anew, with the same input.
    pub fn restart(&self) -> Operation<Started, B> {
        self.0.operation("restart", Some(&Raw(Ok(b"{}".to_vec()))))
    }

    /// Starts another one of the type with the same input.
    pub fn restart_as(&self, key: &str) -> Operation<Started, B> {
        let json = serde_json::json!({ "key": key }).to_string().into_bytes();
        self.0.operation("restart", Some(&Raw(Ok(json))))
    }

    /// Deletes it with everything of it, when it has ended.
    pub fn purge(&self) -> Operation<(), B> {
        self.0.operation("purge", Some(&Raw(Ok(b"{}".to_vec()))))
    }

    /// The same, with its children and theirs.
    pub fn purge_all(&self) -> Operation<(), B> {
        self.0.operation("purge", Some(&Raw(Ok(b"{\"recursive\":true}".to_vec()))))
    }
}

impl<W: WorkflowType> WorkflowReference<W> {
    /// The workflow of a key. A key that breaks the rules of [`EntityId`] surfaces when an operation is used.
    pub fn new(key: &str) -> Self {
        Self { instance: InstanceReference::new(W::NAME, key), of: PhantomData }
    }
}

impl<W: WorkflowType, B: Clone> WorkflowReference<W, B> {
    /// The same workflow, bound to `bound`.
    pub fn bind<C>(self, bound: C) -> WorkflowReference<W, C> {
        WorkflowReference { instance: self.instance.bind(bound), of: PhantomData }
    }

    /// Starts it, or joins it where it goes on with the same input.
    ///
    /// A start with another input is rejected with the code `conflict`. One that has ended is replaced.
    pub fn start(&self, input: &W::Input) -> Start<W, B> {
        self.instance.start_of(input)
    }

    /// Its status, with its result where it has one.
    pub fn status(&self) -> Query<StatusView<W::Output>, B> {
        self.instance.status_of()
    }
}

impl<W, B> Deref for WorkflowReference<W, B> {
    type Target = InstanceReference<B>;
    fn deref(&self) -> &InstanceReference<B> {
        &self.instance
    }
}

fn reasoned(reason: &str) -> Raw {
    Raw(Ok(serde_json::json!({ "reason": reason }).to_string().into_bytes()))
}

/// A start of a workflow as a plain value.
#[must_use = "a start does nothing until it is awaited, signalled or handed to a workflow"]
pub struct Start<W, B = Unbound> {
    reference: Reference<B>,
    input: Result<Vec<u8>, Error>,
    policy: StartPolicy,
    deadline: Option<Timeout>,
    of: PhantomData<fn() -> W>,
}

impl<W: WorkflowType, B: Clone> Start<W, B> {
    /// Says what happens where there is an instance of the key.
    pub fn policy(mut self, policy: StartPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Limits how long the whole may take: then it is cancelled, and terminated a minute later.
    pub fn deadline(mut self, length: impl Into<Timeout>) -> Self {
        self.deadline = Some(length.into());
        self
    }

    /// The operation that it is.
    pub fn operation(self) -> Operation<Started, B> {
        self.make(false)
    }

    pub(super) fn make(self, is_child: bool) -> Operation<Started, B> {
        let Self { reference, input, policy, deadline, .. } = self;
        let json = input.map(|input| {
            let policy = serde_json::json!(policy);
            let mut json = [&b"{\"input\":"[..], &input, b",\"policy\":"].concat();
            json.extend(policy.to_string().bytes());
            if let Some(deadline) = deadline {
                json.extend(format!(",\"deadline\":{}", serde_json::json!(deadline)).bytes());
            }
            if is_child {
                json.extend(b",\"is_child\":true");
            }
            json.push(b'}');
            json
        });
        reference.operation("start", Some(&Raw(json)))
    }
}

impl<W: WorkflowType, B: Caller> std::future::IntoFuture for Start<W, B> {
    type Output = Result<Started, crate::CallError>;
    type IntoFuture = crate::BoxFuture<'static, Self::Output>;
    fn into_future(self) -> Self::IntoFuture {
        self.operation().into_future()
    }
}

impl<W, B: Clone> Clone for WorkflowReference<W, B> {
    fn clone(&self) -> Self {
        Self { instance: self.instance.clone(), of: PhantomData }
    }
}
impl<W, B: fmt::Debug> fmt::Debug for WorkflowReference<W, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.instance.fmt(f)
    }
}
impl<W, B> fmt::Debug for Start<W, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Start").field("policy", &self.policy).finish_non_exhaustive()
    }
}
