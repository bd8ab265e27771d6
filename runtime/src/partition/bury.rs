//! Dead letters: operations that will not be tried again, kept with their reasons.

use stead_entities::EntityId;

use super::{Item, Partition, activation::sender_text};
use crate::store::{
    Write,
    record::{Cause, DeadLetter, DeadLetterId, ReminderRecord},
};

/// The reason of an operation that was running each time the process ended.
pub(super) const ENDED_THE_PROCESS: &str =
    "the process ended during every attempt: the operation spins, or uses up what the process has";

/// Why an operation died with its entity.
pub(super) fn reason_of_deletion() -> &'static str {
    "the entity was deleted while this was delayed or waited for a retry"
}

impl Partition {
    pub(super) fn bury(&mut self, id: &EntityId, item: Item, reason: &str) {
        self.bury_for(id, item, Cause::Failure, reason);
    }

    /// Takes an operation off the disk and keeps it as a dead letter, in one burst.
    pub(super) fn bury_for(&mut self, id: &EntityId, mut item: Item, cause: Cause, reason: &str) {
        let operation = self.operation_name(id, item.work);
        self.consume(id, &item);
        self.exhume(&mut item);
        self.bury_item(id, &item, operation, cause, reason);
    }

    /// A row whose operation its entity does not know.
    pub(super) fn bury_unknown(&mut self, id: &EntityId, item: Item, name: &str, reason: &str) {
        self.consume(id, &item);
        self.bury_item(id, &item, name.to_owned(), Cause::Undecodable, reason);
    }

    fn bury_item(
        &mut self,
        id: &EntityId,
        item: &Item,
        operation: String,
        cause: Cause,
        reason: &str,
    ) {
        let letter = DeadLetter {
            entity: id.to_string(),
            sender: sender_text(item),
            operation,
            input: item.input.clone(),
            token: item.token,
            cause,
            reason: reason.to_owned(),
            attempts: item.attempts,
            accepted_at: item.accepted_at,
            buried_at: self.now,
        };
        self.bury_letter(letter);
    }

    /// A delayed signal that never joined its entity's order.
    pub(super) fn bury_record(
        &mut self,
        id: &EntityId,
        record: &ReminderRecord,
        cause: Cause,
        reason: &str,
    ) {
        let letter = DeadLetter {
            entity: id.to_string(),
            sender: String::new(),
            operation: record.operation.clone(),
            input: record.input.clone(),
            token: record.token,
            cause,
            reason: reason.to_owned(),
            attempts: record.attempts,
            accepted_at: record.accepted_at,
            buried_at: self.now,
        };
        self.bury_letter(letter);
    }

    fn bury_letter(&mut self, letter: DeadLetter) {
        let is_rejection = letter.cause == Cause::Rejection;
        let (partition, number) = (self.around.number, self.mint());
        let id = DeadLetterId { partition, is_rejection, number };
        if !is_rejection {
            tracing::warn!(
                entity = letter.entity,
                operation = letter.operation,
                reason = letter.reason,
                "an operation became a dead letter"
            );
        }
        self.open.writes.push(Write::Bury(id, letter));
        if is_rejection {
            self.rejections.push_back((id, self.now));
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
