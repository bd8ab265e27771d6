//! Entities of several types that are driven together: one clock, and signals that arrive.

use std::{
    any::Any,
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use serde::de::DeserializeOwned;

use super::{
    DeadLetter, Driver, EXPIRY, START, StepPlay, asks::OpenAsk, at_once, driven::Driven,
    locks::Locks, result, steps::Workflows,
};
use crate::{
    CallError, Dependencies, Entity, EntityId, Error, ErrorKind, Failure, Operation, Origin, Query,
    Request, Timestamp,
    ask::answer_json,
    context::AnswerTo,
    effect::{Effect, ReplyAddress, Signal},
    sabotage::Sabotage,
    stored,
    workflow::{Instance, STEP_ENDED, StepId, StepResult, StepStart, WorkflowType},
};

/// The most signals that one call delivers. Entities that signal each other for ever reach it.
pub const SIGNALS_PER_CALL_MAX: usize = 10_000;

/// Entities without a runtime that reach one another.
///
/// Types are registered; their entities exist without being created, as on a node. Every method that
/// changes something delivers the signals that follow from it before it returns: signals that are
/// due at once, and what these cause, in the order in which they were sent. Delayed signals and
/// reminders wait for [`Drivers::advance`], on one clock for all.
///
/// ```
/// use std::time::Duration;
/// use stead_entities::{Context, Layout, Rejection, entity, testing::Drivers};
///
/// #[derive(Clone, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema, Layout)]
/// struct Stock { pieces: u32 }
///
/// #[entity(name = "stock")]
/// impl Stock {
///     pub fn fill(&mut self, pieces: u32) { self.pieces += pieces; }
///     pub fn take(&mut self, ctx: &mut Context, order: String) -> Result<(), Rejection> {
///         self.pieces = self.pieces.checked_sub(1).ok_or_else(|| Rejection::new("none left"))?;
///         ctx.signal(Order::of(order).ship().after(Duration::from_secs(60)));
///         Ok(())
///     }
/// }
///
/// #[derive(Clone, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema, Layout)]
/// struct Order { shipped: bool }
///
/// #[entity(name = "order")]
/// impl Order {
///     pub fn place(&mut self, ctx: &mut Context, what: String) {
///         ctx.signal(Stock::of(what).take(ctx.key().to_owned()));
///     }
///     pub fn ship(&mut self) { self.shipped = true; }
/// }
///
/// let mut shop = Drivers::new().entity::<Stock>().entity::<Order>();
/// shop.apply(Stock::of("bolts").fill(1)).unwrap();
/// shop.apply(Order::of("1").place("bolts".into())).unwrap();
/// shop.apply(Order::of("2").place("bolts".into())).unwrap();
/// assert_eq!(shop.state::<Stock>("bolts").pieces, 0);
/// shop.advance(Duration::from_secs(60)).unwrap();
/// assert!(shop.state::<Order>("1").shipped && !shop.state::<Order>("2").shipped);
/// let letters = shop.take_dead_letters();
/// assert_eq!(letters[0].error.rejection().unwrap().reason(), "none left");
/// ```
///
/// What differs from a node:
///
/// - A node answers a call before the signals that it causes are applied, and other operations may
///   come between. Here they are applied before [`Drivers::apply`] returns, one turn at a time.
/// - A node keeps the order of the signals of one sender to one receiver. Here all signals are
///   applied in the order in which they were sent; do not rely on more than the former.
/// - Nothing is tried again. A signal that fails is a dead letter at once, as only a rejected one is
///   on a node, and a panic reaches the test.
/// - An answer to an entity that was deleted before the last of its ask arrived vanishes; on a node it is a
///   dead letter. The turn of a timeout has the caller and trace of its ask; on a node it has none. A question
///   to an entity of a type that is not registered ends with its timeout, if it has one.
/// - A call to an entity that a workflow has locked is refused, and its reminders are applied; on a node they wait.
/// - States are proven readable, but not stored. Idempotency keys and deadlines mean nothing, and the
///   limits of a node do not apply.
#[derive(Default)]
pub struct Drivers {
    pub(super) clock: Clock,
    types: BTreeMap<&'static str, Make>,
    dependencies: Dependencies,
    pub(super) entities: BTreeMap<EntityId, Box<dyn Driven>>,
    /// The signals that are due, in the order in which they were sent.
    pub(super) due: VecDeque<Sent>,
    /// The delayed signals. The number keeps the order of those that are due at one moment.
    delayed: BTreeMap<(Timestamp, u64), Sent>,
    /// The asks of which answers are missing, and the number of the last one.
    pub(super) asks: BTreeMap<u64, OpenAsk>,
    pub(super) last_ask: u64,
    signals: Vec<Signal>,
    dead_letters: Vec<DeadLetter>,
    workflows: Workflows,
    pub(super) locks: Locks,
}

/// Makes what drives the entity of an id.
type Make = fn(&EntityId) -> Box<dyn Driven>;

/// The time, and how many signals were delayed so far.
pub(super) struct Clock {
    pub(super) now: Timestamp,
    delayed: u64,
}

impl Default for Clock {
    fn default() -> Self {
        Self { now: START, delayed: 0 }
    }
}

#[derive(Clone)]
pub(super) struct Sent {
    pub(super) sender: Option<EntityId>,
    pub(super) signal: Signal,
    pub(super) origin: Option<Arc<Origin>>,
    /// The ask of which it is a question, and which of its questions.
    pub(super) asked: Option<(u64, usize)>,
    /// The lock under which it was asked.
    pub(super) fence: Option<Box<str>>,
}

impl Sent {
    /// A signal of the runtime.
    pub(super) fn new(signal: Signal) -> Self {
        Self { sender: None, signal, origin: None, asked: None, fence: None }
    }
}

/// The next event as the clock moves.
enum Next {
    Signal(u64),
    Timeout(u64),
    Reminder(EntityId, String),
}

impl Drivers {
    /// No entities, at 2026-01-01T00:00:00Z.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers an entity type.
    #[must_use]
    pub fn entity<E: Entity>(mut self) -> Self {
        self.types.insert(E::NAME, |id| Box::new(Driver::<E>::new(id.key())));
        self
    }

    /// Registers a workflow type, with the value that its steps use. Its instances are entities of the type
    /// [`Instance<W>`]; their steps run where they stand, or as [`Drivers::play_steps`] says.
    #[must_use]
    pub fn workflow<W: WorkflowType>(self, given: W) -> Self {
        self.entity::<Instance<W>>().with(given)
    }

    /// The same, with what is in memory of an instance kept between its turns, as on a node that has room for it.
    #[must_use]
    pub fn warm_workflow<W: WorkflowType>(mut self, given: W) -> Self {
        self.types.insert(W::NAME, |id| Box::new(Driver::<Instance<W>>::new(id.key()).warm()));
        self.with(given)
    }

    /// Says what becomes of each attempt of a step that is begun from here on.
    pub fn play_steps(
        &mut self,
        player: impl FnMut(&StepStart) -> StepPlay + Send + Sync + 'static,
    ) {
        self.workflows.steps.play_by(Box::new(player));
    }

    /// The attempts of steps that are under way, because [`StepPlay::Hold`] was said of them.
    pub fn held_steps(&self) -> &[StepStart] {
        &self.workflows.steps.held
    }

    /// Ends an attempt that is held, by its place among them: with a result, or, with `None`, as one that took too
    /// long.
    ///
    /// # Errors
    /// As the delivery of [`Drivers::apply`].
    pub fn end_step(&mut self, held: usize, result: Option<StepResult>) -> Result<(), CallError> {
        let start = self.workflows.steps.held.remove(held);
        let input = start.ended(result);
        self.step_ended(&start, input);
        at_once(self.deliver())
    }

    /// Has the node of a workflow end and another one take it over: its steps are under way no more, and begin again.
    ///
    /// # Errors
    /// As the delivery of [`Drivers::apply`].
    pub fn host_anew(&mut self, id: &EntityId) -> Result<(), CallError> {
        self.host_anew_behind(id, 0);
        self.end_hosting();
        at_once(self.deliver())
    }

    /// The same by itself, as soon as the workflow has had so many turns.
    pub(super) fn host_anew_behind(&mut self, id: &EntityId, turns: u64) {
        self.workflows.end_behind(id, turns);
    }

    fn end_hosting(&mut self) {
        let turns = |id: &EntityId| self.entities.get(id).map_or(0, |driver| driver.revision());
        let told = self.workflows.end_hosting(turns);
        let sent = told.map(Sent::new);
        self.due.extend(sent);
    }

    fn step_ended(&mut self, start: &StepStart, input: Vec<u8>) {
        let (target, operation) = (start.id().workflow().clone(), STEP_ENDED.into());
        let signal = Signal { target, operation, input, delay: None };
        self.due.push_back(Sent::new(signal));
    }

    /// Gives a dependency to the types that name it, in place of an earlier one of its type.
    #[must_use]
    pub fn with<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.dependencies = self.dependencies.with(value);
        self.entities.values_mut().for_each(|driver| driver.give(&self.dependencies));
        self
    }

    /// Applies an operation made by a typed reference, and delivers the signals that follow.
    ///
    /// # Errors
    /// The rejection, or a failure: a type that is not registered, an unknown operation, an argument
    /// that does not fit, an effect that breaks a rule. Where an operation awaits something that is
    /// not ready, or [`SIGNALS_PER_CALL_MAX`] is reached, the signals that remain are delivered by
    /// the next call.
    pub fn apply<R: DeserializeOwned>(&mut self, operation: Operation<R>) -> Result<R, CallError> {
        at_once(self.apply_async(operation))
    }

    /// Applies an operation as [`Drivers::apply`] does, and waits for what operations await.
    ///
    /// # Errors
    /// As [`Drivers::apply`].
    pub async fn apply_async<R: DeserializeOwned>(
        &mut self,
        operation: Operation<R>,
    ) -> Result<R, CallError> {
        let request = operation.into_request()?;
        if request.delay.is_some() {
            let rule = "a delayed operation is sent with signal; a call is not delayed";
            return Err(Error::new(ErrorKind::Invalid, rule).into());
        }
        let (id, origin) = (request.id.clone(), request.origin()?);
        self.check_unlocked(&id)?;
        let json = self.driver_mut(&id)?.run(&request).await;
        self.collect(&id, json.is_ok(), origin.as_ref());
        let json = json?;
        self.deliver().await?;
        result(&json)
    }

    /// Sends an operation one-way, with its delay, and delivers it if it is due. What becomes of it
    /// shows in the state and the dead letters.
    ///
    /// # Errors
    /// A key or an argument that breaks a rule; otherwise as the delivery of [`Drivers::apply`].
    pub fn signal<R>(&mut self, operation: Operation<R>) -> Result<(), CallError> {
        at_once(self.signal_async(operation))
    }

    /// Sends an operation as [`Drivers::signal`] does, and waits for what operations await.
    ///
    /// # Errors
    /// As [`Drivers::signal`].
    pub async fn signal_async<R>(&mut self, operation: Operation<R>) -> Result<(), CallError> {
        let request = operation.into_request()?;
        let origin = request.origin()?;
        let Request { id: target, operation, input, delay, .. } = request;
        let signal = Signal { target, operation, input, delay };
        self.accept(Sent { origin, ..Sent::new(signal) });
        self.deliver().await
    }

    /// Runs a query made by a typed reference.
    ///
    /// # Errors
    /// As [`Drivers::apply`].
    pub fn query<R: DeserializeOwned>(&self, query: Query<R>) -> Result<R, CallError> {
        let request = query.into_request()?;
        match self.entities.get(&request.id) {
            Some(driver) => result(&driver.query(&request)?),
            None => result(&self.fresh(&request.id)?.query(&request)?),
        }
    }

    /// Moves the clock, and delivers every delayed signal and applies every reminder that becomes
    /// due, in the order of due times, each with the signals that follow. At one moment signals come
    /// first.
    ///
    /// # Errors
    /// As the delivery of [`Drivers::apply`]; the clock stands where it happened.
    pub fn advance(&mut self, length: Duration) -> Result<(), CallError> {
        at_once(self.advance_async(length))
    }

    /// Moves the clock as [`Drivers::advance`] does, and waits for what operations await.
    ///
    /// # Errors
    /// As [`Drivers::advance`].
    pub async fn advance_async(&mut self, length: Duration) -> Result<(), CallError> {
        let end = self.clock.now + length;
        self.deliver().await?;
        while let Some((due, next)) = self.next().filter(|(due, _)| *due <= end) {
            self.set_clock(self.clock.now.max(due));
            match next {
                Next::Signal(number) => self.due.extend(self.delayed.remove(&(due, number))),
                Next::Timeout(ask) => self.end_ask(ask),
                Next::Reminder(id, name) => self.fire(&id, &name).await,
            }
            self.deliver().await?;
        }
        self.set_clock(end);
        Ok(())
    }

    /// The state of an entity; the default one before its first turn.
    pub fn state<E: Entity>(&self, key: &str) -> E {
        self.driver::<E>(key).map_or_else(E::default, |driver| driver.state().clone())
    }

    /// The driver of one entity, for its revision and reminders; `None` before its first operation.
    pub fn driver<E: Entity>(&self, key: &str) -> Option<&Driver<E>> {
        let driver: &dyn Any = &**self.entities.get(&EntityId::new(E::NAME, key).ok()?)?;
        driver.downcast_ref()
    }

    /// The clock.
    pub fn now(&self) -> Timestamp {
        self.clock.now
    }

    /// The signals to entities of types that are not registered, sent since the last time, in order.
    pub fn take_signals(&mut self) -> Vec<Signal> {
        std::mem::take(&mut self.signals)
    }

    /// The dead letters since the last time, in order: signals and reminders that were rejected
    /// or failed, and delayed signals whose receiver was deleted.
    pub fn take_dead_letters(&mut self) -> Vec<DeadLetter> {
        std::mem::take(&mut self.dead_letters)
    }

    fn fresh(&self, id: &EntityId) -> Result<Box<dyn Driven>, Error> {
        let make = self.types.get(id.entity_type()).ok_or_else(|| {
            let message = format!("the entity type {} is not registered", id.entity_type());
            Error::new(ErrorKind::NotFound, message)
        })?;
        let mut driver = make(id);
        driver.set_clock(self.clock.now);
        driver.give(&self.dependencies);
        Ok(driver)
    }

    fn driver_mut(&mut self, id: &EntityId) -> Result<&mut Box<dyn Driven>, Error> {
        if !self.entities.contains_key(id) {
            let mut driver = self.fresh(id)?;
            driver.set_number(self.entities.len() as u64);
            self.entities.insert(id.clone(), driver);
        }
        let gone = || Error::new(ErrorKind::Internal, "an entity was lost");
        self.entities.get_mut(id).ok_or_else(gone)
    }

    fn set_clock(&mut self, now: Timestamp) {
        self.clock.now = now;
        self.entities.values_mut().for_each(|driver| driver.set_clock(now));
    }

    /// Accepts what a turn sent. A deletion takes along what was delayed before it.
    fn collect(&mut self, id: &EntityId, is_committed: bool, origin: Option<&Arc<Origin>>) {
        let Some(driver) = self.entities.get_mut(id) else {
            return;
        };
        let effects = driver.take_sent();
        if is_committed && driver.revision() == 0 {
            self.asks.retain(|_, open| open.asker != *id);
            let delayed = std::mem::take(&mut self.delayed);
            let (dead, alive): (BTreeMap<_, _>, BTreeMap<_, _>) =
                delayed.into_iter().partition(|(_, sent)| sent.signal.target == *id);
            self.delayed = alive;
            for Sent { sender, signal, .. } in dead.into_values() {
                let reason = "the entity was deleted while this was delayed";
                let error = Error::new(ErrorKind::NotFound, reason).into();
                self.dead_letters.push(DeadLetter { sender, signal, error });
            }
        }
        for effect in effects {
            let (sender, origin) = (Some(id.clone()), origin.cloned());
            match effect {
                Effect::Signal(signal) => self.accept(Sent { sender, origin, ..Sent::new(signal) }),
                Effect::Ask(ask) => self.open_ask(id, ask, origin),
                Effect::Remind(_) | Effect::CancelReminder(_) | Effect::Expire(_) => {}
                Effect::Step(start) => self.workflows.steps.begin(start),
                Effect::CancelStep(of) => self.workflows.steps.cancel(|step| *step == of),
                Effect::CancelSteps(of, run) => {
                    let is_of = |step: &StepId| *step.workflow() == of && step.run() == run;
                    self.workflows.steps.cancel(is_of);
                }
                Effect::OnHosting(operation) => self.workflows.on_hosting(id, operation),
                Effect::Answer(ReplyAddress(address), answer) => {
                    if let Ok(asked) = stored::decode::<(u64, usize)>(&address) {
                        self.answer(asked, answer);
                    }
                }
            }
        }
        self.end_hosting();
    }

    pub(super) fn accept(&mut self, sent: Sent) {
        if !self.types.contains_key(sent.signal.target.entity_type()) {
            return self.signals.push(sent.signal);
        }
        let now = self.clock.now;
        match sent.signal.delay.map(|delay| delay.due(now)).filter(|due| *due > now) {
            Some(due) => {
                self.clock.delayed += 1;
                self.delayed.insert((due, self.clock.delayed), sent);
            }
            None if Sabotage::DriverOutOfOrder.is_on() => {
                self.due.insert(self.due.len().min(1), sent)
            }
            None => self.due.push_back(sent),
        }
    }

    /// Applies what is due until nothing is. A signal leaves the queue once its turn has run: if
    /// this future is dropped before, the next call begins with it.
    async fn deliver(&mut self) -> Result<(), CallError> {
        let mut delivered = 0;
        loop {
            let Some(sent) = self.due.front().cloned() else {
                match self.workflows.steps.play(&self.dependencies) {
                    Some(Some((start, ended))) => self.step_ended(&start, ended),
                    Some(None) => {}
                    None => return Ok(()),
                }
                continue;
            };
            delivered += 1;
            if delivered > SIGNALS_PER_CALL_MAX {
                let limit = format!(
                    "one call delivers at most {SIGNALS_PER_CALL_MAX} signals: do the \
                             entities signal each other for ever?"
                );
                return Err(Error::new(ErrorKind::Overloaded, limit).into());
            }
            let Some(Sent { sender, signal, origin, asked, .. }) = self.pass_lock(sent) else {
                continue;
            };
            let id = signal.target.clone();
            let mut request =
                Request::new(id.clone(), signal.operation.clone(), signal.input.clone());
            if let Some(origin) = &origin {
                (request.caller, request.trace) = (origin.caller.clone(), origin.trace.clone());
            }
            let answer_to = asked.map_or(AnswerTo::Nobody, |asked| {
                AnswerTo::Asker(ReplyAddress(stored::encode(&asked).unwrap_or_default()))
            });
            let driver = self.driver_mut(&id)?;
            driver.set_answer_to(answer_to);
            let result = driver.run(&request).await;
            driver.set_answer_to(AnswerTo::Caller);
            let is_deferred = driver.is_deferred() && result.is_ok();
            self.due.pop_front();
            self.collect(&id, result.is_ok(), origin.as_ref());
            match (asked, result) {
                (Some(_), Ok(_)) if is_deferred => {}
                (Some(asked), Ok(json)) => self.answer(asked, answer_json(Ok(&json))),
                (Some(asked), Err(CallError::Rejected(no))) => {
                    self.answer(asked, answer_json(Err(Failure::Rejected(no))));
                }
                (asked, Err(error)) => {
                    if let Some(asked) = asked {
                        self.answer(asked, answer_json(Err(Failure::Failed(error.to_string()))));
                    }
                    self.lose(DeadLetter { sender, signal, error });
                }
                (None, Ok(_)) => {}
            }
        }
    }

    /// The delayed signal, timeout or reminder that is due first.
    fn next(&self) -> Option<(Timestamp, Next)> {
        let signal = self.delayed.keys().next().map(|(due, number)| (*due, *number));
        let reminders = self
            .entities
            .iter()
            .filter_map(|(id, driver)| driver.next_reminder().map(|(due, name)| (due, id, name)));
        let timeouts = self.asks.iter().filter_map(|(number, open)| Some((open.due?, *number)));
        let signal = signal.map(|(due, number)| (due, Next::Signal(number)));
        let timeout = timeouts.min().map(|(due, number)| (due, Next::Timeout(number)));
        let reminder = reminders.min();
        let reminder = reminder.map(|(due, id, name)| (due, Next::Reminder(id.clone(), name)));
        // The first of equals.
        [signal, timeout, reminder].into_iter().flatten().min_by_key(|(due, _)| *due)
    }

    async fn fire(&mut self, id: &EntityId, name: &str) {
        let work = self.work_until(id);
        let Some(driver) = self.entities.get_mut(id) else {
            return;
        };
        if name == EXPIRY
            && let Some(until) = work
        {
            return driver.put_expiry_off(until);
        }
        let signal = driver.reminder(name);
        let result = driver.fire(name).await;
        self.collect(id, result.is_ok(), None);
        if let (Err(error), Some(signal)) = (result, signal) {
            self.lose(DeadLetter { sender: Some(id.clone()), signal, error });
        }
    }

    /// Until when something is delayed for an entity, or one of its asks may time out: it does not expire
    /// before.
    fn work_until(&self, id: &EntityId) -> Option<Timestamp> {
        let delayed = self.delayed.iter().filter(|(_, sent)| sent.signal.target == *id);
        let asks = self.asks.values().filter(|open| open.asker == *id);
        let times = delayed.map(|((due, _), _)| *due).chain(asks.filter_map(|open| open.due));
        times.max().map(|due| due + Duration::from_secs(1))
    }

    /// Keeps a dead letter, and has its entity hear of it, where that wants to.
    fn lose(&mut self, letter: DeadLetter) {
        let target = letter.signal.target.clone();
        let told = self.entities.get(&target).and_then(|driver| driver.on_dead_letter());
        if let Some(told) = told.filter(|told| *told != letter.signal.operation) {
            let heard = letter.heard(self.clock.now);
            let input = serde_json::to_vec(&heard).expect("texts and numbers have a JSON form");
            let signal = Signal { target, operation: told.into(), input, delay: None };
            self.due.push_back(Sent::new(signal));
        }
        self.dead_letters.push(letter);
    }
}

impl fmt::Debug for Drivers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entities: Vec<&EntityId> = self.entities.keys().collect();
        f.debug_struct("Drivers").field("now", &self.now()).field("entities", &entities).finish()
    }
}
