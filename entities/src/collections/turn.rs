//! Reading entries in a turn, and lacking them.
//!
//! A turn that misses entries unwinds, without a word to panic hooks, to the [`attempt`] around it. Code that
//! catches panics cannot hide it: the attempt remembers. Programs that abort on panic cannot have collections.

use std::{
    cell::RefCell,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{ENTRIES_PER_TURN_MAX, LOADED_BYTES_MAX};

/// Entries that a turn lacks, of one collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// The number of the collection.
    pub number: u32,
    /// The entries.
    pub wanted: Wanted,
}

/// Which entries are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Those with these keys, where they exist.
    Keys(Vec<Arc<[u8]>>),
    /// The first ones in a range: from a key on, before another or to the end.
    Range {
        /// The first key.
        from: Vec<u8>,
        /// The key behind the last one.
        to: Option<Vec<u8>>,
        /// How many at most.
        limit: usize,
    },
}

/// Entries that were missed, as they are stored.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The number of the collection.
    pub number: u32,
    /// The entries that were wanted.
    pub wanted: Wanted,
    /// Keys and stored forms of those that exist, in the order of their keys.
    pub rows: Vec<(Arc<[u8]>, Vec<u8>)>,
    /// Whether there are no more in the range.
    pub is_end: bool,
}

impl Loaded {
    /// How many bytes of entries there are.
    pub fn bytes(&self) -> usize {
        self.rows.iter().map(|(_, stored)| stored.len()).sum()
    }

    /// For how many entries it counts, of those that one turn or query may have loaded: one also where there is none.
    pub fn entries(&self) -> usize {
        self.rows.len().max(1)
    }
}

/// Refuses more entries than one turn or query may have loaded.
///
/// # Errors
/// What to do, in words.
pub fn check_loaded(entries: usize, bytes: usize) -> Result<(), String> {
    if entries <= ENTRIES_PER_TURN_MAX && bytes <= LOADED_BYTES_MAX {
        return Ok(());
    }
    Err(format!(
        "one turn or query loads at most {ENTRIES_PER_TURN_MAX} entries of collections and {LOADED_BYTES_MAX} bytes \
         of them: read fewer, and go on in a signal of the entity to itself, or in the caller's next query"
    ))
}

/// How much of a collection code may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Entries too, [`ENTRIES_PER_TURN_MAX`] of them.
    Entries,
    /// No entries: what follows from a state must not depend on them.
    Lengths,
}

/// A reading that is refused; the turn fails. The payload of the unwinding.
#[derive(Debug)]
pub struct Refused(pub String);

struct Scope {
    access: Access,
    visited: usize,
    missed: Option<Miss>,
}

thread_local! {
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// Runs code that uses a state: a turn, a query, or what shows it.
///
/// # Errors
/// The entries that it lacks: then it is to be run again when they are there.
pub fn attempt<T>(access: Access, code: impl FnOnce() -> T) -> Result<T, Miss> {
    attempt_on(access, &mut 0, code)
}

/// The same for a part of a turn, where so many entries were reached by iterating before.
fn attempt_on<T>(access: Access, visited: &mut usize, code: impl FnOnce() -> T) -> Result<T, Miss> {
    let outer = SCOPE.replace(Some(Scope { access, visited: *visited, missed: None }));
    let result = catch_unwind(AssertUnwindSafe(code));
    let scope = SCOPE.replace(outer);
    *visited = scope.as_ref().map_or(0, |scope| scope.visited);
    match (scope.and_then(|scope| scope.missed), result) {
        (Some(miss), _) => Err(miss),
        (None, Ok(value)) => Ok(value),
        (None, Err(panic)) => resume_unwind(panic),
    }
}

/// A future that is attempted each time it is polled. Its output is what it lacks, or its own.
#[derive(Debug)]
pub struct Attempted<F> {
    running: F,
    visited: usize,
}

impl<F> Attempted<F> {
    /// Attempts a future.
    pub fn new(running: F) -> Self {
        Self { running, visited: 0 }
    }
}

impl<F: Future + Unpin> Future for Attempted<F> {
    type Output = Result<F::Output, Miss>;

    fn poll(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { running, visited } = &mut *self;
        match attempt_on(Access::Entries, visited, || Pin::new(running).poll(ctx)) {
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(miss) => Poll::Ready(Err(miss)),
        }
    }
}

/// Whether there is nobody who could load what is not in memory.
pub(super) fn is_outside() -> bool {
    SCOPE.with_borrow(Option::is_none)
}

/// Whether entries may be shown.
pub(crate) fn shows_entries() -> bool {
    SCOPE.with_borrow(|scope| scope.as_ref().is_none_or(|it| it.access == Access::Entries))
}

/// Gives the turn up, because it lacks entries.
pub(super) fn miss(miss: Miss) -> ! {
    let is_in_turn = SCOPE.with_borrow_mut(|scope| match scope {
        Some(scope) => {
            scope.missed = Some(miss);
            true
        }
        None => false,
    });
    match is_in_turn {
        true => resume_unwind(Box::new(Refused("entries are not in memory".to_owned()))),
        false => panic!("an entry of a collection is not in memory, and nothing can load it here"),
    }
}

/// Fails the turn.
pub(super) fn refuse(why: String) -> ! {
    resume_unwind(Box::new(Refused(why)))
}

/// Refuses to read entries where that is not allowed.
pub(super) fn begin_reading() {
    let is_refused =
        SCOPE.with_borrow(|scope| scope.as_ref().is_some_and(|it| it.access == Access::Lengths));
    if is_refused {
        refuse(
            "an index, `on_activate` and a state's default may use how many entries a collection has, and not \
             the entries"
                .to_owned(),
        );
    }
}

/// Counts an entry that was reached by iterating.
pub(super) fn visit() {
    let visited = SCOPE.with_borrow_mut(|scope| {
        scope.as_mut().map_or(0, |scope| {
            scope.visited += 1;
            scope.visited
        })
    });
    if visited > ENTRIES_PER_TURN_MAX {
        refuse(format!(
            "one turn or query iterates over at most {ENTRIES_PER_TURN_MAX} entries of collections: read a page, with \
             `range(..).take(n)`, and go on with the next one in a signal of the entity to itself, or in \
             the caller's next query"
        ));
    }
}
