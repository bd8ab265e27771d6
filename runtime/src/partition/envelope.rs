//! The entries of a mailbox: one request, signal or reminder for one entity, with exactly what is
//! needed to carry it out, to answer it and to take it off the disk.

use std::sync::Arc;

use stead_entities::{Condition, EntityId, Origin, Timestamp, entity::Argument};
use tokio::sync::OwnedSemaphorePermit;

use super::{message::Keyed, reply::ReplySender};
use crate::store::tables::{
    dead_letters::{Cause, DeadLetterId},
    inbox::{Asked, InboxKey},
    reminders::{ReminderRecord, Slot},
};

/// One entry of a mailbox. Boxed, because mailboxes move entries about and keep their room.
pub(super) enum Envelope {
    /// A query, or a look at the committed state.
    Read(Box<Read>),
    /// An operation: a call, a signal or a reminder.
    Operation(Box<Operation>),
    /// The deletion of the entity, asked for from outside.
    Delete(Box<Delete>),
    /// The cancellation of a reminder or delayed signal.
    Cancel(Box<Cancel>),
    /// The rest of a deletion: delayed signals that become dead letters page by page.
    Purge(Box<Purge>),
    /// A reminder or delayed signal that cannot run; it becomes a dead letter in its turn.
    Undeliverable(Box<Undeliverable>),
    /// The end of the entity, whose time has come.
    Expire(Box<Expire>),
    /// The state is to be stored in this version of its type.
    Upgrade(u32, ReplySender),
    /// A workflow locks the entity, or lets it go.
    Lock(Box<LockChange>),
    /// An operator ends the lock, or that of this workflow.
    FreeLock(Option<String>, ReplySender),
}

/// A query, or a look at the committed state.
pub(super) struct Read {
    pub(super) what: ReadKind,
    pub(super) condition: Option<Condition>,
    pub(super) reply_to: ReplySender,
    pub(super) first_try: Option<Box<FirstTry>>,
}

pub(super) enum ReadKind {
    State,
    Query(Query),
}

pub(super) struct Query {
    pub(super) index: usize,
    /// The decoded argument. `None` where it was used up: then it is decoded again.
    pub(super) argument: Option<Argument>,
    /// The argument as JSON.
    pub(super) input: Vec<u8>,
    pub(super) origin: Option<Arc<Origin>>,
}

/// The first try of a turn or query that is run again, because it lacked entries of collections.
#[derive(Debug, Clone, Copy)]
pub(super) struct FirstTry {
    pub(super) now: Timestamp,
    pub(super) seed: u64,
    /// Of a query; an operation has one of its own.
    pub(super) token: u128,
    /// How many entries were loaded for it since, and how many bytes of them.
    pub(super) entries: usize,
    pub(super) bytes: usize,
}

/// An operation of an entity.
pub(super) struct Operation {
    pub(super) index: usize,
    pub(super) awaits: bool,
    /// The argument as JSON, as it is stored.
    pub(super) input: Vec<u8>,
    /// The decoded argument. `None` where it was read from the store, and where it was used up by an
    /// attempt: then it is decoded in the turn.
    pub(super) argument: Option<Argument>,
    /// The same on every attempt.
    pub(super) token: u128,
    /// Its caller and its trace, where they are known.
    pub(super) origin: Option<Arc<Origin>>,
    pub(super) accepted_at: Timestamp,
    /// When its caller stops waiting.
    pub(super) deadline: Option<Timestamp>,
    pub(super) row: Row,
    pub(super) caller: Caller,
    pub(super) key: Option<Keyed>,
    /// The condition on the entity's state at the turn. Judged again each time it is put back.
    pub(super) condition: Option<Condition>,
    /// The ask of which it is a question or an answer.
    pub(super) asked: Option<Box<Asked>>,
    /// The answers that it takes beside its own, or, for the timeout of an ask, all that came in time.
    pub(super) gathered: Vec<Self>,
    /// How often it was tried in vain.
    pub(super) attempts: u32,
    pub(super) count: AttemptCount,
    /// Whether an earlier process left it behind, so that it is marked while it runs.
    pub(super) is_marked: bool,
    /// Its share of the due and left-behind work that a node does at one time.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// Why it has failed, where its type hears of that.
    pub(super) failure: Option<Box<str>>,
    /// The time and entropy of its turn, where that was given up because it lacked entries of collections.
    pub(super) first_try: Option<Box<FirstTry>>,
}

/// The one who hears of an operation, and of which of its stages.
pub(super) enum Caller {
    /// Hears the result. `None` where the process that was asked has ended.
    Call(Option<ReplySender>),
    /// Hears that the signal is durable.
    Signal {
        reply_to: ReplySender,
        /// When it is to join the entity's order, where that is later.
        due: Option<Timestamp>,
        /// The dead letter that it replays.
        replays: Option<DeadLetterId>,
    },
    /// Was told, or is another entity. What is kept is the caller's share of the node's room.
    Accepted { _room: Option<ReplySender> },
}

/// Whether the attempt of an operation that an unclean stop left behind is counted, durably, before
/// it runs: it may be what ended the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttemptCount {
    /// It was not left behind, or did not run when the process ended: it is counted where it fails.
    AfterFailure,
    /// It has to be counted before it runs.
    BeforeRun,
    /// It is counted by the write group of this number.
    By(u64),
}

/// The deletion of an entity, asked for from outside.
pub(super) struct Delete {
    pub(super) key: Option<Keyed>,
    pub(super) condition: Option<Condition>,
    pub(super) accepted_at: Timestamp,
    pub(super) reply_to: ReplySender,
}

/// The cancellation of a reminder or delayed signal.
pub(super) struct Cancel {
    pub(super) slot: Slot,
    pub(super) reply_to: ReplySender,
}

/// The rest of a deletion. It has an inbox row, so that it goes on after a restart.
pub(super) struct Purge {
    pub(super) row: InboxKey,
    /// The slot behind which the next page begins.
    pub(super) after: Option<Slot>,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// The wish of a workflow to lock an entity, or to let it go.
pub(super) struct LockChange {
    pub(super) row: InboxKey,
    pub(super) bytes: usize,
    pub(super) fence: Box<str>,
    /// The question that is answered once it is locked; none where it is let go.
    pub(super) asked: Option<Box<Asked>>,
    pub(super) origin: Option<Arc<Origin>>,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// A reminder or delayed signal that cannot run, and why.
pub(super) struct Undeliverable {
    pub(super) occurrence: Occurrence,
    pub(super) letter: Letter,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// The end of an entity at its time, of which a reminder tells.
pub(super) struct Expire {
    pub(super) occurrence: Occurrence,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// The parts of a dead letter that tell of an operation.
pub(super) struct Letter {
    pub(super) sender: String,
    pub(super) operation: String,
    pub(super) input: Vec<u8>,
    pub(super) token: u128,
    pub(super) cause: Cause,
    pub(super) reason: String,
    pub(super) attempts: u32,
    pub(super) accepted_at: Timestamp,
}

/// The row that keeps an operation on disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Row {
    /// Nowhere: it waits in memory, and is written where it has to wait for long.
    None,
    Inbox(InboxKey),
    Reminder(Occurrence),
}

/// One occurrence of one reminder, or a delayed signal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Occurrence {
    pub(crate) slot: Slot,
    pub(crate) due: Timestamp,
    pub(crate) number: u64,
    /// The entity that sent a delayed signal.
    pub(super) sender: Option<Arc<str>>,
}

impl Occurrence {
    pub(super) fn new(slot: Slot, record: &ReminderRecord) -> Self {
        let sender = (!record.sender.is_empty()).then(|| record.sender.as_str().into());
        Self { slot, due: record.due, number: record.number, sender }
    }
}

/// The sender whose order an operation keeps while it waits for its retry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sender {
    Outside,
    Entity(Arc<str>),
    Reminder(Slot),
}

impl Row {
    /// The sending entity.
    fn entity(&self) -> Option<&Arc<str>> {
        match self {
            Self::None => None,
            Self::Inbox(key) => Some(&key.sender).filter(|sender| !sender.is_empty()),
            Self::Reminder(occurrence) => occurrence.sender.as_ref(),
        }
    }

    pub(super) fn inbox_key(&self) -> Option<&InboxKey> {
        match self {
            Self::Inbox(key) => Some(key),
            Self::None | Self::Reminder(_) => None,
        }
    }

    /// The sender, as a dead letter names it.
    pub(super) fn sender_text(&self) -> String {
        if let Self::Reminder(Occurrence { slot: Slot::Named(name), .. }) = self {
            return format!("reminder {name}");
        }
        self.entity().map_or_else(String::new, |sender| sender.to_string())
    }
}

impl Operation {
    /// An operation that nobody waits for, as it was stored.
    pub(super) fn stored(index: usize, awaits: bool, row: Row, stored: Stored) -> Self {
        let Stored { input, token, origin, accepted_at, attempts } = stored;
        Self {
            index,
            awaits,
            input,
            argument: None,
            token,
            origin,
            accepted_at,
            deadline: None,
            row,
            caller: Caller::Accepted { _room: None },
            key: None,
            condition: None,
            asked: None,
            gathered: Vec::new(),
            attempts,
            count: AttemptCount::AfterFailure,
            is_marked: false,
            permit: None,
            failure: None,
            first_try: None,
        }
    }

    pub(super) fn is_call(&self) -> bool {
        matches!(self.caller, Caller::Call(_))
    }

    /// The sender whose order it keeps while it waits for its retry; calls, and signals under a
    /// condition, wait for nobody's.
    pub(super) fn sender(&self) -> Option<Sender> {
        if self.is_call() || self.condition.is_some() {
            return None;
        }
        if let Row::Reminder(Occurrence { slot: slot @ Slot::Named(_), .. }) = &self.row {
            return Some(Sender::Reminder(slot.clone()));
        }
        let entity = self.row.entity().cloned();
        Some(entity.map_or(Sender::Outside, Sender::Entity))
    }

    /// When it is to join its entity's order, where it was sent for later.
    pub(super) fn due(&self) -> Option<Timestamp> {
        match &self.caller {
            Caller::Signal { due, .. } => *due,
            Caller::Call(_) | Caller::Accepted { .. } => None,
        }
    }

    /// Begins the work, unless its caller has withdrawn it: what is stored is accepted, and not
    /// withdrawn.
    pub(super) fn take(&self) -> bool {
        self.row != Row::None || self.reply_to().is_none_or(ReplySender::take)
    }

    /// The caller that is still to be told.
    pub(super) fn reply_to(&self) -> Option<&ReplySender> {
        match &self.caller {
            Caller::Call(reply_to) => reply_to.as_ref(),
            Caller::Signal { reply_to, .. } => Some(reply_to),
            Caller::Accepted { .. } => None,
        }
    }

    /// The caller that is still to be told.
    pub(super) fn into_reply_to(self) -> Option<ReplySender> {
        match self.caller {
            Caller::Call(reply_to) => reply_to,
            Caller::Signal { reply_to, .. } => Some(reply_to),
            Caller::Accepted { .. } => None,
        }
    }

    /// The dead letter that it replays.
    pub(super) fn replays(&self) -> Option<DeadLetterId> {
        match &self.caller {
            Caller::Signal { replays, .. } => *replays,
            Caller::Call(_) | Caller::Accepted { .. } => None,
        }
    }

    /// The parts of a dead letter that tell of it.
    pub(super) fn letter(&self, operation: String, cause: Cause, reason: &str) -> Letter {
        Letter {
            sender: self.row.sender_text(),
            operation,
            input: self.argument_json().into_owned(),
            token: self.token,
            cause,
            reason: reason.to_owned(),
            attempts: self.attempts,
            accepted_at: self.accepted_at,
        }
    }

    /// The question that it is: its key, and its ask.
    pub(super) fn question(&self) -> Option<(&InboxKey, &Asked)> {
        match (&self.row, &self.asked) {
            (Row::Inbox(key), Some(asked)) if !key.is_answer() => Some((key, asked)),
            _ => None,
        }
    }

    /// The fence of the lock under which it was asked.
    pub(super) fn fence(&self) -> Option<&str> {
        self.asked.as_ref()?.fence.as_deref()
    }

    /// The answer that it is: its key, and its ask.
    pub(super) fn answer(&self) -> Option<(&InboxKey, &Asked)> {
        match (&self.row, &self.asked) {
            (Row::Inbox(key), Some(asked)) if key.is_answer() => Some((key, asked)),
            _ => None,
        }
    }
}

/// The stored parts of an operation, whichever row they are in.
pub(super) struct Stored {
    pub(super) input: Vec<u8>,
    pub(super) token: u128,
    pub(super) origin: Option<Arc<Origin>>,
    pub(super) accepted_at: Timestamp,
    pub(super) attempts: u32,
}

impl Letter {
    /// The parts of a dead letter that tell of a reminder or delayed signal.
    pub(super) fn of_reminder(
        slot: Slot,
        record: ReminderRecord,
        cause: Cause,
        reason: &str,
    ) -> Self {
        let row = Row::Reminder(Occurrence::new(slot, &record));
        Self {
            sender: row.sender_text(),
            operation: record.operation,
            input: record.input,
            token: record.token,
            cause,
            reason: reason.to_owned(),
            attempts: record.attempts,
            accepted_at: record.accepted_at,
        }
    }
}

impl Envelope {
    /// The idempotency key that it holds.
    pub(super) fn key(&self) -> Option<&Keyed> {
        match self {
            Self::Operation(operation) => operation.key.as_ref(),
            Self::Delete(delete) => delete.key.as_ref(),
            Self::Read(_)
            | Self::Cancel(_)
            | Self::Purge(_)
            | Self::Undeliverable(_)
            | Self::Expire(_)
            | Self::Lock(_)
            | Self::FreeLock(..)
            | Self::Upgrade(..) => None,
        }
    }

    /// The caller that is still to be told.
    pub(super) fn reply_to(&self) -> Option<&ReplySender> {
        match self {
            Self::Read(read) => Some(&read.reply_to),
            Self::Operation(operation) => operation.reply_to(),
            Self::Delete(delete) => Some(&delete.reply_to),
            Self::Cancel(cancel) => Some(&cancel.reply_to),
            Self::Upgrade(_, reply_to) | Self::FreeLock(_, reply_to) => Some(reply_to),
            Self::Purge(_) | Self::Undeliverable(_) | Self::Expire(_) | Self::Lock(_) => None,
        }
    }

    /// The caller that is still to be told.
    pub(super) fn into_reply_to(self) -> Option<ReplySender> {
        match self {
            Self::Read(read) => Some(read.reply_to),
            Self::Operation(operation) => operation.into_reply_to(),
            Self::Delete(delete) => Some(delete.reply_to),
            Self::Cancel(cancel) => Some(cancel.reply_to),
            Self::Upgrade(_, reply_to) | Self::FreeLock(_, reply_to) => Some(reply_to),
            Self::Purge(_) | Self::Undeliverable(_) | Self::Expire(_) | Self::Lock(_) => None,
        }
    }

    /// Whether it is kept on disk.
    pub(super) fn is_stored(&self) -> bool {
        match self {
            Self::Operation(operation) => operation.row != Row::None,
            Self::Purge(_) | Self::Undeliverable(_) | Self::Expire(_) | Self::Lock(_) => true,
            Self::Read(_)
            | Self::Delete(_)
            | Self::Cancel(_)
            | Self::Upgrade(..)
            | Self::FreeLock(..) => false,
        }
    }

    /// Takes a share of the due and left-behind work that a node does at one time.
    pub(super) fn hold_permit(&mut self, permit: OwnedSemaphorePermit) {
        match self {
            Self::Operation(operation) => operation.permit = Some(permit),
            Self::Purge(purge) => purge.permit = Some(permit),
            Self::Undeliverable(undeliverable) => undeliverable.permit = Some(permit),
            Self::Expire(expire) => expire.permit = Some(permit),
            Self::Lock(change) => change.permit = Some(permit),
            Self::Read(_)
            | Self::Delete(_)
            | Self::Cancel(_)
            | Self::Upgrade(..)
            | Self::FreeLock(..) => {}
        }
    }

    /// Gives its share of due and left-behind work back: what waits for long keeps nobody else
    /// waiting.
    pub(super) fn drop_permit(&mut self) {
        match self {
            Self::Operation(operation) => operation.permit = None,
            Self::Purge(purge) => purge.permit = None,
            Self::Undeliverable(undeliverable) => undeliverable.permit = None,
            Self::Expire(expire) => expire.permit = None,
            Self::Lock(change) => change.permit = None,
            Self::Read(_)
            | Self::Delete(_)
            | Self::Cancel(_)
            | Self::Upgrade(..)
            | Self::FreeLock(..) => {}
        }
    }

    /// The occurrence of a reminder that it is.
    pub(super) fn occurrence(&self) -> Option<&Occurrence> {
        match self {
            Self::Operation(operation) => match &operation.row {
                Row::Reminder(occurrence) => Some(occurrence),
                Row::None | Row::Inbox(_) => None,
            },
            Self::Undeliverable(undeliverable) => Some(&undeliverable.occurrence),
            Self::Expire(expire) => Some(&expire.occurrence),
            Self::Read(_)
            | Self::Delete(_)
            | Self::Cancel(_)
            | Self::Purge(_)
            | Self::Lock(_)
            | Self::FreeLock(..)
            | Self::Upgrade(..) => None,
        }
    }

    /// Whether it is a signal that can be written to the inbox where it has to wait.
    pub(super) fn can_wait_on_disk(&self) -> bool {
        matches!(self, Self::Operation(it) if !it.is_call() && it.condition.is_none())
    }
}

/// For error messages.
impl std::fmt::Debug for Envelope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read(_) => "Read",
            Self::Operation(_) => "Operation",
            Self::Delete(_) => "Delete",
            Self::Cancel(_) => "Cancel",
            Self::Purge(_) => "Purge",
            Self::Undeliverable(_) => "Undeliverable",
            Self::Expire(_) => "Expire",
            Self::Upgrade(..) => "Upgrade",
            Self::Lock(_) => "Lock",
            Self::FreeLock(..) => "FreeLock",
        })
    }
}

/// An id and a retry time, in the order of retries.
pub(super) type Retry = (Timestamp, EntityId);
