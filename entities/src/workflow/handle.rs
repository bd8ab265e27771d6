//! The handle that the author's code has.

use std::{
    borrow::Cow,
    fmt,
    future::{Future, IntoFuture},
    marker::PhantomData,
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    PAYLOAD_BYTES_MAX, STATUS_BYTES_MAX, Start, WorkflowType,
    combine::{Branches, Many, private::Handle},
    core::{Core, End},
    history::{Begun, Kind},
    operation::{EventWait, Operation, StepOperation, read_answer, timer},
    step::{Step, StepError, encoded},
};
use crate::{
    Accepted, BoxFuture, Caller, EntityId, Error, ErrorKind, Failure, Operation as EntityOperation,
    ReminderId, Request, Timeout, Timestamp, TypedReference, operation::Argument as _,
    operation::Reply,
};

/// A running workflow, as its own code sees it: what it may do, and wait for. Cheap to clone.
///
/// An operation has its identity from where it is made, begins when it is first polled, and is given up when it is
/// dropped. The same operations have to be made again when the workflow is replayed: see
/// [`workflow`](mod@crate::workflow) for what that asks of the code.
pub struct Workflow<W> {
    pub(super) core: Arc<Core>,
    of: PhantomData<fn() -> W>,
}

impl<W> Workflow<W> {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self { core, of: PhantomData }
    }

    /// The id of the workflow.
    pub fn id(&self) -> EntityId {
        self.core.lock().identity.id.clone()
    }

    /// The key: the id without the type.
    pub fn key(&self) -> String {
        self.core.lock().identity.id.key().to_owned()
    }

    /// The number of the run: 1, and one more with each [`Workflow::continue_as`].
    pub fn run(&self) -> u32 {
        self.core.lock().identity.run
    }

    /// The version of the code that the run began with.
    pub fn version(&self) -> u32 {
        self.core.lock().identity.version
    }

    /// The time of the turn: the same until the workflow awaits, and on every replay.
    pub fn now(&self) -> Timestamp {
        self.core.lock().now
    }

    /// A random number, the same on every replay.
    pub fn random(&self) -> u64 {
        self.core.lock().random()
    }

    /// A random UUID (version 4), the same on every replay.
    pub fn uuid(&self) -> String {
        let mut state = self.core.lock();
        let bits = u128::from(state.random()) << 64 | u128::from(state.random());
        drop(state);
        let bits = (bits & !(0xF << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
        let text = format!("{bits:032x}");
        let (a, b) = (&text[..8], &text[8..12]);
        format!("{a}-{b}-{}-{}-{}", &text[12..16], &text[16..20], &text[20..])
    }

    /// Shows callers how far the workflow is. The last one of a turn counts; it is no part of the history.
    ///
    /// # Panics
    /// Where it has no JSON form, or more than [`STATUS_BYTES_MAX`] bytes of it.
    pub fn set_status(&self, status: &(impl Serialize + ?Sized)) {
        let json = crate::json::encode(status).expect("a status has a JSON form");
        let length = json.len();
        assert!(
            length <= STATUS_BYTES_MAX,
            "a status has {length} bytes, the limit is {STATUS_BYTES_MAX}"
        );
        self.core.lock().set_status(json.into());
    }

    /// Whether the history of this run is so long that it is better to [`Workflow::continue_as`] soon.
    pub fn history_is_long(&self) -> bool {
        self.core.lock().is_long
    }

    /// Whether this run reached the patch for the first time with a program that has it. The answer is the same
    /// throughout the run: a change behind it is met by runs that come here later, and not by those that were here
    /// before.
    pub fn patched(&self, name: &str) -> bool {
        self.core.lock().patched(name)
    }

    /// Whether this call was made for the first time with a program that has it: a loop that has run long ago gets the
    /// change in its next round.
    pub fn patched_now(&self, name: &str) -> bool {
        self.core.lock().patched_now(name)
    }

    /// Waits for so long, counted from this turn: up to the year 9999, also through downtime, never less.
    pub fn sleep(&self, length: impl Into<Timeout>) -> Operation<()> {
        timer(&self.core, |now| now + length.into().as_duration())
    }

    /// Waits until a moment; at once where it has passed.
    pub fn sleep_until(&self, moment: Timestamp) -> Operation<()> {
        timer(&self.core, |_| moment)
    }

    /// The next event of a name, also one that came before. Events of one name are taken in the order in which they
    /// came, by the waits in the order in which they began.
    pub fn event<T: DeserializeOwned>(&self, name: impl Into<Cow<'static, str>>) -> EventWait<T> {
        let mut state = self.core.lock();
        let place = state.scope.claim();
        let ready = state.new_operation(Begun::new(place, Kind::Event, name));
        drop(state);
        EventWait { event: Operation::new(&self.core, ready, read_answer) }
    }

    /// A step that is a method of the workflow's type.
    pub fn method<T, A>(&self, name: impl Into<Cow<'static, str>>, argument: &A) -> StepOperation<T>
    where
        T: DeserializeOwned,
        A: Serialize + ?Sized,
    {
        let argument = argument.to_json();
        let mut state = self.core.lock();
        let place = state.scope.claim();
        let begun = Begun::new(place, Kind::Step, name);
        let mut ready = state.new_operation(begun);
        drop(state);
        match argument.map_err(|error| error.to_string()).and_then(within_limit) {
            Ok(json) => ready.begun.argument = json.into(),
            // It fails as the step would that cannot read it.
            Err(why) => {
                ready.options.get_or_insert_default().body = Some(refused(why));
            }
        }
        StepOperation(Operation::new(&self.core, ready, read_answer))
    }

    /// A step in place, under a name: `ctx.step("rate", |shop| async move { shop.rate_of_the_day().await })`. The code
    /// gets the value of the workflow's type and what an attempt may know of itself, and runs outside of the
    /// workflow. What it takes along is moved into it.
    pub fn step<T, F, Fut>(&self, name: impl Into<Cow<'static, str>>, code: F) -> StepOperation<T>
    where
        W: WorkflowType,
        T: Serialize + DeserializeOwned + 'static,
        F: FnOnce(Step<W>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, StepError>> + Send + 'static,
    {
        let mut state = self.core.lock();
        let place = state.scope.claim();
        let mut ready = state.new_operation(Begun::new(place, Kind::Step, name));
        drop(state);
        let options = ready.options.get_or_insert_default();
        options.is_in_place = true;
        options.body = Some(Box::new(move |attempt, given| match given.get::<W>() {
            Some(given) => {
                let running = code(Step::new(given, attempt));
                Box::pin(async move { encoded(running.await?) })
            }
            None => refused(not_given::<W>())(attempt, given),
        }));
        StepOperation(Operation::new(&self.core, ready, read_answer))
    }

    /// A typed reference to an entity: awaiting one of its operations has it applied exactly once, and gives its
    /// result, its rejection or its final failure. Operations that are `pub(crate)` too. It has no queries: what they
    /// read may have changed when it is replayed.
    pub fn entity<E: TypedReference>(&self, key: &str) -> E::Reference<Self>
    where
        W: 'static,
    {
        E::reference(crate::Reference::new(E::NAME, key).bind(self.clone()))
    }

    /// Starts another workflow, and waits for its result. It is cancelled where nobody waits for it any more, and
    /// terminated with this one. Where the start is refused, so is the child.
    pub fn child<C: WorkflowType>(&self, start: Start<C>) -> Operation<C::Output> {
        let request = start.make(true).into_request().expect("a valid key and input");
        let begun = self.request(Kind::Child, request).expect("a start has no options");
        let ready = self.core.lock().new_operation(begun);
        Operation::new(&self.core, ready, |outcome| match read_answer(outcome) {
            Err(Failure::Rejected(no)) if no.code() == Some("conflict") => {
                Err(Failure::Conflict(no.reason().to_owned()))
            }
            answer => answer,
        })
    }

    /// A key for a child that no other place and no other run of this workflow makes.
    pub fn child_key(&self) -> String {
        let state = self.core.lock();
        let (identity, mut scope) = (&state.identity, state.scope.clone());
        match identity.run {
            1 => format!("{}~{}", identity.id.key(), scope.claim()),
            run => format!("{}~r{run}.{}", identity.id.key(), scope.claim()),
        }
    }

    /// Starts another workflow in the commit of this turn, which goes on by itself.
    ///
    /// # Panics
    /// Where its key or input is invalid.
    pub fn start<C: WorkflowType>(&self, start: Start<C>) {
        let request = start.operation().into_request().expect("a valid key and input");
        let begun = self.request(Kind::Detached, request).expect("a start has no options");
        self.core.send(begun, None);
    }

    /// Sends an operation to an entity, in the commit of this turn.
    ///
    /// # Panics
    /// Where the operation is none that an entity may send, and where the entity is locked by the section that the
    /// workflow is in.
    pub fn signal<R>(&self, operation: EntityOperation<R>) {
        let request = operation.into_request().expect("an operation with a valid key and argument");
        self.send(request).expect("an operation that may be sent here");
    }

    fn send(&self, request: Request) -> Result<(), Error> {
        let delay = request.delay;
        let begun = self.request(Kind::Signal, request)?;
        self.core.send(begun, delay);
        Ok(())
    }

    /// Goes on as a new run of this workflow with another input and no history. It never returns: what is outstanding
    /// is given up; events that nobody has waited for stay.
    pub async fn continue_as<T>(&self, input: W::Input) -> T
    where
        W: WorkflowType,
    {
        let json = input.to_json().map_err(|error| error.to_string()).and_then(within_limit);
        let json = json.expect("an input that can be stored");
        self.core.lock().end = Some(End::Continued(json.into()));
        std::future::pending().await
    }

    /// The first of several branches, a tuple of futures; the others are given up. Of branches that are done at the same
    /// time the one that rests on what came first in history wins, then the one that stands first.
    pub fn race<B: Branches>(&self, branches: B) -> B::Race {
        branches.race(&Handle(self.core.clone()))
    }

    /// All of several branches, a tuple of futures, with their outputs in this order.
    pub fn all<B: Branches>(&self, branches: B) -> B::All {
        branches.all(&Handle(self.core.clone()))
    }

    /// The first of many, with its number among them; `None` where there are none.
    pub async fn race_of<I>(&self, futures: I) -> Option<(usize, <I::Item as IntoFuture>::Output)>
    where
        I: IntoIterator,
        I::Item: IntoFuture,
    {
        Many::new(&self.core, futures).next().await
    }

    /// All of many, with their outputs in the order in which they are given.
    pub fn all_of<I>(
        &self,
        futures: I,
    ) -> impl Future<Output = Vec<<I::Item as IntoFuture>::Output>> + use<W, I>
    where
        I: IntoIterator,
        I::Item: IntoFuture,
    {
        let mut many = Many::new(&self.core, futures);
        async move {
            let mut outputs: Vec<_> = std::iter::repeat_with(|| None).take(many.len()).collect();
            while let Some((number, output)) = many.next().await {
                outputs[number] = Some(output);
            }
            outputs.into_iter().map(|output| output.expect("all are done")).collect()
        }
    }

    /// All of many, or the first failure, which gives the others up.
    ///
    /// # Errors
    /// The failure that came first.
    pub fn try_all<I, T>(
        &self,
        futures: I,
    ) -> impl Future<Output = Result<Vec<T>, Failure>> + use<W, I, T>
    where
        I: IntoIterator,
        I::Item: IntoFuture<Output = Result<T, Failure>>,
    {
        let mut many = Many::new(&self.core, futures);
        async move {
            let mut outputs: Vec<_> = std::iter::repeat_with(|| None).take(many.len()).collect();
            while let Some((number, output)) = many.next().await {
                outputs[number] = Some(output?);
            }
            Ok(outputs.into_iter().map(|output| output.expect("all are done")).collect())
        }
    }

    /// An operation for an entity or a workflow, which begins here.
    fn request(&self, kind: Kind, request: Request) -> Result<Begun, Error> {
        if request.idempotency_key.is_some()
            || request.deadline.is_some()
            || request.condition.is_some()
            || request.caller.is_some()
            || request.trace.is_some()
        {
            let rule = "an operation that a workflow sends has no idempotency key, deadline, condition, caller or \
                        trace of its own: race it with `ctx.sleep(..)` to limit how long it is waited for";
            return Err(Error::new(ErrorKind::Invalid, rule));
        }
        let mut state = self.core.lock();
        if kind == Kind::Signal && state.lock_of(request.id.as_str()).is_some() {
            let rule = format!("{} is locked by this section: call it, and await that", request.id);
            return Err(Error::new(ErrorKind::Invalid, rule));
        }
        let place = state.scope.claim();
        drop(state);
        let argument = request.input.into();
        let target = request.id.as_str().into();
        Ok(Begun { target, argument, ..Begun::new(place, kind, request.operation) })
    }
}

/// Fails a step that must not run.
fn refused(why: String) -> super::step::StepBody {
    Box::new(move |_, _| Box::pin(async move { Err(StepError::fatal(why)) }))
}

pub(super) fn not_given<W>() -> String {
    let name = std::any::type_name::<W>();
    format!("the program has no {name}: give it with `Node::builder().with(..)`")
}

fn within_limit(json: Vec<u8>) -> Result<Vec<u8>, String> {
    match json.len() > PAYLOAD_BYTES_MAX {
        true => Err(format!("it has {} bytes, the limit is {PAYLOAD_BYTES_MAX}", json.len())),
        false => Ok(json),
    }
}

/// Carries operations to entities, each a part of the turn in which it is first polled.
impl<W: 'static> Caller for Workflow<W> {
    fn call(&self, request: Request) -> BoxFuture<'static, Result<Reply, Error>> {
        let this = self.clone();
        Box::pin(async move {
            let begun = this.request(Kind::Call, request)?;
            let ready = this.core.lock().new_operation(begun);
            let operation: Operation<Box<serde_json::value::RawValue>> =
                Operation::new(&this.core, ready, read_answer);
            match operation.await {
                Ok(json) => Ok(Ok(json.get().as_bytes().to_vec())),
                Err(Failure::Rejected(rejection)) => Ok(Err(rejection)),
                Err(failure) => {
                    Err(Error::new(ErrorKind::Internal, failure.to_string()).with_source(failure))
                }
            }
        })
    }

    fn signal(&self, request: Request) -> BoxFuture<'static, Result<Accepted, Error>> {
        let this = self.clone();
        Box::pin(async move { this.send(request).map(|()| Accepted::default()) })
    }

    fn query(&self, _: Request) -> BoxFuture<'static, Result<Reply, Error>> {
        Box::pin(async {
            let rule = "a workflow asks entities operations, and no queries, whose answers are not stored: query in \
                        a step";
            Err(Error::new(ErrorKind::Invalid, rule))
        })
    }

    fn cancel_reminder(&self, _: EntityId, _: ReminderId) -> BoxFuture<'static, Result<(), Error>> {
        Box::pin(async {
            Err(Error::new(
                ErrorKind::Invalid,
                "a workflow cancels no reminders of others: do it in a step",
            ))
        })
    }
}

impl<W> Clone for Workflow<W> {
    fn clone(&self) -> Self {
        Self::new(self.core.clone())
    }
}
impl<W> fmt::Debug for Workflow<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Workflow").field(&self.core.lock().identity.id).finish()
    }
}
