//! A row of a partition's table: one entity in memory, with its mailbox.

use std::{collections::VecDeque, sync::Arc};

use stead_entities::{Condition, EntityId, Error, Timestamp};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    message::{Keyed, Work},
    reply::ReplySender,
    turn::Turned,
};
use crate::{
    store::record::{Cause, DeadLetterId, InboxKey, ReminderHead, ReminderRecord, Slot},
    types::State,
};

/// The in-memory incarnation of an entity.
pub(super) struct Activation {
    pub(super) stage: Stage,
    /// `None` while it is loading or cannot be read.
    pub(super) state: Option<State>,
    /// 0 while nothing was committed.
    pub(super) generation: u64,
    pub(super) revision: u64,
    /// The revision that was last sent to the committer.
    pub(super) sent_revision: u64,
    pub(super) committed_at: Timestamp,
    pub(super) reminders: Vec<ReminderHead>,
    /// What is to run, in order.
    pub(super) mailbox: VecDeque<Item>,
    /// Signals of one sender, behind one that waits for its retry.
    pub(super) blocked: Vec<Lane>,
    /// What waits in memory behind what waits on disk.
    pub(super) behind: VecDeque<Item>,
    /// The last write group with something of this entity that must be durable before it is heard of.
    pub(super) unreleased: u64,
    /// The state that the open write group will write, if any.
    pub(super) encoded: Option<Vec<u8>>,
    /// How many recovered operations are counted at one time.
    pub(super) recover_share: usize,
    pub(super) is_queued: bool,
    pub(super) used_at: Timestamp,
}

/// What an activation can do at present.
pub(super) enum Stage {
    Loading,
    Ready,
    /// An operation awaits outside services.
    Busy(u64, Item),
    /// A deletion waits for the list of delayed signals.
    Listing(Item),
    /// Nothing can be done with it, and what is stored of it stays as it is: the state cannot be
    /// understood, or is of a version that this program does not know.
    Unusable(Error),
    /// The store could not be read; it is asked again at this time.
    Unreadable(Timestamp),
}

/// One operation in a mailbox. Boxed, because mailboxes move items about and keep their room.
pub(crate) type Item = Box<Queued>;

/// What a mailbox knows of one operation.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) work: Work,
    pub(crate) input: Vec<u8>,
    /// 0 until it arrives, unless it was minted before.
    pub(crate) token: u128,
    pub(crate) is_call: bool,
    /// The sending entity; `None` for callers outside.
    pub(super) sender: Option<Arc<str>>,
    pub(super) row: Row,
    pub(crate) reply_to: Option<ReplySender>,
    pub(crate) key: Option<Keyed>,
    pub(crate) due: Option<Timestamp>,
    /// What must be true of the entity when its turn comes.
    pub(crate) condition: Option<Condition>,
    /// The reminder that it cancels.
    pub(crate) cancels: Option<Slot>,
    /// The number under which it was accepted to be due later.
    pub(super) scheduled: Option<u64>,
    pub(super) attempts: u32,
    /// Whether an earlier, unclean incarnation left it behind: its attempt is counted before it runs.
    pub(super) is_recovered: bool,
    /// Whether it was left behind, and is marked while it runs.
    pub(super) is_marked: bool,
    /// The write group that counts the attempt that is about to begin; 0 where none does yet.
    pub(super) counted: u64,
    pub(super) accepted_at: Timestamp,
    pub(super) deadline: Option<Timestamp>,
    /// The dead letter that it replays.
    pub(crate) replays: Option<DeadLetterId>,
    /// A turn that deletes its entity, and waits for the list of what is delayed.
    pub(super) turned: Option<Box<Turned>>,
    /// What a deletion found delayed.
    pub(super) delayed: Option<Delayed>,
    /// Why it becomes a dead letter instead of running.
    pub(super) undeliverable: Option<Box<Undeliverable>>,
    /// Its share of the due and left-behind work that a node does at one time, until it is durable.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// The caller's reply sender, kept for its share of the node's room while the operation waits.
    pub(super) room: Option<ReplySender>,
}

/// Why an operation cannot run.
#[derive(Debug)]
pub(super) struct Undeliverable {
    /// Its name, which its entity need not know.
    pub(super) operation: String,
    pub(super) cause: Cause,
    pub(super) reason: String,
}

/// The delayed signals of an entity that is deleted.
#[derive(Debug, Default)]
pub(super) struct Delayed {
    /// Those that die in the commit of the deletion.
    pub(super) rows: Vec<(Slot, ReminderRecord)>,
    /// Where the others begin, which die behind it, page by page.
    pub(super) rest: Option<Slot>,
}

/// Where an operation is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Row {
    None,
    Inbox(InboxKey),
    Reminder(Slot, Timestamp, u64),
}

/// Signals of one sender that wait for the first of them to be tried again.
pub(super) struct Lane {
    pub(super) sender: Sender,
    pub(super) retry_at: Timestamp,
    pub(super) items: VecDeque<Item>,
}

/// Whose order an item keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sender {
    Outside,
    Entity(Arc<str>),
    Reminder(Slot),
}

impl Queued {
    /// Work that waits in memory only, and that nobody waits for.
    pub(crate) fn new(work: Work, input: Vec<u8>, token: u128, accepted_at: Timestamp) -> Self {
        Self {
            work,
            input,
            token,
            is_call: false,
            sender: None,
            row: Row::None,
            reply_to: None,
            key: None,
            due: None,
            condition: None,
            cancels: None,
            scheduled: None,
            attempts: 0,
            is_recovered: false,
            is_marked: false,
            counted: 0,
            accepted_at,
            deadline: None,
            replays: None,
            turned: None,
            delayed: None,
            undeliverable: None,
            permit: None,
            room: None,
        }
    }

    /// What a reminder or delayed signal asks for when it is due.
    pub(super) fn of_reminder(work: Work, slot: Slot, record: &ReminderRecord) -> Self {
        Self {
            sender: (!record.sender.is_empty()).then(|| record.sender.as_str().into()),
            row: Row::Reminder(slot, record.due, record.number),
            attempts: record.attempts,
            ..Self::new(work, record.input.clone(), record.token, record.accepted_at)
        }
    }

    /// Whose order it keeps while it waits for a retry; calls and queries wait for nobody's.
    pub(super) fn sender(&self) -> Option<Sender> {
        let is_conditional = self.condition.is_some();
        if self.is_call || is_conditional || !matches!(self.work, Work::Operation { .. }) {
            return None;
        }
        Some(match (&self.row, &self.sender) {
            (Row::Reminder(slot @ Slot::Named(_), ..), _) => Sender::Reminder(slot.clone()),
            (_, Some(sender)) => Sender::Entity(sender.clone()),
            (_, None) => Sender::Outside,
        })
    }

    /// Whether running it writes to the store.
    pub(super) fn writes(&self) -> bool {
        !matches!(self.work, Work::State | Work::Query { .. }) || self.undeliverable.is_some()
    }

    pub(super) fn is_signal(&self) -> bool {
        !self.is_call && matches!(self.work, Work::Operation { .. })
    }
}

impl Activation {
    pub(super) fn loading(now: Timestamp) -> Self {
        Self {
            stage: Stage::Loading,
            state: None,
            generation: 0,
            revision: 0,
            sent_revision: 0,
            committed_at: Timestamp::from_micros(i64::MIN),
            reminders: Vec::new(),
            mailbox: VecDeque::new(),
            blocked: Vec::new(),
            behind: VecDeque::new(),
            unreleased: 0,
            encoded: None,
            recover_share: 1,
            is_queued: false,
            used_at: now,
        }
    }

    pub(super) fn waiting(&self) -> usize {
        let blocked: usize = self.blocked.iter().map(|lane| lane.items.len()).sum();
        self.mailbox.len() + self.behind.len() + blocked
    }

    /// How many operations it holds whose rows were read, or which came before what waits on disk.
    pub(super) fn held(&self) -> usize {
        self.waiting() - self.behind.len()
    }

    /// Whether it can be forgotten without losing anything.
    pub(super) fn is_idle(&self, released: u64, since: Timestamp) -> bool {
        matches!(self.stage, Stage::Ready | Stage::Unusable(_) | Stage::Unreadable(_))
            && self.waiting() == 0
            && self.encoded.is_none()
            && self.unreleased <= released
            && self.used_at < since
    }

    /// Whether it can run nothing until something comes back.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.stage, Stage::Busy(..) | Stage::Listing(_))
    }

    /// Whether a caller waits for something in the mailbox.
    pub(super) fn is_awaited(&self) -> bool {
        self.is_busy() || self.mailbox.iter().any(|item| item.reply_to.is_some())
    }

    pub(super) fn lane(&mut self, sender: &Sender) -> Option<&mut Lane> {
        self.blocked.iter_mut().find(|lane| lane.sender == *sender)
    }

    pub(super) fn items(self) -> impl Iterator<Item = Item> {
        let busy = match self.stage {
            Stage::Busy(_, item) | Stage::Listing(item) => Some(item),
            _ => None,
        };
        let blocked = self.blocked.into_iter().flat_map(|lane| lane.items);
        busy.into_iter().chain(self.mailbox).chain(self.behind).chain(blocked)
    }
}

/// Who sent an operation, as a dead letter names it.
pub(super) fn sender_text(item: &Item) -> String {
    match (&item.row, &item.sender) {
        (Row::Reminder(Slot::Named(name), ..), _) => format!("reminder {name}"),
        (_, Some(sender)) => sender.to_string(),
        (_, None) => String::new(),
    }
}

/// An id and a retry time, in the order of retries.
pub(super) type Retry = (Timestamp, EntityId);
