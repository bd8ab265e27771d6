//! Every limit of a turn, an entity or a node, reached from both sides.

use std::{pin::Pin, task::Poll};

use stead::operation::Operation;

use super::*;

/// Takes more than it may.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Hoard {
    turns: u32,
    bytes: Vec<u8>,
}

#[entity(name = "hoard")]
impl Hoard {
    pub fn signals(&mut self, ctx: &mut Context, count: usize) {
        self.turns += 1;
        for _ in 0..count {
            ctx.signal(Self::of("other").nothing());
        }
    }

    pub fn send_bytes(&mut self, ctx: &mut Context, count: usize) {
        self.turns += 1;
        // Two bytes of it are the quotes of its JSON.
        ctx.signal(Self::of("other").text("x".repeat(count - 2)));
    }

    pub fn reminders(&mut self, ctx: &mut Context, count: usize) {
        self.turns += 1;
        for number in 0..count {
            let hour = After(Duration::from_secs(3_600));
            ctx.remind(number.to_string(), hour, Self::of(ctx.key()).nothing());
        }
    }

    pub fn name(&mut self, ctx: &mut Context, length: usize) {
        self.turns += 1;
        let hour = After(Duration::from_secs(3_600));
        ctx.remind("n".repeat(length), hour, Self::of(ctx.key()).nothing());
    }

    pub fn interval(&mut self, ctx: &mut Context, micros: usize) {
        self.turns += 1;
        let every = Every(Duration::from_micros(micros as u64));
        ctx.remind("often", every, Self::of(ctx.key()).nothing());
    }

    pub fn grow(&mut self, count: usize) {
        self.turns += 1;
        self.bytes = vec![0; count];
    }

    pub fn answer(&mut self, count: usize) -> String {
        self.turns += 1;
        "x".repeat(count - 2)
    }

    pub fn nothing(&mut self) {}

    pub fn text(&mut self, _text: String) {}

    pub fn turns(&self) -> u32 {
        self.turns
    }
}

async fn start(world: &World) -> Node {
    let store = world.disk.open().expect("readable");
    let builder = Node::builder().store(store).config(world.config.clone());
    let builder = builder.clock(world.clock.clone());
    builder.entity::<Hoard>().entity::<Journal>().start().await.expect("starts")
}

/// Polls a call once, which hands it to its partition.
async fn is_pending(call: &mut (impl Future + Unpin)) -> bool {
    std::future::poll_fn(|ctx| Poll::Ready(Pin::new(&mut *call).poll(ctx).is_pending())).await
}

#[tokio::test]
async fn a_turn_that_takes_more_than_it_may_leaves_nothing() {
    let mut world = World::new();
    world.config.state_bytes_max = 1_000;
    world.config.turn_deadline = Duration::from_secs(59);
    let node = start(&world).await;
    type Take = fn(&HoardRef<Node>, usize) -> Operation<(), Node>;
    let rows: [(&str, Take, usize, usize, &str); 6] = [
        ("signals", |hoard, n| hoard.signals(n), 1_024, 1_025, "1024 effects"),
        ("bytes", |hoard, n| hoard.send_bytes(n), 4 << 20, (4 << 20) + 1, "4194304 bytes"),
        ("reminders", |hoard, n| hoard.reminders(n), 256, 257, "256 reminders"),
        ("name", |hoard, n| hoard.name(n), 128, 129, "128"),
        ("interval", |hoard, n| hoard.interval(n), 10_000, 9_999, "10ms"),
        ("state", |hoard, n| hoard.grow(n), 992, 1_000, "the limit is 1000"),
    ];
    for (key, take, enough, more, said) in rows {
        let hoard = node.entity::<Hoard>(key);
        take(&hoard, enough).await.expect(key);
        let error = take(&hoard, more).await.expect_err(key);
        assert!(error.to_string().contains(said), "{key}: {error}");
        assert_eq!(hoard.turns().await.expect("a query"), 1, "{key}");
    }
    let hoard = node.entity::<Hoard>("answer");
    assert_eq!(hoard.answer(16 << 20).await.expect("it fits").len(), (16 << 20) - 2);
    let error = hoard.answer((16 << 20) + 1).await.expect_err("it does not");
    assert!(error.to_string().contains("more than 16777216 bytes"), "{error}");
    assert_eq!(hoard.turns().await.expect("a query"), 1);
}

#[tokio::test]
async fn what_a_node_holds_is_bounded_in_bytes() {
    let mut world = World::new();
    world.config.request_bytes_max = 100;
    world.config.body_bytes_max = 200;
    let node = start(&world).await;
    let hoard = node.entity::<Hoard>("a");
    hoard.text("x".repeat(98)).await.expect("it fits");
    let error = hoard.text("x".repeat(99)).await.expect_err("more than the node holds");
    assert_eq!(kind(&error), Some(ErrorKind::Overloaded));
    let error = hoard.text("x".repeat(199)).await.expect_err("more than an argument has");
    assert_eq!(kind(&error), Some(ErrorKind::Invalid));
    let key = |length| hoard.nothing().idempotency_key("k".repeat(length));
    key(256).await.expect("a key");
    assert_eq!(kind(&key(257).await.expect_err("too long")), Some(ErrorKind::Invalid));
}

#[tokio::test]
async fn a_full_node_refuses_until_there_is_room() {
    let mut world = World::new();
    world.config.requests_max = 1;
    let node = start(&world).await;
    let mut hanging = node.entity::<Journal>("a").hang().into_future();
    assert!(is_pending(&mut hanging).await);
    let hoard = node.entity::<Hoard>("a");
    let error = hoard.nothing().await.expect_err("the node is full");
    assert_eq!(kind(&error), Some(ErrorKind::Overloaded));
    assert!(hanging.await.is_err(), "its deadline");
    // The room is given back when the last that holds it is done with it.
    until_true("there is room again", async || hoard.nothing().await.is_ok()).await;
}

#[tokio::test]
async fn a_key_is_forgotten_after_its_retention_and_not_before() {
    let mut world = World::new();
    world.config.retention = Duration::from_secs(100);
    let node = start(&world).await;
    let journal = node.entity::<Journal>("a");
    let append = || journal.append(1).idempotency_key("k");
    assert_eq!(append().await.expect("a call"), 1);
    world.advance(99);
    assert_eq!(append().await.expect("a call"), 1, "the stored answer");
    world.advance(2);
    assert_eq!(append().await.expect("a call"), 2, "a new operation");
}

#[tokio::test]
async fn rejections_are_kept_to_a_count_and_an_age() {
    let mut world = World::new();
    world.config.rejections_max = 3;
    world.config.rejections_age = Duration::from_secs(1_000);
    let node = start(&world).await;
    let journal = node.entity::<Journal>("a");
    let kept = || world.disk.rows(Table::DeadLetters).len();
    for entry in 0..10 {
        journal.refuse(entry).signal().await.expect("accepted");
    }
    let keeps = async |count: usize| {
        journal.append(0).await.expect("a call");
        kept() == count
    };
    until_true("three are kept", async || keeps(3).await).await;
    journal.explode(1).signal().await.expect("accepted");
    until_true("the failure is kept beside them", async || {
        world.advance(1);
        kept() == 4
    })
    .await;
    world.advance(2_000);
    // Whatever the partition does next, it forgets the old ones with it.
    until_true("only the failure stays", async || keeps(1).await).await;
}

#[tokio::test]
async fn a_drain_waits_until_its_deadline() {
    let mut world = World::new();
    world.config.turn_deadline = Duration::from_secs(600);
    world.config.block_limit = Duration::from_secs(1_200);
    world.config.drain_deadline = Duration::from_millis(50);
    let node = start(&world).await;
    let mut hanging = node.entity::<Journal>("a").hang().into_future();
    assert!(is_pending(&mut hanging).await);
    node.entity::<Journal>("b").append(1).await.expect("a call");
    assert!(node.drain().await.is_err(), "something runs");
    let told = hanging.await.expect_err("it was dropped");
    assert!(matches!(kind(&told), Some(ErrorKind::Unknown | ErrorKind::Closed)), "{told:?}");
}

#[tokio::test]
async fn lists_take_room_like_other_requests() {
    let mut world = World::new();
    world.config.requests_max = 1;
    let node = start(&world).await;
    let id = EntityId::new("journal", "a").expect("valid");
    assert!(node.list_of("journal", "", None, 10).await.is_ok());
    let mut hanging = node.entity::<Journal>("a").hang().into_future();
    assert!(is_pending(&mut hanging).await);
    let filter = stead::DeadLetterFilter::default();
    let refused = [
        node.list_of("journal", "", None, 10).await.map(drop),
        node.reminders(&id, None, 10).await.map(drop),
        node.dead_letters(&filter, None, 10).await.map(drop),
        node.replay_all(&filter).await.map(drop),
    ];
    for refused in refused {
        assert_eq!(refused.map_err(|error| error.kind()), Err(ErrorKind::Overloaded));
    }
    assert!(hanging.await.is_err(), "its deadline");
    let has_room = async || node.list_of("journal", "", None, 10).await.is_ok();
    until_true("the room is given back", has_room).await;
}
