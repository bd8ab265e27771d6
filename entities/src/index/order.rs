//! A value as bytes that sort as the values do.
//!
//! An absent value is one byte, 0. Others begin with 1. A bool is one byte. An integer is its length with its
//! sign, and its magnitude without leading zeros, big-endian: 0x80 and more for what is not negative, 0x7f and
//! less for what is, whose magnitude, less one, has its bits turned. A float is its bits, turned so that they
//! sort. A text is its UTF-8 with 0xff behind each zero byte, ended by two zero bytes. No value begins another
//! one's bytes.

use std::fmt::Display;

use serde::{
    Serialize, Serializer,
    ser::{Error as _, Impossible},
};

/// The most bytes of an indexed text.
pub const TEXT_BYTES_MAX: usize = 1_024;

const ABSENT: u8 = 0;
/// The first bytes of all values that are there.
pub(super) const PRESENT: [u8; 1] = [1];
/// The bytes behind all values.
pub(super) const END: [u8; 1] = [2];

/// The bytes of a value.
///
/// # Errors
/// Why it cannot be indexed: it is no scalar, too long, or no number.
pub fn encode<V: Serialize + ?Sized>(value: &V) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(16);
    value.serialize(Ordered(&mut bytes)).map_err(|NotIndexed(why)| why)?;
    Ok(bytes)
}

/// The first bytes behind a value, and behind everything that begins with it.
pub(super) fn behind(mut value: Vec<u8>) -> Vec<u8> {
    while let Some(last) = value.pop() {
        if last < u8::MAX {
            value.push(last + 1);
            break;
        }
    }
    value
}

/// The bytes from which on, and before which, texts begin so.
pub(super) fn beginning_with(prefix: &str) -> (Vec<u8>, Vec<u8>) {
    let mut from = PRESENT.to_vec();
    escape(prefix.as_bytes(), &mut from);
    // No byte of UTF-8 is 0xff, and a zero byte has it behind itself.
    let to = [&from[..], &[u8::MAX]].concat();
    (from, to)
}

fn escape(text: &[u8], bytes: &mut Vec<u8>) {
    for byte in text {
        bytes.push(*byte);
        if *byte == 0 {
            bytes.push(u8::MAX);
        }
    }
}

struct Ordered<'b>(&'b mut Vec<u8>);

/// Why a value cannot be indexed.
#[derive(Debug)]
struct NotIndexed(String);

impl Display for NotIndexed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for NotIndexed {}
impl serde::ser::Error for NotIndexed {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

type Written = Result<(), NotIndexed>;

impl Ordered<'_> {
    fn present(self, bytes: &[u8]) -> Written {
        self.0.extend(PRESENT);
        self.0.extend(bytes);
        Ok(())
    }

    fn integer(self, is_negative: bool, magnitude: u128) -> Written {
        let all = magnitude.to_be_bytes();
        let zeros = magnitude.leading_zeros() as usize / 8;
        let length = (all.len() - zeros) as u8;
        self.0.extend(PRESENT);
        if is_negative {
            self.0.push(0x7f - length);
            self.0.extend(all[zeros..].iter().map(|byte| !byte));
        } else {
            self.0.push(0x80 + length);
            self.0.extend(&all[zeros..]);
        }
        Ok(())
    }

    fn signed(self, value: i128) -> Written {
        match u128::try_from(value) {
            Ok(magnitude) => self.integer(false, magnitude),
            Err(_) => self.integer(true, value.unsigned_abs() - 1),
        }
    }

    fn text(self, text: &[u8]) -> Written {
        if text.len() > TEXT_BYTES_MAX {
            return Err(NotIndexed(format!(
                "a text of {} bytes is too long: the limit is {TEXT_BYTES_MAX}",
                text.len()
            )));
        }
        self.0.extend(PRESENT);
        escape(text, self.0);
        self.0.extend([0, 0]);
        Ok(())
    }

    fn no_scalar<T>(what: &str) -> Result<T, NotIndexed> {
        Err(NotIndexed(format!("{what} is no scalar")))
    }
}

/// Writes a value that is one scalar.
impl Serializer for Ordered<'_> {
    type Ok = ();
    type Error = NotIndexed;
    type SerializeSeq = Impossible<(), NotIndexed>;
    type SerializeTuple = Impossible<(), NotIndexed>;
    type SerializeTupleStruct = Impossible<(), NotIndexed>;
    type SerializeTupleVariant = Impossible<(), NotIndexed>;
    type SerializeMap = Impossible<(), NotIndexed>;
    type SerializeStruct = Impossible<(), NotIndexed>;
    type SerializeStructVariant = Impossible<(), NotIndexed>;

    /// Times and durations are numbers then, and a Uuid its bytes.
    fn is_human_readable(&self) -> bool {
        false
    }
    fn serialize_bool(self, value: bool) -> Written {
        self.present(&[u8::from(value)])
    }
    fn serialize_i8(self, value: i8) -> Written {
        self.signed(value.into())
    }
    fn serialize_i16(self, value: i16) -> Written {
        self.signed(value.into())
    }
    fn serialize_i32(self, value: i32) -> Written {
        self.signed(value.into())
    }
    fn serialize_i64(self, value: i64) -> Written {
        self.signed(value.into())
    }
    fn serialize_i128(self, value: i128) -> Written {
        self.signed(value)
    }
    fn serialize_u8(self, value: u8) -> Written {
        self.integer(false, value.into())
    }
    fn serialize_u16(self, value: u16) -> Written {
        self.integer(false, value.into())
    }
    fn serialize_u32(self, value: u32) -> Written {
        self.integer(false, value.into())
    }
    fn serialize_u64(self, value: u64) -> Written {
        self.integer(false, value.into())
    }
    fn serialize_u128(self, value: u128) -> Written {
        self.integer(false, value)
    }
    fn serialize_f32(self, value: f32) -> Written {
        self.serialize_f64(value.into())
    }
    fn serialize_f64(self, value: f64) -> Written {
        if value.is_nan() {
            return Err(NotIndexed::custom("it is not a number"));
        }
        // Both zeros are one value.
        let bits = (value + 0.0).to_bits();
        let is_negative = bits >> 63 == 1;
        let sorted = if is_negative { !bits } else { bits | (1 << 63) };
        self.present(&sorted.to_be_bytes())
    }
    fn serialize_char(self, value: char) -> Written {
        self.text(value.encode_utf8(&mut [0; 4]).as_bytes())
    }
    fn serialize_str(self, value: &str) -> Written {
        self.text(value.as_bytes())
    }
    fn serialize_bytes(self, value: &[u8]) -> Written {
        self.text(value)
    }
    fn serialize_none(self) -> Written {
        self.0.push(ABSENT);
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Written {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Written {
        Self::no_scalar("a unit")
    }
    fn serialize_unit_struct(self, name: &'static str) -> Written {
        Self::no_scalar(name)
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Written {
        self.text(variant.as_bytes())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Written {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: &T,
    ) -> Written {
        Self::no_scalar(variant)
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Self::SerializeSeq, NotIndexed> {
        Self::no_scalar("a sequence")
    }
    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, NotIndexed> {
        Self::no_scalar("a tuple")
    }
    fn serialize_tuple_struct(
        self,
        name: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleStruct, NotIndexed> {
        Self::no_scalar(name)
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, NotIndexed> {
        Self::no_scalar(variant)
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, NotIndexed> {
        Self::no_scalar("a map")
    }
    fn serialize_struct(
        self,
        name: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStruct, NotIndexed> {
        Self::no_scalar(name)
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, NotIndexed> {
        Self::no_scalar(variant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Timeout, Timestamp};

    fn sorts<V: Serialize + std::fmt::Debug>(values: &[V]) {
        let encoded: Vec<_> = values.iter().map(|value| encode(value).expect("a scalar")).collect();
        for (pair, of) in encoded.windows(2).zip(values.windows(2)) {
            assert!(pair[0] < pair[1], "{of:?}");
            assert!(!pair[1].starts_with(&pair[0]), "{of:?}");
        }
    }

    #[test]
    fn bytes_sort_as_the_values_do() {
        sorts(&[false, true]);
        let integers = [
            i128::MIN,
            i64::MIN.into(),
            -65_537,
            -65_536,
            -257,
            -256,
            -255,
            -2,
            -1,
            0,
            1,
            127,
            128,
            255,
            256,
            65_535,
            65_536,
            i64::MAX.into(),
            i128::MAX,
        ];
        sorts(&integers);
        sorts(&[0, 1, u64::MAX]);
        sorts(&[f64::NEG_INFINITY, f64::MIN, -1.5, -1e-300, 0.0, 1e-300, 1.0, 1.5, f64::INFINITY]);
        sorts(&[
            "",
            "\0",
            "\0\0",
            "\0a",
            "\u{1}",
            "a",
            "a\0",
            "a\0b",
            "aa",
            "b",
            "ä",
            "\u{10ffff}",
        ]);
        sorts(&[None, Some(""), Some("a")]);
        sorts(&[-1, 0, 1].map(Timestamp::from_micros));
        sorts(&[Timeout::from_micros(1), Timeout::from_micros(300)]);
        assert_eq!(encode(&5_i8), encode(&5_u64), "whatever the width");
        assert_eq!(encode(&0.0), encode(&-0.0));
        assert_eq!(encode(&Some(5)), encode(&5));
    }

    #[test]
    fn a_value_that_is_no_scalar_is_refused() {
        assert!(encode(&[1, 2]).is_err() && encode(&(1, 2)).is_err() && encode(&()).is_err());
        assert_eq!(encode(&f64::NAN).expect_err("no number"), "it is not a number");
        assert!(encode(&"x".repeat(TEXT_BYTES_MAX)).is_ok());
        let why = encode(&"x".repeat(TEXT_BYTES_MAX + 1)).expect_err("too long");
        assert_eq!(why, "a text of 1025 bytes is too long: the limit is 1024");
    }

    #[test]
    fn a_prefix_ends_before_what_does_not_begin_so() {
        let (from, to) = beginning_with("ki");
        let is_in =
            |text: &str| (from.clone()..to.clone()).contains(&encode(&text).expect("short"));
        assert!(is_in("ki") && is_in("kim") && is_in("ki\0") && is_in("ki\u{10ffff}"));
        assert!(!is_in("kh") && !is_in("kj") && !is_in("k") && !is_in(""));
        let (from, to) = beginning_with("");
        assert!((from..to).contains(&encode("\u{10ffff}").expect("short")));
    }
}
