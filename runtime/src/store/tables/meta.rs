//! What the store knows of itself, and of each entity type: settings, the lane, layouts, operations.

use serde::{Deserialize, Serialize};
use stead_entities::Timestamp;

use super::{Description, Lifetime, Record, Table};

pub(super) const TABLE: Description =
    Description { name: "meta", lifetime: Lifetime::Settled, written_at: None };

/// The key of the store's settings.
pub const SETTINGS: &[u8] = b"settings";
/// The key of the lane of a single node.
pub const LANE: &[u8] = b"lane/0";

/// The key of the chain of batches, of which RocksDB keeps the ends.
pub const HISTORY: &[u8] = b"history";
/// The key of how far minted numbers are ahead of the clock, where that was set back.
pub const NUMBERS_AHEAD: &[u8] = b"numbers_ahead";

/// What the keys of the layouts of an entity type begin with.
pub fn layouts(entity_type: &str) -> Vec<u8> {
    format!("layout/{entity_type}/").into_bytes()
}

/// The key of a layout.
pub fn layout(entity_type: &str, version: u32) -> Vec<u8> {
    let mut key = layouts(entity_type);
    key.extend(version.to_be_bytes());
    key
}

/// The key of the names of the operations that an entity type has, or had.
pub fn operations(entity_type: &str) -> Vec<u8> {
    format!("operations/{entity_type}").into_bytes()
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

/// The layout of a version of an entity type, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutText(pub String);

impl Record for LayoutText {
    const TABLE: Table = Table::Meta;
    type Key = (String, u32);
    fn key(of: &Self::Key) -> Vec<u8> {
        let (entity_type, version) = of;
        layout(entity_type, *version)
    }
}

/// The names of the operations that an entity type has, or had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationNames(pub Vec<String>);

impl Record for OperationNames {
    const TABLE: Table = Table::Meta;
    type Key = String;
    fn key(of: &Self::Key) -> Vec<u8> {
        operations(of)
    }
}
