//! Filters as URLs and command lines spell them: `status:pending,approver:k*,value:>=5`.
//!
//! A filter is the name of an index, a colon and what its value is: `5` is that value, `>5`, `>=5`, `<5` and
//! `<=5` compare, `5..9` is from 5 on and before 9 (either end may be missing), `ki*` is a text that begins so,
//! and `null` an absent value. A text that would be read as something else, or has a comma, is a JSON string:
//! `"null"`, `"a,b"`, `"5*"`.

use std::ops::Bound;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{INDEXES_MAX, Scalar, ValueRange, encode};

/// The most filters of one search.
pub const FILTERS_MAX: usize = 2 * INDEXES_MAX;

/// Filters, by the names of their indexes.
///
/// # Errors
/// Which of them is none.
pub fn filters(text: &str) -> Result<Vec<(&str, &str)>, String> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if found.len() >= FILTERS_MAX {
            return Err(format!("there are more than {FILTERS_MAX} filters"));
        }
        let end = place_outside_quotes(rest, ",").unwrap_or(rest.len());
        let (filter, behind) = rest.split_at(end);
        rest = behind.strip_prefix(',').unwrap_or_default();
        found.push(filter.split_once(':').ok_or_else(|| {
            format!(
                "{filter:?} is no filter: that is an index, a colon and its value, such as `status:pending`"
            )
        })?);
    }
    match found.is_empty() {
        true => Err("there is no filter: `status:pending` is one".to_owned()),
        false => Ok(found),
    }
}

/// The first place of `what` that is in no JSON string.
fn place_outside_quotes(text: &str, what: &str) -> Option<usize> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (place, letter) in text.char_indices() {
        match letter {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            _ if !is_quoted && text[place..].starts_with(what) => return Some(place),
            _ => {}
        }
    }
    None
}

/// The values that a text means, each of which `read` reads.
pub(super) fn range(
    text: &str,
    scalar: Scalar,
    read: impl Fn(&str) -> Result<Vec<u8>, String>,
) -> Result<ValueRange, String> {
    use Bound::{Excluded, Included, Unbounded};
    for (sign, is_upper, is_in) in
        [(">=", false, true), ("<=", true, true), (">", false, false), ("<", true, false)]
    {
        let Some(value) = text.strip_prefix(sign) else { continue };
        let value = read(value)?;
        let bound = if is_in { Included(value) } else { Excluded(value) };
        return Ok(match is_upper {
            true => ValueRange::between(Unbounded, bound),
            false => ValueRange::between(bound, Unbounded),
        });
    }
    if let Some(place) = place_outside_quotes(text, "..") {
        let (from, to) = (&text[..place], &text[place + 2..]);
        let from = if from.is_empty() { Unbounded } else { Included(read(from)?) };
        let to = if to.is_empty() { Unbounded } else { Excluded(read(to)?) };
        return Ok(ValueRange::between(from, to));
    }
    let is_string = text.len() > 1 && text.starts_with('"') && text.ends_with('"');
    match text.strip_suffix('*').filter(|_| !is_string) {
        Some(_) if scalar != Scalar::Text => Err(format!(
            "{text:?} asks for texts that begin so: use a range, such as `1..9`, or `\"{text}\"` for the value"
        )),
        Some(prefix) if prefix.starts_with('"') => {
            let prefix: String =
                serde_json::from_str(prefix).map_err(|error| format!("{prefix}: {error}"))?;
            Ok(ValueRange::beginning_with(&prefix))
        }
        Some(prefix) => Ok(ValueRange::beginning_with(prefix)),
        None => Ok(ValueRange::one(read(text)?)),
    }
}

/// Reads one value of the type `V`.
pub(super) fn value<V: Serialize + DeserializeOwned>(
    text: &str,
    scalar: Scalar,
) -> Result<Vec<u8>, String> {
    let is_json =
        text.starts_with('"') || matches!(scalar, Scalar::Bool | Scalar::Integer | Scalar::Float);
    let absent = (text == "null").then(|| serde_json::from_value::<V>(Value::Null).ok()).flatten();
    let read = match absent {
        Some(absent) => Ok(absent),
        None if is_json => serde_json::from_str(text),
        None => serde_json::from_value(Value::String(text.to_owned())),
    };
    let read: V = read.map_err(|error| format!("{text:?} is no value of it: {error}"))?;
    encode(&read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::IndexType;

    #[derive(Debug, Clone, Serialize, serde::Deserialize, crate::Layout)]
    #[serde(rename_all = "lowercase")]
    enum Status {
        New,
        Pending,
    }

    #[derive(Debug, Serialize, serde::Deserialize, crate::Layout)]
    struct Sum(i64);

    fn is_in<V: Serialize + DeserializeOwned + crate::Layout>(text: &str, value: &V) -> bool {
        let index = IndexType::<()>::new::<V>("x", |()| Ok(Vec::new()));
        let range = index.range(text).expect("a range");
        range.contains(&encode(value).expect("a scalar"))
    }

    fn refused<V: Serialize + DeserializeOwned + crate::Layout>(text: &str) -> String {
        let index = IndexType::<()>::new::<V>("x", |()| Ok(Vec::new()));
        index.range(text).expect_err("no range")
    }

    #[test]
    fn filters_are_parted_by_commas_that_are_in_no_string() {
        assert_eq!(filters("a:1,b:2"), Ok(vec![("a", "1"), ("b", "2")]));
        assert_eq!(
            filters(r#"a:"x,\",y",at:2026-01-01T00:00:00Z"#),
            Ok(vec![("a", r#""x,\",y""#), ("at", "2026-01-01T00:00:00Z")])
        );
        assert_eq!(filters("a:"), Ok(vec![("a", "")]));
        assert!(filters("").is_err() && filters("a:1,b").is_err() && filters("a").is_err());
    }

    #[test]
    fn a_value_is_equal_compared_or_in_a_range() {
        assert!(is_in("5", &5_i64) && !is_in("5", &6_i64) && is_in("-5", &Sum(-5)));
        assert!(is_in(">5", &6) && !is_in(">5", &5) && is_in(">=5", &5) && is_in("<=5", &-1));
        assert!(is_in("<5", &4) && !is_in("<5", &5) && is_in("5..9", &5) && !is_in("5..9", &9));
        assert!(is_in("..9", &-9) && is_in("5..", &99) && !is_in("..9", &9));
        assert!(is_in("1.5..2", &1.75) && !is_in("1.5..2", &2.0));
        assert!(!is_in("..9", &None::<i64>) && is_in("null", &None::<i64>));
        assert!(is_in("pending", &Status::Pending) && !is_in("pending", &Status::New));
        let at: crate::Timestamp = "2026-05-01T12:00:00Z".parse().expect("a time");
        assert!(is_in("2026-05-01T00:00:00Z..2026-05-02T00:00:00Z", &at));
    }

    #[test]
    fn a_text_may_be_a_prefix_or_quoted() {
        let text = |text: &str| text.to_owned();
        assert!(is_in("ki*", &text("kim")) && !is_in("ki*", &text("k")) && is_in("*", &text("")));
        assert!(is_in("\"ki*\"", &text("ki*")) && !is_in("\"ki*\"", &text("kim")));
        assert!(is_in("\"a,\"*", &text("a,b")) && is_in("\"a..b\"", &text("a..b")));
        assert!(is_in("null", &None::<String>) && is_in("\"null\"", &Some(text("null"))));
        assert!(is_in("null", &text("null")), "where it cannot be absent, it is a text");
        assert!(is_in("", &text("")) && is_in("a..c", &text("b")));
    }

    #[test]
    fn a_value_of_another_type_is_refused_in_words() {
        assert_eq!(
            refused::<i64>("abc"),
            "the index x (integer): \"abc\" is no value of it: expected value at line 1 column 1"
        );
        assert!(refused::<i64>(">=x").contains("\"x\" is no value of it"));
        assert!(refused::<i64>("5*").contains("texts that begin so"));
        assert!(refused::<u8>("300").contains("300") && refused::<bool>("yes").contains("yes"));
        let status = refused::<Status>("late");
        assert!(status.contains("unknown variant `late`, expected `new` or `pending`"), "{status}");
        assert!(refused::<crate::Timestamp>("today").contains("no value of it"));
        assert!(refused::<String>("\"a").contains("no value of it"));
    }
}
