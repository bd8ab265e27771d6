//! The entities of a type by an indexed value. A key is the type and the name of the index, each ended by a zero
//! byte, the value as bytes that sort as values do, the entity's key, and the length of that in two bytes. The
//! record is all indexed values of the entity, so that other filters need not read its state.
//!
//! A row follows from a state: it is there while the record of the state has this value of this index.

use serde::{Deserialize, Serialize};
use stead_entities::EntityId;

#[cfg(any(test, feature = "testing"))]
use super::Sample;
use super::{Description, Lifetime, Record, Table, key};
#[cfg(any(test, feature = "testing"))]
use crate::store::Write;
use crate::store::record::Damaged;

pub(super) const TABLE: Description = Description {
    name: "indexes",
    since: 4,
    // A row ends each time its value changes.
    lifetime: Lifetime::Short,
    written_at: None,
    check: |key, value| {
        read_key(key)?;
        IndexedValues::decode(value).map(drop)
    },
    #[cfg(any(test, feature = "testing"))]
    samples,
};

#[cfg(any(test, feature = "testing"))]
fn samples() -> Vec<Sample> {
    let of = |key: &str| {
        let id = EntityId::new("sample", key).expect("valid");
        let key = IndexKey { index: "by".into(), value: vec![1, 0x81, 5], id };
        let values =
            |other: u8| IndexedValues::new([("by", [1, 0x81, 5]), ("to", [1, 0x81, other])]);
        let (put, put_again) = (Write::put(&key, &values(7)), Write::put(&key, &values(8)));
        Sample { put, put_again, end: Write::delete::<IndexedValues>(&key) }
    };
    vec![of("a"), of("b/c")]
}

/// The parts of a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct IndexKey {
    /// The name of the index.
    pub index: String,
    /// The value.
    pub value: Vec<u8>,
    /// The entity.
    pub id: EntityId,
}

/// The first bytes of the keys of an index.
pub fn prefix(entity_type: &str, index: &str) -> Vec<u8> {
    [entity_type.as_bytes(), &[0], index.as_bytes(), &[0]].concat()
}

/// The key of a row.
pub fn key(index: &str, value: &[u8], id: &EntityId) -> Vec<u8> {
    let mut key = prefix(id.entity_type(), index);
    key.extend(value);
    key.extend(id.key().as_bytes());
    // A key of an entity has at most 256 bytes.
    key.extend((id.key().len() as u16).to_be_bytes());
    key
}

/// Reads [`key()`].
///
/// # Errors
/// Where the bytes are not such a key.
pub fn read_key(key: &[u8]) -> Result<IndexKey, Damaged> {
    let mut rest = key::Reader(key);
    let (entity_type, index) = (rest.text()?, rest.text()?);
    let short = || Damaged("the key is too short".into());
    let (rest, length) = rest.0.split_last_chunk::<2>().ok_or_else(short)?;
    let length = usize::from(u16::from_be_bytes(*length));
    let place = rest.len().checked_sub(length).ok_or_else(short)?;
    let (value, key) = rest.split_at(place);
    let key = str::from_utf8(key).map_err(|_| Damaged("not UTF-8".into()))?;
    let id = EntityId::new(&entity_type, key).map_err(|error| Damaged(error.to_string()))?;
    Ok(IndexKey { index, value: value.to_vec(), id })
}

/// The indexed values of one entity by the names of their indexes, in the order of their declaration. In one
/// piece, because each entity in memory has them: the length of a name in a byte, the name, the length of the
/// value in two bytes, the value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexedValues(Box<[u8]>);

impl IndexedValues {
    /// These values. A name has at most 255 bytes, and a value 65,535.
    pub fn new<'n, V: AsRef<[u8]>>(values: impl IntoIterator<Item = (&'n str, V)>) -> Self {
        let mut bytes = Vec::new();
        for (name, value) in values {
            let value = value.as_ref();
            bytes.push(name.len() as u8);
            bytes.extend(name.as_bytes());
            bytes.extend((value.len() as u16).to_be_bytes());
            bytes.extend(value);
        }
        Self(bytes.into())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The values with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (name, value, behind) = first(rest)?;
            rest = behind;
            Some((name, value))
        })
    }

    /// The value of an index.
    pub fn get(&self, index: &str) -> Option<&[u8]> {
        self.iter().find(|(name, _)| *name == index).map(|(_, value)| value)
    }
}

/// The first name and value, and what is behind them.
fn first(bytes: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*length))?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    Some((str::from_utf8(name).ok()?, value, rest))
}

impl Record for IndexedValues {
    const TABLE: Table = Table::Indexes;
    type Key = IndexKey;
    fn key(of: &IndexKey) -> Vec<u8> {
        key(&of.index, &of.value, &of.id)
    }
    fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let values: Self = crate::store::record::decode(bytes)?;
        values.checked()
    }
}

impl IndexedValues {
    /// The values that a record has, where they are such.
    ///
    /// # Errors
    /// Where the bytes are none.
    pub(super) fn checked(self) -> Result<Self, Damaged> {
        let mut rest = &self.0[..];
        while !rest.is_empty() {
            (_, _, rest) = first(rest).ok_or_else(|| Damaged("no indexed values".into()))?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_what_they_write_and_sort_by_value_and_key() {
        let of = |value: &[u8], key: &str| IndexKey {
            index: "by".into(),
            value: value.into(),
            id: EntityId::new("order", key).expect("valid"),
        };
        let rows = [of(&[0], "b"), of(&[1, 97, 0, 0], "a"), of(&[1, 97, 0, 0], "ab")];
        let keys: Vec<_> = rows.iter().map(IndexedValues::key).collect();
        assert!(keys.is_sorted());
        for (row, key) in rows.iter().zip(&keys) {
            assert_eq!(read_key(key).as_ref(), Ok(row));
        }
    }

    #[test]
    fn values_are_found_by_their_names() {
        let values = IndexedValues::new([("status", &[1, 7][..]), ("by", &[0])]);
        assert_eq!(values.get("by"), Some(&[0][..]));
        assert_eq!(values.get("at"), None);
        assert_eq!(
            values.encode(),
            [&[1, 17, 6][..], b"status", &[0, 2, 1, 7, 2], b"by", &[0, 1, 0]].concat()
        );
        assert_eq!(IndexedValues::decode(&values.encode()), Ok(values));
        assert!(IndexedValues::decode(&[1, 2, 6, 1]).is_err());
    }
}
