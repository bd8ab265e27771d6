//! The only source of time: the store's clock, and real waiting.
//!
//! On one node the store's time is a high-water clock. It begins where the stored high-water mark or
//! the wall clock stands, whichever is later, ticks with the monotonic clock and follows the wall
//! clock forward. It never goes back and never stands still: after a wall clock that was ahead for a
//! while is set right, it goes on ticking from where it is. How far that is ahead is told by
//! [`Clock::ahead`].
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

/// How far the store's clock may be ahead of the wall clock before operators are told.
pub(crate) const AHEAD_MAX: Duration = Duration::from_secs(60);

/// A source of the store's time. Calls never return an earlier time than before.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// The present time.
    fn now(&self) -> Timestamp;
    /// Moves the clock to `moment` if it stands before it.
    fn advance_to(&self, moment: Timestamp);
    /// How far this clock is ahead of the machine's wall clock; zero where it is not meant to follow
    /// that.
    fn ahead(&self) -> Duration {
        Duration::ZERO
    }
}

/// The clock of one node.
#[derive(Debug)]
pub struct HighWaterClock {
    started: Instant,
    /// The store's time, in microseconds, when `started` was taken. It only grows.
    base: AtomicI64,
    wall: fn() -> i64,
}

impl HighWaterClock {
    /// A clock that starts at the wall clock's time.
    pub fn new() -> Self {
        Self::with_wall(wall_micros)
    }

    fn with_wall(wall: fn() -> i64) -> Self {
        Self { started: monotonic(), base: AtomicI64::new(wall()), wall }
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
        // The wall clock first: a thread that is stopped between the two must not move the base ahead.
        let wall = (self.wall)();
        let elapsed = micros_since(self.started);
        // A wall clock that is ahead moves the base, so that the time goes on from there.
        let base = wall.saturating_sub(elapsed);
        let known = self.base.load(Ordering::SeqCst);
        let base = match base > known {
            true => self.base.fetch_max(base, Ordering::SeqCst).max(base),
            false => known,
        };
        Timestamp::from_micros(base.saturating_add(elapsed))
    }

    fn advance_to(&self, moment: Timestamp) {
        let base = moment.as_micros().saturating_sub(micros_since(self.started));
        self.base.fetch_max(base, Ordering::SeqCst);
    }

    fn ahead(&self) -> Duration {
        self.now().since(Timestamp::from_micros((self.wall)()))
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

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_was_ahead_and_is_set_right_stops_nothing() {
        static WALL: AtomicI64 = AtomicI64::new(1_000_000_000);
        let clock = HighWaterClock::with_wall(|| WALL.load(Ordering::SeqCst));
        let minute = Duration::from_secs(60);
        let began = clock.now();
        WALL.fetch_add(60_000_000, Ordering::SeqCst);
        assert_eq!(clock.now(), began + minute, "it follows forward");
        WALL.fetch_sub(60_000_000, Ordering::SeqCst);
        assert_eq!(clock.now(), began + minute, "it does not go back");
        for seconds in 1..=70_u64 {
            tokio::time::advance(Duration::from_secs(1)).await;
            WALL.fetch_add(1_000_000, Ordering::SeqCst);
            assert_eq!(clock.now(), began + minute + Duration::from_secs(seconds), "it ticks");
        }
        assert_eq!(clock.ahead(), minute);
    }
}
