//! Programs that follow one another over the same data: states are rewritten, versions left out, and what no
//! longer fits is found.

use stead::{
    Entity, StartError, UpgradeView, VersionView,
    store::tables::due,
    transport::{Faults, Network},
};

use super::*;

/// The first program's basket, whose wish for a reminder stands in its state.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct First {
    items: u32,
}

#[entity(name = "basket")]
impl First {
    pub fn put(&mut self, ctx: &mut Context, items: u32) -> u32 {
        self.items += items;
        ctx.remind("tidy", After(Duration::from_secs(3_600)), Self::of(ctx.key()).tidy(1));
        self.items
    }

    pub fn tidy(&mut self, by: u32) {
        self.items -= by;
    }
}

/// The second one's: it knows the first, and holds what it has in another form.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Second {
    items: Vec<String>,
    ratio: f64,
}

impl From<First> for Second {
    fn from(first: First) -> Self {
        // An upgrade with a mistake, which one of them meets.
        let ratio = if first.items == 13 { f64::NAN } else { 1.0 };
        Self { items: vec!["thing".into(); first.items as usize], ratio }
    }
}

#[entity(name = "basket", version = 2, upgrade_from(1 = First))]
impl Second {
    pub fn put(&mut self, items: u32) -> u32 {
        self.items.extend(vec!["thing".into(); items as usize]);
        self.count()
    }

    pub fn tidy(&mut self, by: u32) {
        self.items.truncate(self.items.len() - by as usize);
    }

    pub fn count(&self) -> u32 {
        self.items.len() as u32
    }
}

/// The third one's, which has left the first version out, and whose `tidy` takes another argument.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Third {
    items: Vec<String>,
    ratio: f64,
}

#[entity(name = "basket", version = 2)]
impl Third {
    pub fn put(&mut self, items: u32) -> u32 {
        self.items.extend(vec!["thing".into(); items as usize]);
        self.count()
    }

    pub fn tidy(&mut self, name: String) {
        self.items.retain(|item| *item != name);
    }

    pub fn count(&self) -> u32 {
        self.items.len() as u32
    }
}

/// The fourth one's, whose `tidy` only looks.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Fourth {
    items: Vec<String>,
    ratio: f64,
}

#[entity(name = "basket", version = 2)]
impl Fourth {
    pub fn put(&mut self, items: u32) {
        self.items.extend(vec!["thing".into(); items as usize]);
    }

    pub fn tidy(&self) -> bool {
        self.items.is_empty()
    }
}

async fn try_start<E: Entity>(world: &World) -> Result<Node, StartError> {
    let store = world.disk.open().expect("readable");
    let builder = Node::builder().store(store).config(world.config.clone());
    builder.clock(world.clock.clone()).entity::<E>().start().await
}

async fn start<E: Entity>(world: &World) -> Node {
    try_start::<E>(world).await.expect("starts")
}

async fn counts<E: Entity>(node: &Node) -> Vec<(u32, u64)> {
    let counted = node.versions::<E>().await.expect("counted");
    assert!(counted.is_complete);
    counted
        .versions
        .iter()
        .map(|VersionView { version, entities, .. }| (*version, *entities))
        .collect()
}

const ENTITIES: u32 = 40;

/// A store with states of the first version: `b00` to `b39`, each with so many items.
async fn first(world: &World) {
    let node = start::<First>(world).await;
    for number in 1..=ENTITIES {
        let basket = node.entity::<First>(format!("b{number:02}"));
        basket.put(number).await.expect("put");
        // The row of its reminder stays at the earlier time.
        world.clock.advance_to(world.clock.now() + Duration::from_millis(1));
        basket.put(0).await.expect("put off");
    }
    node.drain().await.expect("drained");
}

#[tokio::test]
async fn states_are_rewritten_page_by_page_through_kills_and_their_version_left_out() {
    let world = World::new();
    first(&world).await;
    // The program that leaves the version out says how many there are.
    let refused = try_start::<Third>(&world).await.expect_err("refused").to_string();
    for part in
        ["40 states are stored in version 1", "upgrade_from(1 = ...)", "stead upgrade basket"]
    {
        assert!(refused.contains(part), "{refused}");
    }
    let node = start::<Second>(&world).await;
    assert_eq!(counts::<Second>(&node).await, [(1, 40)]);
    // A turn upgrades its own entity.
    assert_eq!(node.entity::<Second>("b01").put(1).await.expect("put"), 2);
    let before = node.state::<Second>("b02").await.expect("read").expect("there");
    let page = node.upgrade_page("basket", None, 10).await.expect("a page");
    assert_eq!((page.rewritten, page.looked_at, page.next.as_deref()), (9, 10, Some("b10")));
    node.abort().await;
    // What was answered is durable, and is not done again.
    let node = start::<Second>(&world).await;
    assert_eq!(counts::<Second>(&node).await, [(1, 30), (2, 10)]);
    let after = node.state::<Second>("b02").await.expect("read").expect("there");
    assert_eq!((after.version, after.committed_at), (before.version, before.committed_at));
    let done = node.upgrade_all::<Second>().await.expect("upgraded");
    let UpgradeView { rewritten, failed, reason, .. } = done;
    assert_eq!((rewritten, failed), (29, 1), "{reason:?}");
    assert!(reason.is_some_and(|why| why.contains("basket/b13") && why.contains("JSON")));
    assert_eq!(counts::<Second>(&node).await, [(1, 1), (2, 39)]);
    // It is left as it is, until somebody sees to it.
    let refused = try_start::<Third>(&world).await;
    assert!(refused.is_err(), "the first node runs, and one state is left");
    let unreadable = node.entity::<Second>("b13").count().await.expect_err("it cannot be kept");
    assert!(unreadable.to_string().contains("JSON"), "{unreadable}");
    node.abort().await;
    let node = start::<First>(&world).await;
    node.entity::<First>("b13").put(1).await.expect("mended by the first program");
    node.drain().await.expect("drained");
    let node = start::<Second>(&world).await;
    assert_eq!(node.upgrade_all::<Second>().await.expect("upgraded").rewritten, 1);
    assert_eq!(counts::<Second>(&node).await, [(2, 40)]);
    node.drain().await.expect("drained");
    let node = start::<Third>(&world).await;
    assert_eq!(node.entity::<Third>("b30").count().await.expect("read"), 30);
    // What waits is told before it is due.
    let unserved = node.unserved().await.expect("looked for");
    let [found] = &unserved[..] else { panic!("{unserved:?}") };
    assert_eq!((found.operation.as_deref(), found.signals, found.reminders), (Some("tidy"), 0, 40));
    assert!(found.argument.as_ref().is_some_and(|why| why.contains("string")), "{found:?}");
    until_true("readiness tells of it", async || {
        node.notes().iter().any(|note| note.contains("an argument that basket.tidy does not take"))
    })
    .await;
    node.drain().await.expect("drained");
    let node = start::<Fourth>(&world).await;
    let unserved = node.unserved().await.expect("looked for");
    let [found] = &unserved[..] else { panic!("{unserved:?}") };
    assert_eq!((found.operation.as_deref(), found.reminders), (Some("tidy"), 40));
    assert_eq!(found.argument, None, "there is no such operation any more");
    node.drain().await.expect("drained");
    // The program before it still runs, and the reminders fire once.
    let node = start::<Second>(&world).await;
    assert_eq!(node.unserved().await.expect("looked for"), []);
    world.advance(7_200);
    let basket = node.entity::<Second>("b40");
    until_true("the reminder fires", async || basket.count().await.expect("read") == 39).await;
}

#[tokio::test]
async fn a_rewriting_waits_for_its_commit_and_tells_the_truth_when_that_fails() {
    let world = World::new();
    first(&world).await;
    let node = start::<Second>(&world).await;
    world.disk.inject(Fault::Refuse);
    let page = node.upgrade_page("basket", None, 1).await.expect("a page");
    assert_eq!((page.rewritten, page.failed), (0, 1), "{page:?}");
    assert_eq!(counts::<Second>(&node).await, [(1, 40)]);
    let page = node.upgrade_page("basket", None, 1).await.expect("a page");
    assert_eq!((page.rewritten, page.failed), (1, 0), "{page:?}");
    // Beside turns of the same entities.
    let busy = node.entity::<Second>("b02");
    let turns = async {
        for _ in 0..100 {
            busy.put(1).await.expect("put");
        }
    };
    let (done, ()) = tokio::join!(node.upgrade_all::<Second>(), turns);
    assert_eq!(done.expect("upgraded").failed, 1, "b13");
    node.abort().await;
    let node = start::<Second>(&world).await;
    assert_eq!(node.entity::<Second>("b02").count().await.expect("read"), 102);
}

#[tokio::test]
async fn what_cannot_be_upgraded_is_refused_with_the_reason() {
    let node = World::new().start().await;
    let error = node.upgrade_page("nothing", None, 1).await.expect_err("no such type");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let empty = node.upgrade_all::<Journal>().await.expect("nothing to do");
    assert_eq!((empty.rewritten, empty.looked_at), (0, 0));
    assert_eq!(counts::<Journal>(&node).await, []);
}

#[tokio::test]
async fn a_reminder_that_nobody_can_run_ends_at_the_time_to_which_it_was_put_off() {
    let world = World::new();
    let node = start::<First>(&world).await;
    let basket = node.entity::<First>("b");
    basket.put(1).await.expect("put");
    world.advance(1_800);
    // Its row stays at the earlier time.
    basket.put(1).await.expect("put off");
    node.drain().await.expect("drained");
    let node = start::<Second>(&world).await;
    node.upgrade_all::<Second>().await.expect("upgraded");
    node.drain().await.expect("drained");
    let node = start::<Fourth>(&world).await;
    let reminders = async || {
        let id = EntityId::new("basket", "b").expect("valid");
        node.reminders(&id, None, 10).await.expect("read").rows
    };
    let letters = async || {
        let all = stead::DeadLetterFilter::default();
        node.dead_letters(&all, None, 10).await.expect("read").rows
    };
    world.advance(1_900);
    let due = world.clock.now() + Duration::from_secs(1_700);
    // The clock has moved, and the partition looks at it when something happens.
    let look = async || node.entity::<Fourth>("b").tidy().await.expect("a query");
    until_true("its row follows", async || {
        assert!(!look().await);
        let rows = world.disk.rows(Table::Due);
        let dues = rows.iter().map(|(key, _)| due::read_key(key).expect("a key").0);
        dues.collect::<Vec<_>>() == [due]
    })
    .await;
    assert_eq!(reminders().await.len(), 1);
    assert!(letters().await.is_empty(), "it was put off");
    world.advance(1_701);
    until_true("it is a dead letter", async || {
        assert!(!look().await);
        letters().await.len() == 1
    })
    .await;
    assert!(letters().await[0].reason.contains("tidy"), "{:?}", letters().await);
    assert!(reminders().await.is_empty());
}

/// One of two nodes over one store.
async fn among<E: Entity>(disk: &MemoryDisk, network: &Network, name: &str) -> Node {
    let builder = Node::builder().share(disk.share(), network.at(name), name).name(name);
    builder.deterministic(1).entity::<E>().start().await.expect("starts")
}

#[tokio::test(start_paused = true)]
async fn any_node_has_states_rewritten_by_their_owners() {
    let (disk, network) = (MemoryDisk::new(), Network::new(1, Faults::default()));
    let one = among::<First>(&disk, &network, "one").await;
    let two = among::<First>(&disk, &network, "two").await;
    for number in 1..=12 {
        one.entity::<First>(format!("b{number:02}")).put(number).await.expect("put");
    }
    // In the middle of a rolling upgrade an owner of the earlier program leaves its states as they are.
    two.drain().await.expect("drained");
    let two = among::<Second>(&disk, &network, "two").await;
    until_true("both own partitions", async || {
        let owners = two.cluster_view().await.partitions;
        let of = |name: &str| owners.iter().filter(|it| it.owner.as_deref() == Some(name)).count();
        of("one") >= 4 && of("two") >= 4 && of("one") + of("two") == 16
    })
    .await;
    let done = two.upgrade_all::<Second>().await.expect("upgraded");
    assert!(done.rewritten > 0 && done.failed > 0, "{done:?}");
    assert!(done.reason.is_some_and(|why| why.contains("runs a program that knows version 1")));
    one.drain().await.expect("drained");
    let one = among::<Second>(&disk, &network, "one").await;
    let rest = one.upgrade_all::<Second>().await.expect("upgraded");
    assert_eq!((rest.rewritten, rest.failed), (done.failed, 0), "{rest:?}");
    assert_eq!(counts::<Second>(&one).await, [(2, 12)]);
    one.drain().await.expect("drained");
    two.drain().await.expect("drained");
    let three = among::<Third>(&disk, &network, "three").await;
    assert_eq!(three.entity::<Third>("b12").count().await.expect("read"), 12);
}
