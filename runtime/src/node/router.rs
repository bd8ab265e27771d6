//! To the owner: any node takes any request, and sends it on at most once.
//!
//! What must never happen: a request is tried again that may have been applied, unless it carries an
//! idempotency key or reads only. A node that is not the owner says so before it does anything, and a
//! request that arrives while its partition moves waits, within its own deadline.

use std::{
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use stead_entities::{
    BoxFuture, Condition, EntityId, Error, ErrorKind, Origin, ReminderId, Request,
};

use super::local::{Local, Use};
use crate::{
    clock::{deadline_after, monotonic},
    errors::in_doubt,
    host::Host,
    partition::reply::{CallResult, ReplyReceiver},
    placement::cluster::Cluster,
    store::{
        record,
        shared::Member,
        tables::{dead_letters::DeadLetterId, origins::StoredOrigin},
    },
    transport::{
        SendError,
        wire::{Asked, Forwarded, PeerRequest, PeerResponse, Task, is_unknown_message},
    },
};

/// How long a request waits before it looks again for an owner.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// How much longer than the caller a node waits for the owner, whose own answer says more.
const GRACE: Duration = Duration::from_millis(500);

/// A request of a caller to an entity or a partition.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    Use(Request, Use),
    State(EntityId),
    Delete(Deletion),
    Cancel(EntityId, ReminderId),
    Replay(DeadLetterId),
    Drop(DeadLetterId),
    /// A query or a look at a state, of what is durable, beside the entity's order.
    Committed(Box<Self>),
    /// Store the state in this version of its type.
    Upgrade(EntityId, u32),
    /// End the entity's lock, or only that of this workflow.
    FreeLock(EntityId, Option<String>),
}

/// The deletion of an entity, as a caller asks for it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Deletion {
    /// The entity.
    pub id: EntityId,
    /// The caller's name for this deletion, so that repeating it within the retention deletes nothing that
    /// came later.
    pub idempotency_key: Option<String>,
    /// The condition on the entity's state at the deletion's turn.
    pub condition: Option<Condition>,
    /// The identity of the caller; see [`Request::caller`].
    pub caller: Option<String>,
}

impl Deletion {
    /// A deletion without an idempotency key, a condition or a caller.
    pub fn new(id: EntityId) -> Self {
        Self { id, idempotency_key: None, condition: None, caller: None }
    }
}

impl Command {
    pub(crate) fn from_wire(task: Task, timeout: Duration) -> Result<Self, Error> {
        let letter =
            |partition, is_rejection, number| DeadLetterId { partition, is_rejection, number };
        Ok(match task {
            Task::Call(asked) => Self::Use(asked.read(timeout)?, Use::Call),
            Task::Signal(asked) | Task::Delayed(asked) => {
                Self::Use(asked.read(timeout)?, Use::Signal)
            }
            Task::Query(asked) => Self::Use(asked.read(timeout)?, Use::Query),
            Task::State(id) => Self::State(EntityId::parse(&id)?),
            Task::Delete(id) => Self::delete(&id, None)?,
            Task::DeleteOnce(id, key) => Self::delete(&id, key)?,
            Task::Cancel(id, reminder) => Self::Cancel(EntityId::parse(&id)?, reminder.parse()?),
            Task::If(condition, task) => match Self::from_wire(*task, timeout)? {
                Self::Use(mut request, used) => {
                    request.condition = Some(condition);
                    Self::Use(request, used)
                }
                Self::Delete(deletion) => {
                    Self::Delete(Deletion { condition: Some(condition), ..deletion })
                }
                _ => return Err(Error::new(ErrorKind::Invalid, "it cannot have a condition")),
            },
            Task::From(StoredOrigin(origin), task) => {
                let Origin { caller, trace, .. } = Arc::unwrap_or_clone(origin);
                match Self::from_wire(*task, timeout)? {
                    Self::Use(mut request, used) => {
                        (request.caller, request.trace) = (caller, trace);
                        Self::Use(request, used)
                    }
                    Self::Delete(deletion) => Self::Delete(Deletion { caller, ..deletion }),
                    _ => return Err(Error::new(ErrorKind::Invalid, "it cannot have an origin")),
                }
            }
            Task::Committed(task) => match Self::from_wire(*task, timeout)? {
                read @ (Self::Use(_, Use::Query) | Self::State(_)) => {
                    Self::Committed(Box::new(read))
                }
                _ => return Err(Error::new(ErrorKind::Invalid, "it does not only read")),
            },
            Task::Upgrade(id, version) => Self::Upgrade(EntityId::parse(&id)?, version),
            Task::FreeLock(id, holder) => Self::FreeLock(EntityId::parse(&id)?, holder),
            Task::Replay(partition, class, number) => {
                Self::Replay(letter(partition, class, number))
            }
            Task::Drop(partition, class, number) => Self::Drop(letter(partition, class, number)),
        })
    }

    fn delete(id: &str, idempotency_key: Option<String>) -> Result<Self, Error> {
        let id = EntityId::parse(id)?;
        Ok(Self::Delete(Deletion { idempotency_key, ..Deletion::new(id) }))
    }

    /// With its origin, where that is known.
    fn to_wire(&self) -> Result<Task, Error> {
        if let Self::Committed(read) = self {
            return Ok(Task::Committed(Box::new(read.to_wire()?)));
        }
        let origin = match self {
            Self::Use(request, _) => request.origin()?,
            Self::Delete(deletion) => Origin::new(deletion.caller.clone(), None)?,
            _ => None,
        };
        let task = self.to_wire_without_origin();
        Ok(match origin {
            Some(origin) => Task::From(StoredOrigin(origin), Box::new(task)),
            None => task,
        })
    }

    fn to_wire_without_origin(&self) -> Task {
        let condition = match self {
            Self::Use(request, _) => &request.condition,
            Self::Delete(deletion) => &deletion.condition,
            _ => &None,
        };
        let task = self.to_plain_wire();
        match condition {
            Some(condition) => Task::If(condition.clone(), Box::new(task)),
            None => task,
        }
    }

    fn to_plain_wire(&self) -> Task {
        match self {
            Self::Use(request, Use::Call) => Task::Call(Asked::new(request)),
            Self::Use(request, Use::Signal) if request.delay.is_some() => {
                Task::Delayed(Asked::new(request))
            }
            Self::Use(request, Use::Signal) => Task::Signal(Asked::new(request)),
            Self::Use(request, Use::Query) => Task::Query(Asked::new(request)),
            Self::State(id) => Task::State(id.to_string()),
            Self::Delete(Deletion { id, idempotency_key: None, .. }) => {
                Task::Delete(id.to_string())
            }
            Self::Delete(Deletion { id, idempotency_key, .. }) => {
                Task::DeleteOnce(id.to_string(), idempotency_key.clone())
            }
            Self::Cancel(id, reminder) => Task::Cancel(id.to_string(), reminder.to_string()),
            Self::Replay(letter) => Task::letter(true, *letter),
            Self::Drop(letter) => Task::letter(false, *letter),
            Self::Committed(read) => read.to_wire_without_origin(),
            Self::Upgrade(id, version) => Task::Upgrade(id.to_string(), *version),
            Self::FreeLock(id, holder) => Task::FreeLock(id.to_string(), holder.clone()),
        }
    }

    pub(crate) fn partition(&self, host: &Host) -> u16 {
        match self {
            Self::Use(request, _) => host.partition_of(&request.id),
            Self::State(id)
            | Self::Cancel(id, _)
            | Self::Upgrade(id, _)
            | Self::FreeLock(id, _)
            | Self::Delete(Deletion { id, .. }) => host.partition_of(id),
            Self::Replay(letter) | Self::Drop(letter) => letter.partition,
            Self::Committed(read) => read.partition(host),
        }
    }

    /// Whether asking twice does no harm.
    fn is_safe(&self) -> bool {
        match self {
            Self::Use(_, Use::Query)
            | Self::State(_)
            | Self::Drop(_)
            | Self::Committed(_)
            | Self::Upgrade(..) => true,
            Self::Use(request, Use::Call | Use::Signal) => request.idempotency_key.is_some(),
            Self::Delete(deletion) => deletion.idempotency_key.is_some(),
            Self::Replay(_) | Self::Cancel(..) | Self::FreeLock(..) => false,
        }
    }

    /// Whether it has an idempotency key in the name of a caller.
    fn has_key_of_a_caller(&self) -> bool {
        match self {
            Self::Use(request, _) => request.idempotency_key.is_some() && request.caller.is_some(),
            Self::Delete(deletion) => {
                deletion.idempotency_key.is_some() && deletion.caller.is_some()
            }
            _ => false,
        }
    }

    fn deadline(&self) -> Option<Duration> {
        match self {
            Self::Use(request, _) => request.deadline.map(|deadline| deadline.as_duration()),
            Self::Committed(read) => read.deadline(),
            _ => None,
        }
    }

    /// The entity type, where it reads what is durable.
    fn committed_type(&self) -> Option<&str> {
        let Self::Committed(read) = self else { return None };
        match &**read {
            Self::Use(request, _) => Some(request.id.entity_type()),
            Self::State(id) => Some(id.entity_type()),
            _ => None,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Use(request, _) => request.input.len(),
            Self::Committed(read) => read.bytes(),
            _ => 0,
        }
    }
}

/// Takes commands to the node that owns their entities: this one, or in one hop another.
pub(crate) struct Router {
    local: Local,
}

impl Router {
    pub(super) fn new(local: Local) -> Self {
        Self { local }
    }

    /// This node, as a command reaches it that is not sent on.
    pub(crate) fn local(&self) -> &Local {
        &self.local
    }

    /// Uses an operation. It begins at once where the node shares nothing, so that what is sent first
    /// comes first though nobody awaits it yet.
    pub(super) fn use_operation(self: &Arc<Self>, request: Request, used: Use) -> Asking {
        if request.reads_committed && used != Use::Query {
            let rule = "only a query reads the committed state";
            return Asking::Refused(ready(Err(Error::new(ErrorKind::Invalid, rule))));
        }
        if request.reads_committed {
            let (router, query) = (self.clone(), Command::Use(request, used));
            return Asking::Routed(Box::pin(async move {
                router.perform(Command::Committed(Box::new(query))).await
            }));
        }
        if self.local.cluster.is_some() {
            let router = self.clone();
            return Asking::Routed(Box::pin(async move {
                router.perform(Command::Use(request, used)).await
            }));
        }
        match self.local.submit(request, used) {
            Ok(answered) => Asking::Here(answered),
            Err(error) => Asking::Refused(ready(Err(error))),
        }
    }

    /// Carries out a command, here or at the owner. Dropping it cancels nothing that was accepted.
    pub(super) async fn perform(&self, command: Command) -> CallResult {
        let timeout = command.deadline().unwrap_or(self.local.host.config().call_deadline);
        let types = self.local.host.types();
        match &self.local.cluster {
            // The store tells this node as well as the owner, which may know more versions and queries.
            Some(cluster) if command.committed_type().is_some_and(|it| types.contains_key(it)) => {
                match self.local.perform(command.clone(), timeout).await {
                    Err(error)
                        if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unavailable) =>
                    {
                        self.routed(cluster, command, timeout).await
                    }
                    told => told,
                }
            }
            None => self.local.perform(command, timeout).await,
            Some(cluster) => self.routed(cluster, command, timeout).await,
        }
    }

    async fn routed(&self, cluster: &Cluster, command: Command, timeout: Duration) -> CallResult {
        let (host, deadline) = (&self.local.host, deadline_after(timeout));
        let partition = command.partition(host);
        if partition >= host.store().opened().settings.partitions {
            return Err(Error::new(ErrorKind::NotFound, format!("no partition {partition}")));
        }
        let mut is_in_doubt = false;
        let mut room = None;
        loop {
            let left = deadline.saturating_duration_since(monotonic());
            let answered = if host.is_open(partition) {
                // It takes room of its own.
                room = None;
                self.local.perform(command.clone(), left).await
            } else {
                if room.is_none() {
                    let admitted = self.local.admit(command.bytes());
                    room = Some(admitted.map_err(|error| settled(error, is_in_doubt))?);
                }
                // Another node may have this one's name, once this one has left.
                let own = host.session().map(|session| session.incarnation.number);
                match cluster.owner(partition) {
                    Some(owner) if Some(owner.incarnation) != own => {
                        forward(cluster, owner, &command, left).await
                    }
                    _ => Err(no_owner(partition)),
                }
            };
            let error = match answered {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let is_moved = matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Closed);
            let is_repeated = is_moved || (error.kind() == ErrorKind::Unknown && command.is_safe());
            is_in_doubt |= error.kind() == ErrorKind::Unknown;
            if !is_repeated || monotonic() + LOOK_PAUSE >= deadline {
                return Err(settled(error, is_in_doubt));
            }
            cluster.look(LOOK_PAUSE).await;
        }
    }
}

/// An operation that was asked for. Most are asked for where nothing is shared: they need no box.
pub(super) enum Asking {
    Here(ReplyReceiver),
    Refused(Ready<CallResult>),
    Routed(BoxFuture<'static, CallResult>),
}

impl Future for Asking {
    type Output = CallResult;

    fn poll(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<CallResult> {
        match self.get_mut() {
            Self::Here(answered) => Pin::new(answered).poll(ctx),
            Self::Refused(refused) => Pin::new(refused).poll(ctx),
            Self::Routed(routed) => routed.as_mut().poll(ctx),
        }
    }
}

/// The error that a caller gets after the last try; `is_in_doubt` where an earlier one may have been
/// applied.
fn settled(error: Error, is_in_doubt: bool) -> Error {
    match error.kind() {
        _ if is_in_doubt => in_doubt(error),
        ErrorKind::Fenced | ErrorKind::Closed => {
            Error::new(ErrorKind::Unavailable, error.message())
        }
        _ => error,
    }
}

fn no_owner(partition: u16) -> Error {
    let message = format!("partition {partition} has no owner at the moment");
    Error::new(ErrorKind::Fenced, message)
}

/// One hop to the owner. An owner of an earlier program does not know where something comes from, or a
/// delayed signal that wants to know its id; it has then done nothing, and is sent what it knows. But not
/// where an idempotency key would become another caller's.
async fn forward(
    cluster: &Cluster,
    owner: Member,
    command: &Command,
    left: Duration,
) -> CallResult {
    let is_unknown = |told: &CallResult| told.as_ref().is_err_and(is_unknown_message);
    let task = command.to_wire()?;
    let has_origin = matches!(task, Task::From(..));
    let mut told = forward_task(cluster, &owner, task, left).await;
    if has_origin && is_unknown(&told) {
        if command.has_key_of_a_caller() {
            let message = "the owner runs an earlier program, which does not know callers";
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        told = forward_task(cluster, &owner, command.to_wire_without_origin(), left).await;
    }
    if is_unknown(&told)
        && let Task::Delayed(asked) = command.to_wire_without_origin()
    {
        return forward_task(cluster, &owner, Task::Signal(asked), left).await;
    }
    told
}

async fn forward_task(cluster: &Cluster, owner: &Member, task: Task, left: Duration) -> CallResult {
    let timeout = u64::try_from(left.as_micros()).unwrap_or(u64::MAX);
    let question = record::encode(&PeerRequest::Do(Forwarded { task, timeout }));
    let asking = cluster.transport.request(owner.address.clone(), question, left + GRACE);
    let unknown = |why: String| Error::new(ErrorKind::Unknown, why);
    let bytes = match asking.await {
        Ok(bytes) => bytes,
        Err(error @ SendError::NotSent(_)) => {
            return Err(Error::new(ErrorKind::Fenced, error.to_string()));
        }
        Err(error @ SendError::Refused(_)) => {
            return Err(Error::new(ErrorKind::Unavailable, error.to_string()));
        }
        Err(error @ SendError::Lost(_)) => return Err(unknown(error.to_string())),
    };
    match record::decode::<PeerResponse>(&bytes) {
        Ok(PeerResponse::NotOwner(version)) => {
            let message = format!("{} is not the owner in version {version}", owner.name);
            Err(Error::new(ErrorKind::Fenced, message))
        }
        Ok(reply) => reply.into_response().unwrap_or_else(|| Err(unknown("another answer".into()))),
        Err(error) => Err(unknown(format!("the owner's answer cannot be read: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_applied_is_never_said_not_to_be() {
        let told = |kind, is_in_doubt| settled(Error::new(kind, ""), is_in_doubt).kind();
        for moved in [ErrorKind::Fenced, ErrorKind::Closed, ErrorKind::Unavailable] {
            assert_eq!(told(moved, false), ErrorKind::Unavailable);
            assert_eq!(told(moved, true), ErrorKind::Unknown);
        }
        for refused in [ErrorKind::Overloaded, ErrorKind::Full, ErrorKind::NotFound] {
            assert_eq!(told(refused, false), refused);
            assert_eq!(told(refused, true), ErrorKind::Unknown);
        }
        // Who knows the key knows what became of it.
        assert_eq!(told(ErrorKind::Conflict, true), ErrorKind::Conflict);
    }
}
