//! One partition: a state machine that owns a fixed share of all entities and runs their turns.
//!
//! ```text
//! inputs --> step --> turns on in-memory states --> one open write group --> sent to the committer
//!                \--> loads, look-ups, scans, tasks that await (answered by later inputs)
//! ```
//!
//! [`Partition::step`] is plain synchronous code: inputs in, outputs out. It never writes to the
//! store, reads no clock and awaits nothing; `actor` does that for it. What must never happen:
//!
//! - an answer leaves before the turns it rests on are durable: answers ride in the write group of the
//!   turn, or in the open write group while the entity has unreleased turns ([`Partition::answer`]);
//! - a write group is committed on top of one that was not: write groups carry the partition's generation, and a
//!   failed write group ends the generation ([`Partition::restart`]);
//! - an inbox row is applied twice: its key stays in `known` until the write group that consumes it is
//!   durable;
//! - a reminder that was cancelled or set again causes a turn: it fires only if the entity still
//!   knows its number.

mod accept;
mod activation;
mod actor;
mod arrive;
mod awaiting;
mod cancel;
mod dead_letter;
mod delete;
mod handle;
mod idempotency;
mod letters;
pub(crate) mod message;
mod recover;
pub(crate) mod reply;
mod rescan;
mod run;
mod settle;
mod task;
#[cfg(test)]
#[allow(unreachable_pub, reason = "operations of an entity are `pub`")]
mod tests;
pub(crate) mod turn;
mod wake;
mod watch;
mod write_group;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use stead_entities::{EntityId, Timestamp};

pub(crate) use self::delete::PURGE;
use self::{
    activation::{Activation, Item, Retry, Stage},
    message::{Input, Link, Output, WriteGroup},
    reply::{CallResult, ReplySender},
};
pub(crate) use self::{
    activation::{Queued, Row},
    actor::{Shell, start},
    handle::{Closed, Handle, Hosting},
    watch::{Late, Watch, Watches},
};
use crate::{
    config::Config,
    entropy::Entropy,
    map::{Map, Set},
    store::{
        RunningMarks,
        record::{DeadLetterId, IdempotencyKey, InboxKey, Settings, Slot},
    },
    types::{EntityType, EntityTypes},
};

/// How far minted numbers may run ahead of the clock, one for each microsecond.
const MINT_MARGIN: Duration = Duration::from_secs(1);
/// The most write groups of one partition that the committer holds; more turns join the open write group.
const GROUPS_IN_FLIGHT_MAX: u64 = 2;
/// The most turns of one entity in one step, so that its neighbours get theirs.
const TURNS_PER_ENTITY_MAX: usize = 64;
/// The most turns of one step.
const TURNS_PER_STEP_MAX: usize = 1_024;
/// The most writes in the open write group; then it waits for the committer.
const WRITES_PER_GROUP_MAX: usize = 16_384;
/// The most inbox rows of one entity that are read at one time.
const INBOX_PAGE: usize = 8;
/// The most reminders and delayed signals of a deleted entity that are read at one time.
const REMINDERS_PAGE: usize = 512;
/// The most bytes of arguments of stored signals in memory; what other entities send beyond it stays
/// on disk until its entity has nothing else to do.
const HELD_BYTES_MAX: usize = 1 << 20;
/// How often a partition may fail while it runs an entity, before the entity is left alone.
const FAILURES_MAX: u32 = 3;

/// The bits of a minted number that name its partition.
const PARTITION_BITS: u32 = 12;

/// The partition that minted a number.
fn number_of_partition(number: u64) -> u16 {
    (number & ((1 << PARTITION_BITS) - 1)) as u16
}

/// What a partition is told once.
pub(crate) struct Environment {
    pub(crate) number: u16,
    pub(crate) incarnation: u64,
    /// Whether the owner before this one stopped without draining.
    pub(crate) was_unclean: bool,
    /// The link of this node whose deliveries the first reads will not miss.
    pub(crate) link: Link,
    pub(crate) settings: Settings,
    pub(crate) types: Arc<EntityTypes>,
    pub(crate) config: Arc<Config>,
    pub(crate) entropy: Entropy,
    pub(crate) watch: Arc<Watch>,
    /// How far minted numbers are ahead of the clock.
    pub(crate) numbers_ahead: Duration,
    /// The tokens of the marked operations that ran when the owner before this one ended.
    pub(crate) ran: Arc<[u128]>,
    /// Where operations that were left behind are marked while they run.
    pub(crate) marks: Option<Arc<dyn RunningMarks>>,
    /// How many dead letters the node has dropped because there were too many.
    pub(crate) dropped: Arc<AtomicU64>,
    /// The entity types that partitions of the node met and that it does not serve.
    pub(crate) unserved: Arc<Mutex<BTreeSet<String>>>,
}

/// The state machine of one partition.
pub(crate) struct Partition {
    environment: Environment,
    now: Timestamp,
    phase: Phase,
    generation: u64,
    /// The number of the last write group that was sent, and of the last that is durable.
    sent: u64,
    released: u64,
    /// Microseconds of the last number that was minted.
    minted: u64,
    runs: u64,
    /// Whether the store had room for writes when the step began.
    has_room: bool,
    /// The entity that is being worked on, to be blamed where the partition fails.
    running: Option<EntityId>,
    failures: Map<EntityId, u32>,
    /// Boxed, because tables are half empty.
    table: Map<EntityId, Box<Activation>>,
    ready: VecDeque<EntityId>,
    open: WriteGroup,
    dirty: Vec<EntityId>,
    /// Inbox rows in memory, or consumed by a write group that is not yet durable.
    known: Set<InboxKey>,
    /// Bytes of arguments of the rows in `known`.
    held_bytes: usize,
    /// Recovered rows whose attempt was counted, with the count: once for each incarnation.
    counted: Map<(EntityId, Row), u32>,
    /// What becomes true when a write group is durable.
    on_release: VecDeque<(u64, Release)>,
    /// Entities with rows on disk that are not in memory.
    backlog: Map<EntityId, Backlog>,
    /// Receivers of an earlier generation that are still to be woken.
    recovering: VecDeque<EntityId>,
    /// When to read again what could not be read.
    recover_at: Option<Timestamp>,
    /// The last delivery of each node.
    links: Map<u64, Link>,
    rescan: rescan::Rescan,
    keys: Map<Arc<IdempotencyKey>, Pending>,
    due: wake::Window,
    retries: BTreeSet<Retry>,
    letters: letters::Letters,
    /// Dead letters that are being replayed, or were: a second replay finds nothing.
    replayed: Set<DeadLetterId>,
    /// What was delayed for incarnations that were deleted, and is not yet removed.
    purges: Map<EntityId, delete::Purge>,
    /// The entity types that this node does not serve and that something waits for.
    unserved: Set<String>,
    /// What arrived before this generation could begin.
    early: VecDeque<Input>,
    /// Who is told when everything that was taken is durable.
    draining: Option<ReplySender>,
    /// Whether it drains, or has drained: it begins nothing more.
    is_stopping: bool,
    started_at: Timestamp,
    swept_at: Timestamp,
    outputs: Vec<Output>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The committer has not yet settled what earlier generations sent.
    Fencing,
    /// The store is being read.
    Recovering,
    Serving,
}

/// Something that waits for a write group to be durable.
enum Release {
    /// The row is gone from the store.
    Row(InboxKey),
    /// The answer can be found in the store.
    Key(Arc<IdempotencyKey>, CallResult),
    /// The reminder is gone from the store.
    Fired(EntityId, Slot, u64),
    /// The entity can go on.
    Resume(EntityId),
}

/// Rows of one entity that are on disk and not in memory.
#[derive(Debug, Default)]
struct Backlog {
    after: Option<InboxKey>,
    is_loading: bool,
    /// Whether rows were added behind the reader's back.
    again: bool,
    /// The write group that must be durable before the disk shows everything.
    since: u64,
    /// Rows that were removed while a page was being read, which may show them.
    gone: Vec<InboxKey>,
}

/// An idempotency key in use.
struct Pending {
    fingerprint: message::Fingerprint,
    is_looking: bool,
    waiters: Vec<ReplySender>,
}

impl Partition {
    /// A partition that begins behind `generation`.
    pub(crate) fn new(environment: Environment, now: Timestamp, generation: u64) -> Self {
        let links = Map::from_iter([(environment.link.source, environment.link)]);
        let mut partition = Self {
            links,
            rescan: rescan::Rescan::default(),
            now,
            phase: Phase::Fencing,
            generation,
            sent: 0,
            released: 0,
            // Numbers of the incarnation before this one may be ahead of its last commit's time.
            minted: (now + environment.numbers_ahead + MINT_MARGIN).as_micros().unsigned_abs(),
            runs: 0,
            has_room: true,
            running: None,
            failures: Map::default(),
            table: Map::default(),
            ready: VecDeque::new(),
            open: WriteGroup::default(),
            dirty: Vec::new(),
            known: Set::default(),
            held_bytes: 0,
            counted: Map::default(),
            on_release: VecDeque::new(),
            backlog: Map::default(),
            recovering: VecDeque::new(),
            recover_at: None,
            keys: Map::default(),
            due: wake::Window::default(),
            retries: BTreeSet::new(),
            letters: letters::Letters::default(),
            replayed: Set::default(),
            purges: Map::default(),
            unserved: Set::default(),
            early: VecDeque::new(),
            draining: None,
            is_stopping: false,
            // Of a clock that was set back, what was accepted later is earlier all the same.
            started_at: now + environment.numbers_ahead,
            swept_at: now,
            outputs: Vec::new(),
            environment,
        };
        partition.begin_generation();
        partition
    }

    pub(crate) fn number(&self) -> u16 {
        self.environment.number
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Takes what has happened, runs what can run, and says what it wants done.
    pub(crate) fn step(
        &mut self,
        now: Timestamp,
        has_room: bool,
        inputs: impl IntoIterator<Item = Input>,
    ) -> Vec<Output> {
        self.now = self.now.max(now);
        self.has_room = has_room;
        for input in inputs {
            self.take(input);
        }
        if self.phase == Phase::Serving {
            if !self.is_stopping {
                self.wake_due();
                self.maintain_letters();
            }
            self.run_ready();
        }
        if !self.is_stopping {
            self.plan_wake();
        }
        self.seal();
        self.finish_drain();
        if !self.ready.is_empty() && !self.is_full() {
            self.outputs.push(Output::Again);
        }
        std::mem::take(&mut self.outputs)
    }

    fn take(&mut self, input: Input) {
        if input.generation().is_some_and(|generation| generation != self.generation) {
            // What another generation asked for is of no use to this one.
            return;
        }
        match input {
            Input::Committed(_, number) => self.release(number),
            Input::Failed(_, error) => self.restart(&error),
            Input::Barrier(_) => self.recover(),
            Input::Recovered(_, receivers) => self.recovered(receivers),
            Input::Letters(_, page) => self.letters_read(page),
            // A partition that stops fires nothing more: others need them.
            Input::Permits(_, permits) => self.due.take_permits(permits, self.is_stopping),
            // Rows that were delivered before the barrier are in the store that is read after it.
            Input::Deliver(..) | Input::Rescan
                if self.phase == Phase::Fencing || self.is_stopping => {}
            Input::Tick => self.retry_recovery(),
            Input::Drain(reply_to) => {
                self.draining = Some(reply_to);
                self.is_stopping = true;
                self.drop_permits();
            }
            input if self.phase != Phase::Serving => self.early.push_back(input),
            Input::Request(id, item) => self.arrive(&id, item),
            Input::Deliver(delivery, link) => self.deliver_in_order(delivery, link),
            Input::Rescan => self.rescan(),
            Input::Receivers(_, receivers) => self.receivers_read(receivers),
            Input::Probe(reply_to) => {
                self.open.is_probe = true;
                self.open.replies.push((reply_to, Ok(reply::Response::Done)));
            }
            Input::DropDeadLetter(letter, reply_to) => {
                self.remove_letter(letter);
                self.open.replies.push((reply_to, Ok(reply::Response::Done)));
            }
            Input::Loaded(_, id, loaded) => self.loaded(&id, *loaded),
            Input::Inbox(_, id, rows, permits) => self.page_read(&id, rows, permits),
            Input::LookedUp(_, key, found) => self.looked_up(&key, *found),
            Input::Due(_, until, rows) => self.due_read(until, rows),
            Input::Reminder(_, id, slot, found) => self.reminder_read(&id, &slot, *found),
            Input::Reminders(_, id, rows) => self.listed(&id, rows),
            Input::Returned(_, returned) => self.returned(*returned),
        }
    }

    fn is_full(&self) -> bool {
        self.open.writes.len() + self.dirty.len() >= WRITES_PER_GROUP_MAX
    }

    fn type_of(&self, id: &EntityId) -> Option<Arc<dyn EntityType>> {
        self.environment.types.get(id.entity_type()).cloned()
    }

    /// A number that only grows, also over restarts, and that no other partition mints:
    /// microseconds of the store's time, then the partition. They last until the year 2112.
    fn mint(&mut self) -> u64 {
        let now = self.now + self.environment.numbers_ahead;
        let now = u64::try_from(now.as_micros()).unwrap_or(0);
        self.minted = now.max(self.minted + 1);
        (self.minted << PARTITION_BITS) | u64::from(self.environment.number)
    }

    fn make_ready(&mut self, id: &EntityId) {
        if let Some(activation) = self.table.get_mut(id)
            && !activation.is_queued
        {
            activation.is_queued = true;
            self.ready.push_back(id.clone());
        }
    }

    fn finish_drain(&mut self) {
        let is_done = self.draining.is_some()
            && self.sent == self.released
            && self.is_open_empty()
            && !self.table.values().any(|entry| entry.is_awaited());
        if is_done && let Some(reply_to) = self.draining.take() {
            self.outputs.push(Output::Reply(reply_to, Ok(reply::Response::Done)));
        }
    }
}
