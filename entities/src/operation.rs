//! Operations as plain values, and the typed references that make them.
//!
//! A reference without a node makes values for effects and tests; the same reference bound to a
//! [`Caller`] makes values that can also be awaited.

use std::{
    borrow::Cow, fmt, future::Future, future::IntoFuture, marker::PhantomData, pin::Pin,
    str::FromStr, sync::Arc,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    CallError, Delay, EntityId, Error, ErrorKind, Origin, Rejection, Then, Timeout, Timestamp,
    TraceContext, ask,
};

/// A boxed future, as [`Caller`] returns it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One operation or query for one entity, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// The entity.
    pub id: EntityId,
    /// The name of the operation or query.
    pub operation: Cow<'static, str>,
    /// Its argument as JSON; empty if it takes none.
    pub input: Vec<u8>,
    /// When it joins the entity's order; signals only.
    pub delay: Option<Delay>,
    /// The caller's name for this operation.
    pub idempotency_key: Option<String>,
    /// How long the caller waits for the answer; as long as its [`Caller`] does if `None`.
    pub deadline: Option<Timeout>,
    /// The condition on the entity's state at the operation's turn.
    pub condition: Option<Condition>,
    /// The caller: an identity of 1 to 256 bytes that whoever makes the request has established. A node
    /// takes it as it is, and idempotency keys are the caller's own. It is not sent to a URL, whose server
    /// finds out itself who calls.
    pub caller: Option<String>,
    /// The trace that the request is part of.
    pub trace: Option<TraceContext>,
    /// Whether a query reads the last durable state, beside the entity's order; see [`Query::committed`].
    pub reads_committed: bool,
}

impl Request {
    /// A request without a delay, an idempotency key, a deadline, a condition, a caller or a trace.
    pub fn new(id: EntityId, operation: impl Into<Cow<'static, str>>, input: Vec<u8>) -> Self {
        let operation = operation.into();
        Self {
            id,
            operation,
            input,
            delay: None,
            idempotency_key: None,
            deadline: None,
            condition: None,
            caller: None,
            trace: None,
            reads_committed: false,
        }
    }

    /// The origin of what comes of it: its caller and its trace; `None` where neither is known.
    ///
    /// # Errors
    /// As [`Origin::new`].
    pub fn origin(&self) -> Result<Option<Arc<Origin>>, Error> {
        Origin::new(self.caller.clone(), self.trace.clone())
    }
}

/// A committed state of an entity: its generation, and how many turns of that were committed. HTTP
/// shows it as an ETag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Which generation of the entity this is: it grows with each deletion.
    pub generation: u64,
    /// How many turns of it were committed.
    pub revision: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{}", self.generation, self.revision)
    }
}

impl FromStr for Version {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let parsed = text.split_once('-').and_then(|(generation, revision)| {
            let generation = u64::from_str_radix(generation, 16).ok()?;
            Some(Self { generation, revision: revision.parse().ok()? })
        });
        let wrong = || Error::new(ErrorKind::Invalid, format!("{text:?} is not a version"));
        parsed.filter(|version| version.to_string() == text).ok_or_else(wrong)
    }
}

/// A condition on an entity's state at an operation's turn; where it does not hold, nothing is applied and
/// the caller is told [`ErrorKind::Precondition`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// It was committed at least once since it was deleted last.
    Exists,
    /// Its newest state is one of these.
    OneOf(Vec<Version>),
}

impl Condition {
    /// Whether it holds for an entity at `version`; `None` before its first commit.
    pub fn holds(&self, version: Option<Version>) -> bool {
        match (self, version) {
            (_, None) => false,
            (Self::Exists, Some(_)) => true,
            (Self::OneOf(versions), Some(version)) => versions.contains(&version),
        }
    }
}

/// The acceptance of a signal: it is durable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Accepted {
    /// Under which id a delayed signal is listed and can be cancelled until it is due.
    pub reminder: Option<ReminderId>,
}

impl Accepted {
    /// A signal that joins its receiver's order at once, or a delayed one with its id.
    pub fn new(reminder: Option<ReminderId>) -> Self {
        Self { reminder }
    }
}

/// One reminder or delayed signal of an entity, as lists name it: `named-NAME` or `delayed-NUMBER`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReminderId {
    /// A reminder, by its name.
    Named(String),
    /// A delayed signal, by the number that it got when it was accepted.
    Delayed(u64),
}

impl fmt::Display for ReminderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "named-{name}"),
            Self::Delayed(number) => write!(f, "delayed-{number}"),
        }
    }
}

impl FromStr for ReminderId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let number = text.strip_prefix("delayed-").and_then(|number| number.parse().ok());
        let name = text.strip_prefix("named-").map(|name| Self::Named(name.to_owned()));
        number.map(Self::Delayed).or(name).ok_or_else(|| {
            let rule =
                format!("{text:?} is not the id of a reminder: named-NAME or delayed-NUMBER");
            Error::new(ErrorKind::Invalid, rule)
        })
    }
}

/// The answer of a call or query: the result as JSON, or the entity's "no".
pub type Reply = Result<Vec<u8>, Rejection>;

/// Something that can carry requests to entities: a node, a cluster or a URL.
pub trait Caller: Clone + Send + Sync + 'static {
    /// Applies an operation and answers after its commit.
    fn call(&self, request: Request) -> BoxFuture<'static, Result<Reply, Error>>;
    /// Accepts an operation and answers once it is durable.
    fn signal(&self, request: Request) -> BoxFuture<'static, Result<Accepted, Error>>;
    /// Reads in the entity's order.
    fn query(&self, request: Request) -> BoxFuture<'static, Result<Reply, Error>>;
    /// Cancels a reminder or delayed signal in the entity's order, and answers once that is durable.
    fn cancel_reminder(
        &self,
        id: EntityId,
        reminder: ReminderId,
    ) -> BoxFuture<'static, Result<(), Error>>;
}

/// Marks references and operations that are not bound to a [`Caller`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unbound;

/// The untyped core of a typed reference: an id and what it is bound to.
#[derive(Debug, Clone)]
pub struct Reference<B = Unbound> {
    id: Result<EntityId, Error>,
    bound: B,
}

impl Reference<Unbound> {
    /// A reference to `type/key`. A key that breaks the rules of [`EntityId::new`] surfaces when an
    /// operation made by this reference is used.
    pub fn new(entity_type: &str, key: &str) -> Self {
        Self { id: EntityId::new(entity_type, key), bound: Unbound }
    }
}

impl<B: Clone> Reference<B> {
    /// The same id, bound to `bound`.
    pub fn bind<C>(self, bound: C) -> Reference<C> {
        Reference { id: self.id, bound }
    }

    /// An operation of this entity; `input` is `None` where it takes no argument.
    pub fn operation<R>(
        &self,
        name: impl Into<Cow<'static, str>>,
        input: Option<&dyn Argument>,
    ) -> Operation<R, B> {
        Operation {
            request: self.request(name.into(), input),
            bound: self.bound.clone(),
            result: PhantomData,
        }
    }

    /// A query of this entity; `input` is `None` where it takes no argument.
    pub fn query<R>(
        &self,
        name: impl Into<Cow<'static, str>>,
        input: Option<&dyn Argument>,
    ) -> Query<R, B> {
        Query {
            request: self.request(name.into(), input),
            bound: self.bound.clone(),
            result: PhantomData,
        }
    }

    /// Names the operation of this entity that takes an answer. `argument` is the name of its argument for the
    /// answer, empty where it has no other; `others` are the values of the others, by name.
    pub fn then<A>(
        &self,
        name: impl Into<Cow<'static, str>>,
        argument: &'static str,
        others: &[(&str, &dyn Argument)],
    ) -> Then<A> {
        let request = self.id.clone().and_then(|id| {
            let others = ask::others(others)?;
            Ok(Request::new(id, name, others))
        });
        Then::new(request, argument)
    }

    fn request(
        &self,
        operation: Cow<'static, str>,
        input: Option<&dyn Argument>,
    ) -> Result<Request, Error> {
        let id = self.id.clone()?;
        let input = input.map_or(Ok(Vec::new()), |input| input.to_json())?;
        Ok(Request::new(id, operation, input))
    }
}

impl<B: Clone> Reference<B> {
    /// The id, and what it is bound to.
    pub(crate) fn parts(&self) -> Result<(EntityId, B), Error> {
        Ok((self.id.clone()?, self.bound.clone()))
    }
}

impl<B: Caller> Reference<B> {
    /// Cancels a reminder or a delayed signal of this entity, in its order. Once this is answered it
    /// causes no turn.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where there is none: it was applied or cancelled before, or never set.
    pub async fn cancel_reminder(&self, reminder: ReminderId) -> Result<(), Error> {
        self.bound.cancel_reminder(self.id.clone()?, reminder).await
    }
}

/// Anything that can be sent as an argument; implemented for everything that serde can write.
pub trait Argument {
    /// The argument as JSON.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where the value has no JSON form, such as a map with keys that are not
    /// text, or a number that is not finite.
    fn to_json(&self) -> Result<Vec<u8>, Error>;
}

impl<T: Serialize> Argument for T {
    fn to_json(&self) -> Result<Vec<u8>, Error> {
        crate::json::encode(self).map_err(|error| {
            let message = format!("the argument has no JSON form: {error}");
            Error::new(ErrorKind::Invalid, message).with_source(error)
        })
    }
}

/// One operation as a plain value.
///
/// Unbound it is an effect ([`crate::Context::signal`]) or a test's input. Bound, awaiting it is a
/// call, and [`Operation::signal`] sends it one-way. Dropping the future of a call or signal cancels
/// nothing that was accepted.
#[must_use = "an operation does nothing until it is awaited, signalled or handed to a context"]
pub struct Operation<R, B = Unbound> {
    request: Result<Request, Error>,
    bound: B,
    result: PhantomData<fn() -> R>,
}

/// One query as a plain value; awaiting it runs it.
#[must_use = "a query does nothing until it is awaited"]
pub struct Query<R, B = Unbound> {
    request: Result<Request, Error>,
    bound: B,
    result: PhantomData<fn() -> R>,
}

impl<R, B> Operation<R, B> {
    /// Delays the signal by a length of time, counted from its acceptance.
    pub fn after(self, length: impl Into<Timeout>) -> Self {
        let delay = Delay::After(length.into());
        self.change(|request| request.delay = Some(delay))
    }

    /// Delays the signal until a moment.
    pub fn at(self, moment: Timestamp) -> Self {
        self.change(|request| request.delay = Some(Delay::At(moment)))
    }

    /// Names this operation, so that repeating it within the retention has no second effect.
    pub fn idempotency_key(self, key: impl Into<String>) -> Self {
        let key = key.into();
        self.change(|request| request.idempotency_key = Some(key))
    }

    /// Applies the operation only where the entity's newest state is `version`; a signal is judged when
    /// it is accepted, also where it is delayed.
    pub fn if_version(self, version: Version) -> Self {
        self.change(|request| request.condition = Some(Condition::OneOf(vec![version])))
    }

    /// Says who asks; see [`Request::caller`].
    pub fn caller(self, caller: impl Into<String>) -> Self {
        let caller = caller.into();
        self.change(|request| request.caller = Some(caller))
    }

    /// Makes the operation a part of a trace.
    pub fn trace(self, trace: TraceContext) -> Self {
        self.change(|request| request.trace = Some(trace))
    }

    /// Limits how long the answer is waited for.
    pub fn deadline(self, length: impl Into<Timeout>) -> Self {
        let length = length.into();
        self.change(|request| request.deadline = Some(length))
    }

    /// The request inside.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where the key or an argument broke a rule.
    pub fn into_request(self) -> Result<Request, Error> {
        self.request
    }

    fn change(mut self, change: impl FnOnce(&mut Request)) -> Self {
        if let Ok(request) = &mut self.request {
            change(request);
        }
        self
    }
}

impl<R, B: Caller> Operation<R, B> {
    /// Sends the operation one-way; the answer names a delayed signal, so that it can be cancelled.
    ///
    /// # Errors
    /// By kind; with [`ErrorKind::Unknown`] it may have been accepted, and repeating it with the
    /// same idempotency key settles it.
    pub async fn signal(self) -> Result<Accepted, Error> {
        self.bound.signal(self.request?).await
    }
}

impl<R, B> Query<R, B> {
    /// Reads the last durable state, at once: beside the entity's order, also while an operation of it
    /// awaits or many wait. It is never ahead of what was acknowledged, and has everything that was
    /// acknowledged before it was asked for. Without it a query comes behind all operations before it.
    pub fn committed(self) -> Self {
        self.change(|request| request.reads_committed = true)
    }

    /// Says who asks; see [`Request::caller`].
    pub fn caller(self, caller: impl Into<String>) -> Self {
        let caller = caller.into();
        self.change(|request| request.caller = Some(caller))
    }

    /// Makes the query a part of a trace.
    pub fn trace(self, trace: TraceContext) -> Self {
        self.change(|request| request.trace = Some(trace))
    }

    /// The request inside.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where the key or an argument broke a rule.
    pub fn into_request(self) -> Result<Request, Error> {
        self.request
    }

    fn change(mut self, change: impl FnOnce(&mut Request)) -> Self {
        if let Ok(request) = &mut self.request {
            change(request);
        }
        self
    }
}

impl<R: DeserializeOwned + 'static, B: Caller> IntoFuture for Operation<R, B> {
    type Output = Result<R, CallError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let request = self.request?;
            if request.delay.is_some() {
                let rule = "a delayed operation is sent with .signal(); a call is not delayed";
                return Err(Error::new(ErrorKind::Invalid, rule).into());
            }
            read(self.bound.call(request).await?)
        })
    }
}

impl<R: DeserializeOwned + 'static, B: Caller> IntoFuture for Query<R, B> {
    type Output = Result<R, CallError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { read(self.bound.query(self.request?).await?) })
    }
}

fn read<R: DeserializeOwned>(reply: Reply) -> Result<R, CallError> {
    let json = reply.map_err(CallError::Rejected)?;
    serde_json::from_slice(&json).map_err(|error| {
        let message = "the result does not have the type that this reference expects";
        Error::new(ErrorKind::Internal, message).with_source(error).into()
    })
}

impl<R, B> fmt::Debug for Operation<R, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.request.fmt(f)
    }
}
impl<R, B> fmt::Debug for Query<R, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.request.fmt(f)
    }
}
