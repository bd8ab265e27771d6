//! Locks of entities: while a workflow has one, nothing is applied but what it asks for under that lock.
//!
//! A lock is a part of the entity's record, so that it is known wherever the state is, and is written in the commit that
//! answers the workflow. Everything else waits in memory, in its order and within the limits of a mailbox, or on disk;
//! queries go on. The rows of the holder pass what waits: they are admitted though there is no room, and read from the disk
//! before others. A workflow ends its locks in the commit that ends its section or its run. One that others have waited for
//! since long is asked for all the same, and is let go by a holder that knows nothing of it.
//!
//! What must never happen: an operation of somebody else is applied between two of the holder; one of a holder is applied
//! that has lost its lock; who waits is forgotten, or overtakes another one of its sender.

use std::{sync::Arc, time::Duration};

use stead_entities::{
    EntityId, Error, ErrorKind, Failure,
    ask::answer_json,
    effect::{LOCK, Signal, UNLOCK},
    workflow::{LOCK_ASKED, LockAsked},
};

use super::{
    Partition,
    envelope::{Envelope, LockChange, Operation, Row, Sender},
    message::Output,
    reply::{ReplySender, Response},
    run::{ROOM_PAUSE, full},
};
use crate::{
    sabotage::Sabotage,
    store::tables::{
        inbox::{InboxKey, InboxRecord},
        origins::StoredOrigin,
        states::Lock,
    },
};

/// How long others wait for a lock before its holder is asked whether it has it, and how often.
const HOLDER_ASKED_AFTER: Duration = Duration::from_secs(60);

impl LockChange {
    /// The change that a row asks for, if it does.
    pub(super) fn of(key: &InboxKey, record: &InboxRecord) -> Option<Self> {
        let (asked, fence) = match &*record.operation {
            LOCK => {
                let fence = record.asked.as_ref()?.fence.clone()?;
                (record.asked.clone(), fence)
            }
            UNLOCK => (None, serde_json::from_slice(&record.input).ok()?),
            _ => return None,
        };
        let origin = record.origin.clone().map(|StoredOrigin(origin)| origin);
        let (row, bytes) = (key.clone(), record.input.len());
        Some(Self { row, bytes, fence, asked, origin, permit: None })
    }
}

impl Lock {
    /// Whether who sent a row has this lock, and knows it.
    fn is_of(&self, row: &InboxKey, fence: &str) -> bool {
        *self.holder == *row.sender && self.generation == row.generation && self.fence == fence
    }

    /// Whether a row ends it: it is of the holder, or of the next workflow of its id.
    fn is_ended_by(&self, row: &InboxKey, fence: &str) -> bool {
        *self.holder == *row.sender && self.generation <= row.generation && self.fence == fence
    }
}

impl Partition {
    /// Whether something may run now. Else it waits for the end of the lock, or is refused, because its sender has lost
    /// its lock.
    pub(super) fn pass_lock(&mut self, id: &EntityId, envelope: Envelope) -> Option<Envelope> {
        let activation = self.activations.of(id);
        if let Envelope::Lock(change) = &envelope
            && change.asked.is_some()
            && activation.has_retry(&Sender::Entity(change.row.sender.clone()))
        {
            activation.wait_behind_retries(envelope);
            return None;
        }
        let lock = activation.live_mut().lock();
        let fence = match &envelope {
            Envelope::Operation(operation) => operation.fence(),
            _ => None,
        };
        match (lock, fence) {
            (None, None) => return Some(envelope),
            (lock, Some(fence)) => {
                let key = envelope.inbox_key();
                let is_of = |lock: &Lock| key.is_some_and(|key| lock.is_of(key, fence));
                if lock.is_some_and(is_of) || Sabotage::LateFencePasses.is_on() {
                    return Some(envelope);
                }
            }
            (Some(_), None) => {}
        }
        match envelope {
            Envelope::Operation(operation) if operation.fence().is_some() => {
                self.refuse_fenced(id, *operation);
                None
            }
            Envelope::Operation(operation) if !Sabotage::LockIgnored.is_on() => {
                let operation = self.wait_for_retry(id, operation)?;
                self.park(id, Envelope::Operation(operation));
                None
            }
            Envelope::Lock(change) if change.asked.is_none() => Some(Envelope::Lock(change)),
            Envelope::Delete(_)
            | Envelope::Cancel(_)
            | Envelope::Expire(_)
            | Envelope::Upgrade(..)
            | Envelope::Lock(_) => {
                self.park(id, envelope);
                None
            }
            Envelope::Operation(_)
            | Envelope::Read(_)
            | Envelope::Purge(_)
            | Envelope::FreeLock(..)
            | Envelope::Undeliverable(_) => Some(envelope),
        }
    }

    fn refuse_fenced(&mut self, id: &EntityId, mut operation: Operation) {
        let why = format!("{id} is not locked by who asks any more");
        self.consume(id, &mut operation);
        self.answer_question(&operation, Err(Failure::Failed(why)));
    }

    /// Keeps something until the lock ends, durably if it is a signal.
    fn park(&mut self, id: &EntityId, envelope: Envelope) {
        let Some(kept) = self.ready_to_wait(id, envelope) else { return };
        let at = self.moment.now + HOLDER_ASKED_AFTER;
        if let Some(at) = self.activations.of(id).park(kept, at) {
            self.activations.retry(at, id);
        }
    }

    /// Locks an entity, or lets it go.
    pub(super) fn change_lock(&mut self, id: &EntityId, change: LockChange) {
        let LockChange { row, bytes, fence, asked, origin, permit } = change;
        self.consume_row(id, &Row::Inbox(row.clone()), bytes, permit);
        let Some(asked) = asked else { return self.unlock(id, &row, &fence) };
        let answer = match self.environment.served(id).is_workflow() {
            true => Err(Failure::Failed(format!("{id} is a workflow, which is not locked"))),
            false => {
                let (holder, generation) = (row.sender.to_string(), row.generation);
                let (fence, since) = (fence.into(), self.moment.now);
                self.write_lock(id, Some(Lock { holder, generation, fence, since }));
                Ok(&b"null"[..])
            }
        };
        self.send_answer(&row, &asked, origin.map(StoredOrigin), answer_json(answer));
    }

    /// Ends a lock, or the wait for one.
    fn unlock(&mut self, id: &EntityId, row: &InboxKey, fence: &str) {
        let activation = self.activations.of(id);
        if activation.live_mut().lock().is_some_and(|lock| lock.is_ended_by(row, fence)) {
            return self.end_lock(id);
        }
        let is_it = |envelope: &Envelope| match envelope {
            Envelope::Lock(change) => change.row.sender == row.sender && *change.fence == *fence,
            _ => false,
        };
        if let Some(Envelope::Lock(change)) = activation.take_one_parked(is_it) {
            let LockChange { row, bytes, asked, origin, .. } = *change;
            self.consume_row(id, &Row::Inbox(row.clone()), bytes, None);
            let answer = answer_json(Err(Failure::Cancelled));
            if let Some(asked) = asked {
                self.send_answer(&row, &asked, origin.map(StoredOrigin), answer);
            }
        }
    }

    /// Ends the lock in the place of who has it, or only that of this workflow, as an operator asks for it. What that
    /// still asks for under it is refused.
    pub(super) fn free_lock(&mut self, id: &EntityId, of: Option<&str>, reply_to: ReplySender) {
        if !reply_to.take() {
            return;
        }
        if !self.moment.has_room {
            return self.refuse(reply_to, &full());
        }
        let holder = self.activations.of(id).live_mut().lock().map(|lock| lock.holder.clone());
        let result = match holder {
            None => Err(Error::new(ErrorKind::NotFound, format!("{id} is not locked"))),
            Some(holder) if of.is_some_and(|of| of != holder) => {
                let why = format!("{id} is locked by another workflow");
                Err(Error::new(ErrorKind::Conflict, why))
            }
            Some(holder) => {
                tracing::warn!(entity = %id, holder, "an operator has ended a lock");
                self.end_lock(id);
                Ok(Response::Done)
            }
        };
        self.answer(id, reply_to, result);
    }

    /// Ends the lock, and has run what waited for that.
    fn end_lock(&mut self, id: &EntityId) {
        self.write_lock(id, None);
        self.activations.of(id).unpark();
    }

    /// Writes the lock with the state, as a revision of its own.
    fn write_lock(&mut self, id: &EntityId, lock: Option<Lock>) {
        self.begin_revision(id, None);
        if !Sabotage::LockNotStored.is_on() || lock.is_none() {
            self.activations.of(id).live_mut().set_lock(lock);
        }
        self.inbox.lock_changed(id);
        self.arm_expiry(id, None);
    }

    /// Asks who has the lock for which others have waited long whether it has it.
    pub(super) fn ask_holder(&mut self, id: &EntityId) {
        let (now, next) = (self.moment.now, self.moment.now + HOLDER_ASKED_AFTER);
        let next = if self.moment.has_room { next } else { now + ROOM_PAUSE };
        if !self.activations.of(id).asks_holder(now, next) {
            return;
        }
        self.activations.retry(next, id);
        if !self.moment.has_room {
            return;
        }
        let Some(lock) = self.activations.of(id).live_mut().lock().cloned() else { return };
        let Ok(target) = EntityId::parse(&lock.holder) else { return };
        let asked = LockAsked { entity: id.to_string(), fence: lock.fence };
        let input = serde_json::to_vec(&asked).expect("texts have a JSON form");
        let version = self.begin_revision(id, None);
        let signal = Signal { target, operation: LOCK_ASKED.into(), input, delay: None };
        self.send(id, (version, 0), signal, None, None);
    }

    /// The workflow that has locked an entity in memory.
    fn holder(&self, id: &EntityId) -> Option<&str> {
        let activation = self.activations.get(id)?;
        activation.live()?.lock().map(|lock| &*lock.holder)
    }

    /// Whether a row that was delivered passes what waits: it is of who has locked the entity, of whom nothing is on
    /// disk that came before.
    pub(super) fn goes_before_others(&self, row: &InboxKey) -> bool {
        self.holder(&row.receiver) == Some(&row.sender)
            && !self.links.is_rescanning()
            && !self.inbox.may_have_of_holder(&row.receiver)
    }

    /// Reads the next rows of who has locked an entity that has no room for others.
    pub(super) fn page_of_holder(&mut self, id: &EntityId) {
        let is_at_rest = self.activations.get(id).is_some_and(|entry| entry.is_at_rest());
        let Some(holder) = self.holder(id).filter(|_| is_at_rest).map(Arc::<str>::from) else {
            return;
        };
        let (partition, released) = (self.environment.number(), self.group.released());
        let after = self.inbox.begin_page_of_holder((id, &holder), partition, released);
        if let Some(after) = after {
            self.outputs.push(Output::Inbox(id.clone(), Some(after)));
        }
    }
}

impl Envelope {
    fn inbox_key(&self) -> Option<&InboxKey> {
        match self {
            Self::Operation(operation) => operation.row.inbox_key(),
            _ => None,
        }
    }
}
