//! Steps: what a workflow does outside. A step may do anything; it runs at least once, after the turn that began it is
//! durable, with the same token on every attempt, and its outcome is recorded once.

use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    ops::Deref,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    BoxFuture, Dependencies, Failure, Rejection, Timeout,
    input::{InputError, decode},
    json,
};

/// How often a step is tried, unless it says otherwise.
pub const ATTEMPTS: u32 = 8;
/// The wait before the second attempt of a step, unless it says otherwise; it doubles with each further one.
pub const BACKOFF: Duration = Duration::from_secs(1);
/// The longest wait between attempts, unless the step says otherwise.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// How long an attempt of a step may take, unless it says otherwise.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a step that was cancelled may go on before it is dropped.
pub const CANCEL_GRACE: Duration = Duration::from_secs(10);

/// Why an attempt of a step has no result.
///
/// `?` makes one of every error, and the step is tried again; of a [`Rejection`], which is the outcome at once;
/// and of a [`Failure`], as that says. It has no source to look at: what is recorded is its text.
pub struct StepError {
    failure: Failure,
}

impl StepError {
    /// Fails this attempt; the step is tried again, as often as it may be.
    pub fn new(reason: impl fmt::Display) -> Self {
        Self { failure: Failure::retry(reason) }
    }

    /// Fails the step for good: it is not tried again.
    pub fn fatal(reason: impl fmt::Display) -> Self {
        Self { failure: Failure::fatal(reason) }
    }

    /// Sets how long to wait before the next attempt, in place of the back-off.
    #[must_use]
    pub fn after(self, length: impl Into<Timeout>) -> Self {
        Self { failure: self.failure.after(length) }
    }

    /// The failure inside. For runtimes and test drivers.
    pub fn into_failure(self) -> Failure {
        self.failure
    }
}

// Not an error itself, so that `?` takes every one that there is.
impl<E: StdError + Send + Sync + 'static> From<E> for StepError {
    fn from(error: E) -> Self {
        let error: Box<dyn StdError + Send + Sync> = Box::new(error);
        let error = match error.downcast::<Rejection>() {
            Ok(rejection) => return Self { failure: Failure::Rejected(*rejection) },
            Err(error) => error,
        };
        match error.downcast::<Failure>() {
            Ok(failure) => Self { failure: *failure },
            Err(error) => Self::new(chain(&*error)),
        }
    }
}

/// An error with its sources, in words.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

impl fmt::Debug for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StepError").field(&self.failure).finish()
    }
}
impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}

/// The attempt of a step, as its code sees it. Given to code in place, it is the value of the workflow's type too.
#[derive(Clone)]
pub struct Step<W = ()> {
    given: Arc<W>,
    attempt: Arc<Attempt>,
}

/// An attempt of a step, as a runtime or a test driver describes it.
#[derive(Debug)]
pub struct Attempt {
    /// The id of the workflow.
    pub workflow: crate::EntityId,
    /// The same on every attempt of the step in its run.
    pub token: u128,
    /// The number of the attempt, from 1 on.
    pub number: u32,
    /// Whether it is to end.
    pub cancellation: Cancellation,
}

impl<W> Step<W> {
    /// Describes an attempt. For runtimes and test drivers.
    pub(super) fn new(given: Arc<W>, attempt: Arc<Attempt>) -> Self {
        Self { given, attempt }
    }

    /// The name of this step for the outside world: 32 hexadecimal digits, the same on every attempt, so that an
    /// outside service can de-duplicate what it is asked.
    pub fn token(&self) -> String {
        format!("{:032x}", self.attempt.token)
    }

    /// The number of this attempt, from 1 on.
    pub fn attempt(&self) -> u32 {
        self.attempt.number
    }

    /// The id of the workflow.
    pub fn workflow(&self) -> &crate::EntityId {
        &self.attempt.workflow
    }

    /// Waits until this attempt is to end: the step was cancelled, its time is over, or its node stops. It is dropped
    /// [`CANCEL_GRACE`] later, and its result is of no use any more.
    pub async fn cancelled(&self) {
        self.attempt.cancellation.clone().await;
    }

    /// Whether this attempt is to end.
    pub fn is_cancelled(&self) -> bool {
        self.attempt.cancellation.is_cancelled()
    }
}

impl<W> Deref for Step<W> {
    type Target = W;
    fn deref(&self) -> &W {
        &self.given
    }
}
impl<W> fmt::Debug for Step<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Step").field(&self.attempt).finish()
    }
}

/// Tells an attempt of a step that it is to end; a future that is ready then.
#[derive(Clone, Debug, Default)]
pub struct Cancellation(Arc<CancellationState>);

#[derive(Debug, Default)]
struct CancellationState {
    is_cancelled: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl Cancellation {
    /// Tells everybody who waits.
    pub fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::SeqCst);
        let wakers =
            std::mem::take(&mut *self.0.wakers.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether it was told.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::SeqCst)
    }
}

impl Future for Cancellation {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut wakers = self.0.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_cancelled() {
            return Poll::Ready(());
        }
        wakers.retain(|known| !known.will_wake(cx.waker()));
        wakers.push(cx.waker().clone());
        Poll::Pending
    }
}

/// The result of an attempt: JSON, or why there is none.
pub type StepResult = Result<Vec<u8>, StepError>;

/// The code of a step, about to run.
pub(super) type StepBody =
    Box<dyn FnOnce(Arc<Attempt>, &Dependencies) -> BoxFuture<'static, StepResult> + Send>;

/// The options of one step that differ from those of all, and its code, where that is in place.
#[derive(Default)]
pub(super) struct StepOptions {
    pub(super) attempts: Option<u32>,
    pub(super) backoff: Option<(Duration, Duration)>,
    /// Of an attempt; no limit where it is zero.
    pub(super) timeout: Option<Duration>,
    /// Of the step with all its attempts.
    pub(super) deadline: Option<Duration>,
    pub(super) retry_if: Option<RetryIf>,
    /// Whether its code is in place, and that, until it is started.
    pub(super) is_in_place: bool,
    pub(super) body: Option<StepBody>,
}

/// Says of the text of a failure whether the step may be tried again.
type RetryIf = Arc<dyn Fn(&str) -> bool + Send + Sync>;

type StepFunction<W> = Box<
    dyn Fn(Arc<W>, Arc<Attempt>, &[u8]) -> Result<BoxFuture<'static, StepResult>, InputError>
        + Send
        + Sync,
>;

/// A step that is a method of the workflow's type: a row of the table that a
/// [`WorkflowType`](super::WorkflowType) has.
pub struct StepType<W> {
    name: &'static str,
    description: &'static str,
    pub(super) run: StepFunction<W>,
    pub(super) running_max: Option<usize>,
    input_schema: fn(&mut SchemaGenerator) -> Schema,
    output_schema: fn(&mut SchemaGenerator) -> Schema,
}

impl<W: Send + Sync + 'static> StepType<W> {
    /// A step. `A` is its argument, `()` for none.
    pub fn new<A, R, F>(
        name: &'static str,
        body: impl Fn(Arc<W>, Step, A) -> F + Send + Sync + 'static,
    ) -> Self
    where
        A: DeserializeOwned + JsonSchema + Send + 'static,
        R: Serialize + JsonSchema + 'static,
        F: Future<Output = Result<R, StepError>> + Send + 'static,
    {
        Self {
            name,
            description: "",
            run: Box::new(move |given, attempt, input| {
                let running = body(given, Step::new(Arc::default(), attempt), decode::<A>(input)?);
                Ok(Box::pin(async move { encoded(running.await?) }))
            }),
            running_max: None,
            input_schema: |generator| generator.subschema_for::<A>(),
            output_schema: |generator| generator.subschema_for::<R>(),
        }
    }

    /// Says what the step does.
    #[must_use]
    pub fn described(mut self, description: &'static str) -> Self {
        self.description = description;
        self
    }

    /// Limits how many of it run on a node at one time; others wait, in the order of their turns.
    #[must_use]
    pub fn at_most(mut self, running: usize) -> Self {
        self.running_max = Some(running);
        self
    }

    /// The name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its documentation.
    pub fn description(&self) -> &'static str {
        self.description
    }

    /// The JSON Schemas of its argument and of its result.
    pub fn schemas(&self, generator: &mut SchemaGenerator) -> (Schema, Schema) {
        ((self.input_schema)(generator), (self.output_schema)(generator))
    }
}

impl<W> fmt::Debug for StepType<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StepType").field(&self.name).finish()
    }
}

/// A result as JSON, within its limit.
pub(super) fn encoded<R: Serialize>(result: R) -> StepResult {
    let json = json::encode(&result);
    let json =
        json.map_err(|error| StepError::fatal(format!("the result has no JSON form: {error}")))?;
    match json.len() > super::PAYLOAD_BYTES_MAX {
        true => Err(StepError {
            failure: Failure::TooLarge(format!(
                "the result has {} bytes, the limit is {}",
                json.len(),
                super::PAYLOAD_BYTES_MAX
            )),
        }),
        false => Ok(json),
    }
}
