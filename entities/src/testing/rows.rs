//! The entries of a driven entity's collections, as a store has them.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Error, ErrorKind, Layout,
    collections::{self, Access, EntryChanges, EntryKey, KeyRange, Loaded, Miss, Wanted},
    stored,
};

/// Stored entries by key.
#[derive(Debug, Default)]
pub(super) struct Rows {
    entries: BTreeMap<EntryKey, Vec<u8>>,
    /// The number and length of each collection.
    pub(super) collections: Vec<(u32, u64)>,
    /// Whether a state stays in memory between turns, with what it has there.
    pub(super) is_warm: bool,
}

impl Rows {
    /// Takes what a turn changed.
    pub(super) fn apply(&mut self, changes: EntryChanges) {
        for range in &changes.ended {
            self.entries.retain(|key, _| !range.contains(key));
        }
        for (key, stored) in changes.entries {
            match stored {
                Some(stored) => drop(self.entries.insert(key, stored)),
                None => drop(self.entries.remove(&key)),
            }
        }
    }

    fn load(&self, miss: &Miss) -> Loaded {
        let Miss { number, wanted } = miss.clone();
        let found = |key: &Arc<[u8]>| {
            Some((key.clone(), self.entries.get(&(number, key.clone()))?.clone()))
        };
        let (rows, is_end) = match &wanted {
            Wanted::Keys(keys) => (keys.iter().filter_map(found).collect(), true),
            Wanted::Range { from, to, limit } => {
                let range = KeyRange { number, from: from.clone(), to: to.clone() };
                let behind = self.entries.range((number, from[..].into())..);
                let mut within = behind.take_while(|(key, _)| range.contains(key));
                let within_limit = within.by_ref().take(*limit);
                let rows = within_limit.map(|((_, key), row)| (key.clone(), row.clone())).collect();
                (rows, within.next().is_none())
            }
        };
        Loaded { number, wanted, rows, is_end }
    }

    /// A state as a store has it, with nothing of its collections in memory but what was missed so far.
    pub(super) fn copy<E>(
        &self,
        state: &E,
        missed: &[Miss],
        ready: &dyn Fn(&mut E),
    ) -> Result<E, String>
    where
        E: Clone + Layout + Serialize + DeserializeOwned,
    {
        if self.collections.is_empty() {
            return Ok(state.clone());
        }
        let mut copy = match self.is_warm {
            true => state.clone(),
            false => {
                let stored = stored::encode(state).map_err(|error| error.to_string())?;
                let mut copy: E = stored::decode(&stored).map_err(|error| error.to_string())?;
                ready(&mut copy);
                copy
            }
        };
        missed.iter().try_for_each(|miss| collections::supply(&mut copy, &self.load(miss)))?;
        Ok(copy)
    }

    /// A state with everything in memory.
    pub(super) fn whole<E>(&self, state: &E, ready: &dyn Fn(&mut E)) -> Result<E, String>
    where
        E: Clone + Layout + Serialize + DeserializeOwned,
    {
        let all = Wanted::Range { from: Vec::new(), to: None, limit: usize::MAX };
        let all = self
            .collections
            .iter()
            .map(|(number, _)| Miss { number: *number, wanted: all.clone() });
        self.copy(state, &all.collect::<Vec<_>>(), ready)
    }

    /// Runs code on a copy of a state until it lacks nothing.
    pub(super) fn attempt<E, T>(
        &self,
        state: &E,
        ready: &dyn Fn(&mut E),
        code: impl Fn(E) -> T,
    ) -> Result<T, Error>
    where
        E: Clone + Layout + Serialize + DeserializeOwned,
    {
        let mut missed = Vec::new();
        loop {
            let copy = self.copy(state, &missed, ready);
            let copy = copy.map_err(|why| Error::new(ErrorKind::Internal, why))?;
            match collections::attempt(Access::Entries, || code(copy)) {
                Ok(done) => return Ok(done),
                Err(miss) => missed.push(miss),
            }
        }
    }
}
