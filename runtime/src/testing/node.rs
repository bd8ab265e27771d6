//! The node of a test: it starts again when it ends, and what is asked of it is asked again.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use stead_entities::{
    Accepted, BoxFuture, Caller, Entity, EntityId, Error, ErrorKind, Reference, ReminderId,
    Request, Timestamp, TypedReference, operation::Reply,
};
use tokio::{runtime::Handle, sync::watch};

use super::{Committed, commits::Watcher, run::Setup};
use crate::{
    DeadLetterFilter, DeadLetterView, Node, StartError,
    clock::{Clock as _, SharedClock, sleep},
    store::{
        memory::{Fault, MemoryDisk},
        tables::{Record as _, Table, due, inbox},
    },
};

/// 2026-01-01T00:00:00Z, as for drivers.
const START: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);
/// The wait for what is under way, again and again.
const STEP: Duration = Duration::from_millis(1);
/// The longest of those waits.
const STEP_MAX: Duration = Duration::from_secs(1);
/// How long a test waits until everything has settled, where it does not say.
const SETTLES_WITHIN: Duration = Duration::from_secs(3_600);
/// How far time jumps at once where something has waited for longer than that.
const LEAP: Duration = Duration::from_secs(60);
/// How often a node that is made to fail is started before a test gives up.
const STARTS_MAX: usize = 100;
/// How many of what has not settled are named.
const NAMED_MAX: usize = 10;

/// The node of a [`NodeTest`](super::NodeTest). Cheap to clone; all clones are the same node.
///
/// References are bound to it as to a [`Node`], and outlive its crashes: while it is down they wait, and what
/// was under way when it ended is asked again under an idempotency key of its own, unless it has one. So what
/// a test asks for happens once, as for a caller who repeats what got no answer.
///
/// Time stands at 2026-01-01T00:00:00Z when a test begins. It moves by [`TestNode::advance`], and by as much as
/// it takes where a test awaits what needs time, such as a call whose operation sleeps.
#[derive(Clone)]
pub struct TestNode(Arc<Inner>);

struct Inner {
    setup: Setup,
    disk: MemoryDisk,
    clock: Arc<SharedClock>,
    watcher: Arc<Watcher>,
    /// The node that runs; none while it is down.
    place: watch::Sender<Option<Node>>,
    starts: AtomicU64,
    requests: AtomicU64,
}

impl TestNode {
    /// Starts the node, and keeps it running.
    pub(super) async fn start(setup: Setup, watcher: Arc<Watcher>) -> Self {
        let disk = MemoryDisk::new();
        disk.watch(watcher.clone());
        let clock = Arc::new(SharedClock::new());
        clock.advance_to(START);
        let test = Self(Arc::new(Inner {
            setup,
            disk,
            clock,
            watcher,
            place: watch::Sender::new(None),
            starts: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        }));
        test.restart().await;
        let kept = test.clone();
        drop(Handle::current().spawn(async move { kept.keep_running().await }));
        test
    }

    /// A typed reference to an entity, bound to this node.
    pub fn entity<E: TypedReference>(&self, key: impl AsRef<str>) -> E::Reference<Self> {
        E::reference(Reference::new(E::NAME, key.as_ref()).bind(self.clone()))
    }

    /// The state of an entity, in its order; none before its first turn.
    ///
    /// # Errors
    /// As [`Node::state`].
    pub async fn state<E: Entity>(&self, key: impl AsRef<str>) -> Result<E, Error> {
        let key = key.as_ref();
        let shown = self.again(async |node| node.state::<E>(key).await).await?;
        Ok(shown.map(|shown| shown.state).unwrap_or_default())
    }

    /// The dead letters, the oldest of each kind first, at most 1,000.
    ///
    /// # Errors
    /// As [`Node::dead_letters`].
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetterView>, Error> {
        let all = DeadLetterFilter::default();
        let read = async |node: Node| node.dead_letters(&all, None, 1_000).await;
        Ok(self.again(read).await?.rows)
    }

    /// Takes what was made durable since the last time, in order.
    pub fn take_committed(&self) -> Vec<Committed> {
        self.0.watcher.take()
    }

    /// The node that runs now, for everything else that it offers; waits while it is down.
    pub async fn node(&self) -> Node {
        let mut place = self.0.place.subscribe();
        let up = place.wait_for(Option::is_some).await;
        up.ok().and_then(|up| up.clone()).expect("the sender is alive, and waited for a node")
    }

    /// A dependency of this run.
    ///
    /// # Panics
    /// Where none of this type was given.
    pub fn dependency<T: Send + Sync + 'static>(&self) -> Arc<T> {
        let found = self.0.setup.dependencies.get::<T>();
        found.unwrap_or_else(|| panic!("no {} is given", std::any::type_name::<T>()))
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// How often the node was started.
    pub fn starts(&self) -> u64 {
        self.0.starts.load(Ordering::SeqCst)
    }

    /// Has the next commit go wrong. Who is told that nothing was written gets that error; where the node ends,
    /// it starts again, and what was asked is asked again.
    pub fn inject(&self, fault: Fault) {
        self.0.watcher.inject(fault);
    }

    /// Ends the node at once, as if its process had been killed. What is asked of it waits until
    /// [`TestNode::restart`].
    pub async fn kill(&self) {
        self.0.watcher.add_incident();
        if let Some(node) = self.0.place.send_replace(None) {
            node.abort().await;
        }
    }

    /// Ends the node at once, as [`TestNode::kill`] does, and takes back what entities with
    /// `durability = "buffered"` have answered and nothing has flushed since.
    pub async fn cut_power(&self) {
        self.kill().await;
        self.0.disk.crash();
    }

    /// Starts the node again, and ends it before, if it runs.
    ///
    /// # Panics
    /// Where it does not start, with the reason.
    pub async fn restart(&self) {
        self.kill().await;
        let mut why = None;
        for _ in 0..STARTS_MAX {
            let ended = self.0.watcher.crashed.notified();
            let started = tokio::select! {
                biased;
                started = self.try_start() => started,
                () = ended => continue,
            };
            match started {
                Ok(node) => {
                    self.0.place.send_replace(Some(node));
                    return;
                }
                Err(error @ StartError::Unavailable(_)) => why = Some(error),
                Err(error) => panic!("the node does not start: {error}"),
            }
        }
        panic!("the node does not start: {why:?}");
    }

    async fn try_start(&self) -> Result<Node, StartError> {
        let Inner { setup, disk, clock, starts, .. } = &*self.0;
        disk.end_process();
        let number = starts.fetch_add(1, Ordering::SeqCst);
        let store = disk.open().map_err(|error| StartError::Unavailable(error.to_string()))?;
        let builder = Node::builder().store(store).clock(clock.clone());
        // Another start has other tokens.
        let seed = setup.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(number);
        setup.add_to(builder).deterministic(seed).start().await
    }

    /// Starts the node again whenever it ends by itself.
    async fn keep_running(&self) {
        let mut place = self.0.place.subscribe();
        loop {
            let up = place.borrow_and_update().clone();
            let ended = async {
                match &up {
                    Some(node) => drop(node.failed().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = place.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                () = ended => {}
                () = self.0.watcher.crashed.notified(), if up.is_some() => {}
            }
            drop(up);
            self.restart().await;
        }
    }

    /// Moves time by this length, and a millisecond more, and lets everything that is due by then happen, each
    /// thing at its time. Days in which nothing is due cost nothing.
    pub async fn advance(&self, length: Duration) {
        let end = self.now() + length;
        let mut unsettled = Duration::ZERO;
        loop {
            let now = self.now();
            let left = end.since(now);
            if left.is_zero() {
                break;
            }
            if self.0.place.borrow().is_none() {
                // Nobody is there.
                tokio::time::advance(left).await;
                break;
            }
            let mut next = self.next_due(now).map_or(left, |due| due.since(now)).min(left);
            if self.waiting(now).is_empty() {
                unsettled = Duration::ZERO;
            } else if unsettled < SETTLES_WITHIN {
                let step = pause(unsettled).min(left);
                unsettled += step;
                sleep(step).await;
                continue;
            } else {
                next = next.min(LEAP);
            }
            // At once, over all that ticks meanwhile: nothing is due.
            tokio::time::advance(next.saturating_sub(STEP)).await;
            sleep(next.min(STEP)).await;
        }
        sleep(STEP).await;
    }

    /// Waits until everything that was accepted is applied, or a dead letter, and nothing is due. Time moves by
    /// as much as that takes: retries wait for their turn.
    ///
    /// # Panics
    /// Where it is not so within an hour, or the node is down; what still waits is named.
    pub async fn assert_settles(&self) {
        self.assert_settles_within(SETTLES_WITHIN).await;
    }

    /// The same, within another length of time.
    ///
    /// # Panics
    /// As [`TestNode::assert_settles`].
    pub async fn assert_settles_within(&self, longest: Duration) {
        assert!(self.0.place.borrow().is_some(), "the node is down: restart it");
        let mut waited = Duration::ZERO;
        // What is under way shows in the store when it has stopped for a moment.
        sleep(STEP).await;
        loop {
            let waiting = self.waiting(self.now());
            if waiting.is_empty() && self.0.place.borrow().is_some() {
                return;
            }
            assert!(
                waited < longest,
                "{} things have not settled within {longest:?}, such as {:#?}",
                waiting.len(),
                &waiting[..waiting.len().min(NAMED_MAX)]
            );
            let step = pause(waited);
            waited += step;
            sleep(step).await;
        }
    }

    /// The work that the store holds and that is to happen by now, in words.
    fn waiting(&self, now: Timestamp) -> Vec<String> {
        let rows = self.0.disk.rows(Table::Inbox).into_iter();
        let mut waiting: Vec<_> = rows.map(|(key, row)| inbox_text(&key, &row)).collect();
        let due = self.due().filter(|(due, ..)| *due <= now);
        waiting.extend(due.map(|(due, id, what)| format!("{what} of {id}, due {due}")));
        waiting
    }

    fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        self.due().map(|(due, ..)| due).filter(|due| *due > now).min()
    }

    /// Reminders and delayed signals with their due times.
    fn due(&self) -> impl Iterator<Item = (Timestamp, EntityId, String)> {
        let rows = self.0.disk.rows(Table::Due).into_iter();
        let read = rows.filter_map(|(key, _)| due::read_key(&key).ok());
        read.map(|(due, id, slot)| (due, id, format!("{}", ReminderId::from(slot))))
    }

    /// Reads, again where the node ended meanwhile.
    async fn again<T>(&self, read: impl AsyncFn(Node) -> Result<T, Error>) -> Result<T, Error> {
        loop {
            let (node, before) = (self.node().await, self.0.watcher.incidents());
            match read(node).await {
                Err(error) if self.is_passing(&error, before) => sleep(STEP).await,
                told => return told,
            }
        }
    }

    /// Whether an error is of something that went wrong on purpose.
    fn is_passing(&self, error: &Error, incidents_before: u64) -> bool {
        use ErrorKind::{Closed, Fenced, Unavailable, Unknown};
        matches!(error.kind(), Closed | Fenced | Unavailable | Unknown)
            && self.0.watcher.incidents() != incidents_before
    }

    /// Asks for something that changes, under an idempotency key, until it is answered.
    fn once<T: Send + 'static>(
        &self,
        mut request: Request,
        ask: fn(&Node, Request) -> BoxFuture<'static, Result<T, Error>>,
    ) -> BoxFuture<'static, Result<T, Error>> {
        if request.idempotency_key.is_none() {
            let number = self.0.requests.fetch_add(1, Ordering::SeqCst);
            request.idempotency_key = Some(format!("test-{number}"));
        }
        self.repeated(request, ask)
    }

    fn repeated<T: Send + 'static>(
        &self,
        request: Request,
        ask: fn(&Node, Request) -> BoxFuture<'static, Result<T, Error>>,
    ) -> BoxFuture<'static, Result<T, Error>> {
        let test = self.clone();
        Box::pin(async move {
            loop {
                let (node, before) = (test.node().await, test.0.watcher.incidents());
                let asked = ask(&node, request.clone());
                drop(node);
                match asked.await {
                    Err(error) if test.is_passing(&error, before) => sleep(STEP).await,
                    told => return told,
                }
            }
        })
    }
}

/// The wait behind so long a wait: a tenth more of it, within bounds.
fn pause(waited: Duration) -> Duration {
    (waited / 10).clamp(STEP, STEP_MAX)
}

fn inbox_text(key: &[u8], row: &[u8]) -> String {
    match (inbox::read_key(key), inbox::InboxRecord::decode(row)) {
        (Ok(key), Ok(row)) => format!(
            "{} for {} from {:?}, tried {} times",
            row.operation, key.receiver, key.sender, row.attempts
        ),
        _ => "a row that cannot be read".into(),
    }
}

impl Caller for TestNode {
    fn call(&self, request: Request) -> BoxFuture<'static, Result<Reply, Error>> {
        self.once(request, Node::call)
    }

    fn signal(&self, request: Request) -> BoxFuture<'static, Result<Accepted, Error>> {
        self.once(request, Node::signal)
    }

    fn query(&self, request: Request) -> BoxFuture<'static, Result<Reply, Error>> {
        self.repeated(request, Node::query)
    }

    fn cancel_reminder(
        &self,
        id: EntityId,
        reminder: ReminderId,
    ) -> BoxFuture<'static, Result<(), Error>> {
        let test = self.clone();
        Box::pin(async move {
            let mut is_repeated = false;
            loop {
                let (node, before) = (test.node().await, test.0.watcher.incidents());
                let cancelled = node.cancel_reminder(id.clone(), reminder.clone());
                drop(node);
                match cancelled.await {
                    Err(error) if test.is_passing(&error, before) => sleep(STEP).await,
                    // An earlier try has done it.
                    Err(error) if is_repeated && error.kind() == ErrorKind::NotFound => {
                        return Ok(());
                    }
                    told => return told,
                }
                is_repeated = true;
            }
        })
    }
}

impl fmt::Debug for TestNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestNode").field("now", &self.now()).finish_non_exhaustive()
    }
}
