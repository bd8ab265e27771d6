//! The trait that `#[entity]` implements, and the table of operations it consists of.

mod description;

use std::{
    any::{Any, TypeId},
    fmt,
    future::Future,
};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    BoxFuture, Context, Dependency, Error, ErrorKind, Failure, IndexType, Layout, Policy,
    Reference, Rejection, Timeout, Unbound,
    input::{InputError, decode, decode_answers},
    operation::Reply,
    workflow::WorkflowDescription,
};

pub(crate) use self::description::whole_schema;
pub use self::description::{EntityDescription, OperationDescription};
pub use crate::macro_support::{
    IsContext, IsDeadLetter, PlainResult, ResultKind, Returned, is_context, is_dead_letter,
};

/// A kind of stateful entity. `#[entity]` on an `impl` block writes this implementation; by hand it
/// is a name and a table.
///
/// ```
/// use stead_entities::{Entity, Layout, OperationType, Rejection};
///
/// #[derive(Clone, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema, Layout)]
/// struct Door { open: bool }
///
/// impl Entity for Door {
///     const NAME: &'static str = "door";
///     fn operations() -> Vec<OperationType<Self>> {
///         vec![
///             OperationType::operation("push", |door: &mut Self, _ctx, (): ()| {
///                 if door.open { return Err(Rejection::new("the door is open")); }
///                 door.open = true;
///                 Ok(())
///             }),
///             OperationType::query("open", |door: &Self, _ctx, (): ()| door.open),
///         ]
///     }
/// }
/// ```
///
/// The default value is the state before the first turn. State is cloned before each turn, so that
/// a discarded turn leaves nothing.
pub trait Entity:
    Clone + Default + Serialize + DeserializeOwned + JsonSchema + Layout + Send + Sync + 'static
{
    /// The name of the type, as in `counter/visits`.
    const NAME: &'static str;
    /// The version of the state's layout. It grows whenever the layout changes.
    const VERSION: u32 = 1;
    /// The documentation of the type.
    const DESCRIPTION: &'static str = "";
    /// The operation that hears of the dead letters of an entity; it takes a
    /// [`DeadLetter`](crate::DeadLetter).
    const ON_DEAD_LETTER: Option<&'static str> = None;
    /// Whether its entities are instances of a workflow: an operation of one that has failed, for whatever reason but
    /// that the store is out of reach, is run once more to be told so, instead of being tried again and becoming a dead
    /// letter; and its history may be longer than what one turn of another entity may read.
    #[doc(hidden)]
    const IS_WORKFLOW: bool = false;
    /// The workflow type of which its entities are instances.
    #[doc(hidden)]
    fn workflow() -> Option<WorkflowDescription> {
        None
    }
    /// About how many bytes it has in memory that are no part of its stored form.
    #[doc(hidden)]
    fn held_bytes(&self) -> usize {
        0
    }
    /// Readies the state of an entity that comes into memory, before anything uses it: one that was read
    /// from the store, or the first of a generation. What it changes is no turn: it is not committed by
    /// itself, and has no effects. An entity of which it panics, or leaves a state that cannot be stored, is
    /// refused until it comes into memory again.
    const ON_ACTIVATE: Option<fn(&mut Self, &Context)> = None;

    /// The operations and queries.
    fn operations() -> Vec<OperationType<Self>>;

    /// The indexes by which entities are found: each has a name of its own, and there are at most
    /// [`INDEXES_MAX`](crate::index::INDEXES_MAX).
    fn indexes() -> Vec<IndexType<Self>> {
        Vec::new()
    }

    /// The policy of all operations, and of the entities. What it leaves open comes from the node.
    fn policy() -> Policy {
        Policy::default()
    }

    /// The values of the program that operations and queries use; see [`Context::get`].
    fn dependencies() -> Vec<Dependency> {
        Vec::new()
    }

    /// Reads a state that an earlier version wrote.
    ///
    /// # Errors
    /// `D::unknown_version` for a version that this type cannot upgrade from, and what `D::decode`
    /// says of the bytes.
    fn upgrade<D: StateDecoder>(version: u32, decoder: D) -> Result<Self, D::Error> {
        Err(decoder.unknown_version(version))
    }

    /// The layouts of the versions that [`Entity::upgrade`] reads.
    fn earlier_layouts() -> Vec<(u32, String)> {
        Vec::new()
    }
}

/// Stored bytes of a state, about to be decoded as whichever type wrote them.
pub trait StateDecoder {
    /// Why the bytes cannot be read.
    type Error;
    /// Decodes the bytes as a `T`.
    ///
    /// # Errors
    /// Where the bytes are not exactly one `T`.
    fn decode<T: DeserializeOwned>(self) -> Result<T, Self::Error>;
    /// The error for a version without an upgrade.
    fn unknown_version(self, version: u32) -> Self::Error;
}

/// An entity with a typed reference; `#[entity]` writes this too.
pub trait TypedReference: Entity {
    /// The reference, bound to `B`.
    type Reference<B: Clone>;
    /// Dresses an untyped reference.
    fn reference<B: Clone>(reference: Reference<B>) -> Self::Reference<B>;
    /// A typed reference without a node.
    fn unbound(key: &str) -> Self::Reference<Unbound> {
        Self::reference(Reference::new(Self::NAME, key))
    }
}

/// The callers that may use an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Visibility {
    /// Every caller.
    Public,
    /// Reminders and other entities only.
    Internal,
}

/// The kind of an [`OperationType`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OperationKind {
    /// Changes the state, in one go.
    Operation,
    /// Changes the state, and may await outside services meanwhile.
    Async,
    /// Reads the state.
    Query,
}

/// How an operation or query came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The result as JSON.
    Replied(Vec<u8>),
    /// The entity's "no".
    Rejected(Rejection),
    /// It is to be tried again, for this reason, after this time or that of the policy.
    Retry(String, Option<Timeout>),
    /// It failed for good, for this reason.
    Failed(String),
    /// The result has no JSON form, or its rejection breaks a rule.
    Unencodable(String),
}

impl Outcome {
    /// The answer of a call or query.
    ///
    /// # Errors
    /// Where there is none: [`ErrorKind::Later`], with the time, where another attempt may help, else
    /// [`ErrorKind::Internal`].
    pub fn into_reply(self) -> Result<Reply, Error> {
        let failed = |why| Err(Error::new(ErrorKind::Internal, why));
        match self {
            Self::Replied(json) => Ok(Ok(json)),
            Self::Rejected(rejection) => Ok(Err(rejection)),
            Self::Retry(reason, after) => {
                let error = Error::new(ErrorKind::Later, reason);
                Err(match after {
                    Some(after) => error.with_retry_after(after),
                    None => error,
                })
            }
            Self::Failed(reason) => failed(reason),
            Self::Unencodable(why) => {
                failed(format!("the result cannot be written as JSON: {why}"))
            }
        }
    }
}

/// A result of an operation: a value, or a `Result` with a [`Rejection`] or a [`Failure`]. `Kind` tells
/// them apart and is always inferred.
pub trait OperationResult<Kind> {
    /// The value as JSON, or the rejection.
    fn outcome(self) -> Outcome;
    /// The schema of the value.
    fn schema(generator: &mut SchemaGenerator) -> Schema;
}

/// Marks answers that are never a rejection.
#[derive(Debug)]
pub enum Plain {}
/// Marks answers that may be a rejection.
#[derive(Debug)]
pub enum Rejectable {}
/// Marks answers that may be a failure.
#[derive(Debug)]
pub enum Fallible {}

impl<T: Serialize + JsonSchema> OperationResult<Plain> for T {
    fn outcome(self) -> Outcome {
        match crate::json::encode(&self) {
            Ok(json) => Outcome::Replied(json),
            Err(error) => Outcome::Unencodable(error.to_string()),
        }
    }
    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }
}

impl<T: Serialize + JsonSchema> OperationResult<Rejectable> for Result<T, Rejection> {
    fn outcome(self) -> Outcome {
        self.map_err(Failure::Rejected).outcome()
    }
    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }
}

impl<T: Serialize + JsonSchema> OperationResult<Fallible> for Result<T, Failure> {
    fn outcome(self) -> Outcome {
        match self {
            Ok(value) => value.outcome(),
            Err(Failure::Rejected(rejection)) => match rejection.check() {
                Ok(()) => Outcome::Rejected(rejection),
                Err(why) => Outcome::Unencodable(why),
            },
            Err(Failure::Retry { reason, after }) => Outcome::Retry(reason, after),
            Err(Failure::Failed(reason)) => Outcome::Failed(reason),
            Err(failure) => Outcome::Failed(failure.to_string()),
        }
    }
    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }
}

type Schemas = fn(&mut SchemaGenerator) -> Schema;
type Running<E> = BoxFuture<'static, (E, Context, Outcome)>;
type OperationBody<E> = Box<dyn Fn(&mut E, &mut Context, Argument) -> Outcome + Send + Sync>;
type AsyncBody<E> = Box<dyn Fn(E, Context, Argument) -> Running<E> + Send + Sync>;
type ArgumentCheck = Box<dyn Fn(&Argument) -> Result<(), InputError> + Send + Sync>;
type QueryBody<E> = Box<dyn Fn(&E, &Context, Argument) -> Outcome + Send + Sync>;

/// A decoded argument, whose type is known to its operation only: an argument is decoded once, where
/// a request arrives, and the turn takes it from there. For runtimes and test drivers.
pub struct Argument(Box<dyn Any + Send>);

impl Argument {
    fn of<A: Send + 'static>(value: A) -> Self {
        Self(Box::new(value))
    }

    /// The value.
    ///
    /// # Panics
    /// Where another operation has decoded it.
    fn take<A: 'static>(self) -> A {
        *self.0.downcast().expect("an argument goes to the operation that decoded it")
    }
}

/// The code behind an operation. For runtimes and test drivers.
pub enum Body<E> {
    /// Runs in one go on the state.
    Operation(OperationBody<E>),
    /// Takes state and context, and gives them back when it is done.
    Async(AsyncBody<E>),
    /// Reads the state.
    Query(QueryBody<E>),
}

/// One row of the table that an [`Entity`] consists of.
pub struct OperationType<E> {
    name: &'static str,
    description: &'static str,
    visibility: Visibility,
    body: Body<E>,
    decode: fn(&[u8]) -> Result<Argument, InputError>,
    /// Reads what the runtime itself has written around results of other entities.
    decode_answers: fn(&[u8]) -> Result<Argument, InputError>,
    /// Refuses arguments that only it knows to be wrong.
    check: Option<ArgumentCheck>,
    takes_nothing: bool,
    policy: Policy,
    formerly: Vec<&'static str>,
    input_schema: Schemas,
    output_schema: Schemas,
    /// Of the details of its rejections, where they are declared.
    details_schema: Option<Schemas>,
}

impl<E: Entity> OperationType<E> {
    /// An operation that runs in one go. `A` is its argument, `()` for none.
    pub fn operation<A, R, Kind>(
        name: &'static str,
        body: impl Fn(&mut E, &mut Context, A) -> R + Send + Sync + 'static,
    ) -> Self
    where
        A: DeserializeOwned + JsonSchema + Send + 'static,
        R: OperationResult<Kind>,
    {
        let body: OperationBody<E> =
            Box::new(move |state, ctx, argument| body(state, ctx, argument.take::<A>()).outcome());
        Self::new::<A, R, Kind>(name, Body::Operation(body))
    }

    /// An operation that may await outside services. It takes state and context and returns them.
    pub fn async_operation<A, R, F, Kind>(
        name: &'static str,
        body: impl Fn(E, Context, A) -> F + Send + Sync + 'static,
    ) -> Self
    where
        A: DeserializeOwned + JsonSchema + Send + 'static,
        R: OperationResult<Kind>,
        F: Future<Output = (E, Context, R)> + Send + 'static,
    {
        let body: AsyncBody<E> = Box::new(move |state, ctx, argument| {
            let running = body(state, ctx, argument.take::<A>());
            Box::pin(async move {
                let (state, ctx, result) = running.await;
                let outcome = result.outcome();
                (state, ctx, outcome)
            })
        });
        Self::new::<A, R, Kind>(name, Body::Async(body))
    }

    /// A query. `A` is its argument, `()` for none.
    pub fn query<A, R, Kind>(
        name: &'static str,
        body: impl Fn(&E, &Context, A) -> R + Send + Sync + 'static,
    ) -> Self
    where
        A: DeserializeOwned + JsonSchema + Send + 'static,
        R: OperationResult<Kind>,
    {
        let body: QueryBody<E> =
            Box::new(move |state, ctx, argument| body(state, ctx, argument.take::<A>()).outcome());
        Self::new::<A, R, Kind>(name, Body::Query(body))
    }

    fn new<A, R, Kind>(name: &'static str, body: Body<E>) -> Self
    where
        A: DeserializeOwned + JsonSchema + Send + 'static,
        R: OperationResult<Kind>,
    {
        Self {
            name,
            description: "",
            visibility: Visibility::Public,
            body,
            decode: |input| decode::<A>(input).map(Argument::of),
            decode_answers: |input| decode_answers::<A>(input).map(Argument::of),
            policy: Policy::default(),
            check: None,
            formerly: Vec::new(),
            takes_nothing: TypeId::of::<A>() == TypeId::of::<()>(),
            input_schema: |generator| generator.subschema_for::<A>(),
            output_schema: R::schema,
            details_schema: None,
        }
    }

    /// Says what the operation does.
    pub fn described(mut self, description: &'static str) -> Self {
        self.description = description;
        self
    }

    /// Keeps the operation for reminders and other entities.
    pub fn internal(mut self) -> Self {
        self.visibility = Visibility::Internal;
        self
    }

    /// Has an argument refused that `check` refuses.
    pub(crate) fn checked_by<A: 'static>(
        mut self,
        check: impl Fn(&A) -> Result<(), InputError> + Send + Sync + 'static,
    ) -> Self {
        self.check =
            Some(Box::new(move |argument| argument.0.downcast_ref().map_or(Ok(()), &check)));
        self
    }

    /// Has the operation take the answers to an ask: results of other entities, as deep as results may be and
    /// with fields that this program does not know.
    pub fn taking_answers(mut self) -> Self {
        self.decode = self.decode_answers;
        self
    }

    /// Has the operation take what was stored under a name that it had before: signals, reminders, answers to
    /// asks, and dead letters that are replayed. Callers use its present name.
    pub fn renamed_from(mut self, name: &'static str) -> Self {
        self.formerly.push(name);
        self
    }

    /// Declares the type of the details of its rejections: descriptions show its schema, and a turn whose
    /// rejection has other details fails.
    pub fn rejecting_with<D: DeserializeOwned + JsonSchema + 'static>(mut self) -> Self {
        self.details_schema = Some(|generator| generator.subschema_for::<D>());
        self.body = match self.body {
            Body::Operation(body) => Body::Operation(Box::new(move |state, ctx, argument| {
                checked::<D>(body(state, ctx, argument))
            })),
            Body::Query(body) => Body::Query(Box::new(move |state, ctx, argument| {
                checked::<D>(body(state, ctx, argument))
            })),
            Body::Async(body) => Body::Async(Box::new(move |state, ctx, argument| {
                let running = body(state, ctx, argument);
                Box::pin(async move {
                    let (state, ctx, outcome) = running.await;
                    (state, ctx, checked::<D>(outcome))
                })
            })),
        };
        self
    }

    /// The names that it had before.
    pub fn formerly(&self) -> &[&'static str] {
        &self.formerly
    }

    /// Sets the policy. What it leaves open comes from the type, and then from the node.
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// The policy that it sets itself.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// The name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The callers that may use it.
    pub fn visibility(&self) -> Visibility {
        self.visibility
    }

    /// Whether its argument is `()`, which can be written in several ways.
    pub fn takes_nothing(&self) -> bool {
        self.takes_nothing
    }

    /// Its kind.
    pub fn kind(&self) -> OperationKind {
        match self.body {
            Body::Operation(_) => OperationKind::Operation,
            Body::Async(_) => OperationKind::Async,
            Body::Query(_) => OperationKind::Query,
        }
    }

    /// The code. For runtimes and test drivers.
    pub fn body(&self) -> &Body<E> {
        &self.body
    }

    /// Reads an argument of this operation from its JSON.
    ///
    /// # Errors
    /// Names the path that does not fit.
    pub fn decode(&self, input: &[u8]) -> Result<Argument, InputError> {
        let argument = (self.decode)(input)?;
        match &self.check {
            Some(check) => check(&argument).map(|()| argument),
            None => Ok(argument),
        }
    }
}

/// An outcome whose rejection, if it is one, has details that are a `D`, or none.
fn checked<D: DeserializeOwned>(outcome: Outcome) -> Outcome {
    match &outcome {
        Outcome::Rejected(no) if no.details_json().is_some() && no.details::<D>().is_none() => {
            let declared = std::any::type_name::<D>();
            Outcome::Unencodable(format!("the details of its rejection are no {declared}"))
        }
        _ => outcome,
    }
}

impl<E> fmt::Debug for OperationType<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OperationType").field(&self.name).finish()
    }
}
impl fmt::Debug for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Argument")
    }
}
impl<E> fmt::Debug for Body<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Body")
    }
}
