//! Everything that can wake a partition, and everything that it can ask for: two closed lists.

use std::sync::Arc;

use stead_entities::{
    Condition, Context, EntityId, Error, Origin, Timestamp,
    collections::{Loaded, Miss},
    entity::{Argument, Outcome},
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tracing::Span;

use super::{
    ForeignIndex,
    envelope::Row,
    reply::{CallResult, ReplySender},
    steps::{NewStep, StepEnded, StepsToEnd},
    turn::Halt,
};
use crate::{
    config::Limits,
    memory::CommitShare,
    store::{
        CommitOutcome, DeadLetterHeads, DueKey, InboxPage, ReadResult, ReminderPage, Write,
        tables::{
            dead_letters::DeadLetterId,
            idempotency::{IdempotencyKey, IdempotencyRecord},
            inbox::{InboxKey, InboxRecord},
            reminders::{ReminderRecord, Slot},
            states::StateRecord,
        },
    },
    types::State,
};

/// An idempotency key, and what it stands for.
#[derive(Debug, Clone)]
pub(crate) struct Keyed {
    pub(crate) key: Arc<IdempotencyKey>,
    pub(crate) fingerprint: Fingerprint,
}

/// The keyed hash of the operation that an idempotency key stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    /// Of what the argument means, however it is written.
    pub(crate) meaning: u128,
    /// Of the argument's bytes, as earlier programs stored it.
    pub(crate) bytes: Option<u128>,
}

impl Fingerprint {
    /// Whether this is what a stored fingerprint was made of.
    pub(crate) fn fits(self, stored: u128) -> bool {
        stored == self.meaning || Some(stored) == self.bytes
    }
}

/// A request of a caller outside to an entity.
pub(crate) struct Arrival {
    pub(crate) id: EntityId,
    pub(crate) reply_to: ReplySender,
    pub(crate) action: Action,
    pub(crate) key: Option<Keyed>,
    /// The condition on the entity's state at its turn.
    pub(crate) condition: Option<Condition>,
    /// Its caller and its trace, where they are known.
    pub(crate) origin: Option<Arc<Origin>>,
}

/// The action that a request asks for.
pub(crate) enum Action {
    /// Show the committed state.
    State,
    /// Answer a query.
    Query(Invocation),
    /// Apply an operation, and answer with its result.
    Call(Invocation),
    /// Accept an operation, perhaps to be applied later.
    Signal { invocation: Invocation, due: Option<Timestamp> },
    /// Accept the operation of a dead letter.
    Replay { invocation: Invocation, letter: DeadLetterId, token: u128 },
    /// Delete the entity.
    Delete,
    /// Cancel a reminder or delayed signal.
    Cancel(Slot),
    /// Store the state in this version of its type, where an earlier one is stored.
    Upgrade(u32),
    /// End the entity's lock in the place of who has it, or only that of this workflow.
    FreeLock(Option<String>),
}

impl Action {
    /// How many bytes of an argument it holds.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Call(invocation)
            | Self::Signal { invocation, .. }
            | Self::Replay { invocation, .. } => invocation.input.len(),
            Self::State
            | Self::Query(_)
            | Self::Delete
            | Self::Cancel(_)
            | Self::Upgrade(_)
            | Self::FreeLock(_) => 0,
        }
    }
}

/// An operation with its argument, as JSON and decoded.
pub(crate) struct Invocation {
    pub(crate) index: usize,
    pub(crate) awaits: bool,
    pub(crate) input: Vec<u8>,
    pub(crate) argument: Argument,
}

/// A row that another partition's commit made durable for this one.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// An inbox row.
    Signal(InboxKey, InboxRecord),
    /// A delayed signal's row.
    Delayed(EntityId, Slot, ReminderRecord),
}

/// The place of a delivery among those of its node.
///
/// Deliveries of one link reach a partition in the order of the commits that made them. Wherever one
/// may be missing, a link of a higher number begins, and the partition reads the store before it goes
/// on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    /// The incarnation of the sending node.
    pub(crate) source: u64,
    pub(crate) number: u64,
    /// Counted from 1; 0 within one process, where nothing is lost.
    pub(crate) place: u64,
}

/// The result of an operation that awaited.
pub(crate) struct Returned {
    pub(crate) id: EntityId,
    pub(crate) run: u64,
    pub(crate) result: Result<(State, Context, Outcome), Halt>,
}

/// The indexes that every state of a partition has by now.
#[derive(Debug)]
pub(crate) struct Indexed {
    /// The hosting in which the states were gone through.
    pub(crate) hosting: u64,
    /// Types, names, and the versions of the types.
    pub(crate) indexes: Vec<ForeignIndex>,
}

/// An input of a partition: everything that can wake it.
pub(crate) enum Input {
    /// A request of a caller outside to an entity.
    Arrival(Box<Arrival>),
    /// A row that another partition's commit made durable; without a body where that was lost.
    Deliver(Option<Box<Delivery>>, Link),
    /// Something may have been missed: read the inbox and the reminders again.
    Rescan,
    /// The entities that have inbox rows.
    Receivers(u64, ReadResult<Vec<EntityId>>),
    /// The write group of this term and number, and all before it, are durable.
    Committed(u64, u64),
    /// The write groups of this term will not be committed.
    Failed(u64, Error),
    /// The committer has settled everything that was sent before this term.
    Barrier(u64),
    /// Every state of the partition was gone through.
    Indexed(Indexed, ReplySender),
    /// The entities that have inbox rows when a term begins.
    Recovered(u64, ReadResult<Vec<EntityId>>),
    Loaded(u64, EntityId, Box<ReadResult<Option<StateRecord>>>),
    /// A page of the inbox, with a permit for each of its rows.
    Inbox(u64, EntityId, ReadResult<InboxPage>, OwnedSemaphorePermit),
    LookedUp(u64, Arc<IdempotencyKey>, Box<ReadResult<Option<IdempotencyRecord>>>),
    Due(u64, Timestamp, ReadResult<ReminderPage>),
    /// Permits for reminders to fire.
    Permits(u64, OwnedSemaphorePermit),
    Reminder(u64, EntityId, Box<ReadResult<Option<ReminderRecord>>>),
    Reminders(u64, EntityId, ReadResult<ReminderPage>),
    /// Entries of an entity's collections.
    Entries(u64, EntityId, Box<ReadResult<Loaded>>),
    Returned(u64, Box<Returned>),
    StepEnded(u64, Box<StepEnded>),
    /// Commit nothing, and answer when it is durable.
    Probe(ReplySender),
    /// Drop a dead letter.
    DropDeadLetter(DeadLetterId, ReplySender),
    /// Dead letters of the partition, in the order of their ids.
    Letters(u64, ReadResult<DeadLetterHeads>),
    /// Start no more turns; answer when everything that was taken is durable.
    Drain(ReplySender),
    /// Look at the clock.
    Tick,
}

impl Input {
    /// The term of the partition that it answers.
    pub(crate) fn term(&self) -> Option<u64> {
        match self {
            Self::Receivers(term, ..)
            | Self::Committed(term, ..)
            | Self::Failed(term, ..)
            | Self::Barrier(term)
            | Self::Recovered(term, ..)
            | Self::Loaded(term, ..)
            | Self::Inbox(term, ..)
            | Self::LookedUp(term, ..)
            | Self::Due(term, ..)
            | Self::Permits(term, ..)
            | Self::Reminder(term, ..)
            | Self::Reminders(term, ..)
            | Self::Entries(term, ..)
            | Self::Returned(term, ..)
            | Self::StepEnded(term, ..)
            | Self::Letters(term, ..) => Some(*term),
            Self::Arrival(_)
            | Self::Deliver(..)
            | Self::Rescan
            | Self::Probe(_)
            | Self::DropDeadLetter(..)
            | Self::Indexed(..)
            | Self::Drain(_)
            | Self::Tick => None,
        }
    }

    /// The caller that waits for an answer to it.
    pub(crate) fn into_reply_to(self) -> Option<ReplySender> {
        match self {
            Self::Arrival(arrival) => Some(arrival.reply_to),
            Self::Probe(reply_to)
            | Self::DropDeadLetter(_, reply_to)
            | Self::Indexed(_, reply_to)
            | Self::Drain(reply_to) => Some(reply_to),
            _ => None,
        }
    }
}

/// An output of a partition: everything that it can ask for.
pub(crate) enum Output {
    Reply(ReplySender, CallResult),
    /// Have this committed.
    Commit(WriteGroup),
    Barrier(u64),
    /// Read what the partition begins with: which entities have inbox rows.
    Recover,
    /// Read which dead letters there are behind one.
    Letters(Option<DeadLetterId>),
    /// Read which entities have inbox rows.
    Receivers,
    Load(EntityId),
    Inbox(EntityId, Option<InboxKey>),
    LookUp(Arc<IdempotencyKey>),
    /// Up to so many reminders that are due until a time, from behind a place.
    Due(Option<DueKey>, Timestamp, usize),
    /// As many permits, for reminders to fire.
    Permits(usize),
    /// One reminder of an entity.
    Reminder(EntityId, Slot),
    /// A page of the reminders of an entity, from behind a slot.
    Reminders(EntityId, Option<Slot>),
    /// Entries of the collections of this generation of an entity.
    Entries(EntityId, u64, Miss),
    Start(Box<Start>),
    /// Begin an attempt of a step.
    Step(Box<NewStep>),
    EndSteps(StepsToEnd),
    /// Tick at this time.
    WakeAt(Timestamp),
    /// Step again soon: there is more to run.
    Again,
}

/// An operation that awaits, about to run in a task of its own.
pub(crate) struct Start {
    pub(crate) id: EntityId,
    pub(crate) run: u64,
    pub(crate) index: usize,
    pub(crate) state: State,
    pub(crate) ctx: Context,
    pub(crate) argument: Argument,
    /// For the watchdog.
    pub(crate) row: Row,
    pub(crate) reply_to: Option<ReplySender>,
    pub(crate) limits: Limits,
    /// The limits of one poll.
    pub(crate) polled: Limits,
    /// The span of its log lines.
    pub(crate) span: Span,
}

/// A request to the committer.
#[derive(Debug)]
pub(crate) enum CommitRequest {
    /// Commit this.
    Group(WriteGroup),
    /// Tell this partition when everything before is settled; its term begins then.
    Barrier(u16, u64),
    /// Give up a partition, and say whether that is durable.
    FreePartition(u16, oneshot::Sender<CommitOutcome>),
    /// Mark the end of a drained node and stop.
    Close(oneshot::Sender<CommitOutcome>),
}

/// The way to the committer.
pub(crate) type CommitSender = mpsc::Sender<CommitRequest>;

/// The finished turns of one step: written together, and released together once they are durable.
#[derive(Debug, Default)]
pub(crate) struct WriteGroup {
    pub(crate) partition: u16,
    pub(crate) term: u64,
    pub(crate) number: u64,
    pub(crate) writes: Vec<Write>,
    pub(crate) replies: Vec<(ReplySender, CallResult)>,
    pub(crate) deliveries: Vec<(u16, Delivery)>,
    /// Whether it is to be flushed though it writes nothing.
    pub(crate) is_probe: bool,
    /// Whether it is told when it is written, and may be flushed later: it is of buffered entities alone.
    pub(crate) is_buffered: bool,
    /// The shares of due and left-behind work in it, given back when it is durable.
    pub(crate) permits: Vec<OwnedSemaphorePermit>,
    /// Its share of the memory of the node.
    pub(crate) _share: Option<CommitShare>,
}
