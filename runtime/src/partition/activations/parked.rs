//! Work that waits for the end of a lock, beside the mailbox of its entity, in the order in which it was to run.

use stead_entities::Timestamp;

use super::Activation;
use crate::partition::envelope::Envelope;

impl Activation {
    /// Keeps something until the lock ends. Says when the holder of that is to be asked, where that is news.
    pub(in crate::partition) fn park(
        &mut self,
        envelope: Envelope,
        asks_holder_at: Timestamp,
    ) -> Option<Timestamp> {
        let apart = self.apart();
        apart.parked.push_back(envelope);
        let is_new = apart.asks_holder_at.is_none();
        is_new.then(|| *apart.asks_holder_at.insert(asks_holder_at))
    }

    /// Has everything run, in its order, that waited for the end of the lock.
    pub(in crate::partition) fn unpark(&mut self) {
        let Some(apart) = &mut self.apart else { return };
        apart.asks_holder_at = None;
        let parked = std::mem::take(&mut apart.parked);
        self.run_first(parked);
    }

    /// Keeps a wish for the lock until what its sender has sent before was tried again.
    pub(in crate::partition) fn wait_behind_retries(&mut self, mut envelope: Envelope) {
        envelope.drop_permit();
        self.apart().behind_retries.push_back(envelope);
    }

    /// Has wishes for the lock run next that waited for retries.
    pub(super) fn unpark_behind_retries(&mut self) {
        let Some(apart) = &mut self.apart else { return };
        let wishes = std::mem::take(&mut apart.behind_retries);
        self.run_first(wishes);
    }

    /// Puts entries before everything else, in their order.
    pub(super) fn run_first(
        &mut self,
        entries: impl IntoIterator<Item = Envelope, IntoIter: DoubleEndedIterator>,
    ) {
        for envelope in entries.into_iter().rev() {
            self.mailbox.push_front(envelope);
        }
    }

    /// Takes one of those that wait for the end of the lock.
    pub(in crate::partition) fn take_one_parked(
        &mut self,
        is_it: impl Fn(&Envelope) -> bool,
    ) -> Option<Envelope> {
        let apart = self.apart.as_mut()?;
        [&mut apart.parked, &mut apart.behind_retries].into_iter().find_map(|queue| {
            let place = queue.iter().position(&is_it)?;
            queue.remove(place)
        })
    }

    /// Whether the holder of the lock is to be asked now, for whom others wait; it is asked again at `next`.
    pub(in crate::partition) fn asks_holder(&mut self, now: Timestamp, next: Timestamp) -> bool {
        let Some(apart) = &mut self.apart else { return false };
        let is_due = apart.asks_holder_at.is_some_and(|at| at <= now) && !apart.parked.is_empty();
        if is_due {
            apart.asks_holder_at = Some(next);
        }
        is_due
    }
}
