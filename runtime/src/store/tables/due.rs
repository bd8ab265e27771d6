//! Reminders and delayed signals by due time. A value says whether the table of [`super::origins`] has
//! something of it, so that what is due is read without looking there in vain.

use stead_entities::{EntityId, Timestamp};

use super::{
    Description, Lifetime,
    key::Reader,
    reminders::{Slot, push_slot, read_slot},
};
use crate::store::record::Damaged;

pub(super) const TABLE: Description = Description {
    name: "due",
    since: 1,
    lifetime: Lifetime::Short,
    written_at: None,
    check: |key, value| match value {
        PLAIN | HAS_ORIGIN => read_key(key).map(drop),
        _ => Err(Damaged("an unknown value".into())),
    },
    #[cfg(any(test, feature = "testing"))]
    samples: super::reminders::samples,
};

/// The value of a row without an origin.
pub const PLAIN: &[u8] = &[];
/// The value of a row with one.
pub const HAS_ORIGIN: &[u8] = &[1];

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
