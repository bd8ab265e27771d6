//! Operations that will not be retried, with their reasons: failures, and rejections of signals.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
pub use stead_entities::Cause;
use stead_entities::{Error, ErrorKind, Timestamp};

#[cfg(any(test, feature = "testing"))]
use super::Sample;
use super::{Description, Lifetime, Record, Table, key::Reader};
#[cfg(any(test, feature = "testing"))]
use crate::store::Write;
use crate::store::record::{self, Damaged};

pub(super) const TABLE: Description = Description {
    name: "dead_letters",
    since: 1,
    lifetime: Lifetime::Settled,
    written_at: None,
    check: |key, value| {
        read_key(key)?;
        record::decode::<DeadLetter>(value).map(drop)
    },
    #[cfg(any(test, feature = "testing"))]
    samples,
};

#[cfg(any(test, feature = "testing"))]
fn samples() -> Vec<Sample> {
    let sample = |is_rejection| {
        let key = DeadLetterId { partition: 3, is_rejection, number: 7 };
        let letter = |attempts| DeadLetter {
            entity: "sample/a".into(),
            sender: "reminder r".into(),
            operation: "add".into(),
            input: b"1".to_vec(),
            token: 1,
            cause: Cause::Undecodable,
            reason: "why".into(),
            attempts,
            accepted_at: Timestamp::default(),
            dead_lettered_at: Timestamp::from_micros(1),
        };
        let put = |attempts| Write::put(&key, &letter(attempts));
        Sample { put: put(1), put_again: put(2), end: Write::delete::<DeadLetter>(&key) }
    };
    vec![sample(false), sample(true)]
}

/// The key of a dead letter.
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
    /// The sender: an entity's id, `reminder NAME`, or empty for callers outside.
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

/// The key of a row.
pub fn key(id: DeadLetterId) -> Vec<u8> {
    let mut key = id.partition.to_be_bytes().to_vec();
    key.push(u8::from(id.is_rejection));
    key.extend(id.number.to_be_bytes());
    key
}

/// Reads [`key`].
///
/// # Errors
/// Where the bytes are not such a key.
pub fn read_key(key: &[u8]) -> Result<DeadLetterId, Damaged> {
    let mut rest = Reader(key);
    let partition = u16::from_be_bytes(rest.take()?);
    let [class] = rest.take()?;
    let number = u64::from_be_bytes(rest.take()?);
    Ok(DeadLetterId { partition, is_rejection: class == 1, number })
}

impl Record for DeadLetter {
    const TABLE: Table = Table::DeadLetters;
    type Key = DeadLetterId;
    fn key(of: &Self::Key) -> Vec<u8> {
        key(*of)
    }
}
