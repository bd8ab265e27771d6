//! What carries the requests of callers outside to partitions: checks at the door, deadlines, and
//! the truth about what may have been applied.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use stead_entities::{
    BoxFuture, Caller, Delay, EntityId, Error, ErrorKind, Request, Timestamp,
    entity::OperationKind, operation::Reply,
};

use crate::{
    clock,
    node::Node,
    partition::{
        message::{Input, Keyed, Request as Message, Work},
        ticket::{Answer, Answered, StateView, Ticket},
    },
    sabotage,
    store::record::{DeadLetterId, IdempotencyKey},
    types::Found,
};

/// The longest idempotency key, in bytes.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;

/// How much a node holds at present; bounds what is admitted.
#[derive(Debug, Default)]
pub(crate) struct Load {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

/// Room for one request, given back when its last ticket is gone.
#[derive(Debug)]
pub(crate) struct Permit {
    load: Arc<Load>,
    bytes: usize,
}

impl Load {
    fn admit(self: &Arc<Self>, bytes: usize, limits: &crate::Config) -> Option<Permit> {
        let requests = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let held = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let permit = Permit { load: self.clone(), bytes };
        (requests <= limits.requests_max && held <= limits.request_bytes_max).then_some(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.load.requests.fetch_sub(1, Ordering::Relaxed);
        self.load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How an outside caller uses an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Call,
    Signal,
    Query,
}

impl Caller for Node {
    fn call(&self, request: Request) -> BoxFuture<'static, Result<Reply, Error>> {
        let node = self.clone();
        Box::pin(async move { reply(node.request(request, Use::Call).await?) })
    }

    fn signal(&self, request: Request) -> BoxFuture<'static, Result<(), Error>> {
        let node = self.clone();
        Box::pin(async move { node.request(request, Use::Signal).await.map(drop) })
    }

    fn query(&self, request: Request) -> BoxFuture<'static, Result<Reply, Error>> {
        let node = self.clone();
        Box::pin(async move { reply(node.request(request, Use::Query).await?) })
    }
}

fn reply(answer: Answer) -> Result<Reply, Error> {
    match answer {
        Answer::Replied(json) => Ok(Ok(json)),
        Answer::Rejected(rejection) => Ok(Err(rejection)),
        Answer::Done | Answer::State(_) => {
            Err(Error::new(ErrorKind::Conflict, "this idempotency key was used for a signal"))
        }
    }
}

impl Node {
    /// The committed state of an entity, `None` before its first commit. It is read in the entity's
    /// order and shows only what is durable.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an unknown type, [`ErrorKind::Corrupt`] where the stored state
    /// cannot be read, and what can befall any request.
    pub async fn state(&self, id: &EntityId) -> Result<Option<StateView>, Error> {
        self.entity_type(id)?;
        match self.send(self.message(id.clone(), Work::State, Vec::new())).await? {
            Answer::State(view) => Ok(view),
            _ => Err(Error::new(ErrorKind::Internal, "another answer than a state")),
        }
    }

    /// Deletes an entity in its order: its state and its reminders. What was delayed, or waited for
    /// a retry, becomes a dead letter.
    ///
    /// # Errors
    /// As [`Node::state`].
    pub async fn delete(&self, id: &EntityId) -> Result<(), Error> {
        self.entity_type(id)?;
        self.check_room()?;
        self.send(self.message(id.clone(), Work::Delete, Vec::new())).await.map(drop)
    }

    /// Sends the operation of a dead letter again, behind everything that its entity has accepted.
    /// The letter is gone once the operation is accepted.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an unknown letter, or where its entity no longer has the
    /// operation.
    pub async fn replay(&self, letter: DeadLetterId) -> Result<(), Error> {
        let stored = self.store().dead_letter(letter).await;
        let stored = stored?;
        let stored =
            stored.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such dead letter"))?;
        let id = EntityId::parse(&stored.entity)?;
        let found = self.find(&id, &stored.operation)?;
        self.check_room()?;
        let work = Work::of(found);
        let mut message = self.message(id, work, stored.input);
        message.is_call = false;
        message.token = stored.token;
        message.exhume = Some(letter);
        self.send(message).await.map(drop)
    }

    /// Drops a dead letter. Dropping one that is gone does nothing.
    ///
    /// # Errors
    /// What can befall any request.
    pub async fn drop_dead_letter(&self, letter: DeadLetterId) -> Result<(), Error> {
        let handle = self.partition(letter.partition)?;
        let (ticket, answered) = Ticket::new(None);
        handle.push(Input::Exhume(letter, ticket.clone()));
        self.wait(ticket, answered, self.config().call_deadline).await.map(drop)
    }

    async fn request(&self, request: Request, used: Use) -> Result<Answer, Error> {
        let found = self.find(&request.id, &request.operation)?;
        if !found.is_public {
            return Err(self.no_operation(&request.id, &request.operation));
        }
        check_use(found, used)?;
        self.check_input(&request.id, found, &request.input)?;
        if used != Use::Query {
            self.check_room()?;
        }
        let now = self.clock().now();
        let due = request.delay.map(|delay| delay.due(now));
        let key = match &request.idempotency_key {
            Some(key) if used != Use::Query => Some(self.keyed(&request, key, used, now)?),
            _ => None,
        };
        let mut message = self.message(request.id, Work::of(found), request.input);
        message.is_call = used != Use::Signal;
        message.key = key;
        message.due = due;
        let deadline = request.deadline.map(|deadline| deadline.as_duration());
        self.send_within(message, deadline.unwrap_or(self.config().call_deadline)).await
    }

    fn check_input(&self, id: &EntityId, found: Found, input: &[u8]) -> Result<(), Error> {
        let limit = self.config().body_bytes_max;
        if input.len() > limit {
            let message = format!("the argument has {} bytes, the limit is {limit}", input.len());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let known = self.entity_type(id)?;
        known
            .check(found.index, input)
            .map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()).with_source(error))
    }

    fn check_room(&self) -> Result<(), Error> {
        if self.store().has_room() {
            return Ok(());
        }
        let message = "the disk is nearly full: reads go on, writes resume when there is room";
        Err(Error::new(ErrorKind::Full, message))
    }

    fn keyed(
        &self,
        request: &Request,
        key: &str,
        used: Use,
        now: Timestamp,
    ) -> Result<Keyed, Error> {
        if key.is_empty()
            || key.len() > IDEMPOTENCY_KEY_BYTES_MAX
            || key.chars().any(char::is_control)
        {
            let rule = "an idempotency key has 1 to 256 bytes and no control characters";
            return Err(Error::new(ErrorKind::Invalid, rule));
        }
        if let Some(born) = birth(key)
            && born + self.config().retention <= now
        {
            let message = "the idempotency key is older than keys are remembered";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let delay = match request.delay {
            None => String::new(),
            Some(Delay::After(length)) => format!("after {length}"),
            Some(Delay::At(moment)) => format!("at {moment}"),
        };
        let settings = &self.store().opened().settings;
        let fingerprint = settings.fingerprint(&[
            if used == Use::Call { b"call" } else { b"signal" },
            request.operation.as_bytes(),
            &request.input,
            delay.as_bytes(),
        ]);
        let key = IdempotencyKey {
            partition: settings.partition_of(&request.id),
            id: request.id.clone(),
            caller: "".into(),
            key: key.into(),
        };
        Ok(Keyed { key: Arc::new(key), fingerprint })
    }

    fn message(&self, id: EntityId, work: Work, input: Vec<u8>) -> Message {
        let (ticket, _) = Ticket::new(None);
        Message {
            id,
            work,
            input,
            token: self.mint_token(),
            is_call: true,
            ticket,
            key: None,
            due: None,
            deadline: self.clock().now() + self.config().call_deadline,
            exhume: None,
        }
    }

    async fn send(&self, message: Message) -> Result<Answer, Error> {
        self.send_within(message, self.config().call_deadline).await
    }

    /// Hands a request to its partition and waits. Dropping the future cancels nothing.
    async fn send_within(&self, mut message: Message, deadline: Duration) -> Result<Answer, Error> {
        let Some(permit) = self.load().admit(message.input.len(), self.config()) else {
            return Err(Error::new(ErrorKind::Overloaded, "the node holds all it can: back off"));
        };
        let (ticket, answered) = Ticket::new(Some(permit));
        message.ticket = ticket.clone();
        message.deadline = self.clock().now() + deadline;
        let number = self.store().opened().settings.partition_of(&message.id);
        self.partition(number)?.push(Input::Request(Box::new(message)));
        self.wait(ticket, answered, deadline).await
    }

    pub(crate) async fn wait(
        &self,
        ticket: Ticket,
        answered: Answered,
        deadline: Duration,
    ) -> Result<Answer, Error> {
        let _cancel = sabotage::is("X20").then(|| Cancel(ticket.clone()));
        match clock::within(deadline, answered).await {
            Some(Ok(response)) => response,
            Some(Err(_)) | None if ticket.withdraw() => {
                let message = "the operation waited until its deadline and was withdrawn";
                Err(Error::new(ErrorKind::Unavailable, message))
            }
            Some(Err(_)) | None => {
                let message = "the operation began, but its outcome did not arrive in time";
                Err(Error::new(ErrorKind::Unknown, message))
            }
        }
    }

    pub(crate) fn find(&self, id: &EntityId, operation: &str) -> Result<Found, Error> {
        let found = self.entity_type(id)?.find(operation);
        found.ok_or_else(|| self.no_operation(id, operation))
    }

    fn no_operation(&self, id: &EntityId, operation: &str) -> Error {
        let names = self.entity_type(id).map(|known| known.names().join(", ")).unwrap_or_default();
        let entity_type = id.entity_type();
        let message = format!("{entity_type} has no {operation}; it has: {names}");
        Error::new(ErrorKind::NotFound, message)
    }
}

struct Cancel(Ticket);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.withdraw();
    }
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

/// When a key was made, if it is a UUID of version 7 and so carries its time.
fn birth(key: &str) -> Option<Timestamp> {
    let id = uuid::Uuid::try_parse(key).ok().filter(|id| id.get_version_num() == 7)?;
    let (seconds, nanos) = id.get_timestamp()?.to_unix();
    let micros = i64::try_from(seconds).ok()?.checked_mul(1_000_000)?;
    Some(Timestamp::from_micros(micros + i64::from(nanos / 1_000)))
}
