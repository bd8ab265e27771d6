//! Dead letters of driven entities.

use crate::{CallError, Cause, EntityId, Timestamp, effect::Signal, failure};

/// A signal or a reminder's operation that was not applied, and will not be.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// The sender: an entity, itself for a reminder, or `None` for the test.
    pub sender: Option<EntityId>,
    /// The signal.
    pub signal: Signal,
    /// Why it was not applied.
    pub error: CallError,
}

impl DeadLetter {
    /// The letter as its entity hears of it.
    pub(super) fn heard(&self, now: Timestamp) -> failure::DeadLetter {
        let input = String::from_utf8_lossy(&self.signal.input);
        let cause = match &self.error {
            CallError::Rejected(_) => Cause::Rejection,
            CallError::Failed(_) => Cause::Failure,
        };
        let reason = match &self.error {
            CallError::Rejected(no) => no.reason(),
            CallError::Failed(error) => error.message(),
        };
        let mut heard = failure::DeadLetter::new(&self.signal.operation, &input, cause, reason);
        heard.sender = self.sender.as_ref().map_or_else(String::new, ToString::to_string);
        heard.accepted_at = now;
        heard
    }
}
