//! Collections: fields of a state whose entries are stored one by one, each in a row of its own.
//!
//! A [`Map`] finds entries by key, a [`Log`] by their place in an order that only grows. The state that holds one
//! stores a header, a few bytes; a turn that changes an entry writes that entry and the header, in its commit. A
//! clone takes constant time: copies share what they do not change.
//!
//! Entries are read when a turn asks for them. A turn that asks for one that is not in memory is given up,
//! and run again from the beginning when it is there, with the same time, token and random numbers. So is a
//! query. What an operation that awaits has done outside by then is done again, as after a crash; its token is the
//! same.
//!
//! `turn` says what a turn lacks, `entries` holds what is in memory of one collection and what was changed, `map`
//! and `log` are the two kinds, `form` is how both are written, `changes` is what a commit writes. No entry is written here: a runtime stores the
//! changes, and supplies what a turn lacks.
//!
//! What must never happen: a turn sees an entry that another one of its turns has changed, or lacks one that is
//! stored. So whoever supplies entries first has everything written that was sealed before.

mod changes;
mod entries;
mod form;
mod log;
mod map;
mod turn;

pub use self::{
    changes::{EntryChanges, EntryKey, KeyRange},
    log::{Log, Logged},
    map::Map,
    turn::{Access, Attempted, Loaded, Miss, Refused, Wanted, attempt, check_loaded},
};

pub(crate) use self::{log::key as log_key, turn::shows_entries};

use std::collections::BTreeSet;

use crate::{Layout, stored::Checks};

/// The most bytes of the text that is a key of a [`Map`].
pub const KEY_BYTES_MAX: usize = crate::index::TEXT_BYTES_MAX;
/// The most bytes of one entry in its stored form.
pub const ENTRY_BYTES_MAX: usize = 1 << 20;
/// The most entries that one turn or query reads by iterating, or has loaded.
pub const ENTRIES_PER_TURN_MAX: usize = 10_000;
/// The most bytes of entries that one turn or query has loaded.
pub const LOADED_BYTES_MAX: usize = 64 << 20;
/// The most entries of each collection that JSON shows.
pub const ENTRIES_SHOWN_MAX: usize = 100;

/// A collection of a state, whatever its kind. For runtimes and test drivers.
pub trait Collection {
    /// Its number within the state; 0 where it is new.
    fn number(&self) -> u32;
    /// How many entries it has.
    fn length(&self) -> u64;
    /// About how many bytes its entries take in memory.
    fn bytes(&self) -> usize;
    /// Gives it a number, under which it is written as a whole.
    ///
    /// # Errors
    /// Where it has one, and not all entries are in memory.
    fn renumber(&mut self, number: u32) -> Result<(), String>;
    /// Checks what was changed since the last time; returns how many bytes that takes.
    ///
    /// # Errors
    /// An entry that is too long, or could not be read back.
    fn check(&mut self, checks: Checks, is_proven: bool) -> Result<usize, String>;
    /// Hands over what was changed since the last time, proven to be readable.
    ///
    /// # Errors
    /// An entry that could not be read back.
    fn seal(&mut self, changes: &mut EntryChanges, checks: Checks) -> Result<(), String>;
    /// Has entries leave memory where they take more than so many bytes: all of a map, all but the newest of a log.
    /// What was not handed over stays.
    fn evict(&mut self, bytes_max: usize);
    /// Takes entries that were missed.
    ///
    /// # Errors
    /// Where a row makes no sense.
    fn supply(&mut self, loaded: &Loaded) -> Result<(), String>;
}

/// The highest number of these collections, which are given with their lengths.
pub fn highest(collections: &[(u32, u64)]) -> u32 {
    collections.iter().map(|(number, _)| *number).max().unwrap_or(0)
}

/// Gives the collections of a state numbers that are new, where they have none or share one, and returns the number
/// and length of each. `highest` is the highest number that is in use already.
///
/// # Errors
/// A copy of a collection whose entries are not all in memory.
pub fn number<T: Layout>(state: &mut T, highest: u32) -> Result<Vec<(u32, u64)>, String> {
    let mut known = Vec::new();
    state.each_collection(&mut |of| known.push(of.number()));
    let mut next = known.iter().copied().max().unwrap_or(0).max(highest);
    let (mut numbered, mut problem) = (Vec::new(), None);
    let mut taken = BTreeSet::from([0]);
    state.each_collection(&mut |of| {
        if !taken.insert(of.number()) {
            next += 1;
            problem = of.renumber(next).err().or(problem.take());
        }
        numbered.push((of.number(), of.length()));
    });
    match problem {
        Some(why) => Err(why),
        None => Ok(numbered),
    }
}

/// Supplies a state with entries that a turn missed.
///
/// # Errors
/// Where a row makes no sense.
pub fn supply<T: Layout>(state: &mut T, loaded: &Loaded) -> Result<(), String> {
    let mut supplied = Ok(());
    state.each_collection(&mut |of| {
        if of.number() == loaded.number && supplied.is_ok() {
            supplied = of.supply(loaded);
        }
    });
    supplied
}

/// The collections of a state as a commit writes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sealed {
    /// The number and length of each collection.
    pub collections: Vec<(u32, u64)>,
    /// The entries that are changed.
    pub changes: EntryChanges,
}

/// Checks what a turn changed of the collections of a state, and numbers the new ones; returns how many bytes
/// the changed entries take.
///
/// # Errors
/// What cannot be stored, in words.
pub fn check<T: Layout>(
    state: &mut T,
    highest: u32,
    checks: Checks,
    is_proven: bool,
) -> Result<usize, String> {
    number(state, highest)?;
    let mut checked = Ok(0);
    state.each_collection(&mut |of| {
        if let Ok(bytes) = &mut checked {
            match of.check(checks.of_entries(), is_proven) {
                Ok(more) => *bytes += more,
                Err(why) => checked = Err(why),
            }
        }
    });
    checked
}

/// Takes what was changed of the collections of a state since the last time, when there were these collections. The
/// state is stored with it. Of each collection so many bytes stay in memory, or nothing.
///
/// # Errors
/// An entry that could not be read back.
pub fn seal<T: Layout>(
    state: &mut T,
    before: &[(u32, u64)],
    checks: Checks,
    bytes_max: usize,
) -> Result<Sealed, String> {
    let collections = number(state, highest(before))?;
    let (mut changes, mut sealed) = (EntryChanges::default(), Ok(()));
    state.each_collection(&mut |of| {
        if sealed.is_ok() {
            sealed = of.seal(&mut changes, checks.of_entries());
            of.evict(bytes_max);
        }
    });
    sealed?;
    let kept: BTreeSet<_> = collections.iter().map(|(number, _)| *number).collect();
    let ended = before.iter().filter(|(number, _)| !kept.contains(number));
    // None of them has changed entries.
    changes.ended.extend(ended.map(|(number, _)| KeyRange::all(*number)));
    Ok(Sealed { collections, changes })
}

/// Has entries leave memory where those of one collection take more than so many bytes.
pub fn evict<T: Layout>(state: &mut T, bytes_max: usize) {
    state.each_collection(&mut |of| of.evict(bytes_max));
}

/// About how many bytes the collections of a state take in memory.
pub fn bytes<T: Layout>(state: &mut T) -> usize {
    let mut bytes = 0;
    state.each_collection(&mut |of| bytes += of.bytes());
    bytes
}
