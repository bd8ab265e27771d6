//! What other nodes send may be lost, doubled or late; the store knows better.
//!
//! A delivery is taken as it is only where nothing before it can be missing. Else the partition first
//! reads which entities have inbox rows, and until it knows, whatever arrives is left on disk and read
//! from there in order. So the order of a sender's signals rests on the store alone.

use stead_entities::EntityId;

use super::{
    Output, Partition, Phase,
    message::{Delivery, Link},
    recover::RECOVERY_PAUSE,
};
use crate::store::ReadResult;

/// A reading of who has inbox rows.
#[derive(Debug, Default)]
pub(super) struct Rescan {
    /// Whether it is under way, or has to be repeated because the store could not be read.
    pub(super) is_running: bool,
    /// Whether something arrived that the one under way may miss.
    again: bool,
}

impl Partition {
    /// Takes a delivery in its place.
    pub(super) fn deliver_in_order(&mut self, delivery: Option<Box<Delivery>>, link: Link) {
        let known = self.links.get(&link.source);
        let is_late = known.is_some_and(|known| {
            link.number < known.number
                || (link.number == known.number && link.place > 0 && link.place <= known.place)
        });
        if is_late {
            // A double, or of a link that ended: it was read from the store since.
            return;
        }
        let is_next = known.is_some_and(|known| {
            link.number == known.number && (link.place == 0 || link.place == known.place + 1)
        });
        self.links.insert(link.source, link);
        if !is_next {
            self.rescan();
        }
        if let Some(delivery) = delivery {
            self.deliver(*delivery);
        }
    }

    /// Reads the inbox and the reminders again.
    pub(super) fn rescan(&mut self) {
        self.scan_due_again();
        if std::mem::replace(&mut self.rescan.is_running, true) {
            self.rescan.again = true;
        } else {
            self.read_receivers();
        }
    }

    pub(super) fn read_receivers(&mut self) {
        self.outputs.push(Output::Receivers);
    }

    pub(super) fn receivers_read(&mut self, receivers: ReadResult<Vec<EntityId>>) {
        if self.phase != Phase::Serving {
            return;
        }
        let Some(receivers) = self.readable(receivers) else { return };
        self.add_backlogs(receivers);
        if std::mem::take(&mut self.rescan.again) {
            self.read_receivers();
        } else {
            self.rescan.is_running = false;
        }
    }

    /// Who has inbox rows; where that could not be read, it is read again.
    pub(super) fn readable(
        &mut self,
        receivers: ReadResult<Vec<EntityId>>,
    ) -> Option<Vec<EntityId>> {
        let failed = |error| {
            tracing::error!(partition = self.number(), %error, "the inbox cannot be read");
            self.recover_at = Some(self.now + RECOVERY_PAUSE);
        };
        receivers.map_err(failed).ok()
    }

    /// Reads the rows of these entities, some entities at a time.
    pub(super) fn add_backlogs(&mut self, receivers: Vec<EntityId>) {
        for id in receivers {
            if self.type_of(&id).is_none() {
                self.note_unserved(&id);
                continue;
            }
            match self.backlog.get_mut(&id) {
                Some(backlog) => backlog.again = true,
                None => {
                    self.backlog.insert(id.clone(), super::Backlog::default());
                    self.recovering.push_back(id);
                }
            }
        }
        self.wake_recovering();
    }
}
