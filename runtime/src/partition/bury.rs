//! Dead letters: operations that will not be tried again, kept with their reasons.

use stead_entities::{EntityId, Error, ErrorKind};

use super::{Item, Partition, Row, activation::sender_text};
use crate::store::{
    Write,
    record::{Cause, DeadLetter, DeadLetterId},
};

/// The reason of an operation that was running each time the process ended.
pub(super) const ENDED_THE_PROCESS: &str =
    "the process ended during every attempt: the operation spins, or uses up what the process has";

/// Why an operation died with its entity.
pub(super) const DELETED: &str =
    "the entity was deleted while this was delayed or waited for a retry";

impl Partition {
    /// Takes an operation off the disk and keeps it as a dead letter, in one burst.
    pub(super) fn bury(&mut self, id: &EntityId, item: Item, cause: Cause, reason: &str) {
        let operation = self.operation_name(id, item.work);
        self.bury_as(id, item, operation, cause, reason);
    }

    /// The same under a name of an operation that its entity need not know.
    pub(super) fn bury_as(
        &mut self,
        id: &EntityId,
        mut item: Item,
        operation: String,
        cause: Cause,
        reason: &str,
    ) {
        self.consume(id, &item);
        if item.is_call && matches!(item.row, Row::Inbox(_)) {
            self.forget_stored(&item, &Error::new(ErrorKind::Internal, reason));
        }
        self.exhume(&mut item);
        let is_rejection = cause == Cause::Rejection;
        let (partition, number) = (self.around.number, self.mint());
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
            buried_at: self.now,
        };
        if !is_rejection {
            tracing::warn!(
                entity = letter.entity,
                operation = letter.operation,
                reason = letter.reason,
                "an operation became a dead letter"
            );
        }
        self.open.writes.push(Write::Bury(letter_id, letter));
        if is_rejection {
            self.rejections.push_back((letter_id, self.now));
            self.prune_rejections();
        }
    }

    /// Rejections are kept to a count and an age.
    pub(super) fn prune_rejections(&mut self) {
        let config = &self.around.config;
        let (count, age) = (config.rejections_max, config.rejections_age);
        while let Some((id, at)) = self.rejections.front().copied()
            && (self.rejections.len() > count || at + age <= self.now)
        {
            self.rejections.pop_front();
            self.open.writes.push(Write::Exhume(id));
        }
    }
}
