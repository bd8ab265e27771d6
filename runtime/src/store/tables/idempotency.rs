//! What was answered, or accepted, under each idempotency key, until it is forgotten.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stead_entities::{EntityId, Timestamp};

use super::{Description, Lifetime, Record, Table, key::of_entity};
use crate::store::record;

pub(super) const TABLE: Description =
    Description { name: "idempotency", lifetime: Lifetime::Large, written_at: Some(written_at) };

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

/// The key of a row.
pub fn key(of: &IdempotencyKey) -> Vec<u8> {
    let mut key = of_entity(of.partition, &of.id);
    key.extend(of.caller.as_bytes());
    key.push(0);
    key.extend(of.key.as_bytes());
    key
}

impl Record for IdempotencyRecord {
    const TABLE: Table = Table::Idempotency;
    type Key = IdempotencyKey;
    fn key(of: &Self::Key) -> Vec<u8> {
        key(of)
    }
}
