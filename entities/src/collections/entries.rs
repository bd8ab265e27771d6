//! The part of one collection that is in memory: entries by their keys, which of them were changed, and where it is known
//! that there are no others.

use std::{collections::BTreeSet, ops::Bound, sync::Arc};

use rpds::{ListSync, RedBlackTreeMapSync};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    ENTRY_BYTES_MAX,
    changes::{EntryChanges, KeyRange},
    turn::{self, Loaded, Miss, Wanted, check_loaded},
};
use crate::stored::{self, Checks};

/// About how many bytes an entry takes in memory beside its stored form and its key.
const BESIDE: usize = 192;
/// The most ranges of which it is known that nothing else is in them, before entries leave memory.
const SPANS_MAX: usize = 64;
/// How many entries are read ahead where they are iterated over, and asked for at least where a range goes on.
pub(super) const PAGE: usize = 128;
/// How many entries end one by one; more end as a range.
const ENDED_SINGLY_MAX: u64 = 64;

/// The entries of a collection.
#[derive(Debug)]
pub(super) struct Entries<T> {
    /// 0 where it was not stored yet.
    pub(super) number: u32,
    pub(super) length: u64,
    held: RedBlackTreeMapSync<Arc<[u8]>, Held<T>>,
    /// Whether what is not held does not exist.
    is_whole: bool,
    /// The ranges of which that is so, in order; none of most collections.
    known: Option<Arc<Vec<Span>>>,
    /// The changes since the last seal, the last one first.
    changed: ListSync<(Arc<[u8]>, Held<T>)>,
    /// How many of them were checked.
    checked: usize,
    bytes: usize,
}

/// An entry that is known.
#[derive(Debug)]
enum Held<T> {
    /// With the bytes of its stored form; as many as a number can say, where it has none.
    Present(Arc<T>, u32),
    Absent,
}

impl<T> Held<T> {
    /// The bytes that are counted for it, with its key.
    fn bytes(&self, key: &[u8]) -> usize {
        let stored = match self {
            Self::Present(_, stored) => *stored,
            Self::Absent => 0,
        };
        BESIDE + key.len() + stored as usize
    }
}

/// Keys from one on, and before another or to the end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    from: Vec<u8>,
    to: Option<Vec<u8>>,
}

impl<T> Clone for Held<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Present(item, stored) => Self::Present(item.clone(), *stored),
            Self::Absent => Self::Absent,
        }
    }
}

impl<T> Clone for Entries<T> {
    fn clone(&self) -> Self {
        Self {
            number: self.number,
            length: self.length,
            held: self.held.clone(),
            is_whole: self.is_whole,
            known: self.known.clone(),
            changed: self.changed.clone(),
            checked: self.checked,
            bytes: self.bytes,
        }
    }
}

impl<T> Entries<T> {
    /// Those of a new collection.
    pub(super) fn new() -> Self {
        Self { is_whole: true, ..Self::stored(0, 0) }
    }

    /// Those of a stored collection, of which nothing is in memory.
    pub(super) fn stored(number: u32, length: u64) -> Self {
        Self {
            number,
            length,
            held: RedBlackTreeMapSync::new_sync(),
            is_whole: length == 0,
            known: None,
            changed: ListSync::new_sync(),
            checked: 0,
            bytes: 0,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether more is in memory than should stay there.
    pub(super) fn is_over(&self, bytes_max: usize) -> bool {
        self.bytes > bytes_max || self.known().len() > SPANS_MAX
    }

    /// Notes that there is nothing from a key on but what is held.
    pub(super) fn know_end(&mut self, from: Vec<u8>) {
        self.know(Span { from, to: None });
    }

    /// An entry, where it exists. Gives the turn up where that is not known.
    pub(super) fn get(&self, key: &[u8]) -> Option<&T> {
        turn::begin_reading();
        match self.find(key) {
            Some(found) => found,
            None => self.miss(Wanted::Keys(vec![key.into()])),
        }
    }

    /// Has all of these entries in memory. Gives the turn up where some are not.
    pub(super) fn fetch(&self, keys: &[Vec<u8>]) {
        turn::begin_reading();
        let lacking = keys.iter().filter(|key| self.find(key).is_none());
        let lacking: Vec<Arc<[u8]>> = lacking.map(|key| key[..].into()).collect();
        check_loaded(lacking.len(), 0).unwrap_or_else(|why| turn::refuse(why));
        if !lacking.is_empty() {
            self.miss(Wanted::Keys(lacking));
        }
    }

    /// An entry, where it exists; `None` where that is not known.
    fn find(&self, key: &[u8]) -> Option<Option<&T>> {
        match self.held.get(key) {
            Some(Held::Present(item, _)) => Some(Some(item)),
            Some(Held::Absent) => Some(None),
            None => (self.is_whole || self.span_of(key).is_some()).then_some(None),
        }
    }

    /// The first entries from a key on, and before another. Gives the turn up where fewer of them are known than
    /// `least`.
    pub(super) fn range(
        &self,
        (from, to): (&[u8], Option<&[u8]>),
        limit: usize,
        least: usize,
    ) -> Vec<(&[u8], &T)> {
        turn::begin_reading();
        if to.is_some_and(|to| to <= from) {
            return Vec::new();
        }
        let known_to = match self.is_whole {
            true => to,
            false => match self.span_of(from) {
                Some(span) => match (span.to.as_deref(), to) {
                    (Some(known), Some(to)) => Some(known.min(to)),
                    (known, to) => known.or(to),
                },
                None => Some(from),
            },
        };
        let end = known_to.map_or(Bound::Unbounded, Bound::Excluded);
        let held = self.held.range::<[u8], _>((Bound::Included(from), end));
        let present = held.filter_map(|(key, held)| match held {
            Held::Present(item, _) => Some((&**key, &**item)),
            Held::Absent => None,
        });
        let found: Vec<_> = present.take(limit).collect();
        if found.len() < least && known_to != to {
            let from = known_to.unwrap_or_default().to_vec();
            let limit = (limit - found.len()).max(PAGE);
            self.miss(Wanted::Range { from, to: to.map(<[u8]>::to_vec), limit });
        }
        found
    }

    fn miss(&self, wanted: Wanted) -> ! {
        turn::miss(Miss { number: self.number, wanted })
    }

    /// Ends an entry. Gives the turn up where it is not known whether there is one.
    pub(super) fn remove(&mut self, key: &[u8]) -> bool {
        let (was_there, counted) = self.look(key);
        if was_there {
            self.length -= 1;
            self.set(key.into(), Held::Absent, counted);
        }
        was_there
    }

    /// Whether there is an entry, and the bytes that are counted for what is held of it. Gives the turn up where it is
    /// not known.
    fn look(&self, key: &[u8]) -> (bool, usize) {
        turn::begin_reading();
        match self.held.get(key) {
            Some(held) => (matches!(held, Held::Present(..)), held.bytes(key)),
            None if self.is_whole || self.span_of(key).is_some() => (false, 0),
            None => self.miss(Wanted::Keys(vec![key.into()])),
        }
    }

    /// Ends entries that exist, from a key on and before another, whether they are in memory or not. The changes
    /// are for the caller to hand over.
    pub(super) fn forget(&mut self, from: &[u8], to: &[u8], count: u64) {
        self.length -= count;
        let ended: Vec<_> = self
            .held
            .range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)))
            .map(|(key, _)| key.clone())
            .collect();
        for key in ended {
            self.hold(key, None);
        }
        self.know(Span { from: from.to_vec(), to: Some(to.to_vec()) });
    }

    /// Changes an entry, for which so many bytes are counted.
    fn set(&mut self, key: Arc<[u8]>, held: Held<T>, counted: usize) {
        self.changed.push_front_mut((key.clone(), held.clone()));
        self.put(key, Some(held), counted);
    }

    /// Has an entry in memory, or no more.
    fn hold(&mut self, key: Arc<[u8]>, held: Option<Held<T>>) {
        let counted = self.held.get(&*key).map_or(0, |held| held.bytes(&key));
        self.put(key, held, counted);
    }

    fn put(&mut self, key: Arc<[u8]>, held: Option<Held<T>>, counted: usize) {
        // What a whole collection does not hold does not exist.
        let held = held.filter(|held| !(self.is_whole && matches!(held, Held::Absent)));
        self.bytes -= counted;
        self.bytes += held.as_ref().map_or(0, |held| held.bytes(&key));
        match held {
            Some(held) => self.held.insert_mut(key, held),
            None => drop(self.held.remove_mut(&*key)),
        }
    }

    fn known(&self) -> &[Span] {
        self.known.as_deref().map_or(&[], Vec::as_slice)
    }

    fn span_of(&self, key: &[u8]) -> Option<&Span> {
        let place = self.known().partition_point(|span| *span.from <= *key);
        let span = place.checked_sub(1).and_then(|place| self.known().get(place))?;
        span.to.as_ref().is_none_or(|to| *key < **to).then_some(span)
    }

    fn know(&mut self, span: Span) {
        if self.is_whole || span.to.as_ref().is_some_and(|to| *to <= span.from) {
            return;
        }
        let mut spans = self.known.take().map(Arc::unwrap_or_clone).unwrap_or_default();
        spans.push(span);
        spans.sort_by(|one, other| one.from.cmp(&other.from));
        let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
        for span in spans {
            match merged.last_mut() {
                Some(last) if last.to.as_ref().is_none_or(|to| span.from <= *to) => {
                    last.to = match (last.to.take(), span.to) {
                        (Some(one), Some(other)) => Some(one.max(other)),
                        _ => None,
                    };
                }
                _ => merged.push(span),
            }
        }
        if let [Span { from, to: None }] = &merged[..]
            && from.is_empty()
        {
            self.is_whole = true;
            merged.clear();
        }
        self.known = (!merged.is_empty()).then(|| Arc::new(merged));
    }

    pub(super) fn renumber(&mut self, number: u32) -> Result<(), String> {
        if !self.is_whole {
            return Err("the state has a copy of a collection whose entries are not all in memory: copy the \
                        entries, some in each turn"
                .to_owned());
        }
        if self.number != 0 {
            let all = self.held.iter().map(|(key, held)| (key.clone(), held.clone()));
            (self.changed, self.checked) = (all.collect(), 0);
        }
        self.number = number;
        Ok(())
    }

    /// Whether the entries are the same that both have in memory.
    pub(super) fn agrees_with(&self, other: &Self) -> bool
    where
        T: PartialEq,
    {
        self.held.iter().all(|(key, held)| {
            let found = other.find(key);
            match held {
                Held::Present(item, _) => found.is_none_or(|other| other == Some(&**item)),
                Held::Absent => found.is_none_or(|other| other.is_none()),
            }
        })
    }

    /// Lacks entries that nobody can supply: all that is known is in a range, from the key of the last one held.
    pub(super) fn lack(
        &mut self,
        count: u64,
        range: impl FnOnce(Option<&[u8]>) -> (Vec<u8>, Option<Vec<u8>>),
    ) {
        if count == 0 {
            return;
        }
        let (from, to) = range(self.held.last().map(|(key, _)| &**key));
        (self.is_whole, self.length) = (false, self.length + count);
        match (from.is_empty(), to) {
            (true, None) => {}
            (_, to) => self.know(Span { from, to }),
        }
    }

    /// Has nothing in memory from before a key but what was changed, or nothing at all.
    pub(super) fn evict(&mut self, before: Option<&[u8]>) {
        if !self.changed.is_empty() {
            return;
        }
        let whole = std::mem::replace(self, Self::stored(self.number, self.length));
        let Some(from) = before else { return };
        if !(whole.is_whole || whole.span_of(from).is_some_and(|span| span.to.is_none())) {
            return;
        }
        let kept = whole.held.range::<[u8], _>((Bound::Included(from), Bound::Unbounded));
        for (key, held) in kept {
            self.hold(key.clone(), Some(held.clone()));
        }
        self.know_end(from.to_vec());
    }
}

impl<T: Serialize> Entries<T> {
    /// Sets an entry; says whether it is a new one. Gives the turn up where that is not known.
    pub(super) fn insert(&mut self, key: Vec<u8>, item: T) -> bool {
        let (was_there, counted) = self.look(&key);
        self.length += u64::from(!was_there);
        self.set(key.into(), sized(item), counted);
        !was_there
    }

    /// Adds an entry whose key is known to be new.
    pub(super) fn add(&mut self, key: Vec<u8>, item: T) {
        self.length += 1;
        self.set(key.into(), sized(item), 0);
    }

    /// Checks the entries that were changed since the last time, but for those that `has_ended` says of; returns how
    /// many bytes they take.
    pub(super) fn check(
        &mut self,
        checks: Checks,
        is_proven: bool,
        has_ended: impl Fn(&[u8]) -> bool,
    ) -> Result<usize, String>
    where
        T: DeserializeOwned,
    {
        let unchecked = self.changed.len() - self.checked;
        let mut bytes = 0;
        for (key, held) in newest(self.changed.iter().take(unchecked), has_ended) {
            bytes += key.len();
            let Held::Present(item, size) = held else { continue };
            let unstorable =
                |error: stored::Unreadable| format!("an entry cannot be stored: {error}");
            let size = match *size {
                u32::MAX => stored::size(&**item).map_err(unstorable)?,
                size => size as usize,
            };
            if size > ENTRY_BYTES_MAX {
                let limit = ENTRY_BYTES_MAX;
                return Err(format!(
                    "an entry of a collection has {size} bytes, the limit is {limit}"
                ));
            }
            match is_proven {
                true => checks.check_json(&**item)?,
                false => checks.prove(&**item, &stored::encode(&**item).map_err(unstorable)?)?,
            }
            bytes += size;
        }
        self.checked = self.changed.len();
        Ok(bytes)
    }

    /// Hands over what was changed since the last time, but for entries that `has_ended` says of.
    pub(super) fn seal(
        &mut self,
        changes: &mut EntryChanges,
        checks: Checks,
        has_ended: impl Fn(&[u8]) -> bool,
    ) -> Result<(), String>
    where
        T: DeserializeOwned,
    {
        // What no turn has changed, such as the first state, was not checked.
        self.check(checks, true, &has_ended)?;
        let changed = std::mem::replace(&mut self.changed, ListSync::new_sync());
        self.checked = 0;
        for (key, held) in newest(changed.iter(), has_ended) {
            let stored = match held {
                Held::Present(item, _) => {
                    let stored = stored::encode(&**item).map_err(|error| error.to_string())?;
                    checks.prove_stored::<T>(&stored)?;
                    Some(stored)
                }
                Held::Absent => None,
            };
            changes.entries.insert((self.number, key.clone()), stored);
        }
        Ok(())
    }
}

impl<T: DeserializeOwned> Entries<T> {
    /// Takes entries that were missed; `key_of` computes the key of each from what it holds.
    pub(super) fn supply(
        &mut self,
        loaded: &Loaded,
        key_of: impl Fn(&T) -> Option<Vec<u8>>,
    ) -> Result<(), String> {
        for (key, stored) in &loaded.rows {
            let item: T = stored::decode(stored).map_err(|error| error.to_string())?;
            if key_of(&item).is_some_and(|of| *of != **key) {
                return Err("an entry has another key than its row".to_owned());
            }
            if self.held.get(&**key).is_none() {
                self.hold(key.clone(), Some(Held::Present(Arc::new(item), bytes_of(stored.len()))));
            }
        }
        match &loaded.wanted {
            Wanted::Keys(keys) => {
                for key in keys {
                    if self.held.get(&**key).is_none() {
                        self.hold(key.clone(), Some(Held::Absent));
                    }
                }
            }
            Wanted::Range { from, to, .. } => {
                let known_to = match (loaded.is_end, loaded.rows.last()) {
                    (true, _) => to.clone(),
                    (false, Some((last, _))) => Some([last, &[0][..]].concat()),
                    (false, None) => return Err("a page of entries has none".to_owned()),
                };
                self.know(Span { from: from.clone(), to: known_to });
            }
        }
        Ok(())
    }
}

/// The entries from a key on and before another, which ended together.
pub(super) fn end_range(
    changes: &mut EntryChanges,
    number: u32,
    (from, to): (u64, u64),
    key: impl Fn(u64) -> Vec<u8>,
) {
    if to - from > ENDED_SINGLY_MAX {
        changes.end(KeyRange { number, from: key(from), to: Some(key(to)) });
    } else {
        changes.entries.extend((from..to).map(|index| ((number, key(index).into()), None)));
    }
}

/// An entry that is set.
fn sized<T: Serialize>(item: T) -> Held<T> {
    let size = stored::size(&item).map_or(u32::MAX, bytes_of);
    Held::Present(Arc::new(item), size)
}

fn bytes_of(stored: usize) -> u32 {
    u32::try_from(stored).unwrap_or(u32::MAX)
}

/// Of changes, the last of which comes first, the last of each entry that has not ended.
fn newest<'c, T: 'c>(
    changes: impl Iterator<Item = &'c (Arc<[u8]>, Held<T>)>,
    has_ended: impl Fn(&[u8]) -> bool,
) -> impl Iterator<Item = &'c (Arc<[u8]>, Held<T>)> {
    let mut seen = BTreeSet::new();
    changes.filter(move |(key, _)| !has_ended(key) && seen.insert(key.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether exactly what is held is counted.
    fn assert_counted(entries: &Entries<String>) {
        let counted: usize = entries.held.iter().map(|(key, held)| held.bytes(key)).sum();
        assert_eq!(entries.bytes, counted);
    }

    #[test]
    fn what_is_counted_is_what_is_in_memory_also_of_copies() {
        let checks = Checks::of::<String>();
        let seal = |entries: &mut Entries<String>| {
            entries.seal(&mut EntryChanges::default(), checks, |_| false).expect("storable");
        };
        let mut one = Entries::new();
        one.number = 1;
        for round in 0..60_u8 {
            one.insert(vec![round % 7], "x".repeat(40 * usize::from(round)));
            one.insert(vec![100], "y".repeat(1_000));
            one.remove(&[round % 5]);
            let mut other = one.clone();
            other.renumber(2).expect("all of it is in memory");
            if round % 2 == 0 {
                one.check(checks, true, |_| false).expect("storable");
                seal(&mut one);
            }
            seal(&mut other);
            other.remove(&[100]);
            assert_counted(&other);
            seal(&mut one);
            assert_counted(&one);
            one.evict(if round % 3 == 0 { None } else { Some(&[3]) });
            assert_counted(&one);
            let wanted = Wanted::Range { from: Vec::new(), to: None, limit: 9 };
            let stored = |it: &(Arc<[u8]>, Held<String>)| match &it.1 {
                Held::Present(item, _) => Some((it.0.clone(), stored::encode(&**item).ok()?)),
                Held::Absent => None,
            };
            let held = other.held.iter().map(|(key, held)| (key.clone(), held.clone()));
            let rows = held.filter_map(|it| stored(&it)).collect();
            let loaded = Loaded { number: 1, wanted, rows, is_end: true };
            one.supply(&loaded, |_| None).expect("whole");
            one.length =
                one.held.iter().filter(|(_, it)| matches!(it, Held::Present(..))).count() as u64;
            assert_counted(&one);
        }
    }

    #[test]
    fn an_entry_that_changes_often_in_one_turn_counts_once() {
        let mut entries = Entries::new();
        for round in 0..20 {
            entries.insert(vec![1], format!("{round}").repeat(1_000));
        }
        let bytes = entries.check(Checks::of::<String>(), true, |_| false).expect("storable");
        assert_eq!(bytes, 1 + 3 + 2_000);
    }
}
