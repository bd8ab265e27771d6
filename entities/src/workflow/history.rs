//! History: the stored form of a run, one row for each turn.
//!
//! A row says which deliveries a turn handed to the workflow, in their order, and what the workflow began and
//! cancelled on them. So replaying the deliveries shows whether a program still does the same. What steps did in vain,
//! suspends and retries are no part of it.

use std::{borrow::Cow, fmt, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Visitor};
use serde_json::value::RawValue;

use super::place::Place;
use crate::{Layout, Timestamp, input::canonical, state::LayoutText};

/// JSON text that is stored as it is; empty where there is none. Copies share it.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Payload(Arc<[u8]>);

impl Payload {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether it is an answer that fails what waits for it.
    pub(super) fn is_failure(&self) -> bool {
        self.0.starts_with(b"{\"Err\"")
    }
    /// Whether it is the same JSON, however that is written.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self == other || canonical(&self.0) == canonical(&other.0)
    }
}

/// `null` is the same as nothing.
impl From<&[u8]> for Payload {
    fn from(json: &[u8]) -> Self {
        Self(if json == b"null" { Arc::default() } else { json.into() })
    }
}
impl From<Vec<u8>> for Payload {
    fn from(json: Vec<u8>) -> Self {
        json[..].into()
    }
}
impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// The value itself in JSON, `null` where there is none.
impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return serializer.serialize_bytes(&self.0);
        }
        match serde_json::from_slice::<&RawValue>(&self.0) {
            Ok(value) => value.serialize(serializer),
            Err(_) => serializer.serialize_none(),
        }
    }
}
impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return deserializer.deserialize_bytes(Stored);
        }
        let value = Box::<RawValue>::deserialize(deserializer)?;
        Ok(value.get().as_bytes().into())
    }
}

/// Reads stored bytes at one time, and not one by one.
struct Stored;

impl Visitor<'_> for Stored {
    type Value = Payload;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }
    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Payload, E> {
        Ok(bytes.into())
    }
}

impl JsonSchema for Payload {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Payload".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        true.into()
    }
}
impl Layout for Payload {
    fn describe(layout: &mut LayoutText) {
        layout.part::<Vec<u8>>("");
    }
}

/// The kinds of operations that a workflow begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Layout)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Work outside, by a method of the workflow's type or in place.
    Step,
    /// A moment.
    Timer,
    /// The next event of a name.
    Event,
    /// An operation of an entity, with its result.
    Call,
    /// An operation of an entity, one-way.
    Signal,
    /// Another workflow, with its result.
    Child,
    /// Another workflow, one-way.
    Detached,
    /// The lock of an entity, until its section ends.
    Lock,
}

/// An operation that the workflow began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begun {
    pub(crate) place: Place,
    pub(crate) kind: Kind,
    /// The name of the step, the event or the operation: mostly as the code has it.
    pub(crate) name: Cow<'static, str>,
    /// The id of the entity or the workflow that is asked.
    pub(crate) target: Box<str>,
    /// The argument of a step that is a method, and of a call.
    pub(crate) argument: Payload,
    /// When a timer is due.
    pub(crate) due: Option<Timestamp>,
}

impl Begun {
    /// Whether a program that begins the other does the same. Arguments are compared by tests alone: it takes long.
    pub(super) fn fits(&self, other: &Self) -> bool {
        // An empty text points nowhere, and a processor may take a hundred times as long to compare what it cannot read.
        let same = |one: &str, two: &str| one.len() == two.len() && (one.is_empty() || one == two);
        self.kind == other.kind
            && same(&self.name, &other.name)
            && same(&self.target, &other.target)
    }
}

impl fmt::Display for Begun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, kind, name, target, .. } = self;
        let kind = format!("{kind:?}").to_lowercase();
        let name = if name.is_empty() { String::new() } else { format!(" {name}") };
        let of = if target.is_empty() { String::new() } else { format!(" of {target}") };
        write!(f, "{kind}{name}{of} at place {place}")
    }
}

/// Something that a turn hands to the workflow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Delivery {
    /// The beginning of the run, with its input.
    Start(Payload),
    /// The end of the operation at a place: an answer, with the result or the failure.
    Done(Place, Payload),
    /// The wish that the run ends: everything that is outstanding fails.
    Cancel,
    /// Nothing, but more operations may begin.
    Room,
}

/// A turn of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Turn {
    /// The time of the turn.
    pub(crate) at: Timestamp,
    /// Handed over in this order.
    pub(crate) deliveries: Vec<Delivery>,
    /// In the order of their places.
    pub(crate) begun: Vec<Begun>,
    /// The operations that were given up, in the order of their places.
    pub(crate) cancelled: Vec<Place>,
    /// Answers of patches: of a name for the run, and of a place for one call.
    pub(crate) patches: Vec<(Box<str>, Option<Place>)>,
}

impl Turn {
    /// Makes it an empty one, in the same memory.
    pub(super) fn clear(&mut self, at: Timestamp) {
        let Self { at: was, deliveries, begun, cancelled, patches } = self;
        *was = at;
        deliveries.clear();
        begun.clear();
        cancelled.clear();
        patches.clear();
    }

    /// Brings what it did in the order of places.
    pub(super) fn sort(&mut self) {
        self.cancelled.sort_unstable();
        self.begun.sort_unstable_by(|one, other| one.place.cmp(&other.place));
    }

    /// The operation that it began at a place.
    pub(super) fn begun_at(&self, place: &Place) -> Option<&Begun> {
        let index = self.begun.binary_search_by(|begun| begun.place.cmp(place));
        index.ok().and_then(|index| self.begun.get(index))
    }
}
