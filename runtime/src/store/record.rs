//! The encoding of every record: one format byte, then the fields in bincode's standard
//! configuration. The home of bincode. `storage-format.md` specifies every field.

use serde::{Serialize, de::DeserializeOwned};
use stead_entities::{entity::StateDecoder, stored};

/// The first byte of every record.
pub const FORMAT: u8 = 1;

/// Why stored bytes cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Damaged(pub String);

/// Writes the format byte and the fields.
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_to(&mut bytes, record);
    bytes
}

/// The same behind what `bytes` holds already.
pub fn encode_to<T: Serialize>(bytes: &mut Vec<u8>, record: &T) {
    encode_format_to(bytes, FORMAT, record);
}

/// The same with another format byte, which programs that do not know it refuse.
pub(super) fn encode_format_to<T: Serialize>(bytes: &mut Vec<u8>, format: u8, record: &T) {
    bytes.push(format);
    // Writing to a vector cannot fail, and the records above hold nothing that serde refuses.
    bincode::serde::encode_into_std_write(record, bytes, bincode::config::standard())
        .expect("a record can be encoded");
}

/// Reads a record.
///
/// # Errors
/// Where the format is unknown or the bytes are not exactly one record.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Damaged> {
    decode_fields(fields_of(bytes)?)
}

/// Reads the first fields of a record of one of these formats; what follows is not looked at.
///
/// # Errors
/// Where the format is unknown or the bytes do not begin so.
pub(super) fn decode_beginning<T: DeserializeOwned>(
    bytes: &[u8],
    formats: &[u8],
) -> Result<T, Damaged> {
    let fields = match bytes.split_first() {
        Some((format, fields)) if formats.contains(format) => fields,
        _ => fields_of(bytes)?,
    };
    let read = bincode::serde::decode_from_slice(fields, bincode::config::standard());
    read.map(|(beginning, _length)| beginning).map_err(|error| Damaged(error.to_string()))
}

fn fields_of(bytes: &[u8]) -> Result<&[u8], Damaged> {
    match bytes.split_first() {
        Some((&FORMAT, fields)) => Ok(fields),
        Some((other, _)) => Err(Damaged(format!("record format {other} is not known"))),
        None => Err(Damaged("the record is empty".into())),
    }
}

/// Reads the fields of a record, behind its format byte.
///
/// # Errors
/// Where the bytes are not exactly one record.
pub(super) fn decode_fields<T: DeserializeOwned>(fields: &[u8]) -> Result<T, Damaged> {
    stored::decode(fields).map_err(|error| Damaged(error.to_string()))
}

/// Stored bytes of a state.
#[derive(Debug)]
pub struct StoredState<'b>(pub &'b [u8]);

impl StateDecoder for StoredState<'_> {
    type Error = Damaged;
    fn decode<T: DeserializeOwned>(self) -> Result<T, Damaged> {
        stored::decode(self.0).map_err(|error| Damaged(error.to_string()))
    }
    fn unknown_version(self, version: u32) -> Damaged {
        Damaged(format!("its version {version} is not known here; run a build that knows it"))
    }
}

#[cfg(test)]
mod tests {
    use stead_entities::Timestamp;

    use super::*;
    use crate::store::tables::meta::LaneRecord;

    #[test]
    fn a_record_is_read_as_a_whole_or_not_at_all() {
        let lane = LaneRecord {
            incarnation: 3,
            lane: 0,
            number: 300,
            owner: "a".into(),
            time: Timestamp::from_micros(1),
            is_clean: true,
        };
        let bytes = encode(&lane);
        assert_eq!(bytes, [1, 3, 0, 251, 44, 1, 1, b'a', 2, 1]);
        assert_eq!(decode::<LaneRecord>(&bytes), Ok(lane));
        for length in 0..bytes.len() {
            assert!(decode::<LaneRecord>(&bytes[..length]).is_err(), "{length}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(decode::<LaneRecord>(&longer).is_err());
        assert!(decode::<LaneRecord>(&[2, 3, 0]).is_err());
    }
}
