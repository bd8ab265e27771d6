//! The entrance of a node for callers outside: checks of their requests, room, deadlines, and the
//! way to the partition.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use stead_entities::{
    Condition, Delay, EntityId, Error, ErrorKind, Origin, ReminderId, Request, Timestamp,
    context::RUNTIME_NAMES,
    entity::{Argument, OperationKind},
    input::canonical,
};

use super::router::{Command, Deletion};
use crate::{
    admission::{Load, Permit},
    config::Config,
    host::Host,
    partition::{
        Closed, Handle,
        message::{Action, Arrival, Fingerprint, Input, Invocation, Keyed},
        reply::{CallResult, ReplyReceiver, ReplySender},
    },
    placement::cluster::Cluster,
    store::{
        TypedReads as _,
        tables::{dead_letters::DeadLetterId, idempotency::IdempotencyKey},
    },
    types::{EntityType, Found},
};

/// The longest idempotency key, in bytes.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;

/// How far the clock of a caller may be ahead, where a key carries its time.
const BIRTH_SKEW: Duration = Duration::from_secs(60);

/// How an outside caller uses an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Call,
    Signal,
    Query,
}

/// The partitions of a node as callers outside reach them.
pub(crate) struct Local {
    pub(crate) host: Arc<Host>,
    load: Arc<Load>,
    /// The other nodes, where the store is shared.
    pub(super) cluster: Option<Arc<Cluster>>,
    is_closing: AtomicBool,
}

impl Local {
    pub(super) fn new(host: Arc<Host>, cluster: Option<Arc<Cluster>>) -> Self {
        Self { host, load: Arc::default(), cluster, is_closing: false.into() }
    }

    /// Takes nothing more in from callers outside.
    pub(super) fn close(&self) {
        self.is_closing.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::SeqCst)
    }

    /// Carries out a command at this node; [`ErrorKind::Fenced`] where it is another one's.
    pub(super) async fn perform(&self, command: Command, timeout: Duration) -> CallResult {
        match command {
            Command::Use(mut request, used) => {
                request.deadline = Some(timeout.into());
                self.submit(request, used)?.await
            }
            Command::State(id) => self.show(&id, timeout)?.await,
            Command::Committed(read) => match *read {
                Command::Use(request, _) => self.committed_query(request, timeout).await,
                Command::State(id) => self.committed_state(&id, timeout).await,
                _ => Err(Error::new(ErrorKind::Invalid, "it does not only read")),
            },
            Command::Delete(deletion) => self.delete(deletion, timeout)?.await,
            Command::Cancel(id, reminder) => self.cancel(&id, reminder, timeout)?.await,
            Command::Upgrade(id, version) => {
                self.known_type(id.entity_type())?;
                let action = Action::Upgrade(version);
                self.send_within(&id, action, Terms::default(), timeout)?.await
            }
            Command::FreeLock(id, holder) => {
                self.known_type(id.entity_type())?;
                let action = Action::FreeLock(holder);
                self.send_within(&id, action, Terms::default(), timeout)?.await
            }
            Command::Replay(letter) => self.replay(letter, timeout).await,
            Command::Drop(letter) => self.drop_letter(letter, timeout)?.await,
        }
    }

    async fn replay(&self, letter: DeadLetterId, timeout: Duration) -> CallResult {
        let stored = self.host.store().dead_letter(letter).await;
        let stored = stored?;
        let stored =
            stored.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such dead letter"))?;
        let id = EntityId::parse(&stored.entity)?;
        let known = self.known_type(id.entity_type())?;
        let found = known.find_stored(&stored.operation);
        let found = found.ok_or_else(|| no_operation(known, &stored.operation))?;
        self.check_room()?;
        check_use(found, Use::Signal)?;
        let argument = self.argument(known, found, &stored.input)?;
        let invocation = invocation(found, stored.input, argument);
        let action = Action::Replay { invocation, letter, token: stored.token };
        self.send_within(&id, action, Terms::default(), timeout)?.await
    }

    fn drop_letter(&self, letter: DeadLetterId, timeout: Duration) -> Result<ReplyReceiver, Error> {
        let (reply_to, answered) = ReplySender::new(timeout, None);
        let asked = self.partition(letter.partition)?;
        asked
            .submit(&reply_to, |reply_to| Input::DropDeadLetter(letter, reply_to))
            .map_err(moved)?;
        Ok(answered)
    }

    fn show(&self, id: &EntityId, timeout: Duration) -> Result<ReplyReceiver, Error> {
        self.known_type(id.entity_type())?;
        self.send_within(id, Action::State, Terms::default(), timeout)
    }

    fn delete(&self, deletion: Deletion, timeout: Duration) -> Result<ReplyReceiver, Error> {
        let Deletion { id, idempotency_key, condition, caller } = deletion;
        self.known_type(id.entity_type())?;
        self.check_room()?;
        let origin = Origin::new(caller, None)?;
        let key = idempotency_key
            .map(|key| self.keyed(&id, origin.as_deref(), &key, &[b"delete"], None))
            .transpose()?;
        self.send_within(&id, Action::Delete, Terms { key, condition, origin }, timeout)
    }

    fn cancel(
        &self,
        id: &EntityId,
        reminder: ReminderId,
        timeout: Duration,
    ) -> Result<ReplyReceiver, Error> {
        self.known_type(id.entity_type())?;
        if matches!(&reminder, ReminderId::Named(name) if name.starts_with(RUNTIME_NAMES)) {
            let rule = "this is the timeout of an ask, which ends with its answers";
            return Err(Error::new(ErrorKind::Invalid, rule));
        }
        self.check_room()?;
        self.send_within(id, Action::Cancel(reminder.into()), Terms::default(), timeout)
    }

    /// Checks a request and hands it to its partition; what is returned only waits.
    pub(super) fn submit(&self, request: Request, used: Use) -> Result<ReplyReceiver, Error> {
        let (found, argument) = self.checked(&request, used)?;
        if used != Use::Query {
            self.check_room()?;
        }
        let due = request.delay.map(|delay| delay.due(self.host.clock().now()));
        if due.is_some_and(|due| due > Timestamp::MAX) {
            return Err(Error::new(ErrorKind::Invalid, "a delay ends before the year 10000"));
        }
        if due.is_some() && used != Use::Signal {
            return Err(Error::new(ErrorKind::Invalid, "only a signal can be delayed"));
        }
        let origin = request.origin()?;
        let key = match &request.idempotency_key {
            Some(key) if used != Use::Query => {
                let caller = origin.as_deref();
                Some(self.keyed_use(&request, caller, key, used, found.takes_nothing)?)
            }
            _ => None,
        };
        let Request { id, input, condition, deadline, .. } = request;
        let action = match used {
            Use::Query => Action::Query(invocation(found, input, argument)),
            Use::Call => Action::Call(invocation(found, input, argument)),
            Use::Signal => Action::Signal { invocation: invocation(found, input, argument), due },
        };
        let timeout = deadline.map(|deadline| deadline.as_duration());
        let timeout = timeout.unwrap_or(self.host.config().call_deadline);
        self.send_within(&id, action, Terms { key, condition, origin }, timeout)
    }

    /// The operation or query that a request names, and its argument.
    pub(super) fn checked(&self, request: &Request, used: Use) -> Result<(Found, Argument), Error> {
        let known = self.known_type(request.id.entity_type())?;
        let found = known.find(&request.operation);
        let found = found.filter(|found| found.is_public);
        let found = found.ok_or_else(|| no_operation(known, &request.operation))?;
        check_use(found, used)?;
        Ok((found, self.argument(known, found, &request.input)?))
    }

    /// The argument of an operation or query: it is decoded here, and never again unless the operation
    /// is read from the store.
    fn argument(
        &self,
        known: &dyn EntityType,
        found: Found,
        input: &[u8],
    ) -> Result<Argument, Error> {
        let limit = self.host.config().body_bytes_max;
        if input.len() > limit {
            let message = format!("the argument has {} bytes, the limit is {limit}", input.len());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        known
            .decode_argument(found.index, input)
            .map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()).with_source(error))
    }

    fn check_room(&self) -> Result<(), Error> {
        if self.host.store().has_room() {
            return Ok(());
        }
        let message = "the disk is nearly full: reads go on, writes resume when there is room";
        Err(Error::new(ErrorKind::Full, message))
    }

    /// The idempotency key of an operation, and what it stands for: the operation, what its argument
    /// means, and its delay.
    fn keyed_use(
        &self,
        request: &Request,
        origin: Option<&Origin>,
        key: &str,
        used: Use,
        takes_nothing: bool,
    ) -> Result<Keyed, Error> {
        let delay = match request.delay {
            None => String::new(),
            Some(Delay::After(length)) => format!("after {length}"),
            Some(Delay::At(moment)) => format!("at {moment}"),
        };
        let kind: &[u8] = if used == Use::Call { b"call" } else { b"signal" };
        let meaning = match takes_nothing {
            true => Vec::new(),
            false => canonical(&request.input),
        };
        let operation = request.operation.as_bytes();
        let parts = |input| [kind, operation, input, delay.as_bytes()];
        let (means, is) = (parts(meaning.as_slice()), parts(request.input.as_slice()));
        self.keyed(&request.id, origin, key, &means, Some(&is))
    }

    /// An idempotency key that stands for `meaning`, or for `bytes` as earlier programs took it.
    fn keyed(
        &self,
        id: &EntityId,
        origin: Option<&Origin>,
        key: &str,
        meaning: &[&[u8]],
        bytes: Option<&[&[u8]]>,
    ) -> Result<Keyed, Error> {
        if key.is_empty()
            || key.len() > IDEMPOTENCY_KEY_BYTES_MAX
            || key.chars().any(char::is_control)
        {
            let rule = "an idempotency key has 1 to 256 bytes and no control characters";
            return Err(Error::new(ErrorKind::Invalid, rule));
        }
        if let Some(born) = birth(key) {
            let now = self.host.clock().now();
            if born > now + BIRTH_SKEW {
                let message = "the idempotency key was made in the future: set the clock";
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            // Refused a little before it is forgotten, so that it can never run a second time.
            let retention = self.host.limits(id).retention;
            if born + retention <= now + BIRTH_SKEW.min(retention / 2) {
                let message = "the idempotency key is older than keys are remembered";
                return Err(Error::new(ErrorKind::Invalid, message));
            }
        }
        let settings = &self.host.store().opened().settings;
        let fingerprint = Fingerprint {
            meaning: settings.fingerprint(meaning),
            bytes: bytes.map(|bytes| settings.fingerprint(bytes)),
        };
        let key = IdempotencyKey {
            partition: settings.partition_of(id),
            id: id.clone(),
            caller: origin.and_then(|it| it.caller.as_deref()).unwrap_or_default().into(),
            key: key.into(),
        };
        Ok(Keyed { key: Arc::new(key), fingerprint })
    }

    /// Hands an operation to its partition, if there is room for it.
    fn send_within(
        &self,
        id: &EntityId,
        action: Action,
        terms: Terms,
        timeout: Duration,
    ) -> Result<ReplyReceiver, Error> {
        let permit = self.admit(action.bytes())?;
        let partition = self.partition(self.host.partition_of(id))?;
        let (reply_to, answered) = ReplySender::new(timeout, Some(permit));
        let asked = partition.submit(&reply_to, |reply_to| {
            let id = id.clone();
            let Terms { key, condition, origin } = terms;
            Input::Arrival(Box::new(Arrival { id, reply_to, action, key, condition, origin }))
        });
        asked.map_err(moved)?;
        Ok(answered)
    }

    /// The operation or query of a name.
    #[cfg(feature = "http")]
    pub(crate) fn find(&self, id: &EntityId, operation: &str) -> Result<Found, Error> {
        let known = self.known_type(id.entity_type())?;
        known.find(operation).ok_or_else(|| no_operation(known, operation))
    }

    /// An entity type that this node serves.
    pub(crate) fn known_type(&self, name: &str) -> Result<&dyn EntityType, Error> {
        let found = self.host.types().get(name).map(|known| &**known);
        found.ok_or_else(|| {
            let mut names: Vec<_> = self.host.types().keys().copied().collect();
            names.sort_unstable();
            let names = names.join(", ");
            if self.serves(name) {
                let message = format!("{name} is served by other nodes, but not by its owner");
                return Error::new(ErrorKind::Unavailable, message);
            }
            let message = format!("there is no entity type {name:?}; there are: {names}");
            Error::new(ErrorKind::NotFound, message)
        })
    }

    /// Refuses an entity type that no node serves.
    pub(crate) fn check_served(&self, name: &str) -> Result<(), Error> {
        if self.serves(name) { Ok(()) } else { self.known_type(name).map(drop) }
    }

    /// Whether this node, or another one, serves an entity type.
    pub(super) fn serves(&self, name: &str) -> bool {
        let others = self.cluster.as_ref();
        self.host.types().contains_key(name) || others.is_some_and(|others| others.serves(name))
    }

    /// The way to a partition, while the node takes anything in.
    pub(super) fn partition(&self, number: u16) -> Result<&Handle, Error> {
        if self.is_closing() {
            return Err(Error::new(ErrorKind::Closed, "the node is stopping"));
        }
        let found = self.host.partitions().get(usize::from(number));
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no partition {number}")))
    }

    /// Room for a request of so many bytes, given back when it is dropped.
    pub(crate) fn admit(&self, bytes: usize) -> Result<Permit, Error> {
        let config: &Config = self.host.config();
        let room = self.load.admit(bytes, config, self.host.memory());
        let message = "the node holds all it can: back off";
        room.ok_or_else(|| Error::new(ErrorKind::Overloaded, message))
    }
}

/// The parts of a request that are the same for every action.
#[derive(Default)]
struct Terms {
    key: Option<Keyed>,
    condition: Option<Condition>,
    origin: Option<Arc<Origin>>,
}

fn moved(_closed: Closed) -> Error {
    Error::new(ErrorKind::Fenced, "the partition is not this node's")
}

fn invocation(found: Found, input: Vec<u8>, argument: Argument) -> Invocation {
    let awaits = found.kind == OperationKind::Async;
    Invocation { index: found.index, awaits, input, argument }
}

fn no_operation(known: &dyn EntityType, operation: &str) -> Error {
    let (entity_type, names) = (known.name(), known.names().join(", "));
    let message = format!("{entity_type} has no {operation}; it has: {names}");
    Error::new(ErrorKind::NotFound, message)
}

fn check_use(found: Found, used: Use) -> Result<(), Error> {
    let is_query = found.kind == OperationKind::Query;
    if is_query == (used == Use::Query) {
        return Ok(());
    }
    let name = found.name;
    let message = if is_query {
        format!("{name} is a query: read it under queries/{name}")
    } else {
        format!("{name} is an operation: send it under calls/{name} or signals/{name}")
    };
    Err(Error::new(ErrorKind::NotFound, message))
}

/// When a key was made, if it is a UUID of version 7 and so carries its time: in its hyphenated form
/// only, since any 32 hexadecimal digits could be taken for one.
fn birth(key: &str) -> Option<Timestamp> {
    let is_hyphenated = key.len() == uuid::fmt::Hyphenated::LENGTH;
    let id = uuid::Uuid::try_parse(key).ok().filter(|id| {
        let is_standard = id.get_variant() == uuid::Variant::RFC4122;
        is_hyphenated && is_standard && id.get_version_num() == 7
    })?;
    let (seconds, nanos) = id.get_timestamp()?.to_unix();
    let micros = i64::try_from(seconds).ok()?.checked_mul(1_000_000)?;
    Some(Timestamp::from_micros(micros + i64::from(nanos / 1_000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_hyphenated_uuid_of_version_7_carries_its_time() {
        let hyphenated = "019a0c1c-7a10-7c3d-9e2f-0123456789ab";
        assert!(birth(hyphenated).is_some());
        let simple = hyphenated.replace('-', "");
        let braced = format!("{{{hyphenated}}}");
        let urn = format!("urn:uuid:{hyphenated}");
        let version_4 = "019a0c1c-7a10-4c3d-9e2f-0123456789ab";
        let other_variant = "019a0c1c-7a10-7c3d-ce2f-0123456789ab";
        for key in [simple.as_str(), &braced, &urn, version_4, other_variant, "", "k"] {
            assert_eq!(birth(key), None, "{key}");
        }
    }
}
