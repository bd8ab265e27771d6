//! Arguments arrive as JSON and are checked at the door: types, unknown fields, depth.
//!
//! What this cannot see: unknown fields inside a value that its type reads as a whole
//! (`serde_json::Value`), below a `flatten` or `untagged` attribute, and the second of two equal
//! keys in a map (the last one wins; in a struct it is an error).

use std::{any::TypeId, fmt};

use serde::de::{DeserializeOwned, IgnoredAny};

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
    /// What was found and what was expected.
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
