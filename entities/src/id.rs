//! Identity: `type/key`. An id exists for ever without being created.
//!
//! One shared string holds both parts, so that an id is cheap to clone and to hash.

use std::{borrow::Borrow, fmt, hash, sync::Arc};

use crate::{Error, ErrorKind};

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 256;
/// The longest name of an entity type, in bytes.
pub const TYPE_BYTES_MAX: usize = 64;

/// The identity of one entity: the name of its type and its key within the type.
///
/// Two ids are equal only if the bytes of both parts are equal; keys are not normalised.
///
/// ```
/// # use stead_entities::EntityId;
/// let id = EntityId::new("counter", "visits")?;
/// assert_eq!((id.entity_type(), id.key()), ("counter", "visits"));
/// assert_eq!(id.to_string(), "counter/visits");
/// assert!(EntityId::new("counter", "..").is_err());
/// # Ok::<(), stead_entities::Error>(())
/// ```
#[derive(Clone)]
pub struct EntityId {
    path: Arc<str>,
    type_length: u16,
}

impl EntityId {
    /// Joins a type name and a key.
    ///
    /// A type name is a lower-case letter followed by up to 63 lower-case letters, digits, `-` or
    /// `_`. A key is 1 to 256 bytes of UTF-8 without control characters and is neither `.` nor
    /// `..`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] names the part that breaks its rule.
    pub fn new(entity_type: &str, key: &str) -> Result<Self, Error> {
        check_type(entity_type)?;
        check_key(key)?;
        let mut path = String::with_capacity(entity_type.len() + 1 + key.len());
        path.push_str(entity_type);
        path.push('/');
        path.push_str(key);
        Ok(Self { path: path.into(), type_length: entity_type.len() as u16 })
    }

    /// Reads the `type/key` form that [`fmt::Display`] writes.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where a part breaks its rule or the slash is missing.
    pub fn parse(path: &str) -> Result<Self, Error> {
        let (entity_type, key) = path
            .split_once('/')
            .ok_or_else(|| Error::new(ErrorKind::Invalid, "an entity id is written type/key"))?;
        Self::new(entity_type, key)
    }

    /// The name of the entity's type.
    pub fn entity_type(&self) -> &str {
        &self.path[..usize::from(self.type_length)]
    }

    /// The entity's key within its type.
    pub fn key(&self) -> &str {
        &self.path[usize::from(self.type_length) + 1..]
    }

    /// Both parts, joined by a slash.
    pub fn as_str(&self) -> &str {
        &self.path
    }
}

/// Checks the name of an entity type.
///
/// # Errors
/// [`ErrorKind::Invalid`] states the rule.
pub fn check_type(name: &str) -> Result<(), Error> {
    let tail =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    let bytes = name.as_bytes();
    if bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.len() <= TYPE_BYTES_MAX
        && bytes.iter().copied().all(tail)
    {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Invalid,
        "an entity type is a lower-case letter followed by up to 63 of a-z, 0-9, - and _",
    ))
}

fn check_key(key: &str) -> Result<(), Error> {
    let reason = if key.is_empty() {
        "a key must not be empty"
    } else if key.len() > KEY_BYTES_MAX {
        "a key has at most 256 bytes"
    } else if key == "." || key == ".." {
        "a key must not be . or .."
    } else if key.chars().any(char::is_control) {
        "a key must not contain control characters"
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Invalid, reason))
}

impl PartialEq for EntityId {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}
impl Eq for EntityId {}
impl hash::Hash for EntityId {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.path.hash(state);
    }
}
impl Borrow<str> for EntityId {
    fn borrow(&self) -> &str {
        &self.path
    }
}
impl PartialOrd for EntityId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for EntityId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.path.cmp(&other.path)
    }
}
impl fmt::Display for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}
impl fmt::Debug for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_any_utf8_without_control_characters() {
        for key in ["a", "/", "a/b", "ü", "e\u{301}", "...", " ", &"k".repeat(256)] {
            let id = EntityId::new("counter", key).expect("a valid key");
            assert_eq!(id.key(), key);
            assert_eq!(EntityId::parse(id.as_str()).expect("its own text"), id);
        }
        for key in ["", ".", "..", "\n", "a\0", "\u{85}", &"k".repeat(257)] {
            assert!(EntityId::new("counter", key).is_err(), "{key:?}");
        }
    }

    #[test]
    fn keys_that_look_alike_are_two_entities() {
        let composed = EntityId::new("counter", "\u{e9}").expect("valid");
        let decomposed = EntityId::new("counter", "e\u{301}").expect("valid");
        assert_ne!(composed, decomposed);
    }

    #[test]
    fn a_type_name_is_lower_case() {
        for name in ["", "Counter", "1st", "a/b", "-a", &"t".repeat(65)] {
            assert!(EntityId::new(name, "key").is_err(), "{name:?}");
        }
    }
}
