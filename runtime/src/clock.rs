//! The only source of time: the store's clock, and real waiting.
//!
//! On one node the store's time is a high-water clock. It begins where the stored high-water mark or
//! the wall clock stands, whichever is later, ticks with the monotonic clock, follows the wall clock
//! forward and never goes back; so a wall clock that is set back neither doubles nor stalls
//! anything.
//!
//! On many nodes it is the database's: a [`SharedClock`] stands where the database's clock stood when
//! it was last heard of, ticks with the monotonic clock, and never looks at the wall clock.
//!
//! The monotonic clock is tokio's, so that a test that pauses it moves everything.

use std::{
    fmt,
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use stead_entities::Timestamp;

/// A source of the store's time. Calls never return an earlier time than before.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// The present time.
    fn now(&self) -> Timestamp;
    /// Moves the clock to `moment` if it stands before it.
    fn advance_to(&self, moment: Timestamp);
}

/// The clock of one node.
#[derive(Debug)]
pub struct HighWaterClock {
    started: Instant,
    base: AtomicI64,
    last: AtomicI64,
}

impl HighWaterClock {
    /// A clock that starts at the wall clock's time.
    pub fn new() -> Self {
        let wall = wall_micros();
        Self { started: monotonic(), base: AtomicI64::new(wall), last: AtomicI64::new(wall) }
    }

    fn elapsed(&self) -> i64 {
        micros_since(self.started)
    }
}

fn micros_since(start: Instant) -> i64 {
    i64::try_from(since(start).as_micros()).unwrap_or(i64::MAX)
}

impl Default for HighWaterClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for HighWaterClock {
    fn now(&self) -> Timestamp {
        let ticked = self.base.load(Ordering::Relaxed).saturating_add(self.elapsed());
        let present = ticked.max(wall_micros());
        Timestamp::from_micros(self.last.fetch_max(present, Ordering::Relaxed).max(present))
    }

    fn advance_to(&self, moment: Timestamp) {
        let base = moment.as_micros().saturating_sub(self.elapsed());
        self.base.fetch_max(base, Ordering::Relaxed);
    }
}

/// The clock of a node among many. It is never ahead of the clock that it follows, but for what the
/// two drift apart between two messages.
#[derive(Debug)]
pub struct SharedClock {
    started: Instant,
    base: AtomicI64,
}

impl SharedClock {
    /// A clock that stands at the beginning of time until it hears of another.
    pub fn new() -> Self {
        Self { started: monotonic(), base: AtomicI64::new(0) }
    }
}

impl Default for SharedClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SharedClock {
    fn now(&self) -> Timestamp {
        // Both parts only grow.
        let base = self.base.load(Ordering::SeqCst);
        Timestamp::from_micros(base.saturating_add(micros_since(self.started)))
    }

    fn advance_to(&self, moment: Timestamp) {
        let base = moment.as_micros().saturating_sub(micros_since(self.started));
        self.base.fetch_max(base, Ordering::SeqCst);
    }
}

/// A clock that a test moves.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock that stands at `moment`.
    pub fn new(moment: Timestamp) -> Self {
        Self(AtomicI64::new(moment.as_micros()))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }
    fn advance_to(&self, moment: Timestamp) {
        self.0.fetch_max(moment.as_micros(), Ordering::SeqCst);
    }
}

#[allow(clippy::disallowed_methods, reason = "this is the home of the wall clock")]
pub(crate) fn wall_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// A point on the monotonic clock.
pub(crate) fn monotonic() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// How long ago a point on the monotonic clock was.
pub(crate) fn since(start: Instant) -> Duration {
    monotonic().saturating_duration_since(start)
}

/// The moment that is `length` from now; a length beyond what the clock can count is as good as a
/// year.
pub(crate) fn deadline_after(length: Duration) -> Instant {
    let now = monotonic();
    now.checked_add(length).unwrap_or(now + Duration::from_secs(365 * 86_400))
}

/// Waits in real time, blocking the thread.
#[allow(clippy::disallowed_methods, reason = "this is the home of waiting")]
#[cfg(feature = "rocksdb")]
pub(crate) fn wait(length: Duration) {
    std::thread::sleep(length);
}

/// Waits in real time.
#[allow(clippy::disallowed_methods, reason = "this is the home of waiting")]
pub(crate) async fn sleep(length: Duration) {
    tokio::time::sleep(length).await;
}

/// A wait until `deadline`, which can be moved.
#[cfg(feature = "http")]
pub(crate) fn sleep_until(deadline: Instant) -> tokio::time::Sleep {
    tokio::time::sleep_until(deadline.into())
}

/// Waits for `future`, at most `length` of real time.
pub(crate) async fn within<F: Future>(length: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(length, future).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_never_goes_back_and_keeps_the_high_water_mark() {
        let clock = HighWaterClock::new();
        let future = clock.now() + Duration::from_secs(86_400);
        clock.advance_to(future);
        let first = clock.now();
        assert!(first >= future);
        clock.advance_to(Timestamp::from_micros(0));
        assert!(clock.now() >= first);
    }
}
