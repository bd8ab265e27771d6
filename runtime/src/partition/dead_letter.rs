//! Operations that will not be tried again: taken off the disk, and kept as dead letters with their
//! reasons.

use stead_entities::{EntityId, Error, ErrorKind};

use super::{Item, Partition, Row, activation::sender_text};
use crate::store::{
    Write,
    record::{Cause, DeadLetter, DeadLetterId},
};

/// The reason of an operation that was running each time the process ended.
pub(super) const ENDED_THE_PROCESS: &str = "the process ended during every attempt: the operation blocks its thread, or uses up what the process has";

/// Why an operation died with its entity.
pub(super) const DELETED: &str =
    "the entity was deleted while this was delayed or waited for a retry";

impl Partition {
    /// Takes an operation off the disk and keeps it as a dead letter, in one write group.
    pub(super) fn dead_letter(&mut self, id: &EntityId, item: Item, cause: Cause, reason: &str) {
        let operation = self.operation_name(id, item.work);
        self.dead_letter_as(id, item, operation, cause, reason);
    }

    /// The same under a name of an operation that its entity need not know.
    pub(super) fn dead_letter_as(
        &mut self,
        id: &EntityId,
        mut item: Item,
        operation: String,
        cause: Cause,
        reason: &str,
    ) {
        self.consume(id, &mut item);
        if item.is_call && matches!(item.row, Row::Inbox(_)) {
            self.forget_stored(&item, &Error::new(ErrorKind::Internal, reason));
        }
        self.drop_replayed(&mut item);
        // What an entity refused, or took along when it was deleted, is no failure, and pushes none out.
        let is_rejection = matches!(cause, Cause::Rejection | Cause::Deleted);
        let (partition, number) = (self.environment.number, self.mint());
        let letter_id = DeadLetterId { partition, is_rejection, number };
        let letter = DeadLetter {
            entity: id.to_string(),
            sender: sender_text(&item),
            operation,
            input: item.input,
            token: item.token,
            cause,
            reason: reason.to_owned(),
            attempts: item.attempts,
            accepted_at: item.accepted_at,
            dead_lettered_at: self.now,
        };
        self.letters.add(letter_id, &letter);
        self.open.writes.push(Write::PutDeadLetter(letter_id, letter));
        self.prune_letters();
    }
}
