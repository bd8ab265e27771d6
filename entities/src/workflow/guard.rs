//! The guard around polls of an author's code: a runtime installs one that finds out what the code awaits that is not
//! the workflow's.

use std::sync::OnceLock;

use crate::sabotage::Sabotage;

/// Runs a poll, and says what it did that a workflow may not do. It must run the poll exactly once.
pub type Guard = fn(&mut dyn FnMut()) -> Result<(), String>;

static GUARD: OnceLock<Guard> = OnceLock::new();

/// Has every poll of a workflow in this process go through a guard. The first one stays. For runtimes.
pub fn install_guard(guard: Guard) {
    let _first = GUARD.set(guard);
}

/// Runs a poll behind the guard.
pub(super) fn guarded<T>(poll: impl FnOnce() -> T) -> Result<T, String> {
    let guard = GUARD.get().filter(|_| !Sabotage::Unguarded.is_on());
    let Some(guard) = guard else { return Ok(poll()) };
    let (mut poll, mut result) = (Some(poll), None);
    let checked = guard(&mut || result = poll.take().map(|poll| poll()));
    match (checked, result) {
        (Ok(()), Some(result)) => Ok(result),
        (Err(why), _) => Err(why),
        (Ok(()), None) => Err("the guard did not run the poll".to_owned()),
    }
}
