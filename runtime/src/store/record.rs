//! What the store keeps, and its encoding: one format byte, then the fields in bincode's standard
//! configuration. The home of bincode. `storage-format.md` specifies every field.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use stead_entities::{
    EntityId, Error, ErrorKind, ReminderId, Timestamp, effect::Schedule, entity::StateDecoder,
    stored,
};

/// The first byte of every record.
pub const FORMAT: u8 = 1;

/// Why stored bytes cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Damaged(pub String);

/// The present state of one entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRecord {
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

/// What an entity remembers of one of its reminders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReminderHead {
    /// Its name.
    pub name: String,
    /// When it is due.
    pub due: Timestamp,
    /// Which setting of the name, and which occurrence, this is.
    pub number: u64,
}

/// The identity of an accepted signal: who sent it to whom, and its place in the sender's order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InboxKey {
    /// The partition of the receiver.
    pub partition: u16,
    /// The receiver.
    pub receiver: EntityId,
    /// The sender's id, empty for callers outside.
    pub sender: Arc<str>,
    /// The sender's generation; 0 for callers outside.
    pub generation: u64,
    /// The sender's revision; the acceptance number for callers outside.
    pub revision: u64,
    /// The place among the signals of one turn.
    pub index: u32,
}

/// A signal that was accepted and is not yet applied, or a call that awaits outside services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboxRecord {
    /// The operation's name for the outside world.
    pub token: u128,
    /// The name of the operation.
    pub operation: String,
    /// Its argument as JSON.
    pub input: Vec<u8>,
    /// Whether a caller waits, or waited, for the result.
    pub is_call: bool,
    /// How often it was tried in vain.
    pub attempts: u32,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// When its caller stops waiting.
    pub deadline: Option<Timestamp>,
    /// Caller, idempotency key, and the fingerprint of what the key stands for.
    pub idempotency: Option<(String, String, u128)>,
    /// The trace that it belongs to.
    pub trace: Option<String>,
}

/// Which durable wake-up of an entity this is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// A reminder, by name.
    Named(Arc<str>),
    /// A delayed signal, by acceptance number.
    Delayed(u64),
}

impl From<ReminderId> for Slot {
    fn from(id: ReminderId) -> Self {
        match id {
            ReminderId::Named(name) => Self::Named(name.into()),
            ReminderId::Delayed(number) => Self::Delayed(number),
        }
    }
}

impl From<Slot> for ReminderId {
    fn from(slot: Slot) -> Self {
        match slot {
            Slot::Named(name) => Self::Named(name.to_string()),
            Slot::Delayed(number) => Self::Delayed(number),
        }
    }
}

/// A reminder or a delayed signal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReminderRecord {
    /// When it is due.
    pub due: Timestamp,
    /// Which setting of the name, and which occurrence, this is.
    pub number: u64,
    /// How it recurs; `None` for a delayed signal.
    pub schedule: Option<StoredSchedule>,
    /// The name of the operation.
    pub operation: String,
    /// Its argument as JSON.
    pub input: Vec<u8>,
    /// The operation's name for the outside world.
    pub token: u128,
    /// How often this occurrence was tried in vain.
    pub attempts: u32,
    /// When it was set.
    pub accepted_at: Timestamp,
    /// Who sent a delayed signal: an entity's id, or empty for callers outside.
    pub sender: String,
}

/// A [`Schedule`] as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoredSchedule {
    /// One occurrence.
    Once,
    /// One occurrence after another, at an interval in microseconds.
    Every(u64),
}

impl From<Schedule> for StoredSchedule {
    fn from(schedule: Schedule) -> Self {
        match schedule {
            Schedule::After(_) | Schedule::At(_) => Self::Once,
            Schedule::Every(interval) => {
                let micros = interval.as_duration().as_micros();
                Self::Every(u64::try_from(micros).unwrap_or(u64::MAX))
            }
        }
    }
}

impl StoredSchedule {
    /// The occurrence after the one that was due at `due` and is settled at `now`.
    pub fn next(self, due: Timestamp, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Once => None,
            Self::Every(micros) => {
                Schedule::Every(stead_entities::Timeout::from_micros(micros)).next(due, now)
            }
        }
    }
}

/// The caller's name for one operation of one entity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdempotencyKey {
    /// The entity's partition.
    pub partition: u16,
    /// The entity.
    pub id: EntityId,
    /// Who calls.
    pub caller: Arc<str>,
    /// The name.
    pub key: Arc<str>,
}

/// What is remembered under an [`IdempotencyKey`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyRecord {
    /// Keyed hash of operation, argument and delay.
    pub fingerprint: u128,
    /// When the operation was accepted or applied.
    pub at: Timestamp,
    /// How it came out.
    pub outcome: Remembered,
}

/// How an operation with an idempotency key came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Remembered {
    /// A signal was accepted.
    Accepted,
    /// A call waits in the inbox.
    Pending,
    /// A call was answered with this JSON.
    Replied(Vec<u8>),
    /// A call was rejected for this reason.
    Rejected(String),
    /// A delayed signal was accepted under this number.
    Scheduled(u64),
}

/// Where a dead letter lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeadLetterId {
    /// The entity's partition.
    pub partition: u16,
    /// Whether it is a rejection; those are kept to a count and an age.
    pub is_rejection: bool,
    /// Grows with each dead letter of the partition.
    pub number: u64,
}

/// Names a dead letter in paths.
impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = if self.is_rejection { 'r' } else { 'f' };
        write!(f, "{}-{class}-{}", self.partition, self.number)
    }
}

impl FromStr for DeadLetterId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<_> = text.split('-').collect();
        let parsed = match parts[..] {
            [partition, class @ ("f" | "r"), number] => partition
                .parse()
                .ok()
                .zip(number.parse().ok())
                .map(|(partition, number)| Self { partition, is_rejection: class == "r", number }),
            _ => None,
        };
        parsed.ok_or_else(|| {
            Error::new(ErrorKind::Invalid, format!("{text:?} is not the id of a dead letter"))
        })
    }
}

/// An operation that will not be retried, kept with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The entity's id as text.
    pub entity: String,
    /// Who sent it: an entity's id, `reminder NAME`, or empty for callers outside.
    pub sender: String,
    /// The name of the operation.
    pub operation: String,
    /// Its argument as JSON.
    pub input: Vec<u8>,
    /// The operation's name for the outside world.
    pub token: u128,
    /// Why it is dead.
    pub cause: Cause,
    /// The reason in words.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// When it died.
    pub dead_lettered_at: Timestamp,
}

/// Why an operation is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// Every attempt failed.
    Failure,
    /// The entity said no.
    Rejection,
    /// The entity's type does not know the operation, or not with this argument.
    Undecodable,
    /// The entity was deleted while the operation was delayed or waited for a retry.
    Deleted,
}

/// The last batch of a commit lane; part of every batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneRecord {
    /// The incarnation of the node.
    pub incarnation: u64,
    /// The lane.
    pub lane: u16,
    /// The number of the batch; it only grows.
    pub number: u64,
    /// The node that owns the partitions.
    pub owner: String,
    /// The store's time: the high-water mark of its clock.
    pub time: Timestamp,
    /// Whether the node drained before it stopped: this is the last batch of its incarnation.
    pub is_clean: bool,
}

/// What is minted once with a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// How many partitions the store has.
    pub partitions: u16,
    /// The key of the hash from id to partition.
    pub seed: (u64, u64),
}

/// Writes the format byte and the fields.
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_to(&mut bytes, record);
    bytes
}

/// The same behind what `bytes` holds already.
pub fn encode_to<T: Serialize>(bytes: &mut Vec<u8>, record: &T) {
    bytes.push(FORMAT);
    // Writing to a vector cannot fail, and the records above hold nothing that serde refuses.
    bincode::serde::encode_into_std_write(record, bytes, bincode::config::standard())
        .expect("a record can be encoded");
}

/// Reads a record.
///
/// # Errors
/// Where the format is unknown or the bytes are not exactly one record.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Damaged> {
    decode_fields(fields_of(bytes)?)
}

/// Reads the beginning of a state record; what follows is not looked at.
///
/// # Errors
/// Where the format is unknown or the bytes are no such beginning.
pub fn decode_head(bytes: &[u8]) -> Result<StateHead, Damaged> {
    let fields = fields_of(bytes)?;
    let config = bincode::config::standard();
    let read = bincode::serde::decode_from_slice(fields, config);
    read.map(|(head, _length)| head).map_err(|error| Damaged(error.to_string()))
}

fn fields_of(bytes: &[u8]) -> Result<&[u8], Damaged> {
    match bytes.split_first() {
        Some((&FORMAT, fields)) => Ok(fields),
        Some((other, _)) => Err(Damaged(format!("record format {other} is not known"))),
        None => Err(Damaged("the record is empty".into())),
    }
}

fn decode_fields<T: DeserializeOwned>(fields: &[u8]) -> Result<T, Damaged> {
    stored::decode(fields).map_err(|error| Damaged(error.to_string()))
}

/// Stored bytes of a state.
#[derive(Debug)]
pub struct StoredState<'b>(pub &'b [u8]);

impl StateDecoder for StoredState<'_> {
    type Error = Damaged;
    fn decode<T: DeserializeOwned>(self) -> Result<T, Damaged> {
        stored::decode(self.0).map_err(|error| Damaged(error.to_string()))
    }
    fn unknown_version(self, version: u32) -> Damaged {
        Damaged(format!("its version {version} is not known here; run a build that knows it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_a_whole_or_not_at_all() {
        let lane = LaneRecord {
            incarnation: 3,
            lane: 0,
            number: 300,
            owner: "a".into(),
            time: Timestamp::from_micros(1),
            is_clean: true,
        };
        let bytes = encode(&lane);
        assert_eq!(bytes, [1, 3, 0, 251, 44, 1, 1, b'a', 2, 1]);
        assert_eq!(decode::<LaneRecord>(&bytes), Ok(lane));
        for length in 0..bytes.len() {
            assert!(decode::<LaneRecord>(&bytes[..length]).is_err(), "{length}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(decode::<LaneRecord>(&longer).is_err());
        assert!(decode::<LaneRecord>(&[2, 3, 0]).is_err());
    }
}
