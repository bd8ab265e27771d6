//! Programs that declare indexes over data that is there: they are built, say so until then, and are never wrong.

use stead::{
    Entity, StartError,
    transport::{Faults, Network},
};

use super::{indexes::found, *};

/// The same data, by a program that declares no index, and by one that declares other ones.
mod programs {
    use super::*;

    #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    pub(super) struct First {
        items: u32,
        owner: String,
    }

    #[entity(name = "basket")]
    impl First {
        pub fn put(&mut self, items: u32) -> u32 {
            self.items += items;
            self.items
        }

        pub fn give(&mut self, owner: String) {
            self.owner = owner;
        }
    }

    /// The owner is indexed, in a state of the same version.
    #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    pub(super) struct Owned {
        items: u32,
        owner: String,
    }

    #[entity(name = "basket", index(items: u32, owner: String))]
    impl Owned {
        pub fn put(&mut self, items: u32) -> u32 {
            self.items += items;
            self.items
        }

        pub fn give(&mut self, owner: String) {
            self.owner = owner;
        }
    }

    #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    pub(super) struct Second {
        items: u32,
        owner: String,
    }

    #[entity(name = "basket", index(items: u32))]
    impl Second {
        pub fn put(&mut self, items: u32) -> u32 {
            self.items += items;
            self.items
        }

        pub fn give(&mut self, owner: String) {
            self.owner = owner;
        }

        #[index]
        fn is_large(&self) -> bool {
            self.items >= 20
        }
    }

    /// The kind of an index has changed, and the version has not.
    #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    pub(super) struct Changed {
        items: u32,
        owner: String,
    }

    #[entity(name = "basket")]
    impl Changed {
        #[index]
        fn items(&self) -> String {
            self.items.to_string()
        }
    }

    /// An index whose method panics on some states.
    #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    pub(super) struct Panicking {
        items: u32,
        owner: String,
    }

    #[entity(name = "basket")]
    impl Panicking {
        pub fn put(&mut self, items: u32) -> u32 {
            self.items += items;
            self.items
        }

        #[index]
        fn share(&self) -> u32 {
            100 / self.items.abs_diff(13)
        }
    }

    /// A new version, whose index means something else.
    #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    pub(super) struct Third {
        items: u64,
        owner: String,
    }

    impl From<Second> for Third {
        fn from(second: Second) -> Self {
            Self { items: u64::from(second.items) * 10, owner: second.owner }
        }
    }

    #[entity(name = "basket", version = 2, upgrade_from(1 = Second), index(items: u64, owner: String))]
    impl Third {
        pub fn put(&mut self, items: u64) -> u64 {
            self.items += items;
            self.items
        }
    }
}
use programs::{Changed, First, Owned, Panicking, Second, Third};

async fn try_start<E: Entity>(world: &World) -> Result<Node, StartError> {
    let builder = Node::builder().store(world.disk.open().expect("readable"));
    builder.entity::<E>().start().await
}

async fn start<E: Entity>(world: &World) -> Node {
    try_start::<E>(world).await.expect("starts")
}

/// Waits until an index answers; meanwhile it says that it cannot, and never less than there is.
async fn built(node: &Node, filter: &str, expected: u64) {
    let search = node.find_of("basket").matching(filter);
    until_true(&format!("{filter} is built"), async || match search.count().await {
        Ok(count) => {
            assert_eq!(count, expected, "{filter}: an answer is never wrong");
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            assert!(error.message().contains("cannot answer"), "{error}");
            false
        }
    })
    .await;
    assert_eq!(node.check_indexes().await.expect("checked"), Vec::<String>::new());
}

#[tokio::test]
async fn an_index_that_is_declared_later_is_built_and_says_so_until_then() {
    let world = World::new();
    let node = start::<First>(&world).await;
    for number in 1..=40 {
        node.entity::<First>(format!("b{number:02}")).put(number).await.expect("put");
    }
    let before = node.state::<First>("b02").await.expect("read").expect("there");
    node.drain().await.expect("drained");
    // Nothing can be written, so nothing can be built.
    let node = start::<Second>(&world).await;
    world.disk.stall();
    let error = node.find_of("basket").matching("items:5").page().await.expect_err("not built");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.message().contains("states of 16 of 16 partitions are not indexed yet"),
        "{error}"
    );
    assert!(error.retry_after().is_some(), "says when to ask again");
    node.abort().await;
    world.disk.resume();
    // Nothing that was begun is lost, and what is written meanwhile is found too.
    let node = start::<Second>(&world).await;
    node.entity::<Second>("b41").put(41).await.expect("put");
    built(&node, "items:>=1", 41).await;
    built(&node, "is_large:true", 22).await;
    let after = node.state::<Second>("b02").await.expect("read").expect("there");
    assert_eq!((after.version, after.committed_at), (before.version, before.committed_at));
    node.drain().await.expect("drained");
    // A program without it keeps its rows in order, and the next one with it builds what is missing.
    let node = start::<First>(&world).await;
    node.entity::<First>("b01").put(100).await.expect("put");
    node.entity::<First>("b42").put(42).await.expect("put");
    node.delete(&EntityId::new("basket", "b40").expect("valid")).await.expect("deleted");
    assert_eq!(node.check_indexes().await.expect("checked"), Vec::<String>::new());
    node.drain().await.expect("drained");
    let node = start::<Second>(&world).await;
    built(&node, "items:101", 1).await;
    built(&node, "items:>=1", 41).await;
    node.drain().await.expect("drained");
    let refused = try_start::<Changed>(&world).await.expect_err("refused").to_string();
    for part in ["basket: the index items", "of the kind integer, now text", "raise `version`"] {
        assert!(refused.contains(part), "{refused}");
    }
    // A new version computes its values anew, and its states are rewritten meanwhile.
    let node = start::<Third>(&world).await;
    built(&node, "items:1010", 1).await;
    built(&node, "owner:\"\"", 41).await;
    let versions = node.versions::<Third>().await.expect("counted").versions;
    assert_eq!(versions.iter().map(|of| of.version).collect::<Vec<_>>(), [2]);
    let gone = node.find_of("basket").matching("is_large:true").page().await.expect_err("no such");
    assert!(gone.message().contains("there are: items (integer), owner (text)"), "{gone}");
}

#[tokio::test(start_paused = true)]
async fn a_stored_state_that_cannot_be_indexed_is_named_and_keeps_the_others_from_no_work() {
    let disk = MemoryDisk::new();
    let builder = || Node::builder().store(disk.open().expect("readable")).deterministic(1);
    let node = builder().entity::<First>().start().await.expect("starts");
    let long = "x".repeat(2_000);
    node.entity::<First>("b1").give(long.clone()).await.expect("given");
    node.entity::<First>("b2").give("kim".into()).await.expect("given");
    node.drain().await.expect("drained");
    let node = builder().entity::<Owned>().start().await.expect("starts");
    let search = node.find::<Owned>().filter(Owned::by_owner().is("kim".to_owned()));
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let error = search.page().await.expect_err("one is left");
        assert!(error.message().contains("1 of 16 partitions"), "{error}");
        // The other index is as far, and one that is complete does not help one that is not.
        let both = node.find_of("basket").matching("items:0,owner:kim").count().await;
        assert_eq!(both.expect_err("not complete").kind(), ErrorKind::Unavailable);
    }
    let (one, two) = (node.entity::<Owned>("b1"), node.entity::<Owned>("b2"));
    assert_eq!(two.put(1).await.expect("put"), 1);
    let error = one.put(1).await.expect_err("it would leave what cannot be indexed");
    assert!(error.to_string().contains("a text of 2000 bytes is too long"), "{error}");
    assert_eq!(node.check_indexes().await.expect("checked"), Vec::<String>::new());
    one.give("ann".into()).await.expect("given");
    let all = node.find_of("basket").matching("owner:*");
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(found(all, 1).await.expect("complete"), ["b1", "b2"]);
    // An index that is left out for a while, and means something else then, is computed anew.
    node.drain().await.expect("drained");
    let node = builder().entity::<First>().start().await.expect("starts");
    node.drain().await.expect("drained");
    let node = builder().entity::<Changed>().start().await.expect("starts");
    let changed = node.find_of("basket").matching("items:1");
    until_true("it is built anew", async || {
        let Ok(count) = changed.count().await else { return false };
        assert_eq!(count, 1);
        true
    })
    .await;
    assert_eq!(node.check_indexes().await.expect("checked"), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn an_index_that_panics_on_a_stored_state_waits_for_a_turn_that_mends_it() {
    let disk = MemoryDisk::new();
    let builder = || Node::builder().store(disk.open().expect("readable")).deterministic(1);
    let node = builder().entity::<First>().start().await.expect("starts");
    for (key, items) in [("b1", 12), ("b2", 13), ("b3", 14)] {
        node.entity::<First>(key).put(items).await.expect("put");
    }
    node.drain().await.expect("drained");
    let node = builder().entity::<Panicking>().start().await.expect("starts");
    let search = node.find::<Panicking>().filter(Panicking::by_share().is(100_u32));
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let error = search.count().await.expect_err("one cannot be indexed");
        assert!(error.message().contains("1 of 16 partitions"), "{error}");
    }
    assert_eq!(node.check_indexes().await.expect("checked"), Vec::<String>::new());
    let broken = node.entity::<Panicking>("b2");
    let error = broken.put(0).await.expect_err("it would leave what cannot be indexed");
    assert!(error.to_string().contains("attempt to divide by zero"), "{error}");
    assert_eq!(broken.put(1).await.expect("put"), 14);
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(search.count().await.expect("complete"), 3);
    assert_eq!(node.check_indexes().await.expect("checked"), Vec::<String>::new());
}

/// One of the nodes over one store.
async fn among<E: Entity>(disk: &MemoryDisk, network: &Network, name: &str) -> Node {
    let builder = Node::builder().share(disk.share(), network.at(name), name).name(name);
    builder.deterministic(1).entity::<E>().start().await.expect("starts")
}

#[tokio::test(start_paused = true)]
async fn nodes_of_different_programs_share_an_index_without_a_wrong_answer() {
    let (disk, network) = (MemoryDisk::new(), Network::new(1, Faults::default()));
    let one = among::<First>(&disk, &network, "one").await;
    for number in 1..=30 {
        one.entity::<First>(format!("b{number:02}")).put(number).await.expect("put");
    }
    let two = among::<Second>(&disk, &network, "two").await;
    let owned = async |name: &str| {
        let owners = two.cluster_view().await.partitions;
        owners.iter().filter(|it| it.owner.as_deref() == Some(name)).count()
    };
    until_true("both own partitions", async || owned("one").await >= 4 && owned("two").await >= 4)
        .await;
    // What the earlier program owns is not indexed, and said to be so.
    let search = two.find::<Second>().filter(Second::by_items().within(1..));
    for number in 1..=30 {
        two.entity::<Second>(format!("b{number:02}")).put(1).await.expect("put");
        let error = search.count().await.expect_err("not complete");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
    one.drain().await.expect("drained");
    until_true("all moved", async || owned("two").await == 16).await;
    built(&two, "items:>=1", 30).await;
    // The earlier program comes back, and takes partitions: from then on the index is not complete.
    let one = among::<First>(&disk, &network, "one").await;
    until_true("both own partitions", async || owned("one").await >= 4 && owned("two").await >= 4)
        .await;
    for number in 31..=60 {
        two.entity::<Second>(format!("b{number:02}")).put(number).await.expect("put");
        let error = search.count().await.expect_err("not complete");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
    assert_eq!(two.check_indexes().await.expect("checked"), Vec::<String>::new());
    // Without an end in order, too.
    one.abort().await;
    until_true("all moved", async || owned("two").await == 16).await;
    built(&two, "items:>=1", 60).await;
}
