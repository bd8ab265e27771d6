//! Entities that cannot be used at present, or at all: who waits for them is refused, and what is stored
//! of them stays as it is.

use std::collections::VecDeque;

use stead_entities::{EntityId, Error, ErrorKind, Timestamp};

use super::{
    Partition,
    envelope::{Envelope, Row},
    message::Output,
};

impl Partition {
    /// Nothing can be done with this entity; what is stored of it stays.
    pub(super) fn refuse_unusable(&mut self, id: &EntityId, error: &Error) {
        let activation = self.activations.of(id);
        activation.put_back_gathered();
        activation.unpark();
        let mut waiting = activation.take_mailbox();
        waiting.extend(activation.take_behind());
        for envelope in waiting {
            match envelope {
                Envelope::Operation(operation) => {
                    self.leave_stored(id, &operation.row, operation.input.len());
                    for answer in &operation.gathered {
                        self.leave_stored(id, &answer.row, answer.input.len());
                    }
                    self.refuse_operation(*operation, error);
                }
                Envelope::Purge(purge) => self.leave_stored(id, &Row::Inbox(purge.row), 0),
                Envelope::Undeliverable(it) => {
                    self.leave_stored(id, &Row::Reminder(it.occurrence), 0);
                }
                Envelope::Expire(it) => {
                    self.leave_stored(id, &Row::Reminder(it.occurrence), 0);
                }
                Envelope::Delete(delete) => self.refuse_deletion(*delete, error),
                Envelope::Read(read) => self.refuse(read.reply_to, error),
                Envelope::Cancel(cancel) => self.refuse(cancel.reply_to, error),
                Envelope::Upgrade(_, reply_to) | Envelope::FreeLock(_, reply_to) => {
                    self.refuse(reply_to, error);
                }
                Envelope::Lock(change) => {
                    self.leave_stored(id, &Row::Inbox(change.row), change.bytes);
                }
            }
        }
        if self.inbox.forget_backlog(id) {
            self.page_recovering();
        }
    }

    /// Leaves a row on disk, for who can use its entity.
    fn leave_stored(&mut self, id: &EntityId, row: &Row, bytes: usize) {
        match row {
            Row::None => {}
            Row::Inbox(key) => self.inbox.abandon(key.clone(), bytes),
            Row::Reminder(occurrence) => self.reminders.leave_on_disk(id, occurrence),
        }
    }

    /// Asks the store again for a state that it could not read. Callers who wait are refused; what
    /// was accepted stays.
    pub(super) fn read_again(&mut self, id: &EntityId, at: Timestamp) {
        let activation = self.activations.of(id);
        if at <= self.moment.now {
            activation.load_again();
            return self.outputs.push(Output::Load(id.clone()));
        }
        let (mut kept, refused): (VecDeque<_>, VecDeque<_>) =
            activation.take_mailbox().into_iter().partition(Envelope::is_stored);
        kept.iter_mut().for_each(Envelope::drop_permit);
        activation.set_mailbox(kept);
        let error = Error::new(ErrorKind::Unavailable, "the store cannot read at the moment");
        for envelope in refused {
            self.refuse_envelope(envelope, &error);
        }
        self.activations.retry(at, id);
    }

    /// Refuses what was not begun and is not stored.
    fn refuse_envelope(&mut self, envelope: Envelope, error: &Error) {
        match envelope {
            Envelope::Operation(operation) => self.refuse_operation(*operation, error),
            Envelope::Delete(delete) => self.refuse_deletion(*delete, error),
            other => {
                let reply_to = other.into_reply_to();
                reply_to.into_iter().for_each(|reply_to| self.refuse(reply_to, error));
            }
        }
    }
}
