//! Texts that clients keep and bring back: a seal, which only what was meant in this store has, and what they say.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use stead_entities::index::ValueRange;

use crate::store::tables::meta::Settings;

/// The bytes of a seal.
const SEAL: usize = 16;

/// The parts of what a text is of; whoever names the same can read it.
pub(super) type Parts<'p> = Vec<&'p [u8]>;

/// Writes a text that says this.
pub(super) fn write(settings: &Settings, parts: Parts<'_>, says: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode([&seal(settings, parts, says)[..], says].concat())
}

/// Reads what a text says, where it is of these parts.
pub(super) fn read(settings: &Settings, parts: Parts<'_>, text: &str) -> Option<Vec<u8>> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (has, says) = bytes.split_first_chunk::<SEAL>()?;
    (*has == seal(settings, parts, says)).then(|| says.to_vec())
}

/// Adds filters by the values of indexes.
pub(super) fn of_filters<'p>(parts: &mut Parts<'p>, filters: &'p [(String, ValueRange)]) {
    for (index, values) in filters {
        let (from, to) = values.bytes();
        parts.extend([index.as_bytes(), from, to]);
    }
}

fn seal<'p>(settings: &Settings, mut parts: Parts<'p>, says: &'p [u8]) -> [u8; SEAL] {
    parts.push(says);
    settings.fingerprint(&parts).to_be_bytes()
}
