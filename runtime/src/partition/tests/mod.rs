//! The state machine driven by hand: every read, flush and tick happens when a test says so.

mod asks;
mod expiry;
mod failures;
mod moved;
mod once;
mod recovery;
mod reminders;
mod storm;

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    task::{Context as TaskContext, Poll, Waker},
    time::Duration,
};

use stead_entities::{
    After, Answer, Condition, Context, DeadLetter, Dependencies, EntityId, Error, ErrorKind, Every,
    Failure, JsonSchema, Layout, Rejection, Timestamp, entity, entity::OperationKind,
};

use tokio::sync::Semaphore;

use super::{
    Beginning, INBOX_PAGE, Identity, Partition, Predecessor, REMINDERS_PAGE,
    activations::FAILURES_MAX,
    message::{
        Action, Arrival, Delivery, Fingerprint, Input, Invocation, Keyed, Link, Output, Returned,
        Start, WriteGroup,
    },
    reply::{CallResult, ReplyReceiver, ReplySender, Response},
    watch::Watches,
};
use crate::{
    Config,
    commit::merged,
    entropy::Entropy,
    memory::Memory,
    store::{
        Batch, CommitOutcome, Fence, Haste, ReadError, RunningMarks, Store, TypedReads as _,
        memory::{MemoryDisk, MemoryStore},
        tables::{
            Table,
            dead_letters::DeadLetterId,
            idempotency::IdempotencyKey,
            inbox::{InboxKey, InboxRecord},
            meta::Settings,
        },
    },
    types::{EntityTypes, Found, entity_type},
};

/// A list of what was applied.
#[derive(
    Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, JsonSchema, Layout,
)]
struct Log {
    entries: Vec<u32>,
    /// How often the turn that takes answers is still to fail.
    failing: u32,
}

/// How often `fail_first` is still to fail.
static FAILURES: Mutex<u32> = Mutex::new(0);

#[entity(name = "log", on_dead_letter = on_lost)]
impl Log {
    pub fn append(&mut self, entry: u32) -> u32 {
        self.entries.push(entry);
        self.entries.len() as u32
    }

    pub fn fail_first(&mut self, entry: u32) {
        let mut failures = FAILURES.lock().unwrap_or_else(PoisonError::into_inner);
        if *failures > 0 {
            *failures -= 1;
            drop(failures);
            panic!("on purpose");
        }
        self.entries.push(entry);
    }

    pub fn explode(&mut self) {
        panic!("on purpose");
    }

    /// Gives itself up, after it has told another.
    pub fn give_up(&mut self, ctx: &mut Context, told: Option<String>) -> Result<(), Failure> {
        self.entries.push(9);
        match told {
            Some(told) => {
                ctx.signal(Self::of(told).append(1));
                Err(Rejection::new("no").with_effects().into())
            }
            None => Err(Failure::fatal("for good")),
        }
    }

    /// Notes that one of the operations for this entity was lost.
    pub(crate) fn on_lost(&mut self, letter: DeadLetter) {
        if ["give_up", "nothing"].contains(&&*letter.operation) {
            self.entries.push(1_000 + letter.attempts);
        }
    }

    pub async fn fetch(&mut self, entry: u32) -> u32 {
        self.entries.push(entry);
        entry
    }

    pub async fn end(&mut self, ctx: &mut Context) {
        ctx.delete();
    }

    pub fn remind_explosion(&mut self, ctx: &mut Context) {
        let every = Duration::from_secs(10);
        ctx.remind("bad", Every(every), Self::of(ctx.key()).explode());
    }

    pub fn remind_once(&mut self, ctx: &mut Context, entry: u32) {
        let after = Duration::from_secs(10);
        ctx.remind("once", After(after), Self::of(ctx.key()).append(entry));
    }

    /// Adds an entry, and ends so many seconds later, or never by itself.
    pub fn append_for(&mut self, ctx: &mut Context, entry: u32, seconds: Option<u64>) {
        self.entries.push(entry);
        match seconds {
            Some(seconds) => ctx.expire_after(Duration::from_secs(seconds)),
            None => ctx.cancel_expiry(),
        }
    }

    /// Adds an entry, and tells another, once so much time has passed.
    pub fn append_from(&mut self, ctx: &mut Context, from: Timestamp) -> Result<(), Failure> {
        if ctx.now() < from {
            return Err(Failure::retry("not yet").after(from.since(ctx.now())));
        }
        self.entries.push(7);
        ctx.signal(Self::of("told").append(self.entries.len() as u32));
        Ok(())
    }

    pub fn end_and_begin(&mut self, ctx: &mut Context) {
        ctx.delete();
        ctx.signal(Self::of(ctx.key()).append(77).after(Duration::from_secs(30)));
    }

    /// Asks others, whose answers are noted together.
    pub fn ask_all(&mut self, ctx: &mut Context, others: Vec<String>, seconds: Option<u64>) {
        let questions = others.iter().map(|other| Self::of(other).judge(7));
        let then = Self::of(ctx.key()).on_judged(1_000);
        ctx.ask_all(
            questions,
            match seconds {
                Some(seconds) => then.within(Duration::from_secs(seconds)),
                None => then,
            },
        );
    }

    /// Asks one, which has as many entries as it likes to have before it gives an answer.
    pub fn ask(&mut self, ctx: &mut Context, other: String, seconds: Option<u64>) {
        let then = Self::of(ctx.key()).on_one();
        ctx.ask(
            Self::of(&other).judge(7),
            match seconds {
                Some(seconds) => then.within(Duration::from_secs(seconds)),
                None => then,
            },
        );
    }

    /// Adds an entry, and answers how many there are. One named `no` has none.
    pub(crate) fn judge(&mut self, ctx: &mut Context, entry: u32) -> Result<u32, Rejection> {
        match ctx.key() {
            "no" => return Err(Rejection::new("not me")),
            "bad" => panic!("on purpose"),
            _ => self.entries.push(entry),
        }
        Ok(self.entries.len() as u32)
    }

    pub fn fail_answers(&mut self, times: u32) {
        self.failing = times;
    }

    pub(crate) fn on_judged(&mut self, ctx: &mut Context, answers: Vec<Answer<u32>>, base: u32) {
        // A turn that fails leaves no trace, so the time tells how often it was tried.
        let is_early = ctx.now() < Timestamp::from_micros(1_050_000_000);
        assert!(self.failing == 0 || !is_early, "on purpose");
        self.entries.extend(answers.into_iter().map(|answer| base + number_of(answer)));
    }

    pub(crate) fn on_one(&mut self, answer: Answer<u32>) {
        self.entries.push(number_of(answer));
    }

    pub fn entries(&self) -> Vec<u32> {
        self.entries.clone()
    }
}

/// An answer as one number.
fn number_of(answer: Answer<u32>) -> u32 {
    match answer {
        Ok(number) => number,
        Err(Failure::Rejected(_)) => 100,
        Err(Failure::Failed(_)) => 200,
        Err(_) => 300,
    }
}

/// A partition with its store, and everything that is under way between the two.
struct Bench {
    disk: MemoryDisk,
    store: MemoryStore,
    partition: Partition,
    now: Timestamp,
    has_room: bool,
    /// Whether every step takes long.
    is_slow: bool,
    batches: u64,
    reads: VecDeque<Output>,
    groups: VecDeque<WriteGroup>,
    starts: VecDeque<Start>,
    /// When the last step asked to be woken.
    wake_at: Timestamp,
    permits: Arc<Semaphore>,
    /// How many were asked for and are not there yet.
    wanted: Option<usize>,
    /// How many dead letters were dropped.
    dropped: Arc<AtomicU64>,
}

/// A link that loses nothing.
const LINK: Link = Link { source: 1, number: 0, place: 0 };

fn types() -> Arc<EntityTypes> {
    let known = entity_type::<Log>(&Dependencies::new());
    Arc::new(EntityTypes::from_iter([(known.name(), known)]))
}

/// A future of a store in memory, which never waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a store in memory does not wait"),
    }
}

fn id(key: &str) -> EntityId {
    EntityId::new("log", key).expect("valid")
}

impl Bench {
    fn new() -> Self {
        Self::on(MemoryDisk::new(), Timestamp::from_micros(1_000_000_000))
    }

    /// A new incarnation that has begun and found everything.
    fn on(disk: MemoryDisk, now: Timestamp) -> Self {
        let mut bench = Self::open(disk, now);
        bench.settle();
        bench
    }

    /// A new incarnation, at its first step.
    fn open(disk: MemoryDisk, now: Timestamp) -> Self {
        Self::open_marked(disk, now, None, &[])
    }

    /// The same on a store that keeps marks of what runs; those of these tokens were found.
    fn open_marked(
        disk: MemoryDisk,
        now: Timestamp,
        marks: Option<Arc<dyn RunningMarks>>,
        ran: &[u128],
    ) -> Self {
        let store = disk.open().expect("readable");
        let opened = store.opened().clone();
        let config = Config {
            retries: 3,
            retry_delay: Duration::from_millis(100),
            mailbox_max: 2_000,
            ..Config::default()
        };
        let identity = Identity {
            number: 0,
            incarnation: opened.incarnation,
            settings: Settings { partitions: 1, seed: (1, 2) },
            types: types(),
            config: Arc::new(config.clone()),
            watch: Watches::default().add(),
            numbers_ahead: opened.numbers_ahead,
            unserved: Arc::default(),
            memory: Memory::of(&config),
            hosting: 1,
            foreign: Arc::default(),
        };
        let dropped = Arc::default();
        let beginning = Beginning {
            identity,
            predecessor: Predecessor { was_unclean: opened.was_unclean, ran: ran.into(), marks },
            link: LINK,
            entropy: Entropy::system(),
            dropped: Arc::clone(&dropped),
        };
        let partition = Partition::new(beginning, now, 0);
        let (reads, groups, starts) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        let batches = opened.last_batch;
        let wake_at = Timestamp::MAX;
        let mut bench = Self {
            disk,
            store,
            partition,
            now,
            has_room: true,
            is_slow: false,
            batches,
            reads,
            groups,
            starts,
            wake_at,
            permits: Arc::new(Semaphore::new(100_000)),
            wanted: None,
            dropped,
        };
        bench.step([]);
        bench
    }

    /// Stops as a crash does, and starts again.
    fn crashed(self) -> Self {
        self.disk.crash();
        Self::on(self.disk, self.now + Duration::from_secs(1))
    }

    /// Crashes, and is at the first step of the new incarnation.
    fn crashed_quietly(self) -> Self {
        self.disk.crash();
        Self::open(self.disk, self.now + Duration::from_secs(1))
    }

    fn step(&mut self, inputs: impl IntoIterator<Item = Input>) {
        self.wake_at = Timestamp::MAX;
        let mut wanted = None;
        let is_slow = self.is_slow;
        for output in self.partition.step(self.now, self.has_room, inputs, || is_slow) {
            match output {
                Output::Reply(reply_to, response) => reply_to.answer(response),
                Output::Commit(group) => self.groups.push_back(group),
                Output::Start(start) => self.starts.push_back(*start),
                Output::WakeAt(at) => self.wake_at = self.wake_at.min(at),
                Output::Again | Output::EndSteps(_) => {}
                Output::Permits(count) => wanted = Some(count),
                read => self.reads.push_back(read),
            }
        }
        self.wanted = wanted.or(self.wanted);
        if let Some(permit) = self.permits() {
            let wake_at = self.wake_at;
            self.step([permit]);
            self.wake_at = self.wake_at.min(wake_at);
        }
    }

    /// The permits that were asked for, once there are as many.
    fn permits(&mut self) -> Option<Input> {
        let permits = self.permits.clone().try_acquire_many_owned(self.wanted? as u32).ok()?;
        self.wanted = None;
        Some(Input::Permits(self.partition.term(), permits))
    }

    /// The store's answers to everything that was asked so far.
    fn read(&mut self) -> Vec<Input> {
        let term = self.partition.term();
        let store = &self.store;
        let answer = |read| match read {
            Output::Barrier(term) => Input::Barrier(term),
            Output::Recover => Input::Recovered(term, ready(store.receivers(0))),
            Output::Load(id) => Input::Loaded(term, id.clone(), Box::new(ready(store.load(id)))),
            Output::Inbox(id, after) => {
                let permits = self.permits.clone().try_acquire_many_owned(INBOX_PAGE as u32);
                let page = ready(store.inbox(0, id.clone(), after, INBOX_PAGE));
                Input::Inbox(term, id, page, permits.expect("permits for everything"))
            }
            Output::Letters(after) => {
                Input::Letters(term, ready(store.dead_letter_heads(0, after, 100)))
            }
            Output::LookUp(key) => {
                let found = ready(store.remembered((*key).clone()));
                Input::LookedUp(term, key, Box::new(found))
            }
            Output::Due(after, until, limit) => {
                Input::Due(term, until, ready(store.due(0, after, until, limit)))
            }
            Output::Reminder(id, slot) => {
                let found = ready(store.reminder(0, id.clone(), slot.clone()));
                Input::Reminder(term, id, Box::new(found))
            }
            Output::Reminders(id, after) => {
                let page =
                    ready(store.reminders(Haste::Short, 0, id.clone(), after, REMINDERS_PAGE));
                Input::Reminders(term, id, page)
            }
            _ => unreachable!("not a read"),
        };
        self.reads.drain(..).map(answer).collect()
    }

    /// Commits everything that was sent as one batch; what the partition is told is returned.
    fn commit(&mut self) -> Vec<Input> {
        let mut groups: Vec<_> = self.groups.drain(..).collect();
        if groups.is_empty() {
            return Vec::new();
        }
        let writes = merged(&mut groups);
        self.batches += 1;
        let incarnation = self.store.opened().incarnation;
        let fence = Fence { incarnation, lane: 0, number: self.batches };
        let (owner, time, is_clean, is_buffered) = ("t".into(), self.now, false, false);
        let batch = Batch { fence, owner, time, is_clean, is_buffered, writes };
        assert_eq!(ready(self.store.commit(batch)), CommitOutcome::Committed);
        let mut told = Vec::new();
        for group in groups {
            for (_, delivery) in group.deliveries {
                told.push(Input::Deliver(Some(Box::new(delivery)), LINK));
            }
            for (reply_to, response) in group.replies {
                reply_to.answer(response);
            }
            told.push(Input::Committed(group.term, group.number));
        }
        told
    }

    /// Answers everything that was asked of the store.
    fn answer(&mut self) {
        let answers = self.read();
        self.step(answers);
    }

    /// Commits everything that was sent, and says so.
    fn flush(&mut self) {
        let committed = self.commit();
        self.step(committed);
    }

    /// Refuses everything that was sent.
    fn refuse(&mut self, error: &Error) {
        let term = self.partition.term();
        for group in self.groups.drain(..) {
            for (reply_to, _) in group.replies {
                reply_to.answer(Err(error.clone()));
            }
        }
        self.step([Input::Failed(term, error.clone())]);
    }

    /// Brings back the operations that await.
    fn finish(&mut self) -> Vec<Input> {
        let term = self.partition.term();
        let known = types()["log"].clone();
        let back = |start: Start| {
            let Start { id, run, index, state, ctx, argument, .. } = start;
            let running = known.start(index, state, ctx, argument);
            let result = Ok(ready(running));
            Input::Returned(term, Box::new(Returned { id, run, result }))
        };
        self.starts.drain(..).map(back).collect()
    }

    /// Reads, commits and finishes until nothing more happens.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            let mut inputs = self.read();
            inputs.extend(self.commit());
            inputs.extend(self.finish());
            if inputs.is_empty() {
                return;
            }
            self.step(inputs);
        }
        panic!("it never settles");
    }

    fn advance(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
        self.step([Input::Tick]);
    }

    fn send(&mut self, key: &str, sent: Sent) -> ReplyReceiver {
        let (reply_to, receiver) = ReplySender::new(Duration::from_secs(30), None);
        self.step([arrival(key, sent, reply_to)]);
        receiver
    }

    fn call(&mut self, key: &str, operation: &str, input: &str) -> ReplyReceiver {
        self.send(key, Sent { is_call: true, ..sent(operation, input) })
    }

    fn signal(&mut self, key: &str, operation: &str, input: &str) -> ReplyReceiver {
        self.send(key, sent(operation, input))
    }

    fn keyed(&mut self, operation: &str, input: &str, name: &str) -> ReplyReceiver {
        let key = IdempotencyKey { partition: 0, id: id("a"), caller: "".into(), key: name.into() };
        let fingerprint = Fingerprint { meaning: 7, bytes: None };
        let key = Some(Keyed { key: Arc::new(key), fingerprint });
        self.send("a", Sent { key, is_call: true, ..sent(operation, input) })
    }

    /// Replaces settings of the partition.
    fn set(&mut self, change: impl FnOnce(&mut Config)) {
        self.partition.environment.set_config(change);
    }

    fn entries(&mut self, key: &str) -> Vec<u32> {
        let waiting = self.call(key, "entries", "");
        self.settle();
        match told(waiting) {
            Some(Ok(Response::Replied(json))) => serde_json::from_slice(&json).expect("a list"),
            other => panic!("{other:?}"),
        }
    }

    fn rows(&self, table: Table) -> usize {
        self.disk.rows(table).len()
    }
}

/// A request of a caller outside.
struct Sent {
    operation: String,
    input: Vec<u8>,
    is_call: bool,
    due: Option<Timestamp>,
    condition: Option<Condition>,
    key: Option<Keyed>,
    replays: Option<DeadLetterId>,
    /// The action, where it is not an operation.
    action: Option<Action>,
}

/// A signal; a call where `is_call` is set.
fn sent(operation: &str, input: &str) -> Sent {
    Sent {
        operation: operation.into(),
        input: input.into(),
        is_call: false,
        due: None,
        condition: None,
        key: None,
        replays: None,
        action: None,
    }
}

fn arrival(key: &str, sent: Sent, reply_to: ReplySender) -> Input {
    let Sent { operation, input, is_call, due, condition, key: keyed, replays, action } = sent;
    let known = types()["log"].clone();
    let found = known.find(&operation).expect("an operation");
    let argument = || known.decode_argument(found.index, &input).expect("an argument");
    let action = action.unwrap_or_else(|| {
        let Found { index, kind, .. } = found;
        let (awaits, argument) = (kind == OperationKind::Async, argument());
        let invocation = Invocation { index, awaits, input: input.clone(), argument };
        if kind == OperationKind::Query {
            return Action::Query(invocation);
        }
        match replays {
            Some(letter) => Action::Replay { invocation, letter, token: 5 },
            None if is_call => Action::Call(invocation),
            None => Action::Signal { invocation, due },
        }
    });
    let arrival = Arrival { id: id(key), reply_to, action, key: keyed, condition, origin: None };
    Input::Arrival(Box::new(arrival))
}

/// The answer that a caller has so far.
fn told(waiting: ReplyReceiver) -> Option<CallResult> {
    match pin!(waiting).poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(response) => Some(response),
        Poll::Pending => None,
    }
}

fn answer(response: Option<CallResult>) -> Option<Response> {
    response.and_then(Result::ok)
}

fn kind(response: Option<CallResult>) -> Option<ErrorKind> {
    response.and_then(Result::err).map(|error| error.kind())
}
