//! A node's right to answer, judged by its own monotonic clock.
//!
//! The store judges leases by its own clock. A node counts from the moment before it asked, so what it
//! counts begins no later than what the store counts, and stops a quarter of the lease early, which
//! covers clocks that run at different speeds. A renewal that failed, or came late, extends nothing.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::{
    clock::{monotonic, since},
    sabotage::Sabotage,
};

/// How much of a lease a node uses, in percent.
const USED_PERCENT: u32 = 75;
const FOR_EVER: u64 = u64::MAX;
const ENDED: u64 = 0;

#[derive(Debug)]
pub(crate) struct Lease {
    began: Instant,
    /// Microseconds since it began until which it holds; it only grows, until it is ended.
    until: AtomicU64,
}

impl Lease {
    /// The right of a node that shares nothing.
    pub(crate) fn for_ever() -> Self {
        Self { began: monotonic(), until: FOR_EVER.into() }
    }

    /// A lease that a store gave when it was asked at `asked`.
    pub(crate) fn given(asked: Instant, length: Duration) -> Self {
        let lease = Self { began: asked, until: 1.into() };
        lease.extend(asked, length);
        lease
    }

    /// Lets it hold until `length` after `asked`, less the margin.
    pub(crate) fn extend(&self, asked: Instant, length: Duration) {
        let used = asked.saturating_duration_since(self.began) + length * USED_PERCENT / 100;
        let used = u64::try_from(used.as_micros()).unwrap_or(FOR_EVER - 1);
        let later = |until: u64| (until != ENDED).then_some(until.max(used));
        // One that has ended stays so.
        let _ended = self.until.fetch_update(Ordering::SeqCst, Ordering::SeqCst, later);
    }

    /// Ends it for good.
    pub(crate) fn end(&self) {
        self.until.store(ENDED, Ordering::SeqCst);
    }

    /// Whether it holds at this moment. What was read before may be told.
    pub(crate) fn holds(&self) -> bool {
        let until = self.until.load(Ordering::SeqCst);
        until == FOR_EVER
            || Sabotage::AnswersWithoutLease.is_on()
            || since(self.began) < Duration::from_micros(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_ends_before_the_store_can_think_so_and_never_comes_back() {
        let second = Duration::from_secs(1);
        let lease = Lease::given(monotonic(), second);
        tokio::time::advance(second * 74 / 100).await;
        assert!(lease.holds());
        tokio::time::advance(second * 2 / 100).await;
        assert!(!lease.holds(), "a quarter of it is the margin");
        let asked = monotonic();
        tokio::time::advance(second / 2).await;
        lease.extend(asked, second);
        assert!(lease.holds());
        tokio::time::advance(second * 26 / 100).await;
        assert!(!lease.holds(), "it counts from when it was asked for");
        lease.end();
        lease.extend(monotonic(), second);
        assert!(!lease.holds(), "one that was ended stays so");
    }
}
