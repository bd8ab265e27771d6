//! Entries in the order in which they were added.

use std::{borrow::Cow, fmt, ops::Range};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error as _},
};

use super::{
    Collection, ENTRIES_SHOWN_MAX, EntryChanges, Loaded,
    entries::{Entries, PAGE, end_range},
    form::{self, Shown},
    turn,
};
use crate::{Layout, Timestamp, state::LayoutText, stored::Checks};

/// How many of the newest entries stay in memory, where more were.
const TAIL: u64 = 100;
/// The most bytes of entries that a log has in memory before all but its tail leave.
const BYTES_MAX: usize = 1 << 20;
/// The most entries that one [`Log::trim_before`] ends.
const TRIMMED_MAX: u64 = 1_000;

/// Entries in the order in which they were added, each a row of its own: a field of a state that may have
/// millions of them. Entries are added at the end, and end at the beginning; none changes.
///
/// The first one has index 0, and no index is used again. The newest ones stay in memory; see
/// [`collections`](super) for what comes of a turn that reads others. A clone takes constant time. An entry has at
/// most [`ENTRY_BYTES_MAX`](super::ENTRY_BYTES_MAX) bytes; a turn that adds a larger one fails.
///
/// In JSON it is `{"length": 3, "entries": [{"index": 0, "at": …, "value": …}, …]}`, with the newest
/// [`ENTRIES_SHOWN_MAX`] entries; lists of entities show the length alone. A log that is read
/// from JSON has what is shown, and to read another entry of it panics.
///
/// ```
/// use std::time::Duration;
/// use stead_entities::{Context, Layout, Log, entity};
///
/// #[derive(Clone, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema, Layout)]
/// struct Room { messages: Log<String> }
///
/// #[entity(name = "room")]
/// impl Room {
///     pub fn say(&mut self, ctx: &mut Context, text: String) {
///         self.messages.push(ctx.now(), text);
///         self.messages.trim_to(10_000);
///     }
///     /// Up to 50 messages before an index: a page of the history.
///     pub fn before(&self, index: u64) -> Vec<String> {
///         let from = index.saturating_sub(50);
///         self.messages.range(from..index).map(|(_, message)| message.value.clone()).collect()
///     }
/// }
/// ```
pub struct Log<T> {
    entries: Entries<Logged<T>>,
    /// The index of the oldest entry, and the one that is stored.
    first: u64,
    stored_first: u64,
    /// When the newest entry was added.
    newest_at: Timestamp,
}

/// An entry of a [`Log`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Logged<T> {
    /// When it was added.
    pub at: Timestamp,
    /// The entry.
    pub value: T,
}

impl<T> Log<T> {
    /// A log without entries.
    pub fn new() -> Self {
        Self { entries: Entries::new(), first: 0, stored_first: 0, newest_at: Timestamp::default() }
    }

    /// How many entries it has.
    pub fn len(&self) -> u64 {
        self.entries.length
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The indexes of its entries: from the oldest one, up to the one that the next will have.
    pub fn indexes(&self) -> Range<u64> {
        self.first..self.first + self.len()
    }

    /// Adds an entry, and returns its index. `at` is the time of the turn, `ctx.now()`; times never go back.
    pub fn push(&mut self, at: Timestamp, value: T) -> u64
    where
        T: Serialize,
    {
        let index = self.indexes().end;
        self.newest_at = self.newest_at.max(at);
        self.entries.add(key(index), Logged { at: self.newest_at, value });
        index
    }

    /// The entry at an index, where it exists.
    pub fn get(&self, index: u64) -> Option<&Logged<T>> {
        self.indexes().contains(&index).then(|| self.entries.get(&key(index))).flatten()
    }

    /// The newest entry.
    pub fn last(&self) -> Option<&Logged<T>> {
        self.get(self.indexes().end.checked_sub(1)?)
    }

    /// The entries at these indexes that exist, the oldest first. A turn or query may reach
    /// [`ENTRIES_PER_TURN_MAX`](super::ENTRIES_PER_TURN_MAX) entries so, of all collections together.
    pub fn range(&self, indexes: Range<u64>) -> impl Iterator<Item = (u64, &Logged<T>)> {
        let Range { start, end } = self.indexes();
        let (from, to) = (indexes.start.max(start), indexes.end.min(end));
        Iter { entries: &self.entries, page: Vec::new().into_iter(), next: from, to }
    }

    /// The newest entries, the oldest of them first.
    pub fn newest(&self, count: u64) -> impl Iterator<Item = (u64, &Logged<T>)> {
        let Range { end, .. } = self.indexes();
        self.range(end.saturating_sub(count)..end)
    }

    /// All entries at these indexes, read at one time, however many there are.
    pub(crate) fn read(&self, indexes: Range<u64>) -> impl Iterator<Item = &T> {
        let Range { start, end } = self.indexes();
        let (from, to) = (indexes.start.max(start), indexes.end.min(end));
        let count = usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
        let all = self.entries.range((&key(from), Some(&key(to))), count, count);
        all.into_iter().map(|(_, entry)| &entry.value)
    }

    /// Has all entries leave memory that are stored.
    pub(crate) fn evict_all(&mut self) {
        self.entries.evict(None);
    }

    /// Ends the oldest entries until so many are left.
    pub fn trim_to(&mut self, count: u64) {
        self.trim_until(self.indexes().end.saturating_sub(count).max(self.first));
    }

    /// Ends the entries that were added before a time, the oldest first, at most 1,000 of them; says how many. Called
    /// with each entry that is added, it keeps up.
    pub fn trim_before(&mut self, at: Timestamp) -> u64 {
        let Range { start, end } = self.indexes();
        // Mostly there is nothing to do, and no more than one entry to read.
        if self.get(start).is_none_or(|oldest| oldest.at >= at) {
            return 0;
        }
        let mut until = start;
        'pages: while until < end.min(start + TRIMMED_MAX) {
            let (to, before) = ((until + PAGE as u64).min(end), until);
            for (_, entry) in self.entries.range((&key(until), Some(&key(to))), PAGE, PAGE) {
                if entry.at >= at {
                    break 'pages;
                }
                until += 1;
            }
            if until == before {
                break;
            }
        }
        let until = until.min(start + TRIMMED_MAX);
        self.trim_until(until);
        until - start
    }

    fn trim_until(&mut self, until: u64) {
        if until > self.first {
            self.entries.forget(&key(self.first), &key(until), until - self.first);
            self.first = until;
        }
    }

    /// Ends all entries, also those that are not in memory. The next one has the next index.
    pub fn clear(&mut self) {
        self.trim_to(0);
    }
}

/// The key of an index.
pub(crate) fn key(index: u64) -> Vec<u8> {
    index.to_be_bytes().to_vec()
}

fn index_of(key: &[u8]) -> u64 {
    key.try_into().map_or(0, u64::from_be_bytes)
}

/// Reads entries a page at a time.
struct Iter<'l, T> {
    entries: &'l Entries<Logged<T>>,
    page: std::vec::IntoIter<(&'l [u8], &'l Logged<T>)>,
    /// The index at which the next page begins.
    next: u64,
    to: u64,
}

impl<'l, T> Iterator for Iter<'l, T> {
    type Item = (u64, &'l Logged<T>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.page.len() == 0 {
            if self.next >= self.to {
                return None;
            }
            let range = (&key(self.next)[..], Some(&key(self.to)[..]));
            let page = self.entries.range(range, PAGE, 1);
            self.next = page.last().map_or(self.to, |(key, _)| index_of(key) + 1);
            self.page = page.into_iter();
        }
        let (key, entry) = self.page.next()?;
        turn::visit();
        Some((index_of(key), entry))
    }
}

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self::new()
    }
}
impl<T> Clone for Log<T> {
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone(), ..*self }
    }
}
impl<T> fmt::Debug for Log<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("indexes", &self.indexes()).finish_non_exhaustive()
    }
}
/// Compares all entries, and their indexes; outside of turns and queries, where nothing can be loaded, those that both
/// have in memory.
impl<T: PartialEq> PartialEq for Log<T> {
    fn eq(&self, other: &Self) -> bool {
        let all = self.indexes();
        all == other.indexes()
            && match turn::is_outside() {
                true => self.entries.agrees_with(&other.entries),
                false => self.range(all.clone()).eq(other.range(all)),
            }
    }
}
impl<T: Eq> Eq for Log<T> {}

impl<T: Serialize + DeserializeOwned + Send + Sync> Collection for Log<T> {
    fn number(&self) -> u32 {
        self.entries.number
    }
    fn length(&self) -> u64 {
        self.len()
    }
    fn bytes(&self) -> usize {
        self.entries.bytes()
    }
    fn renumber(&mut self, number: u32) -> Result<(), String> {
        self.entries.renumber(number)?;
        self.stored_first = self.first;
        Ok(())
    }
    fn check(&mut self, checks: Checks, is_proven: bool) -> Result<usize, String> {
        let first = self.first;
        self.entries.check(checks, is_proven, |of| index_of(of) < first)
    }
    fn seal(&mut self, changes: &mut EntryChanges, checks: Checks) -> Result<(), String> {
        let (number, first) = (self.entries.number, self.first);
        end_range(changes, number, (self.stored_first, first), key);
        self.stored_first = first;
        self.entries.seal(changes, checks, |of| index_of(of) < first)
    }
    fn evict(&mut self, bytes_max: usize) {
        if self.entries.is_over(bytes_max.min(BYTES_MAX)) {
            let Range { start, end } = self.indexes();
            self.entries.evict(Some(&key(end.saturating_sub(TAIL).max(start))));
        }
    }
    fn supply(&mut self, loaded: &Loaded) -> Result<(), String> {
        self.entries.supply(loaded, |_| None)
    }
}

impl<T: Layout + Serialize + DeserializeOwned + Send + Sync> Layout for Log<T> {
    const CHECK: () = T::CHECK;
    fn describe(layout: &mut LayoutText) {
        layout.collection("log of rows", |layout| layout.part::<T>("[]"));
    }
    fn each_collection(&mut self, each: &mut dyn FnMut(&mut dyn Collection)) {
        each(self);
    }
}

impl<T: Serialize> Serialize for Log<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let rest = (self.len(), self.first, self.newest_at);
        form::write(serializer, (self.entries.number, rest), self.len(), &Page(self))
    }
}

struct Page<'l, T>(&'l Log<T>);

impl<T: Serialize> Serialize for Page<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Range { start, end } = self.0.indexes();
        let from = end.saturating_sub(ENTRIES_SHOWN_MAX as u64).max(start);
        let page = self.0.entries.range(
            (&key(from), Some(&key(end))),
            ENTRIES_SHOWN_MAX,
            ENTRIES_SHOWN_MAX,
        );
        serializer.collect_seq(page.into_iter().map(|(key, Logged { at, value })| ShownEntry {
            index: index_of(key),
            at: *at,
            value,
        }))
    }
}

/// An entry as JSON shows it.
#[derive(Serialize, Deserialize)]
struct ShownEntry<T> {
    index: u64,
    at: Timestamp,
    value: T,
}

impl<'de, T: DeserializeOwned + Serialize> Deserialize<'de> for Log<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            let (number, (length, first, newest_at)) =
                <(u32, (u64, u64, Timestamp))>::deserialize(deserializer)?;
            let mut entries = Entries::stored(number, length);
            entries.know_end(key(first
                .checked_add(length)
                .ok_or_else(|| D::Error::custom("no log is so long"))?));
            return Ok(Self { entries, first, stored_first: first, newest_at });
        }
        let Shown { length, entries } = Shown::<Vec<ShownEntry<T>>>::deserialize(deserializer)?;
        let mut log = Self::new();
        let (lacking, from) = match (entries.first(), length.checked_sub(entries.len() as u64)) {
            (_, None) => return Err(D::Error::custom("a log has fewer entries than are shown")),
            (None, Some(lacking)) => (lacking, lacking),
            (Some(first), Some(lacking)) => (lacking, first.index),
        };
        log.first = from;
        for ShownEntry { at, value, .. } in entries {
            log.push(at, value);
        }
        log.first = from.saturating_sub(lacking);
        log.stored_first = log.first;
        log.entries.lack(lacking, |_| (key(from), None));
        Ok(log)
    }
}

impl<T: JsonSchema> JsonSchema for Log<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("Log_of_{}", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (value, at) = (generator.subschema_for::<T>(), generator.subschema_for::<Timestamp>());
        json_schema!({
            "type": "object",
            "description": "A log: how many entries it has, and the newest of them.",
            "properties": {
                "length": { "type": "integer", "minimum": 0 },
                "entries": {
                    "type": "array",
                    "maxItems": ENTRIES_SHOWN_MAX,
                    "items": {
                        "type": "object",
                        "properties": {
                            "index": { "type": "integer", "minimum": 0 },
                            "at": at,
                            "value": value,
                        },
                        "required": ["index", "at", "value"],
                    },
                },
            },
            "required": ["length"],
        })
    }
}
