//! Somebody waits: the caller's end of an operation.
//!
//! A ticket is waiting, taken or withdrawn, and moves once. What was taken may be applied, so its
//! caller can only be told that the outcome is unknown; what was withdrawn is never applied.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU8, Ordering},
};

use stead_entities::{Error, Rejection, Timestamp};
use tokio::sync::oneshot;

use crate::client::Permit;

/// What a caller is told.
pub(crate) type Response = Result<Answer, Error>;

/// Where a caller waits.
pub(crate) type Answered = oneshot::Receiver<Response>;

/// A good answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The signal is durable, the entity deleted, the letter gone, the partition alive.
    Done,
    /// The result as JSON.
    Replied(Vec<u8>),
    /// The entity's "no".
    Rejected(Rejection),
    /// The committed state, if there is one.
    State(Option<StateView>),
}

/// A committed state as HTTP shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateView {
    /// Which incarnation of the entity this is.
    pub generation: u64,
    /// How many turns of this incarnation were committed.
    pub revision: u64,
    /// When the last of them was committed.
    pub committed_at: Timestamp,
    /// The state as JSON.
    pub state: Vec<u8>,
}

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const WITHDRAWN: u8 = 2;

#[derive(Debug, Clone)]
pub(crate) struct Ticket(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    stage: AtomicU8,
    reply: Mutex<Option<oneshot::Sender<Response>>>,
    /// Given back when the last clone is gone.
    _permit: Option<Permit>,
}

impl Ticket {
    pub(crate) fn new(permit: Option<Permit>) -> (Self, Answered) {
        let (tx, rx) = oneshot::channel();
        let inner =
            Inner { stage: AtomicU8::new(WAITING), reply: Mutex::new(Some(tx)), _permit: permit };
        (Self(Arc::new(inner)), rx)
    }

    /// Begins the work, unless the caller has withdrawn it.
    pub(crate) fn take(&self) -> bool {
        self.advance(TAKEN) || self.0.stage.load(Ordering::SeqCst) == TAKEN
    }

    /// Gives up, unless the work has begun.
    pub(crate) fn withdraw(&self) -> bool {
        self.advance(WITHDRAWN)
    }

    fn advance(&self, to: u8) -> bool {
        self.0.stage.compare_exchange(WAITING, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Tells the caller; the first answer counts.
    pub(crate) fn answer(&self, response: Response) {
        let reply = self.0.reply.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(reply) = reply {
            let _nobody_waits = reply.send(response);
        }
    }
}
