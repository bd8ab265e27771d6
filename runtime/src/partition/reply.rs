//! Somebody waits: the caller's end of an operation.
//!
//! A reply sender is waiting, taken or withdrawn, and moves once. What was taken may be applied, so its
//! caller can only be told that the outcome is unknown; what was withdrawn is never applied. Deadlines
//! are kept by [`PendingReplies`], a list that the watchdog looks through: a timer for each request would
//! cost more than the turn.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use stead_entities::{Error, ErrorKind, Rejection, Timestamp, Version, operation};

use crate::{admission::Permit, clock::deadline_after, sabotage::Sabotage};

/// The answer to a caller.
pub(crate) type CallResult = Result<Response, Error>;

/// A good answer.
#[derive(Debug, Clone)]
pub(crate) enum Response {
    /// The signal is durable, the entity deleted, the letter gone, the partition alive.
    Done,
    /// The signal is durable, and due later, under this number.
    Scheduled(u64),
    /// The result as JSON.
    Replied(Vec<u8>),
    /// The entity's "no".
    Rejected(Rejection),
    /// The committed state, if there is one.
    State(Option<StateView>),
}

impl From<operation::Reply> for Response {
    fn from(reply: operation::Reply) -> Self {
        match reply {
            Ok(json) => Self::Replied(json),
            Err(rejection) => Self::Rejected(rejection),
        }
    }
}

/// A committed state as HTTP shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateView {
    /// Which generation of the entity this is: it grows with each deletion.
    pub generation: u64,
    /// How many turns of this generation were committed.
    pub revision: u64,
    /// When the last of them was committed.
    pub committed_at: Timestamp,
    /// The state as JSON.
    pub state: Vec<u8>,
}

impl StateView {
    /// The version of this state, as conditions name it.
    pub fn version(&self) -> Version {
        Version { generation: self.generation, revision: self.revision }
    }
}

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const WITHDRAWN: u8 = 2;

#[derive(Debug, Clone)]
pub(crate) struct ReplySender(Arc<Inner>);

/// The answer, as the caller awaits it. Dropping it cancels nothing.
#[derive(Debug)]
pub(crate) struct ReplyReceiver(ReplySender);

#[derive(Debug)]
struct Inner {
    stage: AtomicU8,
    /// Whether what the caller waits for may be applied though this answer fails.
    is_uncertain: AtomicBool,
    reply: Mutex<Reply>,
    deadline: Instant,
    timeout: Duration,
    /// Given back when the last clone is gone.
    _permit: Option<Permit>,
}

#[derive(Debug)]
enum Reply {
    Open(Option<Waker>),
    Here(CallResult),
    Gone,
}

impl ReplySender {
    /// A reply sender whose caller waits for at most `timeout`.
    pub(crate) fn new(timeout: Duration, permit: Option<Permit>) -> (Self, ReplyReceiver) {
        let reply_to = Self(Arc::new(Inner {
            stage: AtomicU8::new(WAITING),
            is_uncertain: AtomicBool::new(false),
            reply: Mutex::new(Reply::Open(None)),
            deadline: deadline_after(timeout),
            timeout,
            _permit: permit,
        }));
        (reply_to.clone(), ReplyReceiver(reply_to))
    }

    /// How long its caller waits.
    pub(crate) fn timeout(&self) -> Duration {
        self.0.timeout
    }

    /// Begins the work, unless the caller has withdrawn it.
    pub(crate) fn take(&self) -> bool {
        self.advance(TAKEN) || self.0.stage.load(Ordering::SeqCst) == TAKEN
    }

    /// From here on a failure cannot mean "not applied": the operation is stored, or it is another
    /// caller's.
    pub(crate) fn make_uncertain(&self) {
        self.take();
        self.0.is_uncertain.store(true, Ordering::SeqCst);
    }

    /// Gives up as at the deadline.
    #[cfg(test)]
    pub(crate) fn make_withdrawn(&self) {
        self.withdraw();
    }

    /// Gives up, unless the work has begun.
    fn withdraw(&self) -> bool {
        self.advance(WITHDRAWN)
    }

    fn advance(&self, to: u8) -> bool {
        self.0.stage.compare_exchange(WAITING, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Tells the caller; the first answer counts.
    pub(crate) fn answer(&self, response: CallResult) {
        let response = response.map_err(|error| self.honest(error));
        let mut reply = self.reply();
        if let Reply::Open(waker) = &mut *reply {
            let waker = waker.take();
            *reply = Reply::Here(response);
            drop(reply);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn honest(&self, error: Error) -> Error {
        use ErrorKind::{Closed, Fenced, Full, Unavailable};
        let denies = matches!(error.kind(), Closed | Fenced | Full | Unavailable);
        if denies
            && self.0.is_uncertain.load(Ordering::SeqCst)
            && !Sabotage::UnknownCalledFailed.is_on()
        {
            let message = format!("the operation is stored, and goes on: {}", error.message());
            return Error::new(ErrorKind::Unknown, message);
        }
        error
    }

    /// Tells the caller that nobody will answer in time.
    fn expire(&self) {
        let error = if self.withdraw() {
            let message = "the operation waited until its deadline and was withdrawn";
            Error::new(ErrorKind::Unavailable, message)
        } else {
            let message = "the operation began, but its outcome did not arrive in time";
            Error::new(ErrorKind::Unknown, message)
        };
        self.answer(Err(error));
    }

    fn is_answered(&self) -> bool {
        !matches!(*self.reply(), Reply::Open(_))
    }

    fn reply(&self) -> MutexGuard<'_, Reply> {
        self.0.reply.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Future for ReplyReceiver {
    type Output = CallResult;

    fn poll(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<CallResult> {
        let mut reply = self.0.reply();
        match &mut *reply {
            Reply::Open(waker) => {
                match waker {
                    Some(known) if known.will_wake(ctx.waker()) => {}
                    _ => *waker = Some(ctx.waker().clone()),
                }
                Poll::Pending
            }
            Reply::Here(_) | Reply::Gone => match std::mem::replace(&mut *reply, Reply::Gone) {
                Reply::Here(response) => Poll::Ready(response),
                Reply::Open(_) | Reply::Gone => Poll::Pending,
            },
        }
    }
}

impl Drop for ReplyReceiver {
    fn drop(&mut self) {
        if Sabotage::DroppedCallerCancels.is_on() {
            self.0.withdraw();
        }
    }
}

/// The reply senders of one partition that may still be waiting.
#[derive(Debug, Default)]
pub(crate) struct PendingReplies {
    list: Vec<Weak<Inner>>,
    /// No reply sender of the list has an earlier deadline.
    earliest: Option<Instant>,
    /// The length at which the list is cleared of what was answered.
    tidy_at: usize,
}

impl PendingReplies {
    /// Watches a reply sender's deadline.
    pub(crate) fn add(&mut self, reply_to: &ReplySender) {
        if self.list.len() >= self.tidy_at {
            self.list.retain(|known| known.strong_count() > 0);
            self.tidy_at = (2 * self.list.len()).max(64);
        }
        let deadline = reply_to.0.deadline;
        self.earliest = Some(self.earliest.map_or(deadline, |known| known.min(deadline)));
        self.list.push(Arc::downgrade(&reply_to.0));
    }

    /// Takes out what waits past its deadline; everything, where `now` is `None`.
    pub(crate) fn overdue(&mut self, now: Option<Instant>) -> Overdue {
        let mut overdue = Vec::new();
        if self.earliest.is_none_or(|earliest| now.is_some_and(|now| earliest > now)) {
            return Overdue(overdue);
        }
        self.earliest = None;
        self.list.retain(|known| {
            let Some(reply_to) =
                known.upgrade().map(ReplySender).filter(|reply_to| !reply_to.is_answered())
            else {
                return false;
            };
            let deadline = reply_to.0.deadline;
            if now.is_none_or(|now| deadline <= now) {
                overdue.push(reply_to);
                return false;
            }
            self.earliest = Some(self.earliest.map_or(deadline, |known| known.min(deadline)));
            true
        });
        Overdue(overdue)
    }
}

/// PendingReplies past their deadline, to be told outside of any lock.
#[derive(Debug)]
#[must_use = "their callers wait"]
pub(crate) struct Overdue(Vec<ReplySender>);

impl Overdue {
    pub(crate) fn expire(self) {
        self.0.iter().for_each(ReplySender::expire);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::monotonic;

    fn overdue(pending: &mut PendingReplies, after: Duration) -> usize {
        let overdue = pending.overdue(monotonic().checked_add(after));
        let count = overdue.0.len();
        overdue.expire();
        count
    }

    #[test]
    fn a_deadline_withdraws_what_has_not_begun_and_only_that() {
        let mut pending = PendingReplies::default();
        let hour = Duration::from_secs(3_600);
        let (early, _waits) = ReplySender::new(Duration::ZERO, None);
        let (begun, _waits) = ReplySender::new(Duration::ZERO, None);
        let (late, _waits) = ReplySender::new(2 * hour, None);
        assert!(begun.take());
        [&early, &begun, &late].into_iter().for_each(|reply_to| pending.add(reply_to));
        assert_eq!(overdue(&mut pending, hour), 2);
        assert!(!early.take(), "withdrawn, so it never runs");
        assert!(begun.take());
        assert!(!late.is_answered());
        assert_eq!(overdue(&mut pending, hour), 0);
        assert_eq!(overdue(&mut pending, 3 * hour), 1);
    }

    #[test]
    fn the_list_forgets_what_is_gone() {
        let mut pending = PendingReplies::default();
        for _ in 0..10_000 {
            pending.add(&ReplySender::new(Duration::from_secs(1), None).0);
        }
        assert!(pending.list.len() <= 64);
    }
}
