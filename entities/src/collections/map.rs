//! Entries that are found by their keys.

use std::{
    borrow::{Borrow, Cow},
    fmt,
    ops::{Bound, RangeBounds},
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error as _},
};

use super::{
    Collection, ENTRIES_SHOWN_MAX, EntryChanges, Loaded,
    entries::{Entries, PAGE},
    form::{self, Shown},
    turn::{self, refuse},
};
use crate::{Layout, index, state::LayoutText, stored::Checks};

/// A map whose entries are rows of their own, ordered by key: a field of a state that may have millions of them.
///
/// A turn reads and writes the entries that it names; see [`collections`](super) for what comes of those that are
/// not in memory. A clone takes constant time. Keys are scalars that JSON can show as text: texts of at most
/// [`KEY_BYTES_MAX`](super::KEY_BYTES_MAX) bytes, integers, `bool`s, times, `Uuid`s, enums without fields and
/// newtypes of those; they are ordered by value, texts by their bytes, enums by their names. An entry has at most
/// [`ENTRY_BYTES_MAX`](super::ENTRY_BYTES_MAX) bytes. A turn that breaks a limit fails.
///
/// In JSON it is `{"length": 3, "entries": {"kim": …}}`, with the first
/// [`ENTRIES_SHOWN_MAX`] entries; lists of entities show the length alone. A map that is read from JSON has what is
/// shown, and to read another entry of it panics.
///
/// ```
/// use stead_entities::{Layout, Map};
///
/// #[derive(Clone, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema, Layout)]
/// struct Room { members: Map<String, u32> }
///
/// let mut room = Room::default();
/// assert!(room.members.insert("kim".into(), 1));
/// room.members.update("kim", |visits| *visits += 1);
/// assert_eq!((room.members.get("kim"), room.members.len()), (Some(&2), 1));
/// ```
pub struct Map<K, V> {
    entries: Entries<(K, V)>,
}

impl<K, V> Map<K, V> {
    /// A map without entries.
    pub fn new() -> Self {
        Self { entries: Entries::new() }
    }

    /// How many entries it has.
    pub fn len(&self) -> u64 {
        self.entries.length
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends all entries, also those that are not in memory.
    pub fn clear(&mut self) {
        *self = Self::new();
    }
}

impl<K: Serialize, V> Map<K, V> {
    /// The value of a key.
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        self.entries.get(&bytes_of(key)).map(|(_, value)| value)
    }

    /// Whether a key has a value.
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        self.get(key).is_some()
    }

    /// Has the entries of these keys in memory, all at one time. A turn that reads many entries asks for them
    /// so: each [`Map::get`] of one that is not there costs a try of its own.
    pub fn fetch<'k, Q>(&self, keys: impl IntoIterator<Item = &'k Q>)
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized + 'k,
    {
        let keys: Vec<_> = keys.into_iter().map(bytes_of).collect();
        self.entries.fetch(&keys);
    }

    /// Gives a key a value, in place of the one that it has; says whether it had none.
    pub fn insert(&mut self, key: K, value: V) -> bool
    where
        V: Serialize,
    {
        self.entries.insert(bytes_of(&key), (key, value))
    }

    /// Ends the entry of a key; says whether there was one.
    pub fn remove<Q>(&mut self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        self.entries.remove(&bytes_of(key))
    }

    /// Ends the entry of a key, and returns its value.
    pub fn take<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
        V: Clone,
    {
        let key = bytes_of(key);
        let (_, value) = self.entries.get(&key)?;
        let value = value.clone();
        self.entries.remove(&key);
        Some(value)
    }

    /// Changes the value of a key, and returns what `change` does; `None` where the key has none.
    pub fn update<Q, R>(&mut self, key: &Q, change: impl FnOnce(&mut V) -> R) -> Option<R>
    where
        K: Borrow<Q> + Clone,
        Q: Serialize + ?Sized,
        V: Clone + Serialize,
    {
        let bytes = bytes_of(key);
        let (known, mut value) = self.entries.get(&bytes)?.clone();
        let result = change(&mut value);
        self.entries.insert(bytes, (known, value));
        Some(result)
    }

    /// All entries, read at one time, however many there are.
    pub(crate) fn read_all(&self) -> impl Iterator<Item = (&K, &V)> {
        let count = usize::try_from(self.len()).unwrap_or(usize::MAX);
        let all = self.entries.range((&[], None), count, count);
        all.into_iter().map(|(_, (key, value))| (key, value))
    }

    /// The entries in the order of their keys. A turn or query may reach
    /// [`ENTRIES_PER_TURN_MAX`](super::ENTRIES_PER_TURN_MAX) entries so, of all collections together.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        Iter {
            entries: &self.entries,
            page: Vec::new().into_iter(),
            next: Some(Vec::new()),
            to: None,
        }
    }

    /// The entries whose keys are in a range, in their order; limited as [`Map::iter`] is. `range(..).take(n)`
    /// reads a page, `range((Bound::Excluded(&last), Bound::Unbounded)).take(n)` the next one.
    pub fn range<Q>(&self, range: impl RangeBounds<Q>) -> impl Iterator<Item = (&K, &V)>
    where
        K: Borrow<Q>,
        Q: Serialize,
    {
        let from = match range.start_bound() {
            Bound::Included(key) => bytes_of(key),
            Bound::Excluded(key) => behind(bytes_of(key)),
            Bound::Unbounded => Vec::new(),
        };
        let to = match range.end_bound() {
            Bound::Included(key) => Some(behind(bytes_of(key))),
            Bound::Excluded(key) => Some(bytes_of(key)),
            Bound::Unbounded => None,
        };
        Iter { entries: &self.entries, page: Vec::new().into_iter(), next: Some(from), to }
    }
}

/// A key as bytes that sort as keys do. The turn fails where it has none.
fn bytes_of<Q: Serialize + ?Sized>(key: &Q) -> Vec<u8> {
    index::encode(key).unwrap_or_else(|why| refuse(format!("a key of a map: {why}")))
}

/// The first bytes behind a key: nothing is between a key and itself with a zero byte.
fn behind(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

/// Reads entries a page at a time.
struct Iter<'m, K, V> {
    entries: &'m Entries<(K, V)>,
    page: std::vec::IntoIter<(&'m [u8], &'m (K, V))>,
    /// The key at which the next page begins; none behind the last one.
    next: Option<Vec<u8>>,
    to: Option<Vec<u8>>,
}

impl<'m, K, V> Iterator for Iter<'m, K, V> {
    type Item = (&'m K, &'m V);

    fn next(&mut self) -> Option<Self::Item> {
        if self.page.len() == 0 {
            let from = self.next.take()?;
            let page = self.entries.range((&from, self.to.as_deref()), PAGE, 1);
            self.next = page.last().map(|(key, _)| behind(key.to_vec()));
            self.page = page.into_iter();
        }
        let (_, (key, value)) = self.page.next()?;
        turn::visit();
        Some((key, value))
    }
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self::new()
    }
}
impl<K, V> Clone for Map<K, V> {
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone() }
    }
}
impl<K, V> fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("length", &self.len()).finish_non_exhaustive()
    }
}
/// Compares all entries; outside of turns and queries, where nothing can be loaded, those that both have in memory.
impl<K: Serialize + PartialEq, V: PartialEq> PartialEq for Map<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && match turn::is_outside() {
                true => self.entries.agrees_with(&other.entries),
                false => self.iter().eq(other.iter()),
            }
    }
}
impl<K: Serialize + Eq, V: Eq> Eq for Map<K, V> {}

impl<K: Serialize, V: Serialize> FromIterator<(K, V)> for Map<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::new();
        map.extend(entries);
        map
    }
}
impl<K: Serialize, V: Serialize> Extend<(K, V)> for Map<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K, V> Collection for Map<K, V>
where
    K: Serialize + DeserializeOwned + Send + Sync,
    V: Serialize + DeserializeOwned + Send + Sync,
{
    fn number(&self) -> u32 {
        self.entries.number
    }
    fn length(&self) -> u64 {
        self.len()
    }
    fn bytes(&self) -> usize {
        self.entries.bytes()
    }
    fn renumber(&mut self, number: u32) -> Result<(), String> {
        self.entries.renumber(number)
    }
    fn check(&mut self, checks: Checks, is_proven: bool) -> Result<usize, String> {
        self.entries.check(checks, is_proven, |_| false)
    }
    fn seal(&mut self, changes: &mut EntryChanges, checks: Checks) -> Result<(), String> {
        self.entries.seal(changes, checks, |_| false)
    }
    fn evict(&mut self, bytes_max: usize) {
        if self.entries.is_over(bytes_max) {
            self.entries.evict(None);
        }
    }
    fn supply(&mut self, loaded: &Loaded) -> Result<(), String> {
        self.entries.supply(loaded, |(key, _)| index::encode(key).ok())
    }
}

impl<K, V> Layout for Map<K, V>
where
    K: Layout + Serialize + DeserializeOwned + Send + Sync,
    V: Layout + Serialize + DeserializeOwned + Send + Sync,
{
    const CHECK: () = {
        assert!(
            K::IS_JSON_KEY && K::SCALAR.is_some(),
            "the keys of a `Map` are texts, integers, bools, times, `Uuid`s, enums without fields, or newtypes of \
             those"
        );
        V::CHECK
    };
    fn describe(layout: &mut LayoutText) {
        layout.collection("map of rows", |layout| {
            layout.part::<K>("{key}");
            layout.part::<V>("{value}");
        });
    }
    fn each_collection(&mut self, each: &mut dyn FnMut(&mut dyn Collection)) {
        each(self);
    }
}

impl<K: Serialize, V: Serialize> Serialize for Map<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        form::write(serializer, (self.entries.number, self.len()), self.len(), &Page(self))
    }
}

struct Page<'m, K, V>(&'m Map<K, V>);

impl<K: Serialize, V: Serialize> Serialize for Page<'_, K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let page = self.0.entries.range((&[], None), ENTRIES_SHOWN_MAX, ENTRIES_SHOWN_MAX);
        serializer.collect_map(page.into_iter().map(|(_, (key, value))| (key, value)))
    }
}

impl<'de, K, V> Deserialize<'de> for Map<K, V>
where
    K: DeserializeOwned + Serialize,
    V: DeserializeOwned + Serialize,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            let (number, length) = Deserialize::deserialize(deserializer)?;
            return Ok(Self { entries: Entries::stored(number, length) });
        }
        let Shown { length, entries: Pairs(entries) } = Shown::deserialize(deserializer)?;
        let shown = entries.len() as u64;
        if shown > length {
            return Err(D::Error::custom("a map has fewer entries than are shown"));
        }
        let mut map: Self = entries.into_iter().collect();
        map.entries
            .lack(length - shown, |last| (Vec::new(), last.map(|last| behind(last.to_vec()))));
        Ok(map)
    }
}

impl<K, V> Default for Pairs<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

struct Pairs<K, V>(Vec<(K, V)>);

impl<'de, K: Deserialize<'de>, V: Deserialize<'de>> Deserialize<'de> for Pairs<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<K, V>(std::marker::PhantomData<(K, V)>);
        impl<'de, K: Deserialize<'de>, V: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<K, V> {
            type Value = Pairs<K, V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the entries of a map")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Visitor(std::marker::PhantomData))
    }
}

impl<K: JsonSchema, V: JsonSchema> JsonSchema for Map<K, V> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("Map_of_{}", V::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = generator.subschema_for::<V>();
        json_schema!({
            "type": "object",
            "description": "A map: how many entries it has, and the first of them.",
            "properties": {
                "length": { "type": "integer", "minimum": 0 },
                "entries": {
                    "type": "object",
                    "additionalProperties": value,
                    "maxProperties": ENTRIES_SHOWN_MAX,
                },
            },
            "required": ["length"],
        })
    }
}
