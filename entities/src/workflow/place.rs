//! The identity of an operation within a run: where in the code it is made, and the how manieth it is there.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, SeqAccess, Visitor},
};
use smallvec::SmallVec;

use crate::state::{Layout, LayoutText};

/// The deepest that branches may be nested.
const DEPTH_MAX: usize = 64;

/// The numbers of a place. Up to four are stored inline.
type Numbers = SmallVec<[u32; 4]>;

/// The place of an operation: `3` is the third one that the workflow made, `3.2.1` the first one in the second branch
/// of the combinator that is the third.
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct Place(Numbers);

/// A scope in which operations are counted: the workflow itself, or a branch of a combinator.
#[derive(Debug, Clone, Default)]
pub(super) struct Scope {
    path: Numbers,
    next: u32,
    /// How many random numbers were drawn in it.
    pub(super) draws: u64,
}

impl Scope {
    /// The next place.
    pub(super) fn claim(&mut self) -> Place {
        self.next += 1;
        self.last()
    }

    /// The place that was claimed last.
    pub(super) fn last(&self) -> Place {
        Place(with_last(&self.path, self.next))
    }

    /// The numbers that name it; none for the workflow itself.
    pub(super) fn path(&self) -> &[u32] {
        &self.path
    }
}

impl Place {
    /// The numbers of which it consists.
    pub(super) fn numbers(&self) -> &[u32] {
        &self.0
    }

    /// The scope of a branch of the combinator at this place.
    pub(super) fn branch(&self, number: u32) -> Scope {
        Scope { path: with_last(&self.0, number), next: 0, draws: 0 }
    }

    fn of(numbers: Numbers) -> Option<Self> {
        (1..=2 * DEPTH_MAX).contains(&numbers.len()).then_some(Self(numbers))
    }

    /// The scope, and the number in it.
    fn parts(&self) -> (&[u32], u32) {
        self.0.split_last().map_or((&[], 0), |(number, scope)| (scope, *number))
    }
}

fn with_last(numbers: &Numbers, last: u32) -> Numbers {
    // `clone` copies number by number, this all at one time.
    let mut all = Numbers::from_slice(numbers);
    all.push(last);
    all
}

/// By scope, an outer one before those in it, and in a scope by number.
impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}
impl Clone for Place {
    fn clone(&self) -> Self {
        Self(Numbers::from_slice(&self.0))
    }
}
impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, number) in self.0.iter().enumerate() {
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
        let numbers: Result<Numbers, _> = text.split('.').map(str::parse).collect();
        let place = numbers.ok().and_then(Self::of);
        place.ok_or_else(|| format!("{text:?} is no place, such as 3 or 3.2.1"))
    }
}

/// As text in JSON, as numbers where it is stored.
impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.collect_str(self),
            false => self.0[..].serialize(serializer),
        }
    }
}
impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return String::deserialize(deserializer)?.parse().map_err(D::Error::custom);
        }
        deserializer.deserialize_seq(StoredNumbers)
    }
}

/// Reads the numbers of a place.
struct StoredNumbers;

impl<'de> Visitor<'de> for StoredNumbers {
    type Value = Place;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the numbers of a place")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut stored: A) -> Result<Place, A::Error> {
        let mut numbers = Numbers::new();
        while let Some(number) = stored.next_element()? {
            numbers.push(number);
        }
        Place::of(numbers).ok_or_else(|| A::Error::custom("numbers that are no place"))
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
        let sorted = ["1", "2", "10", "1.1.1", "1.1.2", "1.2.1", "2.1.1", "2.1.1.1.1"];
        let mut places = sorted.map(|place| place.parse::<Place>().expect("a place"));
        places.reverse();
        places.sort();
        assert_eq!(places.map(|place| place.to_string()), sorted, "histories are sorted so");
        assert!("".parse::<Place>().is_err() && "1.".parse::<Place>().is_err());
    }
}
