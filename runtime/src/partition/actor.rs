//! The shell of a partition: a ractor actor that carries wake-ups. The home of ractor.
//!
//! What the partition asks for is done here: reads of the store at once where they need no disk, else
//! in tasks that come back as inputs. Where many nodes share a store, nothing is stepped, and nothing
//! that rests on memory is told, unless the node's lease holds.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use stead_entities::{Error, ErrorKind, Timestamp, collections::Attempted};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::AbortHandle,
};

use tracing::Instrument as _;

use super::{
    INBOX_PAGE, Partition, REMINDERS_PAGE,
    handle::{Assignment, Handle, Hosting},
    message::{CommitRequest, CommitSender, Input, Output, Returned, Start},
    step_tasks::{Services, StepRoom, StepTasks},
    steps::NewStep,
    task::{self, spawn},
    turn::{Halt, panicked},
    watch::Watches,
};
use crate::{
    clock::{self, Clock, monotonic, since},
    lease::Lease,
    store::{Haste, Store, TypedReads as _},
    types::EntityTypes,
};

/// How long a step may take before busy entities leave their next turns to another one: answers wait for
/// its end.
const STEP_LENGTH: Duration = Duration::from_millis(2);
/// The pause before a term after a failed one begins.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// The shortest wait of a timer.
const TICK_MIN: Duration = Duration::from_millis(1);
/// How many dead letters are read at one time to learn which there are.
const LETTERS_PAGE: usize = 256;

async fn acquire(permits: Arc<Semaphore>, count: usize) -> OwnedSemaphorePermit {
    let permit = permits.acquire_many_owned(count as u32).await;
    permit.expect("the semaphore of a node is never closed")
}

/// There is something in the queue.
#[derive(Debug)]
pub(crate) struct Wake;

/// Wakes an actor, and ends it.
#[derive(Debug)]
pub(super) struct Wakes(ActorRef<Wake>);

impl Wakes {
    pub(super) fn wake(&self) {
        // A stopped actor has no use for a wake-up.
        let _stopped = self.0.send_message(Wake);
    }

    pub(super) fn stop(&self) {
        self.0.stop(None);
    }

    pub(super) async fn stopped(&self) {
        let _ended_already = self.0.wait(None).await;
    }
}

/// The services that the shell of a partition uses.
pub(crate) struct Shell {
    pub(crate) handle: Handle,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) types: Arc<EntityTypes>,
    pub(crate) watches: Arc<Watches>,
    /// A permit for each row of due reminders and of inboxes that the node may have between disk and
    /// commit at one time. What callers ask for waits behind no more than these.
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) step_room: Arc<StepRoom>,
}

/// The partition that an actor hosts at present.
struct Hosted {
    shell: Arc<Shell>,
    partition: Partition,
    committer: CommitSender,
    lease: Arc<Lease>,
    /// The next tick.
    wake_at: Option<(Timestamp, AbortHandle)>,
    /// Operations that await.
    runs: Vec<AbortHandle>,
    steps: StepTasks,
}

/// An actor: it lives as long as its node, and hosts its partition while that is the node's.
struct Host {
    shell: Arc<Shell>,
    hosted: Option<Hosted>,
    /// The last term of the partition that was hosted last.
    term: u64,
    /// The empty queue that is swapped for the next inputs.
    taken: VecDeque<Input>,
}

struct PartitionActor;

/// Starts the actor of a partition.
///
/// # Errors
/// Where ractor cannot start it.
pub(crate) async fn start(shell: Shell) -> Result<(), Error> {
    let handle = shell.handle.clone();
    let started = Actor::spawn(None, PartitionActor, shell).await;
    let (actor, _joined) = started.map_err(|error| {
        Error::new(ErrorKind::Internal, "a partition cannot be started").with_source(error)
    })?;
    handle.bind(Wakes(actor));
    Ok(())
}

impl Actor for PartitionActor {
    type Msg = Wake;
    type State = Host;
    type Arguments = Shell;

    async fn pre_start(
        &self,
        _myself: ActorRef<Wake>,
        shell: Shell,
    ) -> Result<Host, ActorProcessingErr> {
        let shell = Arc::new(shell);
        Ok(Host { shell, hosted: None, term: 0, taken: VecDeque::new() })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Wake>,
        _wake: Wake,
        host: &mut Host,
    ) -> Result<(), ActorProcessingErr> {
        let handle = host.shell.handle.clone();
        for change in handle.take_assignments() {
            host.change(change).await;
        }
        let Some(hosted) = &mut host.hosted else {
            // What is left is of no use to anybody.
            handle.take(&mut host.taken);
            host.taken.drain(..).filter_map(Input::into_reply_to).for_each(|reply_to| {
                reply_to.answer(Err(Error::new(ErrorKind::Fenced, "the partition has moved")));
            });
            handle.rest(false, false);
            return Ok(());
        };
        if !hosted.lease.holds() {
            handle.park();
            return Ok(());
        }
        let mut inputs = std::mem::take(&mut host.taken);
        handle.take(&mut inputs);
        let has_more = hosted.turn_over(&mut inputs).await;
        host.taken = inputs;
        if !handle.rest(has_more, hosted.partition.waits_for_commit()) {
            // Others get their turn before this partition goes on.
            handle.wake();
        }
        Ok(())
    }
}

impl Host {
    async fn change(&mut self, change: Assignment) {
        let shell = &self.shell;
        match change {
            Assignment::Host(hosting) => {
                let Hosting { beginning, committer, lease } = *hosting;
                let partition = Partition::new(*beginning, shell.clock.now(), self.term);
                let (shell, runs, steps) = (shell.clone(), Vec::new(), StepTasks::default());
                let wake_at = None;
                let hosted = Hosted { shell, partition, committer, lease, wake_at, runs, steps };
                self.hosted = Some(hosted);
            }
            Assignment::Drop(error) => {
                let Some(mut hosted) = self.hosted.take() else { return };
                self.term = hosted.partition.term();
                let mut inputs = std::mem::take(&mut self.taken);
                shell.handle.take(&mut inputs);
                for output in hosted.partition.dissolve(&error, inputs.drain(..)) {
                    if let Output::Reply(reply_to, response) = output {
                        reply_to.answer(response);
                    }
                }
                self.taken = inputs;
                let timer = hosted.wake_at.take().map(|(_, timer)| timer);
                hosted.runs.drain(..).chain(timer).for_each(|task| task.abort());
                hosted.steps.abort();
            }
        }
    }
}

impl Hosted {
    /// One step, and what it asks for; says whether there is more to run at once.
    async fn turn_over(&mut self, inputs: &mut VecDeque<Input>) -> bool {
        let mut has_more = false;
        loop {
            let (now, room) = (self.shell.clock.now(), self.shell.store.has_room());
            let began = monotonic();
            let is_long = || since(began) >= STEP_LENGTH;
            let step = catch_unwind(AssertUnwindSafe(|| {
                self.partition.step(now, room, inputs.drain(..), is_long)
            }));
            let outputs = step.unwrap_or_else(|panic| {
                let error = panicked(&*panic);
                tracing::error!(partition = self.partition.number(), %error, "a partition failed");
                let error = Error::new(ErrorKind::Unavailable, "the partition restarts");
                self.partition.panicked(&error);
                self.partition.step(now, room, [], is_long)
            });
            let mut wakes_others = false;
            for output in outputs {
                wakes_others |= matches!(output, Output::Reply(..) | Output::Commit(_));
                match output {
                    Output::Again => has_more = true,
                    output => inputs.extend(self.perform(output).await),
                }
            }
            if wakes_others {
                // A task that was just woken may be bound to this thread until it is idle, and the
                // next turn may block the thread: whoever was woken goes first.
                tokio::task::yield_now().await;
            }
            if inputs.is_empty() {
                return has_more;
            }
        }
    }

    /// Does what the partition asks for; what is known at once is returned.
    async fn perform(&mut self, output: Output) -> Option<Input> {
        let (term, number) = (self.partition.term(), self.partition.number());
        match output {
            // What it rests on was read before the lease is looked at.
            Output::Reply(reply_to, Ok(_)) if !self.lease.holds() => {
                reply_to.answer(Err(Error::new(ErrorKind::Fenced, "the lease has run out")));
            }
            Output::Reply(reply_to, response) => reply_to.answer(response),
            // The queue has room for every write group and barrier that can be under way.
            Output::Commit(group) => drop(self.committer.send(CommitRequest::Group(group)).await),
            Output::Barrier(term) => self.barrier(number, term),
            Output::Start(start) => self.start(term, *start),
            Output::Step(step) => self.begin_step(term, *step),
            Output::EndSteps(which) => self.steps.end(&which),
            Output::WakeAt(at) => self.wake_at(at),
            Output::Again => {}
            Output::Permits(count) => {
                let permits = self.shell.permits.clone();
                match permits.clone().try_acquire_many_owned(count as u32) {
                    Ok(permit) => return Some(Input::Permits(term, permit)),
                    Err(_) => self
                        .later(async move { Input::Permits(term, acquire(permits, count).await) }),
                }
            }
            read => return self.read(term, number, read),
        }
        None
    }

    /// Reads the store: at once where that needs no disk, else in a task.
    fn read(&self, term: u64, number: u16, read: Output) -> Option<Input> {
        let store = &self.shell.store;
        match read {
            Output::Load(id) => {
                if let Some(loaded) = store.load_cached(&id) {
                    return Some(Input::Loaded(term, id, Box::new(loaded)));
                }
                let reading = store.load(id.clone());
                self.later(async move { Input::Loaded(term, id, Box::new(reading.await)) });
            }
            Output::LookUp(key) => {
                if let Some(found) = store.remembered_cached(&key) {
                    return Some(Input::LookedUp(term, key, Box::new(found)));
                }
                let reading = store.remembered((*key).clone());
                self.later(async move { Input::LookedUp(term, key, Box::new(reading.await)) });
            }
            Output::Recover => {
                let reading = store.receivers(number);
                self.later(async move { Input::Recovered(term, reading.await) });
            }
            Output::Receivers => {
                let reading = store.receivers(number);
                self.later(async move { Input::Receivers(term, reading.await) });
            }
            Output::Inbox(id, after) => {
                let (store, permits) = (store.clone(), self.shell.permits.clone());
                self.later(async move {
                    let permit = acquire(permits, INBOX_PAGE).await;
                    let page = store.inbox(number, id.clone(), after, INBOX_PAGE).await;
                    Input::Inbox(term, id, page, permit)
                });
            }
            Output::Letters(after) => {
                let reading = store.dead_letter_heads(number, after, LETTERS_PAGE);
                self.later(async move { Input::Letters(term, reading.await) });
            }
            Output::Due(after, until, limit) => {
                let reading = store.due(number, after, until, limit);
                self.later(async move { Input::Due(term, until, reading.await) });
            }
            Output::Reminder(id, slot) => {
                let reading = store.reminder(number, id.clone(), slot);
                self.later(async move { Input::Reminder(term, id, Box::new(reading.await)) });
            }
            Output::Reminders(id, after) => {
                let reading =
                    store.reminders(Haste::Short, number, id.clone(), after, REMINDERS_PAGE);
                self.later(async move { Input::Reminders(term, id, reading.await) });
            }
            Output::Entries(id, generation, miss) => {
                if let Some(loaded) = store.entries_cached(&id, generation, &miss) {
                    return Some(Input::Entries(term, id, Box::new(loaded)));
                }
                let reading = store.entries(id.clone(), generation, miss);
                self.later(async move { Input::Entries(term, id, Box::new(reading.await)) });
            }
            Output::Reply(..)
            | Output::Commit(_)
            | Output::Barrier(_)
            | Output::Start(_)
            | Output::Step(_)
            | Output::EndSteps(_)
            | Output::WakeAt(_)
            | Output::Permits(_)
            | Output::Again => unreachable!("not a read"),
        }
        None
    }

    fn barrier(&mut self, number: u16, term: u64) {
        // What awaits for an earlier term will never be settled; its rows run again.
        for run in self.runs.drain(..) {
            run.abort();
        }
        self.steps.abort();
        let committer = self.committer.clone();
        spawn(async move {
            if term > 1 {
                clock::sleep(RESTART_PAUSE).await;
            }
            // Without a committer the node is gone, and nobody waits.
            let _gone = committer.send(CommitRequest::Barrier(number, term)).await;
        });
    }

    /// Runs an operation that awaits in a task of its own, at most until its deadline.
    fn start(&mut self, term: u64, start: Start) {
        let Start { id, run, index, state, ctx, argument, row, reply_to, limits, polled, span } =
            start;
        let handle = self.shell.handle.clone();
        let known = self.shell.types.get(id.entity_type()).cloned();
        let known = known.expect("an operation of a type that is served");
        let watch = self.shell.watches.add();
        let watched_id = id.clone();
        let work = async move {
            let running = known.start(index, state, ctx, argument);
            let name = known.name_of(index);
            let seen = || watch.begin(&watched_id, name, reply_to.as_ref(), &row, polled);
            match known.has_collections() {
                true => {
                    let running = Attempted::new(running);
                    task::Polled { running, seen, watch: &watch }.await.map_err(Halt::Missed)
                }
                false => Ok(task::Polled { running, seen, watch: &watch }.await),
            }
        };
        let work = work.instrument(span);
        self.runs.retain(|run| !run.is_finished());
        let run_task = spawn(async move {
            let result = task::within(limits.deadline, work).await;
            let result = result.map_err(Halt::Failed).flatten();
            handle.push(Input::Returned(term, Box::new(Returned { id, run, result })));
        });
        self.runs.push(run_task);
    }

    /// Begins an attempt of a step of a workflow.
    fn begin_step(&mut self, term: u64, step: NewStep) {
        let workflow = step.start.id().workflow();
        let Some(known) = self.shell.types.get(workflow.entity_type()) else { return };
        let services = Services {
            handle: self.shell.handle.clone(),
            watches: self.shell.watches.clone(),
            room: self.shell.step_room.clone(),
            polled: self.partition.poll_limits(workflow),
            given: known.dependencies().clone(),
            term,
        };
        self.steps.begin(step, services);
    }

    /// Ticks at `at`, unless an earlier tick is under way.
    fn wake_at(&mut self, at: Timestamp) {
        let now = self.shell.clock.now();
        if let Some((known, timer)) = &self.wake_at {
            if *known > now && *known <= at {
                return;
            }
            timer.abort();
        }
        let (handle, clock) = (self.shell.handle.clone(), self.shell.clock.clone());
        let timer = spawn(async move {
            // The store's clock may tick more slowly than time passes, or stand for a while: a tick
            // that came too early would be the last one.
            loop {
                let length = at.since(clock.now());
                if length.is_zero() {
                    break;
                }
                clock::sleep(length.max(TICK_MIN)).await;
            }
            handle.push(Input::Tick);
        });
        self.wake_at = Some((at, timer));
    }

    fn later(&self, input: impl Future<Output = Input> + Send + 'static) {
        let handle = self.shell.handle.clone();
        spawn(async move { handle.push(input.await) });
    }
}
