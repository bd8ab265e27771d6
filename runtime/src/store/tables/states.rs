//! The present state of each entity. The key is the entity's id, `type/key`.

use serde::{Deserialize, Serialize};
use stead_entities::{EntityId, Timestamp, Version, collections::EntryChanges};

#[cfg(any(test, feature = "testing"))]
use super::Sample;
use super::{Description, Lifetime, Record, Table, indexes::IndexedValues};
#[cfg(any(test, feature = "testing"))]
use crate::store::Write;
use crate::store::{
    ReadResult,
    record::{self, Damaged},
    rows::Rows,
};

pub(super) const TABLE: Description = Description {
    name: "states",
    since: 1,
    lifetime: Lifetime::Large,
    written_at: None,
    check: |key, value| {
        read_key(key)?;
        read_head(value)?;
        StateRecord::decode(value).map(drop)
    },
    #[cfg(any(test, feature = "testing"))]
    samples,
};

/// A state at a revision, for the conformance suite.
#[cfg(any(test, feature = "testing"))]
pub(in crate::store) fn sample(revision: u64) -> StateRecord {
    StateRecord {
        head: StateHead {
            version: 1,
            generation: 9,
            revision,
            follows: revision - 1,
            incarnation: 1,
            committed_at: Timestamp::from_micros(7),
        },
        reminders: vec![
            ReminderHead::new("q", Timestamp::default(), 1),
            ReminderHead {
                moved_from: (revision == 2).then_some(Timestamp::from_micros(3)),
                ..ReminderHead::new("r", Timestamp::from_micros(5), 2)
            },
        ],
        state: vec![1, 2, 3],
        indexed: IndexedValues::default(),
        replaces: IndexedValues::default(),
        apart: Apart::default(),
        lock: None,
        changes: None,
        ends: None,
    }
}

#[cfg(any(test, feature = "testing"))]
fn samples() -> Vec<Sample> {
    let of = |key| {
        let id = EntityId::new("sample", key).expect("valid");
        let put = |revision| Write::PutState(id.clone(), sample(revision));
        Sample {
            put: put(1),
            put_again: put(2),
            end: Write::DeleteState(id.clone(), Ended::default()),
        }
    };
    vec![of("a"), of("b/c")]
}

/// The key of an entity's state.
pub fn key(id: &EntityId) -> &[u8] {
    id.as_str().as_bytes()
}

/// Reads [`key`].
///
/// # Errors
/// Where the bytes are not such a key.
pub fn read_key(key: &[u8]) -> Result<EntityId, Damaged> {
    let path = str::from_utf8(key).map_err(|_| Damaged("an id is not UTF-8".into()))?;
    EntityId::parse(path).map_err(|error| Damaged(error.to_string()))
}

/// The keys of the states of a type whose keys begin with a prefix, behind one of them.
pub fn range(entity_type: &str, prefix: &str, after: Option<&str>) -> (Vec<u8>, Vec<u8>) {
    let first = format!("{entity_type}/{prefix}").into_bytes();
    let to = super::key::after(&first);
    let from = match after {
        Some(key) => first.max(super::key::behind(format!("{entity_type}/{key}").as_bytes())),
        None => first,
    };
    (from, to)
}

/// The present state of one entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRecord {
    /// The part that lists show.
    pub head: StateHead,
    /// The entity's named reminders.
    pub reminders: Vec<ReminderHead>,
    /// The state, as its layout describes it.
    pub state: Vec<u8>,
    /// The indexed values of the state. Kept behind the record, which has a format of its own then.
    #[serde(skip)]
    pub indexed: IndexedValues,
    /// The indexed values of the state that it follows, whose rows it ends. They are not stored.
    #[serde(skip)]
    pub replaces: IndexedValues,
    /// The parts of the state that have rows of their own. Kept behind the indexed values, in a format of its own.
    #[serde(skip)]
    pub apart: Apart,
    /// The lock under which alone operations are applied. Kept behind all of that, in a format of its own.
    #[serde(skip)]
    pub lock: Option<Box<Lock>>,
    /// The changes of those rows. They are not stored with the record.
    #[serde(skip)]
    pub changes: Option<Box<EntryChanges>>,
    /// The rows of the generation before this one, which end. It is not stored.
    #[serde(skip)]
    pub ends: Option<EndedRows>,
}

/// The parts of a state that have rows of their own, in the table [`entries`](super::entries).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apart {
    /// Whether the state itself has: then the record has none of it.
    pub body: bool,
    /// The number and length of each of its collections.
    pub collections: Vec<(u32, u64)>,
}

impl Apart {
    /// Whether nothing has rows of its own.
    pub fn is_empty(&self) -> bool {
        !self.body && self.collections.is_empty()
    }
}

/// The lock of an entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// The id of the workflow that has it, and the generation of that.
    pub holder: String,
    /// The same.
    pub generation: u64,
    /// Which of the locks of the workflow it is.
    pub fence: String,
    /// Since when.
    pub since: Timestamp,
}

/// The rows that end with an entity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ended {
    /// The indexed values that are stored.
    pub indexed: IndexedValues,
    /// The rows that are stored beside the record, if any are.
    pub entries: Option<EndedRows>,
}

/// The rows of a generation that are stored beside its record, in the table [`entries`](super::entries).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedRows {
    /// The state itself and nothing else.
    Body(u64),
    /// Entries of collections, too.
    All(u64),
}

impl StateRecord {
    /// The record of a state without indexed values.
    pub fn new(head: StateHead, reminders: Vec<ReminderHead>, state: Vec<u8>) -> Self {
        let (indexed, replaces, apart) = Default::default();
        let (lock, changes, ends) = Default::default();
        Self { head, reminders, state, indexed, replaces, apart, lock, changes, ends }
    }
}

/// The beginning of a [`StateRecord`]: what lists show of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHead {
    /// The version of the state's layout.
    pub version: u32,
    /// Which generation of the entity this is; it only grows.
    pub generation: u64,
    /// How many turns of this generation were committed.
    pub revision: u64,
    /// The revision that was stored before this one; 0 if none was.
    pub follows: u64,
    /// The incarnation of the node that wrote it.
    pub incarnation: u64,
    /// When it was committed.
    pub committed_at: Timestamp,
}

impl StateHead {
    /// The version of the state.
    pub fn version(&self) -> Version {
        Version { generation: self.generation, revision: self.revision }
    }
}

/// The most bytes that a [`StateHead`] takes, with its format byte.
pub const HEAD_BYTES_MAX: usize = 64;

/// One of an entity's reminders, as its state record lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReminderHead {
    /// Its name.
    pub name: String,
    /// When it is due.
    pub due: Timestamp,
    /// Which setting of the name, and which occurrence, this is.
    pub number: u64,
    /// The due time of its row, where it was moved to a later time since that was written: then it fires in
    /// vain at that time, and its row follows. Kept behind the record, which has a format of its own then.
    #[serde(skip)]
    pub moved_from: Option<Timestamp>,
    /// The hash of its operation and argument, where that is known. It is not stored.
    #[serde(skip)]
    pub content: Option<u128>,
}

impl ReminderHead {
    /// A reminder whose row has its due time.
    pub fn new(name: impl Into<String>, due: Timestamp, number: u64) -> Self {
        Self { name: name.into(), due, number, moved_from: None, content: None }
    }

    /// The due time of its row.
    pub fn row_due(&self) -> Timestamp {
        self.moved_from.unwrap_or(self.due)
    }
}

/// The format of a state some of whose reminders were moved: behind the record are their places, and the
/// due times of their rows.
const FORMAT_OF_MOVED: u8 = 2;
/// The format of a state with indexed values: they are behind what [`FORMAT_OF_MOVED`] has.
const FORMAT_OF_INDEXED: u8 = 3;
/// The format of a state of which something has rows of its own: what that is stands behind what
/// [`FORMAT_OF_INDEXED`] has.
const FORMAT_OF_APART: u8 = 4;
/// The format of a state that is locked: the lock is behind what [`FORMAT_OF_APART`] has.
const FORMAT_OF_LOCKED: u8 = 5;

/// Reads the beginning of a state record; what follows is not looked at.
///
/// # Errors
/// Where the format is unknown or the bytes are no such beginning.
pub fn read_head(bytes: &[u8]) -> Result<StateHead, Damaged> {
    let formats = [FORMAT_OF_MOVED, FORMAT_OF_INDEXED, FORMAT_OF_APART, FORMAT_OF_LOCKED];
    record::decode_beginning(bytes, &formats)
}

/// The places of reminders that were moved, and the due times of their rows.
type Moved = Vec<(u32, Timestamp)>;

impl StateRecord {
    fn moved(&self) -> Moved {
        let places = (0_u32..).zip(&self.reminders);
        places.filter_map(|(place, head)| Some((place, head.moved_from?))).collect()
    }

    fn with_moved(mut self, moved: Moved) -> Result<Self, Damaged> {
        for (place, from) in moved {
            let head = self.reminders.get_mut(place as usize);
            let head = head.ok_or_else(|| Damaged("there is no such reminder".into()))?;
            head.moved_from = Some(from);
        }
        Ok(self)
    }
}

impl Record for StateRecord {
    const TABLE: Table = Table::States;
    type Key = EntityId;
    fn key(of: &Self::Key) -> Vec<u8> {
        key(of).to_vec()
    }
    fn encode_to(&self, bytes: &mut Vec<u8>) {
        let moved = self.moved();
        if let Some(lock) = &self.lock {
            let record = (self, moved, &self.indexed, &self.apart, lock);
            return record::encode_format_to(bytes, FORMAT_OF_LOCKED, &record);
        }
        if !self.apart.is_empty() {
            let record = (self, moved, &self.indexed, &self.apart);
            return record::encode_format_to(bytes, FORMAT_OF_APART, &record);
        }
        match (moved.is_empty(), self.indexed.is_empty()) {
            (true, true) => record::encode_to(bytes, self),
            (false, true) => record::encode_format_to(bytes, FORMAT_OF_MOVED, &(self, moved)),
            (_, false) => {
                let record = (self, moved, &self.indexed);
                record::encode_format_to(bytes, FORMAT_OF_INDEXED, &record);
            }
        }
    }
    fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        match bytes.split_first() {
            Some((&FORMAT_OF_MOVED, fields)) => {
                let (record, moved): (Self, Moved) = record::decode_fields(fields)?;
                record.with_moved(moved)
            }
            Some((&FORMAT_OF_INDEXED, fields)) => {
                let (record, moved, indexed): (Self, Moved, IndexedValues) =
                    record::decode_fields(fields)?;
                Ok(Self { indexed: indexed.checked()?, ..record.with_moved(moved)? })
            }
            Some((&FORMAT_OF_APART, fields)) => {
                let (record, moved, indexed, apart): (Self, Moved, IndexedValues, Apart) =
                    record::decode_fields(fields)?;
                Ok(Self { indexed: indexed.checked()?, apart, ..record.with_moved(moved)? })
            }
            Some((&FORMAT_OF_LOCKED, fields)) => {
                let (record, moved, indexed, apart, lock): (Self, _, IndexedValues, _, _) =
                    record::decode_fields(fields)?;
                let record = record.with_moved(moved)?;
                Ok(Self { indexed: indexed.checked()?, apart, lock: Some(lock), ..record })
            }
            _ => record::decode(bytes),
        }
    }
}

/// The record of an entity's state, whole: also where the state has a row of its own.
pub(crate) fn read(rows: &dyn Rows, id: &EntityId, stored: &[u8]) -> ReadResult<StateRecord> {
    with_body(rows, id, StateRecord::decode(stored)?)
}

/// A record that was read, whole.
pub(crate) fn with_body(
    rows: &dyn Rows,
    id: &EntityId,
    mut record: StateRecord,
) -> ReadResult<StateRecord> {
    if record.apart.body {
        record.state = super::entries::load_body(rows, id, record.head.generation)?;
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_with_rows_of_its_own_has_a_format_of_its_own() {
        let apart = Apart { body: true, collections: vec![(1, 9), (300, 0)] };
        let record = StateRecord { state: Vec::new(), apart, ..sample(1) };
        let head: &[&[u8]] = &[&[1, 9, 1, 0, 1, 14, 2], &[1, b'q', 0, 1], &[1, b'r', 10, 2]];
        let fields = [&head.concat()[..], &[0]].concat();
        // Nothing was moved or is indexed; a body, and two collections.
        let behind = [&[0, 0, 1, 2, 1, 9][..], &[251, 44, 1, 0]].concat();
        let bytes = record.encode();
        assert_eq!(bytes, [&[4], &fields[..], &behind[..]].concat());
        assert_eq!(StateRecord::decode(&bytes).as_ref(), Ok(&record));
        assert_eq!(read_head(&bytes), Ok(record.head));
        for length in 0..bytes.len() {
            assert!(StateRecord::decode(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_state_that_is_locked_has_a_format_of_its_own() {
        let (holder, fence) = ("o/1".to_owned(), "1/2".to_owned());
        let lock = Lock { holder, generation: 4, fence, since: Timestamp::from_micros(1) };
        let record = StateRecord { state: vec![7], lock: Some(Box::new(lock)), ..sample(1) };
        let head: &[&[u8]] = &[&[1, 9, 1, 0, 1, 14, 2], &[1, b'q', 0, 1], &[1, b'r', 10, 2]];
        let fields = [&head.concat()[..], &[1, 7]].concat();
        // Nothing was moved, is indexed or has rows of its own; the lock.
        let behind = [&[0, 0, 0, 0, 3][..], b"o/1", &[4, 3], b"1/2", &[2]].concat();
        let bytes = record.encode();
        assert_eq!(bytes, [&[5], &fields[..], &behind[..]].concat());
        assert_eq!(StateRecord::decode(&bytes).as_ref(), Ok(&record));
        assert_eq!(read_head(&bytes), Ok(record.head));
        for length in 0..bytes.len() {
            assert!(StateRecord::decode(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_state_with_indexed_values_has_a_format_of_its_own() {
        let indexed = IndexedValues::new([("by", [1, 9])]);
        let record = StateRecord { state: vec![7], indexed, ..sample(2) };
        let head: &[&[u8]] = &[&[1, 9, 2, 1, 1, 14, 2], &[1, b'q', 0, 1], &[1, b'r', 10, 2]];
        let fields = [&head.concat()[..], &[1, 7]].concat();
        let behind = [&[1, 1, 6][..], &[7, 2], b"by", &[0, 2, 1, 9]].concat();
        let bytes = record.encode();
        assert_eq!(bytes, [&[3], &fields[..], &behind[..]].concat());
        assert_eq!(StateRecord::decode(&bytes).as_ref(), Ok(&record));
        assert_eq!(read_head(&bytes), Ok(record.head));
        for length in 0..bytes.len() {
            assert!(StateRecord::decode(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_state_whose_reminders_were_moved_has_a_format_of_its_own() {
        let plain = StateRecord { state: vec![7], ..sample(1) };
        let moved = StateRecord { state: vec![7], ..sample(2) };
        let head: &[&[u8]] = &[&[1, 9, 2, 1, 1, 14, 2], &[1, b'q', 0, 1], &[1, b'r', 10, 2]];
        let fields = [&head.concat()[..], &[1, 7]].concat();
        assert_eq!(moved.encode(), [&[2], &fields[..], &[1, 1, 6]].concat());
        assert_eq!(plain.encode()[0], 1, "earlier programs read it");
        for record in [plain, moved] {
            let bytes = record.encode();
            assert_eq!(StateRecord::decode(&bytes).as_ref(), Ok(&record));
            assert_eq!(read_head(&bytes), Ok(record.head));
            assert!(StateRecord::decode(&bytes[..bytes.len() - 1]).is_err());
        }
    }
}
