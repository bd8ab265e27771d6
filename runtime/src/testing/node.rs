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
    Request, Timestamp, TypedReference,
    operation::Reply,
    workflow::{InstanceReference, TypedWorkflow},
};
use tokio::{
    runtime::Handle,
    sync::{Mutex, watch},
};

use super::{Committed, commits::Watcher, run::Setup};
use crate::{
    DeadLetterFilter, DeadLetterView, Deletion, Node, StartError,
    clock::{self, Clock as _, SharedClock, sleep},
    store::{
        memory::{Fault, MemoryDisk, PARTITIONS},
        tables::{Record as _, Table, due, inbox},
    },
};

/// 2026-01-01T00:00:00Z, as for drivers.
const START: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);
/// The wait for what is under way, again and again.
const STEP: Duration = Duration::from_millis(1);
/// How much longer than it is told time moves, while what is due is under way.
const ENDS_WITHIN: Duration = Duration::from_secs(1);
/// The most that time moves at once.
const ADVANCE_MAX: Duration = Duration::from_secs(1_000 * 365 * 24 * 3_600);
/// The longest of those waits.
const STEP_MAX: Duration = Duration::from_secs(1);
/// How long a test waits until everything has settled, where it does not say.
const SETTLES_WITHIN: Duration = Duration::from_secs(3_600);
/// How far time jumps at once where something has waited for longer than that.
const LEAP: Duration = Duration::from_secs(60);
/// How long a node is waited for that nobody starts: about as long as timers last.
const NEVER: Duration = Duration::from_secs(700 * 24 * 3_600);
/// How long a node takes to start again. Numbers that it gives out follow the clock, and are new only where that
/// has moved, as it does between any two processes.
const START_LENGTH: Duration = Duration::from_millis(10);
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
    place: watch::Sender<Place>,
    /// Held by who ends the node or starts it.
    turn: Mutex<()>,
    starts: AtomicU64,
    requests: AtomicU64,
    /// Cloned by each request that waits for its answer.
    under_way: Arc<()>,
}

/// The state of the node.
#[derive(Debug, Clone)]
enum Place {
    /// It runs.
    Up(Node),
    /// It starts, for the first time or again.
    Starting,
    /// The test has ended it.
    Down,
    /// It does not start, for this reason.
    Broken(String),
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
            place: watch::Sender::new(Place::Starting),
            turn: Mutex::new(()),
            starts: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            under_way: Arc::default(),
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

    /// A typed reference to a workflow, bound to this node.
    pub fn workflow<W: TypedWorkflow>(&self, key: impl AsRef<str>) -> W::Reference<Self> {
        W::reference(InstanceReference::new(W::NAME, key.as_ref()).bind(self.clone()))
    }

    /// The state of an entity, in its order; the first one before its first turn.
    ///
    /// # Errors
    /// As [`Node::state`].
    pub async fn state<E: Entity>(&self, key: impl AsRef<str>) -> Result<E, Error> {
        let key = key.as_ref();
        let shown = self.until_told(|node| async move { node.state::<E>(key).await }).await.0?;
        Ok(shown.map(|shown| shown.state).unwrap_or_default())
    }

    /// Deletes an entity, once, as [`Node::delete`] does.
    ///
    /// # Errors
    /// As [`Node::delete`].
    pub async fn delete<E: Entity>(&self, key: impl AsRef<str>) -> Result<(), Error> {
        let mut deletion = Deletion::new(EntityId::new(E::NAME, key.as_ref())?);
        deletion.idempotency_key = Some(self.new_key());
        let delete = |node: Node| {
            let deletion = deletion.clone();
            async move { node.delete_with(deletion).await }
        };
        self.until_told(delete).await.0
    }

    /// The dead letters, the oldest of each kind first, at most 1,000.
    ///
    /// # Errors
    /// As [`Node::dead_letters`].
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetterView>, Error> {
        let all = &DeadLetterFilter::default();
        let read = |node: Node| async move { node.dead_letters(all, None, 1_000).await };
        Ok(self.until_told(read).await.0?.rows)
    }

    /// Takes what was made durable since the last time, in order. It is kept until it is taken.
    pub fn take_committed(&self) -> Vec<Committed> {
        self.0.watcher.take()
    }

    /// The node that runs now, for everything else that it offers; waits while it is down. What is asked of it
    /// directly is not asked again where it ends.
    ///
    /// # Panics
    /// Where it does not start, and where it is down and nothing goes on until somebody restarts it.
    pub async fn node(&self) -> Node {
        let mut place = self.0.place.subscribe();
        let settled = place.wait_for(|it| matches!(it, Place::Up(_) | Place::Broken(_)));
        // Time passes by itself only where nothing else can happen.
        let settled = clock::within(NEVER, settled).await;
        match settled.map(|it| it.map(|it| it.clone())) {
            Some(Ok(Place::Up(node))) => node,
            Some(Ok(Place::Broken(why))) => panic!("the node does not start: {why}"),
            _ => panic!("the node is down, and nobody restarts it"),
        }
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

    /// Makes the next commit go wrong. Who is told that nothing was written gets that error; where the node ends,
    /// it starts again, and what was asked is asked again.
    pub fn inject(&self, fault: Fault) {
        self.0.watcher.inject(fault);
    }

    /// Ends the node at once, as if its process had been killed. What is asked of it waits until
    /// [`TestNode::restart`].
    pub async fn kill(&self) {
        let _turn = self.0.turn.lock().await;
        self.end(Place::Down).await;
    }

    /// Ends the node in order, as [`Node::drain`] does. What is asked of it waits until [`TestNode::restart`].
    ///
    /// # Errors
    /// As [`Node::drain`].
    pub async fn drain(&self) -> Result<(), Error> {
        let _turn = self.0.turn.lock().await;
        self.0.watcher.add_incident();
        match self.0.place.send_replace(Place::Down) {
            Place::Up(node) => node.drain().await,
            _ => Ok(()),
        }
    }

    /// Ends the node at once, as [`TestNode::kill`] does, and takes back what entities with
    /// `durability = "buffered"` have answered and nothing has flushed since.
    pub async fn cut_power(&self) {
        let _turn = self.0.turn.lock().await;
        self.end(Place::Down).await;
        self.0.disk.crash();
    }

    /// Starts the node again, and ends it before, if it runs.
    ///
    /// # Panics
    /// Where it does not start, with the reason.
    pub async fn restart(&self) {
        let _turn = self.0.turn.lock().await;
        self.start_again().await;
        if let Place::Broken(why) = &*self.0.place.borrow() {
            panic!("the node does not start: {why}");
        }
    }

    async fn end(&self, next: Place) {
        self.0.watcher.add_incident();
        if let Place::Up(node) = self.0.place.send_replace(next) {
            node.abort().await;
        }
    }

    /// Starts the node again. The turn is held.
    async fn start_again(&self) {
        self.end(Place::Starting).await;
        let mut why = String::new();
        for _ in 0..STARTS_MAX {
            let ended = self.0.watcher.crashed.notified();
            let started = tokio::select! {
                biased;
                started = self.try_start() => started,
                () = ended => {
                    why = "it crashes at every start".into();
                    continue;
                }
            };
            match started {
                Ok(node) => return drop(self.0.place.send_replace(Place::Up(node))),
                Err(error) => why = error.to_string(),
            }
        }
        self.0.place.send_replace(Place::Broken(why));
    }

    async fn try_start(&self) -> Result<Node, StartError> {
        let Inner { setup, disk, clock, starts, .. } = &*self.0;
        disk.end_process();
        let number = starts.fetch_add(1, Ordering::SeqCst);
        if number > 0 {
            sleep(START_LENGTH).await;
        }
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
            let (present, starts) = (place.borrow_and_update().clone(), self.starts());
            if let Place::Up(node) = present {
                tokio::select! {
                    biased;
                    _changed = place.changed() => continue,
                    _fatal = node.failed() => {}
                    () = self.0.watcher.crashed.notified() => {}
                }
                drop(node);
                let _turn = self.0.turn.lock().await;
                // The test may have ended it, or started it again, meanwhile.
                if matches!(*place.borrow(), Place::Up(_)) && self.starts() == starts {
                    self.start_again().await;
                }
            } else if place.changed().await.is_err() {
                return;
            }
        }
    }

    /// Moves time by this length, and by as much more, up to a second, as what is due by then takes to happen.
    /// Each thing happens at its time; days in which nothing is due cost nothing. What takes longer, such as a
    /// retry, may be under way at the end: [`TestNode::assert_settles`] waits for it.
    ///
    /// # Panics
    /// For more than 1,000 years.
    pub async fn advance(&self, length: Duration) {
        assert!(length <= ADVANCE_MAX, "time moves by at most 1,000 years at once");
        let end = self.now() + length;
        let mut unsettled = Duration::ZERO;
        // What was begun shows in the store when it has stopped for a moment.
        sleep(STEP.min(length)).await;
        loop {
            let now = self.now();
            let left = end.since(now);
            if left.is_zero() {
                break;
            }
            if self.is_down() {
                tokio::time::advance(left).await;
                break;
            }
            if !self.is_up() {
                drop(self.node().await);
                continue;
            }
            let mut next = self.next_due(now).map_or(left, |due| due.since(now)).min(left);
            let is_asked = Arc::strong_count(&self.0.under_way) > 1;
            if self.waiting(now).is_empty() && !is_asked {
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
        let mut waited = Duration::ZERO;
        sleep(STEP).await;
        while waited < ENDS_WITHIN && !self.is_down() && !self.has_settled() {
            waited += STEP;
            sleep(STEP).await;
        }
    }

    /// Waits until everything that was accepted is applied, or a dead letter, and nothing is due. Time moves by
    /// as much as that takes: retries wait for their turn.
    ///
    /// # Panics
    /// Where it is not so within an hour, or the node is down; what still waits is named.
    pub async fn assert_settles(&self) {
        self.assert_settles_within(SETTLES_WITHIN).await;
    }

    /// Waits as [`TestNode::assert_settles`] does, for another length of time.
    ///
    /// # Panics
    /// As [`TestNode::assert_settles`].
    pub async fn assert_settles_within(&self, longest: Duration) {
        assert!(!self.is_down(), "the node is down: restart it");
        let mut waited = Duration::ZERO;
        // What is under way shows in the store when it has stopped for a moment.
        sleep(STEP).await;
        loop {
            if self.has_settled() {
                return;
            }
            let waiting = self.waiting(self.now());
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

    /// Checks that there are no dead letters.
    ///
    /// # Panics
    /// With those that there are.
    pub async fn assert_no_dead_letters(&self) {
        let letters = self.dead_letters().await.expect("dead letters can be read");
        assert!(letters.is_empty(), "{} dead letters: {letters:#?}", letters.len());
    }

    fn has_settled(&self) -> bool {
        self.is_up() && self.waiting(self.now()).is_empty()
    }

    /// The work that the store holds and that is to happen by now, in words.
    fn waiting(&self, now: Timestamp) -> Vec<String> {
        let rows = self.0.disk.rows(Table::Inbox).into_iter();
        let mut waiting: Vec<_> = rows.map(|(key, row)| inbox_text(&key, &row)).collect();
        for partition in 0..PARTITIONS {
            let first = due::first_key(partition, Timestamp::from_micros(i64::MIN));
            let behind = due::first_key(partition, now + Duration::from_micros(1));
            let rows = self.0.disk.rows_between(Table::Due, (&first, &behind), usize::MAX);
            let due = rows.iter().filter_map(|(key, _)| due::read_key(key).ok());
            waiting.extend(
                due.map(|(due, id, slot)| format!("{} of {id}, due {due}", ReminderId::from(slot))),
            );
        }
        waiting
    }

    /// When the next reminder or delayed signal is due, behind now.
    fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        let next = |partition| {
            let first = due::first_key(partition, now + Duration::from_micros(1));
            let behind = due::first_key(partition, Timestamp::from_micros(i64::MAX));
            let rows = self.0.disk.rows_between(Table::Due, (&first, &behind), 1);
            let (key, _) = rows.first()?;
            due::read_key(key).ok().map(|(due, ..)| due)
        };
        (0..PARTITIONS).filter_map(next).min()
    }

    fn is_down(&self) -> bool {
        matches!(*self.0.place.borrow(), Place::Down)
    }

    fn is_up(&self) -> bool {
        matches!(*self.0.place.borrow(), Place::Up(_))
    }

    /// An idempotency key that was not used yet.
    fn new_key(&self) -> String {
        format!("test-{}", self.0.requests.fetch_add(1, Ordering::SeqCst))
    }

    /// Asks the node until it answers, though it ends meanwhile. Says too whether an earlier try may have done
    /// what is asked.
    async fn until_told<T, F>(&self, ask: impl Fn(Node) -> F) -> (Result<T, Error>, bool)
    where
        F: Future<Output = Result<T, Error>>,
    {
        use ErrorKind::{Closed, Fenced, Unavailable, Unknown};
        let mut may_be_done = false;
        let _under_way = self.0.under_way.clone();
        loop {
            let (node, before) = (self.node().await, self.0.watcher.incidents());
            let told = ask(node).await;
            let Err(error) = &told else { return (told, may_be_done) };
            // Something went wrong on purpose.
            let is_passing = matches!(error.kind(), Closed | Fenced | Unavailable | Unknown)
                && self.0.watcher.incidents() != before;
            if !is_passing {
                return (told, may_be_done);
            }
            may_be_done |= error.kind() == Unknown;
            sleep(STEP).await;
        }
    }

    fn request<T: Send + 'static>(
        &self,
        request: Request,
        ask: fn(&Node, Request) -> BoxFuture<'static, Result<T, Error>>,
    ) -> BoxFuture<'static, Result<T, Error>> {
        let test = self.clone();
        Box::pin(async move { test.until_told(|node| ask(&node, request.clone())).await.0 })
    }

    /// The request under an idempotency key.
    fn named(&self, mut request: Request) -> Request {
        request.idempotency_key.get_or_insert_with(|| self.new_key());
        request
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
        self.request(self.named(request), Node::call)
    }

    fn signal(&self, request: Request) -> BoxFuture<'static, Result<Accepted, Error>> {
        self.request(self.named(request), Node::signal)
    }

    fn query(&self, request: Request) -> BoxFuture<'static, Result<Reply, Error>> {
        self.request(request, Node::query)
    }

    fn cancel_reminder(
        &self,
        id: EntityId,
        reminder: ReminderId,
    ) -> BoxFuture<'static, Result<(), Error>> {
        let test = self.clone();
        Box::pin(async move {
            let cancel = |node: Node| node.cancel_reminder(id.clone(), reminder.clone());
            match test.until_told(cancel).await {
                // An earlier try has done it.
                (Err(error), true) if error.kind() == ErrorKind::NotFound => Ok(()),
                (told, _) => told,
            }
        })
    }
}

impl fmt::Debug for TestNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestNode").field("now", &self.now()).finish_non_exhaustive()
    }
}
