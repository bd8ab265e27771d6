//! Critical sections: a workflow locks entities, one after the other, and everybody else waits for them.
//!
//! A lock is an operation of the workflow like others: a row of its turn's commit that the entity answers when it is
//! locked. All workflows lock in the same order, that of ids, so that none waits for another in a circle. The locks end
//! with the section, by rows of the turn in which it is dropped, or of the one that ends the run.
//!
//! What must never happen: a run ends, or begins anew, and holds a lock; a section depends on anything but the history.

use std::{fmt, future::Future, sync::Arc};

use super::{
    Workflow,
    core::{Core, State},
    history::{Begun, Kind},
    operation::{Operation, read_answer},
    place::Place,
};
use crate::{EntityId, Failure, Rejection, sabotage::Sabotage};

/// The most entities of a critical section.
pub const LOCKED_MAX: usize = 16;

/// A critical section: its entities are locked until it is dropped.
///
/// Inside of it the workflow calls these entities and no others, signals others and not these, and begins no children and no
/// other section. What breaks a rule fails with [`Failure::Rejected`](crate::Failure::Rejected); a signal panics.
#[must_use = "the section ends when it is dropped: keep it, `let section = ctx.lock(..).await?`"]
pub struct Section {
    core: Arc<Core>,
}

/// The locks of the section that a run is in, or enters.
#[derive(Debug, Default)]
pub(super) struct Locks {
    held: Vec<(Place, Box<str>)>,
    is_entered: bool,
}

impl Locks {
    /// The lock of an entity, by the place where it began.
    fn of(&self, target: &str) -> Option<&Place> {
        self.held.iter().find(|(_, known)| &**known == target).map(|(place, _)| place)
    }

    pub(super) fn held(&self) -> impl Iterator<Item = (&Place, &str)> {
        self.held.iter().map(|(place, target)| (place, &**target))
    }
}

impl<W> Workflow<W> {
    /// Locks entities, [`LOCKED_MAX`] at most: nobody else's operations are applied to them until the section is dropped;
    /// those wait, and queries go on. It waits until all of them are locked.
    ///
    /// # Errors
    /// [`Failure::Rejected`] for too many entities, and inside of another section; [`Failure::Cancelled`].
    pub fn lock<I>(
        &self,
        entities: I,
    ) -> impl Future<Output = Result<Section, Failure>> + Send + use<W, I>
    where
        I: IntoIterator<Item = EntityId>,
    {
        let mut entities: Vec<EntityId> = entities.into_iter().collect();
        if !Sabotage::LocksAsGiven.is_on() {
            entities.sort_unstable();
        }
        entities.dedup();
        let mut state = self.core.lock();
        let mut scope = state.scope.claim().branch(1);
        let locks: Vec<Operation<()>> = entities
            .into_iter()
            .map(|id| {
                let begun = Begun::new(scope.claim(), Kind::Lock, "");
                let ready = state.new_operation(Begun { target: id.as_str().into(), ..begun });
                Operation::new(&self.core, ready, read_answer)
            })
            .collect();
        drop(state);
        enter(self.core.clone(), locks)
    }
}

/// Locks one entity after the other. What is locked is let go where it does not come to its end.
async fn enter(core: Arc<Core>, entities: Vec<Operation<()>>) -> Result<Section, Failure> {
    if entities.len() > LOCKED_MAX {
        let why = format!("a section of {} entities: the limit is {LOCKED_MAX}", entities.len());
        return Err(breach(&why));
    }
    let is_in_another = core.lock().locks.replace(Locks::default());
    if is_in_another.is_some() {
        core.lock().locks = is_in_another;
        return Err(breach("a critical section is not begun inside of another one"));
    }
    let section = Section { core: core.clone() };
    for lock in entities {
        let (place, target) = lock.identity();
        lock.await?;
        core.lock().locks.get_or_insert_default().held.push((place, target));
    }
    core.lock().locks.get_or_insert_default().is_entered = true;
    Ok(section)
}

fn breach(why: &str) -> Failure {
    Rejection::new(why).with_code("critical_section").into()
}

impl Drop for Section {
    fn drop(&mut self) {
        self.core.lock().end_section();
    }
}

impl fmt::Debug for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Section")
    }
}

impl State {
    /// Why an operation does not begin inside of the section that the run is in.
    pub(super) fn breach(&self, begun: &Begun) -> Option<Failure> {
        let locks = self.locks.as_ref()?;
        let is_own = |lock: &Begun| lock.target == begun.target;
        if begun.kind == Kind::Call && self.awaited_locks().any(is_own) {
            let why = format!("a call to {} beside the wait for its lock", begun.target);
            return Some(breach(&why));
        }
        match begun.kind {
            _ if !locks.is_entered => None,
            Kind::Call if locks.of(&begun.target).is_none() => Some(breach(&format!(
                "a call to {} inside of a section that has not locked it",
                begun.target
            ))),
            Kind::Child => Some(breach("a child is not begun inside of a critical section")),
            _ => None,
        }
    }

    /// The lock under which a call begins, by its place.
    pub(super) fn lock_of(&self, target: &str) -> Option<&Place> {
        self.locks.as_ref()?.of(target)
    }
}
