//! The entries of collections in states, each a row, and states that are too large to be written with every turn.
//!
//! A key is the entity's id and a zero byte, its generation in eight bytes, the number of the collection in four, and
//! the key of the entry, whose bytes sort as its collection orders them. Number 0 with an empty key is the
//! state itself, where its record in the table of states has only the rest. A record is the format byte, the
//! length of the stored form of the entry in four bytes, and that.
//!
//! Rows follow from a state: they are there while the record of the state has this generation and collection, as many
//! as it says.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stead_entities::{
    EntityId,
    collections::{EntryKey, KeyRange, LOADED_BYTES_MAX, Loaded, Miss, Wanted},
};

#[cfg(any(test, feature = "testing"))]
use super::Sample;
use super::{Description, Lifetime, Record, Table, key};
#[cfg(any(test, feature = "testing"))]
use crate::store::Write;
use crate::store::{
    ReadError, ReadResult,
    record::Damaged,
    rows::{self, Limit, PAGE_BYTES_MAX, Rows},
};

pub(super) const TABLE: Description = Description {
    name: "entries",
    since: 6,
    lifetime: Lifetime::Large,
    written_at: None,
    check: |key, value| {
        read_key(key)?;
        EntryRecord::decode(value).map(drop)
    },
    #[cfg(any(test, feature = "testing"))]
    samples,
};

#[cfg(any(test, feature = "testing"))]
fn samples() -> Vec<Sample> {
    let of = |key: &str, entry: u8| {
        let id = EntityId::new("sample", key).expect("valid");
        let key = (id, 9, (1, Arc::from([1, entry])));
        let put = |byte| Write::put(&key, &EntryRecord(vec![byte, 0]));
        Sample { put: put(1), put_again: put(2), end: Write::delete::<EntryRecord>(&key) }
    };
    vec![of("a", 1), of("a", 2), of("b/c", 1)]
}

/// How many entries are read at one time.
const KEYS_AT_ONCE: usize = 64;

/// The format of an entry.
const FORMAT: u8 = 1;

/// The key of a state that is a row of its own.
pub(crate) fn body() -> EntryKey {
    (0, Arc::default())
}

/// The first bytes of the keys of a generation of an entity.
pub(crate) fn of_generation(id: &EntityId, generation: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(id.as_str().len() + 48);
    key.extend(id.as_str().as_bytes());
    key.push(0);
    key.extend(generation.to_be_bytes());
    key
}

/// The key of a row.
pub fn key(id: &EntityId, generation: u64, (number, entry): &EntryKey) -> Vec<u8> {
    let mut key = of_generation(id, generation);
    key.extend(number.to_be_bytes());
    key.extend(&**entry);
    key
}

/// Reads [`key()`].
///
/// # Errors
/// Where the bytes are not such a key.
pub fn read_key(key: &[u8]) -> Result<(EntityId, u64, EntryKey), Damaged> {
    let mut rest = key::Reader(key);
    let id = rest.id()?;
    let generation = u64::from_be_bytes(rest.take()?);
    let number = u32::from_be_bytes(rest.take()?);
    Ok((id, generation, (number, rest.0.into())))
}

/// The keys of a range of entries: from the first, and before the last.
pub(crate) fn range(id: &EntityId, generation: u64, range: &KeyRange) -> (Vec<u8>, Vec<u8>) {
    let key = |entry: &[u8]| key(id, generation, &(range.number, entry.into()));
    let to = match &range.to {
        Some(to) => key(to),
        None => key::after(&key(&[])),
    };
    (key(&range.from), to)
}

/// An entry in its stored form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryRecord(pub Vec<u8>);

impl EntryRecord {
    /// Writes a record behind what `bytes` holds already.
    pub(crate) fn write(stored: &[u8], bytes: &mut Vec<u8>) {
        bytes.push(FORMAT);
        // An entry has at most 1 MiB, and a state 16.
        bytes.extend((stored.len() as u32).to_be_bytes());
        bytes.extend(stored);
    }
}

impl Record for EntryRecord {
    const TABLE: Table = Table::Entries;
    type Key = (EntityId, u64, EntryKey);
    fn key((id, generation, entry): &Self::Key) -> Vec<u8> {
        key(id, *generation, entry)
    }
    fn encode_to(&self, bytes: &mut Vec<u8>) {
        Self::write(&self.0, bytes);
    }
    fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let mut rest = key::Reader(bytes);
        match rest.take()? {
            [FORMAT] => {}
            [other] => return Err(Damaged(format!("format {other} is not known"))),
        }
        let length = u32::from_be_bytes(rest.take()?);
        if rest.0.len() as u64 != u64::from(length) {
            return Err(Damaged(format!("it has {} bytes and not {length}", rest.0.len())));
        }
        Ok(Self(rest.0.to_vec()))
    }
}

/// The entries that a turn missed: fewer where they are large.
pub(crate) fn load(
    rows: &dyn Rows,
    id: &EntityId,
    generation: u64,
    miss: &Miss,
) -> ReadResult<Loaded> {
    let Miss { number, mut wanted } = miss.clone();
    let (mut found, mut is_end) = (Vec::new(), true);
    match &mut wanted {
        Wanted::Keys(keys) => {
            let (mut read, mut bytes) = (0, 0);
            for some in keys.chunks(KEYS_AT_ONCE) {
                if bytes > LOADED_BYTES_MAX {
                    break;
                }
                let stored = some.iter().map(|entry| key(id, generation, &(number, entry.clone())));
                let mut entries = some.iter();
                let each = &mut |value: Option<&[u8]>| {
                    let entry = entries.next().cloned();
                    if let (Some(entry), Some(value)) = (entry, value) {
                        bytes += value.len();
                        found.push((entry, EntryRecord::decode(value)?.0));
                    }
                    Ok(())
                };
                rows.get_each(Table::Entries, &stored.collect::<Vec<_>>(), false, each)?;
                read += some.len();
            }
            keys.truncate(read);
        }
        Wanted::Range { from, to, limit } => {
            let wanted = KeyRange { number, from: from.clone(), to: to.clone() };
            let (from, to) = range(id, generation, &wanted);
            let limit = Limit::bytes(*limit, PAGE_BYTES_MAX);
            // The keys of a range differ behind this, which none of them needs to be read for.
            let prefix = key(id, generation, &(number, [].into()));
            let read = |key: &[u8], value: &[u8]| {
                let entry = key.strip_prefix(&*prefix);
                let entry = entry.ok_or_else(|| Damaged("a row of another collection".into()))?;
                Ok(Some((entry.into(), EntryRecord::decode(value)?.0)))
            };
            let (page, _) = rows::take_whole(rows, Table::Entries, (&from, &to), limit, read)?;
            (found, is_end) = (page.rows, page.is_end);
        }
    }
    Ok(Loaded { number, wanted, rows: found, is_end })
}

/// The state of an entity that has a row of its own.
pub(crate) fn load_body(rows: &dyn Rows, id: &EntityId, generation: u64) -> ReadResult<Vec<u8>> {
    let stored: Option<EntryRecord> = rows::get(rows, &(id.clone(), generation, body()))?;
    let missing = || ReadError::from(Damaged("the row of the state is not there".into()));
    stored.map(|EntryRecord(body)| body).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_what_they_write_and_sort_by_their_parts() {
        let id = EntityId::new("room", "a").expect("valid");
        let of = |generation, number, entry: &[u8]| key(&id, generation, &(number, entry.into()));
        assert_eq!(read_key(&of(7, 1, &[1, 0])), Ok((id.clone(), 7, (1, Arc::from([1, 0])))));
        assert!(of(7, 1, &[255]) < of(7, 2, &[]) && of(7, 9, &[255]) < of(8, 0, &[]));
        let (from, to) = range(&id, 7, &KeyRange::all(1));
        assert!((&from..&to).contains(&&of(7, 1, &[255, 255])));
        assert!(!(&from..&to).contains(&&of(7, 2, &[])));
        assert_eq!(
            from,
            [b"room/a\0".as_slice(), &[0, 0, 0, 0, 0, 0, 0, 7], &[0, 0, 0, 1]].concat()
        );
        let record = EntryRecord(vec![5]).encode();
        assert_eq!(record, [1, 0, 0, 0, 1, 5]);
        assert!(EntryRecord::decode(&[2, 0, 0, 0, 1, 5]).is_err());
    }
}
