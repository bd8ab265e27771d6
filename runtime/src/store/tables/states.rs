//! The present state of each entity. The key is the entity's id, `type/key`.

use serde::{Deserialize, Serialize};
use stead_entities::{EntityId, Timestamp};

#[cfg(any(test, feature = "testing"))]
use super::Sample;
use super::{Description, Lifetime, Record, Table};
#[cfg(any(test, feature = "testing"))]
use crate::store::Write;
use crate::store::record::{self, Damaged};

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
    }
}

#[cfg(any(test, feature = "testing"))]
fn samples() -> Vec<Sample> {
    let of = |key| {
        let id = EntityId::new("sample", key).expect("valid");
        let put = |revision| Write::PutState(id.clone(), sample(revision));
        Sample { put: put(1), put_again: put(2), end: Write::DeleteState(id.clone()) }
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

/// The present state of one entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRecord {
    /// The part that lists show.
    pub head: StateHead,
    /// The entity's named reminders.
    pub reminders: Vec<ReminderHead>,
    /// The state, as its layout describes it.
    pub state: Vec<u8>,
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

/// Reads the beginning of a state record; what follows is not looked at.
///
/// # Errors
/// Where the format is unknown or the bytes are no such beginning.
pub fn read_head(bytes: &[u8]) -> Result<StateHead, Damaged> {
    record::decode_beginning(bytes, &[FORMAT_OF_MOVED])
}

impl Record for StateRecord {
    const TABLE: Table = Table::States;
    type Key = EntityId;
    fn key(of: &Self::Key) -> Vec<u8> {
        key(of).to_vec()
    }
    fn encode_to(&self, bytes: &mut Vec<u8>) {
        if self.reminders.iter().all(|head| head.moved_from.is_none()) {
            return record::encode_to(bytes, self);
        }
        let places = (0_u32..).zip(&self.reminders);
        let moved = places.filter_map(|(place, head)| Some((place, head.moved_from?)));
        record::encode_format_to(bytes, FORMAT_OF_MOVED, &(self, moved.collect::<Vec<_>>()));
    }
    fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let Some((&FORMAT_OF_MOVED, fields)) = bytes.split_first() else {
            return record::decode(bytes);
        };
        let (mut record, moved): (Self, Vec<(u32, Timestamp)>) = record::decode_fields(fields)?;
        for (place, from) in moved {
            let head = record.reminders.get_mut(place as usize);
            let head = head.ok_or_else(|| Damaged("there is no such reminder".into()))?;
            head.moved_from = Some(from);
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
