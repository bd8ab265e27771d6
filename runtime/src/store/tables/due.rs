//! Reminders and delayed signals by due time. The values are empty.

use stead_entities::{EntityId, Timestamp};

use super::{
    Description, Lifetime,
    key::Reader,
    reminders::{Slot, push_slot, read_slot},
};
use crate::store::record::Damaged;

pub(super) const TABLE: Description =
    Description { name: "due", lifetime: Lifetime::Short, written_at: None };

/// The key of a row.
pub fn key(partition: u16, due: Timestamp, id: &EntityId, slot: &Slot) -> Vec<u8> {
    let mut key = first_key(partition, due);
    key.extend(id.as_str().as_bytes());
    key.push(0);
    push_slot(&mut key, slot);
    key
}

/// The first key of a partition that is due at `due` or later.
pub fn first_key(partition: u16, due: Timestamp) -> Vec<u8> {
    let mut key = partition.to_be_bytes().to_vec();
    // With its sign bit turned over, a number sorts as its bytes do.
    key.extend((due.as_micros() ^ i64::MIN).to_be_bytes());
    key
}

/// Reads [`key`].
///
/// # Errors
/// Where the bytes are not such a key.
pub fn read_key(key: &[u8]) -> Result<(Timestamp, EntityId, Slot), Damaged> {
    let mut rest = Reader(key);
    let _partition = u16::from_be_bytes(rest.take()?);
    let due = Timestamp::from_micros(i64::from_be_bytes(rest.take()?) ^ i64::MIN);
    let id = rest.id()?;
    Ok((due, id, read_slot(&mut rest)?))
}
