//! Every table of the store. Each is one file, which declares its keys, its records, how a row is checked
//! and samples for the conformance suite, one line of the list below, and one migration in
//! `store::postgres::sql`; what back-ends and the suite have to know of a table is in its [`Description`].

pub mod changes;
pub mod dead_letters;
pub mod due;
pub mod entries;
pub mod idempotency;
pub mod inbox;
pub mod indexes;
pub mod key;
pub mod meta;
pub mod origins;
pub mod reminders;
pub mod states;

use serde::{Serialize, de::DeserializeOwned};
use stead_entities::Timestamp;

#[cfg(any(test, feature = "testing"))]
use crate::store::Write;
use crate::store::record::{self, Damaged};

/// A record: the value of one row of a table.
pub trait Record: Serialize + DeserializeOwned + Send + 'static {
    /// The table.
    const TABLE: Table;
    /// The parts of a row's key.
    type Key: Send + 'static;
    /// The bytes of a key.
    fn key(of: &Self::Key) -> Vec<u8>;

    /// Writes the record behind what `bytes` holds already.
    fn encode_to(&self, bytes: &mut Vec<u8>) {
        record::encode_to(bytes, self);
    }

    /// The bytes of the record.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode_to(&mut bytes);
        bytes
    }

    /// Reads a record.
    ///
    /// # Errors
    /// Where the bytes are not exactly one record of a format that this program knows.
    fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        record::decode(bytes)
    }
}

/// The properties of a table that back-ends use.
#[derive(Debug)]
pub struct Description {
    /// Its name. A column family has it, and a table of PostgreSQL with `stead_` before it.
    pub name: &'static str,
    /// The version of the tables that has it first: 1, or the one of its migration in PostgreSQL.
    pub since: u32,
    /// How its rows live.
    pub lifetime: Lifetime,
    /// The time of a row, before which it is forgotten ([`Horizons`](crate::store::Horizons)); `None` for tables
    /// whose rows stay until they are deleted.
    pub written_at: Option<ReadTime>,
    /// Reads key and value of a row.
    pub check: CheckRow,
    /// Rows for the conformance suite, in the order of their keys.
    #[cfg(any(test, feature = "testing"))]
    pub samples: fn() -> Vec<Sample>,
}

/// The life of a row of a table.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug, Clone)]
pub struct Sample {
    /// Writes it.
    pub put: Write,
    /// Writes it once more.
    pub put_again: Write,
    /// Ends it.
    pub end: Write,
}

/// Reads key and value of a row.
///
/// # Errors
/// Where one of them cannot be understood.
pub type CheckRow = fn(&[u8], &[u8]) -> Result<(), Damaged>;

/// Reads the time of a row from its value; `None` where that cannot be understood.
pub type ReadTime = fn(&[u8]) -> Option<Timestamp>;

/// How the rows of a table live, by which RocksDB is tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Many, and written often: a large buffer.
    Large,
    /// Deleted soon after they were written: a small buffer.
    Short,
    /// Few, or seldom written.
    Settled,
}

macro_rules! tables {
    ($($(#[$doc:meta])* $table:ident in $file:ident,)*) => {
        /// A table of the store: a column family, or a map in memory.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Table {
            $($(#[$doc])* $table,)*
        }

        impl Table {
            /// Every table.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$table),*];
            /// How many there are.
            pub const COUNT: usize = [$(stringify!($table)),*].len();

            /// The properties of the table that back-ends use.
            pub const fn description(self) -> &'static Description {
                match self {
                    $(Self::$table => &$file::TABLE,)*
                }
            }
        }
    };
}

tables! {
    /// Settings, lanes, layouts, operations.
    Meta in meta,
    /// `type/key` to state.
    States in states,
    /// Accepted and not yet applied.
    Inbox in inbox,
    /// Reminders and delayed signals by entity.
    Reminders in reminders,
    /// The same by due time.
    Due in due,
    /// Idempotency keys.
    Idempotency in idempotency,
    /// Dead letters.
    DeadLetters in dead_letters,
    /// Callers and traces of delayed signals.
    Origins in origins,
    /// Entities by their indexed values.
    Indexes in indexes,
    /// The changes of types that keep them, in the order of commits.
    Changes in changes,
    /// The entries of collections, and large states.
    Entries in entries,
}

impl Table {
    /// The name of the column family: RocksDB makes one by itself, of a name of its own.
    pub const fn column_family(self) -> &'static str {
        match self {
            Self::Meta => "default",
            _ => self.description().name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{inbox::InboxKey, reminders::Slot, *};
    use stead_entities::EntityId;

    #[test]
    fn keys_read_what_they_write_and_sort_by_their_parts() {
        let receiver = EntityId::new("counter", "a/b").expect("valid");
        let key = |sender: &str, revision| InboxKey {
            partition: 7,
            receiver: receiver.clone(),
            sender: sender.into(),
            generation: 1,
            revision,
            index: 0,
        };
        assert_eq!(inbox::read_key(&inbox::key(&key("permit/1", 3))), Ok(key("permit/1", 3)));
        assert_eq!(inbox::read_key(&inbox::key(&key("", 3))), Ok(key("", 3)));
        assert!(inbox::key(&key("permit/1", 3)) < inbox::key(&key("permit/1", 256)));
        let at = |micros| due::key(7, Timestamp::from_micros(micros), &receiver, &Slot::Delayed(1));
        assert!(at(-5) < at(3) && at(3) < at(300));
        let (when, id, slot) = due::read_key(&at(-5)).expect("readable");
        assert_eq!((when.as_micros(), id, slot), (-5, receiver.clone(), Slot::Delayed(1)));
        assert_eq!(key::after(&[1, 255]), [2]);
    }
}
