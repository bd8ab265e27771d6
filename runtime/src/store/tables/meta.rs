//! Facts about the store itself, and about each entity type: settings, the lane, layouts, operations.

use serde::{Deserialize, Serialize};
use stead_entities::{Timeout, Timestamp};

#[cfg(any(test, feature = "testing"))]
use super::Sample;
use super::{Description, Lifetime, Record, Table};
#[cfg(any(test, feature = "testing", feature = "rocksdb", feature = "postgres"))]
use crate::store::Write;
use crate::store::record::{self, Damaged};

pub(super) const TABLE: Description = Description {
    name: "meta",
    since: 1,
    lifetime: Lifetime::Settled,
    written_at: None,
    check,
    #[cfg(any(test, feature = "testing"))]
    samples,
};

fn check(key: &[u8], value: &[u8]) -> Result<(), Damaged> {
    match key {
        SETTINGS => record::decode::<Settings>(value).map(drop),
        LANE => record::decode::<LaneRecord>(value).map(drop),
        NUMBERS_AHEAD => record::decode::<Timeout>(value).map(drop),
        // The chain is read, and judged, when RocksDB is opened.
        HISTORY => Ok(()),
        WORKFLOWS => record::decode::<HasWorkflows>(value).map(drop),
        DECLARATIONS => record::decode::<Declarations>(value).map(drop),
        _ if key.starts_with(LAYOUT) => record::decode::<LayoutText>(value).map(drop),
        _ if key.starts_with(INDEX) => record::decode::<DeclaredIndex>(value).map(drop),
        _ if key.starts_with(NOT_INDEXED) => record::decode::<NotIndexed>(value).map(drop),
        _ if key.starts_with(CHANGES) => record::decode::<KeptChanges>(value).map(drop),
        _ if key.starts_with(&operations("")) => record::decode::<OperationNames>(value).map(drop),
        _ => Err(Damaged("an unknown key".into())),
    }
}

#[cfg(any(test, feature = "testing"))]
fn samples() -> Vec<Sample> {
    let sample = |version| {
        let key = ("sample".to_owned(), version);
        let layout = |text: &str| Write::put(&key, &LayoutText(text.into()));
        let (put, put_again) = (layout("state: unit\n"), layout("state: text\n"));
        Sample { put, put_again, end: Write::delete::<LayoutText>(&key) }
    };
    vec![sample(1), sample(2)]
}

/// The key of the store's settings.
pub const SETTINGS: &[u8] = b"settings";
/// The key of the lane of a single node.
pub const LANE: &[u8] = b"lane/0";

/// The key of the chain of batches, of which RocksDB keeps the ends.
pub const HISTORY: &[u8] = b"history";
/// The key of how far minted numbers are ahead of the clock, where that was set back.
pub const NUMBERS_AHEAD: &[u8] = b"numbers_ahead";

/// The key of the note that the store has workflows. No turn of one may be written before it; a start that was accepted may.
pub const WORKFLOWS: &[u8] = b"workflows";
/// The column family of RocksDB that comes with the note, and stays empty: programs that do not know workflows refuse a
/// directory that has it.
pub const WORKFLOWS_FAMILY: &str = "workflows";

/// The note that the store has workflows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HasWorkflows;

impl Record for HasWorkflows {
    const TABLE: Table = Table::Meta;
    type Key = ();
    fn key((): &Self::Key) -> Vec<u8> {
        WORKFLOWS.to_vec()
    }
}

/// Whether one of these writes notes that the store has workflows.
#[cfg(any(feature = "rocksdb", feature = "postgres"))]
pub(in crate::store) fn notes_workflows(writes: &[Write]) -> bool {
    writes.iter().any(|write| matches!(write, Write::Put(Table::Meta, key, _) if key == WORKFLOWS))
}

/// The key of the number of declarations.
const DECLARATIONS: &[u8] = b"declarations";

/// How often programs have declared something anew: layouts, operations, indexes and kept changes. Who declares
/// raises the number that it has read, so that programs which start at the same time follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declarations(pub u64);

impl Record for Declarations {
    const TABLE: Table = Table::Meta;
    type Key = ();
    fn key((): &Self::Key) -> Vec<u8> {
        DECLARATIONS.to_vec()
    }
}

/// The beginning of the keys of all layouts.
pub const LAYOUT: &[u8] = b"layout/";

/// The beginning of the keys of the layouts of an entity type.
pub fn layouts(entity_type: &str) -> Vec<u8> {
    [LAYOUT, entity_type.as_bytes(), b"/"].concat()
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

/// The settings that are minted once with a store.
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

impl Record for LaneRecord {
    const TABLE: Table = Table::Meta;
    type Key = ();
    fn key((): &Self::Key) -> Vec<u8> {
        LANE.to_vec()
    }
}

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

/// The first bytes of the keys of declared indexes.
pub const INDEX: &[u8] = b"index/";
/// The first bytes of the keys of partitions that are not indexed.
const NOT_INDEXED: &[u8] = b"not_indexed/";

/// An index that a program has declared, under the type and its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredIndex {
    /// The version of the type whose program declared it.
    pub version: u32,
    /// The kind of its values.
    pub values: String,
}

impl Record for DeclaredIndex {
    const TABLE: Table = Table::Meta;
    type Key = (String, String);
    fn key((entity_type, index): &Self::Key) -> Vec<u8> {
        [INDEX, entity_type.as_bytes(), b"/", index.as_bytes()].concat()
    }
}

/// A note that states of a partition may lack an index, under the type, the name of the index, the version of
/// the type and the partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotIndexed;

impl Record for NotIndexed {
    const TABLE: Table = Table::Meta;
    type Key = (String, String, u32, u16);
    fn key((entity_type, index, version, partition): &Self::Key) -> Vec<u8> {
        let mut key = not_indexed(entity_type, index, *version);
        key.extend(partition.to_be_bytes());
        key
    }
}

/// The first bytes of the keys of types whose changes are kept.
pub const CHANGES: &[u8] = b"changes/";
/// In place of the name of an index: the notes of partitions whose changes are not kept, under version 0.
pub const CHANGES_NOTE: &str = "(changes)";

/// Says that the changes of a type are kept, under its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptChanges {
    /// A number that is another one whenever changes before it may be missing.
    pub since: u64,
    /// How long they are kept.
    pub retention: Timeout,
}

impl Record for KeptChanges {
    const TABLE: Table = Table::Meta;
    type Key = String;
    fn key(entity_type: &Self::Key) -> Vec<u8> {
        [CHANGES, entity_type.as_bytes()].concat()
    }
}

/// The first bytes of the keys of the partitions that an index of a version lacks.
pub fn not_indexed(entity_type: &str, index: &str, version: u32) -> Vec<u8> {
    let names = [NOT_INDEXED, entity_type.as_bytes(), b"/", index.as_bytes(), b"/"].concat();
    [&names[..], &version.to_be_bytes()].concat()
}
