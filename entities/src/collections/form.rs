//! The forms of a collection within its state: stored, and as JSON.

use serde::{
    Deserialize, Serialize, Serializer,
    ser::{Error as _, SerializeStruct as _},
};

use super::turn;

/// Writes a collection: its number with the rest of its header where it is stored, and its length with a page of
/// its entries, where those may be shown, as JSON.
pub(super) fn write<S: Serializer>(
    serializer: S,
    stored: (u32, impl Serialize),
    length: u64,
    page: &impl Serialize,
) -> Result<S::Ok, S::Error> {
    if !serializer.is_human_readable() {
        if stored.0 == 0 {
            return Err(S::Error::custom(
                "a collection stands where none is found: in an opaque part, a layout written by hand, a set, or an \
                 entry of another collection",
            ));
        }
        return stored.serialize(serializer);
    }
    let shows_entries = turn::shows_entries();
    let mut shown = serializer.serialize_struct("Collection", 1 + usize::from(shows_entries))?;
    shown.serialize_field("length", &length)?;
    if shows_entries {
        shown.serialize_field("entries", page)?;
    }
    shown.end()
}

/// A collection as JSON shows it.
#[derive(Deserialize)]
#[serde(bound(deserialize = "E: Deserialize<'de> + Default"))]
pub(super) struct Shown<E> {
    pub(super) length: u64,
    #[serde(default)]
    pub(super) entries: E,
}
