//! The state machine driven by hand: every read, flush and tick happens when a test says so.

mod once;
mod recovery;
mod reminders;
mod storm;

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context as TaskContext, Poll, Waker},
    time::Duration,
};

use stead_entities::{
    After, Context, EntityId, Error, ErrorKind, Every, JsonSchema, Layout, Timestamp, entity,
};

use tokio::sync::Semaphore;

use super::{
    Environment, FAILURES_MAX, INBOX_PAGE, Partition, Queued, REMINDERS_PAGE,
    message::{
        Delivery, Fingerprint, Input, Keyed, Link, Output, Returned, Start, Work, WriteGroup,
    },
    reply::{CallResult, ReplyReceiver, ReplySender, Response},
    watch::Watches,
};
use crate::{
    Config,
    commit::merged,
    entropy::Entropy,
    store::{
        Batch, CommitOutcome, Fence, Haste, ReadError, RunningMarks, Store,
        keys::Table,
        memory::{MemoryDisk, MemoryStore},
        record::{IdempotencyKey, InboxKey, InboxRecord, Settings},
    },
    types::{EntityTypes, entity_type},
};

/// A list of what was applied.
#[derive(
    Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, JsonSchema, Layout,
)]
struct Log {
    entries: Vec<u32>,
}

/// How often `fail_first` is still to fail.
static FAILURES: Mutex<u32> = Mutex::new(0);

#[entity(name = "log")]
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

    pub fn end_and_begin(&mut self, ctx: &mut Context) {
        ctx.delete();
        ctx.signal(Self::of(ctx.key()).append(77).after(Duration::from_secs(30)));
    }

    pub fn entries(&self) -> Vec<u32> {
        self.entries.clone()
    }
}

/// A partition with its store, and everything that is under way between the two.
struct Bench {
    disk: MemoryDisk,
    store: MemoryStore,
    partition: Partition,
    now: Timestamp,
    has_room: bool,
    batches: u64,
    reads: VecDeque<Output>,
    groups: VecDeque<WriteGroup>,
    starts: VecDeque<Start>,
    /// When the last step asked to be woken.
    wake_at: Timestamp,
    permits: Arc<Semaphore>,
    /// How many were asked for and are not there yet.
    wanted: Option<usize>,
}

/// What arrives by it is never lost.
const LINK: Link = Link { source: 1, number: 0, place: 0 };

fn types() -> Arc<EntityTypes> {
    let known = entity_type::<Log>();
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
        let environment = Environment {
            number: 0,
            incarnation: opened.incarnation,
            was_unclean: opened.was_unclean,
            settings: Settings { partitions: 1, seed: (1, 2) },
            types: types(),
            config: Arc::new(config),
            entropy: Entropy::system(),
            watch: Watches::default().add(),
            link: LINK,
            numbers_ahead: opened.numbers_ahead,
            ran: ran.into(),
            marks,
            dropped: Arc::default(),
            unserved: Arc::default(),
        };
        let partition = Partition::new(environment, now, 0);
        let (reads, groups, starts) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        let batches = opened.last_batch;
        let wake_at = Timestamp::MAX;
        let mut bench = Self {
            disk,
            store,
            partition,
            now,
            has_room: true,
            batches,
            reads,
            groups,
            starts,
            wake_at,
            permits: Arc::new(Semaphore::new(100_000)),
            wanted: None,
        };
        bench.step([]);
        bench
    }

    /// Stops as a crash does, and starts again.
    fn crashed(self) -> Self {
        self.disk.crash();
        Self::on(self.disk, self.now + Duration::from_secs(1))
    }

    /// The same, at the first step of the new incarnation.
    fn crashed_quietly(self) -> Self {
        self.disk.crash();
        Self::open(self.disk, self.now + Duration::from_secs(1))
    }

    fn step(&mut self, inputs: impl IntoIterator<Item = Input>) {
        self.wake_at = Timestamp::MAX;
        let mut wanted = None;
        for output in self.partition.step(self.now, self.has_room, inputs) {
            match output {
                Output::Reply(reply_to, response) => reply_to.answer(response),
                Output::WriteGroup(group) => self.groups.push_back(group),
                Output::Start(start) => self.starts.push_back(*start),
                Output::WakeAt(at) => self.wake_at = self.wake_at.min(at),
                Output::Again => {}
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
        Some(Input::Permits(self.partition.generation(), permits))
    }

    /// What the store answers now to everything that was asked.
    fn read(&mut self) -> Vec<Input> {
        let generation = self.partition.generation();
        let store = &self.store;
        let answer = |read| match read {
            Output::Barrier(generation) => Input::Barrier(generation),
            Output::Recover => Input::Recovered(generation, ready(store.receivers(0))),
            Output::Load(id) => {
                Input::Loaded(generation, id.clone(), Box::new(ready(store.load(id))))
            }
            Output::Inbox(id, after) => {
                let permits = self.permits.clone().try_acquire_many_owned(INBOX_PAGE as u32);
                let page = ready(store.inbox(0, id.clone(), after, INBOX_PAGE));
                Input::Inbox(generation, id, page, permits.expect("permits for everything"))
            }
            Output::Letters(after) => {
                Input::Letters(generation, ready(store.dead_letter_heads(0, after, 100)))
            }
            Output::LookUp(key) => {
                let found = ready(store.remembered((*key).clone()));
                Input::LookedUp(generation, key, Box::new(found))
            }
            Output::Due(after, until, limit) => {
                Input::Due(generation, until, ready(store.due(0, after, until, limit)))
            }
            Output::Reminder(id, slot) => {
                let found = ready(store.reminder(0, id.clone(), slot.clone()));
                Input::Reminder(generation, id, slot, Box::new(found))
            }
            Output::Reminders(id, after) => {
                let page =
                    ready(store.reminders(Haste::Short, 0, id.clone(), after, REMINDERS_PAGE));
                Input::Reminders(generation, id, page)
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
        let batch = Batch { fence, owner: "t".into(), time: self.now, is_clean: false, writes };
        assert_eq!(ready(self.store.commit(batch)), CommitOutcome::Committed);
        let mut told = Vec::new();
        for group in groups {
            for (_, delivery) in group.deliveries {
                told.push(Input::Deliver(Some(Box::new(delivery)), LINK));
            }
            for (reply_to, response) in group.replies {
                reply_to.answer(response);
            }
            told.push(Input::Committed(group.generation, group.number));
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
        let generation = self.partition.generation();
        for group in self.groups.drain(..) {
            for (reply_to, _) in group.replies {
                reply_to.answer(Err(error.clone()));
            }
        }
        self.step([Input::Failed(generation, error.clone())]);
    }

    /// Brings back the operations that await.
    fn finish(&mut self) -> Vec<Input> {
        let generation = self.partition.generation();
        let known = types()["log"].clone();
        let back = |start: Start| {
            let Start { id, run, index, state, ctx, input, .. } = start;
            let running = known.start(index, state, ctx, &input).expect("decodable");
            let result = Ok(ready(running));
            Input::Returned(generation, Box::new(Returned { id, run, result }))
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

    fn send(&mut self, key: &str, mut item: Queued) -> ReplyReceiver {
        let (reply_to, waiting) = ReplySender::new(Duration::from_secs(30), None);
        item.reply_to = Some(reply_to);
        self.step([Input::Request(id(key), Box::new(item))]);
        waiting
    }

    fn call(&mut self, key: &str, operation: &str, input: &str) -> ReplyReceiver {
        self.send(key, Queued { is_call: true, ..item(operation, input) })
    }

    fn signal(&mut self, key: &str, operation: &str, input: &str) -> ReplyReceiver {
        self.send(key, item(operation, input))
    }

    fn keyed(&mut self, operation: &str, input: &str, name: &str) -> ReplyReceiver {
        let key = IdempotencyKey { partition: 0, id: id("a"), caller: "".into(), key: name.into() };
        let fingerprint = Fingerprint { meaning: 7, bytes: None };
        let key = Some(Keyed { key: Arc::new(key), fingerprint });
        self.send("a", Queued { key, is_call: true, ..item(operation, input) })
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

/// A signal; a call where `is_call` is set.
fn item(operation: &str, input: &str) -> Queued {
    let found = types()["log"].find(operation).expect("an operation");
    Queued::new(Work::of(found), input.into(), 0, Timestamp::default())
}

/// What a caller was told so far.
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
