//! The changes of the entities of types that keep them, in the order in which each incarnation of a node commits.
//! The key is the type, a zero byte, the incarnation, the number of the batch and the place in it.
//!
//! A row names an entity that a batch has changed; its state is where it always is. What must never happen: a state
//! changes in a type that keeps changes, and there is no row of it.

use serde::{Deserialize, Serialize};
use stead_entities::{Timestamp, Version};

#[cfg(any(test, feature = "testing"))]
use super::Sample;
use super::{Description, Lifetime, Record, Table, indexes::IndexedValues, key};
#[cfg(any(test, feature = "testing"))]
use crate::store::Write;
use crate::store::record::{self, Damaged};

pub(super) const TABLE: Description = Description {
    name: "changes",
    since: 5,
    lifetime: Lifetime::Large,
    written_at: Some(kept_until),
    check: |key, value| {
        read_key(key)?;
        ChangeRecord::decode(value).map(drop)
    },
    #[cfg(any(test, feature = "testing"))]
    samples,
};

#[cfg(any(test, feature = "testing"))]
fn samples() -> Vec<Sample> {
    let sample = |number| {
        let place = Place { number, index: 1 };
        let key = ChangeKey { entity_type: "sample".into(), incarnation: 7, place };
        let put = |replaced| {
            let record = ChangeRecord {
                key: "a/b".into(),
                version: Some((9, 2)),
                kept_until: Timestamp::from_micros(5),
                replaced,
            };
            Write::put(&key, &record)
        };
        let put_again = put(Some(IndexedValues::new([("by", [1, 9])])));
        Sample { put: put(None), put_again, end: Write::delete::<ChangeRecord>(&key) }
    };
    vec![sample(1), sample(256)]
}

fn kept_until(value: &[u8]) -> Option<Timestamp> {
    ChangeRecord::decode(value).ok().map(|record| record.kept_until)
}

/// A place among the changes that one incarnation has committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The number of the batch.
    pub number: u64,
    /// Which of its changes this is.
    pub index: u32,
}

/// The parts of a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangeKey {
    /// The entity's type.
    pub entity_type: String,
    /// The incarnation of the node that committed it.
    pub incarnation: u64,
    /// Its place there.
    pub place: Place,
}

/// The first bytes of the keys of a type.
pub fn of_type(entity_type: &str) -> Vec<u8> {
    [entity_type.as_bytes(), &[0]].concat()
}

/// The first bytes of the keys of an incarnation.
pub fn of_incarnation(entity_type: &str, incarnation: u64) -> Vec<u8> {
    [&of_type(entity_type)[..], &incarnation.to_be_bytes()].concat()
}

/// Reads the key of a row.
///
/// # Errors
/// Where the bytes are not such a key.
pub fn read_key(key: &[u8]) -> Result<ChangeKey, Damaged> {
    let mut rest = key::Reader(key);
    let entity_type = rest.text()?;
    let incarnation = u64::from_be_bytes(rest.take()?);
    let number = u64::from_be_bytes(rest.take()?);
    let index = u32::from_be_bytes(rest.take()?);
    match rest.0 {
        [] => Ok(ChangeKey { entity_type, incarnation, place: Place { number, index } }),
        _ => Err(Damaged("the key is too long".into())),
    }
}

/// One change of one entity by one batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRecord {
    /// The entity's key.
    pub key: String,
    /// Generation and revision of the state that it left; none of a deletion.
    pub version: Option<(u64, u64)>,
    /// When the row may be forgotten.
    pub kept_until: Timestamp,
    /// The indexed values of the state before it, where they are not those that it left.
    pub replaced: Option<IndexedValues>,
}

impl ChangeRecord {
    /// The version of the state that it left; none of a deletion.
    pub fn version(&self) -> Option<Version> {
        self.version.map(|(generation, revision)| Version { generation, revision })
    }
}

impl Record for ChangeRecord {
    const TABLE: Table = Table::Changes;
    type Key = ChangeKey;
    fn key(of: &ChangeKey) -> Vec<u8> {
        let mut key = of_incarnation(&of.entity_type, of.incarnation);
        key.extend(of.place.number.to_be_bytes());
        key.extend(of.place.index.to_be_bytes());
        key
    }
    fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let change: Self = record::decode(bytes)?;
        let replaced = change.replaced.map(IndexedValues::checked).transpose()?;
        Ok(Self { replaced, ..change })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_what_they_write_and_sort_by_incarnation_and_place() {
        let of = |incarnation, number, index| ChangeKey {
            entity_type: "order".into(),
            incarnation,
            place: Place { number, index },
        };
        let rows = [of(1, 9, 9), of(2, 1, 0), of(2, 1, 256), of(2, 300, 0), of(256, 0, 0)];
        let keys: Vec<_> = rows.iter().map(ChangeRecord::key).collect();
        assert!(keys.is_sorted());
        for (row, key) in rows.iter().zip(&keys) {
            assert_eq!(read_key(key).as_ref(), Ok(row));
        }
        assert!(
            read_key(&keys[0][..20]).is_err() && read_key(&[&keys[0][..], &[0]].concat()).is_err()
        );
    }

    #[test]
    fn a_change_is_stored_as_it_is_specified() {
        let replaced = Some(IndexedValues::new([("by", [1, 9])]));
        let change = ChangeRecord {
            key: "a".into(),
            version: Some((9, 2)),
            kept_until: Timestamp::from_micros(5),
            replaced,
        };
        let bytes = [&[1, 1, b'a', 1, 9, 2, 10, 1, 7, 2][..], b"by", &[0, 2, 1, 9]].concat();
        assert_eq!(change.encode(), bytes);
        assert_eq!(ChangeRecord::decode(&bytes).as_ref(), Ok(&change));
        let deleted = ChangeRecord { version: None, replaced: None, ..change };
        assert_eq!(deleted.encode(), [1, 1, b'a', 0, 10, 0]);
    }
}
