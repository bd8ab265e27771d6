//! The stored form of a state, and the proof that it can be read back before anything of its turn is
//! acknowledged. A home of bincode.
//!
//! The form is by position and knows no names, so a type whose serde code asks what comes next, or
//! writes what it does not read, is lost in it. Serde code can be written by hand below any derive, so no
//! type is trusted: each state is read again before it is committed. In debug builds and in test drivers
//! it is read from its JSON too.

use bincode::enc::write::SizeWriter;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    json,
    state::{Layout, LayoutText},
};

/// The most bytes that decoding may ask for.
const DECODE_BYTES_MAX: usize = 256 << 20;

/// Why bytes are not the state that they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub String);

/// Encodes a state.
///
/// # Errors
/// Where serde refuses a part of the state.
pub fn encode<T: Serialize>(state: &T) -> Result<Vec<u8>, Unreadable> {
    bincode::serde::encode_to_vec(state, bincode::config::standard())
        .map_err(|error| Unreadable(error.to_string()))
}

/// The number of bytes that a state takes once it is encoded; cheaper than encoding it.
///
/// # Errors
/// Where serde refuses a part of the state.
pub fn size<T: Serialize>(state: &T) -> Result<usize, Unreadable> {
    let mut size = SizeWriter::default();
    bincode::serde::encode_into_writer(state, &mut size, bincode::config::standard())
        .map_err(|error| Unreadable(error.to_string()))?;
    Ok(size.bytes_written)
}

/// Decodes a state.
///
/// # Errors
/// Where the bytes are not exactly one state of this type.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unreadable> {
    decode_borrowed(bytes)
}

/// Decodes what may borrow from its stored form.
///
/// # Errors
/// As [`decode`].
pub(crate) fn decode_borrowed<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Unreadable> {
    let config = bincode::config::standard().with_limit::<DECODE_BYTES_MAX>();
    match bincode::serde::borrow_decode_from_slice(bytes, config) {
        Ok((value, length)) if length == bytes.len() => Ok(value),
        Ok((_, length)) => {
            Err(Unreadable(format!("{} bytes are left over", bytes.len().saturating_sub(length))))
        }
        Err(error) => Err(Unreadable(error.to_string())),
    }
}

/// Which proofs the states of a type need before each commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// Whether sets and maps of a state may be written in another order each time.
    pub is_unordered: bool,
    /// Whether the state is checked for what JSON cannot carry.
    pub json: bool,
    /// Whether the JSON form is read again too.
    pub json_again: bool,
    /// Whether a state may hold collections, of which its JSON form shows a page.
    pub has_collections: bool,
}

impl Checks {
    /// Those that the layout of a type asks for, and the JSON form read again in debug builds.
    pub fn of<T: Layout>() -> Self {
        Self { json_again: cfg!(debug_assertions), ..Self::without_json::<T>() }
    }

    /// All of them, for a type.
    pub fn all_of<T: Layout>() -> Self {
        Self { json: true, json_again: true, ..Self::without_json::<T>() }
    }

    fn without_json<T: Layout>() -> Self {
        let layout = LayoutText::described::<T>();
        let is_unordered = layout.is_unordered() || layout.is_unproven();
        let (json, has_collections) = (layout.may_lack_json(), layout.has_collections());
        Self { is_unordered, json, json_again: false, has_collections }
    }

    /// Those of the entries of a state's collections.
    #[must_use]
    pub fn of_entries(self) -> Self {
        Self { has_collections: false, ..self }
    }

    /// Proves that a state can be read back: from its stored form, and, for those who ask for it, as
    /// JSON.
    ///
    /// # Errors
    /// What is wrong, and how it is mended, in words.
    pub fn prove<T>(self, state: &T, stored: &[u8]) -> Result<(), String>
    where
        T: Serialize + DeserializeOwned,
    {
        self.prove_stored::<T>(stored)?;
        self.prove_json(state, stored)
    }

    /// Proves that a state can be read back from its stored form.
    ///
    /// # Errors
    /// As [`Checks::prove`].
    pub fn prove_stored<T>(self, stored: &[u8]) -> Result<(), String>
    where
        T: Serialize + DeserializeOwned,
    {
        let advice = "hold what describes itself as `Json<T>`, and write by hand only serde code that \
                      reads what it writes";
        let again = decode::<T>(stored).map_err(|error| {
            format!("the state could not be read again once it is stored ({error}): {advice}")
        })?;
        let again = encode(&again).map_err(|error| error.to_string())?;
        if !self.is_same(&again, stored) {
            return Err(format!("the state would be read back as another one: {advice}"));
        }
        Ok(())
    }

    /// Checks that a state has a JSON form, where its type may lack one.
    ///
    /// # Errors
    /// What JSON cannot carry, in words.
    pub fn check_json<T: Serialize>(self, state: &T) -> Result<(), String> {
        match self.json {
            true => {
                json::check(state).map_err(|error| format!("the state has no JSON form: {error}"))
            }
            false => Ok(()),
        }
    }

    fn prove_json<T>(self, state: &T, stored: &[u8]) -> Result<(), String>
    where
        T: Serialize + DeserializeOwned,
    {
        self.check_json(state)?;
        if self.json_again && !self.has_collections {
            let json = json::encode(state).map_err(|error| error.to_string())?;
            let again = serde_json::from_slice::<T>(&json).map_err(|error| {
                format!("the state cannot be read from the JSON that is shown of it: {error}")
            })?;
            let again = encode(&again).map_err(|error| error.to_string())?;
            if !self.is_same(&again, stored) {
                let why = "names that stand twice, or an option in an option";
                return Err(format!(
                    "the JSON that is shown of the state tells another one: {why}?"
                ));
            }
        }
        Ok(())
    }

    fn is_same(self, one: &[u8], other: &[u8]) -> bool {
        one == other || (self.is_unordered && histogram(one) == histogram(other))
    }
}

/// How often each byte is there: the same for the same state, in whatever order its sets and maps are
/// written.
fn histogram(bytes: &[u8]) -> [u32; 256] {
    let mut counts = [0; 256];
    for byte in bytes {
        counts[usize::from(*byte)] += 1;
    }
    counts
}
