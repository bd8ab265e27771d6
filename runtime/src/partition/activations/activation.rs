//! One entity in memory: its state, as far as it is loaded, and its mailbox.

use std::collections::VecDeque;

use stead_entities::{Error, Timestamp, collections::Miss};

use super::Live;
use crate::{
    map::Map,
    partition::{
        envelope::{
            AttemptCount, Cancel, Delete, Envelope, Expire, Occurrence, Operation, Purge, Row,
            Sender,
        },
        message::Keyed,
        turn::Applied,
    },
    rules::Rule,
    store::tables::reminders::Slot,
};

/// The most operations that an unclean stop left behind whose attempts are counted at one time.
const COUNTED_MAX: u8 = 64;

/// One entity in memory.
pub(in crate::partition) struct Activation {
    stage: Stage,
    /// The entries that are to run, in order.
    pub(super) mailbox: VecDeque<Envelope>,
    /// The operations that wait outside of the mailbox; none where none ever did, as of nearly all entities.
    pub(super) apart: Option<Box<Apart>>,
    /// The last write group with something of this entity that must be durable before it is heard of.
    unreleased: u64,
    /// How many left-behind operations are counted at one time.
    counted_share: u8,
    pub(super) is_queued: bool,
    /// The bytes that are counted for it, and for what it has in memory beside its state.
    pub(super) bytes: u32,
    pub(super) held: u32,
    pub(super) used_at: Timestamp,
}

/// The operations of an entity that wait outside of its mailbox.
#[derive(Default)]
pub(super) struct Apart {
    /// Signals that wait for the first of their sender to be tried again.
    retries: Vec<RetryQueue>,
    /// The entries that wait in memory behind those on disk.
    behind: VecDeque<Envelope>,
    /// The entries that wait for the end of a lock, in the order in which they were to run.
    pub(super) parked: VecDeque<Envelope>,
    /// Wishes for the lock whose senders have sent something before that waits for a retry.
    pub(super) behind_retries: VecDeque<Envelope>,
    /// When who has the lock is asked whether that is so.
    pub(super) asks_holder_at: Option<Timestamp>,
    /// Answers to asks of which others are missing, by the number of the ask.
    gathered: Map<u64, Vec<Operation>>,
}

/// The stage of an activation.
pub(in crate::partition) enum Stage {
    /// Its state is being read.
    Loading,
    /// It can run what is in its mailbox.
    Ready(Live),
    /// An operation awaits outside services.
    Awaiting { live: Live, run: u64, operation: Box<Operation> },
    /// Something waits for a read of its reminders, or of entries of its collections, which is asked for when
    /// everything that was accepted for the entity is durable, so that the store shows it.
    Reading { live: Live, waits: WaitsForRead, is_asked: bool },
    /// Nothing can be done with it, and what is stored of it stays as it is: the state cannot be
    /// understood, or is of a version that this program does not know.
    Unusable(Error),
    /// The store could not be read; it is asked again at this time.
    Unreadable(Timestamp),
}

/// Work that waits for a read of an entity's reminders, or of entries of its collections.
pub(in crate::partition) enum WaitsForRead {
    Delete(Box<Delete>),
    /// A turn that deletes its entity.
    Turn(Box<Operation>, Box<Applied>),
    Purge(Box<Purge>),
    Cancel(Box<Cancel>),
    Expire(Box<Expire>),
    /// A turn or query that lacks entries of the state's collections.
    Entries(Box<Lacking>),
}

/// A turn or query, and the entries that it lacks. Boxed: every entity in memory has room for its stage.
pub(in crate::partition) struct Lacking {
    pub(in crate::partition) waits: Envelope,
    pub(in crate::partition) miss: Miss,
}

/// Signals of one sender that wait for the first of them to be tried again.
pub(super) struct RetryQueue {
    sender: Sender,
    retry_at: Timestamp,
    operations: VecDeque<Box<Operation>>,
}

impl Activation {
    pub(super) fn loading(now: Timestamp) -> Self {
        Self {
            stage: Stage::Loading,
            mailbox: VecDeque::new(),
            apart: None,
            unreleased: 0,
            counted_share: 1,
            is_queued: false,
            bytes: 0,
            held: 0,
            used_at: now,
        }
    }

    /// The bytes that are counted for it, with all of its collections that is in memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes as usize + self.held as usize
    }

    /// The bytes that are counted for it without its collections.
    pub(in crate::partition) fn state_bytes(&self) -> usize {
        self.bytes as usize
    }

    pub(super) fn apart(&mut self) -> &mut Apart {
        self.apart.get_or_insert_default()
    }

    /// The queues whose entries wait for nothing but their turn.
    fn queues(&mut self) -> impl Iterator<Item = &mut VecDeque<Envelope>> {
        let apart = self.apart.iter_mut();
        let apart = apart
            .flat_map(|apart| [&mut apart.parked, &mut apart.behind_retries, &mut apart.behind]);
        std::iter::once(&mut self.mailbox).chain(apart)
    }

    pub(in crate::partition) fn stage(&self) -> &Stage {
        &self.stage
    }

    /// The state, where it is loaded.
    pub(in crate::partition) fn live(&self) -> Option<&Live> {
        match &self.stage {
            Stage::Ready(live) | Stage::Awaiting { live, .. } | Stage::Reading { live, .. } => {
                Some(live)
            }
            Stage::Loading | Stage::Unusable(_) | Stage::Unreadable(_) => None,
        }
    }

    /// The state of an entity that is known to be loaded.
    pub(in crate::partition) fn live_mut(&mut self) -> &mut Live {
        match &mut self.stage {
            Stage::Ready(live) | Stage::Awaiting { live, .. } | Stage::Reading { live, .. } => live,
            Stage::Loading | Stage::Unusable(_) | Stage::Unreadable(_) => {
                Rule::StateIsLoaded.broken()
            }
        }
    }

    /// Takes what the store has of it, or why it has nothing to offer.
    pub(super) fn loaded(&mut self, stage: Stage) {
        Rule::LoadIsAwaited.check(matches!(self.stage, Stage::Loading));
        self.stage = stage;
    }

    /// Reads it again, after it could not be read.
    pub(in crate::partition) fn load_again(&mut self) {
        self.stage = Stage::Loading;
    }

    /// Leaves it alone from here on. Returns the operation that was awaiting, whose result is of no
    /// use any more, and what waited for its reminders.
    pub(in crate::partition) fn make_unusable(&mut self, error: Error) -> Option<Envelope> {
        match std::mem::replace(&mut self.stage, Stage::Unusable(error)) {
            Stage::Awaiting { operation, .. } => Some(Envelope::Operation(operation)),
            Stage::Reading { waits, .. } => Some(waits.into_envelope()),
            _ => None,
        }
    }

    /// Busies it with an operation that awaits.
    pub(in crate::partition) fn await_on(&mut self, run: u64, operation: Box<Operation>) {
        let live = self.take_ready();
        self.stage = Stage::Awaiting { live, run, operation };
    }

    /// Ends the awaiting of this run; `None` where another run, or none, is under way.
    pub(in crate::partition) fn returned(&mut self, returned: u64) -> Option<Box<Operation>> {
        match std::mem::replace(&mut self.stage, Stage::Loading) {
            Stage::Awaiting { live, run, operation } if run == returned => {
                self.stage = Stage::Ready(live);
                Some(operation)
            }
            other => {
                self.stage = other;
                None
            }
        }
    }

    /// Busies it with something that waits for a read of its reminders.
    pub(in crate::partition) fn wait_for_read(&mut self, waits: WaitsForRead) {
        let live = self.take_ready();
        self.stage = Stage::Reading { live, waits, is_asked: false };
    }

    /// Takes note that the reminders are asked for, and returns the work that waits for them, the first
    /// time.
    pub(in crate::partition) fn ask_for_read(&mut self) -> Option<&WaitsForRead> {
        match &mut self.stage {
            Stage::Reading { waits, is_asked, .. } if !*is_asked => {
                *is_asked = true;
                Some(waits)
            }
            _ => None,
        }
    }

    /// Ends the read that such work waits for; `None` where none is under way.
    pub(in crate::partition) fn end_read(
        &mut self,
        is_it: impl Fn(&WaitsForRead) -> bool,
    ) -> Option<WaitsForRead> {
        match std::mem::replace(&mut self.stage, Stage::Loading) {
            Stage::Reading { live, waits, is_asked: true } if is_it(&waits) => {
                self.stage = Stage::Ready(live);
                Some(waits)
            }
            other => {
                self.stage = other;
                None
            }
        }
    }

    /// Whether a turn or query waits for entries.
    pub(in crate::partition) fn waits_for_entries(&self) -> bool {
        matches!(&self.stage, Stage::Reading { waits: WaitsForRead::Entries(..), .. })
    }

    fn take_ready(&mut self) -> Live {
        match std::mem::replace(&mut self.stage, Stage::Loading) {
            Stage::Ready(live) => live,
            _ => Rule::StateIsLoaded.broken(),
        }
    }

    /// Whether its state is being read, or is to be written by the open group.
    pub(in crate::partition) fn is_unsettled(&self) -> bool {
        let is_unwritten = self.live().is_some_and(Live::is_unwritten);
        matches!(self.stage, Stage::Loading) || is_unwritten
    }

    /// Whether it can run nothing until something comes back.
    pub(in crate::partition) fn is_busy(&self) -> bool {
        matches!(self.stage, Stage::Awaiting { .. } | Stage::Reading { .. })
    }

    pub(in crate::partition) fn is_awaiting(&self) -> bool {
        matches!(self.stage, Stage::Awaiting { .. })
    }

    /// Notes that it was used.
    pub(in crate::partition) fn use_at(&mut self, now: Timestamp) {
        self.used_at = now;
    }

    /// The last write group with something of it.
    pub(in crate::partition) fn unreleased(&self) -> u64 {
        self.unreleased
    }

    /// Notes that this write group has something of it, which must be durable before it is heard of.
    pub(in crate::partition) fn hold_until(&mut self, group: u64) {
        self.unreleased = group;
    }

    /// Puts something at the end of its order.
    pub(in crate::partition) fn push(&mut self, envelope: Envelope) {
        self.mailbox.push_back(envelope);
    }

    /// Puts something back to the beginning of its order.
    pub(in crate::partition) fn put_back(&mut self, envelope: Envelope) {
        self.mailbox.push_front(envelope);
    }

    /// Puts something behind everything that waits on disk.
    pub(in crate::partition) fn push_behind(&mut self, envelope: Envelope) {
        self.apart().behind.push_back(envelope);
    }

    /// Takes what waited behind what waited on disk, now that this is in memory.
    pub(in crate::partition) fn take_behind(&mut self) -> VecDeque<Envelope> {
        self.apart.as_mut().map(|apart| std::mem::take(&mut apart.behind)).unwrap_or_default()
    }

    /// Whether nothing of it is to run.
    pub(in crate::partition) fn is_at_rest(&self) -> bool {
        self.mailbox.is_empty()
    }

    /// Takes what is to run next.
    pub(in crate::partition) fn pop(&mut self) -> Option<Envelope> {
        self.mailbox.pop_front()
    }

    pub(in crate::partition) fn take_mailbox(&mut self) -> VecDeque<Envelope> {
        std::mem::take(&mut self.mailbox)
    }

    pub(in crate::partition) fn set_mailbox(&mut self, mailbox: VecDeque<Envelope>) {
        self.mailbox = mailbox;
    }

    /// Gives back the permits of what waits for its turn.
    pub(in crate::partition) fn drop_permits(&mut self) {
        self.mailbox.iter_mut().for_each(Envelope::drop_permit);
    }

    /// How many operations wait for it in memory.
    pub(in crate::partition) fn waiting(&self) -> usize {
        self.held() + self.apart.as_ref().map_or(0, |apart| apart.behind.len())
    }

    /// How many operations it holds whose rows were read, or which came before what waits on disk.
    pub(in crate::partition) fn held(&self) -> usize {
        let retries = self.apart.iter().flat_map(|apart| &apart.retries);
        let retried: usize = retries.map(|queue| queue.operations.len()).sum();
        let waits = |apart: &Apart| apart.parked.len() + apart.behind_retries.len();
        let parked = self.apart.as_deref().map_or(0, waits);
        self.mailbox.len() + retried + parked
    }

    /// Keeps an answer until the others of its ask, `parts` in all, are there; returns it with them when
    /// it is the last.
    pub(in crate::partition) fn gather(
        &mut self,
        ask: u64,
        parts: usize,
        mut answer: Box<Operation>,
    ) -> Option<Box<Operation>> {
        let known = self.apart().gathered.entry(ask).or_default();
        if known.len() + 1 < parts {
            known.push(*answer);
            return None;
        }
        answer.gathered = self.take_gathered(ask);
        Some(answer)
    }

    /// Whether answers wait for others of their asks.
    pub(in crate::partition) fn has_gathered(&self) -> bool {
        self.apart.as_ref().is_some_and(|apart| !apart.gathered.is_empty())
    }

    /// Takes the answers of an ask that wait for the others.
    fn take_gathered(&mut self, ask: u64) -> Vec<Operation> {
        self.apart.as_mut().and_then(|apart| apart.gathered.remove(&ask)).unwrap_or_default()
    }

    /// Takes every answer of an ask that is in memory, wherever it waits.
    pub(in crate::partition) fn take_answers(&mut self, ask: u64) -> Vec<Operation> {
        let is_of = |operation: &Operation| {
            operation.answer().is_some_and(|(_, asked)| asked.number == ask)
        };
        let mut answers = self.take_gathered(ask);
        for queue in self.queues() {
            for envelope in std::mem::take(queue) {
                match envelope {
                    Envelope::Operation(operation) if is_of(&operation) => answers.push(*operation),
                    other => queue.push_back(other),
                }
            }
        }
        let mut none = Vec::new();
        let retries = self.apart.as_mut().map_or(&mut none, |apart| &mut apart.retries);
        for queue in &mut *retries {
            for operation in std::mem::take(&mut queue.operations) {
                match is_of(&operation) {
                    true => answers.push(*operation),
                    false => queue.operations.push_back(operation),
                }
            }
        }
        retries.retain(|queue| !queue.operations.is_empty());
        let taken_along: Vec<_> =
            answers.iter_mut().flat_map(|answer| std::mem::take(&mut answer.gathered)).collect();
        answers.extend(taken_along);
        answers
    }

    /// Puts answers that an operation took along back into its order.
    pub(in crate::partition) fn put_back_answers(&mut self, answers: Vec<Operation>) {
        self.mailbox.extend(answers.into_iter().map(Box::new).map(Envelope::Operation));
    }

    /// Puts the answers to all asks that are not complete back into its order.
    pub(in crate::partition) fn put_back_gathered(&mut self) {
        let Some(apart) = &mut self.apart else { return };
        let gathered = std::mem::take(&mut apart.gathered);
        let mut answers: Vec<_> = gathered.into_values().flatten().collect();
        // An order that does not depend on how tables hash.
        answers.sort_by(|one, other| one.row.inbox_key().cmp(&other.row.inbox_key()));
        self.put_back_answers(answers);
    }

    /// Whether it has nothing to run, and holds fewer operations than `limit`.
    pub(in crate::partition) fn has_room(&self, limit: usize) -> bool {
        self.mailbox.is_empty() && self.held() < limit
    }

    /// Whether it can be forgotten without losing anything.
    pub(super) fn is_idle(&self, released: u64, since: Timestamp) -> bool {
        let is_written = match &self.stage {
            Stage::Ready(live) => !live.is_unwritten(),
            Stage::Unusable(_) | Stage::Unreadable(_) => true,
            Stage::Loading | Stage::Awaiting { .. } | Stage::Reading { .. } => false,
        };
        is_written
            && self.waiting() == 0
            && !self.has_gathered()
            && self.unreleased <= released
            && self.used_at < since
    }

    /// Whether a caller waits for something in the mailbox.
    pub(in crate::partition) fn is_awaited(&self) -> bool {
        self.is_busy() || self.mailbox.iter().any(|envelope| envelope.reply_to().is_some())
    }

    /// Puts an operation behind others of its sender that wait for a retry; gives it back where none
    /// does.
    pub(in crate::partition) fn join_retry(
        &mut self,
        sender: &Sender,
        operation: Box<Operation>,
    ) -> Option<Box<Operation>> {
        let mut retries = self.apart.iter_mut().flat_map(|apart| &mut apart.retries);
        match retries.find(|queue| queue.sender == *sender) {
            Some(queue) => {
                queue.operations.push_back(operation);
                None
            }
            None => Some(operation),
        }
    }

    /// Whether others of a sender wait for a retry.
    pub(in crate::partition) fn has_retry(&self, sender: &Sender) -> bool {
        let mut retries = self.apart.iter().flat_map(|apart| &apart.retries);
        retries.any(|queue| queue.sender == *sender)
    }

    /// Lets an operation, and whatever its sender sends behind it, wait until `retry_at`. A sender
    /// has one queue: what it waits for first is tried first.
    pub(in crate::partition) fn retry_at(
        &mut self,
        sender: Sender,
        operation: Box<Operation>,
        retry_at: Timestamp,
    ) {
        if let Some(operation) = self.join_retry(&sender, operation) {
            let operations = VecDeque::from([operation]);
            self.apart().retries.push(RetryQueue { sender, retry_at, operations });
        }
    }

    /// Puts what may be tried again before everything else in its order.
    pub(in crate::partition) fn retry_due(&mut self, now: Timestamp) {
        let Some(apart) = &mut self.apart else { return };
        let queues = std::mem::take(&mut apart.retries);
        let (due, waiting): (Vec<_>, Vec<_>) =
            queues.into_iter().partition(|queue| queue.retry_at <= now);
        apart.retries = waiting;
        if !due.is_empty() {
            self.unpark_behind_retries();
        }
        for queue in due {
            self.run_first(queue.operations.into_iter().map(Envelope::Operation));
        }
    }

    /// Takes everything that waits for a retry.
    pub(in crate::partition) fn take_retries(&mut self) -> Vec<Operation> {
        self.unpark_behind_retries();
        let apart = self.apart.as_mut();
        let queues = apart.map(|apart| std::mem::take(&mut apart.retries)).unwrap_or_default();
        queues.into_iter().flat_map(|queue| queue.operations).map(|operation| *operation).collect()
    }

    /// Takes a delayed signal that is due, and waits for its turn or its retry, out of its order.
    pub(in crate::partition) fn take_delayed(&mut self, slot: &Slot) -> Option<Envelope> {
        let is_it = |occurrence: Option<&Occurrence>| occurrence.is_some_and(|it| it.slot == *slot);
        for queue in self.queues() {
            if let Some(place) = queue.iter().position(|it| is_it(it.occurrence())) {
                return queue.remove(place);
            }
        }
        let retries = &mut self.apart.as_mut()?.retries;
        let found = retries.iter_mut().find_map(|queue| {
            let of = |operation: &Operation| match &operation.row {
                Row::Reminder(occurrence) => occurrence.slot == *slot,
                _ => false,
            };
            let place = queue.operations.iter().position(|operation| of(operation))?;
            queue.operations.remove(place)
        });
        retries.retain(|queue| !queue.operations.is_empty());
        found.map(Envelope::Operation)
    }

    /// Takes what has an idempotency key out of its order, where `is_it` says so of the key.
    pub(in crate::partition) fn take_keyed(
        &mut self,
        is_it: impl Fn(&Keyed) -> bool,
    ) -> Option<Envelope> {
        self.queues().find_map(|queue| {
            let place = queue.iter().position(|envelope| envelope.key().is_some_and(&is_it))?;
            queue.remove(place)
        })
    }

    /// The first left-behind operations, whose attempts are to be counted before they run: few at
    /// first, then twice as many each time, so that few are counted that do not run; one at a time
    /// where it is known what ran.
    pub(in crate::partition) fn uncounted(
        &mut self,
        is_one_at_a_time: bool,
    ) -> impl Iterator<Item = &mut Operation> {
        let share = if is_one_at_a_time { 1 } else { self.counted_share };
        self.counted_share = (2 * share).min(COUNTED_MAX);
        let live = match &self.stage {
            Stage::Ready(live) => Some(live),
            _ => None,
        };
        let is_over = move |row: &Row| match row {
            Row::Reminder(Occurrence { slot: Slot::Named(_), number, .. }) => {
                !live.is_some_and(|live| live.has_reminder(*number))
            }
            _ => false,
        };
        let first = self.mailbox.iter_mut().take(share.into());
        first.filter_map(move |envelope| match envelope {
            // A reminder that was cancelled meanwhile must not be written again.
            Envelope::Operation(operation)
                if operation.count == AttemptCount::BeforeRun && !is_over(&operation.row) =>
            {
                Some(&mut **operation)
            }
            _ => None,
        })
    }

    /// Ends it. Returns everything that waits for it.
    pub(super) fn end(self) -> impl Iterator<Item = Envelope> {
        let busy = match self.stage {
            Stage::Awaiting { operation, .. } => Some(Envelope::Operation(operation)),
            Stage::Reading { waits, .. } => Some(waits.into_envelope()),
            _ => None,
        };
        let Apart { retries, behind, parked, behind_retries, .. } =
            self.apart.map_or_else(Apart::default, |apart| *apart);
        let retried = retries.into_iter().flat_map(|queue| queue.operations);
        let retried = retried.map(Envelope::Operation);
        busy.into_iter()
            .chain(parked)
            .chain(behind_retries)
            .chain(self.mailbox)
            .chain(behind)
            .chain(retried)
    }
}

impl WaitsForRead {
    /// The envelope of the work that waits, without its effects so far.
    pub(in crate::partition) fn into_envelope(self) -> Envelope {
        match self {
            Self::Delete(delete) => Envelope::Delete(delete),
            Self::Turn(operation, _) => Envelope::Operation(operation),
            Self::Purge(purge) => Envelope::Purge(purge),
            Self::Cancel(cancel) => Envelope::Cancel(cancel),
            Self::Expire(expire) => Envelope::Expire(expire),
            Self::Entries(lacking) => lacking.waits,
        }
    }
}
