//! Locks of entities as effects: asked for and let go in the commit of a turn, each under a fence of its own.

use serde::{Deserialize, Serialize};

use super::{head::HeldLock, turn::Engine};
use crate::{
    EntityId,
    ask::Ask,
    effect::{LOCK, UNLOCK},
    sabotage::Sabotage,
    workflow::{history::Begun, place::Place},
};

/// The argument of [`LOCK_ASKED`](super::LOCK_ASKED): the question whether an instance has a lock.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LockAsked {
    /// The id of the entity that is locked.
    pub entity: String,
    /// Which of all locks it is.
    pub fence: String,
}

/// The fence of a lock: which one it is, of all that a workflow ever has.
pub(super) fn fence((run, seed): (u32, u128), place: &Place) -> Box<str> {
    format!("{run}/{place}/{:016x}", seed as u64).into()
}

/// Asks an entity for its lock.
pub(super) fn locking(begun: &Begun, of: (u32, u128)) -> Option<Ask> {
    let named = Begun { name: LOCK.into(), ..begun.clone() };
    let ask = super::effects::question(&named, of.0)?;
    Some(Ask { fence: Some(fence(of, &begun.place)), ..ask })
}

impl Engine<'_> {
    /// Lets a lock go, or the wait for it.
    pub(super) fn unlock(&mut self, target: &str, place: &Place) {
        let head = self.head();
        let fence = fence((head.run, head.seed), place);
        self.unlock_by(target, &fence);
    }

    fn unlock_by(&mut self, target: &str, fence: &str) {
        let input = serde_json::Value::from(fence).to_string();
        self.signal_child(target, UNLOCK, input.as_bytes());
    }

    /// Lets all locks go that its code has no chance to.
    pub(super) fn unlock_all(&mut self) {
        if Sabotage::LocksOutliveRun.is_on() {
            return;
        }
        for HeldLock { place, target } in std::mem::take(&mut self.head().locks) {
            self.unlock(&target, &place);
        }
    }

    /// Lets a lock go that it does not have.
    pub(super) fn lock_asked(&mut self, asked: &LockAsked) {
        let LockAsked { entity, fence: of } = asked;
        let has_it = self.runs() && {
            let head = self.head();
            let run = (head.run, head.seed);
            let is_it =
                |lock: &HeldLock| lock.target == *entity && *fence(run, &lock.place) == **of;
            head.locks.iter().any(is_it)
        };
        if has_it || EntityId::parse(entity).is_err() {
            return self.ctx.leave_as_it_was();
        }
        let is_known = self.state.head.is_some();
        self.unlock_by(entity, of);
        if !is_known {
            self.ctx.delete();
        }
    }
}
