//! The commits of a node, as a test sees them, and what goes wrong with them.

use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use stead_entities::{Cause, EntityId, Timestamp, context::RUNTIME_NAMES};
use tokio::sync::Notify;

use crate::{
    entropy::Entropy,
    partition::PURGE,
    store::{
        Batch, Write,
        memory::{CommitWatch, Fault},
        tables::{
            Record as _, Table,
            dead_letters::DeadLetter,
            inbox::{ANSWERS, InboxKey, InboxRecord},
            reminders::{ReminderRecord, Slot},
        },
    },
};

/// The most commits that take no time; those behind them take a while each, until time has made up for them.
const COMMITS_AT_ONCE_MAX: u64 = 10_000;
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// How often a commit goes wrong, as parts of one, and how. Which ones do is decided by the seed of a test.
///
/// A node that is told of a commit that it may be there or not ends itself, and one that crashes ends at once;
/// both start again by themselves. What a test asks for meanwhile is asked again under an idempotency key.
///
/// ```
/// use stead::testing::CommitFaults;
///
/// let refused = CommitFaults::default().with(|faults| faults.refused = 0.1);
/// assert_eq!(refused.crash_before, 0.0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct CommitFaults {
    /// The store writes nothing, and says so.
    pub refused: f64,
    /// The store writes the commit, and its answer is lost.
    pub answer_lost: f64,
    /// The process ends before the commit is written.
    pub crash_before: f64,
    /// The process ends when the commit is written, before anybody hears of it.
    pub crash_after: f64,
    /// The longest that a commit takes; each takes up to that.
    pub delay: Duration,
}

impl CommitFaults {
    /// Each kind of fault at one commit in twenty, so that one in five goes wrong, and commits that take up to
    /// 20 ms.
    pub fn usual() -> Self {
        let (refused, answer_lost, crash_before, crash_after) = (0.05, 0.05, 0.05, 0.05);
        Self { refused, answer_lost, crash_before, crash_after, delay: Duration::from_millis(20) }
    }

    /// Everything in it that cannot be used, in words.
    pub(super) fn problem(&self) -> Option<&'static str> {
        let Self { refused, answer_lost, crash_before, crash_after, .. } = *self;
        let shares = [refused, answer_lost, crash_before, crash_after];
        let is_good = shares.iter().all(|share| (0.0..=1.0).contains(share));
        let is_whole = is_good && shares.iter().sum::<f64>() <= 1.0;
        (!is_whole).then_some("shares of commits are 0 to 1, and together at most 1")
    }

    /// The same with one change.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

/// A thing that a node has made durable. Those of one commit are in the order of its turns, and the states
/// that these left come last.
///
/// The timeouts of asks, expiries and retries are not shown. A reminder that is set again under its name for a
/// later time, with the same operation and argument, moves in its entity's state alone; its row follows at the
/// earlier time, and is shown then as ended and set.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Committed {
    /// A signal, a question or an answer is kept for its receiver. Signals from outside that are applied at once
    /// are never kept.
    Sent {
        /// The sender: an entity's id, or nothing for a caller outside.
        from: String,
        /// The receiver.
        to: EntityId,
        /// The operation.
        operation: String,
        /// Its argument as JSON, `null` where it takes none; that of an answer is the answer.
        input: Value,
        /// When it joins its receiver's order, where that is later.
        due: Option<Timestamp>,
    },
    /// A reminder is set, or set again as it recurs.
    ReminderSet {
        /// The entity.
        entity: EntityId,
        /// The reminder's name.
        name: String,
        /// When it is due.
        due: Timestamp,
        /// The operation that it applies.
        operation: String,
        /// Its argument as JSON.
        input: Value,
    },
    /// A reminder has fired, or was cancelled or replaced.
    ReminderEnded {
        /// The entity.
        entity: EntityId,
        /// The reminder's name.
        name: String,
    },
    /// An operation will not be tried again.
    DeadLetter {
        /// The entity, as `type/key`.
        entity: String,
        /// The operation.
        operation: String,
        /// Why it is dead.
        cause: Cause,
        /// The reason in words.
        reason: String,
    },
    /// A state, behind so many turns.
    State {
        /// The entity.
        entity: EntityId,
        /// How many turns of its generation were committed.
        revision: u64,
    },
    /// An entity is deleted.
    Deleted {
        /// The entity.
        entity: EntityId,
    },
}

/// JSON as a value; a text where it is no JSON.
fn value(input: &[u8]) -> Value {
    if input.is_empty() {
        return Value::Null;
    }
    let text = || String::from_utf8_lossy(input).into_owned();
    serde_json::from_slice(input).unwrap_or_else(|_| Value::String(text()))
}

/// Whether a reminder is the runtime's own: the timeout of an ask, or an expiry.
fn is_of_runtime(slot: &Slot) -> bool {
    matches!(slot, Slot::Named(name) if name.starts_with(RUNTIME_NAMES))
}

impl Committed {
    fn of(write: &Write) -> Option<Self> {
        Some(match write {
            Write::Accept(key, row) if row.operation != PURGE => Self::sent(key, row),
            Write::Remind(_, id, slot, row) if row.attempts == 0 && !is_of_runtime(slot) => {
                Self::remind(id, slot, row)
            }
            Write::CancelReminder { id, slot, .. } if !is_of_runtime(slot) => {
                let Slot::Named(name) = slot else { return None };
                Self::ReminderEnded { entity: id.clone(), name: name.to_string() }
            }
            Write::Put(Table::DeadLetters, _, bytes) => {
                let letter = DeadLetter::decode(bytes).ok()?;
                let DeadLetter { entity, operation, cause, reason, .. } = letter;
                Self::DeadLetter { entity, operation, cause, reason }
            }
            Write::PutState(id, record) => {
                Self::State { entity: id.clone(), revision: record.head.revision }
            }
            Write::DeleteState(id, _) => Self::Deleted { entity: id.clone() },
            _ => return None,
        })
    }

    fn sent(key: &InboxKey, row: &InboxRecord) -> Self {
        let from = key.sender.trim_start_matches(ANSWERS).to_owned();
        let to = key.receiver.clone();
        let (operation, input) = (row.operation.clone(), value(&row.input));
        Self::Sent { from, to, operation, input, due: None }
    }

    fn remind(id: &EntityId, slot: &Slot, row: &ReminderRecord) -> Self {
        let (operation, input) = (row.operation.clone(), value(&row.input));
        match slot {
            Slot::Named(name) => {
                let (entity, name) = (id.clone(), name.to_string());
                Self::ReminderSet { entity, name, due: row.due, operation, input }
            }
            Slot::Delayed(_) => {
                let (from, to) = (row.sender.clone(), id.clone());
                Self::Sent { from, to, operation, input, due: Some(row.due) }
            }
        }
    }
}

/// The crash of a run: at the commit of this number, before or behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crash {
    pub(super) commit: u64,
    pub(super) is_written: bool,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let when = if self.is_written { "behind" } else { "before" };
        write!(f, "a crash {when} commit {}", self.commit)
    }
}

/// Sees what a node commits, keeps it for the test, and decides what goes wrong.
#[derive(Debug)]
pub(super) struct Watcher {
    faults: CommitFaults,
    entropy: Mutex<Entropy>,
    crash: Option<Crash>,
    /// The fault of the next commit.
    injected: Mutex<Option<Fault>>,
    /// The commits that were begun.
    begun: AtomicU64,
    /// How many commits were begun, less those that time has made up for, and since when.
    busy: Mutex<(Timestamp, u64)>,
    /// How often something went wrong for which what is asked is asked again.
    incidents: AtomicU64,
    log: Mutex<Vec<Committed>>,
    /// Whether the process ends when the commit that was begun is durable.
    ends: AtomicBool,
    /// Told when the process ends.
    pub(super) crashed: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watcher {
    pub(super) fn new(faults: CommitFaults, seed: u64, crash: Option<Crash>) -> Self {
        Self {
            faults,
            entropy: Mutex::new(Entropy::seeded(seed)),
            crash,
            injected: Mutex::default(),
            begun: AtomicU64::new(0),
            busy: Mutex::default(),
            incidents: AtomicU64::new(0),
            log: Mutex::default(),
            ends: AtomicBool::new(false),
            crashed: Notify::new(),
        }
    }

    /// The commits that were begun.
    pub(super) fn commits(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    pub(super) fn incidents(&self) -> u64 {
        self.incidents.load(Ordering::SeqCst)
    }

    pub(super) fn add_incident(&self) {
        self.incidents.fetch_add(1, Ordering::SeqCst);
    }

    /// Makes the next commit go wrong.
    pub(super) fn inject(&self, fault: Fault) {
        *lock(&self.injected) = Some(fault);
    }

    /// Takes what was committed since the last time, in order.
    pub(super) fn take(&self) -> Vec<Committed> {
        std::mem::take(&mut lock(&self.log))
    }

    /// Whether so much was committed in so little time that something seems to go on for ever: then time has to
    /// move for the test to see that.
    fn is_busy(&self, moment: Timestamp) -> bool {
        let mut busy = lock(&self.busy);
        let (last, count) = *busy;
        let forgiven = moment.since(last).as_millis() / BUSY_PAUSE.as_millis();
        let count = count.saturating_sub(u64::try_from(forgiven).unwrap_or(u64::MAX)) + 1;
        // The rest of the time counts for the next one.
        *busy = (if forgiven > 0 { moment } else { last }, count);
        count > COMMITS_AT_ONCE_MAX
    }

    fn by_chance(&self) -> Option<Fault> {
        let CommitFaults { refused, answer_lost, crash_before, crash_after, delay } = self.faults;
        let mut entropy = lock(&self.entropy);
        let mut part = || (entropy.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let (mut chance, length) = (part(), delay.mul_f64(part()));
        let by_chance = [
            (refused, Fault::Refuse),
            (answer_lost, Fault::KeepAndPoison),
            (crash_before, Fault::Stop { is_written: false }),
            (crash_after, Fault::Stop { is_written: true }),
        ];
        for (share, fault) in by_chance {
            if chance < share {
                return Some(fault);
            }
            chance -= share;
        }
        (!length.is_zero()).then_some(Fault::Delay(length))
    }
}

impl CommitWatch for Watcher {
    fn fault(&self, batch: &Batch) -> Option<Fault> {
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let crash = self.crash.filter(|crash| crash.commit == number);
        let crash = crash.map(|crash| Fault::Stop { is_written: crash.is_written });
        let injected = if crash.is_none() { lock(&self.injected).take() } else { None };
        let fault = crash.or(injected).or_else(|| self.by_chance());
        let fault = fault.or_else(|| self.is_busy(batch.time).then_some(Fault::Delay(BUSY_PAUSE)));
        self.ends.store(false, Ordering::SeqCst);
        let is_told = injected.is_some() && matches!(fault, Some(Fault::Refuse | Fault::Full));
        if !is_told && !matches!(fault, None | Some(Fault::Delay(_))) {
            self.add_incident();
        }
        match fault {
            Some(Fault::Stop { is_written: false }) => self.crashed.notify_one(),
            Some(Fault::Stop { is_written: true }) => self.ends.store(true, Ordering::SeqCst),
            _ => {}
        }
        fault
    }

    fn committed(&self, batch: &Batch) {
        let (states, others): (Vec<_>, Vec<_>) = batch
            .writes
            .iter()
            .filter_map(Committed::of)
            .partition(|it| matches!(it, Committed::State { .. }));
        lock(&self.log).extend(others.into_iter().chain(states));
        if self.ends.swap(false, Ordering::SeqCst) {
            self.crashed.notify_one();
        }
    }
}
