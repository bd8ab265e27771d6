//! JSON as arguments, results and shown states have it: what JSON cannot carry is refused, and never
//! replaced by `null`. And a way to store what describes itself.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, DeserializeOwned},
    ser::{self, Impossible},
};

use crate::state::{Layout, LayoutText};

/// Why a value has no JSON form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoJson(String);

impl ser::Error for NoJson {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// Writes a value as JSON.
///
/// # Errors
/// Where JSON cannot carry it: a number that is not finite, a map whose keys are no text and become
/// none, or what the type's own `Serialize` refuses.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, NoJson> {
    let json = serde_json::to_vec(value).map_err(|error| NoJson(error.to_string()))?;
    // A number that JSON does not have was written as null, and what is nested deeply opens often; few
    // values need a closer look.
    let opens = json.iter().filter(|byte| matches!(byte, b'[' | b'{')).count();
    if opens > DEPTH_MAX || json.windows(4).any(|bytes| bytes == b"null") {
        check(value)?;
    }
    Ok(json)
}

/// Whether JSON can carry a value, without writing it.
///
/// # Errors
/// As [`encode`].
pub fn check<T: Serialize + ?Sized>(value: &T) -> Result<(), NoJson> {
    value.serialize(Checker(0))
}

/// How deep results and states may be nested: readers of JSON give up a little further on.
pub const DEPTH_MAX: usize = 100;

/// A value of a state that is stored as JSON text, because only a form that describes itself can be
/// read back as its type: `serde_json::Value`, enums with `#[serde(tag)]` or `#[serde(untagged)]`,
/// structs with `#[serde(flatten)]`, and most foreign types whose serde code asks what comes next.
///
/// In JSON it is shown as the value itself. The stored text is larger than the plain form, and takes
/// longer to read. What a type leaves out of its JSON is left out here too: an untagged enum is read as
/// the first variant that fits, `Some(None)` as `None`, and what `skip_serializing` skips as its default.
///
/// ```
/// use stead_entities::{Json, Layout};
///
/// #[derive(Clone, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema, Layout)]
/// struct Device {
///     settings: Json<serde_json::Value>,
/// }
///
/// let mut device = Device::default();
/// device.settings["volume"] = 7.into();
/// assert_eq!(serde_json::to_string(&device).unwrap(), r#"{"settings":{"volume":7}}"#);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Json<T>(
    /// The value.
    pub T,
);

impl<T> Deref for Json<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}
impl<T> DerefMut for Json<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
impl<T> From<T> for Json<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T: Serialize> Serialize for Json<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return self.0.serialize(serializer);
        }
        let json = encode(&self.0).map_err(ser::Error::custom)?;
        serializer.serialize_str(str::from_utf8(&json).map_err(ser::Error::custom)?)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Json<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return T::deserialize(deserializer).map(Self);
        }
        let json = String::deserialize(deserializer)?;
        serde_json::from_str(&json).map(Self).map_err(de::Error::custom)
    }
}

impl<T: JsonSchema> JsonSchema for Json<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl<T> Layout for Json<T> {
    fn describe(layout: &mut LayoutText) {
        // Whether its type reads what it writes is found out turn by turn.
        layout.leaf("JSON text");
    }
}

/// A serializer that writes nothing, and refuses what JSON cannot carry. It knows how deep it is.
struct Checker(usize);

impl Checker {
    fn deeper(self) -> Result<Self, NoJson> {
        if self.0 >= DEPTH_MAX {
            return Err(NoJson(format!("it is nested deeper than {DEPTH_MAX} levels")));
        }
        Ok(Self(self.0 + 1))
    }
}

/// The same for keys of maps, as serde_json writes them.
struct KeyChecker;

type Checked = Result<(), NoJson>;

fn finite(is_finite: bool, what: &dyn fmt::Display) -> Checked {
    if is_finite {
        return Ok(());
    }
    Err(NoJson(format!("{what} is a number that JSON does not have")))
}

fn no_key() -> NoJson {
    NoJson("a key of a map is text in JSON: a string, a number, or a variant without fields".into())
}

macro_rules! accepts {
    ($($name:ident($type:ty)),*) => {
        $(fn $name(self, _: $type) -> Checked {
            Ok(())
        })*
    };
}

impl Serializer for Checker {
    type Ok = ();
    type Error = NoJson;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    accepts! {
        serialize_bool(bool), serialize_char(char), serialize_str(&str), serialize_bytes(&[u8]),
        serialize_i8(i8), serialize_i16(i16), serialize_i32(i32), serialize_i64(i64),
        serialize_i128(i128), serialize_u8(u8), serialize_u16(u16), serialize_u32(u32),
        serialize_u64(u64), serialize_u128(u128), serialize_unit_struct(&'static str)
    }
    fn serialize_f32(self, value: f32) -> Checked {
        finite(value.is_finite(), &value)
    }
    fn serialize_f64(self, value: f64) -> Checked {
        finite(value.is_finite(), &value)
    }
    fn serialize_none(self) -> Checked {
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Checked {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Checked {
        Ok(())
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Checked {
        Ok(())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &str, value: &T) -> Checked {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Checked {
        value.serialize(self.deeper()?)
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Self, NoJson> {
        self.deeper()
    }
    fn serialize_tuple(self, _: usize) -> Result<Self, NoJson> {
        self.deeper()
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, NoJson> {
        self.deeper()
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, NoJson> {
        self.deeper()
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Self, NoJson> {
        self.deeper()
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, NoJson> {
        self.deeper()
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, NoJson> {
        self.deeper()
    }
}

/// A compound value: each part is checked.
macro_rules! parts {
    ($($compound:ident::$method:ident($($name:ty)?)),*) => {
        $(impl ser::$compound for Checker {
            type Ok = ();
            type Error = NoJson;
            fn $method<T: Serialize + ?Sized>(&mut self, $(_: $name,)? value: &T) -> Checked {
                value.serialize(Checker(self.0))
            }
            fn end(self) -> Checked {
                Ok(())
            }
        })*
    };
}
parts! {
    SerializeSeq::serialize_element(), SerializeTuple::serialize_element(),
    SerializeTupleStruct::serialize_field(), SerializeTupleVariant::serialize_field(),
    SerializeStruct::serialize_field(&'static str),
    SerializeStructVariant::serialize_field(&'static str)
}

impl ser::SerializeMap for Checker {
    type Ok = ();
    type Error = NoJson;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Checked {
        key.serialize(KeyChecker)
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Checked {
        value.serialize(Checker(self.0))
    }
    fn end(self) -> Checked {
        Ok(())
    }
}

impl Serializer for KeyChecker {
    type Ok = ();
    type Error = NoJson;
    type SerializeSeq = Impossible<(), NoJson>;
    type SerializeTuple = Impossible<(), NoJson>;
    type SerializeTupleStruct = Impossible<(), NoJson>;
    type SerializeTupleVariant = Impossible<(), NoJson>;
    type SerializeMap = Impossible<(), NoJson>;
    type SerializeStruct = Impossible<(), NoJson>;
    type SerializeStructVariant = Impossible<(), NoJson>;

    accepts! {
        serialize_bool(bool), serialize_char(char), serialize_str(&str),
        serialize_i8(i8), serialize_i16(i16), serialize_i32(i32), serialize_i64(i64),
        serialize_i128(i128), serialize_u8(u8), serialize_u16(u16), serialize_u32(u32),
        serialize_u64(u64), serialize_u128(u128)
    }
    fn serialize_f32(self, value: f32) -> Checked {
        finite(value.is_finite(), &value)
    }
    fn serialize_f64(self, value: f64) -> Checked {
        finite(value.is_finite(), &value)
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Checked {
        value.serialize(self)
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Checked {
        Ok(())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &str, value: &T) -> Checked {
        value.serialize(self)
    }
    fn serialize_bytes(self, _: &[u8]) -> Checked {
        Err(no_key())
    }
    fn serialize_none(self) -> Checked {
        Err(no_key())
    }
    fn serialize_unit(self) -> Checked {
        Err(no_key())
    }
    fn serialize_unit_struct(self, _: &'static str) -> Checked {
        Err(no_key())
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Checked {
        Err(no_key())
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Self::SerializeSeq, NoJson> {
        Err(no_key())
    }
    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, NoJson> {
        Err(no_key())
    }
    fn serialize_tuple_struct(
        self,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleStruct, NoJson> {
        Err(no_key())
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, NoJson> {
        Err(no_key())
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, NoJson> {
        Err(no_key())
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeStruct, NoJson> {
        Err(no_key())
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, NoJson> {
        Err(no_key())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
    struct Name(String);
    #[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
    enum Kind {
        Plain,
        Other(u8),
    }

    fn is_refused<T: Serialize>(value: &T) -> bool {
        let (checked, encoded) = (check(value), encode(value));
        assert_eq!(checked.is_err(), encoded.is_err(), "both say the same");
        encoded.is_err()
    }

    #[test]
    fn what_json_cannot_carry_is_refused_wherever_it_is() {
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(is_refused(&number));
            assert!(is_refused(&(1, vec![Some(number)])));
            assert!(is_refused(&BTreeMap::from([("a", number as f32)])));
        }
        assert!(is_refused(&BTreeMap::from([((1, 2), 3)])));
        assert!(is_refused(&BTreeMap::from([(Kind::Other(1), 3)])));
        assert!(is_refused(&BTreeMap::from([(None::<u8>, 3)])));
        assert!(is_refused(&BTreeMap::from([(vec![1], 3)])));
    }

    #[test]
    fn what_no_reader_follows_is_refused() {
        let nested = |levels| {
            (0..levels).fold(serde_json::json!(1), |value, _| [value].into_iter().collect())
        };
        assert!(!is_refused(&nested(DEPTH_MAX)));
        assert!(is_refused(&nested(DEPTH_MAX + 1)));
        assert!(is_refused(&crate::Timestamp::from_micros(i64::MAX)));
        assert!(is_refused(&crate::Timeout::from_micros(u64::MAX)));
        assert!(!is_refused(&(crate::Timestamp::MAX, crate::Timeout::from_micros(1 << 53))));
    }

    #[test]
    fn what_json_can_carry_is_not() {
        assert!(!is_refused(&(None::<f64>, Some(1.5), "null", ())));
        assert!(!is_refused(&BTreeMap::from([(Name("a".into()), 1)])));
        assert!(!is_refused(&BTreeMap::from([(Kind::Plain, 1)])));
        assert!(!is_refused(&BTreeMap::from([(u128::MAX, Kind::Other(1))])));
        assert!(!is_refused(&BTreeMap::from([(true, [1; 3])])));
        assert!(!is_refused(&BTreeMap::from([(Some('x'), f64::MAX)])));
        assert!(!is_refused(&BTreeMap::<(u8, u8), u8>::new()));
    }
}
