//! Drive entities by hand: apply operations, advance the clock, read the effects.
//!
//! A [`Driver`] runs one entity and keeps the signals that it sends. [`Drivers`] runs the entities
//! of several types on one clock and delivers their signals to one another. Both run turns with
//! `Driver::attempt` and end them in `Driver::settle`, and know no runtime: what awaits is polled
//! where it stands.

mod asks;
mod driven;
mod drivers;
mod letters;
mod locks;
mod poll;
mod rows;
mod steps;
mod workflow;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

use self::{poll::at_once, rows::Rows};

use crate::{
    Answer, CallError, Context, Dependencies, Entity, EntityId, Error, ErrorKind, Operation,
    Origin, Query, Request, Timestamp, Version,
    ask::{Ask, answer_json},
    collections::{self, Access, Attempted, Refused},
    context::{AnswerTo, Turn},
    effect::{self, Effect, Reminder, Signal},
    entity::{Argument, Body, OperationKind, Outcome},
    operation::Argument as _,
    stored::{self, Checks},
};

pub use self::{
    drivers::{Drivers, SIGNALS_PER_CALL_MAX},
    letters::DeadLetter,
    steps::StepPlay,
    workflow::{SavedHistory, StepScript, WorkflowDriver, replay},
};

/// The time at which a test begins: 2026-01-01T00:00:00Z.
const START: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);

/// A turn that was run and is not settled.
type Attempt<E> = (E, Context, Outcome);

/// One entity without a runtime. Turns behave as in a node: an operation that is rejected or whose
/// effects break a rule changes nothing. A panic of an operation reaches the test. Every state is
/// stored and read again, and shown as JSON and read from that, and a turn whose state does not stand
/// that fails.
///
/// An operation that awaits is run on the spot where all that it awaits is ready. One that needs a
/// runtime (a timer, a socket, another task) is an error then, and changes nothing; the methods that
/// end in `_async` wait for it.
///
/// Each turn begins with nothing of the state's collections in memory, as after a restart, and what it asks for
/// is supplied.
///
/// ```
/// use std::time::Duration;
/// use stead_entities::{After, Context, Layout, entity, testing::Driver};
///
/// #[derive(Clone, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema, Layout)]
/// struct Alarm { rung: u32 }
///
/// #[entity(name = "alarm")]
/// impl Alarm {
///     pub fn set(&mut self, ctx: &mut Context, seconds: u64) {
///         let ring = Alarm::of(ctx.key()).ring();
///         ctx.remind("ring", After(Duration::from_secs(seconds)), ring);
///     }
///     pub(crate) async fn ring(&mut self) { self.rung += 1; }
/// }
///
/// let mut alarm = Driver::<Alarm>::new("seven");
/// alarm.apply(Alarm::of("seven").set(60)).unwrap();
/// alarm.advance(Duration::from_secs(60)).unwrap();
/// assert_eq!(alarm.state().rung, 1);
/// ```
#[derive(Debug)]
pub struct Driver<E> {
    id: Option<EntityId>,
    state: E,
    /// The entries of its collections, and the state with all of them in memory, once somebody looks at it.
    rows: Rows,
    whole: OnceLock<E>,
    revision: u64,
    now: Timestamp,
    turns: u64,
    /// Tells the tokens and seeds of entities that are driven together apart.
    number: u64,
    /// The signals and asks, in order.
    sent: Vec<Effect>,
    reminders: BTreeMap<String, (Timestamp, Reminder)>,
    /// When the entity is deleted by itself.
    expires_at: Option<Timestamp>,
    dependencies: Arc<Dependencies>,
    /// The one who hears the answer of the next operation, and whether the last one answers later.
    answer_to: AnswerTo,
    is_deferred: bool,
}

impl<E: Entity> Driver<E> {
    /// The entity `key` before its first turn, at 2026-01-01T00:00:00Z.
    pub fn new(key: &str) -> Self {
        let mut driver = Self {
            id: EntityId::new(E::NAME, key).ok(),
            state: E::default(),
            rows: Rows::default(),
            whole: OnceLock::new(),
            revision: 0,
            now: START,
            turns: 0,
            number: 0,
            sent: Vec::new(),
            reminders: BTreeMap::new(),
            expires_at: None,
            dependencies: Arc::default(),
            answer_to: AnswerTo::Caller,
            is_deferred: false,
        };
        driver.activate();
        driver
    }

    /// Gives a dependency, in place of an earlier one of its type. It reaches the entity where its type
    /// names it, as in a node.
    #[must_use]
    pub fn with<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.give(&Dependencies::clone(&self.dependencies).with(value));
        self
    }

    /// Has the state stay in memory between turns, as on a node that has room for it.
    #[must_use]
    pub fn warm(mut self) -> Self {
        self.rows.is_warm = true;
        self
    }

    fn give(&mut self, given: &Dependencies) {
        self.dependencies = Arc::new(given.only(&E::dependencies()));
    }

    /// Readies the state, as where an entity comes into memory.
    fn activate(&mut self) {
        let mut state = std::mem::take(&mut self.state);
        self.ready(&mut state);
        self.state = state;
    }

    fn ready(&self, state: &mut E) {
        if let (Some(ready), Ok(turn)) = (E::ON_ACTIVATE, self.turn(None)) {
            let ready = || ready(state, &Context::new(turn));
            let _misses_nothing = collections::attempt(Access::Lengths, ready);
        }
    }

    /// Applies an operation made by the typed reference, at once: a delay, an idempotency key and a
    /// deadline mean nothing here.
    ///
    /// # Errors
    /// The rejection, or a failure: an unknown operation, an argument that does not fit, an effect
    /// that breaks a rule, something awaited that is not ready.
    pub fn apply<R: DeserializeOwned>(&mut self, operation: Operation<R>) -> Result<R, CallError> {
        at_once(self.apply_async(operation))
    }

    /// Applies an operation and waits for what it awaits.
    ///
    /// # Errors
    /// As [`Driver::apply`].
    pub async fn apply_async<R: DeserializeOwned>(
        &mut self,
        operation: Operation<R>,
    ) -> Result<R, CallError> {
        result(&self.run(&operation.into_request()?).await?)
    }

    /// Runs a query made by the typed reference.
    ///
    /// # Errors
    /// As [`Driver::apply`].
    pub fn query<R: DeserializeOwned>(&self, query: Query<R>) -> Result<R, CallError> {
        result(&self.read(&query.into_request()?)?)
    }

    /// Moves the clock and applies every reminder that becomes due, in the order of due times.
    ///
    /// # Errors
    /// The first rejection or failure of a reminder's operation; the clock stands at its due time.
    /// Where the operation awaits something that is not ready, its reminder stays due.
    pub fn advance(&mut self, length: Duration) -> Result<(), CallError> {
        at_once(self.advance_async(length))
    }

    /// Moves the clock as [`Driver::advance`] does, and waits for what the operations await.
    ///
    /// # Errors
    /// As [`Driver::advance`].
    pub async fn advance_async(&mut self, length: Duration) -> Result<(), CallError> {
        let end = self.now + length;
        while let Some((due, name)) = self.next_reminder().filter(|(due, _)| *due <= end) {
            self.now = self.now.max(due);
            self.fire(&name).await?;
        }
        self.now = end;
        Ok(())
    }

    /// The state, with all entries of its collections.
    ///
    /// # Panics
    /// Where what is stored of it cannot be read back, which no turn leaves.
    pub fn state(&self) -> &E {
        if self.rows.collections.is_empty() {
            return &self.state;
        }
        self.whole.get_or_init(|| {
            self.rows
                .whole(&self.state, &|state| self.ready(state))
                .expect("a state that was proven")
        })
    }

    /// How many turns were committed.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The version of the state, as [`Operation::if_version`] names it; none before the first turn.
    pub fn version(&self) -> Option<Version> {
        (self.revision > 0).then_some(Version { generation: 1, revision: self.revision })
    }

    /// The clock.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The signals sent since the last time, in order.
    pub fn take_signals(&mut self) -> Vec<Signal> {
        self.take_sent(|effect| match effect {
            Effect::Signal(signal) => Ok(signal),
            other => Err(Box::new(other)),
        })
    }

    /// The asks made since the last time, in order.
    pub fn take_asks(&mut self) -> Vec<Ask> {
        self.take_sent(|effect| match effect {
            Effect::Ask(ask) => Ok(ask),
            other => Err(Box::new(other)),
        })
    }

    /// Takes what `wanted` takes of what was sent.
    fn take_sent<T>(&mut self, wanted: impl Fn(Effect) -> Result<T, Box<Effect>>) -> Vec<T> {
        let mut taken = Vec::new();
        for effect in std::mem::take(&mut self.sent) {
            match wanted(effect) {
                Ok(it) => taken.push(it),
                Err(other) => self.sent.push(*other),
            }
        }
        taken
    }

    /// Gives answers to an ask, and applies its operation: one for each question, in their order.
    ///
    /// # Errors
    /// As [`Driver::apply`], and where there are more or fewer answers than questions.
    pub fn answer<R: Serialize>(
        &mut self,
        ask: &Ask,
        answers: impl IntoIterator<Item = Answer<R>>,
    ) -> Result<(), CallError> {
        let answers = answers.into_iter().map(|answer| {
            let result = answer.map(|result| result.to_json());
            match result {
                Ok(json) => json.map(|json| answer_json(Ok(&json))),
                Err(failure) => Ok(answer_json(Err(failure))),
            }
        });
        let answers = answers.collect::<Result<Vec<_>, Error>>()?;
        if answers.len() != ask.questions.len() {
            let (given, asked) = (answers.len(), ask.questions.len());
            let rule = format!("{given} answers to {asked} questions");
            return Err(Error::new(ErrorKind::Invalid, rule).into());
        }
        let id = self.id.clone();
        let id = id.ok_or_else(|| Error::new(ErrorKind::Invalid, "the key is invalid"))?;
        let input = ask.then.input(answers.iter().map(|answer| &answer[..]));
        let request = Request::new(id, ask.then.operation.clone(), input);
        at_once(self.run(&request)).map(drop)
    }

    /// The due time of the reminder `name`, if it is set.
    pub fn reminder_due(&self, name: &str) -> Option<Timestamp> {
        self.reminders.get(name).map(|(due, _)| *due)
    }

    /// When the entity expires, if it does.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// The reminder that is due first; of several at one moment, the first by name. The expiry is one.
    fn next_reminder(&self) -> Option<(Timestamp, String)> {
        let reminders = self.reminders.iter().map(|(name, (due, _))| (*due, &**name));
        let next = reminders.chain(self.expires_at.map(|at| (at, EXPIRY))).min();
        next.map(|(due, name)| (due, name.to_owned()))
    }

    /// Deletes the entity.
    fn reset(&mut self) {
        self.state = E::default();
        let is_warm = self.rows.is_warm;
        (self.rows, self.whole) = (Rows::default(), OnceLock::new());
        self.rows.is_warm = is_warm;
        self.revision = 0;
        self.reminders.clear();
        self.expires_at = None;
        self.activate();
    }

    /// Applies the operation of a reminder. The reminder is gone, or due again, once its turn has
    /// run: if this future is dropped before, nothing has changed.
    async fn fire(&mut self, name: &str) -> Result<Vec<u8>, CallError> {
        if name == EXPIRY {
            self.reset();
            return Ok(b"null".to_vec());
        }
        let found = self.reminders.get(name).zip(self.id.clone());
        let Some(((due, reminder), id)) = found else {
            return Err(Error::new(ErrorKind::NotFound, format!("no reminder {name}")).into());
        };
        let next = reminder.schedule.next(*due, self.now);
        let request = Request::new(id, reminder.operation.clone(), reminder.input.clone());
        let attempt = self.attempt(&request).await;
        match (next, self.reminders.get_mut(name)) {
            (Some(next), Some((due, _))) => *due = next,
            _ => drop(self.reminders.remove(name)),
        }
        self.settle(attempt?)
    }

    fn turn(&self, origin: Option<Arc<Origin>>) -> Result<Turn, Error> {
        let id =
            self.id.clone().ok_or_else(|| Error::new(ErrorKind::Invalid, "the key is invalid"))?;
        let (revision, seed) = (self.revision, self.turns ^ (self.number << 32));
        let token = u128::from(self.turns) | (u128::from(self.number) << 64);
        let answer_to = self.answer_to.clone();
        Ok(Turn { origin, answer_to, ..Turn::new(id, self.now, revision, (seed, token)) })
    }

    fn find<'t>(
        &self,
        table: &'t [crate::OperationType<E>],
        request: &Request,
    ) -> Result<(&'t Body<E>, Argument), Error> {
        if Some(&request.id) != self.id.as_ref() {
            let message = format!("{} is not the driven entity", request.id);
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        let found = table.iter().find(|row| row.name() == request.operation);
        let found = found.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("no operation {}", request.operation))
        })?;
        let argument = found.decode(&request.input);
        let argument =
            argument.map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))?;
        Ok((found.body(), argument))
    }

    fn read(&self, request: &Request) -> Result<Vec<u8>, CallError> {
        let table = E::operations();
        let ctx = Context::new(self.turn(request.origin()?)?);
        let ctx = ctx.with_dependencies(Arc::clone(&self.dependencies));
        let read = |state: E| match self.find(&table, request)? {
            (Body::Query(body), argument) => Ok(body(&state, &ctx, argument)),
            _ => Err(Error::new(ErrorKind::Invalid, "this is not a query")),
        };
        json_of(allowed(|| self.rows.attempt(&self.state, &|state| self.ready(state), read))???)
    }

    async fn run(&mut self, request: &Request) -> Result<Vec<u8>, CallError> {
        if let Some(condition) = &request.condition
            && !condition.holds(self.version())
        {
            let message = format!("{} is not at the version required", request.id);
            return Err(Error::new(ErrorKind::Precondition, message).into());
        }
        let attempt = self.attempt(request).await?;
        self.settle(attempt)
    }

    /// Runs an operation on a copy of the state.
    async fn attempt(&self, request: &Request) -> Result<Attempt<E>, CallError> {
        let table = E::operations();
        let new_context = || Ok::<_, Error>(Context::new(self.turn(request.origin()?)?));
        let with_all = |ctx: Context| ctx.with_dependencies(Arc::clone(&self.dependencies));
        let (Body::Async(body), _) = self.find(&table, request)? else {
            let run = |mut state: E| {
                let mut ctx = new_context()?;
                let (body, argument) = self.find(&table, request)?;
                let outcome = match body {
                    Body::Operation(body) => body(&mut state, &mut ctx, argument),
                    Body::Query(body) => body(&state, &with_all(new_context()?), argument),
                    Body::Async(_) => unreachable!("it awaits"),
                };
                Ok::<_, Error>((state, ctx, outcome))
            };
            return Ok(allowed(|| {
                self.rows.attempt(&self.state, &|state| self.ready(state), run)
            })???);
        };
        let mut missed = Vec::new();
        loop {
            let state = self.rows.copy(&self.state, &missed, &|state| self.ready(state));
            let state = state.map_err(internal)?;
            let (_, argument) = self.find(&table, request)?;
            let running = Attempted::new(body(state, with_all(new_context()?), argument));
            match running.await {
                Ok(done) => return Ok(done),
                Err(miss) => missed.push(miss),
            }
        }
    }

    /// A turn fails where its state could not be read back, from the store or from JSON, or not be indexed.
    fn prove(&self, state: &mut E) -> Result<(), Error> {
        let checks = Checks::all_of::<E>();
        let highest = collections::highest(&self.rows.collections);
        let proven = collections::attempt(Access::Lengths, || {
            collections::check(state, highest, checks, false)?;
            let stored = stored::encode(state).map_err(|error| error.to_string())?;
            E::indexes().iter().try_for_each(|index| index.value(state).map(drop))?;
            checks.prove(state, &stored)
        });
        proven.unwrap_or_else(|_| Err("entries are not in memory".to_owned())).map_err(internal)
    }

    /// Ends a turn: all of it becomes real, or nothing does. The one place where a driven entity
    /// changes, whether it is driven alone or together with others.
    fn settle(&mut self, (mut state, ctx, outcome): Attempt<E>) -> Result<Vec<u8>, CallError> {
        self.turns += 1;
        let result = outcome.into_reply()?;
        let effects = match &result {
            Ok(_) => ctx.finish()?,
            Err(rejection) => ctx.finish_rejected(rejection)?,
        };
        self.is_deferred = effects.is_deferred;
        if effects.is_void {
            return result.map_err(CallError::Rejected);
        }
        if result.is_ok() {
            allowed(|| self.prove(&mut state))??;
        }
        check_own_operations::<E>(&effects.list)?;
        if result.is_ok() {
            let checks = Checks::all_of::<E>();
            let sealed = collections::seal(&mut state, &self.rows.collections, checks, usize::MAX);
            let sealed = sealed.map_err(internal)?;
            self.rows.collections = sealed.collections;
            self.rows.apply(sealed.changes);
            (self.state, self.whole) = (state, OnceLock::new());
        }
        if result.is_ok() || !effects.list.is_empty() {
            self.revision += 1;
            let of_type = E::policy().ttl.map(|length| self.now + length.as_duration());
            self.expires_at = of_type.or(self.expires_at);
        }
        for effect in effects.list {
            match effect {
                effect @ (Effect::Signal(_)
                | Effect::Ask(_)
                | Effect::Step(_)
                | Effect::CancelStep(_)
                | Effect::CancelSteps(..)
                | Effect::OnHosting(_)
                | Effect::Answer(..)) => self.sent.push(effect),
                Effect::Remind(reminder) => {
                    let due = reminder.schedule.first(self.now).unwrap_or(Timestamp::MAX);
                    self.reminders.insert(reminder.name.clone(), (due, reminder));
                }
                Effect::CancelReminder(name) => drop(self.reminders.remove(&name)),
                Effect::Expire(length) => {
                    self.expires_at = length.map(|length| self.now + length.as_duration());
                }
            }
        }
        if effects.deleted {
            self.reset();
        }
        result.map_err(CallError::Rejected)
    }
}

/// Runs an entity's code; what it may not read fails the turn.
fn allowed<T>(code: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|panic| match panic.downcast::<Refused>() {
        Ok(refused) => internal(refused.0),
        Err(panic) => resume_unwind(panic),
    })
}

fn internal(why: String) -> Error {
    Error::new(ErrorKind::Internal, why)
}

/// The name of the expiry among the reminders.
const EXPIRY: &str = "?expiry";

/// A turn fails where it names an operation of its own that could not be applied.
fn check_own_operations<E: Entity>(effects: &[Effect]) -> Result<(), Error> {
    let table = E::operations();
    effect::check_own_operations(effects, |operation, input| {
        match table.iter().find(|row| row.name() == operation) {
            None => Err(format!("no operation {operation}")),
            Some(row) if row.kind() == OperationKind::Query => {
                Err(format!("{operation} is a query"))
            }
            Some(row) => row.decode(input).map(drop).map_err(|error| error.to_string()),
        }
    })
}

fn json_of(outcome: Outcome) -> Result<Vec<u8>, CallError> {
    outcome.into_reply()?.map_err(CallError::Rejected)
}

fn result<R: DeserializeOwned>(json: &[u8]) -> Result<R, CallError> {
    serde_json::from_slice(json)
        .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()).into())
}
