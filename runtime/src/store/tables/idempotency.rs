//! The answers, or acceptances, under idempotency keys, until they are forgotten.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stead_entities::{EntityId, Rejection, Timestamp};

#[cfg(any(test, feature = "testing"))]
use super::Sample;
use super::{
    Description, Lifetime, Record, Table,
    key::{Reader, of_entity},
};
#[cfg(any(test, feature = "testing"))]
use crate::store::Write;
use crate::store::record::{self, Damaged};

pub(super) const TABLE: Description = Description {
    name: "idempotency",
    since: 1,
    lifetime: Lifetime::Large,
    written_at: Some(written_at),
    check: |key, value| {
        read_key(key)?;
        record::decode::<IdempotencyRecord>(value).map(drop)
    },
    #[cfg(any(test, feature = "testing"))]
    samples,
};

#[cfg(any(test, feature = "testing"))]
fn samples() -> Vec<Sample> {
    let sample = |caller: &str| {
        let id = EntityId::new("sample", "a").expect("valid");
        let key = IdempotencyKey { partition: 3, id, caller: caller.into(), key: "k".into() };
        let put = |outcome| {
            let at = Timestamp::from_micros(5);
            Write::put(&key, &IdempotencyRecord { fingerprint: 9, at, outcome })
        };
        let (pending, replied) = (Remembered::Pending, Remembered::Replied(b"5".to_vec()));
        let end = Write::delete::<IdempotencyRecord>(&key);
        Sample { put: put(pending), put_again: put(replied), end }
    };
    vec![sample(""), sample("alice")]
}

fn written_at(value: &[u8]) -> Option<Timestamp> {
    record::decode::<IdempotencyRecord>(value).ok().map(|record| record.at)
}

/// The caller's name for one operation of one entity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdempotencyKey {
    /// The entity's partition.
    pub partition: u16,
    /// The entity.
    pub id: EntityId,
    /// The caller; empty where it is not known.
    pub caller: Arc<str>,
    /// The name.
    pub key: Arc<str>,
}

/// The record under an [`IdempotencyKey`].
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
    /// A call was rejected with a code or details: the rejection as JSON.
    RejectedAs(Vec<u8>),
}

impl Remembered {
    /// A rejection. One without code and details is written as earlier programs read it.
    pub(crate) fn rejected(rejection: &Rejection) -> Self {
        match (rejection.code(), rejection.details_json()) {
            (None, None) => Self::Rejected(rejection.reason().to_owned()),
            _ => Self::RejectedAs(rejection.to_json().into_bytes()),
        }
    }
}

/// The key of a row.
pub fn key(of: &IdempotencyKey) -> Vec<u8> {
    let mut key = of_entity(of.partition, &of.id);
    key.extend(of.caller.as_bytes());
    key.push(0);
    key.extend(of.key.as_bytes());
    key
}

/// Reads [`key`].
///
/// # Errors
/// Where the bytes are not such a key.
pub fn read_key(key: &[u8]) -> Result<IdempotencyKey, Damaged> {
    let mut rest = Reader(key);
    let partition = u16::from_be_bytes(rest.take()?);
    let (id, caller) = (rest.id()?, rest.text()?);
    let key = str::from_utf8(rest.0).map_err(|_| Damaged("not UTF-8".into()))?;
    Ok(IdempotencyKey { partition, id, caller: caller.into(), key: key.into() })
}

impl Record for IdempotencyRecord {
    const TABLE: Table = Table::Idempotency;
    type Key = IdempotencyKey;
    fn key(of: &Self::Key) -> Vec<u8> {
        key(of)
    }
}
