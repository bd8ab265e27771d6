//! Hash tables in memory, of one owner or shared by many threads. Their hash is keyed at random in each
//! table, as the standard library's is, and takes a fraction of its time: a turn looks up several.

use std::collections::{HashMap, HashSet};

use foldhash::quality::RandomState;

pub(crate) type Map<K, V> = HashMap<K, V, RandomState>;
pub(crate) type Set<K> = HashSet<K, RandomState>;
/// A table that many threads share. No lock of it is held across an await.
pub(crate) type SharedMap<K, V> = dashmap::DashMap<K, V, RandomState>;
pub(crate) type SharedSet<K> = dashmap::DashSet<K, RandomState>;
