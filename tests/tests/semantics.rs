//! What one node promises, over a store in memory whose flushes can be held, refused or lost.

use std::{
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use stead::{
    After, CallError, Config, Context, EntityId, ErrorKind, Every, JsonSchema, Layout, Node,
    Rejection, Timestamp,
    clock::{Clock, ManualClock},
    entity,
    stock::Counter,
    store::{
        keys::Table,
        memory::{Fault, MemoryDisk},
    },
};

/// An append-only list of what was applied, with every way to go wrong.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Journal {
    entries: Vec<u32>,
    attempts: u32,
}

#[entity(name = "journal")]
impl Journal {
    pub fn append(&mut self, entry: u32) -> u32 {
        self.entries.push(entry);
        self.entries.len() as u32
    }

    pub fn refuse(&mut self, entry: u32) -> Result<(), Rejection> {
        self.entries.push(entry);
        Err(Rejection::new("never"))
    }

    #[allow(unconditional_panic, clippy::panic)]
    pub fn explode(&mut self, entry: u32) {
        self.entries.push(entry);
        panic!("on purpose")
    }

    /// Sends `count` numbered entries to another journal.
    pub fn scatter(&mut self, ctx: &mut Context, to: String, count: u32) {
        for entry in 0..count {
            ctx.signal(Self::of(&to).append(entry));
        }
    }

    /// Sends an operation that fails, and one behind it.
    pub fn send_trouble(&mut self, ctx: &mut Context, to: String) {
        ctx.signal(Self::of(&to).explode(1));
        ctx.signal(Self::of(&to).append(2));
    }

    pub fn remind_once(&mut self, ctx: &mut Context, seconds: u64, entry: u32) {
        let length = Duration::from_secs(seconds);
        ctx.remind("once", After(length), Self::of(ctx.key()).append(entry));
    }

    pub fn remind_every(&mut self, ctx: &mut Context, seconds: u64) {
        let length = Duration::from_secs(seconds);
        ctx.remind("every", Every(length), Self::of(ctx.key()).append(7));
    }

    pub fn cancel(&mut self, ctx: &mut Context) {
        ctx.cancel_reminder("once");
        ctx.cancel_reminder("every");
    }

    pub fn end(&mut self, ctx: &mut Context) {
        ctx.delete();
    }

    pub async fn fetch(&mut self, entry: u32) -> Result<u32, Rejection> {
        tokio::task::yield_now().await;
        self.entries.push(entry);
        Ok(entry)
    }

    pub async fn hang(&mut self) {
        std::future::pending::<()>().await;
    }

    /// Spins until the test lets it go.
    pub fn spin(&mut self) {
        while !LET_GO.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    }

    pub fn send_spin(&mut self, ctx: &mut Context, to: String) {
        ctx.signal(Self::of(&to).spin());
    }

    pub(crate) fn hidden(&mut self) {}

    pub fn entries(&self) -> Vec<u32> {
        self.entries.clone()
    }
}

static LET_GO: AtomicBool = AtomicBool::new(false);

struct World {
    disk: MemoryDisk,
    clock: Arc<ManualClock>,
    config: Config,
}

impl World {
    fn new() -> Self {
        let config = Config {
            retry_delay: Duration::from_millis(10),
            retries: 2,
            turn_deadline: Duration::from_millis(200),
            ..Config::default()
        };
        let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_000_000_000)));
        Self { disk: MemoryDisk::new(), clock, config }
    }

    async fn start(&self) -> Node {
        let store = self.disk.open().expect("readable");
        let builder = Node::builder().store(store).config(self.config.clone());
        let builder = builder.clock(self.clock.clone()).entity::<Journal>().entity::<Counter>();
        builder.start().await.expect("starts")
    }

    /// Moves the clock and lets the node look at it: ticks are real, times are not.
    fn advance(&self, seconds: u64) {
        self.clock.advance_to(self.clock.now() + Duration::from_secs(seconds));
    }
}

/// Reads until `expected` is there; the caller's deadline ends a wait that is in vain.
async fn expect_entries(node: &Node, key: &str, expected: &[u32]) {
    let journal = node.entity::<Journal>(key);
    let mut found = Vec::new();
    for _ in 0..400 {
        found = journal.entries().await.expect("a query");
        if found == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(found, expected);
}

fn kind(error: &CallError) -> Option<ErrorKind> {
    match error {
        CallError::Failed(error) => Some(error.kind()),
        CallError::Rejected(_) => None,
    }
}

#[tokio::test]
async fn what_was_answered_survives_a_crash() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    assert_eq!(journal.append(1).await.expect("a call"), 1);
    journal.append(2).signal().await.expect("a signal");
    world.disk.crash();
    let node = world.start().await;
    expect_entries(&node, "a", &[1, 2]).await;
}

#[tokio::test]
async fn nothing_is_answered_before_it_is_durable() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("gate");
    journal.append(1).await.expect("a call");
    world.disk.stall();
    let call = tokio::spawn(journal.append(2).into_future());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let query = tokio::spawn(journal.entries().into_future());
    let rejected = tokio::spawn(journal.refuse(3).into_future());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!call.is_finished(), "a reply left before its commit");
    assert!(!rejected.is_finished(), "a rejection left before the turn it rests on");
    assert!(!query.is_finished(), "a query showed what was not durable");
    world.disk.resume();
    assert_eq!(call.await.expect("joined").expect("a call"), 2);
    assert!(rejected.await.expect("joined").is_err());
    assert_eq!(query.await.expect("joined").expect("a query"), [1, 2]);
}

#[tokio::test]
async fn a_discarded_turn_restores_the_state_before_it() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    world.disk.stall();
    let first = tokio::spawn(journal.append(1).into_future());
    let panicked = tokio::spawn(journal.explode(2).into_future());
    let rejected = tokio::spawn(journal.refuse(3).into_future());
    tokio::time::sleep(Duration::from_millis(50)).await;
    let second = tokio::spawn(journal.append(4).into_future());
    world.disk.resume();
    first.await.expect("joined").expect("a call");
    let error = panicked.await.expect("joined").expect_err("a panic");
    assert_eq!(kind(&error), Some(ErrorKind::Internal));
    let error = rejected.await.expect("joined").expect_err("a rejection");
    assert_eq!(error.rejection().map(Rejection::reason), Some("never"));
    second.await.expect("joined").expect("a call");
    expect_entries(&node, "a", &[1, 4]).await;
}

#[tokio::test]
async fn a_failed_batch_discards_everything_built_on_it() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    journal.append(1).await.expect("a call");
    for fault in [Fault::Refuse, Fault::Full] {
        world.disk.inject(fault);
        let error = journal.append(2).await.expect_err("refused");
        assert!(matches!(kind(&error), Some(ErrorKind::Unavailable | ErrorKind::Full)));
    }
    assert_eq!(journal.append(3).await.expect("the node goes on"), 2);
    expect_entries(&node, "a", &[1, 3]).await;
}

#[tokio::test]
async fn an_unknown_outcome_is_called_unknown_and_the_key_settles_it() {
    for (fault, is_kept) in [(Fault::LoseAndPoison, false), (Fault::KeepAndPoison, true)] {
        let world = World::new();
        let node = world.start().await;
        let append = |node: &Node, key: &str| {
            node.entity::<Journal>("a").append(1).idempotency_key(key.to_owned())
        };
        append(&node, "first").await.expect("a call");
        world.disk.inject(fault);
        let error = append(&node, "second").await.expect_err("poisoned");
        assert_eq!(kind(&error), Some(ErrorKind::Unknown));
        assert!(matches!(node.failed().await, stead::Fatal::Poisoned(_)));
        assert!(node.ready().await.is_err());
        assert!(append(&node, "third").await.is_err(), "a poisoned node acknowledges nothing");
        world.disk.crash();
        let node = world.start().await;
        assert_eq!(
            node.entity::<Journal>("a").entries().await.expect("read").len(),
            1 + usize::from(is_kept)
        );
        assert_eq!(append(&node, "second").await.expect("settled"), 2);
        assert_eq!(append(&node, "second").await.expect("the same"), 2);
        expect_entries(&node, "a", &[1, 1]).await;
    }
}

#[tokio::test]
async fn a_repeated_key_gets_the_stored_answer_and_another_body_is_refused() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    let other = node.entity::<Journal>("b");
    for _ in 0..3 {
        assert_eq!(journal.append(5).idempotency_key("k").await.expect("a call"), 1);
        journal.append(6).idempotency_key("s").signal().await.expect("a signal");
        journal.refuse(0).idempotency_key("r").await.expect_err("rejected");
    }
    assert_eq!(other.append(9).idempotency_key("k").await.expect("another entity"), 1);
    let error = journal.append(7).idempotency_key("k").await.expect_err("another body");
    assert_eq!(kind(&error), Some(ErrorKind::Conflict));
    let late = journal.append(6).idempotency_key("s").after(Duration::from_secs(9));
    let error = late.signal().await.expect_err("another delay");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    expect_entries(&node, "a", &[5, 6]).await;
    world.disk.crash();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    assert_eq!(journal.append(5).idempotency_key("k").await.expect("after a crash"), 1);
    journal.append(6).idempotency_key("s").signal().await.expect("after a crash");
    expect_entries(&node, "a", &[5, 6]).await;
}

#[tokio::test]
async fn repeats_that_overlap_join_the_first() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    world.disk.stall();
    let calls: Vec<_> = (0..8)
        .map(|_| tokio::spawn(journal.append(5).idempotency_key("k").into_future()))
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.disk.resume();
    for call in calls {
        assert_eq!(call.await.expect("joined").expect("a call"), 1);
    }
    expect_entries(&node, "a", &[5]).await;
}

#[tokio::test]
async fn signals_between_entities_are_applied_once_and_in_order() {
    let world = World::new();
    let node = world.start().await;
    let scatter = node.entity::<Journal>("from").scatter("to".into(), 600);
    scatter.await.expect("a call");
    let all: Vec<u32> = (0..600).collect();
    expect_entries(&node, "to", &all).await;
    node.drain().await.expect("drained");
    world.disk.crash();
    assert!(world.disk.rows(Table::Inbox).is_empty(), "applied signals leave the inbox");
    let node = world.start().await;
    expect_entries(&node, "to", &all).await;
}

#[tokio::test]
async fn signals_of_a_committed_turn_survive_a_crash_before_delivery() {
    let world = World::new();
    let node = world.start().await;
    node.entity::<Journal>("from").scatter("to".into(), 3).await.expect("a call");
    // Nothing of the receiver is durable from here on; the rows of the inbox are.
    world.disk.stall();
    world.disk.crash();
    let node = world.start().await;
    expect_entries(&node, "to", &[0, 1, 2]).await;
}

#[tokio::test]
async fn a_failing_signal_keeps_its_place_and_ends_as_a_dead_letter() {
    let world = World::new();
    let node = world.start().await;
    node.entity::<Journal>("from").send_trouble("to".into()).await.expect("a call");
    let to = node.entity::<Journal>("to");
    assert_eq!(to.append(9).await.expect("others pass"), 1);
    for _ in 0..100 {
        world.advance(1);
        tokio::time::sleep(Duration::from_millis(5)).await;
        if to.entries().await.expect("a query").len() > 1 {
            break;
        }
    }
    expect_entries(&node, "to", &[9, 2]).await;
    assert_eq!(world.disk.rows(Table::DeadLetters).len(), 1);
    assert!(world.disk.rows(Table::Inbox).is_empty());
}

#[tokio::test]
async fn reminders_fire_once_never_early_and_after_downtime() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    journal.remind_once(60, 1).await.expect("a call");
    journal.append(0).await.expect("a call");
    world.advance(59);
    tokio::time::sleep(Duration::from_millis(50)).await;
    expect_entries(&node, "a", &[0]).await;
    world.disk.crash();
    world.advance(3_600);
    let node = world.start().await;
    expect_entries(&node, "a", &[0, 1]).await;
    world.disk.crash();
    let node = world.start().await;
    expect_entries(&node, "a", &[0, 1]).await;
    assert!(world.disk.rows(Table::Due).is_empty());
}

#[tokio::test]
async fn a_missed_recurrence_is_caught_up_once() {
    let world = World::new();
    let node = world.start().await;
    node.entity::<Journal>("a").remind_every(10).await.expect("a call");
    world.disk.crash();
    world.advance(95);
    let node = world.start().await;
    expect_entries(&node, "a", &[7]).await;
    assert_eq!(world.disk.rows(Table::Due).len(), 1, "the next occurrence is scheduled");
    node.entity::<Journal>("a").cancel().await.expect("a call");
    assert!(world.disk.rows(Table::Due).is_empty(), "cancelled in the same commit");
}

#[tokio::test]
async fn a_reminder_that_was_set_again_fires_once_at_its_new_time() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    journal.remind_once(30, 1).await.expect("a call");
    journal.remind_once(90, 2).await.expect("a call");
    world.advance(31);
    // A new generation reads the window anew.
    world.disk.crash();
    let node = world.start().await;
    expect_entries(&node, "a", &[]).await;
    world.advance(60);
    let _wake_up = node.entity::<Journal>("a").entries().await;
    world.disk.crash();
    let node = world.start().await;
    expect_entries(&node, "a", &[2]).await;
}

#[tokio::test]
async fn a_deletion_takes_reminders_and_delayed_signals_along() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    journal.append(1).await.expect("a call");
    journal.remind_once(60, 5).await.expect("a call");
    journal.append(6).after(Duration::from_secs(60)).signal().await.expect("a signal");
    let id = EntityId::new("journal", "a").expect("valid");
    let before = node.state(&id).await.expect("readable").expect("a state");
    node.delete(&id).await.expect("deleted");
    assert_eq!(node.state(&id).await.expect("readable"), None);
    assert!(world.disk.rows(Table::States).is_empty());
    assert!(world.disk.rows(Table::Due).is_empty());
    assert_eq!(world.disk.rows(Table::DeadLetters).len(), 1, "the delayed signal");
    assert_eq!(journal.append(2).await.expect("a new incarnation"), 1);
    let after = node.state(&id).await.expect("readable").expect("a state");
    assert!(after.generation > before.generation);
    journal.end().await.expect("deletes itself");
    assert_eq!(node.state(&id).await.expect("readable"), None);
}

#[tokio::test]
async fn an_operation_that_awaits_is_a_turn_like_any_other() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    assert_eq!(journal.fetch(1).await.expect("a call"), 1);
    journal.fetch(2).signal().await.expect("a signal");
    assert_eq!(journal.append(3).await.expect("behind it"), 3);
    let error = journal.hang().await.expect_err("too long");
    assert_eq!(kind(&error), Some(ErrorKind::Deadline));
    expect_entries(&node, "a", &[1, 2, 3]).await;
    node.drain().await.expect("drained");
    assert!(world.disk.rows(Table::Inbox).is_empty());
}

#[tokio::test]
async fn damaged_state_is_never_replaced() {
    let world = World::new();
    let node = world.start().await;
    node.entity::<Journal>("a").append(1).await.expect("a call");
    node.entity::<Journal>("b").append(1).await.expect("a call");
    node.drain().await.expect("drained");
    let id = EntityId::new("journal", "a").expect("valid");
    world.disk.damage(&id, |bytes| bytes.truncate(bytes.len() - 1));
    let before = world.disk.rows(Table::States);
    let node = world.start().await;
    let error = node.entity::<Journal>("a").append(2).await.expect_err("damaged");
    assert_eq!(kind(&error), Some(ErrorKind::Corrupt));
    assert_eq!(world.disk.rows(Table::States), before, "its bytes stay as they are");
    assert_eq!(node.entity::<Journal>("b").append(2).await.expect("others go on"), 2);
}

#[tokio::test]
async fn a_full_mailbox_refuses_before_acceptance_and_drops_nothing() {
    let mut world = World::new();
    world.config.mailbox_max = 4;
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    let hanging = tokio::spawn(journal.hang().into_future());
    tokio::time::sleep(Duration::from_millis(30)).await;
    let mut accepted = Vec::new();
    let mut refused = 0;
    for entry in 0..10 {
        match journal.append(entry).signal().await {
            Ok(()) => accepted.push(entry),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Overloaded);
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && !accepted.is_empty());
    assert!(hanging.await.expect("joined").is_err());
    expect_entries(&node, "a", &accepted).await;
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_nothing() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    let hanging = tokio::spawn(journal.hang().into_future());
    tokio::time::sleep(Duration::from_millis(30)).await;
    let call = tokio::spawn(journal.append(1).into_future());
    tokio::time::sleep(Duration::from_millis(30)).await;
    call.abort();
    assert!(hanging.await.expect("joined").is_err());
    expect_entries(&node, "a", &[1]).await;
}

#[tokio::test]
async fn an_internal_operation_is_not_for_callers_outside() {
    let world = World::new();
    let node = world.start().await;
    let error = node.entity::<Journal>("a").hidden().await.expect_err("hidden");
    assert_eq!(kind(&error), Some(ErrorKind::NotFound));
}

#[tokio::test]
async fn a_thousand_callers_of_one_entity_lose_nothing() {
    let world = World::new();
    let node = world.start().await;
    let counter = node.entity::<Counter>("hot");
    let calls: Vec<_> = (0..1_000).map(|_| tokio::spawn(counter.add(1).into_future())).collect();
    let mut seen = Vec::new();
    for call in calls {
        seen.push(call.await.expect("joined").expect("a call"));
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=1_000).collect::<Vec<i64>>());
    assert!(world.disk.commits() < 1_000, "turns share commits");
}

/// Ends what spins also when the test fails.
struct LetGo;

impl Drop for LetGo {
    fn drop(&mut self) {
        LET_GO.store(true, Ordering::SeqCst);
    }
}

/// One test for everything about spinning, because what spins holds a thread until it is let go.
#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn an_operation_that_spins_is_named_and_retired() {
    let _let_go = LetGo;
    let mut world = World::new();
    world.config.spin_limit = Duration::from_secs(2);
    let node = world.start().await;
    node.entity::<Journal>("to").append(1).await.expect("a call");
    assert!(node.ready().await.is_ok());
    let error = node.entity::<Journal>("direct").spin().await.expect_err("spins");
    assert_eq!(kind(&error), Some(ErrorKind::Unknown), "told at the turn's deadline");
    assert!(node.ready().await.expect_err("not ready").contains("spin of journal/direct"));
    let (world, node) = (World { disk: MemoryDisk::new(), ..world }, node);
    assert!(matches!(node.failed().await, stead::Fatal::Spinning(_)));

    let node = world.start().await;
    node.entity::<Journal>("to").append(1).await.expect("a call");
    node.entity::<Journal>("from").send_spin("to".into()).await.expect("a call");
    let stead::Fatal::Spinning(name) = node.failed().await else { panic!("another reason") };
    assert_eq!(name, "spin of journal/to");
    world.disk.crash();
    let node = world.start().await;
    expect_entries(&node, "to", &[1]).await;
    // Its commit is behind the one that retires the operation.
    assert_eq!(node.entity::<Journal>("to").append(2).await.expect("it goes on"), 2);
    assert_eq!(world.disk.rows(Table::DeadLetters).len(), 1, "retired after the restart");
    assert!(world.disk.rows(Table::Inbox).is_empty());
}
