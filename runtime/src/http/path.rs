//! Ids and names from the raw path: percent-decoded once, byte for byte.

use axum::http::Uri;
use percent_encoding::percent_decode_str;
use stead_entities::{EntityId, Error, ErrorKind};

use crate::Node;
use stead_entities::problem::Problem;

/// The decoded segments of a path behind `/v1/`. Where the router is nested, axum has taken its
/// prefix off.
///
/// # Errors
/// A malformed escape or a segment that is not UTF-8.
pub(super) fn segments(uri: &Uri) -> Result<Vec<String>, Problem> {
    let path = uri.path();
    let behind = path.strip_prefix("/v1/").unwrap_or(path);
    behind.split('/').map(decode).collect()
}

/// One segment of a path.
///
/// # Errors
/// As [`segments`].
pub(super) fn decode(segment: &str) -> Result<String, Problem> {
    let bytes = segment.as_bytes();
    let is_hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    let escapes = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%');
    if escapes.into_iter().any(|(at, _)| !(is_hex(at + 1) && is_hex(at + 2))) {
        return Err(Problem::invalid(format!("{segment:?} has a malformed percent escape")));
    }
    let decoded = percent_decode_str(segment).decode_utf8();
    let decoded = decoded.map_err(|_| Problem::invalid(format!("{segment:?} is not UTF-8")))?;
    Ok(decoded.into_owned())
}

/// `entities/{type}/{key}/...`, for a type that the node serves; or `workflows` and others before them.
///
/// # Errors
/// 404 for a type that is not served, or is a workflow among entities, or an entity among workflows, 400 for a key that breaks a rule.
pub(super) fn entity(node: &Node, uri: &Uri) -> Result<(EntityId, Vec<String>), Problem> {
    let mut parts = segments(uri)?.into_iter();
    let (entities, entity_type, key) = (parts.next(), parts.next(), parts.next());
    let entity_type = entity_type.unwrap_or_default();
    node.local().check_served(&entity_type)?;
    match entities.as_deref() {
        Some("entities") if node.local().is_workflow(&entity_type) => {
            let detail = format!("{entity_type} is a workflow: /v1/workflows/{entity_type}");
            return Err(Error::new(ErrorKind::NotFound, detail).into());
        }
        Some("workflows") => check_workflow(node, &entity_type)?,
        _ => {}
    }
    let id = EntityId::new(&entity_type, &key.unwrap_or_default());
    Ok((id.map_err(|error| Problem::invalid(error.message()))?, parts.collect()))
}

/// `workflows/{type}`, for a workflow type that the node serves.
///
/// # Errors
/// 404 for a type that is not served, or is an entity.
pub(super) fn workflow_type(node: &Node, uri: &Uri) -> Result<String, Problem> {
    let name = segments(uri)?.into_iter().nth(1).unwrap_or_default();
    node.local().check_served(&name)?;
    check_workflow(node, &name)?;
    Ok(name)
}

fn check_workflow(node: &Node, name: &str) -> Result<(), Problem> {
    if node.local().is_workflow(name) {
        return Ok(());
    }
    let detail = format!("{name} is an entity, and no workflow: /v1/entities/{name}");
    Err(Error::new(ErrorKind::NotFound, detail).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> Option<String> {
        segments(&path.parse::<Uri>().expect("a path")).ok()?.into_iter().nth(2)
    }

    #[test]
    fn a_key_is_decoded_once() {
        assert_eq!(key("/v1/entities/counter/a%2Fb").as_deref(), Some("a/b"));
        assert_eq!(key("/v1/entities/counter/a%252Fb").as_deref(), Some("a%2Fb"));
        assert_eq!(key("/v1/entities/counter/v1/calls/add").as_deref(), Some("v1"));
        assert_eq!(key("/v1/entities/v1/v1").as_deref(), Some("v1"));
        assert_eq!(key("/v1/entities/counter/%C3%BC").as_deref(), Some("\u{fc}"));
        for bad in ["%", "%2", "%zz", "%ff"] {
            assert_eq!(key(&format!("/v1/entities/counter/{bad}")), None, "{bad}");
        }
    }
}
