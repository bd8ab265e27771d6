//! The links from other nodes. A delivery may be lost, doubled or late; the store is read where one may
//! be missing.
//!
//! A delivery is taken as it is only where nothing before it can be missing. Else the partition first
//! reads which entities have inbox rows, and until it knows, whatever arrives is left on disk and read
//! from there in order. So the order of a sender's signals rests on the store alone.

use stead_entities::Timestamp;

use super::{READ_PAUSE, message::Link};
use crate::map::Map;

/// The links by which deliveries come, and the reading of who has inbox rows.
pub(super) struct Links {
    /// The last delivery of each node.
    last: Map<u64, Link>,
    rescan: Rescan,
    /// When to read again who has inbox rows, where that could not be read.
    retry_at: Option<Timestamp>,
}

/// A reading of who has inbox rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rescan {
    None,
    /// Under way, or to be repeated because the store could not be read.
    UnderWay,
    /// Under way, and something arrived that it may miss.
    UnderWayAndAgain,
}

/// How a delivery stands to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It is a double, or of a link that ended: it was read from the store since.
    Late,
    /// Nothing before it is missing.
    Next,
    /// Something before it may be missing.
    BehindGap,
}

impl Links {
    /// `own` is the link of this node, whose deliveries the first reads will not miss.
    pub(super) fn new(own: Link) -> Self {
        Self { last: Map::from_iter([(own.source, own)]), rescan: Rescan::None, retry_at: None }
    }

    /// Notes a delivery, and says how it stands to those before it.
    pub(super) fn place(&mut self, link: Link) -> Place {
        let Some(last) = self.last.insert(link.source, link) else { return Place::BehindGap };
        let is_late = link.number < last.number
            || (link.number == last.number && link.place > 0 && link.place <= last.place);
        if is_late {
            self.last.insert(link.source, last);
            return Place::Late;
        }
        let is_next =
            link.number == last.number && (link.place == 0 || link.place == last.place + 1);
        if is_next { Place::Next } else { Place::BehindGap }
    }

    /// Whether it is being read who has inbox rows, so that what arrives stays on disk.
    pub(super) fn is_rescanning(&self) -> bool {
        self.rescan != Rescan::None
    }

    /// Begins to read who has inbox rows. Says whether to ask the store now: what is under way is
    /// repeated when it is back.
    pub(super) fn rescan(&mut self) -> bool {
        let begins = self.rescan == Rescan::None;
        self.rescan = if begins { Rescan::UnderWay } else { Rescan::UnderWayAndAgain };
        begins
    }

    /// Notes that it was read who has inbox rows. Says whether to ask the store once more.
    pub(super) fn rescanned(&mut self) -> bool {
        let again = self.rescan == Rescan::UnderWayAndAgain;
        self.rescan = if again { Rescan::UnderWay } else { Rescan::None };
        again
    }

    /// Asks again after a pause, because the store could not be read.
    pub(super) fn retry_after(&mut self, now: Timestamp) {
        self.retry_at = Some(now + READ_PAUSE);
    }

    /// Whether it is time to ask again.
    pub(super) fn is_retry_due(&mut self, now: Timestamp) -> bool {
        self.retry_at.take_if(|at| *at <= now).is_some()
    }

    /// When to ask again.
    pub(super) fn next_wake(&self) -> Option<Timestamp> {
        self.retry_at
    }

    /// Ends the term. Where deliveries stand is true beyond it.
    pub(super) fn clear(&mut self) {
        self.rescan = Rescan::None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(source: u64, number: u64, place: u64) -> Link {
        Link { source, number, place }
    }

    #[test]
    fn a_delivery_is_taken_where_nothing_before_it_is_missing() {
        let mut links = Links::new(link(1, 0, 0));
        assert_eq!(
            links.place(link(1, 0, 0)),
            Place::Next,
            "of this process, where nothing is lost"
        );
        assert_eq!(links.place(link(1, 0, 0)), Place::Next);
        assert_eq!(links.place(link(2, 5, 1)), Place::BehindGap, "of a node that was not heard of");
        assert_eq!(links.place(link(2, 5, 2)), Place::Next);
        assert_eq!(links.place(link(2, 5, 2)), Place::Late, "a double");
        assert_eq!(links.place(link(2, 5, 1)), Place::Late);
        assert_eq!(links.place(link(2, 5, 4)), Place::BehindGap, "the third is missing");
        assert_eq!(links.place(link(2, 6, 1)), Place::BehindGap, "a new link");
        assert_eq!(links.place(link(2, 5, 5)), Place::Late, "of the link before");
        assert_eq!(links.place(link(2, 6, 2)), Place::Next, "and it does not count");
    }

    #[test]
    fn what_arrives_during_a_rescan_has_it_repeated_once() {
        let mut links = Links::new(link(1, 0, 0));
        assert!(links.rescan(), "asked at once");
        assert!(!links.rescan() && !links.rescan(), "once more when it is back");
        assert!(links.rescanned() && links.is_rescanning());
        assert!(!links.rescanned() && !links.is_rescanning());
    }
}
