//! An instance as a runtime has it: an entity like any other, whose operations are what arrives at a workflow.
//!
//! Its state is a head, the history of the present run, and what has arrived and cannot be handed over yet. A turn takes
//! what arrives, hands it to the run in memory (`turn`), and leaves a row of history, a new head and effects. Where the
//! run cannot take it, because it is suspended, or stuck, or its code refuses, the turn keeps what arrived and no more:
//! so an operation of an instance fails only where the store does. `control` is what operators and callers ask for,
//! `events` what they tell.
//!
//! What must never happen: a turn that the code refuses leaves more than what arrived and the reason; the run in memory is
//! used where it does not stand at the end of the history.

mod attempts;
mod control;
mod effects;
mod events;
mod head;
mod history;
mod locks;
mod rewind;
mod turn;
mod view;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    marker::PhantomData,
    mem::take,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(super) use self::head::StepEnd;
use self::{
    control::{HistoryPage, Purge, Reason, Restart, StartArgument},
    events::EventArrived,
    head::{Arrived, Head, Kept},
    history::History,
    rewind::Rewind,
    turn::Engine,
};
pub use self::{
    control::{StartPolicy, Started},
    head::{HistoryCounts, Status, Stuck},
    locks::LockAsked,
    view::{StatusView, WaitView},
};
use super::{
    EventType, Program, SavedHistory, WorkflowDescription, WorkflowType, activation::Activation,
    history::Payload, place::Place,
};
use crate::{
    Context, Dependency, Entity, IndexType, Layout, Map, OperationType, Policy, Rejection, Timeout,
    Timestamp, collections::Collection, index::encode, state::LayoutText,
};

/// The operation of an instance that hears of the end of an attempt of a step.
pub const STEP_ENDED: &str = "step_ended";
/// The operation of an instance that takes an answer.
const ANSWERED: &str = "answered";
/// The operation of an instance that its reminder applies, and the name of that.
const WAKE: &str = "wake";
/// The operation of an instance that goes on where a turn has stopped.
const GO_ON: &str = "go_on";
/// The operation of an instance that is applied where its partition is hosted anew.
const HOSTED: &str = "hosted";

/// The operation of an instance that an entity applies which has been locked by it for long.
pub const LOCK_ASKED: &str = "lock_asked";

/// An instance of the workflow `W`, as an entity.
pub struct Instance<W> {
    state: State,
    slot: Slot,
    of: PhantomData<fn() -> W>,
}

/// The state of an instance, whatever its type.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, Layout)]
struct State {
    /// None before anything of it is known. Of one that is not started, it counts the events that wait for that.
    head: Option<Box<Head>>,
    history: History,
    /// Arrivals that were not handed over, by number.
    kept: Map<u64, Kept>,
}

/// The place of the run in memory, which copies of a state share.
#[derive(Clone, Default)]
struct Slot(Arc<Mutex<Option<Box<Live>>>>);

/// A run in memory, and up to where it has come.
struct Live {
    position: Position,
    /// None before the run has its input.
    activation: Option<Activation>,
    /// The numbers of the events that wait, by name.
    events: BTreeMap<Box<str>, VecDeque<u64>>,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    run: u32,
    /// The entries of its history.
    entries: u64,
    /// The number of what is kept next.
    kept: u64,
}

impl Slot {
    fn take(&self) -> Option<Box<Live>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// About how many bytes the run takes in memory.
    fn bytes(&self) -> usize {
        let live = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        live.as_ref().map_or(0, |live| live.bytes())
    }

    fn put(&self, live: Box<Live>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(live);
    }
}

/// The code of a type in all its versions, and its rules.
pub(super) struct Programs {
    name: &'static str,
    newest: u32,
    programs: Vec<Arc<Program>>,
    events: Vec<EventType>,
    retention: Duration,
}

impl Programs {
    fn of<W: WorkflowType>() -> Self {
        let programs = std::iter::once(Program::of::<W>()).chain(W::earlier());
        Self {
            name: W::NAME,
            newest: W::VERSION,
            programs: programs.map(Arc::new).collect(),
            events: W::events(),
            retention: W::RETENTION,
        }
    }

    fn get(&self, version: u32) -> Option<&Arc<Program>> {
        self.programs.iter().find(|program| program.version() == version)
    }
}

/// The argument of [`ANSWERED`].
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
struct Answered {
    answer: Payload,
    #[schemars(with = "String")]
    place: Place,
    run: u32,
}

/// The argument of [`STEP_ENDED`].
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub(super) struct Attempted {
    #[schemars(with = "String")]
    pub(super) place: Place,
    pub(super) run: u32,
    pub(super) number: u32,
    pub(super) end: StepEnd,
}

impl<W: WorkflowType> Entity for Instance<W> {
    const NAME: &'static str = W::NAME;
    const DESCRIPTION: &'static str = W::DESCRIPTION;
    const IS_WORKFLOW: bool = true;

    fn operations() -> Vec<OperationType<Self>> {
        let programs = Arc::new(Programs::of::<W>());
        let table = Table { programs, of: PhantomData };
        table.public().into_iter().chain(table.internal()).chain(table.queries()).collect()
    }

    fn indexes() -> Vec<IndexType<Self>> {
        vec![
            IndexType::new::<Option<Status>>("status", |it| {
                encode(&it.state.started().map(|head| head.status))
            }),
            IndexType::new::<Option<Timestamp>>("created", |it| {
                encode(&it.state.started().map(|head| head.created_at))
            }),
            IndexType::new::<bool>("stuck", |it| {
                encode(&it.state.started().is_some_and(|head| head.stuck.is_some()))
            }),
            IndexType::new::<Option<u32>>("version", |it| {
                encode(&it.state.started().map(|head| head.version))
            }),
        ]
    }

    fn policy() -> Policy {
        let changes = W::CHANGES.map(Timeout::from);
        Policy { retries: Some(2), changes, ..Policy::default() }
    }

    fn workflow() -> Option<WorkflowDescription> {
        Some(WorkflowDescription::of::<W>())
    }

    fn held_bytes(&self) -> usize {
        self.slot.bytes()
    }

    fn dependencies() -> Vec<Dependency> {
        Programs::of::<W>().programs.iter().map(|program| program.given()).collect()
    }
}

/// Writes the table of operations of a type.
struct Table<W> {
    programs: Arc<Programs>,
    of: PhantomData<fn() -> W>,
}

type Answer<T> = Result<T, Rejection>;

impl<W: WorkflowType> Table<W> {
    fn operation<A, R>(
        &self,
        name: &'static str,
        body: impl Fn(&mut Engine<'_>, A) -> Answer<R> + Send + Sync + 'static,
    ) -> OperationType<Instance<W>>
    where
        A: serde::de::DeserializeOwned + schemars::JsonSchema + Send + 'static,
        R: Serialize + schemars::JsonSchema,
    {
        let programs = self.programs.clone();
        OperationType::operation(
            name,
            move |instance: &mut Instance<W>, ctx: &mut Context, argument: A| {
                body(&mut instance.engine(&programs, ctx), argument)
            },
        )
    }

    fn public(&self) -> Vec<OperationType<Instance<W>>> {
        let check = {
            let programs = self.programs.clone();
            move |event: &EventArrived| event.check(&programs.events)
        };
        vec![
            self.operation("start", |engine, it: StartArgument| engine.start(it))
                .checked_by(StartArgument::check::<W>),
            self.operation("event", |engine, it: EventArrived| engine.event(it)).checked_by(check),
            self.operation("cancel", |engine, ()| engine.cancel()),
            self.operation("terminate", |engine, it: Reason| engine.terminate(it)),
            self.operation("suspend", |engine, it: Reason| engine.suspend(it)),
            self.operation("resume", |engine, ()| engine.resume()),
            self.operation("retry", |engine, ()| engine.retry()),
            self.operation("rewind", |engine, it: Rewind| engine.rewind(&it)),
            self.operation("restart", |engine, restart: Restart| engine.restart(restart)),
            self.operation("purge", |engine, it: Purge| engine.purge(it)),
        ]
    }

    fn internal(&self) -> Vec<OperationType<Instance<W>>> {
        let all = [
            self.operation(STEP_ENDED, |engine, ended: Attempted| {
                engine.step_ended(ended);
                Ok(())
            }),
            self.operation(ANSWERED, |engine, answered: Answered| {
                engine.answered(answered);
                Ok(())
            })
            .taking_answers(),
            self.operation(WAKE, |engine, ()| {
                engine.wake();
                Ok(())
            }),
            self.operation(GO_ON, |engine, ()| {
                engine.go_on();
                Ok(())
            }),
            self.operation(HOSTED, |engine, ()| {
                engine.hosted();
                Ok(())
            }),
            self.operation(LOCK_ASKED, |engine, asked: LockAsked| {
                engine.lock_asked(&asked);
                Ok(())
            }),
        ];
        all.into_iter().map(OperationType::internal).collect()
    }

    fn queries(&self) -> Vec<OperationType<Instance<W>>> {
        let page =
            |it: &Instance<W>, ctx: &Context, page: HistoryPage| it.state.page(ctx.id(), &page);
        vec![
            OperationType::query("status", |instance: &Instance<W>, _: &Context, (): ()| {
                instance.clone()
            }),
            OperationType::query("outcome", |instance: &Instance<W>, _: &Context, (): ()| {
                instance.state.outcome()
            }),
            OperationType::query("history", page),
        ]
    }
}

impl<W> Instance<W> {
    /// Its status; none before it is started.
    pub fn status(&self) -> Option<Status> {
        Some(self.state.started()?.status)
    }

    /// Why it is stuck.
    pub fn stuck(&self) -> Option<&str> {
        self.state.head.as_ref()?.stuck.as_ref().map(|stuck| &*stuck.reason)
    }

    /// The answer that it ended with, as JSON; empty before.
    pub fn outcome(&self) -> &[u8] {
        self.state.head.as_ref().map_or(&[], |head| head.outcome.bytes())
    }

    /// The status that its code has set, as JSON; empty where there is none.
    pub fn shown(&self) -> &[u8] {
        self.state.head.as_ref().map_or(&[], |head| head.shown.bytes())
    }

    /// Names what it waits for, in words.
    pub fn waits_for(&self, now: Timestamp) -> Vec<String> {
        let waits = self.state.head.iter().flat_map(|head| &head.waits);
        waits.map(|wait| wait.in_words(now)).collect()
    }

    /// When something is due of what it shows that it waits for.
    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        let head = self.state.head.as_ref()?;
        let retries = head.attempts.iter().filter_map(|step| step.next_at);
        let due = head.waits.iter().filter_map(|wait| wait.due).chain(retries).min();
        due.filter(|_| head.status == Status::Running && head.stuck.is_none())
    }

    /// The history of its present run, of which all entries are in memory.
    pub(crate) fn saved(&self, id: &crate::EntityId) -> SavedHistory {
        self.state.saved(id, 0..self.state.history.len())
    }

    fn engine<'e>(&'e mut self, programs: &'e Programs, ctx: &'e mut Context) -> Engine<'e> {
        Engine { state: &mut self.state, slot: &self.slot, programs, ctx }
    }
}

impl<W> Clone for Instance<W> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), slot: self.slot.clone(), of: PhantomData }
    }
}
impl<W> Default for Instance<W> {
    fn default() -> Self {
        Self { state: State::default(), slot: Slot::default(), of: PhantomData }
    }
}
impl<W> fmt::Debug for Instance<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state.fmt(f)
    }
}

/// Stored as it is; shown as its status.
impl<W> Serialize for Instance<W> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => self.state.view().serialize(serializer),
            false => self.state.serialize(serializer),
        }
    }
}
impl<'de, W> Deserialize<'de> for Instance<W> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return Err(serde::de::Error::custom(
                "an instance is not read from what is shown of it",
            ));
        }
        let state = State::deserialize(deserializer)?;
        Ok(Self { state, ..Self::default() })
    }
}
impl<W> Layout for Instance<W> {
    fn describe(layout: &mut LayoutText) {
        State::describe(layout);
    }
    fn each_collection(&mut self, each: &mut dyn FnMut(&mut dyn Collection)) {
        self.state.each_collection(each);
    }
}
impl<W: WorkflowType> schemars::JsonSchema for Instance<W> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Workflow_{}", W::NAME).into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        view::schema::<W>(generator)
    }
}

impl State {
    /// The head of an instance that was started.
    fn started(&self) -> Option<&Head> {
        self.head.as_deref().filter(|head| head.run > 0)
    }

    /// The head of an instance of which anything is known.
    fn head_mut(&mut self) -> &mut Head {
        self.head.as_mut().expect("an instance of which something is known")
    }

    fn position(&self) -> Position {
        let (run, kept) = self.head.as_ref().map_or((0, 0), |head| (head.run, head.kept.next));
        Position { run, entries: self.history.len(), kept }
    }

    /// Keeps what has arrived until it can be handed over.
    fn keep(&mut self, at: Timestamp, what: Arrived) -> u64 {
        let counts = &mut self.head_mut().kept;
        let number = counts.next;
        counts.next += 1;
        match &what {
            Arrived::Event(name, payload) => {
                counts.events += 1;
                counts.event_bytes += (name.len() + payload.len()) as u64;
            }
            _ => counts.others += 1,
        }
        self.kept.insert(number, Kept { at, what });
        number
    }

    /// Ends something that was kept, and returns it.
    fn take_kept(&mut self, number: u64) -> Option<Kept> {
        let kept = self.kept.take(&number)?;
        let counts = &mut self.head_mut().kept;
        match &kept.what {
            Arrived::Event(name, payload) => {
                counts.events -= 1;
                counts.event_bytes -= (name.len() + payload.len()) as u64;
            }
            _ => counts.others -= 1,
        }
        Some(kept)
    }

    /// Begins a new run: nothing of the last one stays but what is kept.
    fn begin_run(&mut self, seed: u128, version: u32) {
        self.history = History::default();
        let head = self.head_mut();
        head.run += 1;
        head.is_overdue = false;
        (head.seed, head.version) = (seed, version);
        head.history = head::HistoryCounts::default();
        (head.outstanding, head.children) = (0, 0);
        drop((take(&mut head.attempts), take(&mut head.waits), take(&mut head.locks)));
    }
}
