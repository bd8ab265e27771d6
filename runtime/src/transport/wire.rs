//! The messages between nodes. They are encoded as records are: one format byte, then the fields.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use stead_entities::{
    Condition, Delay, EntityId, Error, ErrorKind, Rejection, Request, Timeout, Timestamp,
    input::InputError,
};

use crate::{
    partition::{
        message::Delivery,
        reply::{CallResult, Response, StateView},
    },
    store::{
        record::{self, Damaged},
        tables::{
            self, Record as _,
            dead_letters::DeadLetterId,
            idempotency::Remembered,
            inbox::{InboxKey, InboxRecord},
            origins::StoredOrigin,
            reminders::{ReminderRecord, Slot},
        },
    },
};

/// A request of one node to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum PeerRequest {
    /// Do this, if the entity is yours.
    Do(Forwarded),
    /// These rows are in the store.
    Wake(Wakes),
    /// The same, where a delayed signal has its origin behind its record. A program that does not know
    /// that refuses the message, and its partitions are told to read the store.
    WakeWithOrigins(Wakes),
}

impl PeerRequest {
    pub(crate) fn wake(wakes: Wakes) -> Self {
        let mut rows = wakes.wakes.iter().filter_map(|wake| wake.row.as_ref());
        match rows.any(|row| row.has_origin) {
            true => Self::WakeWithOrigins(wakes),
            false => Self::Wake(wakes),
        }
    }
}

/// The rows that one node tells another of, after it wrote them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Wakes {
    /// The incarnation of the sender.
    pub(crate) source: u64,
    /// The incarnation for which it is meant.
    pub(crate) target: u64,
    pub(crate) wakes: Vec<Wake>,
}

/// One delivery: where it stands on its link, and its row; none where that was lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Wake {
    pub(crate) partition: u16,
    pub(crate) link: u64,
    pub(crate) place: u64,
    pub(crate) row: Option<Row>,
}

/// A row of the store: whether it is a delayed signal, its key, its record. Behind the record of a delayed
/// signal follows its origin, where it has one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    is_delayed: bool,
    key: Vec<u8>,
    record: Vec<u8>,
    /// Whether its origin follows its record; for the sender alone.
    #[serde(skip)]
    has_origin: bool,
}

impl Row {
    pub(crate) fn new(partition: u16, delivery: &Delivery) -> Self {
        match delivery {
            Delivery::Signal(key, row) => Self {
                is_delayed: false,
                key: tables::inbox::key(key),
                record: row.encode(),
                has_origin: false,
            },
            Delivery::Delayed(id, slot, row) => {
                let key = tables::reminders::key(partition, id, slot);
                let record = match row.origin.clone().map(StoredOrigin) {
                    Some(origin) => record::encode(&(row, origin)),
                    None => record::encode(row),
                };
                Self { is_delayed: true, key, record, has_origin: row.origin.is_some() }
            }
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.key.len() + self.record.len()
    }

    pub(crate) fn read(&self) -> Result<Delivery, Damaged> {
        if self.is_delayed {
            let (id, slot) = tables::reminders::read_key(&self.key)?;
            if !matches!(slot, Slot::Delayed(_)) {
                return Err(Damaged("a named reminder is nobody else's".into()));
            }
            let record = record::decode(&self.record).or_else(|_| {
                let read: Result<(ReminderRecord, _), _> = record::decode(&self.record);
                read.map(|(record, StoredOrigin(origin))| ReminderRecord {
                    origin: Some(origin),
                    ..record
                })
            });
            return Ok(Delivery::Delayed(id, slot, record?));
        }
        let key: InboxKey = tables::inbox::read_key(&self.key)?;
        Ok(Delivery::Signal(key, InboxRecord::decode(&self.record)?))
    }
}

/// A caller's request on its one hop to the owner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Forwarded {
    pub(crate) task: Task,
    /// The rest of the caller's timeout, in microseconds.
    pub(crate) timeout: u64,
}

/// A request to an entity, or to a partition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Task {
    Call(Asked),
    Signal(Asked),
    Query(Asked),
    State(String),
    Delete(String),
    /// Replay this dead letter.
    Replay(u16, bool, u64),
    /// Drop this dead letter.
    Drop(u16, bool, u64),
    /// A signal whose acceptance names its reminder.
    Delayed(Asked),
    /// A call, signal or deletion under a condition.
    If(Condition, Box<Task>),
    /// A deletion, perhaps with an idempotency key.
    DeleteOnce(String, Option<String>),
    /// Cancel a reminder of an entity, as its id spells it.
    Cancel(String, String),
    /// An operation, query or deletion, and where it comes from.
    From(StoredOrigin, Box<Task>),
    /// A query or a look at a state, of what is durable.
    Committed(Box<Task>),
    /// Store the state of an entity in this version of its type.
    Upgrade(String, u32),
    /// End the lock of an entity, or only that of this workflow.
    FreeLock(String, Option<String>),
}

/// An operation or query of an entity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Asked {
    id: String,
    operation: String,
    input: Vec<u8>,
    after_micros: Option<u64>,
    at: Option<Timestamp>,
    idempotency_key: Option<String>,
}

impl Asked {
    pub(crate) fn new(request: &Request) -> Self {
        let (after_micros, at) = match &request.delay {
            Some(Delay::After(length)) => {
                let micros = length.as_duration().as_micros();
                (Some(u64::try_from(micros).unwrap_or(u64::MAX)), None)
            }
            Some(Delay::At(moment)) => (None, Some(*moment)),
            None => (None, None),
        };
        Self {
            id: request.id.to_string(),
            operation: request.operation.to_string(),
            input: request.input.clone(),
            after_micros,
            at,
            idempotency_key: request.idempotency_key.clone(),
        }
    }

    pub(crate) fn read(self, timeout: Duration) -> Result<Request, Error> {
        let after = self.after_micros.map(|micros| Delay::After(Timeout::from_micros(micros)));
        let mut request = Request::new(EntityId::parse(&self.id)?, self.operation, self.input);
        request.delay = after.or(self.at.map(Delay::At));
        request.idempotency_key = self.idempotency_key;
        request.deadline = Some(Timeout::from(timeout));
        Ok(request)
    }
}

/// Whether an answer says that the asked node is of an earlier program, which does not know the message and
/// has done nothing.
pub(crate) fn is_unknown_message(error: &Error) -> bool {
    // The words are those of the decoder, whose version is pinned.
    error.kind() == ErrorKind::Invalid && error.message().contains("expected variant index")
}

impl Task {
    pub(crate) fn letter(replays: bool, id: DeadLetterId) -> Self {
        let DeadLetterId { partition, is_rejection, number } = id;
        match replays {
            true => Self::Replay(partition, is_rejection, number),
            false => Self::Drop(partition, is_rejection, number),
        }
    }
}

/// The answer of the owner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum PeerResponse {
    Done,
    Replied(Vec<u8>),
    Rejected(String),
    State(Option<(u64, u64, Timestamp, Vec<u8>)>),
    Failed(Failure),
    /// The entity is not this node's; this is the version of the ownership that it knows.
    NotOwner(u64),
    /// The rows of these partitions could not be taken.
    Woken(Vec<u16>),
    /// A delayed signal is durable under this number.
    Scheduled(u64),
    /// A rejection with a code or details, as JSON. Without them it is [`PeerResponse::Rejected`].
    RejectedAs(Vec<u8>),
    /// The operation failed, and may succeed in so many microseconds.
    Later(Failure, u64),
}

/// An error, with what its status depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failure {
    kind: u8,
    message: String,
    input: Option<(String, String, bool)>,
}

const KINDS: [ErrorKind; 14] = [
    ErrorKind::Invalid,
    ErrorKind::NotFound,
    ErrorKind::Overloaded,
    ErrorKind::Unavailable,
    ErrorKind::Full,
    ErrorKind::Deadline,
    ErrorKind::Unknown,
    ErrorKind::Conflict,
    ErrorKind::Fenced,
    ErrorKind::Closed,
    ErrorKind::Corrupt,
    ErrorKind::Internal,
    ErrorKind::Precondition,
    ErrorKind::Later,
];

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        // One that is not listed is as good as unknown to the other side.
        let kind =
            KINDS.iter().position(|kind| *kind == error.kind()).unwrap_or(usize::from(u8::MAX));
        let source =
            std::error::Error::source(error).and_then(|it| it.downcast_ref::<InputError>());
        let input = source.map(|it| (it.path.clone(), it.message.clone(), it.malformed));
        Self { kind: kind as u8, message: error.message().to_owned(), input }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        // A kind of a later version may mean anything.
        let kind = KINDS.get(usize::from(failure.kind)).copied().unwrap_or(ErrorKind::Unknown);
        let error = Self::new(kind, failure.message);
        match failure.input {
            Some((path, message, malformed)) => {
                error.with_source(InputError { path, message, malformed })
            }
            None => error,
        }
    }
}

impl From<CallResult> for PeerResponse {
    fn from(response: CallResult) -> Self {
        match response {
            Ok(Response::Done) => Self::Done,
            Ok(Response::Scheduled(number)) => Self::Scheduled(number),
            Ok(Response::Replied(json)) => Self::Replied(json),
            Ok(Response::Rejected(no)) => match Remembered::rejected(&no) {
                Remembered::RejectedAs(json) => Self::RejectedAs(json),
                _ => Self::Rejected(no.reason().to_owned()),
            },
            Ok(Response::State(view)) => {
                Self::State(view.map(|it| (it.generation, it.revision, it.committed_at, it.state)))
            }
            Err(error) => {
                let failure = Failure::from(&error);
                let micros = error.retry_after().map(|it| it.as_duration().as_micros());
                match micros.map(u64::try_from) {
                    Some(micros) => Self::Later(failure, micros.unwrap_or(u64::MAX)),
                    None => Self::Failed(failure),
                }
            }
        }
    }
}

impl PeerResponse {
    /// The answer to the caller, if this is one.
    pub(crate) fn into_response(self) -> Option<CallResult> {
        Some(match self {
            Self::Done => Ok(Response::Done),
            Self::Scheduled(number) => Ok(Response::Scheduled(number)),
            Self::Replied(json) => Ok(Response::Replied(json)),
            Self::Rejected(reason) => Ok(Response::Rejected(Rejection::new(reason))),
            Self::State(view) => {
                Ok(Response::State(view.map(|(generation, revision, committed_at, state)| {
                    StateView { generation, revision, committed_at, state }
                })))
            }
            Self::Failed(failure) => Err(failure.into()),
            Self::RejectedAs(json) => match serde_json::from_slice(&json) {
                Ok(rejection) => Ok(Response::Rejected(rejection)),
                Err(_) => return None,
            },
            Self::Later(failure, micros) => {
                Err(Error::from(failure).with_retry_after(Timeout::from_micros(micros)))
            }
            Self::NotOwner(_) | Self::Woken(_) => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_failure_crosses_the_wire() {
        for kind in ErrorKind::ALL {
            let failure = Failure::from(&Error::new(kind, "why"));
            let error =
                Error::from(record::decode::<Failure>(&record::encode(&failure)).expect("read"));
            assert_eq!((error.kind(), error.message()), (kind, "why"));
        }
        let input = InputError { path: "$".into(), message: "m".into(), malformed: false };
        let error = Error::new(ErrorKind::Invalid, "why").with_source(input.clone());
        let error = Error::from(Failure::from(&error));
        let source = std::error::Error::source(&error).and_then(|it| it.downcast_ref());
        assert_eq!(source, Some(&input), "which decides between two statuses");
    }

    #[test]
    fn an_earlier_program_says_that_it_does_not_know_a_message() {
        #[derive(Debug, Deserialize)]
        enum Earlier {
            _Do,
            _Wake,
        }
        let wakes = Wakes { source: 1, target: 2, wakes: Vec::new() };
        let message = record::encode(&PeerRequest::WakeWithOrigins(wakes));
        let refused = record::decode::<Earlier>(&message).expect_err("it is not known");
        assert!(is_unknown_message(&Error::new(ErrorKind::Invalid, refused.to_string())));
        assert!(!is_unknown_message(&Error::new(ErrorKind::Invalid, "too many reminders")));
        assert!(!is_unknown_message(&Error::new(ErrorKind::Unknown, refused.to_string())));
    }

    #[test]
    fn the_origin_of_a_delayed_signal_crosses_the_wire() {
        let id = EntityId::new("counter", "a").expect("valid");
        let record = |origin| ReminderRecord {
            due: Timestamp::from_micros(5),
            number: 7,
            schedule: None,
            operation: "add".into(),
            input: b"1".to_vec(),
            token: 3,
            attempts: 0,
            accepted_at: Timestamp::from_micros(1),
            sender: "counter/b".into(),
            origin,
        };
        let alice = stead_entities::Origin::new(Some("alice".into()), None).expect("valid");
        for (origin, has_origin) in [(None, false), (alice, true)] {
            let delivery = Delivery::Delayed(id.clone(), Slot::Delayed(7), record(origin.clone()));
            let wake = Wake { partition: 3, link: 1, place: 1, row: Some(Row::new(3, &delivery)) };
            let wakes = Wakes { source: 1, target: 2, wakes: vec![wake] };
            let message = record::encode(&PeerRequest::wake(wakes));
            let (PeerRequest::Wake(read) | PeerRequest::WakeWithOrigins(read)) =
                record::decode(&message).expect("readable")
            else {
                panic!("a wake")
            };
            let is_marked = message[1] == 2;
            assert_eq!(is_marked, has_origin, "earlier programs must not take it for a plain one");
            let row = read.wakes[0].row.as_ref().expect("a row").read().expect("readable");
            let Delivery::Delayed(of, slot, read) = row else { panic!("a delayed signal") };
            assert_eq!((of, slot, read), (id.clone(), Slot::Delayed(7), record(origin)));
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [&b""[..], &[9], &[1, 99], &[1, 0, 0, 255, 255, 255, 255]] {
            assert!(record::decode::<PeerRequest>(bytes).is_err(), "{bytes:?}");
        }
    }
}
