//! Arguments arrive as JSON and are checked where they arrive: types, unknown fields, depth.
//!
//! What this cannot see: unknown fields inside a value that its type reads as a whole
//! (`serde_json::Value`), below a `flatten` or `untagged` attribute, and the second of two equal
//! keys in a map (the last one wins; in a struct it is an error).

use std::{any::TypeId, collections::BTreeMap, fmt};

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;

/// The longest path or message of an error, in bytes.
const TEXT_BYTES_MAX: usize = 300;
/// How deep JSON may be nested.
pub const JSON_DEPTH_MAX: usize = 64;

/// Why an argument could not be read: where, and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at {path}: {message}")]
pub struct InputError {
    /// The place, as in `$.request.timeout`; `$` is the whole argument.
    pub path: String,
    /// The expectation, and the value that was found.
    pub message: String,
    /// Whether the bytes are not JSON at all, or JSON of another shape.
    pub malformed: bool,
}

impl InputError {
    fn malformed(message: impl fmt::Display) -> Self {
        Self { path: "$".into(), message: shortened(message.to_string()), malformed: true }
    }
}

/// Reads an argument of type `A`. `()` takes an empty input, `null` or `{}`.
///
/// # Errors
/// Names the first path that does not fit and what was expected there.
pub fn decode<A: DeserializeOwned + 'static>(input: &[u8]) -> Result<A, InputError> {
    let is_unit = TypeId::of::<A>() == TypeId::of::<()>();
    let input: &[u8] = match input.trim_ascii() {
        b"" | b"{}" if is_unit => b"null",
        b"" => {
            return Err(InputError::malformed("the argument is missing; send it as JSON"));
        }
        other => other,
    };
    check_depth(input)?;
    let mut unknown = None;
    let mut deserializer = serde_json::Deserializer::from_slice(input);
    let value = serde_ignored::deserialize(&mut deserializer, |path| {
        unknown.get_or_insert_with(|| path.to_string());
    });
    let value = match value {
        Ok(value) => value,
        Err(_) => return Err(explain::<A>(input)),
    };
    if deserializer.end().is_err() {
        return Err(InputError::malformed("there is more after the end of the JSON value"));
    }
    match unknown {
        None => Ok(value),
        Some(path) => Err(InputError {
            // serde_ignored shows an `Option` on the way as a question mark.
            path: shortened(format!("$.{}", path.replace(".?", "").replace("?.", ""))),
            message: "unknown field".into(),
            malformed: false,
        }),
    }
}

/// Reads an argument that the runtime has made of the answers to an ask: fields that are not known are passed
/// over, as a caller does who reads a result.
///
/// # Errors
/// As [`decode`].
pub(crate) fn decode_answers<A: DeserializeOwned>(input: &[u8]) -> Result<A, InputError> {
    serde_json::from_slice(input).map_err(InputError::malformed)
}

/// A JSON argument in one spelling: no white space, the fields of objects in order, the
/// last of equal ones, texts and numbers written in one way each. Numbers keep every digit. What is
/// not JSON stands for itself.
///
/// Two arguments of one meaning can still differ where only a type knows that they are the same, such
/// as a field that is `null` and one that is left out.
pub fn canonical(input: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(input.len());
    let parsed = serde_json::from_slice::<&RawValue>(input).ok();
    match parsed.and_then(|value| write_canonical(value, &mut text)) {
        Some(()) => text,
        None => input.to_vec(),
    }
}

fn write_canonical(value: &RawValue, text: &mut Vec<u8>) -> Option<()> {
    let raw = value.get().trim();
    match raw.as_bytes().first()? {
        b'{' => {
            let fields: BTreeMap<String, &RawValue> = serde_json::from_str(raw).ok()?;
            text.push(b'{');
            for (place, (name, value)) in fields.into_iter().enumerate() {
                if place > 0 {
                    text.push(b',');
                }
                serde_json::to_writer(&mut *text, &name).ok()?;
                text.push(b':');
                write_canonical(value, text)?;
            }
            text.push(b'}');
        }
        b'[' => {
            let values: Vec<&RawValue> = serde_json::from_str(raw).ok()?;
            text.push(b'[');
            for (place, value) in values.into_iter().enumerate() {
                if place > 0 {
                    text.push(b',');
                }
                write_canonical(value, text)?;
            }
            text.push(b']');
        }
        b'"' => {
            let string: String = serde_json::from_str(raw).ok()?;
            serde_json::to_writer(text, &string).ok()?;
        }
        b'-' | b'0'..=b'9' => text.extend(canonical_number(raw)?.as_bytes()),
        _ => text.extend(raw.as_bytes()),
    }
    Some(())
}

/// A number as its sign, its digits without zeros at the ends, and an exponent of ten, so that 100,
/// 1e2 and 100.0 are the same and no digit is lost.
fn canonical_number(raw: &str) -> Option<String> {
    let (sign, rest) = raw.strip_prefix('-').map_or(("", raw), |rest| ("-", rest));
    let (mantissa, exponent) = rest.split_once(['e', 'E']).unwrap_or((rest, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    let kept = digits.trim_end_matches('0');
    if kept.is_empty() {
        return Some(format!("{sign}0"));
    }
    let exponent: i128 = exponent.parse().ok()?;
    let dropped = (digits.len() - kept.len()) as i128;
    let exponent = exponent.checked_sub(fraction.len() as i128)?.checked_add(dropped)?;
    Some(format!("{sign}{kept}e{exponent}"))
}

/// Reads the input again, slowly, to learn where it went wrong.
fn explain<A: DeserializeOwned>(input: &[u8]) -> InputError {
    let mut deserializer = serde_json::Deserializer::from_slice(input);
    match serde_path_to_error::deserialize::<_, A>(&mut deserializer) {
        Ok(_) => InputError::malformed("the input changed its meaning while it was read"),
        Err(error) => {
            if let Err(error) = serde_json::from_slice::<IgnoredAny>(input) {
                return InputError::malformed(error);
            }
            let path = error.path().to_string();
            let inner = error.into_inner();
            InputError {
                path: if path == "." { "$".into() } else { format!("$.{path}") },
                malformed: !inner.is_data(),
                message: shortened(inner.to_string()),
            }
        }
    }
}

/// A text that may hold a part of the input, short enough for a log.
fn shortened(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push_str(" ...");
    }
    text
}

fn check_depth(input: &[u8]) -> Result<(), InputError> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for &byte in input {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > JSON_DEPTH_MAX {
            let message = format!("nested deeper than {JSON_DEPTH_MAX} levels");
            return Err(InputError::malformed(message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, serde::Deserialize, PartialEq)]
    struct Outer {
        inner: Vec<Inner>,
    }
    #[derive(Debug, serde::Deserialize, PartialEq)]
    struct Inner {
        n: i64,
    }

    fn error_of<A: DeserializeOwned + fmt::Debug + 'static>(input: &[u8]) -> (String, bool) {
        let error = decode::<A>(input).expect_err("refused");
        (error.path, error.malformed)
    }

    #[test]
    fn a_bad_argument_is_named_by_its_path() {
        assert_eq!(
            error_of::<Outer>(br#"{"inner":[{"n":1},{"n":"x"}]}"#),
            ("$.inner[1].n".into(), false)
        );
        assert_eq!(
            error_of::<Outer>(br#"{"inner":[{"n":1,"m":2}]}"#),
            ("$.inner.0.m".into(), false)
        );
        assert_eq!(error_of::<Outer>(br#"{"inner":[{}]}"#), ("$.inner[0]".into(), false));
        assert_eq!(error_of::<i64>(b"1.5"), ("$".into(), false));
        assert_eq!(error_of::<i64>(b""), ("$".into(), true));
        assert_eq!(error_of::<i64>(b"1 2"), ("$".into(), true));
        assert_eq!(error_of::<String>(b"\"\xff\""), ("$".into(), true));
        assert_eq!(error_of::<()>(b"1"), ("$".into(), false));
    }

    #[test]
    fn an_error_is_short_and_names_a_field_inside_an_option() {
        #[derive(Debug, serde::Deserialize)]
        struct Holder {
            #[allow(dead_code, reason = "read by serde only")]
            inner: Option<Inner>,
        }
        let path = error_of::<Holder>(br#"{"inner":{"n":1,"m":2}}"#).0;
        assert_eq!(path, "$.inner.m");
        let long = format!("\"{}\"", "x".repeat(100_000));
        let error = decode::<i64>(long.as_bytes()).expect_err("not a number");
        assert!(error.message.len() < 400);
    }

    #[test]
    fn one_meaning_has_one_spelling_and_no_digit_is_lost() {
        let same = |one: &str, other: &str| {
            assert_eq!(canonical(one.as_bytes()), canonical(other.as_bytes()), "{one} {other}");
        };
        same(r#"{"a":1,"b":[true,null]}"#, " { \"b\" : [ true , null ] ,\n\"a\":1 } ");
        same(r#"{"a":{"x":1,"y":2}}"#, r#"{"a":{"y":2,"x":1}}"#);
        same("100", "1e2");
        same("100", "100.0");
        same("1.50", "15e-1");
        same("1.5E+3", "1500");
        same("-0.0", "-0");
        same(r#""\u00fc\/""#, r#""ü/""#);
        same(r#"{"a":1,"a":2}"#, r#"{"a":2}"#);
        let other = |one: &str, other: &str| {
            assert_ne!(canonical(one.as_bytes()), canonical(other.as_bytes()), "{one} {other}");
        };
        other("9007199254740993", "9007199254740992");
        other("18446744073709551616", "18446744073709551617");
        other("1e400", "1e401");
        other("0.1", "0.10000000000000000001");
        other("[1,2]", "[2,1]");
        other(r#""a""#, "\"a \"");
        other("1", "-1");
        other("0", "-0");
        other("1", "\"1\"");
        other("{}", "null");
        assert_eq!(canonical(b"not json"), b"not json");
        assert_eq!(canonical(b""), b"");
    }

    #[test]
    fn nothing_is_an_empty_input() {
        for input in [&b""[..], b"null", b"{}", b" \n"] {
            assert_eq!(decode::<()>(input), Ok(()));
        }
    }

    #[test]
    fn depth_is_bounded_outside_of_strings_only() {
        let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
        assert!(error_of::<serde_json::Value>(deep.as_bytes()).1);
        let text = format!("[\"\\\"{}\"]", "[".repeat(200));
        assert!(decode::<Vec<String>>(text.as_bytes()).is_ok());
        assert!(decode::<BTreeMap<String, i64>>(b"{}").is_ok());
    }
}
