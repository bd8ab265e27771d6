//! The shell of a partition: a ractor actor that carries wake-ups, and a queue that carries inputs.
//! The home of ractor.
//!
//! ractor's mailbox is unbounded, so inputs wait in a queue of our own, whose length admission
//! bounds; at most one wake-up is under way. What the partition asks for is done here: reads of the
//! store at once where they need no disk, else in tasks that come back as inputs.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use stead_entities::{Error, ErrorKind, Timestamp};
use tokio::task::AbortHandle;

use super::{
    INBOX_PAGE, Partition,
    message::{Input, Output, Returned, Start},
    task::{self, spawn},
    ticket::{Ticket, Tickets},
    turn::panicked,
    watch::Watches,
};
use crate::{
    clock::{self, Clock},
    commit::{self, Work},
    config::Config,
    store::{Store, record::DeadLetterId},
    types::EntityTypes,
};

/// The pause before a generation after a failed one begins.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// A way to one partition. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Handle(Arc<Queue>);

#[derive(Debug)]
struct Queue {
    inputs: Mutex<Inputs>,
    actor: OnceLock<ActorRef<Wake>>,
}

#[derive(Default)]
struct Inputs {
    waiting: VecDeque<Input>,
    is_awake: bool,
    /// Whether news of a commit lets anything go on. Where it does not, the news waits for company.
    waits_for_commit: bool,
    tickets: Tickets,
}

impl std::fmt::Debug for Inputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inputs").field("waiting", &self.waiting.len()).finish()
    }
}

/// There is something in the queue.
#[derive(Debug)]
pub(crate) struct Wake;

impl Handle {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Queue { inputs: Mutex::default(), actor: OnceLock::new() }))
    }

    /// Gives the partition an input. Inputs are taken in the order in which they are pushed.
    pub(crate) fn push(&self, input: Input) {
        self.push_to(self.lock(), input);
    }

    /// Gives the partition a question, and watches the deadline of who asks.
    pub(crate) fn ask(&self, ticket: &Ticket, question: impl FnOnce(Ticket) -> Input) {
        let question = question(ticket.clone());
        let mut inputs = self.lock();
        inputs.tickets.add(ticket);
        self.push_to(inputs, question);
    }

    /// Tells those who wait past their deadlines; everybody, where `now` is `None`.
    pub(crate) fn expire(&self, now: Option<Instant>) {
        let overdue = self.lock().tickets.overdue(now);
        overdue.expire();
    }

    fn lock(&self) -> MutexGuard<'_, Inputs> {
        self.0.inputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push_to(&self, mut inputs: MutexGuard<'_, Inputs>, input: Input) {
        let can_wait = matches!(input, Input::Committed(..)) && !inputs.waits_for_commit;
        inputs.waiting.push_back(input);
        if can_wait || std::mem::replace(&mut inputs.is_awake, true) {
            return;
        }
        drop(inputs);
        self.wake();
    }

    fn wake(&self) {
        if let Some(actor) = self.0.actor.get() {
            // A stopped actor has no use for a wake-up.
            let _stopped = actor.send_message(Wake);
        }
    }

    /// Swaps what waits for the empty queue `inputs`.
    fn take(&self, inputs: &mut VecDeque<Input>) {
        std::mem::swap(&mut self.lock().waiting, inputs);
    }

    /// Goes to sleep if nothing waits; says whether it does.
    fn rest(&self, has_more: bool, waits_for_commit: bool) -> bool {
        let mut inputs = self.lock();
        inputs.waits_for_commit = waits_for_commit;
        let mut waiting = inputs.waiting.iter();
        let is_news = |input: &Input| waits_for_commit || !matches!(input, Input::Committed(..));
        inputs.is_awake = has_more || waiting.any(is_news);
        !inputs.is_awake
    }

    /// Lets the actor end when it has finished its step.
    pub(crate) fn stop(&self) {
        if let Some(actor) = self.0.actor.get() {
            actor.stop(None);
        }
    }

    /// Waits until the actor has ended and let go of the store.
    pub(crate) async fn stopped(&self) {
        if let Some(actor) = self.0.actor.get() {
            let _ended_already = actor.wait(None).await;
        }
    }
}

/// What the shell of a partition works with.
pub(crate) struct Shell {
    pub(crate) handle: Handle,
    pub(crate) partition: Partition,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) committer: commit::Sender,
    pub(crate) types: Arc<EntityTypes>,
    pub(crate) config: Arc<Config>,
    pub(crate) watches: Arc<Watches>,
    /// The next tick.
    pub(crate) wake_at: Option<(Timestamp, AbortHandle)>,
    /// Operations that await.
    pub(crate) runs: Vec<AbortHandle>,
    /// The empty queue that is swapped for the next inputs.
    pub(crate) taken: VecDeque<Input>,
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
    // Set once: a handle starts one actor.
    let _ = handle.0.actor.set(actor);
    handle.push(Input::Tick);
    handle.wake();
    Ok(())
}

impl Actor for PartitionActor {
    type Msg = Wake;
    type State = Shell;
    type Arguments = Shell;

    async fn pre_start(
        &self,
        _myself: ActorRef<Wake>,
        shell: Shell,
    ) -> Result<Shell, ActorProcessingErr> {
        Ok(shell)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Wake>,
        _wake: Wake,
        shell: &mut Shell,
    ) -> Result<(), ActorProcessingErr> {
        let has_more = shell.turn_over().await;
        if !shell.handle.rest(has_more, shell.partition.waits_for_commit()) {
            // Others get their turn before this partition goes on.
            shell.handle.wake();
        }
        Ok(())
    }
}

impl Shell {
    /// One step, and what it asks for; says whether there is more to run at once.
    async fn turn_over(&mut self) -> bool {
        let mut inputs = std::mem::take(&mut self.taken);
        self.handle.take(&mut inputs);
        let mut has_more = false;
        loop {
            let (now, room) = (self.clock.now(), self.store.has_room());
            let step =
                catch_unwind(AssertUnwindSafe(|| self.partition.step(now, room, inputs.drain(..))));
            let outputs = step.unwrap_or_else(|panic| {
                let error = panicked(&*panic);
                tracing::error!(partition = self.partition.number(), %error, "a partition failed");
                let error = Error::new(ErrorKind::Unavailable, "the partition restarts");
                self.partition.panicked(&error);
                self.partition.step(now, room, [])
            });
            let mut wakes_others = false;
            for output in outputs {
                wakes_others |= matches!(output, Output::Reply(..) | Output::Burst(_));
                match output {
                    Output::Again => has_more = true,
                    output => inputs.extend(self.perform(output).await),
                }
            }
            if wakes_others {
                // A task that was just woken may be bound to this thread until it is idle, and the
                // next turn may spin: whoever was woken goes first.
                tokio::task::yield_now().await;
            }
            if inputs.is_empty() {
                self.taken = inputs;
                return has_more;
            }
        }
    }

    /// Does what the partition asks for; what is known at once is returned.
    async fn perform(&mut self, output: Output) -> Option<Input> {
        let generation = self.partition.generation();
        let number = self.partition.number();
        match output {
            Output::Reply(ticket, response) => ticket.answer(response),
            // The queue has room for every burst and barrier that can be under way.
            Output::Burst(burst) => drop(self.committer.send(Work::Burst(burst)).await),
            Output::Barrier(generation) => self.barrier(number, generation),
            Output::Recover => self.recover(generation, number),
            Output::Load(id) => match self.store.load_cached(&id) {
                Some(loaded) => return Some(Input::Loaded(generation, id, Box::new(loaded))),
                None => {
                    let loading = self.store.load(id.clone());
                    self.later(
                        async move { Input::Loaded(generation, id, Box::new(loading.await)) },
                    );
                }
            },
            Output::Inbox(id, after) => {
                let reading = self.store.inbox(number, id.clone(), after, INBOX_PAGE);
                self.later(async move { Input::Inbox(generation, id, reading.await) });
            }
            Output::LookUp(key) => match self.store.remembered_cached(&key) {
                Some(found) => {
                    return Some(Input::LookedUp(generation, key, Box::new(found)));
                }
                None => {
                    let reading = self.store.remembered((*key).clone());
                    self.later(
                        async move { Input::LookedUp(generation, key, Box::new(reading.await)) },
                    );
                }
            },
            Output::Due(until, limit) => {
                let reading = self.store.due(number, until, limit);
                self.later(async move { Input::Due(generation, until, reading.await) });
            }
            Output::Reminders(id) => {
                let reading = self.store.reminders(number, id.clone(), None);
                self.later(async move { Input::Reminders(generation, id, reading.await) });
            }
            Output::Start(start) => self.start(generation, *start),
            Output::WakeAt(at) => self.wake_at(at),
            Output::Again => {}
        }
        None
    }

    fn barrier(&mut self, number: u16, generation: u64) {
        // What awaits for an earlier generation will never be settled; its rows run again.
        for run in self.runs.drain(..) {
            run.abort();
        }
        let committer = self.committer.clone();
        spawn(async move {
            if generation > 1 {
                clock::sleep(RESTART_PAUSE).await;
            }
            // Without a committer the node is gone, and nobody waits.
            let _gone = committer.send(Work::Barrier(number, generation)).await;
        });
    }

    fn recover(&self, generation: u64, number: u16) {
        let (store, handle) = (self.store.clone(), self.handle.clone());
        let (receivers, max) = (store.receivers(number), self.config.rejections_max);
        spawn(async move {
            let start = DeadLetterId { partition: number, is_rejection: true, number: 0 };
            let known = store.dead_letters(Some(start), max).await;
            let known = known.map_or(Vec::new(), |page| page.rows);
            let known = known
                .into_iter()
                .filter(|(id, _)| id.partition == number && id.is_rejection)
                .map(|(id, letter)| (id, letter.buried_at));
            handle.push(Input::Rejections(generation, known.collect()));
            handle.push(Input::Recovered(generation, receivers.await));
        });
    }

    /// Runs an operation that awaits in a task of its own, at most until its deadline.
    fn start(&mut self, generation: u64, start: Start) {
        let Start { id, run, index, state, ctx, input, row, ticket } = start;
        let (handle, deadline) = (self.handle.clone(), self.config.turn_deadline);
        let known = self.types.get(id.entity_type()).cloned();
        let watch = self.watches.add();
        let operation = known.as_ref().map_or("", |known| known.name_of(index));
        let watched_id = id.clone();
        let work = async move {
            let known = known.ok_or_else(|| "the entity type is not served".to_owned())?;
            let running = known.start(index, state, ctx, &input);
            let running = running.map_err(|error| error.to_string())?;
            let seen = || watch.begin(&watched_id, operation, ticket.as_ref(), &row);
            Ok::<_, String>(task::Polled { running, seen, watch: &watch }.await)
        };
        self.runs.retain(|run| !run.is_finished());
        let run_task = spawn(async move {
            let result = match task::within(deadline, work).await {
                Ok(Ok(done)) => Ok(done),
                Ok(Err(why)) => Err(Error::new(ErrorKind::Invalid, why)),
                Err(error) => Err(error),
            };
            handle.push(Input::Returned(generation, Box::new(Returned { id, run, result })));
        });
        self.runs.push(run_task);
    }

    /// Ticks at `at`, unless an earlier tick is under way.
    fn wake_at(&mut self, at: Timestamp) {
        let now = self.clock.now();
        if let Some((known, timer)) = &self.wake_at {
            if *known > now && *known <= at {
                return;
            }
            timer.abort();
        }
        let (handle, length) = (self.handle.clone(), at.since(now));
        let timer = spawn(async move {
            clock::sleep(length).await;
            handle.push(Input::Tick);
        });
        self.wake_at = Some((at, timer));
    }

    fn later(&self, input: impl Future<Output = Input> + Send + 'static) {
        let handle = self.handle.clone();
        spawn(async move { handle.push(input.await) });
    }
}
