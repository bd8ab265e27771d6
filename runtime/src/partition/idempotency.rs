//! Idempotency keys in use: looked up when they arrive, joined while they are in use, remembered in
//! the commit that settles them.
//!
//! What must never happen: two operations run under one key; a caller that joined is told anything
//! else than the first one.

use std::sync::Arc;

use stead_entities::{EntityId, Error, ErrorKind, Rejection, Timestamp};

use super::{
    message::{Fingerprint, Keyed},
    reply::{CallResult, ReplySender, Response},
    write_group::{OpenGroup, Release},
};
use crate::{
    map::Map,
    sabotage::Sabotage,
    store::{
        ReadResult, Write,
        tables::idempotency::{IdempotencyKey, IdempotencyRecord, Remembered},
    },
};

/// The idempotency keys that are in use.
#[derive(Default)]
pub(super) struct IdempotencyKeys(Map<Arc<IdempotencyKey>, Pending>);

/// An idempotency key in use.
struct Pending {
    fingerprint: Fingerprint,
    /// Whether the store is being asked what it remembers.
    is_looking: bool,
    /// Those who asked again meanwhile.
    waiters: Vec<ReplySender>,
}

/// The meaning of the store's answer for the operation that asked.
pub(super) enum LookUp {
    /// The key is new: the operation goes on.
    IsNew,
    /// The operation is in the inbox already: who asked again waits for its answer.
    IsUnderWay,
    /// It was answered before, or is refused: everybody who waits is told this.
    Answered(CallResult),
}

impl IdempotencyKeys {
    /// Refuses a key that is in use for something else.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`].
    pub(super) fn check(&self, keyed: &Keyed) -> Result<(), Error> {
        let known = self.0.get(&keyed.key);
        match known.is_none_or(|known| keyed.fingerprint.fits(known.fingerprint.meaning)) {
            true => Ok(()),
            false => Err(conflict()),
        }
    }

    /// Whether a key is in use, so that who comes with it joins.
    pub(super) fn is_in_use(&self, keyed: &Keyed) -> bool {
        self.0.contains_key(&keyed.key)
    }

    /// Lets a caller hear what the first operation under a key in use comes to.
    pub(super) fn join(&mut self, key: &Arc<IdempotencyKey>, reply_to: ReplySender) {
        if let Some(pending) = self.0.get_mut(key) {
            // It is another caller's.
            reply_to.make_uncertain();
            pending.waiters.push(reply_to);
        }
    }

    /// Begins to use a key. Says whether the store is to be asked what it remembers.
    pub(super) fn begin(&mut self, keyed: &Keyed) -> bool {
        let is_looking = !Sabotage::ForgottenKeys.is_on();
        self.insert(keyed, is_looking);
        is_looking
    }

    fn insert(&mut self, keyed: &Keyed, is_looking: bool) {
        let fingerprint = keyed.fingerprint;
        let pending = Pending { fingerprint, is_looking, waiters: Vec::new() };
        self.0.insert(keyed.key.clone(), pending);
    }

    /// Whether the store is being asked, so that the operation has to wait.
    pub(super) fn is_looking(&self, keyed: Option<&Keyed>) -> bool {
        let pending = keyed.and_then(|keyed| self.0.get(&keyed.key));
        pending.is_some_and(|pending| pending.is_looking)
    }

    /// Judges what the store remembers of a key; `None` where nobody uses it any more. What is older
    /// than `forgotten` does not count.
    pub(super) fn looked_up(
        &mut self,
        key: &Arc<IdempotencyKey>,
        found: ReadResult<Option<IdempotencyRecord>>,
        is_forgotten: impl Fn(Timestamp) -> bool,
    ) -> Option<LookUp> {
        let pending = self.0.get_mut(key)?;
        pending.is_looking = false;
        Some(match found {
            // One that is under way is never forgotten.
            Ok(Some(record))
                if is_forgotten(record.at) && record.outcome != Remembered::Pending =>
            {
                LookUp::IsNew
            }
            Ok(None) => LookUp::IsNew,
            Ok(Some(record)) if !pending.fingerprint.fits(record.fingerprint) => {
                LookUp::Answered(Err(conflict()))
            }
            Ok(Some(record)) => match response(&record.outcome) {
                Some(response) => LookUp::Answered(Ok(response)),
                None => LookUp::IsUnderWay,
            },
            Err(error) => {
                let message = format!("idempotency keys cannot be read: {error}");
                LookUp::Answered(Err(Error::new(ErrorKind::Unavailable, message)))
            }
        })
    }

    /// The key that a stored row carries, in use until the row is settled.
    pub(super) fn adopt(
        &mut self,
        partition: u16,
        id: &EntityId,
        (caller, name, fingerprint): &(String, String, u128),
    ) -> Keyed {
        let key = Arc::new(IdempotencyKey {
            partition,
            id: id.clone(),
            caller: caller.as_str().into(),
            key: name.as_str().into(),
        });
        let fingerprint = Fingerprint { meaning: *fingerprint, bytes: None };
        if let Some((key, _)) = self.0.get_key_value(&key) {
            return Keyed { key: key.clone(), fingerprint };
        }
        let keyed = Keyed { key, fingerprint };
        self.insert(&keyed, false);
        keyed
    }

    /// Has the open group remember how an operation came out. Once that is durable, those who asked
    /// again hear it.
    pub(super) fn remember(
        keyed: Option<&Keyed>,
        outcome: Remembered,
        now: Timestamp,
        group: &mut OpenGroup,
    ) {
        let Some(keyed) = keyed else { return };
        let response = response(&outcome);
        let record = IdempotencyRecord { fingerprint: keyed.fingerprint.meaning, at: now, outcome };
        if !Sabotage::ForgottenKeys.is_on() {
            group.write(Write::put(&*keyed.key, &record));
        }
        if let Some(response) = response {
            group.after_open(Release::Key(keyed.key.clone(), Ok(response)));
        }
    }

    /// Has the open group forget a key that was stored with its row, and whose operation failed.
    pub(super) fn forget_stored(keyed: Option<&Keyed>, error: &Error, group: &mut OpenGroup) {
        let Some(keyed) = keyed else { return };
        group.write(Write::delete::<IdempotencyRecord>(&keyed.key));
        group.after_open(Release::Key(keyed.key.clone(), Err(error.clone())));
    }

    /// Ends the use of a key. Returns those who asked again.
    pub(super) fn end(&mut self, key: &Arc<IdempotencyKey>) -> Vec<ReplySender> {
        self.0.remove(key).map_or_else(Vec::new, |pending| pending.waiters)
    }

    /// Ends the term. Returns those who asked again, in the order of their keys.
    pub(super) fn clear(&mut self) -> impl Iterator<Item = ReplySender> + use<> {
        let mut keys: Vec<_> = std::mem::take(&mut self.0).into_iter().collect();
        keys.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        keys.into_iter().flat_map(|(_, pending)| pending.waiters)
    }
}

/// The answer to a repeated request; `None` while the operation is under way.
fn response(outcome: &Remembered) -> Option<Response> {
    match outcome {
        Remembered::Pending => None,
        Remembered::Accepted => Some(Response::Done),
        Remembered::Scheduled(number) => Some(Response::Scheduled(*number)),
        Remembered::Replied(json) => Some(Response::Replied(json.clone())),
        Remembered::Rejected(reason) => Some(Response::Rejected(Rejection::new(reason))),
        Remembered::RejectedAs(json) => {
            let read = serde_json::from_slice(json);
            let unreadable = |_| Rejection::new("the rejection that is remembered cannot be read");
            Some(Response::Rejected(read.unwrap_or_else(unreadable)))
        }
    }
}

fn conflict() -> Error {
    let message = "this idempotency key was used for another operation, argument or delay";
    Error::new(ErrorKind::Conflict, message)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn keyed(meaning: u128) -> Keyed {
        let id = EntityId::new("log", "a").expect("valid");
        let key = IdempotencyKey { partition: 0, id, caller: "".into(), key: "k".into() };
        Keyed { key: Arc::new(key), fingerprint: Fingerprint { meaning, bytes: None } }
    }

    fn remembered(fingerprint: u128, outcome: Remembered) -> ReadResult<Option<IdempotencyRecord>> {
        Ok(Some(IdempotencyRecord { fingerprint, at: Timestamp::default(), outcome }))
    }

    fn look_up(found: ReadResult<Option<IdempotencyRecord>>, is_forgotten: bool) -> LookUp {
        let (mut keys, keyed) = (IdempotencyKeys::default(), keyed(7));
        assert!(keys.begin(&keyed) && keys.is_looking(Some(&keyed)));
        let found = keys.looked_up(&keyed.key, found, |_| is_forgotten).expect("in use");
        assert!(!keys.is_looking(Some(&keyed)));
        found
    }

    #[test]
    fn the_store_says_what_became_of_a_key() {
        assert!(matches!(look_up(Ok(None), false), LookUp::IsNew));
        assert!(matches!(look_up(remembered(7, Remembered::Accepted), true), LookUp::IsNew));
        let pending = look_up(remembered(7, Remembered::Pending), false);
        assert!(matches!(pending, LookUp::IsUnderWay));
        let replied = look_up(remembered(7, Remembered::Replied(b"5".to_vec())), false);
        let LookUp::Answered(Ok(Response::Replied(json))) = replied else { panic!("no answer") };
        assert_eq!(json, b"5");
        let other = look_up(remembered(8, Remembered::Accepted), false);
        let LookUp::Answered(Err(error)) = other else { panic!("no refusal") };
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }

    #[test]
    fn who_comes_with_a_key_in_use_joins_or_is_refused() {
        let mut keys = IdempotencyKeys::default();
        keys.begin(&keyed(7));
        assert!(keys.is_in_use(&keyed(7)) && keys.check(&keyed(7)).is_ok());
        assert_eq!(keys.check(&keyed(8)).map_err(|it| it.kind()), Err(ErrorKind::Conflict));
        let (second, _waits) = ReplySender::new(Duration::from_secs(1), None);
        keys.join(&keyed(7).key, second);
        assert_eq!(keys.end(&keyed(7).key).len(), 1);
        assert!(!keys.is_in_use(&keyed(7)) && keys.end(&keyed(7).key).is_empty());
    }
}
