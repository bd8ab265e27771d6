//! The record of an entity's state, as the open write group writes it: with what its turns changed of the entries of
//! its collections.

use stead_entities::EntityId;

use super::{Partition, activations::Sent, turn::guarded};
use crate::store::{
    Write,
    tables::{meta::NotIndexed, states::StateRecord},
};

/// The size from which on a state has a row of its own, in bytes: it is written when it changes, and not with each
/// turn.
const BODY_BYTES_MIN: usize = 16 << 10;

impl Partition {
    /// The record of an entity's state, proven to be readable.
    ///
    /// # Errors
    /// Why it could not be read back, in words.
    pub(super) fn state_record(&mut self, id: &EntityId) -> Result<StateRecord, String> {
        let known = self.environment.served(id);
        let kept = self.environment.memory().collection_bytes_max();
        let live = self.activations.of(id).live_mut();
        let before = live.collections().to_vec();
        let encode = || {
            let encoded = known.encode_state(live.state_mut(), &before, kept)?;
            Ok((encoded, known.indexed(live.state())))
        };
        let encoded: Result<_, String> = guarded(encode).map_err(|error| error.to_string())?;
        let (encoded, (indexed, lacking)) = encoded?;
        // No turn leaves such a state: one that an earlier program stored is written all the same.
        for index in lacking {
            let (name, version) = (known.name().to_owned(), known.version());
            let key = (name, index.to_owned(), version, self.environment.number());
            self.group.write(Write::put(&key, &NotIndexed));
        }
        let bytes = encoded.state.len();
        let has_body = bytes >= BODY_BYTES_MIN;
        let hash = has_body.then(|| self.environment.hash(&encoded.state));
        let (version, incarnation) = (known.version(), self.environment.incarnation());
        let has_collections = !encoded.sealed.collections.is_empty() || !before.is_empty();
        let live = self.activations.of(id).live_mut();
        let record = live.write(version, incarnation, Sent { encoded, indexed, hash });
        self.activations.note_size(id, bytes, self.environment.config().state_bytes_max);
        if has_collections {
            self.activations.count_held(id);
        }
        Ok(record)
    }
}
