//! One budget for the memory of a node, divided among its parts, and what they use of it.
//!
//! What entities and write groups take is counted where they come and go. What nobody counts (the allocator's reserve,
//! copies under way, stacks) shows in the resident bytes of the process, which are looked at some times a second where the
//! budget is that of the whole process: where they come near it, entities have to take less, and close below it nothing more is admitted. What must never
//! happen: something is counted, and not given back.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use crate::Config;

/// The most that is set aside for the program itself: its code, its threads and its connections.
const PROGRAM_MAX: usize = 64 << 20;
/// The copies of an argument while it is received, decoded and written.
const COPIES_OF_REQUEST: usize = 3;
/// The copies of what a write group writes, until it is committed.
const COPIES_OF_WRITE: usize = 2;
/// The bytes that an entity takes beside its state: measured with idle counters.
const ENTITY_BYTES: usize = 440;
/// How much more a state takes in memory than it does stored: guessed, and corrected by what is measured.
const STATE_FACTOR: usize = 2;
/// How many times the watchdog comes by between two looks.
const LOOK_RARITY: u64 = 5;
/// How many times between two moments at which entities have to take less, so that what they gave back can be seen.
const LOWERED_RARITY: u64 = 12 * LOOK_RARITY;

/// The parts of a budget, in bytes. They add up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryDivision {
    /// The program itself: code, threads, connections.
    pub program: usize,
    /// Blocks of the database that were read.
    pub cache: usize,
    /// Rows that were written and are not yet in the database's files.
    pub write_buffers: usize,
    /// Requests that are received or wait, with the copies of their arguments.
    pub requests: usize,
    /// The writes of write groups, until they are committed.
    pub commits: usize,
    /// The entities in memory.
    pub entities: usize,
}

impl MemoryDivision {
    /// The parts of a budget of so many bytes: what the program needs, and of the rest an eighth for each of cache,
    /// write buffers and commits, a quarter for requests, and three eighths for entities.
    pub fn of(budget: usize) -> Self {
        let program = PROGRAM_MAX.min(budget / 4);
        let share = (budget - program) / 8;
        let (cache, write_buffers, commits, requests) = (share, share, share, 2 * share);
        let entities = budget - program - cache - write_buffers - commits - requests;
        Self { program, cache, write_buffers, requests, commits, entities }
    }
}

/// The memory of a node.
#[derive(Debug)]
pub(crate) struct Memory {
    budget: usize,
    division: MemoryDivision,
    entities: AtomicUsize,
    commits: AtomicUsize,
    /// The most that entities may take, which is less than their part where more is used than is counted.
    entities_max: AtomicUsize,
    is_full: AtomicBool,
    /// How many times the watchdog has come by, and had when entities had to take less.
    times: AtomicU64,
    lowered_at: AtomicU64,
}

impl Memory {
    pub(crate) fn of(config: &Config) -> Arc<Self> {
        let division = MemoryDivision::of(config.memory);
        Arc::new(Self {
            budget: config.memory,
            division,
            entities: AtomicUsize::new(0),
            commits: AtomicUsize::new(0),
            entities_max: AtomicUsize::new(division.entities),
            is_full: AtomicBool::new(false),
            times: AtomicU64::new(LOWERED_RARITY),
            lowered_at: AtomicU64::new(0),
        })
    }

    /// The most bytes of arguments that are admitted at one time.
    pub(crate) fn request_bytes_max(&self) -> usize {
        self.division.requests / COPIES_OF_REQUEST
    }

    /// The most bytes of one collection of an entity that stay in memory.
    pub(crate) fn collection_bytes_max(&self) -> usize {
        self.division.entities / 8
    }

    /// The share of one of so many partitions in what requests may take.
    pub(crate) fn request_share(&self, partitions: u16) -> usize {
        self.division.requests / 2 / usize::from(partitions.max(1))
    }

    /// Whether nothing more may be admitted.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Whether so much waits to be committed that no more turns may run.
    pub(crate) fn waits_for_commits(&self) -> bool {
        self.commits.load(Ordering::Relaxed) > self.division.commits
    }

    /// Whether entities take more than they may.
    pub(crate) fn has_surplus(&self) -> bool {
        self.entities.load(Ordering::Relaxed) > self.entities_max.load(Ordering::Relaxed)
    }

    /// Whether what is used is to be looked at: asked by the watchdog each time.
    pub(crate) fn is_look_due(&self) -> bool {
        self.times.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOK_RARITY)
    }

    /// Takes note of the resident bytes of the process.
    pub(crate) fn measured(&self, resident: usize) {
        let times = self.times.load(Ordering::Relaxed);
        let (high, full) = (self.budget / 100 * 85, self.budget / 100 * 93);
        self.is_full.store(resident > full, Ordering::Relaxed);
        let max = self.entities_max.load(Ordering::Relaxed);
        if resident <= high {
            let higher = (max + self.division.entities / 200).min(self.division.entities);
            return self.entities_max.store(higher, Ordering::Relaxed);
        }
        if times - self.lowered_at.load(Ordering::Relaxed) < LOWERED_RARITY {
            return;
        }
        self.lowered_at.store(times, Ordering::Relaxed);
        let taken = max.min(self.entities.load(Ordering::Relaxed));
        let lower = taken.saturating_sub(resident - high).max(self.division.entities / 16);
        if lower < max {
            self.entities_max.store(lower, Ordering::Relaxed);
            tracing::info!(
                resident,
                lower,
                "entities have to leave memory, which is nearly used up"
            );
        }
    }
}

/// Why the limits of a node do not fit into its budget, if they do not.
pub(crate) fn problem(config: &Config) -> Option<String> {
    let most = Memory::of(config).request_bytes_max();
    let is_too_large = config.body_bytes_max > most;
    is_too_large.then(|| {
        format!(
            "a body of {} bytes does not fit: of the memory bodies may take {most} bytes, so give it more, or take smaller bodies",
            config.body_bytes_max
        )
    })
}

/// The bytes that an entity takes, whose state has so many where it is stored.
pub(crate) fn entity_bytes(state: usize) -> usize {
    ENTITY_BYTES + STATE_FACTOR * state
}

/// The share of a partition in what entities take, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct EntityShare {
    memory: Arc<Memory>,
    bytes: usize,
}

impl EntityShare {
    pub(crate) fn new(memory: Arc<Memory>) -> Self {
        Self { memory, bytes: 0 }
    }

    /// Counts an entity of so many bytes in place of one of so many.
    pub(crate) fn replace(&mut self, before: usize, now: usize) {
        self.bytes = self.bytes + now - before;
        let total = &self.memory.entities;
        match now.checked_sub(before) {
            Some(more) => total.fetch_add(more, Ordering::Relaxed),
            None => total.fetch_sub(before - now, Ordering::Relaxed),
        };
    }

    /// The bytes that are counted.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many bytes of these entities have to leave: their part of what is too much, and a tenth of theirs, so that
    /// this is not asked for each entity that comes.
    pub(crate) fn surplus(&self) -> usize {
        let total = self.memory.entities.load(Ordering::Relaxed);
        let max = self.memory.entities_max.load(Ordering::Relaxed);
        if total <= max || total == 0 {
            return 0;
        }
        let part = |of: usize| (self.bytes as u128 * of as u128 / total as u128) as usize;
        (part(total - max) + self.bytes / 10).min(self.bytes)
    }
}

impl Drop for EntityShare {
    fn drop(&mut self) {
        self.memory.entities.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The bytes of a write group, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct CommitShare {
    memory: Arc<Memory>,
    bytes: usize,
}

impl CommitShare {
    pub(crate) fn new(memory: &Arc<Memory>, bytes: usize) -> Self {
        let bytes = COPIES_OF_WRITE * bytes;
        memory.commits.fetch_add(bytes, Ordering::Relaxed);
        Self { memory: memory.clone(), bytes }
    }
}

impl Drop for CommitShare {
    fn drop(&mut self) {
        self.memory.commits.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The resident bytes of this process, where the system tells them: Linux does.
pub(crate) fn resident_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: usize = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(budget: usize) -> Arc<Memory> {
        Memory::of(&Config { memory: budget, ..Config::default() })
    }

    #[test]
    fn the_parts_of_a_budget_add_up_to_it() {
        for budget in [64 << 20, (64 << 20) + 7, 512 << 20, 1 << 40] {
            let it = MemoryDivision::of(budget);
            let all = it.program + it.cache + it.write_buffers + it.requests + it.commits;
            assert_eq!(all + it.entities, budget);
        }
        let mib = |bytes: usize| bytes >> 20;
        let it = MemoryDivision::of(512 << 20);
        assert_eq!([it.program, it.cache, it.requests, it.entities].map(mib), [64, 56, 112, 168]);
    }

    #[test]
    fn what_is_counted_is_given_back() {
        let memory = memory(64 << 20);
        let part = memory.division.entities;
        let (mut one, mut two) =
            (EntityShare::new(memory.clone()), EntityShare::new(memory.clone()));
        one.replace(0, part / 2);
        two.replace(0, part / 2);
        assert!(!memory.has_surplus() && one.surplus() == 0);
        one.replace(part / 2, part);
        assert!(memory.has_surplus());
        let (of_one, of_two) = (one.surplus(), two.surplus());
        assert!(of_one > of_two && of_one + of_two > part / 2, "{of_one} {of_two}");
        drop(one);
        assert!(!memory.has_surplus() && two.surplus() == 0);
        drop(two);
        assert_eq!(memory.entities.load(Ordering::Relaxed), 0);
        let group = CommitShare::new(&memory, memory.division.commits);
        assert!(memory.waits_for_commits());
        drop(group);
        assert!(!memory.waits_for_commits());
    }

    #[test]
    fn entities_take_less_where_more_is_used_than_is_counted() {
        let memory = memory(100 << 20);
        let mut share = EntityShare::new(memory.clone());
        share.replace(0, 20 << 20);
        memory.measured(80 << 20);
        assert!(!memory.has_surplus() && !memory.is_full());
        memory.measured(92 << 20);
        assert!(memory.has_surplus() && !memory.is_full());
        let max = memory.entities_max.load(Ordering::Relaxed);
        memory.measured(99 << 20);
        assert!(memory.is_full(), "nothing more is admitted");
        assert_eq!(memory.entities_max.load(Ordering::Relaxed), max, "what has left is seen later");
        for _ in 0..400 {
            memory.measured(80 << 20);
        }
        assert!(!memory.is_full() && !memory.has_surplus(), "all is as before");
    }
}
