//! Plain settings with defaults. Every limit of a node has its name here.

use std::time::Duration;

use stead_entities::{
    Policy,
    policy::{Durability, RETRIES_MAX},
};

/// The smallest budget of memory.
const MEMORY_MIN: usize = 128 << 20;
/// The shortest lease: a store needs time to answer.
const LEASE_MIN: Duration = Duration::from_millis(200);
/// The longest lease.
const LEASE_MAX: Duration = Duration::from_secs(3_600);
/// The most requests, and bytes of them, that can be set: `admission` counts both in one number.
const REQUESTS_MAX: usize = 1 << 23;
const REQUEST_BYTES_MAX: usize = 1 << 39;

/// The longest wait between two attempts, unless the first one is longer.
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// The settings of a node.
///
/// ```
/// # use std::time::Duration;
/// let config = stead::Config::with(|config| {
///     config.turn_deadline = Duration::from_secs(2);
///     config.retries = 3;
/// });
/// assert!(config.problems().is_empty());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// How long one turn may take. An operation that awaits is discarded then; the caller of one
    /// that blocks its thread is told that the outcome is unknown. 5 s.
    pub turn_deadline: Duration,
    /// How long a caller waits for an answer unless the call says otherwise. 30 s.
    pub call_deadline: Duration,
    /// How long a turn may block its thread before the process gives up and exits. 60 s.
    pub block_limit: Duration,
    /// How often a failed signal or reminder is tried again before it is a dead letter. 8.
    pub retries: u32,
    /// The wait before the first retry; it doubles with each further one. 100 ms.
    pub retry_delay: Duration,
    /// How long idempotency keys are remembered. 24 h.
    pub retention: Duration,
    /// How long an unused entity stays in memory. 60 s.
    pub idle: Duration,
    /// The most operations that wait for one entity in memory. 4,096.
    pub mailbox_max: usize,
    /// The budget of the node in bytes: entities, requests, write groups, and, where the store is set up by it,
    /// what the database keeps in memory ([`MemoryDivision`](crate::MemoryDivision) says how it is divided). 1 GiB; at
    /// least 128 MiB. Entities that were not used for longest leave memory first.
    pub memory: usize,
    /// Whether the budget is that of the whole process, as that of a server is: then its resident bytes, where the
    /// system tells them, are held below it too. Not set.
    pub memory_is_of_process: bool,
    /// The most requests that a node holds at one time. 65,536.
    pub requests_max: usize,
    /// The most bytes of arguments that a node holds at one time, where the budget allows that. 256 MiB.
    pub request_bytes_max: usize,
    /// The longest argument, in bytes; also the longest HTTP body. 1 MiB.
    pub body_bytes_max: usize,
    /// The most bytes that the stored state of one entity may have. 16 MiB.
    pub state_bytes_max: usize,
    /// The most reminders that one entity may have; a turn that would set more fails. 256.
    pub reminders_max: usize,
    /// The most rejected signals that are kept as dead letters in each partition. 100.
    pub rejections_max: usize,
    /// How long rejected signals are kept as dead letters. 7 days.
    pub rejections_age: Duration,
    /// The most other dead letters that are kept in each partition. 1,000.
    pub dead_letters_max: usize,
    /// How long other dead letters are kept. 30 days.
    pub dead_letters_age: Duration,
    /// The most bytes of rejections, and as many of other dead letters, that are kept in each
    /// partition; the newest is kept in any case. 4 MiB.
    pub dead_letter_bytes_max: usize,
    /// How long a draining node waits for what runs. 6 s.
    pub drain_deadline: Duration,
    /// How long a node that shares its store may be silent before others take over what it owns. 3 s.
    pub lease: Duration,
    /// How long a partition that moves to another node waits for what runs. 2 s.
    pub handoff_deadline: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            turn_deadline: Duration::from_secs(5),
            call_deadline: Duration::from_secs(30),
            block_limit: Duration::from_secs(60),
            retries: 8,
            retry_delay: Duration::from_millis(100),
            retention: Duration::from_secs(24 * 3600),
            idle: Duration::from_secs(60),
            mailbox_max: 4_096,
            memory: 1 << 30,
            memory_is_of_process: false,
            requests_max: 65_536,
            request_bytes_max: 256 << 20,
            body_bytes_max: 1 << 20,
            state_bytes_max: 16 << 20,
            reminders_max: 256,
            rejections_max: 100,
            rejections_age: Duration::from_secs(7 * 24 * 3600),
            dead_letters_max: 1_000,
            dead_letters_age: Duration::from_secs(30 * 24 * 3600),
            dead_letter_bytes_max: 4 << 20,
            drain_deadline: Duration::from_secs(6),
            lease: Duration::from_secs(3),
            handoff_deadline: Duration::from_secs(2),
        }
    }
}

impl Config {
    /// The defaults, with what `change` sets.
    pub fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut settings = Self::default();
        change(&mut settings);
        settings
    }

    /// Every setting that cannot be used, in words.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |good: bool, problem: &str| {
            if !good {
                problems.push(problem.to_owned());
            }
        };
        check(!self.turn_deadline.is_zero(), "the turn deadline must not be zero");
        check(!self.call_deadline.is_zero(), "the call deadline must not be zero");
        check(
            self.block_limit > self.turn_deadline,
            "the block limit must be above the turn deadline",
        );
        check(self.memory >= MEMORY_MIN, "the memory must be at least 128 MiB");
        check(self.mailbox_max > 0, "a mailbox must hold at least one operation");
        check(
            (1..=REQUESTS_MAX).contains(&self.requests_max),
            "a node must hold 1 to 8,388,608 requests",
        );
        check(
            self.request_bytes_max <= REQUEST_BYTES_MAX,
            "a node must hold at most 512 GiB of requests",
        );
        check(
            self.retention >= Duration::from_secs(1),
            "the retention must be at least one second",
        );
        check(self.retries <= RETRIES_MAX, "there must be at most 1,000 retries");
        check(
            (LEASE_MIN..=LEASE_MAX).contains(&self.lease),
            "a lease must last 200 ms to one hour",
        );
        check(!self.idle.is_zero(), "the idle time must not be zero");
        problems
    }

    /// The policy of entities and operations that set none.
    pub fn policy(&self) -> Policy {
        Policy::default()
            .deadline(self.turn_deadline)
            .retries(self.retries)
            .backoff(self.retry_delay)
            .mailbox(self.mailbox_max)
            .idle(self.idle)
            .retention(self.retention)
            .durability(Durability::Durable)
    }

    /// The limits under a policy, which may leave parts to these settings.
    pub(crate) fn limits(&self, policy: &Policy) -> Limits {
        let length = |of: Option<stead_entities::Timeout>, or: Duration| {
            of.map_or(or, |length| length.as_duration())
        };
        Limits {
            deadline: length(policy.deadline, self.turn_deadline),
            retries: policy.retries.unwrap_or(self.retries),
            backoff: length(policy.backoff, self.retry_delay),
            mailbox_max: policy.mailbox.unwrap_or(self.mailbox_max),
            idle: length(policy.idle, self.idle),
            retention: length(policy.retention, self.retention),
        }
    }
}

/// The limits of one operation, or of the entities of a type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// How long a turn may take.
    pub(crate) deadline: Duration,
    pub(crate) retries: u32,
    backoff: Duration,
    pub(crate) mailbox_max: usize,
    pub(crate) idle: Duration,
    pub(crate) retention: Duration,
}

impl Limits {
    /// The same with a deadline of at most so long.
    pub(crate) fn at_most(self, deadline: Duration) -> Self {
        Self { deadline: self.deadline.min(deadline), ..self }
    }

    /// The wait before attempt `attempts + 1`: doubled each time, up to a minute.
    pub(crate) fn retry_after(&self, attempts: u32) -> Duration {
        let doubled = 2_u32.saturating_pow(attempts.saturating_sub(1).min(16));
        self.backoff.saturating_mul(doubled).min(self.backoff.max(RETRY_LONGEST))
    }
}
