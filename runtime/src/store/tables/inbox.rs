//! Signals that were accepted and are not yet applied, in the order of each sender.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stead_entities::{EntityId, Timestamp, ask::Continuation};

#[cfg(any(test, feature = "testing"))]
use super::Sample;
use super::{
    Description, Lifetime, Record, Table,
    key::{Reader, of_entity},
    origins::StoredOrigin,
};
#[cfg(any(test, feature = "testing"))]
use crate::store::Write;
use crate::store::record::{self, Damaged};

pub(super) const TABLE: Description = Description {
    name: "inbox",
    since: 1,
    lifetime: Lifetime::Short,
    written_at: None,
    check: |key, value| {
        read_key(key)?;
        InboxRecord::decode(value).map(drop)
    },
    #[cfg(any(test, feature = "testing"))]
    samples,
};

#[cfg(any(test, feature = "testing"))]
fn samples() -> Vec<Sample> {
    use stead_entities::Origin;
    let sample = |sender: &str, revision| {
        let receiver = EntityId::new("sample", "a").expect("valid");
        let sender = sender.into();
        let key = InboxKey { partition: 3, receiver, sender, generation: 1, revision, index: 0 };
        let origin = Origin::new(Some("alice".into()), None).expect("valid");
        let record = InboxRecord {
            token: 1,
            operation: "add".into(),
            input: b"1".to_vec(),
            is_call: true,
            attempts: 0,
            accepted_at: Timestamp::from_micros(1),
            deadline: Some(Timestamp::from_micros(2)),
            idempotency: Some(("alice".into(), "k".into(), 7)),
            origin: origin.map(StoredOrigin),
            asked: None,
        };
        let again = InboxRecord { attempts: 1, ..record.clone() };
        let (put, end) = (Write::Accept(key.clone(), record), Write::Consume(key.clone()));
        Sample { put, put_again: Write::Retry(key, again), end }
    };
    let mut samples = vec![sample("", 300), sample("?sample/b", 7), sample("sample/b", 3)];
    samples.push(sample("sample/b", 256));
    for row in samples.iter_mut().skip(1).take(2) {
        for write in [&mut row.put, &mut row.put_again] {
            let (Write::Accept(_, record) | Write::Retry(_, record)) = write else { continue };
            record.asked = Some(Box::new(Asked {
                number: 9,
                part: 1,
                parts: 2,
                has_timeout: true,
                then: Continuation {
                    operation: "on_added".into(),
                    argument: "answers".into(),
                    others: b"{\"order\":7}".to_vec(),
                    takes_list: true,
                },
                fence: None,
            }));
        }
    }
    samples
}

/// The identity of an accepted signal: who sent it to whom, and its place in the sender's order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InboxKey {
    /// The partition of the receiver.
    pub partition: u16,
    /// The receiver.
    pub receiver: EntityId,
    /// The sender's id, empty for callers outside. That of an answer has [`ANSWERS`] before it.
    pub sender: Arc<str>,
    /// The sender's generation; 0 for callers outside. An answer has this and the rest of the key from
    /// its question.
    pub generation: u64,
    /// The sender's revision; the acceptance number for callers outside.
    pub revision: u64,
    /// The place among the signals of one turn.
    pub index: u32,
}

/// The first character of the sender of an answer. No type of entities begins with it.
pub const ANSWERS: char = '?';

/// The format of a row of an ask: behind the record is what its answer needs.
const FORMAT_OF_ASKS: u8 = 2;
/// The format of a question that is asked under a lock: the fence of that is behind what [`FORMAT_OF_ASKS`] has.
const FORMAT_OF_FENCED: u8 = 3;

impl InboxKey {
    /// Whether the row is an answer.
    pub fn is_answer(&self) -> bool {
        self.sender.starts_with(ANSWERS)
    }

    /// The key of the answer to a question that has this key.
    ///
    /// # Errors
    /// Where the sender is no entity.
    pub fn of_answer(&self, partition_of: impl Fn(&EntityId) -> u16) -> Result<Self, Damaged> {
        let asker = EntityId::parse(&self.sender).map_err(|error| Damaged(error.to_string()))?;
        let sender = format!("{ANSWERS}{}", self.receiver).into();
        Ok(Self { partition: partition_of(&asker), receiver: asker, sender, ..self.clone() })
    }
}

/// The part of a row that tells of an ask, in the question and in its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The number of the ask, which no other of its asker has.
    pub number: u64,
    /// Which of its questions this is, or answers.
    pub part: u32,
    /// How many questions it has.
    pub parts: u32,
    /// Whether a reminder of the asker ends it.
    pub has_timeout: bool,
    /// The operation of the asker that takes what comes of it. The first part alone has its other
    /// arguments.
    pub then: Continuation,
    /// The fence of the lock under which a question is asked, or for which it asks. Rows that have one are of a format of
    /// their own.
    #[serde(skip)]
    pub fence: Option<Box<str>>,
}

/// A signal that was accepted and is not yet applied, or a call that awaits outside services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboxRecord {
    /// The operation's name for the outside world.
    pub token: u128,
    /// The name of the operation.
    pub operation: String,
    /// Its argument as JSON.
    pub input: Vec<u8>,
    /// Whether a caller waits, or waited, for the result.
    pub is_call: bool,
    /// How often it was tried in vain.
    pub attempts: u32,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// When its caller stops waiting.
    pub deadline: Option<Timestamp>,
    /// Caller, idempotency key, and the fingerprint of what the key stands for.
    pub idempotency: Option<(String, String, u128)>,
    /// Its caller and its trace, where they are known.
    pub origin: Option<StoredOrigin>,
    /// The ask that it is a part of. Rows that have one are of a format of their own.
    #[serde(skip)]
    pub asked: Option<Box<Asked>>,
}

impl InboxRecord {
    /// A signal that was not tried yet, from nobody known.
    pub fn signal(token: u128, operation: String, input: Vec<u8>, accepted_at: Timestamp) -> Self {
        Self {
            token,
            operation,
            input,
            is_call: false,
            attempts: 0,
            accepted_at,
            deadline: None,
            idempotency: None,
            origin: None,
            asked: None,
        }
    }
}

/// The key of a row.
pub fn key(of: &InboxKey) -> Vec<u8> {
    let mut key = of_entity(of.partition, &of.receiver);
    key.extend(of.sender.as_bytes());
    key.push(0);
    key.extend(of.generation.to_be_bytes());
    key.extend(of.revision.to_be_bytes());
    key.extend(of.index.to_be_bytes());
    key
}

/// Reads [`key`].
///
/// # Errors
/// Where the bytes are not such a key.
pub fn read_key(key: &[u8]) -> Result<InboxKey, Damaged> {
    let mut rest = Reader(key);
    let partition = u16::from_be_bytes(rest.take()?);
    let receiver = rest.id()?;
    let sender = rest.text()?;
    let generation = u64::from_be_bytes(rest.take()?);
    let revision = u64::from_be_bytes(rest.take()?);
    let index = u32::from_be_bytes(rest.take()?);
    Ok(InboxKey { partition, receiver, sender: sender.into(), generation, revision, index })
}

impl Record for InboxRecord {
    const TABLE: Table = Table::Inbox;
    type Key = InboxKey;
    fn key(of: &Self::Key) -> Vec<u8> {
        key(of)
    }
    fn encode_to(&self, bytes: &mut Vec<u8>) {
        match &self.asked {
            None => record::encode_to(bytes, self),
            Some(asked) => match &asked.fence {
                None => record::encode_format_to(bytes, FORMAT_OF_ASKS, &(self, asked)),
                Some(fence) => {
                    record::encode_format_to(bytes, FORMAT_OF_FENCED, &(self, asked, fence));
                }
            },
        }
    }
    fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        match bytes.split_first() {
            Some((&FORMAT_OF_ASKS, fields)) => {
                let (record, asked): (Self, _) = record::decode_fields(fields)?;
                Ok(Self { asked: Some(asked), ..record })
            }
            Some((&FORMAT_OF_FENCED, fields)) => {
                let (record, asked, fence): (Self, Box<Asked>, _) = record::decode_fields(fields)?;
                let asked = Box::new(Asked { fence: Some(fence), ..*asked });
                Ok(Self { asked: Some(asked), ..record })
            }
            _ => record::decode(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_an_ask_is_written_as_it_is_specified() {
        let then = Continuation {
            operation: "on_added".into(),
            argument: "answers".into(),
            others: Vec::new(),
            takes_list: true,
        };
        let asked = Asked { number: 9, part: 1, parts: 2, has_timeout: true, then, fence: None };
        let plain = InboxRecord::signal(1, "add".into(), b"5".to_vec(), Timestamp::from_micros(1));
        let fields: &[&[u8]] = &[&[1, 3], b"add", &[1], b"5", &[0, 0, 2, 0, 0, 0]];
        let of_ask: &[&[u8]] = &[&[9, 1, 2, 1, 8], b"on_added", &[7], b"answers", &[0], &[1]];
        let (fields, of_ask) = (fields.concat(), of_ask.concat());
        assert_eq!(plain.encode(), [&[1][..], &fields].concat());
        let record = InboxRecord { asked: Some(Box::new(asked)), ..plain };
        let bytes = [&[FORMAT_OF_ASKS][..], &fields, &of_ask].concat();
        assert_eq!(record.encode(), bytes);
        assert_eq!(InboxRecord::decode(&bytes).as_ref(), Ok(&record));
        assert!(record::decode::<InboxRecord>(&bytes).is_err(), "earlier programs refuse it");
        assert!(InboxRecord::decode(&bytes[..bytes.len() - 1]).is_err());
        let asked = record.asked.map(|asked| Asked { fence: Some("1/2".into()), ..*asked });
        let record = InboxRecord { asked: asked.map(Box::new), ..record };
        let bytes = [&[FORMAT_OF_FENCED][..], &fields, &of_ask, &[3], b"1/2"].concat();
        assert_eq!(record.encode(), bytes);
        assert_eq!(InboxRecord::decode(&bytes), Ok(record));
    }
}
