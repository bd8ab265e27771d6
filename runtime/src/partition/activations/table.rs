//! The activations by id. A turn looks its entity up about fifteen times, and a busy entity's turns follow
//! one another: the entry that was used last is found without a hash.

use slab::Slab;
use stead_entities::EntityId;

use super::Activation;
use crate::{map::Map, rules::Rule};

/// The entities in memory, each once.
#[derive(Default)]
pub(super) struct Table {
    places: Map<EntityId, usize>,
    /// Boxed, because slabs that have shrunk are half empty.
    entries: Slab<Box<Activation>>,
    /// The entry that was looked up last, if it is still there.
    last: Option<(EntityId, usize)>,
}

impl Table {
    pub(super) fn get(&self, id: &EntityId) -> Option<&Activation> {
        let place = match &self.last {
            Some((last, place)) if last == id => *place,
            _ => *self.places.get(id)?,
        };
        Some(&self.entries[place])
    }

    pub(super) fn get_mut(&mut self, id: &EntityId) -> Option<&mut Activation> {
        let place = match &self.last {
            Some((last, place)) if last == id => *place,
            _ => {
                let (id, place) = self.places.get_key_value(id)?;
                self.last = Some((id.clone(), *place));
                *place
            }
        };
        Some(&mut self.entries[place])
    }

    /// Adds an entity that is not there.
    pub(super) fn insert(&mut self, id: EntityId, activation: Activation) {
        let place = self.entries.insert(Box::new(activation));
        self.last = Some((id.clone(), place));
        Rule::EntityIsOnce.check(self.places.insert(id, place).is_none());
    }

    #[cfg(feature = "sabotage")]
    pub(super) fn remove(&mut self, id: &EntityId) {
        self.last = None;
        if let Some(place) = self.places.remove(id) {
            self.entries.remove(place);
        }
    }

    /// Removes the entities for which `keeps` is false.
    pub(super) fn retain(&mut self, mut keeps: impl FnMut(&EntityId, &Activation) -> bool) {
        self.last = None;
        let entries = &mut self.entries;
        self.places.retain(|id, place| {
            let is_kept = keeps(id, &entries[*place]);
            if !is_kept {
                entries.remove(*place);
            }
            is_kept
        });
        if self.places.capacity() > 4 * self.places.len().max(64) {
            self.places.shrink_to_fit();
            let mut entries = std::mem::take(&mut self.entries);
            self.entries.reserve_exact(entries.len());
            for place in self.places.values_mut() {
                *place = self.entries.insert(entries.remove(*place));
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Activation> {
        self.entries.iter().map(|(_, entry)| &**entry)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Activation> {
        self.entries.iter_mut().map(|(_, entry)| &mut **entry)
    }

    /// The entries in the order of their ids.
    pub(super) fn into_sorted(mut self) -> Vec<(EntityId, Box<Activation>)> {
        let mut places: Vec<_> = self.places.into_iter().collect();
        places.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        places.into_iter().map(|(id, place)| (id, self.entries.remove(place))).collect()
    }
}

#[cfg(test)]
mod tests {
    use stead_entities::Timestamp;

    use super::*;

    #[test]
    fn entries_are_found_by_id_whatever_was_removed_and_however_it_shrank() {
        let id = |number: u64| EntityId::new("log", &number.to_string()).expect("valid");
        let mut table = Table::default();
        let is_there = |table: &mut Table, number: u64, expected: bool| {
            let marked = |entry: Option<&Activation>| entry.map(Activation::unreleased);
            assert_eq!(marked(table.get(&id(number))), expected.then_some(number), "{number}");
            let found = table.get_mut(&id(number)).map(|entry| entry.unreleased());
            assert_eq!(found, expected.then_some(number), "{number}");
        };
        for number in 0..1_000 {
            let mut activation = Activation::loading(Timestamp::default());
            activation.hold_until(number);
            table.insert(id(number), activation);
            is_there(&mut table, number, true);
        }
        is_there(&mut table, 7, true);
        table.retain(|_, entry| entry.unreleased() % 100 == 0);
        for number in 0..1_000 {
            is_there(&mut table, number, number % 100 == 0);
        }
        assert_eq!((table.len(), table.values().count()), (10, 10));
        assert!(table.entries.capacity() < 64, "what was freed is given back");
        let sorted: Vec<_> = table.into_sorted().into_iter().map(|(id, _)| id).collect();
        assert!(sorted.is_sorted() && sorted.len() == 10);
    }
}
