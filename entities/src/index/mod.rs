//! Indexes: scalar values of a state by which its entity is found.
//!
//! A type declares them by `#[entity(index(field: Type))]` and `#[index]` on a method; by hand they are
//! [`Entity::indexes`](crate::Entity::indexes). The values of a state commit with it. `order` writes a value as
//! bytes that sort as the values do, `text` reads filters as URLs and command lines spell them.

mod order;
pub mod text;

use std::{
    fmt,
    marker::PhantomData,
    ops::{Bound, RangeBounds},
};

use serde::{Serialize, de::DeserializeOwned};

pub use self::order::{TEXT_BYTES_MAX, encode};
use crate::Layout;

/// The most indexes of one entity type.
pub const INDEXES_MAX: usize = 16;

/// The kind of an indexed value, which says how values are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scalar {
    /// `false` before `true`.
    Bool,
    /// By value, whatever its width.
    Integer,
    /// By value.
    Float,
    /// By its bytes in UTF-8; also the name of a variant without fields.
    Text,
    /// The earlier first.
    Time,
    /// The shorter first.
    Duration,
    /// By its bytes.
    Uuid,
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "bool",
            Self::Integer => "integer",
            Self::Float => "float",
            Self::Text => "text",
            Self::Time => "time",
            Self::Duration => "duration",
            Self::Uuid => "uuid",
        })
    }
}

/// The values from one on and before another, as bytes that sort as the values do. Where a value is absent
/// (`None`), its bytes come before all others, and are in no range but their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueRange {
    from: Vec<u8>,
    to: Vec<u8>,
    is_one: bool,
}

impl ValueRange {
    /// Every value, also an absent one.
    pub fn all() -> Self {
        Self { from: Vec::new(), to: order::END.to_vec(), is_one: false }
    }

    /// One value.
    fn one(value: Vec<u8>) -> Self {
        Self { to: order::behind(value.clone()), from: value, is_one: true }
    }

    fn between(from: Bound<Vec<u8>>, to: Bound<Vec<u8>>) -> Self {
        let from = match from {
            Bound::Included(value) => value,
            Bound::Excluded(value) => order::behind(value),
            Bound::Unbounded => order::PRESENT.to_vec(),
        };
        let to = match to {
            Bound::Included(value) => order::behind(value),
            Bound::Excluded(value) => value,
            Bound::Unbounded => order::END.to_vec(),
        };
        Self { from, to, is_one: false }
    }

    fn beginning_with(prefix: &str) -> Self {
        let (from, to) = order::beginning_with(prefix);
        Self { from, to, is_one: false }
    }

    /// The values that are in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let from = self.from.as_slice().max(&other.from).to_vec();
        let to = self.to.as_slice().min(&other.to).to_vec();
        Self { from, to, is_one: self.is_one || other.is_one }
    }

    /// The bytes that the values begin at, and those that they end before.
    pub fn bytes(&self) -> (&[u8], &[u8]) {
        (&self.from, &self.to)
    }

    /// Whether it is one value.
    pub fn is_one(&self) -> bool {
        self.is_one
    }

    /// Whether a value is one of them.
    pub fn contains(&self, value: &[u8]) -> bool {
        *self.from <= *value && *value < *self.to
    }
}

/// An index of the entity type `E` with values of the type `V`. `#[entity]` makes one for each index, as
/// `E::by_name()`; it makes filters for finding entities.
pub struct Index<E, V> {
    name: &'static str,
    of: PhantomData<fn(&E) -> V>,
}

impl<E, V> Index<E, V> {
    /// The index of a name, which `E` must have.
    pub const fn named(name: &'static str) -> Self {
        Self { name, of: PhantomData }
    }

    /// The name.
    pub const fn name(self) -> &'static str {
        self.name
    }
}

impl<E, V: Serialize + Layout> Index<E, V> {
    /// The entities whose value is this one.
    pub fn is(self, value: impl Into<V>) -> Filter<E> {
        Filter::new(self.name, encode::<V>(&value.into()).map(ValueRange::one))
    }

    /// The entities whose value is in a range; an absent value is in none.
    pub fn within(self, range: impl RangeBounds<V>) -> Filter<E> {
        let encoded = |bound: Bound<&V>| match bound {
            Bound::Included(value) => encode(value).map(Bound::Included),
            Bound::Excluded(value) => encode(value).map(Bound::Excluded),
            Bound::Unbounded => Ok(Bound::Unbounded),
        };
        let range = encoded(range.start_bound())
            .and_then(|from| Ok(ValueRange::between(from, encoded(range.end_bound())?)));
        Filter::new(self.name, range)
    }

    /// The entities whose text begins so. The index must be of text.
    pub fn starts_with(self, prefix: &str) -> Filter<E> {
        let range = match V::SCALAR {
            Some(Scalar::Text) => Ok(ValueRange::beginning_with(prefix)),
            _ => Err("only text begins with something".to_owned()),
        };
        Filter::new(self.name, range)
    }
}

impl<E, V> Clone for Index<E, V> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E, V> Copy for Index<E, V> {}
impl<E, V> fmt::Debug for Index<E, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Index").field(&self.name).finish()
    }
}

/// A filter by one index of the entity type `E`.
pub struct Filter<E> {
    index: &'static str,
    range: Result<ValueRange, String>,
    of: PhantomData<fn(&E)>,
}

impl<E> Filter<E> {
    fn new(index: &'static str, range: Result<ValueRange, String>) -> Self {
        Self { index, range, of: PhantomData }
    }

    /// The name of the index, and the values that are meant.
    ///
    /// # Errors
    /// Why the values cannot be in an index.
    pub fn into_parts(self) -> Result<(String, ValueRange), String> {
        let index = self.index;
        let range = self.range.map_err(|why| format!("the index {index}: {why}"))?;
        Ok((index.to_owned(), range))
    }
}

impl<E> fmt::Debug for Filter<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Filter").field(&self.index).field(&self.range).finish()
    }
}

/// One index of an entity type: its name, and the value of a state.
pub struct IndexType<E> {
    name: &'static str,
    scalar: Scalar,
    value: fn(&E) -> Result<Vec<u8>, String>,
    read: fn(&str, Scalar) -> Result<Vec<u8>, String>,
}

impl<E> IndexType<E> {
    /// An index with values of the type `V`, which `value` gives as [`encode`] writes them. They must follow
    /// from what is stored of a state alone. Does not compile where `V` is no scalar.
    pub fn new<V: Serialize + DeserializeOwned + Layout>(
        name: &'static str,
        value: fn(&E) -> Result<Vec<u8>, String>,
    ) -> Self {
        let scalar = const {
            match V::SCALAR {
                Some(scalar) => scalar,
                None => panic!("{}", NO_SCALAR),
            }
        };
        Self { name, scalar, value, read: text::value::<V> }
    }

    /// The name: that of the field or method.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The kind of its values.
    pub fn scalar(&self) -> Scalar {
        self.scalar
    }

    /// The value of a state.
    ///
    /// # Errors
    /// Why it cannot be indexed: a text that is too long, or a number that is none.
    pub fn value(&self, state: &E) -> Result<Vec<u8>, String> {
        (self.value)(state).map_err(|why| format!("the index {}: {why}", self.name))
    }

    /// The values that a text means, as [`text`] describes it.
    ///
    /// # Errors
    /// Why it means none.
    pub fn range(&self, text: &str) -> Result<ValueRange, String> {
        let read = |value: &str| (self.read)(value, self.scalar);
        text::range(text, self.scalar, read)
            .map_err(|why| format!("the index {} ({}): {why}", self.name, self.scalar))
    }
}

impl<E> fmt::Debug for IndexType<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IndexType").field(&self.name).field(&self.scalar).finish()
    }
}

/// The message where an index is of something else.
pub const NO_SCALAR: &str = "an index is of one scalar: a bool, a number, a text, an enum without fields, a \
                             `Timestamp`, a `Timeout` or a `Uuid`, or an `Option` or newtype of one; have a \
                             method compute it, with `#[index]`";

/// An index in words, as `GET /v1/entities` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct IndexDescription {
    /// The name.
    pub name: &'static str,
    /// The kind of its values.
    pub values: Scalar,
}

impl<E> From<&IndexType<E>> for IndexDescription {
    fn from(index: &IndexType<E>) -> Self {
        Self { name: index.name, values: index.scalar }
    }
}
