//! The identity of an operation within a run: where in the code it is made, and the how manieth it is there.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::state::{Layout, LayoutText};

/// The deepest that branches may be nested.
const DEPTH_MAX: usize = 64;

/// The place of an operation: `3` is the third one that the workflow made, `3.2.1` the first one in the second branch
/// of the combinator that is the third.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    scope: Option<Arc<[u32]>>,
    number: u32,
}

/// A scope in which operations are counted: the workflow itself, or a branch of a combinator.
#[derive(Debug, Clone, Default)]
pub(super) struct Scope {
    path: Option<Arc<[u32]>>,
    next: u32,
    /// How many random numbers were drawn in it.
    pub(super) draws: u64,
}

impl Scope {
    /// The next place.
    pub(super) fn claim(&mut self) -> Place {
        self.next += 1;
        Place { scope: self.path.clone(), number: self.next }
    }

    /// The place that was claimed last.
    pub(super) fn last(&self) -> Place {
        Place { scope: self.path.clone(), number: self.next }
    }

    /// The numbers that name it; none for the workflow itself.
    pub(super) fn path(&self) -> &[u32] {
        self.path.as_deref().unwrap_or_default()
    }
}

impl Place {
    /// The numbers of which it consists.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        self.path()
    }

    fn path(&self) -> impl Iterator<Item = u32> {
        let scope = self.scope.as_deref().unwrap_or_default();
        scope.iter().copied().chain([self.number])
    }

    /// The scope of a branch of the combinator at this place.
    pub(super) fn branch(&self, number: u32) -> Scope {
        let path = self.path().chain([number]).collect();
        Scope { path: Some(path), next: 0, draws: 0 }
    }

    fn of_path(path: &[u32]) -> Option<Self> {
        let (number, scope) = path.split_last()?;
        let scope = (!scope.is_empty()).then(|| scope.into());
        (scope.is_none() || path.len() <= 2 * DEPTH_MAX).then_some(Self { scope, number: *number })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, number) in self.path().enumerate() {
            let point = if at > 0 { "." } else { "" };
            write!(f, "{point}{number}")?;
        }
        Ok(())
    }
}
impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Place {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let path: Result<Vec<u32>, _> = text.split('.').map(str::parse).collect();
        let place = path.ok().and_then(|path| Self::of_path(&path));
        place.ok_or_else(|| format!("{text:?} is no place, such as 3 or 3.2.1"))
    }
}

/// As text in JSON, as numbers where it is stored.
impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.collect_str(self),
            false => serializer.collect_seq(self.path().collect::<Vec<_>>()),
        }
    }
}
impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return String::deserialize(deserializer)?.parse().map_err(D::Error::custom);
        }
        let path = Vec::<u32>::deserialize(deserializer)?;
        Self::of_path(&path).ok_or_else(|| D::Error::custom("a place without a number"))
    }
}

impl Layout for Place {
    fn describe(layout: &mut LayoutText) {
        layout.part::<Vec<u32>>("");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_back_as_it_was_written() {
        let mut top = Scope::default();
        let (one, two) = (top.claim(), top.claim());
        let inner = two.branch(3).claim();
        assert_eq!([&one, &two, &inner].map(ToString::to_string), ["1", "2", "2.3.1"]);
        for place in [one, two, inner] {
            assert_eq!(place.to_string().parse(), Ok(place.clone()));
            let stored = crate::stored::encode(&place).expect("storable");
            assert_eq!(crate::stored::decode::<Place>(&stored).expect("readable"), place);
        }
        assert!("".parse::<Place>().is_err() && "1.".parse::<Place>().is_err());
    }
}
