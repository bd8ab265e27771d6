//! Turns and queries that lack entries of the state's collections: they are given up, and run again from the
//! beginning when the entries are there, with the same time and entropy.
//!
//! Entries are read once everything that the entity has done is durable, so that the store shows it; nothing of the
//! entity runs meanwhile. What must never happen: a turn sees an entry that is older than the state.

use stead_entities::{
    EntityId, Error, ErrorKind,
    collections::{Loaded, Miss, check_loaded},
};

use super::{
    Partition,
    activations::{Lacking, WaitsForRead},
    envelope::{Envelope, FirstTry},
};
use crate::{
    sabotage::Sabotage,
    store::{ReadError, ReadResult, record::Damaged},
};

impl Partition {
    /// Has a turn or query wait for the entries that it lacks.
    pub(super) fn wait_for_entries(&mut self, id: &EntityId, waits: Envelope, miss: Miss) {
        self.wait_for_read(id, WaitsForRead::Entries(Box::new(Lacking { waits, miss })));
    }

    /// Whether an entity reads before everything that it has done is durable: never.
    pub(super) fn reads_early(&mut self, id: &EntityId) -> bool {
        Sabotage::EntriesReadEarly.is_on() && self.activations.of(id).waits_for_entries()
    }

    /// Takes entries of an entity's collections, and runs again what waits for them.
    pub(super) fn entries_read(&mut self, id: &EntityId, loaded: ReadResult<Loaded>) {
        let activation = self.activations.get_mut(id);
        let is_it = |waits: &WaitsForRead| matches!(waits, WaitsForRead::Entries(..));
        let waits = activation.and_then(|it| it.end_read(is_it));
        let Some(WaitsForRead::Entries(lacking)) = waits else { return };
        let mut envelope = lacking.waits;
        let supplied = loaded.map_err(|error| unreadable(id, &error)).and_then(|loaded| {
            let is_limited = !self.environment.served(id).is_workflow();
            let is_first = count(&mut envelope, &loaded, is_limited)?;
            let state = self.activations.of(id).live_mut().state_mut();
            if is_first {
                // Not later: what the turn has asked for before has to stay.
                state.evict(self.environment.memory().collection_bytes_max());
            }
            let damaged = |why| ReadError::Damaged(Damaged(why));
            state.supply(&loaded).map_err(|why| unreadable(id, &damaged(why)))
        });
        self.activations.count_held(id);
        match (supplied, envelope) {
            (Ok(()), envelope) => self.activations.of(id).put_back(envelope),
            (Err(error), Envelope::Operation(operation)) => {
                self.fail_to_read(id, operation, error);
            }
            (Err(error), envelope) => {
                if let Some(reply_to) = envelope.into_reply_to() {
                    self.answer(id, reply_to, Err(error));
                }
            }
        }
        self.activations.make_ready(id);
    }
}

/// Counts what is loaded for one turn or query, and refuses too much; a workflow's history has a limit of its own. Says whether it is the first that is loaded.
fn count(envelope: &mut Envelope, loaded: &Loaded, is_limited: bool) -> Result<bool, Error> {
    let first_try = match envelope {
        Envelope::Operation(operation) => operation.first_try.as_deref_mut(),
        Envelope::Read(read) => read.first_try.as_deref_mut(),
        _ => None,
    };
    let Some(FirstTry { entries, bytes, now, seed, .. }) = first_try else { return Ok(false) };
    let is_first = *entries == 0;
    if Sabotage::TurnRunAgainLater.is_on() {
        (*now, *seed) = (*now + std::time::Duration::from_micros(1), *seed + 1);
    }
    *entries += loaded.entries();
    *bytes += loaded.bytes();
    if is_limited {
        check_loaded(*entries, *bytes).map_err(|why| Error::new(ErrorKind::Internal, why))?;
    }
    Ok(is_first)
}

fn unreadable(id: &EntityId, error: &ReadError) -> Error {
    let kind = match error {
        ReadError::Damaged(_) => ErrorKind::Corrupt,
        ReadError::Unavailable(_) => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("entries of collections of {id} cannot be read: {error}"))
}
