//! Policies: what an operation sets, else its type, else the node, and what cannot be set.

use std::sync::atomic::AtomicU32;

use stead::{Cause, DeadLetterFilter, Failure, NodeBuilder, StartError};

use super::*;

/// How often `fail` was tried.
static TRIED: AtomicU32 = AtomicU32::new(0);

/// Slow, and often in vain.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Clerk {
    done: u32,
}

const MINUTE: Duration = Duration::from_secs(60);

#[entity(
    name = "clerk",
    retries = 5,
    mailbox = 2,
    idle = Duration::from_secs(7),
    retention = Duration::from_secs(100),
)]
impl Clerk {
    /// Takes longer than the node allows.
    #[operation(deadline = MINUTE)]
    pub async fn take_long(&mut self) -> u32 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        self.done += 1;
        self.done
    }

    /// The same, for as long as the node allows.
    pub async fn take_too_long(&mut self) {
        tokio::time::sleep(Duration::from_secs(30)).await;
    }

    #[operation(retries = 1, backoff = Duration::from_secs(3_600))]
    pub fn fail(&mut self) -> Result<(), Failure> {
        TRIED.fetch_add(1, Ordering::SeqCst);
        Err(Failure::retry("never"))
    }

    #[operation(visibility = "internal")]
    pub fn hide(&mut self) {}

    pub async fn wait(&mut self) {
        GATE.notified().await;
    }

    pub fn count(&mut self) -> u32 {
        self.done += 1;
        self.done
    }
}

static GATE: tokio::sync::Notify = tokio::sync::Notify::const_new();

fn node(world: &World) -> NodeBuilder {
    let store = world.disk.open().expect("readable");
    Node::builder().store(store).config(world.config.clone()).clock(world.clock.clone())
}

async fn start(world: &World) -> Node {
    node(world).entity::<Clerk>().start().await.expect("starts")
}

#[tokio::test]
async fn an_operation_may_take_as_long_as_its_own_deadline_says() {
    let world = World::new();
    let node = start(&world).await;
    let clerk = node.entity::<Clerk>("a");
    assert_eq!(clerk.take_long().await.expect("it has a minute"), 1);
    let late = clerk.take_too_long().await.expect_err("it has what the node gives");
    assert_eq!(kind(&late), Some(ErrorKind::Deadline));
    node.abort().await;
}

#[tokio::test]
async fn an_operation_is_tried_as_often_and_waits_as_long_as_its_policy_says() {
    let world = World::new();
    let node = start(&world).await;
    node.entity::<Clerk>("a").fail().signal().await.expect("accepted");
    let tried = async |times| {
        let tried = async || TRIED.load(Ordering::SeqCst) == times;
        until_true(&format!("it was tried {times} times"), tried).await;
    };
    tried(1).await;
    until_true("it waits", async || !world.disk.rows(Table::Inbox).is_empty()).await;
    world.advance(3_599);
    assert_eq!(node.entity::<Clerk>("a").count().await.expect("applied"), 1);
    assert_eq!(TRIED.load(Ordering::SeqCst), 1);
    world.advance(1);
    tried(2).await;
    let letters = async || {
        let letters = node.dead_letters(&DeadLetterFilter::default(), None, 10).await;
        let letters = letters.expect("readable").rows;
        letters.len() == 1 && letters[0].cause == Cause::Failure && letters[0].attempts == 2
    };
    until_true("it is a dead letter after one retry", letters).await;
    node.abort().await;
}

#[tokio::test]
async fn the_mailbox_and_the_memory_of_keys_of_a_type_are_its_own() {
    let world = World::new();
    let node = start(&world).await;
    let clerk = node.entity::<Clerk>("a");
    let waiting = tokio::spawn(clerk.wait().into_future());
    let begun = async || !world.disk.rows(Table::Inbox).is_empty();
    until_true("the first one runs", begun).await;
    let waiters = [(); 4].map(|()| tokio::spawn(node.entity::<Clerk>("a").count().into_future()));
    let ended = async || waiters.iter().filter(|waiter| waiter.is_finished()).count() == 2;
    until_true("two operations wait, and no more", ended).await;
    GATE.notify_one();
    waiting.await.expect("joined").expect("applied");
    let mut refused = 0;
    for waiter in waiters {
        if let Err(error) = waiter.await.expect("joined") {
            assert_eq!(kind(&error), Some(ErrorKind::Overloaded));
            refused += 1;
        }
    }
    assert_eq!(refused, 2);
    let count = async || clerk.count().idempotency_key("k").await.expect("applied");
    let first = count().await;
    world.advance(99);
    assert_eq!(count().await, first);
    world.advance(2);
    assert_eq!(count().await, first + 1, "the key is forgotten");
    node.abort().await;
}

#[tokio::test]
async fn policies_are_shown_with_what_the_node_adds() {
    let world = World::new();
    let node = start(&world).await;
    let shown = serde_json::to_value(node.descriptions()).expect("JSON");
    let whole = serde_json::json!({
        "deadline": "PT0.2S", "retries": 5, "backoff": "PT0.01S", "mailbox": 2, "idle": "PT7S",
        "retention": "PT1M40S", "durability": "durable",
    });
    assert_eq!(shown[0]["policy"], whole);
    let operations = shown[0]["operations"].as_array().expect("a list");
    let find = |name: &str| operations.iter().find(|it| it["name"] == name);
    let expected = serde_json::json!({"deadline": "PT1M", "retries": 5, "backoff": "PT0.01S"});
    assert_eq!(find("take_long").expect("listed")["policy"], expected);
    assert!(find("hide").is_none(), "it is internal");
    let hidden = node.entity::<Clerk>("a").hide().await.expect_err("nobody outside calls it");
    assert_eq!(kind(&hidden), Some(ErrorKind::NotFound));
    node.abort().await;
}

/// Asks for too much.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Greedy;

#[entity(name = "greedy", mailbox = 0, idle = Duration::ZERO)]
impl Greedy {
    #[operation(retries = 2_000, backoff = Duration::ZERO)]
    pub fn try_again(&mut self) {}

    #[operation(deadline = MINUTE)]
    pub fn block(&mut self) {}
}

#[tokio::test]
async fn every_policy_out_of_its_range_is_named_at_the_start() {
    let world = World::new();
    let refused = node(&world).entity::<Greedy>().start().await.expect_err("out of range");
    let StartError::Invalid(problems) = refused else { panic!("{refused}") };
    let named = ["greedy: the idle", "greedy: the mailbox", "greedy.try_again: the backoff"];
    let others = ["greedy.try_again: there are 2000 retries", "greedy.block: the deadline"];
    for expected in named.iter().chain(&others) {
        assert!(problems.iter().any(|it| it.starts_with(expected)), "{expected} in {problems:?}");
    }
    assert_eq!(problems.len(), 5, "{problems:?}");
}

/// Lives for a minute after its last turn.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Cart {
    items: u32,
}

#[entity(name = "cart", ttl = MINUTE)]
impl Cart {
    pub fn put(&mut self) -> u32 {
        self.items += 1;
        self.items
    }

    pub fn keep(&mut self, ctx: &mut Context) {
        ctx.cancel_expiry();
    }

    pub fn count(&self) -> u32 {
        self.items
    }
}

#[tokio::test]
async fn entities_of_a_type_with_a_time_to_live_end_when_nobody_has_used_them_for_that_long() {
    let world = World::new();
    let node = node(&world).entity::<Cart>().start().await.expect("starts");
    for cart in ["a", "b"] {
        node.entity::<Cart>(cart).put().await.expect("applied");
    }
    for _ in 0..3 {
        world.advance(50);
        assert_eq!(node.entity::<Cart>("a").count().await.expect("a query") % 4, {
            node.entity::<Cart>("a").put().await.expect("applied") - 1
        });
    }
    let ended = async || node.entity::<Cart>("b").count().await.expect("a query") == 0;
    until_true("the other one has ended", ended).await;
    assert_eq!(world.disk.rows(Table::States).len(), 1);
    assert_eq!(node.entity::<Cart>("a").count().await.expect("a query"), 4);
    node.entity::<Cart>("a").keep().await.expect("applied");
    world.advance(3_600);
    for _ in 0..10 {
        assert_eq!(node.entity::<Cart>("a").count().await.expect("a query"), 4);
    }
    assert!(world.disk.rows(Table::Due).is_empty());
    // The next turn is one of a type with a time to live again.
    node.entity::<Cart>("a").put().await.expect("applied");
    node.abort().await;
    world.disk.crash();
    world.advance(3_600);
    let builder = self::node(&world);
    let node = builder.entity::<Cart>().start().await.expect("starts");
    let ended = async || node.entity::<Cart>("a").count().await.expect("a query") == 0;
    until_true("it has ended", ended).await;
    assert!(world.disk.rows(Table::States).is_empty());
    node.abort().await;
}

/// A clerk of an earlier program.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Former {
    done: u32,
}

#[entity(name = "teller")]
impl Former {
    pub fn count_up(&mut self, ctx: &mut Context) {
        ctx.remind("again", After(MINUTE), Self::of(ctx.key()).count_by(10));
        ctx.signal(Self::of(ctx.key()).count_by(100).after(MINUTE));
    }

    pub fn count_by(&mut self, number: u32) {
        self.done += number;
    }

    pub fn lose(&mut self, _number: u32) -> Result<(), Failure> {
        Err(Failure::fatal("lost"))
    }
}

/// The same with other names.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Present {
    done: u32,
}

#[entity(name = "teller")]
impl Present {
    #[operation(renamed_from = "count_by", renamed_from = "lose")]
    pub fn add(&mut self, number: u32) {
        self.done += number;
    }

    pub fn count_up(&mut self) {}

    pub fn done(&self) -> u32 {
        self.done
    }
}

#[tokio::test]
async fn what_was_stored_under_a_former_name_is_applied_under_the_present_one() {
    let world = World::new();
    let node = node(&world).entity::<Former>().start().await.expect("starts");
    node.entity::<Former>("a").count_up().await.expect("applied");
    node.entity::<Former>("a").lose(1).signal().await.expect("accepted");
    let letters = async |node: &Node| {
        let letters = node.dead_letters(&DeadLetterFilter::default(), None, 10).await;
        letters.expect("readable").rows.len()
    };
    until_true("it is a dead letter", async || letters(&node).await == 1).await;
    node.abort().await;

    let node = self::node(&world).entity::<Present>().start().await.expect("starts");
    assert!(node.unserved().await.expect("readable").is_empty());
    world.advance(60);
    let all = DeadLetterFilter::default();
    assert_eq!(node.replay_all(&all).await.expect("replayed").done, 1);
    let done = async || node.entity::<Present>("a").done().await.expect("a query") == 111;
    until_true("everything was applied", done).await;
    assert_eq!(letters(&node).await, 0);
    let id = EntityId::new("teller", "a").expect("valid");
    let outside = stead::Request::new(id, "count_by", b"1".to_vec());
    let refused = stead::Caller::call(&node, outside).await.expect_err("callers know the present");
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    node.abort().await;
}

/// Two operations that were one.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Forked;

#[entity(name = "forked")]
impl Forked {
    #[operation(renamed_from = "two")]
    pub fn one(&mut self) {}

    pub fn two(&mut self) {}
}

#[tokio::test]
async fn a_former_name_is_no_other_operations() {
    let world = World::new();
    let refused = node(&world).entity::<Forked>().start().await.expect_err("two of a name");
    assert!(refused.to_string().contains("two operations are named two"), "{refused}");
}

/// An entity whose dead letters are soon of no use.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Brief;

#[entity(name = "brief", dead_letters = Duration::from_secs(60))]
impl Brief {
    pub fn refuse(&mut self) -> Result<(), Rejection> {
        Err(Rejection::new("no"))
    }
}

#[test]
fn dead_letters_of_a_type_are_kept_for_its_own_time_also_over_downtime() {
    let test = stead::testing::NodeTest::new().entity::<Brief>().entity::<Journal>();
    test.crash_everywhere(async |node| {
        node.entity::<Brief>("b").refuse().signal().await.expect("accepted");
        node.entity::<Journal>("j").refuse(1).signal().await.expect("accepted");
        node.assert_settles().await;
        let kept = async || {
            let letters = node.dead_letters().await.expect("read").into_iter();
            letters.map(|letter| letter.entity).collect::<Vec<_>>()
        };
        assert_eq!(kept().await.len(), 2);
        node.advance(Duration::from_secs(50)).await;
        assert_eq!(kept().await.len(), 2, "not yet");
        node.kill().await;
        node.advance(Duration::from_secs(5)).await;
        node.restart().await;
        assert_eq!(kept().await.len(), 2, "not yet");
        node.advance(Duration::from_secs(10)).await;
        assert_eq!(kept().await, ["journal/j"]);
        node.advance(Duration::from_secs(8 * 24 * 3_600)).await;
        assert!(kept().await.is_empty(), "the node's own time");
    });
}
