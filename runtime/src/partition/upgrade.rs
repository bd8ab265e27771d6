//! A state that an earlier version of its type stored is written anew, as the present version stores it; so is
//! one without the values of an index that was declared later.
//!
//! That is no turn: the state is what every reader is shown already, upgraded and readied (`on_activate`), its
//! revision stays, and nobody hears of it but who asked. It goes through the entity's order like everything
//! else, so that it meets no turn halfway.

use stead_entities::{EntityId, Error, ErrorKind};

use super::{
    Partition,
    message::Indexed,
    reply::{ReplySender, Response},
    run::full,
    turn::guarded,
};
use crate::{
    sabotage::Sabotage,
    store::{
        Write,
        tables::meta::{CHANGES_NOTE, KeptChanges, NotIndexed},
    },
};

impl Partition {
    /// Stores the state of an entity in this version of its type, unless it is stored so. Answered once that
    /// is durable.
    pub(super) fn upgrade(&mut self, id: &EntityId, version: u32, reply_to: ReplySender) {
        if !reply_to.take() {
            return;
        }
        if !self.moment.has_room {
            return self.refuse(reply_to, &full());
        }
        let result = self.upgraded(id, version).map(|()| Response::Done);
        self.answer(id, reply_to, result);
    }

    fn upgraded(&mut self, id: &EntityId, version: u32) -> Result<(), Error> {
        let known = self.environment.served(id);
        if known.version() < version {
            let present = known.version();
            let message = format!("the owner of {id} runs a program that knows version {present}");
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        let live = self.activations.of(id).live_mut();
        let is_indexed = guarded(|| known.has_indexed(live.state(), live.indexed()))?;
        let is_present = |stored| stored > known.version() || stored >= version && is_indexed;
        if live.stored_version().is_none_or(is_present) {
            return Ok(());
        }
        let standard = live.standard(self.environment.config().state_bytes_max);
        let check = || {
            known.check_state(live.state_mut(), standard)?;
            known.check_indexed(live.state())
        };
        guarded(check)?.map_err(|why| {
            let message = format!("{id} is left in its earlier version: {why}");
            Error::new(ErrorKind::Internal, message)
        })?;
        if !Sabotage::RewritingSkipped.is_on() {
            self.write_state_of(id);
        }
        Ok(())
    }

    /// Takes away the notes that states of this partition lack indexes, now that all of them were gone through
    /// while it was hosted here; and those that changes are not kept, which begin anew with that.
    pub(super) fn indexed(&mut self, indexed: Indexed, reply_to: ReplySender) {
        if indexed.hosting != self.environment.hosting() {
            let error = Error::new(ErrorKind::Unavailable, "the partition has moved meanwhile");
            return self.refuse(reply_to, &error);
        }
        for (entity_type, index, version) in indexed.indexes {
            if index == CHANGES_NOTE
                && let Some(retention) = self.environment.changes_kept(&entity_type)
            {
                let since = self.environment.mint(self.moment.now);
                self.group.write(Write::put(&entity_type, &KeptChanges { since, retention }));
            }
            let key = (entity_type, index, version, self.environment.number());
            self.group.write(Write::delete::<NotIndexed>(&key));
        }
        self.group.reply(reply_to, Ok(Response::Done));
    }
}
