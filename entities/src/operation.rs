//! Operations as plain values, and the typed references that make them.
//!
//! A reference without a node makes values for effects and tests; the same reference bound to a
//! [`Caller`] makes values that can also be awaited.

use std::{borrow::Cow, fmt, future::Future, future::IntoFuture, marker::PhantomData, pin::Pin};

use serde::{Serialize, de::DeserializeOwned};

use crate::{CallError, Delay, EntityId, Error, ErrorKind, Rejection, Timeout, Timestamp};

/// A boxed future, as [`Caller`] returns it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One operation or query for one entity, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

/// The answer of a call or query: the result as JSON, or the entity's "no".
pub type Reply = Result<Vec<u8>, Rejection>;

/// Something that can carry requests to entities: a node, a cluster or a URL.
pub trait Caller: Clone + Send + Sync + 'static {
    /// Applies an operation and answers after its commit.
    fn call(&self, request: Request) -> BoxFuture<'static, Result<Reply, Error>>;
    /// Accepts an operation and answers once it is durable.
    fn signal(&self, request: Request) -> BoxFuture<'static, Result<(), Error>>;
    /// Reads in the entity's order.
    fn query(&self, request: Request) -> BoxFuture<'static, Result<Reply, Error>>;
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

    fn request(
        &self,
        operation: Cow<'static, str>,
        input: Option<&dyn Argument>,
    ) -> Result<Request, Error> {
        let id = self.id.clone()?;
        let input = input.map_or(Ok(Vec::new()), |input| input.to_json())?;
        Ok(Request { id, operation, input, delay: None, idempotency_key: None, deadline: None })
    }
}

/// Anything that can be sent as an argument; implemented for everything that serde can write.
pub trait Argument {
    /// The argument as JSON.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where the value has no JSON form, such as a map with keys that are not
    /// text.
    fn to_json(&self) -> Result<Vec<u8>, Error>;
}

impl<T: Serialize> Argument for T {
    fn to_json(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(|error| {
            Error::new(ErrorKind::Invalid, "the argument has no JSON form").with_source(error)
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
    /// Sends the operation one-way.
    ///
    /// # Errors
    /// By kind; with [`ErrorKind::Unknown`] it may have been accepted, and repeating it with the
    /// same idempotency key settles it.
    pub async fn signal(self) -> Result<(), Error> {
        self.bound.signal(self.request?).await
    }
}

impl<R, B> Query<R, B> {
    /// The request inside.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where the key or an argument broke a rule.
    pub fn into_request(self) -> Result<Request, Error> {
        self.request
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
