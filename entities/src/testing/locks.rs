//! Locks of driven entities: what is not asked under the lock waits until it ends.

use std::collections::{BTreeMap, VecDeque};

use super::{Drivers, drivers::Sent};
use crate::{
    EntityId, Error, ErrorKind, Failure,
    ask::answer_json,
    effect::{LOCK, UNLOCK},
};

/// The entities that are locked.
#[derive(Default)]
pub(super) struct Locks(BTreeMap<EntityId, Lock>);

struct Lock {
    holder: Option<EntityId>,
    fence: Option<Box<str>>,
    /// The signals that wait for its end, in the order in which it came.
    waiting: VecDeque<Sent>,
}

impl Drivers {
    /// Says no to a call of an entity that is locked.
    pub(super) fn check_unlocked(&self, id: &EntityId) -> Result<(), Error> {
        let Some(Lock { holder: Some(holder), .. }) = self.locks.0.get(id) else { return Ok(()) };
        let message = format!("{id} is locked by {holder}: on a node this call waits");
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    /// Whether the first of what is due is to be applied. Else it is taken off, and it waits, or was about a lock.
    pub(super) fn pass_lock(&mut self, sent: Sent) -> Option<Sent> {
        let target = sent.signal.target.clone();
        let lock = self.locks.0.get_mut(&target);
        match &*sent.signal.operation {
            UNLOCK => self.unlock(&target, &sent),
            LOCK if lock.is_none() => {
                let (holder, fence, waiting) = (sent.sender, sent.fence, VecDeque::new());
                self.locks.0.insert(target, Lock { holder, fence, waiting });
                self.answer_asked(sent.asked, Ok(b"null"));
            }
            _ => match lock {
                Some(lock) if lock.holder == sent.sender && lock.fence == sent.fence => {
                    return Some(sent);
                }
                None if sent.fence.is_none() => return Some(sent),
                Some(lock) if sent.fence.is_none() || *sent.signal.operation == *LOCK => {
                    lock.waiting.push_back(sent);
                }
                _ => {
                    let why = format!("{target} is not locked any more by who asks");
                    self.answer_asked(sent.asked, Err(Failure::Failed(why)));
                }
            },
        }
        self.due.pop_front();
        None
    }

    /// Ends a lock, or the wait for one.
    fn unlock(&mut self, target: &EntityId, by: &Sent) {
        let fence: Option<Box<str>> = serde_json::from_slice(&by.signal.input).ok();
        let Some(lock) = self.locks.0.get_mut(target) else { return };
        let is_it =
            |sender: &Option<EntityId>, of: &Option<Box<str>>| *sender == by.sender && *of == fence;
        if is_it(&lock.holder, &lock.fence) {
            let waiting = self.locks.0.remove(target).map(|lock| lock.waiting);
            let behind = self.due.split_off(1);
            self.due.extend(waiting.into_iter().flatten().chain(behind));
            return;
        }
        let waits = lock
            .waiting
            .iter()
            .position(|sent| sent.signal.operation == LOCK && is_it(&sent.sender, &sent.fence));
        let withdrawn = waits.and_then(|at| lock.waiting.remove(at));
        let asked = withdrawn.and_then(|sent| sent.asked);
        self.answer_asked(asked, Err(Failure::Cancelled));
    }

    fn answer_asked(&mut self, asked: Option<(u64, usize)>, answer: Result<&[u8], Failure>) {
        if let Some(asked) = asked {
            self.answer(asked, answer_json(answer));
        }
    }
}
