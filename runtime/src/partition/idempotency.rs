//! Idempotency keys: looked up when they arrive, joined while they are in use, remembered in the
//! commit that settles them.

use std::sync::Arc;

use stead_entities::{EntityId, Error, ErrorKind, Rejection};

use super::{
    Item, Output, Partition, Pending, Release,
    arrive::conflict,
    message::{Fingerprint, Keyed},
    reply::{CallResult, ReplySender, Response},
};
use crate::{
    sabotage,
    store::{
        ReadResult, Write,
        record::{IdempotencyKey, IdempotencyRecord, Remembered},
    },
};

impl Partition {
    pub(super) fn look_up(&mut self, item: &Item) {
        let Some(keyed) = &item.key else { return };
        let is_looking = !sabotage::is("X4");
        let pending = Pending { fingerprint: keyed.fingerprint, is_looking, waiters: Vec::new() };
        self.keys.insert(keyed.key.clone(), pending);
        if is_looking {
            self.outputs.push(Output::LookUp(keyed.key.clone()));
        }
    }

    /// What the store remembers of an idempotency key.
    pub(super) fn looked_up(
        &mut self,
        key: &Arc<IdempotencyKey>,
        found: ReadResult<Option<IdempotencyRecord>>,
    ) {
        let Some(pending) = self.keys.get_mut(key) else {
            return;
        };
        pending.is_looking = false;
        let fingerprint = pending.fingerprint;
        let horizon = self.environment.config.retention;
        let response = match found {
            Ok(Some(record)) if record.at + horizon <= self.now => None,
            Ok(Some(record)) if !fingerprint.fits(record.fingerprint) => Some(Err(conflict())),
            Ok(Some(record)) => match record.outcome {
                Remembered::Accepted => Some(Ok(Response::Done)),
                Remembered::Scheduled(number) => Some(Ok(Response::Scheduled(number))),
                Remembered::Replied(json) => Some(Ok(Response::Replied(json))),
                Remembered::Rejected(reason) => {
                    Some(Ok(Response::Rejected(Rejection::new(reason))))
                }
                // It waits in the inbox: this caller joins the one who sent it.
                Remembered::Pending => return self.join(key),
            },
            Ok(None) => None,
            Err(error) => {
                let message = format!("idempotency keys cannot be read: {error}");
                Some(Err(Error::new(ErrorKind::Unavailable, message)))
            }
        };
        match response {
            Some(response) => self.answer_key(key, &response),
            None => self.make_ready(&key.id),
        }
    }

    /// The operation is in the inbox already; the item that asked again waits for its answer.
    pub(super) fn join(&mut self, key: &Arc<IdempotencyKey>) {
        if let Some(item) = self.take_keyed(key)
            && let Some(pending) = self.keys.get_mut(key)
        {
            item.reply_to.iter().for_each(ReplySender::make_uncertain);
            pending.waiters.extend(item.reply_to);
        }
        self.make_ready(&key.id);
    }

    /// Answers everybody who waits under a key, from the store.
    pub(super) fn answer_key(&mut self, key: &Arc<IdempotencyKey>, response: &CallResult) {
        let item = self.take_keyed(key);
        let Some(pending) = self.keys.remove(key) else {
            return;
        };
        let first = item.and_then(|item| item.reply_to);
        for reply_to in first.into_iter().chain(pending.waiters) {
            self.outputs.push(Output::Reply(reply_to, response.clone()));
        }
        self.make_ready(&key.id);
    }

    pub(super) fn take_keyed(&mut self, key: &Arc<IdempotencyKey>) -> Option<Item> {
        let activation = self.table.get_mut(&key.id)?;
        let is_it =
            |item: &Item| item.key.as_ref().is_some_and(|keyed| Arc::ptr_eq(&keyed.key, key));
        let mailbox = &mut activation.mailbox;
        if let Some(index) = mailbox.iter().position(is_it) {
            return mailbox.remove(index);
        }
        let index = activation.behind.iter().position(is_it)?;
        activation.behind.remove(index)
    }

    /// A key that a stored row carries, in use until the row is settled.
    pub(super) fn pending_key(
        &mut self,
        id: &EntityId,
        (caller, name, fingerprint): &(String, String, u128),
    ) -> Keyed {
        let key = Arc::new(IdempotencyKey {
            partition: self.environment.number,
            id: id.clone(),
            caller: caller.as_str().into(),
            key: name.as_str().into(),
        });
        let fingerprint = Fingerprint { meaning: *fingerprint, bytes: None };
        if let Some((key, _)) = self.keys.get_key_value(&key) {
            return Keyed { key: key.clone(), fingerprint };
        }
        let pending = Pending { fingerprint, is_looking: false, waiters: Vec::new() };
        self.keys.insert(key.clone(), pending);
        Keyed { key, fingerprint }
    }

    /// Writes how an operation with an idempotency key came out. Once that is durable, those who
    /// asked again hear it, and the key is looked up in the store.
    pub(super) fn remember(&mut self, item: &Item, outcome: Remembered) {
        let Some(keyed) = &item.key else { return };
        let response = match &outcome {
            Remembered::Pending => None,
            Remembered::Accepted => Some(Ok(Response::Done)),
            Remembered::Scheduled(number) => Some(Ok(Response::Scheduled(*number))),
            Remembered::Replied(json) => Some(Ok(Response::Replied(json.clone()))),
            Remembered::Rejected(reason) => Some(Ok(Response::Rejected(Rejection::new(reason)))),
        };
        let fingerprint = keyed.fingerprint.meaning;
        let record = IdempotencyRecord { fingerprint, at: self.now, outcome };
        if !sabotage::is("X4") {
            self.open.writes.push(Write::Remember((*keyed.key).clone(), record));
        }
        if let Some(response) = response {
            self.after_open(Release::Key(keyed.key.clone(), response));
        }
    }

    pub(super) fn is_looking(&self, item: &Item) -> bool {
        let pending = item.key.as_ref().and_then(|keyed| self.keys.get(&keyed.key));
        pending.is_some_and(|pending| pending.is_looking)
    }

    /// The same for an operation whose key was stored with its row.
    pub(super) fn forget_stored(&mut self, item: &Item, error: &Error) {
        if let Some(keyed) = &item.key {
            self.open.writes.push(Write::Forget((*keyed.key).clone()));
            self.after_open(Release::Key(keyed.key.clone(), Err(error.clone())));
        }
    }

    /// Lets go of what an operation that left nothing holds: the dead letter that it was to replay, and
    /// its key, of which those who asked again hear why.
    pub(super) fn forget_key(&mut self, item: &Item, error: &Error) {
        if let Some(letter) = item.replays {
            self.replayed.remove(&letter);
        }
        if let Some(keyed) = &item.key
            && let Some(pending) = self.keys.remove(&keyed.key)
        {
            for reply_to in pending.waiters {
                self.outputs.push(Output::Reply(reply_to, Err(error.clone())));
            }
        }
    }
}
