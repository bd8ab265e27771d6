//! Headers that change what a request means: honoured where a route knows them, refused elsewhere.
//!
//! A condition that is ignored protects nothing, and a method that is overridden does something else
//! than what was asked. So such a header is never passed over in silence.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use stead_entities::{Condition, TraceContext, Version};

use stead_entities::problem::Problem;

pub(super) use axum::http::header::{IF_MATCH, IF_NONE_MATCH};

/// The caller's name for one operation.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The headers that change what a request means.
const MEANINGFUL: [HeaderName; 10] = [
    IF_MATCH,
    IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
    header::CONTENT_RANGE,
    IDEMPOTENCY_KEY,
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];

/// Refuses headers that change what a request means and that its route does not know.
///
/// # Errors
/// 400 with the name of the header.
pub(super) fn check(headers: &HeaderMap, known: &[HeaderName]) -> Result<(), Problem> {
    for name in headers.keys() {
        if MEANINGFUL.contains(name) && !known.contains(name) {
            let rule = format!("this route does not support the header {name}: leave it out");
            let (status, title) = (StatusCode::BAD_REQUEST, "A header is not supported here");
            return Err(Problem::new(status, "invalid", title, rule));
        }
    }
    Ok(())
}

/// The idempotency key, which may be quoted, as the IETF's draft has it.
///
/// # Errors
/// Where it is given twice, or is not UTF-8.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut given = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = given.next() else { return Ok(None) };
    if given.next().is_some() {
        return Err(Problem::invalid("Idempotency-Key is given twice"));
    }
    let key = str::from_utf8(key.as_bytes());
    let key = key.map_err(|_| Problem::invalid("Idempotency-Key is not UTF-8"))?;
    let bare = key.strip_prefix('"').and_then(|key| key.strip_suffix('"'));
    Ok(Some(bare.unwrap_or(key).to_owned()))
}

/// The trace that the request is part of. Headers that break the rules of W3C Trace Context are ignored, as
/// it demands.
pub(super) fn trace(headers: &HeaderMap) -> Option<TraceContext> {
    let mut given = headers.get_all("traceparent").iter();
    let parent = given.next()?.to_str().ok()?;
    if given.next().is_some() {
        return None;
    }
    let states = headers.get_all("tracestate").iter().map(HeaderValue::to_str);
    let states: Result<Vec<_>, _> = states.collect();
    TraceContext::new(parent, Some(&states.unwrap_or_default().join(",")))
}

/// The condition of `If-Match`, by a strong comparison, as RFC 9110 has it: tags that this server never
/// made, and weak ones, match nothing.
///
/// # Errors
/// Where it is no list of tags.
pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<Condition>, Problem> {
    if !headers.contains_key(IF_MATCH) {
        return Ok(None);
    }
    let given: Vec<_> = headers.get_all(IF_MATCH).iter().collect();
    if let [one] = given[..]
        && one.as_bytes().trim_ascii() == b"*"
    {
        return Ok(Some(Condition::Exists));
    }
    let mut versions = Vec::new();
    for tag in tags(&given)? {
        versions.extend(tag.parse::<Version>().ok());
    }
    Ok(Some(Condition::OneOf(versions)))
}

/// The texts between the quotes of strong tags.
fn tags<'h>(given: &[&'h HeaderValue]) -> Result<Vec<&'h str>, Problem> {
    let wrong = || Problem::invalid("If-Match is * or a list of tags in quotes");
    let mut found = Vec::new();
    for value in given {
        for tag in value.to_str().map_err(|_| wrong())?.split(',').map(str::trim) {
            let strong = tag.strip_prefix("W/").unwrap_or(tag);
            let bare = strong.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
            let bare = bare.filter(|bare| !bare.contains('"')).ok_or_else(wrong)?;
            if strong.len() == tag.len() {
                found.push(bare);
            }
        }
    }
    Ok(found)
}

/// Whether `If-None-Match` names `tag`, by a weak comparison, as RFC 9110 has it.
pub(super) fn if_none_match(headers: &HeaderMap, tag: &str) -> bool {
    let known = headers.get_all(IF_NONE_MATCH).iter();
    let tags = known.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
    let mut tags = tags.map(|known| known.trim().trim_start_matches("W/"));
    tags.any(|known| known == "*" || known == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(values: &[&str]) -> Option<Option<Condition>> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(IF_MATCH, HeaderValue::from_str(value).expect("a value"));
        }
        if_match(&headers).ok()
    }

    #[test]
    fn if_match_is_read_as_the_standard_says() {
        let version = |generation, revision| Version { generation, revision };
        let one_of = |versions: &[Version]| Some(Some(Condition::OneOf(versions.to_vec())));
        assert_eq!(condition(&[]), Some(None));
        assert_eq!(condition(&[" * "]), Some(Some(Condition::Exists)));
        assert_eq!(condition(&["\"1f-7\""]), one_of(&[version(31, 7)]));
        assert_eq!(condition(&["\"1-2\" , \"3-4\""]), one_of(&[version(1, 2), version(3, 4)]));
        assert_eq!(condition(&["\"1-2\"", "\"3-4\""]), one_of(&[version(1, 2), version(3, 4)]));
        for never_made in ["W/\"1-2\"", "\"x\"", "\"01-2\"", "\"1-02\"", "\"1F-2\"", "\"\""] {
            assert_eq!(condition(&[never_made]), one_of(&[]), "{never_made}");
        }
        for wrong in ["", "1-2", "\"1-2", "*, \"1-2\"", "\"1-2\" \"3-4\"", "W/*"] {
            assert_eq!(condition(&[wrong]), None, "{wrong}");
        }
    }
}
