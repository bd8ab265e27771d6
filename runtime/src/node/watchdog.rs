//! The watchdog: a thread of its own that an operation which blocks its thread cannot stop.
//!
//! It tells the caller of a turn that takes too long, turns readiness false while one does, and past
//! the hard limit retires the operation and ends the node: what blocks its thread is marked in the
//! store as tried for the last time, so that after the restart it is a dead letter.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use stead_entities::Timestamp;

use super::Inner;
use crate::{
    clock,
    commit::Fatal,
    memory,
    partition::{
        Late, Occurrence, Row,
        message::{CommitRequest, Input, WriteGroup},
        reply::ReplySender,
    },
    store::{
        Horizons, TypedReads as _, Write,
        tables::inbox::{InboxKey, InboxRecord},
    },
};

/// How often the watchdog looks.
const INTERVAL: Duration = Duration::from_millis(20);
/// How long retiring an operation may take.
const RETIRE_DEADLINE: Duration = Duration::from_secs(2);
/// How many rows are read at one time to find the one to retire.
const ROWS_MAX: usize = 1_000;
/// The term of writes that rest on no turn.
const NO_TERM: u64 = u64::MAX - 1;

impl Inner {
    /// Starts the watchdog; it ends with the node.
    pub(super) fn start_watchdog(self: &Arc<Self>) -> std::io::Result<()> {
        let (inner, threads) = (Arc::downgrade(self), self.host.threads().clone());
        threads.run_apart("stead-watchdog", async move {
            while let Some(inner) = inner.upgrade() {
                if let Some(late) = inner.look() {
                    // On this thread: those of the runtime may all be blocked.
                    inner.end_with(late).await;
                    return;
                }
                drop(inner);
                clock::sleep(INTERVAL).await;
            }
        })
    }

    /// Looks at every partition; returns a turn that has run past the hard limit.
    fn look(&self) -> Option<Late> {
        // Rows are kept for as long as the type that remembers keys for longest; younger ones that their own
        // type has forgotten do not count.
        let retention = i64::try_from(self.retention_max().as_micros()).unwrap_or(i64::MAX);
        let now = self.host.clock().now();
        let keys = Timestamp::from_micros(now.as_micros().saturating_sub(retention));
        self.host.store().maintain(Horizons { keys, changes: now });
        self.check_memory();
        self.check_clock();
        let now = clock::monotonic();
        self.host.partitions().iter().for_each(|partition| partition.expire(Some(now)));
        let late = self.host.watches().check(self.host.config().block_limit);
        *self.blocked.lock().unwrap_or_else(PoisonError::into_inner) =
            late.first().map(|late| late.name.clone());
        // Readiness is false before the caller hears of it.
        late.iter().for_each(Late::tell);
        late.into_iter().find(|late| late.elapsed >= self.host.config().block_limit)
    }

    /// The longest time for which keys are remembered.
    fn retention_max(&self) -> Duration {
        let types = self.host.types().values().filter_map(|known| known.policy().retention);
        let times = types.map(|length| length.as_duration());
        times.fold(self.host.config().retention, Duration::max)
    }

    /// Holds the budget of memory: partitions that nothing wakes have their entities leave, too.
    fn check_memory(&self) {
        let memory = self.host.memory();
        if !memory.is_look_due() {
            return;
        }
        if self.host.config().memory_is_of_process
            && let Some(resident) = memory::resident_bytes()
        {
            memory.measured(resident);
        }
        if memory.has_surplus() {
            let open = self.host.partitions().iter().filter(|partition| partition.is_open());
            open.for_each(|partition| partition.push(Input::Tick));
        }
    }

    async fn end_with(&self, late: Late) {
        let name = late.name.clone();
        if clock::within(RETIRE_DEADLINE, self.retire(late)).await.is_none() {
            tracing::error!(name, "the operation could not be retired; its attempts are counted");
        }
        Fatal::Blocked(name).report(self.host.fatal());
    }

    /// A row of the inbox.
    async fn stored(&self, key: &InboxKey) -> Option<InboxRecord> {
        let mut after = None;
        loop {
            let reading =
                self.host.store().inbox(key.partition, key.receiver.clone(), after, ROWS_MAX);
            let page = reading.await.ok()?;
            after = Some(page.rows.last()?.0.clone());
            if let Some((_, record)) = page.rows.into_iter().find(|(known, _)| known == key) {
                return Some(record);
            }
        }
    }

    /// Marks a stored operation as tried for the last time. One that is not stored was not accepted.
    async fn retire(&self, late: Late) {
        let partition = self.host.store().opened().settings.partition_of(&late.id);
        // What has moved is for its owner to retire, when it has spun there too.
        let Some(session) = self.host.session().filter(|_| self.host.handle(partition).is_open())
        else {
            return;
        };
        // One more than can be counted: it is not tried again.
        let last = late.retries.saturating_add(2);
        let write = match late.row {
            Row::None => None,
            Row::Inbox(key) => self.stored(&key).await.map(|mut record| {
                record.attempts = last;
                Write::Retry(key, record)
            }),
            Row::Reminder(Occurrence { slot, .. }) => {
                let found =
                    self.host.store().reminder(partition, late.id.clone(), slot.clone()).await;
                found.ok().flatten().map(|mut record| {
                    record.attempts = last;
                    Write::Remind(partition, late.id, slot, record)
                })
            }
        };
        let Some(write) = write else { return };
        let (reply_to, done) = ReplySender::new(RETIRE_DEADLINE, None);
        let group = WriteGroup {
            partition,
            term: NO_TERM,
            writes: vec![write],
            replies: vec![(reply_to, Ok(crate::partition::reply::Response::Done))],
            ..WriteGroup::default()
        };
        if session.committer.send(CommitRequest::Group(group)).await.is_ok() {
            let _told_in_the_log_otherwise = done.await;
        }
    }
}
