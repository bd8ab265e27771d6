//! The context of a turn: what an operation sees of the world, and the effects that it wants.

use std::{fmt, sync::Arc};

use crate::{
    Answer, Dependencies, EntityId, Error, ErrorKind, Operation, Origin, Rejection, Request,
    Schedule, Then, Timeout, Timestamp, TraceContext,
    ask::{Ask, Continuation},
    effect::{Effect, Reminder, ReplyAddress, Signal},
    stock::{Subscriber, Topic},
};

/// The most effects one turn may have; each question of an ask is one.
pub const EFFECTS_PER_TURN_MAX: usize = 1_024;
/// The most bytes the arguments of one turn's effects may have together.
pub const EFFECT_BYTES_PER_TURN_MAX: usize = 4 << 20;
/// The longest name of a reminder, in bytes.
pub const REMINDER_NAME_BYTES_MAX: usize = 128;
/// The first character of names of reminders that the runtime sets itself: the timeouts of asks.
pub const RUNTIME_NAMES: char = '?';

/// The view and the effects of one turn, handed to an operation that asks for `ctx: &mut Context`, or to a
/// query that asks for `ctx: &Context`.
///
/// Effects are kept here and become real in the turn's commit, or not at all. A wish that breaks a
/// rule or a limit fails the turn when the operation returns.
pub struct Context {
    turn: Turn,
    /// `None` in an operation that does not await.
    dependencies: Option<Arc<Dependencies>>,
    draws: u64,
    effects: Vec<Effect>,
    effect_count: usize,
    effect_bytes: usize,
    deleted: bool,
    is_deferred: bool,
    is_void: bool,
    trouble: Option<String>,
    fault: Option<Error>,
}

/// A turn before it runs, as a runtime or a test driver describes it.
#[derive(Debug, Clone)]
pub struct Turn {
    /// The entity.
    pub id: EntityId,
    /// The store's time.
    pub now: Timestamp,
    /// How many turns of this entity were committed before.
    pub revision: u64,
    /// The seed of [`Context::entropy`].
    pub seed: u64,
    /// The same on every attempt of one operation.
    pub token: u128,
    /// The origin of the operation, where that is known.
    pub origin: Option<Arc<Origin>>,
    /// The one who hears its answer.
    pub answer_to: AnswerTo,
    /// Why every attempt before has failed, where a workflow is told so.
    pub failure: Option<String>,
    /// Whether the process ended without a word while this operation, or what it stands for, was under way.
    pub was_interrupted: bool,
}

/// The one who hears the answer of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerTo {
    /// The one who calls it from outside.
    Caller,
    /// An entity that has asked for it, at this address.
    Asker(ReplyAddress),
    /// Nobody: it is a signal, a reminder, or an answer to the entity.
    Nobody,
}

impl Turn {
    /// A turn of an operation that is called from outside by nobody who is known, and that was not tried before.
    pub fn new(id: EntityId, now: Timestamp, revision: u64, (seed, token): (u64, u128)) -> Self {
        Self {
            id,
            now,
            revision,
            seed,
            token,
            origin: None,
            answer_to: AnswerTo::Caller,
            failure: None,
            was_interrupted: false,
        }
    }
}

/// The effects of an operation that has returned.
#[derive(Debug, Default)]
pub struct Effects {
    /// In the order in which they were uttered.
    pub list: Vec<Effect>,
    /// Whether the entity is to be deleted.
    pub deleted: bool,
    /// Whether the operation is answered later, by [`Effect::Answer`].
    pub is_deferred: bool,
    /// Whether the turn leaves everything as it was, though its operation is done.
    pub is_void: bool,
    /// Why the entity does not go on by itself, for the log of who operates it.
    pub trouble: Option<String>,
}

impl Context {
    /// Starts a turn. For runtimes and test drivers.
    pub fn new(turn: Turn) -> Self {
        Self {
            turn,
            dependencies: None,
            draws: 0,
            effects: Vec::new(),
            effect_count: 0,
            effect_bytes: 0,
            deleted: false,
            is_deferred: false,
            is_void: false,
            trouble: None,
            fault: None,
        }
    }

    /// The same with what is given to operations that await and to queries. For runtimes and test drivers.
    #[must_use]
    pub fn with_dependencies(mut self, given: Arc<Dependencies>) -> Self {
        self.dependencies = Some(given);
        self
    }

    /// Ends a turn. For runtimes and test drivers.
    ///
    /// # Errors
    /// The first wish that broke a rule or a limit, as [`ErrorKind::Invalid`].
    pub fn finish(self) -> Result<Effects, Error> {
        let asks = || self.effects.iter().any(|effect| matches!(effect, Effect::Ask(_)));
        match self.fault {
            Some(fault) => Err(fault),
            None if self.deleted && asks() => {
                let rule = "an entity that is deleted in this turn gets no answers: send signals";
                Err(Error::new(ErrorKind::Invalid, rule))
            }
            None => Ok(Effects {
                list: self.effects,
                deleted: self.deleted,
                is_deferred: self.is_deferred,
                is_void: self.is_void,
                trouble: self.trouble,
            }),
        }
    }

    /// Ends a turn that was rejected: what stays of it are the effects, where the rejection keeps them.
    /// For runtimes and test drivers.
    ///
    /// # Errors
    /// As [`Context::finish`], of effects that are kept; and where the turn deletes its entity.
    pub fn finish_rejected(self, rejection: &Rejection) -> Result<Effects, Error> {
        match (rejection.keeps_effects(), self.deleted) {
            (false, _) => Ok(Effects::default()),
            (true, false) => self.finish(),
            (true, true) => {
                let rule = "a rejection that keeps its effects does not delete the entity";
                Err(Error::new(ErrorKind::Invalid, rule))
            }
        }
    }

    /// The entity's id.
    pub fn id(&self) -> &EntityId {
        &self.turn.id
    }

    /// The entity's key.
    pub fn key(&self) -> &str {
        self.turn.id.key()
    }

    /// The store's time, never before the entity's last commit and the same throughout a turn.
    pub fn now(&self) -> Timestamp {
        self.turn.now
    }

    /// How many turns of this entity were committed before this one. It never repeats for one
    /// generation of the entity and starts again at zero after a deletion.
    pub fn revision(&self) -> u64 {
        self.turn.revision
    }

    /// The next random number of this turn. Another attempt draws other numbers; what must be the
    /// same on every attempt is [`Context::token`].
    pub fn entropy(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea and Flood, 2014): one step of the sequence that `seed` starts.
        self.draws += 1;
        let mut mixed = self.turn.seed.wrapping_add(self.draws.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// The name of this operation for the outside world: 32 hexadecimal digits, the same on every
    /// attempt, so that an outside service can de-duplicate what it is asked.
    pub fn token(&self) -> String {
        format!("{:032x}", self.turn.token)
    }

    /// A dependency: a client, a pool or another value of the program, which the type names
    /// (`#[entity(needs(T))]`) and the program gives (`Node::builder().with(value)`, in tests
    /// `Driver::with`). For operations that await, and for queries.
    ///
    /// # Panics
    /// In an operation that does not await, which is a pure step of its state, and where the type does not
    /// name `T`: the turn fails. A node does not start where what a type names is not given.
    pub fn get<T: Send + Sync + 'static>(&self) -> Arc<T> {
        let name = std::any::type_name::<T>();
        let entity = self.turn.id.entity_type();
        #[allow(clippy::panic, reason = "a bug of the entity, which fails its turn")]
        match &self.dependencies {
            None => panic!(
                "an operation that does not await gets no {name}: make it `async`, or ask for it in a query"
            ),
            Some(given) => given.get().unwrap_or_else(|| {
                panic!("{entity} is not given a {name}: name it, `#[entity(needs({name}))]`, and give it")
            }),
        }
    }

    /// The caller outside who asked for this operation: what came of the request, through however many
    /// signals and delays, has the same caller. `None` where nobody is known, in the turn of a reminder
    /// and in that of a replayed dead letter: it permits nothing.
    pub fn caller(&self) -> Option<&str> {
        self.turn.origin.as_ref()?.caller.as_deref()
    }

    /// The trace that this operation is part of, for what it asks of outside services.
    pub fn trace(&self) -> Option<&TraceContext> {
        self.turn.origin.as_ref()?.trace.as_ref()
    }

    /// Sends an operation to an entity. It has the caller and the trace of this turn. It is stored in
    /// the commit of this turn, and applied there exactly once; two signals to one entity are applied
    /// in the order in which they were sent.
    pub fn signal<R>(&mut self, operation: Operation<R>) {
        match self.outgoing(operation) {
            Ok(signal) => self.add(Effect::Signal(signal)),
            Err(error) => self.fail(error),
        }
    }

    /// Subscribes this entity to the topic of this key, a [`Topic`] that the node serves too:
    /// each message that is published there from then on comes back as `operation` of this entity, which takes a
    /// [`Published`](crate::stock::Published), as a durable signal, exactly once and in order. Subscribing again
    /// changes nothing. It is stored in the commit of this turn. A message that `operation` cannot take, or an
    /// `operation` that there is not, becomes a dead letter.
    ///
    /// An entity that is deleted is still subscribed, and a message brings it back: unsubscribe in the turn that
    /// deletes.
    pub fn subscribe(&mut self, topic: &str, operation: &str) {
        let subscriber = Subscriber::new(self.id(), operation);
        self.signal(Topic::of(topic).subscribe(subscriber));
    }

    /// Ends a subscription. Messages that were sent already still come.
    pub fn unsubscribe(&mut self, topic: &str, operation: &str) {
        let subscriber = Subscriber::new(self.id(), operation);
        self.signal(Topic::of(topic).unsubscribe(subscriber));
    }

    /// Asks an entity: sends it an operation, as [`Context::signal`] does, and has its result, its
    /// rejection, its final failure or the timeout come back to this entity, as `then` says.
    ///
    /// The answer is written in the commit in which the operation ends, and applied here exactly once.
    /// Nobody waits: other operations of this entity run meanwhile. It arrives in this generation of
    /// the entity only: an answer to one that was deleted meanwhile becomes a dead letter.
    pub fn ask<R>(&mut self, operation: Operation<R>, then: Then<Answer<R>>) {
        let asked =
            self.outgoing(operation).and_then(|question| self.asked(vec![question], then, false));
        match asked {
            Ok(ask) => self.add(Effect::Ask(ask)),
            Err(error) => self.fail(error),
        }
    }

    /// Asks many, as [`Context::ask`] asks one. What comes of it arrives at once, in the order of
    /// `operations`, when all have answered or when the timeout of `then` has passed; who did not answer
    /// by then has [`Failure::TimedOut`](crate::Failure::TimedOut). Where nobody is asked, an empty list arrives
    /// at once. The entity stays in memory, with the answers that it has, until the others are there.
    pub fn ask_all<R>(
        &mut self,
        operations: impl IntoIterator<Item = Operation<R>>,
        then: Then<Vec<Answer<R>>>,
    ) {
        let questions = operations.into_iter().map(|operation| self.outgoing(operation));
        let questions = questions.collect::<Result<Vec<_>, _>>();
        match questions.and_then(|questions| self.asked(questions, then, true)) {
            Ok(ask) => self.add(Effect::Ask(ask)),
            Err(error) => self.fail(error),
        }
    }

    /// An operation as this turn sends it.
    fn outgoing<R>(&self, operation: Operation<R>) -> Result<Signal, Error> {
        let request = operation.into_request()?;
        if has_options(&request) {
            let rule = "an operation that an entity sends is applied once, and nobody waits for it: it \
                        has no idempotency key, deadline or condition, and no caller and trace but \
                        those of its turn";
            return Err(Error::new(ErrorKind::Invalid, rule));
        }
        if request.delay.is_some_and(|delay| delay.due(self.turn.now) > Timestamp::MAX) {
            return Err(too_late());
        }
        Ok(Signal {
            target: request.id,
            operation: request.operation,
            input: request.input,
            delay: request.delay,
        })
    }

    fn asked<A>(
        &self,
        questions: Vec<Signal>,
        then: Then<A>,
        takes_list: bool,
    ) -> Result<Ask, Error> {
        let invalid = |rule: &str| Err(Error::new(ErrorKind::Invalid, rule));
        if questions.iter().any(|question| question.delay.is_some()) {
            return invalid("a question is not delayed: set a reminder, and ask then");
        }
        let (request, argument, timeout) = then.into_parts()?;
        if request.id != self.turn.id {
            return invalid("an answer returns to the entity that asks: `Self::of(ctx.key())`");
        }
        let is_too_late = |length: &Timeout| self.turn.now + length.as_duration() > Timestamp::MAX;
        if timeout.as_ref().is_some_and(is_too_late) {
            return Err(too_late());
        }
        let (operation, others) = (request.operation, request.input);
        let then = Continuation { operation, argument, others, takes_list };
        Ok(Ask { questions, then, timeout, fence: None })
    }

    /// Sets the reminder `name` of this entity, in place of an earlier one of that name. When it
    /// is due it applies `operation`, which must be one of this entity, with an argument that fits. It
    /// survives downtime and is never early. It is refused after [`Context::delete`].
    pub fn remind<R>(
        &mut self,
        name: impl Into<String>,
        schedule: impl Into<Schedule>,
        operation: Operation<R>,
    ) {
        let (name, schedule) = (name.into(), schedule.into());
        if self.deleted {
            let rule = "an entity that is deleted in this turn has no reminders: set it before, to \
                        have it removed, or let a signal to itself set it in its next generation";
            return self.fail(Error::new(ErrorKind::Invalid, rule));
        }
        if name.is_empty() || name.len() > REMINDER_NAME_BYTES_MAX {
            let rule = format!("a reminder's name has 1 to {REMINDER_NAME_BYTES_MAX} bytes");
            return self.fail(Error::new(ErrorKind::Invalid, rule));
        }
        if name.starts_with(RUNTIME_NAMES) {
            return self.fail(is_the_runtimes());
        }
        match schedule.first(self.turn.now) {
            Err(why) => {
                let rule = format!("the reminder {name:?} has no schedule: {why}");
                return self.fail(Error::new(ErrorKind::Invalid, rule));
            }
            Ok(first) if first > Timestamp::MAX => return self.fail(too_late()),
            Ok(_) => {}
        }
        match operation.into_request() {
            Ok(request)
                if request.id != self.turn.id
                    || request.delay.is_some()
                    || has_options(&request) =>
            {
                let rule = "a reminder applies an operation of its own entity, without a delay, an \
                            idempotency key, a deadline, a condition, a caller or a trace";
                self.fail(Error::new(ErrorKind::Invalid, rule));
            }
            Ok(request) => self.add(Effect::Remind(Reminder {
                name,
                schedule,
                operation: request.operation,
                input: request.input,
            })),
            Err(error) => self.fail(error),
        }
    }

    /// Cancels the reminder `name`. Once this turn is committed, the reminder causes no turn.
    pub fn cancel_reminder(&mut self, name: impl Into<String>) {
        let name = name.into();
        if name.starts_with(RUNTIME_NAMES) {
            return self.fail(is_the_runtimes());
        }
        self.add(Effect::CancelReminder(name));
    }

    /// Has this entity expire: it is deleted with everything that belongs to it at or after this time from
    /// now, also after downtime, unless a later turn says otherwise. Where accepted work waits for it then,
    /// also delayed signals, or the timeout of one of its asks is to come, it expires after that. Of a type
    /// with a time to live every other turn sets that anew. It is refused after [`Context::delete`].
    pub fn expire_after(&mut self, length: impl Into<Timeout>) {
        let length = length.into();
        if self.turn.now + length.as_duration() > Timestamp::MAX {
            return self.fail(too_late());
        }
        self.expire(Some(length));
    }

    /// Has this entity stay until a later turn says otherwise, in place of an expiry that was set before. Of a
    /// type with a time to live the next turn sets that anew.
    pub fn cancel_expiry(&mut self) {
        self.expire(None);
    }

    fn expire(&mut self, length: Option<Timeout>) {
        if self.deleted {
            let rule = "an entity that is deleted in this turn does not expire";
            return self.fail(Error::new(ErrorKind::Invalid, rule));
        }
        self.add(Effect::Expire(length));
    }

    /// Deletes this entity in this turn's commit: its state and its reminders, also those that this
    /// turn set before. Operations behind this one, and signals that this turn sends to the entity
    /// itself, apply to its next generation, which begins with the default state.
    pub fn delete(&mut self) {
        self.deleted = true;
    }

    /// Defers the answer of this operation; returns where it goes, where anybody waits for it.
    pub(crate) fn defer(&mut self) -> Option<ReplyAddress> {
        self.is_deferred = true;
        match &self.turn.answer_to {
            AnswerTo::Asker(address) => Some(address.clone()),
            AnswerTo::Caller | AnswerTo::Nobody => None,
        }
    }

    /// Whether somebody hears of a rejection.
    pub(crate) fn is_heard(&self) -> bool {
        self.turn.answer_to != AnswerTo::Nobody
    }

    /// Leaves everything as it was, though the operation is done. There are no effects.
    pub(crate) fn leave_as_it_was(&mut self) {
        self.is_void = self.effects.is_empty();
    }

    /// Has the log say why the entity does not go on by itself.
    pub(crate) fn tell_trouble(&mut self, why: String) {
        self.trouble = Some(why);
    }

    /// Why every attempt before has failed, where this one is told so.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.turn.failure.as_deref()
    }

    pub(crate) fn was_interrupted(&self) -> bool {
        self.turn.was_interrupted
    }

    /// Adds an effect of a workflow, which has limits of its own.
    pub(crate) fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    fn add(&mut self, effect: Effect) {
        let (count, bytes) = match &effect {
            Effect::Signal(signal) => (1, signal.input.len()),
            Effect::Ask(ask) => {
                let questions: usize = ask.questions.iter().map(|it| it.input.len()).sum();
                // The timeout has the other arguments too.
                let times = 1 + usize::from(ask.timeout.is_some());
                (ask.questions.len().max(1), questions + times * ask.then.others.len())
            }
            Effect::Remind(reminder) => (1, reminder.input.len()),
            Effect::CancelReminder(name) => (1, name.len()),
            Effect::Expire(_) => (1, 0),
            // A workflow's, which has limits of its own.
            Effect::Step(_)
            | Effect::CancelStep(_)
            | Effect::CancelSteps(..)
            | Effect::OnHosting(_)
            | Effect::Answer(..) => (0, 0),
        };
        self.effect_count += count;
        self.effect_bytes += bytes;
        if self.effect_count > EFFECTS_PER_TURN_MAX {
            let limit = format!("a turn has at most {EFFECTS_PER_TURN_MAX} effects");
            self.fail(Error::new(ErrorKind::Invalid, limit));
        } else if self.effect_bytes > EFFECT_BYTES_PER_TURN_MAX {
            let limit = format!("a turn's effects have at most {EFFECT_BYTES_PER_TURN_MAX} bytes");
            self.fail(Error::new(ErrorKind::Invalid, limit));
        } else {
            self.effects.push(effect);
        }
    }

    fn fail(&mut self, error: Error) {
        self.fault.get_or_insert(error);
    }
}

/// Whether a request has what only a caller outside can ask for.
fn has_options(request: &Request) -> bool {
    request.idempotency_key.is_some()
        || request.deadline.is_some()
        || request.condition.is_some()
        || request.caller.is_some()
        || request.trace.is_some()
}

fn is_the_runtimes() -> Error {
    let rule = format!("names of reminders that begin with {RUNTIME_NAMES:?} are the runtime's");
    Error::new(ErrorKind::Invalid, rule)
}

fn too_late() -> Error {
    Error::new(ErrorKind::Invalid, "a delay ends before the year 10000")
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("turn", &self.turn).field("effects", &self.effects).finish()
    }
}
