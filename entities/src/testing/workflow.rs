//! Drive a workflow by hand: its steps, its events and its clock, without a runtime.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    marker::PhantomData,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{Driver, Drivers, StepPlay};
use crate::{
    Answer, CallError, Entity, EntityId, Error, ErrorKind, Failure, Reference, Rejection,
    Timestamp,
    operation::Argument,
    workflow::{Instance, Started, Status, StepError, StepResult, WorkflowType},
};

pub use crate::workflow::SavedHistory;

/// One workflow without a runtime, with the entities and workflows that it reaches.
///
/// Steps run where they stand, or end as [`WorkflowDriver::step`] says. The clock moves only by
/// [`WorkflowDriver::advance`] and [`WorkflowDriver::run_to_end`]. Nothing of the workflow stays in memory between
/// turns: each one begins with a replay of the whole history, and each call ends with another one. Where the code does
/// something else on a replay, or is stuck, the test panics with the reason.
pub struct WorkflowDriver<W: WorkflowType> {
    drivers: Drivers,
    id: EntityId,
    scripts: Scripts,
    /// Whether the code may be stuck, which the test looks at.
    allows_stuck: bool,
    of: PhantomData<fn() -> W>,
}

type Scripts = Arc<Mutex<BTreeMap<String, Script>>>;

/// How the attempts of one step end, in their order; the last one for all that follow.
type Script = VecDeque<(u32, Play)>;

#[derive(Debug, Clone)]
enum Play {
    Returns(Vec<u8>),
    Fails(String),
    Rejects(Rejection),
    Fatal(String),
    TimesOut,
    Holds,
}

/// Says how the attempts of a step end: one after the other, the last one for all that follow.
#[derive(Debug)]
pub struct StepScript<'d> {
    scripts: &'d Scripts,
    name: String,
}

impl StepScript<'_> {
    fn then(self, play: Play) -> Self {
        let mut scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        scripts.entry(self.name.clone()).or_default().push_back((1, play));
        drop(scripts);
        self
    }

    /// It returns a value.
    ///
    /// # Panics
    /// Where the value has no JSON form.
    pub fn returns<T: Serialize>(self, value: T) -> Self {
        let json = value.to_json().expect("a result with a JSON form");
        self.then(Play::Returns(json))
    }

    /// It fails, and is tried again.
    pub fn fails(self, reason: &str) -> Self {
        self.then(Play::Fails(reason.to_owned()))
    }

    /// It fails, and is not tried again.
    pub fn fails_for_good(self, reason: &str) -> Self {
        self.then(Play::Fatal(reason.to_owned()))
    }

    /// It says no, and is not tried again.
    pub fn rejects(self, rejection: Rejection) -> Self {
        self.then(Play::Rejects(rejection))
    }

    /// It takes too long.
    pub fn times_out(self) -> Self {
        self.then(Play::TimesOut)
    }

    /// It stays under way until [`WorkflowDriver::end_step`] ends it.
    pub fn holds(self) -> Self {
        self.then(Play::Holds)
    }

    /// The last end comes so often, before the next one.
    pub fn times(self, times: u32) -> Self {
        let mut scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = scripts.get_mut(&self.name).and_then(VecDeque::back_mut) {
            last.0 = times.max(1);
        }
        drop(scripts);
        self
    }
}

impl Play {
    fn play(self) -> StepPlay {
        let failed = |error| StepPlay::End(Err(error));
        match self {
            Self::Returns(json) => StepPlay::End(Ok(json)),
            Self::Fails(reason) => failed(StepError::new(reason)),
            Self::Fatal(reason) => failed(StepError::fatal(reason)),
            Self::Rejects(rejection) => failed(rejection.into()),
            Self::TimesOut => StepPlay::TimeOut,
            Self::Holds => StepPlay::Hold,
        }
    }
}

impl<W: WorkflowType> WorkflowDriver<W> {
    /// The workflow of a key before it is started, at 2026-01-01T00:00:00Z, with the value that its steps use.
    ///
    /// # Panics
    /// Where the key is none.
    pub fn new(key: &str, given: W) -> Self {
        let id = EntityId::new(W::NAME, key).expect("a valid key");
        let mut drivers = Drivers::new().workflow(given);
        let scripts = Scripts::default();
        let played = scripts.clone();
        drivers.play_steps(move |start| {
            let mut scripts = played.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(script) = scripts.get_mut(start.name()) else { return StepPlay::Run };
            let is_last = script.len() == 1;
            match script.front_mut() {
                None => StepPlay::Run,
                Some((1, play)) if !is_last => {
                    let play = play.clone();
                    script.pop_front();
                    play.play()
                }
                Some((times, play)) => {
                    *times = times.saturating_sub(1).max(1);
                    play.clone().play()
                }
            }
        });
        Self { drivers, id, scripts, allows_stuck: false, of: PhantomData }
    }

    /// Keeps what is in memory of the workflow between its turns, as on a node that has room for it: a turn goes on
    /// where the last one stopped. The value that its steps use is given once more.
    #[must_use]
    pub fn warm(mut self, given: W) -> Self {
        self.drivers = self.drivers.warm_workflow(given);
        self
    }

    /// Registers an entity type that the workflow reaches.
    #[must_use]
    pub fn entity<E: Entity>(mut self) -> Self {
        self.drivers = self.drivers.entity::<E>();
        self
    }

    /// Registers a workflow type that the workflow starts, with the value that its steps use.
    #[must_use]
    pub fn workflow<C: WorkflowType>(mut self, given: C) -> Self {
        self.drivers = self.drivers.workflow(given);
        self
    }

    /// Gives a value to those that name it: code of earlier versions, entities.
    #[must_use]
    pub fn with<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.drivers = self.drivers.with(value);
        self
    }

    /// Lets the code be stuck: the test looks at [`WorkflowDriver::stuck`].
    #[must_use]
    pub fn allowing_stuck(mut self) -> Self {
        self.allows_stuck = true;
        self
    }

    /// The entities and workflows that are driven, this one among them.
    pub fn drivers(&mut self) -> &mut Drivers {
        &mut self.drivers
    }

    /// Says how the attempts of a step end, instead of running it.
    pub fn step(&mut self, name: &str) -> StepScript<'_> {
        let mut scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        scripts.remove(name);
        drop(scripts);
        StepScript { scripts: &self.scripts, name: name.to_owned() }
    }

    /// Starts it.
    ///
    /// # Errors
    /// As a caller hears them.
    pub fn start(&mut self, input: W::Input) -> Result<Started, CallError> {
        let input = input.to_json()?;
        let input = [&b"{\"input\":"[..], &input, b"}"].concat();
        self.apply("start", Some(&Raw(input)))
    }

    /// Raises an event.
    ///
    /// # Errors
    /// As a caller hears them.
    pub fn event<T: Serialize>(&mut self, name: &str, payload: T) -> Result<(), CallError> {
        let payload = payload.to_json()?;
        let name = serde_json::Value::from(name);
        let argument =
            [format!("{{\"name\":{name},\"payload\":").as_bytes(), &payload, b"}"].concat();
        self.apply("event", Some(&Raw(argument)))
    }

    /// Cancels it: everything that is outstanding fails.
    ///
    /// # Errors
    /// As a caller hears them.
    pub fn cancel(&mut self) -> Result<(), CallError> {
        self.apply("cancel", None)
    }

    /// Ends it without its code.
    ///
    /// # Errors
    /// As a caller hears them.
    pub fn terminate(&mut self, reason: &str) -> Result<(), CallError> {
        self.apply("terminate", Some(&reasoned(reason)))
    }

    /// Has it wait.
    ///
    /// # Errors
    /// As a caller hears them.
    pub fn suspend(&mut self, reason: &str) -> Result<(), CallError> {
        self.apply("suspend", Some(&reasoned(reason)))
    }

    /// Has it go on.
    ///
    /// # Errors
    /// As a caller hears them.
    pub fn resume(&mut self) -> Result<(), CallError> {
        self.apply("resume", None)
    }

    /// Tries it again where it is stuck.
    ///
    /// # Errors
    /// As a caller hears them.
    pub fn retry(&mut self) -> Result<(), CallError> {
        self.apply("retry", None)
    }

    /// Has it go on from before the failures with which it ended, or from a place.
    ///
    /// # Errors
    /// As a caller hears them.
    pub fn rewind(&mut self, place: Option<&str>) -> Result<Started, CallError> {
        let argument = serde_json::json!({ "place": place }).to_string().into_bytes();
        self.apply("rewind", Some(&Raw(argument)))
    }

    /// Ends an attempt that is held, by its place among them: with a value, or as a failure.
    ///
    /// # Errors
    /// As [`Drivers::apply`].
    pub fn end_step<T: Serialize>(
        &mut self,
        held: usize,
        result: Result<T, StepError>,
    ) -> Result<(), CallError> {
        let result: StepResult = match result {
            Ok(value) => Ok(value.to_json()?),
            Err(error) => Err(error),
        };
        self.drivers.end_step(held, Some(result))?;
        self.verify();
        Ok(())
    }

    /// Moves the clock: what is due until then happens, in its order.
    ///
    /// # Errors
    /// As [`Drivers::advance`].
    pub fn advance(&mut self, length: Duration) -> Result<(), CallError> {
        self.drivers.advance(length)?;
        self.verify();
        Ok(())
    }

    /// Moves the clock from one timer to the next until the workflow has ended.
    ///
    /// # Errors
    /// Where it waits for something else than time; as [`WorkflowDriver::advance`].
    pub fn run_to_end(&mut self) -> Result<(), CallError> {
        while !self.status().is_some_and(Status::is_end) {
            let woken = self.instance().and_then(|instance| instance.reminder_due("wake"));
            let Some(due) = woken else {
                let waits = self.waits_for().join(", ");
                let message = format!("{} waits, and not for time: {waits}", self.id);
                return Err(Error::new(ErrorKind::Invalid, message).into());
            };
            let length = due.since(self.now()).max(Duration::from_micros(1));
            self.advance(length)?;
        }
        Ok(())
    }

    /// Has its node end, and another one take it over: steps that were under way begin again.
    ///
    /// # Errors
    /// As [`Drivers::apply`].
    pub fn crash(&mut self) -> Result<(), CallError> {
        let id = self.id.clone();
        self.drivers.host_anew(&id)?;
        self.verify();
        Ok(())
    }

    /// Runs a test again and again, each time with a crash behind another turn: every one of them.
    ///
    /// # Panics
    /// Where the test does.
    pub fn crash_everywhere(make: impl Fn() -> Self, test: impl Fn(&mut Self)) {
        let mut whole = make();
        test(&mut whole);
        let turns = whole.instance().map_or(0, Driver::revision);
        for turn in 1..=turns {
            let mut crashed = make();
            let id = crashed.id.clone();
            crashed.drivers.host_anew_behind(&id, turn);
            test(&mut crashed);
        }
    }

    /// The clock.
    pub fn now(&self) -> Timestamp {
        self.drivers.now()
    }

    /// Its status; none before it is started.
    pub fn status(&self) -> Option<Status> {
        self.instance()?.state().status()
    }

    /// Why it is stuck.
    pub fn stuck(&self) -> Option<String> {
        self.instance()?.state().stuck().map(str::to_owned)
    }

    /// Names what it waits for, in words: `event approval`, `timer in PT24H`.
    pub fn waits_for(&self) -> Vec<String> {
        let now = self.now();
        self.instance().map_or_else(Vec::new, |instance| instance.state().waits_for(now))
    }

    /// The status that its code has set.
    pub fn custom_status<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(self.instance()?.state().shown()).ok()
    }

    /// Its result.
    ///
    /// # Errors
    /// The failure that it ended with.
    ///
    /// # Panics
    /// Where it has not ended.
    pub fn result(&self) -> Result<W::Output, Failure> {
        let instance = self.instance().expect("a workflow that was started");
        let outcome = instance.state().outcome();
        let waits = self.waits_for().join(", ");
        assert!(!outcome.is_empty(), "{} has not ended: it waits for {waits}", self.id);
        serde_json::from_slice::<Answer<W::Output>>(outcome).expect("a result of its type")
    }

    /// The history of its present run, to be kept beside the test: [`replay`] checks later code against it.
    ///
    /// # Panics
    /// Where it was not started.
    pub fn history(&self) -> SavedHistory {
        let instance = self.instance().expect("a workflow that was started");
        instance.state().saved(&self.id)
    }

    fn instance(&self) -> Option<&Driver<Instance<W>>> {
        self.drivers.driver::<Instance<W>>(self.id.key())
    }

    fn apply<R: DeserializeOwned>(
        &mut self,
        operation: &'static str,
        argument: Option<&dyn Argument>,
    ) -> Result<R, CallError> {
        let reference = Reference::new(W::NAME, self.id.key());
        let result = self.drivers.apply(reference.operation(operation, argument));
        self.verify();
        result
    }

    /// Replays the history once more, with other hash seeds.
    fn verify(&self) {
        let Some(instance) = self.instance().filter(|it| it.state().status().is_some()) else {
            return;
        };
        if let Some(why) = instance.state().stuck().filter(|_| !self.allows_stuck) {
            panic!("{} is stuck: {why}", self.id);
        }
        if self.allows_stuck {
            return;
        }
        let (woken, due) = (instance.reminder_due("wake"), instance.state().next_due());
        assert!(
            due.is_none_or(|due| woken.is_some_and(|woken| woken <= due)),
            "{} waits for {due:?}, and is woken at {woken:?}",
            self.id
        );
        if let Err(why) = self.history().replay::<W>() {
            panic!("{} does something else when it is replayed: {why}", self.id);
        }
    }
}

fn reasoned(reason: &str) -> Raw {
    Raw(serde_json::json!({ "reason": reason }).to_string().into_bytes())
}

/// An argument that is JSON already.
struct Raw(Vec<u8>);

impl Serialize for Raw {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &serde_json::value::RawValue =
            serde_json::from_slice(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

/// Replays a history that was saved by [`SavedHistory::save`] with the code of today.
///
/// # Errors
/// The first place at which the code does something else; and where the file cannot be read.
pub fn replay<W: WorkflowType>(path: impl AsRef<Path>) -> Result<(), String> {
    SavedHistory::read(path)?.replay::<W>()
}

impl<W: WorkflowType> fmt::Debug for WorkflowDriver<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WorkflowDriver").field(&self.id).finish()
    }
}
