//! Which dead letters there are: kept to a number, bytes and an age for each of their two classes.
//!
//! Rejections are a business's "no" and many, and so is what ends with a deleted entity; failures are
//! for an operator. The oldest of a class go when there are too many, and what goes is counted and
//! said. The letters themselves are on disk; what is in memory is their numbers, times and sizes. What
//! must never happen: a letter is replayed twice, or lost before its replay is accepted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use stead_entities::{EntityId, Timestamp};

use super::{READ_PAUSE, envelope::Letter, message::Output, write_group::OpenGroup};
use crate::{
    config::Config,
    map::Set,
    store::{
        DeadLetterHead, DeadLetterHeads, ReadResult, Write,
        tables::dead_letters::{Cause, DeadLetter, DeadLetterId},
    },
};

/// The most letters that one step drops, so that a store with very many of them is not held up.
const DROPPED_PER_STEP_MAX: usize = 256;
/// The bytes of a letter beside its texts.
const OVERHEAD_BYTES: usize = 100;
/// How often new letters are written to the log, at most.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// The dead letters of a partition.
pub(super) struct DeadLetters {
    partition: u16,
    failures: Class,
    rejections: Class,
    /// Letters that are being replayed, or were: a second replay finds nothing.
    replayed: Set<DeadLetterId>,
    log: Log,
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
    /// Until when each is kept, and its bytes.
    known: BTreeMap<u64, (Timestamp, usize)>,
    ends: BTreeSet<(Timestamp, u64)>,
    bytes: usize,
}

/// Limits how often the log is told of dropped letters.
struct Log {
    /// When it was told last, and of how many it was not told since.
    said_at: Option<Timestamp>,
    unsaid: u64,
    /// Letters that were dropped and are not yet said.
    dropped: u64,
    /// How many the node has dropped because there were too many.
    total: Arc<AtomicU64>,
}

impl Class {
    fn add(&mut self, number: u64, end: Timestamp, bytes: usize) {
        self.remove(number);
        self.known.insert(number, (end, bytes));
        self.ends.insert((end, number));
        self.bytes += bytes;
    }

    fn remove(&mut self, number: u64) {
        if let Some((end, bytes)) = self.known.remove(&number) {
            self.ends.remove(&(end, number));
            self.bytes -= bytes;
        }
    }

    /// The letter that has to go, if one has to, and whether that is for its age alone.
    fn surplus(&self, count: usize, bytes: usize, now: Timestamp) -> Option<(u64, bool)> {
        if let Some((_, number)) = self.ends.first().filter(|(end, _)| *end <= now) {
            return Some((*number, true));
        }
        let is_too_many = self.known.len() > count || (self.bytes > bytes && self.known.len() > 1);
        let (number, _) = self.known.first_key_value()?;
        is_too_many.then_some((*number, false))
    }
}

/// When a letter that has been one since `at` has its age.
fn end(at: Timestamp, age: Duration) -> Timestamp {
    (at + age).min(Timestamp::MAX)
}

impl DeadLetters {
    /// The letters of a partition; what is dropped is counted in `total`.
    pub(super) fn new(partition: u16, total: Arc<AtomicU64>) -> Self {
        Self {
            partition,
            failures: Class::default(),
            rejections: Class::default(),
            replayed: Set::default(),
            log: Log { said_at: None, unsaid: 0, dropped: 0, total },
            has_more_to_drop: false,
            read_after: None,
            read_again: None,
        }
    }

    /// Ends the term.
    pub(super) fn clear(&mut self) {
        (self.failures, self.rejections) = (Class::default(), Class::default());
        (self.read_after, self.read_again, self.has_more_to_drop) = (None, None, false);
        self.replayed.clear();
    }

    fn class(&mut self, is_rejection: bool) -> &mut Class {
        if is_rejection { &mut self.rejections } else { &mut self.failures }
    }

    /// Has the open group keep an operation of an entity as a dead letter of this number.
    pub(super) fn keep(
        &mut self,
        number: u64,
        entity: &EntityId,
        letter: Letter,
        (now, age): (Timestamp, impl Fn(&str, bool) -> Duration),
        group: &mut OpenGroup,
    ) {
        // What an entity refused, or took along when it was deleted, is no failure, and pushes none
        // out.
        let is_rejection =
            matches!(letter.cause, Cause::Rejection | Cause::Deleted | Cause::Orphan);
        let id = DeadLetterId { partition: self.partition, is_rejection, number };
        let letter = DeadLetter {
            entity: entity.to_string(),
            sender: letter.sender,
            operation: letter.operation,
            input: letter.input,
            token: letter.token,
            cause: letter.cause,
            reason: letter.reason,
            attempts: letter.attempts,
            accepted_at: letter.accepted_at,
            dead_lettered_at: now,
        };
        let bytes = OVERHEAD_BYTES + letter.entity.len() + letter.input.len() + letter.reason.len();
        let end = end(now, age(entity.entity_type(), is_rejection));
        self.class(is_rejection).add(number, end, bytes);
        if !is_rejection {
            self.log.added(&letter);
        }
        group.write(Write::put(&id, &letter));
    }

    /// Begins the replay of a letter; false where it is being replayed, or was.
    pub(super) fn begin_replay(&mut self, id: DeadLetterId) -> bool {
        self.replayed.insert(id)
    }

    /// Gives up the replay of a letter, which stays.
    pub(super) fn give_up_replay(&mut self, id: DeadLetterId) {
        self.replayed.remove(&id);
    }

    /// Has the open group remove a letter that is replayed or dropped on purpose.
    pub(super) fn remove(&mut self, id: DeadLetterId, group: &mut OpenGroup) {
        self.class(id.is_rejection).remove(id.number);
        group.write(Write::delete::<DeadLetter>(&id));
    }

    /// Takes a page of the letters that are stored; what it asks for next is returned.
    pub(super) fn read(
        &mut self,
        page: ReadResult<DeadLetterHeads>,
        (now, age): (Timestamp, impl Fn(&str, bool) -> Duration),
    ) -> Option<Output> {
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                tracing::error!(partition = self.partition, %error, "dead letters cannot be read");
                self.read_again = Some((now + READ_PAUSE, self.read_after));
                return None;
            }
        };
        for DeadLetterHead { id, entity_type, at, bytes } in &page.rows {
            if !self.replayed.contains(id) {
                let end = end(*at, age(entity_type, id.is_rejection));
                self.class(id.is_rejection).add(id.number, end, *bytes);
            }
        }
        let last = page.last_before_more()?;
        self.read_after = Some(last.id);
        Some(Output::Letters(Some(last.id)))
    }

    /// Drops the oldest letters where there are too many, and those that are too old.
    pub(super) fn prune(&mut self, config: &Config, now: Timestamp, group: &mut OpenGroup) {
        self.has_more_to_drop = false;
        for _ in 0..DROPPED_PER_STEP_MAX {
            let Some((id, is_old)) = self.surplus(config, now) else {
                return self.log.say_dropped(self.partition, now);
            };
            if !is_old {
                self.log.dropped += 1;
                self.log.total.fetch_add(1, Ordering::Relaxed);
            }
            self.remove(id, group);
        }
        self.log.say_dropped(self.partition, now);
        self.has_more_to_drop = true;
    }

    /// Whether there are still too many, to be dropped by the next step.
    pub(super) fn has_more_to_drop(&self) -> bool {
        self.has_more_to_drop
    }

    /// Reads again what could not be read, when it is time.
    pub(super) fn read_again(&mut self, now: Timestamp) -> Option<Output> {
        let (_, after) = self.read_again.take_if(|(at, _)| *at <= now)?;
        Some(Output::Letters(after))
    }

    /// When letters that could not be read are read again, and when the next ones are too old.
    pub(super) fn next_wake(&self) -> Option<Timestamp> {
        let ends = [&self.failures, &self.rejections].into_iter();
        let ends = ends.filter_map(|class| class.ends.first().map(|(end, _)| *end));
        ends.chain(self.read_again.map(|(at, _)| at)).min()
    }

    /// Whether letters are too old.
    pub(super) fn has_old(&self, now: Timestamp) -> bool {
        let is_old = |class: &Class| class.ends.first().is_some_and(|(end, _)| *end <= now);
        is_old(&self.failures) || is_old(&self.rejections)
    }

    fn surplus(&self, config: &Config, now: Timestamp) -> Option<(DeadLetterId, bool)> {
        let bytes = config.dead_letter_bytes_max;
        let of = |is_rejection, found: Option<(u64, bool)>| {
            let id = |number| DeadLetterId { partition: self.partition, is_rejection, number };
            found.map(|(number, is_old)| (id(number), is_old))
        };
        let rejection = of(true, self.rejections.surplus(config.rejections_max, bytes, now));
        let failure = || self.failures.surplus(config.dead_letters_max, bytes, now);
        rejection.or_else(|| of(false, failure()))
    }
}

impl Log {
    fn added(&mut self, letter: &DeadLetter) {
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

    fn say_dropped(&mut self, partition: u16, now: Timestamp) {
        if self.dropped == 0 || self.said_at.is_some_and(|at| now < at + SAY_EVERY) {
            return;
        }
        let dropped = std::mem::take(&mut self.dropped);
        self.said_at = Some(now);
        let total = self.total.load(Ordering::Relaxed);
        tracing::warn!(partition, dropped, total, "dead letters were dropped: there were too many");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        memory::Memory,
        store::tables::{self, Table},
    };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn keep(letters: &mut DeadLetters, number: u64, cause: Cause, now: i64, group: &mut OpenGroup) {
        let letter = Letter {
            sender: String::new(),
            operation: "append".into(),
            input: vec![0; 10],
            token: 0,
            cause,
            reason: "why".into(),
            attempts: 1,
            accepted_at: at(0),
        };
        let id = EntityId::new("log", "a").expect("valid");
        let age = |_: &str, is_rejection| Duration::from_secs(if is_rejection { 50 } else { 100 });
        letters.keep(number, &id, letter, (at(now), age), group);
    }

    /// The numbers of the letters that the open group removes.
    fn removed(group: &mut OpenGroup) -> Vec<(bool, u64)> {
        let _states = group.take_unwritten();
        let sealed = group.seal(0, 1, &Memory::of(&crate::Config::default()));
        group.committed(sealed.number);
        let ids = sealed.writes.iter().filter_map(|write| match write {
            Write::Delete(Table::DeadLetters, key) => {
                let id = tables::dead_letters::read_key(key).expect("a dead letter's key");
                Some((id.is_rejection, id.number))
            }
            _ => None,
        });
        ids.collect()
    }

    #[test]
    fn each_class_is_kept_to_its_own_number_and_age() {
        let config = Config { dead_letters_max: 2, rejections_max: 1, ..Config::default() };
        let total = Arc::new(AtomicU64::new(0));
        let (mut letters, mut group) = (DeadLetters::new(0, total.clone()), OpenGroup::default());
        for number in 1..=3 {
            keep(&mut letters, number, Cause::Failure, 10, &mut group);
            keep(&mut letters, 10 + number, Cause::Rejection, 10, &mut group);
        }
        letters.prune(&config, at(10), &mut group);
        assert_eq!(removed(&mut group), [(true, 11), (true, 12), (false, 1)]);
        assert_eq!(total.load(Ordering::Relaxed), 3, "what is dropped is counted");
        letters.prune(&config, at(61), &mut group);
        assert_eq!(removed(&mut group), [(true, 13)], "it is too old");
        letters.prune(&config, at(111), &mut group);
        assert_eq!(removed(&mut group), [(false, 2), (false, 3)]);
        assert_eq!(total.load(Ordering::Relaxed), 3, "what is merely old is not counted");
    }

    #[test]
    fn a_letter_is_replayed_once_unless_the_replay_is_given_up() {
        let mut letters = DeadLetters::new(0, Arc::default());
        let id = DeadLetterId { partition: 0, is_rejection: false, number: 1 };
        assert!(letters.begin_replay(id) && !letters.begin_replay(id));
        letters.give_up_replay(id);
        assert!(letters.begin_replay(id));
        // A page that was read before the replay shows it, and it does not count.
        let head = DeadLetterHead { id, entity_type: "log".into(), at: at(1), bytes: 10 };
        let page = DeadLetterHeads { rows: vec![head], is_end: true };
        assert!(letters.read(Ok(page), (at(1), |_: &str, _| Duration::MAX)).is_none());
        let mut group = OpenGroup::default();
        let config = Config { dead_letters_max: 0, ..Config::default() };
        letters.prune(&config, at(1), &mut group);
        assert!(removed(&mut group).is_empty());
    }
}
