//! Drive an entity by hand: apply operations, advance the clock, read the effects.

use std::{collections::BTreeMap, time::Duration};

use serde::de::DeserializeOwned;

use crate::{
    CallError, Context, Entity, EntityId, Error, ErrorKind, Operation, Query, Request, Timestamp,
    context::Turn,
    effect::{Effect, Reminder, Signal},
    entity::{Body, Outcome},
};

/// One entity without a runtime. Turns behave as in a node: an operation that is rejected or whose
/// effects break a rule changes nothing. A panic of an operation reaches the test.
#[derive(Debug)]
pub struct Driver<E> {
    id: Option<EntityId>,
    state: E,
    revision: u64,
    now: Timestamp,
    turns: u64,
    signals: Vec<Signal>,
    reminders: BTreeMap<String, (Timestamp, Reminder)>,
}

impl<E: Entity> Driver<E> {
    /// The entity `key` before its first turn, at 2026-01-01T00:00:00Z.
    pub fn new(key: &str) -> Self {
        Self {
            id: EntityId::new(E::NAME, key).ok(),
            state: E::default(),
            revision: 0,
            now: Timestamp::from_micros(1_767_225_600_000_000),
            turns: 0,
            signals: Vec::new(),
            reminders: BTreeMap::new(),
        }
    }

    /// Applies an operation made by the typed reference, synchronous ones only.
    ///
    /// # Errors
    /// The rejection, or a failure: an unknown operation, an argument that does not fit, an effect
    /// that breaks a rule.
    pub fn apply<R: DeserializeOwned>(&mut self, operation: Operation<R>) -> Result<R, CallError> {
        let json = self.run(&operation.into_request()?)?;
        result(&json)
    }

    /// Applies an operation that awaits.
    ///
    /// # Errors
    /// As [`Driver::apply`].
    pub async fn apply_async<R: DeserializeOwned>(
        &mut self,
        operation: Operation<R>,
    ) -> Result<R, CallError> {
        let request = operation.into_request()?;
        let ctx = Context::new(self.turn()?);
        let table = E::operations();
        let Body::Async(body) = self.find(&table, &request)? else {
            return result(&self.run(&request)?);
        };
        let running = body(self.state.clone(), ctx, &request.input)
            .map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))?;
        let (state, ctx, outcome) = running.await;
        result(&self.settle(state, ctx, outcome)?)
    }

    /// Runs a query made by the typed reference.
    ///
    /// # Errors
    /// As [`Driver::apply`].
    pub fn query<R: DeserializeOwned>(&self, query: Query<R>) -> Result<R, CallError> {
        let request = query.into_request()?;
        let table = E::operations();
        let Body::Query(body) = self.find(&table, &request)? else {
            return Err(Error::new(ErrorKind::Invalid, "this is not a query").into());
        };
        result(&json_of(body(&self.state, &Context::new(self.turn()?), &request.input))?)
    }

    /// Moves the clock and applies every reminder that becomes due, in the order of due times.
    ///
    /// # Errors
    /// The first rejection or failure of a reminder's operation; the clock stands at its due time.
    pub fn advance(&mut self, length: Duration) -> Result<(), CallError> {
        let end = self.now + length;
        loop {
            let next = self.reminders.values().map(|(due, _)| *due).min();
            let Some(due) = next.filter(|due| *due <= end) else {
                break;
            };
            self.now = self.now.max(due);
            let first = self.reminders.iter().find(|(_, (at, _))| *at == due);
            let Some(name) = first.map(|(name, _)| name.clone()) else {
                break;
            };
            self.fire(&name)?;
        }
        self.now = end;
        Ok(())
    }

    /// The state.
    pub fn state(&self) -> &E {
        &self.state
    }

    /// How many turns were committed.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The clock.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The signals sent since the last time, in order.
    pub fn take_signals(&mut self) -> Vec<Signal> {
        std::mem::take(&mut self.signals)
    }

    /// The due time of the reminder `name`, if it is set.
    pub fn reminder_due(&self, name: &str) -> Option<Timestamp> {
        self.reminders.get(name).map(|(due, _)| *due)
    }

    fn fire(&mut self, name: &str) -> Result<(), CallError> {
        let Some((due, reminder)) = self.reminders.remove(name) else {
            return Ok(());
        };
        if let Some(next) = reminder.schedule.next(due, self.now) {
            self.reminders.insert(name.into(), (next, reminder.clone()));
        }
        let Some(id) = self.id.clone() else {
            return Ok(());
        };
        let request = Request {
            id,
            operation: reminder.operation,
            input: reminder.input,
            delay: None,
            idempotency_key: None,
            deadline: None,
        };
        self.run(&request).map(drop)
    }

    fn turn(&self) -> Result<Turn, Error> {
        let id =
            self.id.clone().ok_or_else(|| Error::new(ErrorKind::Invalid, "the key is invalid"))?;
        let (revision, seed) = (self.revision, self.turns);
        Ok(Turn { id, now: self.now, revision, seed, token: u128::from(self.turns) })
    }

    fn find<'t>(
        &self,
        table: &'t [crate::OperationType<E>],
        request: &Request,
    ) -> Result<&'t Body<E>, Error> {
        if Some(&request.id) != self.id.as_ref() {
            let message = format!("{} is not the driven entity", request.id);
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        let found = table.iter().find(|row| row.name() == request.operation);
        found.map(crate::OperationType::body).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("no operation {}", request.operation))
        })
    }

    fn run(&mut self, request: &Request) -> Result<Vec<u8>, CallError> {
        let table = E::operations();
        let (mut state, mut ctx) = (self.state.clone(), Context::new(self.turn()?));
        let outcome = match self.find(&table, request)? {
            Body::Operation(body) => body(&mut state, &mut ctx, &request.input),
            Body::Async(_) => {
                let message = "this operation awaits: drive it with apply_async";
                return Err(Error::new(ErrorKind::Invalid, message).into());
            }
            Body::Query(body) => body(&state, &ctx, &request.input),
        };
        self.settle(state, ctx, outcome)
    }

    fn settle(&mut self, state: E, ctx: Context, outcome: Outcome) -> Result<Vec<u8>, CallError> {
        self.turns += 1;
        let json = json_of(outcome)?;
        let effects = ctx.finish()?;
        self.state = state;
        self.revision += 1;
        for effect in effects.list {
            match effect {
                Effect::Signal(signal) => self.signals.push(signal),
                Effect::Remind(reminder) => {
                    let due = reminder.schedule.first(self.now);
                    self.reminders.insert(reminder.name.clone(), (due, reminder));
                }
                Effect::CancelReminder(name) => drop(self.reminders.remove(&name)),
            }
        }
        if effects.deleted {
            self.state = E::default();
            self.revision = 0;
            self.reminders.clear();
        }
        Ok(json)
    }
}

fn json_of(outcome: Outcome) -> Result<Vec<u8>, CallError> {
    match outcome {
        Outcome::Replied(json) => Ok(json),
        Outcome::Rejected(rejection) => Err(CallError::Rejected(rejection)),
        Outcome::Undecodable(error) => {
            Err(Error::new(ErrorKind::Invalid, error.to_string()).into())
        }
        Outcome::Unencodable(error) => Err(Error::new(ErrorKind::Internal, error).into()),
    }
}

fn result<R: DeserializeOwned>(json: &[u8]) -> Result<R, CallError> {
    serde_json::from_slice(json)
        .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()).into())
}
