//! Whether what indexes have, and which entries of collections there are, is what the states say: recomputed for
//! tests, from one view of the store.

use std::collections::{BTreeMap, BTreeSet};

use stead_entities::{EntityId, Error};

use super::Inner;
use crate::{
    store::{
        Haste, Limit, ReadResult, Rows, TypedReads as _, find,
        tables::{self, Record as _, Table, indexes::IndexedValues, states::StateRecord},
    },
    types::EntityType,
};

/// How many states are read at one time.
const PAGE: usize = 10_000;

/// The rows of a type in one view of the store.
#[derive(Default)]
struct Stored {
    states: Vec<(EntityId, StateRecord)>,
    /// The values in the rows of indexes, by their keys.
    rows: BTreeMap<Vec<u8>, IndexedValues>,
    /// How many entries there are of each collection of a generation; number 0 is the state itself.
    entries: BTreeMap<(EntityId, u64, u32), u64>,
    /// The indexes and partitions that are noted as not indexed.
    notes: BTreeSet<(String, u16)>,
}

/// Compares every index, and the entries of every collection, with the stored states, and returns what differs.
pub(super) async fn check(node: &Inner) -> Result<Vec<String>, Error> {
    let mut problems = Vec::new();
    for known in node.host.types().values() {
        let (name, version) = (known.name(), known.version());
        let indexes: Vec<_> = known.indexes().iter().map(|of| of.name.to_owned()).collect();
        let read = move |rows: &dyn Rows| stored(rows, name, version, &indexes);
        let stored = node.host.store().read(Haste::Long, read).await?;
        let (mut rows, mut entries) = (stored.rows, stored.entries);
        for (id, record) in stored.states {
            problems.extend(differing_entries(&id, &record, &mut entries));
            for (index, value) in record.indexed.iter() {
                match rows.remove(&tables::indexes::key(index, value, &id)) {
                    Some(has) if has == record.indexed => {}
                    Some(_) => problems.push(format!("{id}: a row of {index} has other values")),
                    None => problems.push(format!("{id}: the row of {index} is missing")),
                }
            }
            let partition = node.host.partition_of(&id);
            let is_noted = |index: &str| stored.notes.contains(&(index.to_owned(), partition));
            let found = differences(&**known, &record, is_noted);
            problems.extend(found.into_iter().map(|why| format!("{id}: {why}")));
        }
        let left = entries.into_iter().map(|((id, generation, number), count)| {
            format!("{id}: {count} entries of collection {number} of generation {generation} without their state")
        });
        problems.extend(left);
        problems.extend(rows.into_keys().map(|key| match tables::indexes::read_key(&key) {
            Ok(key) => format!("{}: a row of {} without its state", key.id, key.index),
            Err(error) => format!("{name}: a row of an index cannot be read: {error}"),
        }));
    }
    Ok(problems)
}

fn stored(rows: &dyn Rows, name: &str, version: u32, indexes: &[String]) -> ReadResult<Stored> {
    let (mut stored, mut after) = (Stored::default(), None::<String>);
    loop {
        let page = find::all_states(rows, name, after.as_deref(), PAGE)?;
        after = page.last_before_more().map(|(id, _)| id.key().to_owned());
        let readable = page.rows.into_iter().filter_map(|(id, record)| Some((id, record.ok()?)));
        stored.states.extend(readable);
        if after.is_none() {
            break;
        }
    }
    let from = [name.as_bytes(), &[0]].concat();
    let to = tables::key::after(&from);
    rows.scan(Table::Indexes, &from, &to, Limit::all(), &mut |key, value| {
        stored.rows.insert(key.to_vec(), IndexedValues::decode(value)?);
        Ok(true)
    })?;
    let from = [name.as_bytes(), b"/"].concat();
    let to = tables::key::after(&from);
    rows.scan(Table::Entries, &from, &to, Limit::all(), &mut |key, _| {
        let (id, generation, (number, _)) = tables::entries::read_key(key)?;
        *stored.entries.entry((id, generation, number)).or_default() += 1;
        Ok(true)
    })?;
    for index in indexes {
        let partitions = find::not_indexed(rows, name, index, version)?;
        stored.notes.extend(partitions.into_iter().map(|partition| (index.clone(), partition)));
    }
    Ok(stored)
}

/// The collections of a state that have more or fewer entries than it says.
fn differing_entries(
    id: &EntityId,
    record: &StateRecord,
    entries: &mut BTreeMap<(EntityId, u64, u32), u64>,
) -> Vec<String> {
    let generation = record.head.generation;
    let body = (0, u64::from(record.apart.body));
    let lengths = record.apart.collections.iter().copied().chain([body]);
    let differing = lengths.filter_map(|(number, length)| {
        let found = entries.remove(&(id.clone(), generation, number)).unwrap_or(0);
        (found != length)
            .then(|| format!("{id}: collection {number} has {found} entries and not {length}"))
    });
    differing.collect()
}

/// The differences between the indexed values of a record and what its state says.
fn differences(
    known: &dyn EntityType,
    record: &StateRecord,
    is_noted: impl Fn(&str) -> bool,
) -> Vec<String> {
    let decoded = known.decode_state(record.head.version, &record.state).ok();
    let computed = decoded.map(|state| known.indexed(&state).0).unwrap_or_default();
    let is_present = record.head.version == known.version();
    let mut found = Vec::new();
    for (index, value) in computed.iter() {
        match record.indexed.get(index) {
            Some(has) if is_present && has != value => {
                found.push(format!("its value of {index} is not that of its state"));
            }
            Some(_) if is_present => {}
            _ if is_noted(index) => {}
            _ => found.push(format!("it lacks {index}, and its partition is said to be indexed")),
        }
    }
    found
}
