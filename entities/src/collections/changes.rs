//! The changes of the collections of one state that a commit writes.

use std::{collections::BTreeMap, sync::Arc};

/// The key of an entry: the number of its collection, and bytes that sort as its keys do.
pub type EntryKey = (u32, Arc<[u8]>);

/// The keys of a collection from one on and before another, or to the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    /// The number of the collection.
    pub number: u32,
    /// The first key.
    pub from: Vec<u8>,
    /// The key behind the last one; none where there is no end.
    pub to: Option<Vec<u8>>,
}

impl KeyRange {
    /// All keys of a collection.
    pub fn all(number: u32) -> Self {
        Self { number, from: Vec::new(), to: None }
    }

    /// Whether a key is one of them.
    pub fn contains(&self, (number, key): &EntryKey) -> bool {
        *number == self.number
            && **key >= *self.from
            && self.to.as_ref().is_none_or(|to| **key < **to)
    }
}

/// The changes of a state's entries by a commit: first the ranges end, and then the entries are as they are
/// here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntryChanges {
    /// The entries that end by range.
    pub ended: Vec<KeyRange>,
    /// Entries in their stored form, and `None` for those that end.
    pub entries: BTreeMap<EntryKey, Option<Vec<u8>>>,
}

impl EntryChanges {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.ended.is_empty() && self.entries.is_empty()
    }

    /// Ends a range of entries, also those that were changed here.
    pub fn end(&mut self, range: KeyRange) {
        self.entries.retain(|key, _| !range.contains(key));
        self.ended.push(range);
    }

    /// Adds what was changed later.
    pub fn merge(&mut self, later: Self) {
        later.ended.into_iter().for_each(|range| self.end(range));
        self.entries.extend(later.entries);
    }

    /// About how many bytes it takes.
    pub fn bytes(&self) -> usize {
        let entry = |((_, key), value): (&EntryKey, &Option<Vec<u8>>)| {
            64 + key.len() + value.as_ref().map_or(0, Vec::len)
        };
        64 * self.ended.len() + self.entries.iter().map(entry).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: u8, value: u8) -> EntryChanges {
        let entries = BTreeMap::from([((1, Arc::from([key])), Some(vec![value]))]);
        EntryChanges { entries, ..EntryChanges::default() }
    }

    #[test]
    fn later_changes_win_and_ranges_end_what_came_before() {
        let mut changes = put(1, 1);
        changes.merge(put(2, 1));
        changes.merge(put(1, 2));
        let kept: Vec<_> = changes.entries.values().flatten().map(|value| value[0]).collect();
        assert_eq!(kept, [2, 1], "both entries, the last value of each");
        let range = KeyRange { number: 1, from: vec![0], to: Some(vec![2]) };
        changes.merge(EntryChanges { ended: vec![range], ..EntryChanges::default() });
        changes.merge(put(1, 3));
        let keys: Vec<_> = changes.entries.keys().map(|(_, key)| key[0]).collect();
        assert_eq!((keys, changes.ended.len()), (vec![1, 2], 1));
        changes.end(KeyRange::all(2));
        assert_eq!(changes.entries.len(), 2, "another collection's");
    }
}
