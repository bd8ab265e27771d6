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
        record::decode::<StateRecord>(value).map(drop)
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
        reminders: vec![ReminderHead { name: "r".into(), due: Timestamp::default(), number: 1 }],
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
}

/// Reads the beginning of a state record; what follows is not looked at.
///
/// # Errors
/// Where the format is unknown or the bytes are no such beginning.
pub fn read_head(bytes: &[u8]) -> Result<StateHead, Damaged> {
    record::decode_beginning(bytes)
}

impl Record for StateRecord {
    const TABLE: Table = Table::States;
    type Key = EntityId;
    fn key(of: &Self::Key) -> Vec<u8> {
        key(of).to_vec()
    }
}
