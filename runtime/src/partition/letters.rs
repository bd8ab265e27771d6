//! Which dead letters there are: kept to a number, bytes and an age for each of their two classes.
//!
//! Rejections are a business's "no" and many, and so is what dies with a deleted entity; failures are
//! for an operator. The oldest of a class go when there are too many, and what goes is counted and said.
//! The letters themselves are on disk; what is in memory is their numbers, times and sizes.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use stead_entities::Timestamp;

use super::{Output, Partition, recover::RECOVERY_PAUSE};
use crate::{
    config::Config,
    store::{
        DeadLetterHead, DeadLetterHeads, ReadResult, Write,
        record::{Cause, DeadLetter, DeadLetterId},
    },
};

/// The most letters that one step drops, so that a store with very many of them is not held up.
const DROPPED_PER_STEP_MAX: usize = 256;
/// What a letter takes beside its texts.
const OVERHEAD_BYTES: usize = 100;
/// How often new letters are written to the log, at most.
const SAY_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// The dead letters of a partition.
#[derive(Default)]
pub(super) struct Letters {
    failures: Class,
    rejections: Class,
    /// When the log told of a letter, and how many it did not tell of since.
    said_at: Option<Timestamp>,
    unsaid: u64,
    /// Letters that were dropped and are not yet said.
    dropped: u64,
    /// Whether there are still too many.
    has_more_to_drop: bool,
    /// Up to which letter the store was read.
    read_after: Option<DeadLetterId>,
    /// When to read it again, and behind which letter, where that failed.
    read_again: Option<(Timestamp, Option<DeadLetterId>)>,
}

/// The letters of one class, by number: oldest first.
#[derive(Default)]
struct Class {
    known: BTreeMap<u64, (Timestamp, usize)>,
    bytes: usize,
}

impl Class {
    fn add(&mut self, number: u64, at: Timestamp, bytes: usize) {
        if let Some((_, before)) = self.known.insert(number, (at, bytes)) {
            self.bytes -= before;
        }
        self.bytes += bytes;
    }

    fn remove(&mut self, number: u64) {
        if let Some((_, bytes)) = self.known.remove(&number) {
            self.bytes -= bytes;
        }
    }

    /// The oldest letter, and whether it is there for its age alone, where it has to go.
    fn surplus(&self, count: usize, bytes: usize, before: Timestamp) -> Option<(u64, bool)> {
        let (number, (at, _)) = self.known.first_key_value()?;
        let is_too_many = self.known.len() > count || (self.bytes > bytes && self.known.len() > 1);
        (is_too_many || *at <= before).then_some((*number, !is_too_many))
    }
}

impl Letters {
    pub(super) fn clear(&mut self) {
        (self.failures, self.rejections) = (Class::default(), Class::default());
        (self.read_after, self.read_again, self.has_more_to_drop) = (None, None, false);
    }

    /// When letters that could not be read are read again.
    pub(super) fn read_again_at(&self) -> Option<Timestamp> {
        self.read_again.map(|(at, _)| at)
    }

    fn class(&mut self, is_rejection: bool) -> &mut Class {
        if is_rejection { &mut self.rejections } else { &mut self.failures }
    }

    /// Notes a letter that the open write group writes.
    pub(super) fn add(&mut self, id: DeadLetterId, letter: &DeadLetter) {
        let bytes = OVERHEAD_BYTES + letter.entity.len() + letter.input.len() + letter.reason.len();
        self.class(id.is_rejection).add(id.number, letter.dead_lettered_at, bytes);
        if matches!(letter.cause, Cause::Rejection | Cause::Deleted) {
            // The first is no failure; the other is told of as a whole.
            return;
        }
        let now = letter.dead_lettered_at;
        if self.said_at.is_some_and(|at| now < at + SAY_EVERY) {
            self.unsaid += 1;
            return;
        }
        self.said_at = Some(now);
        tracing::warn!(
            entity = letter.entity,
            operation = letter.operation,
            reason = letter.reason,
            others = std::mem::take(&mut self.unsaid),
            "an operation became a dead letter"
        );
    }

    fn surplus(&self, config: &Config, now: Timestamp) -> Option<(DeadLetterId, bool)> {
        let before = |age: std::time::Duration| {
            let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
            Timestamp::from_micros(now.as_micros().saturating_sub(age))
        };
        let bytes = config.dead_letter_bytes_max;
        let of = |is_rejection, found: Option<(u64, bool)>| {
            let id = |number| DeadLetterId { partition: 0, is_rejection, number };
            found.map(|(number, is_old)| (id(number), is_old))
        };
        let (count, oldest) = (config.rejections_max, before(config.rejections_age));
        let rejection = of(true, self.rejections.surplus(count, bytes, oldest));
        rejection.or_else(|| {
            let (count, oldest) = (config.dead_letters_max, before(config.dead_letters_age));
            of(false, self.failures.surplus(count, bytes, oldest))
        })
    }
}

impl Partition {
    /// Removes a dead letter that is replayed or dropped on purpose.
    pub(super) fn remove_letter(&mut self, id: DeadLetterId) {
        self.letters.class(id.is_rejection).remove(id.number);
        self.open.writes.push(Write::DeleteDeadLetter(id));
    }

    /// A page of the letters that are stored.
    pub(super) fn letters_read(&mut self, page: ReadResult<DeadLetterHeads>) {
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                tracing::error!(partition = self.number(), %error, "dead letters cannot be read");
                self.letters.read_again =
                    Some((self.now + RECOVERY_PAUSE, self.letters.read_after));
                return;
            }
        };
        for DeadLetterHead { id, at, bytes } in &page.rows {
            if !self.replayed.contains(id) {
                self.letters.class(id.is_rejection).add(id.number, *at, *bytes);
            }
        }
        if let Some(last) = page.last_before_more() {
            self.letters.read_after = Some(last.id);
            self.outputs.push(Output::Letters(Some(last.id)));
        }
        self.prune_letters();
    }

    /// Drops the oldest letters where there are too many, and those that are too old.
    pub(super) fn prune_letters(&mut self) {
        for _ in 0..DROPPED_PER_STEP_MAX {
            let Some((id, is_old)) = self.letters.surplus(&self.environment.config, self.now)
            else {
                return self.say_dropped();
            };
            if !is_old {
                self.letters.dropped += 1;
                self.environment.dropped.fetch_add(1, Ordering::Relaxed);
            }
            let partition = self.environment.number;
            self.remove_letter(DeadLetterId { partition, ..id });
        }
        self.say_dropped();
        self.letters.has_more_to_drop = true;
        self.outputs.push(Output::Again);
    }

    /// Goes on with what was left for a later step.
    pub(super) fn maintain_letters(&mut self) {
        if std::mem::take(&mut self.letters.has_more_to_drop) {
            self.prune_letters();
        }
        if let Some((_, after)) = self.letters.read_again.filter(|(at, _)| *at <= self.now) {
            self.letters.read_again = None;
            self.outputs.push(Output::Letters(after));
        }
    }

    fn say_dropped(&mut self) {
        let dropped = self.letters.dropped;
        if dropped == 0 || self.letters.said_at.is_some_and(|at| self.now < at + SAY_EVERY) {
            return;
        }
        self.letters.dropped = 0;
        self.letters.said_at = Some(self.now);
        let total = self.environment.dropped.load(Ordering::Relaxed);
        let partition = self.number();
        tracing::warn!(partition, dropped, total, "dead letters were dropped: there were too many");
    }
}
