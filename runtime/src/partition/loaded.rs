//! A state as it comes out of the store: decoded and readied, or left alone, with the reason.
//!
//! It knows neither activations nor who asks: a partition loads an entity by it, and reads beside the
//! entity's order use it too.

use std::fmt::Display;

use stead_entities::{EntityId, Error, ErrorKind, Timestamp, collections};

use super::turn::{self, guarded};
use crate::{
    sabotage::Sabotage,
    store::{ReadResult, tables::states::StateRecord},
    types::{EntityType, Standard, State, Trust},
};

/// The state of an entity that was read, with its record: the first state where there is none. One that is kept
/// in memory, and so may be written, is proven to be readable where no turn has left it so.
///
/// # Errors
/// [`ErrorKind::Unavailable`] for a version that this program does not know, [`ErrorKind::Corrupt`] where the
/// bytes make no sense, [`ErrorKind::Internal`] where the state cannot be readied.
pub(crate) fn state(
    known: &dyn EntityType,
    id: &EntityId,
    read: ReadResult<Option<StateRecord>>,
    (now, is_kept): (Timestamp, bool),
) -> Result<(State, Option<StateRecord>), Error> {
    let corrupt = |why: &dyn Display| corrupt(id, why);
    let readied = |mut state, record: Option<StateRecord>| {
        let head = record.as_ref().map(|record| &record.head);
        let at = head.map_or((now, 0), |head| (now.max(head.committed_at), head.revision));
        let ready = || {
            turn::activate(known, id, &mut state, at);
            // What no turn has checked may be written all the same, with a reminder that is put off.
            let is_new =
                known.has_on_activate() || head.is_some_and(|head| head.version != known.version());
            match is_new && is_kept {
                true => known.check_state(&mut state, standard(record.as_ref())).map(drop),
                false => Ok(()),
            }
        };
        let readied = guarded(ready).map_err(|error| error.to_string()).flatten();
        readied.map_err(|why| {
            let message = format!("{id} cannot come into memory: {why}");
            Error::new(ErrorKind::Internal, message)
        })?;
        Ok((state, record))
    };
    let initial = |record| {
        let state = guarded(|| known.initial_state()).map_err(|error| corrupt(&error))?;
        readied(state, record)
    };
    let record = match read {
        Err(_) if Sabotage::DamagedStateReplaced.is_on() => return initial(None),
        Err(error) => return Err(corrupt(&error)),
        Ok(None) => return initial(None),
        Ok(Some(record)) => record,
    };
    if !known.knows(record.head.version) {
        let (stored, present) = (record.head.version, known.version());
        let message = format!(
            "{id} is stored in version {stored} of its type, and this node knows version {present}: run a \
             newer program; the entity is left as it is"
        );
        return Err(Error::new(ErrorKind::Unavailable, message));
    }
    if record.head.generation == 0 || record.head.follows > record.head.revision {
        return Err(corrupt(&"its revision does not follow the one before it"));
    }
    let decoded = guarded(|| known.decode_state(record.head.version, &record.state));
    match decoded.map_err(|error| corrupt(&error))? {
        Ok(state) => readied(state, Some(record)),
        Err(_) if Sabotage::DamagedStateReplaced.is_on() => initial(Some(record)),
        Err(error) => Err(corrupt(&error)),
    }
}

/// The rules for a state that no turn has left.
fn standard(record: Option<&StateRecord>) -> Standard {
    let collections = record.map_or(0, |record| collections::highest(&record.apart.collections));
    Standard { bytes_max: usize::MAX, trust: Trust::Unproven, collections }
}

/// The error of an entity whose stored data make no sense.
pub(super) fn corrupt(id: &EntityId, why: &dyn Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{id} cannot be read: {why}"))
}
