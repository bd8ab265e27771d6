//! The origins of delayed signals: the caller and the trace of each that has them. The key of a row is the
//! one of its signal among the [`reminders`], and the two come and go together.
//!
//! An origin that cannot be read counts as not known: it never keeps its operation from being applied.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use stead_entities::{EntityId, Origin};

use super::{
    Description, Lifetime, Record, Table,
    reminders::{self, Slot},
};
use crate::store::record::{self, Damaged};

pub(super) const TABLE: Description = Description {
    name: "origins",
    since: 3,
    lifetime: Lifetime::Short,
    written_at: None,
    check: |key, value| {
        reminders::read_key(key)?;
        let json: String = record::decode(value)?;
        parse(&json).map(drop)
    },
    #[cfg(any(test, feature = "testing"))]
    samples: reminders::samples,
};

/// An [`Origin`] as it is stored, here and in the inbox: as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredOrigin(pub Arc<Origin>);

impl Serialize for StoredOrigin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let json = serde_json::to_string(&*self.0).map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&json)
    }
}

impl<'de> Deserialize<'de> for StoredOrigin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = String::deserialize(deserializer)?;
        let origin = parse(&json).unwrap_or_else(|error| {
            tracing::error!(%error, "an origin counts as not known");
            Origin::default()
        });
        Ok(Self(Arc::new(origin)))
    }
}

fn parse(json: &str) -> Result<Origin, Damaged> {
    serde_json::from_str(json).map_err(|error| Damaged(format!("an origin: {error}")))
}

impl Record for StoredOrigin {
    const TABLE: Table = Table::Origins;
    type Key = (u16, EntityId, Slot);
    fn key(of: &Self::Key) -> Vec<u8> {
        let (partition, id, slot) = of;
        reminders::key(*partition, id, slot)
    }
}
