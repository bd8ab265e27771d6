//! Entities are found by their indexed values: whatever was written, merged, deleted, lost and written anew, an
//! index says what the states say, or that it cannot.

use std::collections::BTreeMap;

use stead::{
    Error, Find,
    testing::{CommitFaults, NodeTest, TestNode},
};

use super::*;

#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    Layout,
)]
#[serde(rename_all = "snake_case")]
enum Phase {
    #[default]
    Packed,
    OnTheWay,
    Delivered,
}

#[derive(
    Debug,
    Clone,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    Layout,
)]
struct Street(String);

/// A parcel whose indexed values are awkward.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
struct Parcel {
    phase: Phase,
    street: Street,
    owner: Option<String>,
    grams: i64,
    ratio: f64,
    due: Option<Timestamp>,
}

#[entity(
    name = "parcel",
    index(phase: Phase, street: Street, owner: Option<String>, ratio: f64, due: Option<Timestamp>)
)]
impl Parcel {
    pub fn set(&mut self, parcel: Parcel) {
        *self = parcel;
    }

    pub fn weigh(&mut self, grams: i64) -> i64 {
        self.grams = grams;
        grams
    }

    pub fn r#move(&mut self, street: String) {
        self.street = Street(street);
    }

    pub fn refuse(&mut self, grams: i64) -> Result<(), Rejection> {
        self.grams = grams;
        Err(Rejection::new("never"))
    }

    #[index]
    fn is_heavy(&self) -> bool {
        self.grams > 1_000
    }
}

type Model = BTreeMap<String, Parcel>;

/// A parcel that follows from a number.
fn parcel(number: u64) -> Parcel {
    let streets = ["", "a", "a\0", "a\0b", "ab", "b,c", "\"", "ä", "z"];
    let phases = [Phase::Packed, Phase::OnTheWay, Phase::Delivered];
    let ratios = [-1.5, -0.0, 0.0, 0.25, f64::MAX, f64::MIN_POSITIVE];
    Parcel {
        phase: phases[number as usize % 3],
        street: Street(streets[number as usize % 9].into()),
        owner: (!number.is_multiple_of(4)).then(|| format!("o{}", number % 5)),
        grams: number as i64 % 2_003,
        ratio: ratios[number as usize % 6],
        due: (number % 2 == 1).then(|| Timestamp::from_micros(number as i64 % 7 - 3)),
    }
}

/// The keys that a search finds, page by page.
pub(super) async fn found<E: Send>(search: Find<E>, limit: usize) -> Result<Vec<String>, Error> {
    let (mut keys, mut after) = (Vec::new(), None::<String>);
    loop {
        let search = search.clone().limit(limit);
        let page = match &after {
            Some(after) => search.after(after).page().await?,
            None => search.page().await?,
        };
        keys.extend(page.rows.into_iter().map(|row| row.key));
        after = page.next;
        if after.is_none() {
            return Ok(keys);
        }
    }
}

/// Every way to find says what the model says.
async fn assert_found(node: &Node, model: &Model) {
    let search = || node.find::<Parcel>();
    let all = |fits: &dyn Fn(&Parcel) -> bool| -> Vec<String> {
        model.iter().filter(|(_, it)| fits(it)).map(|(key, _)| key.clone()).collect()
    };
    for phase in [Phase::Packed, Phase::OnTheWay, Phase::Delivered] {
        let of = search().filter(Parcel::by_phase().is(phase));
        assert_eq!(found(of.clone(), 3).await.expect("found"), all(&|it| it.phase == phase));
        assert_eq!(of.count().await.expect("counted"), all(&|it| it.phase == phase).len() as u64);
        let heavy = of.filter(Parcel::by_is_heavy().is(true));
        let expected = all(&|it| it.phase == phase && it.grams > 1_000);
        assert_eq!(heavy.count().await.expect("counted"), expected.len() as u64);
        assert_eq!(found(heavy, 1).await.expect("found"), expected);
    }
    let sorted = |mut keys: Vec<String>| {
        keys.sort();
        keys
    };
    let nobody = found(search().filter(Parcel::by_owner().is(None)), 2).await.expect("found");
    assert_eq!(nobody, all(&|it| it.owner.is_none()));
    let owners = found(search().matching("owner:o1..o3"), 2).await.expect("found");
    let is_between = |it: &Parcel| it.owner.as_deref().is_some_and(|of| ("o1".."o3").contains(&of));
    assert_eq!(sorted(owners), all(&is_between));
    let streets = search().filter(Parcel::by_street().starts_with("a"));
    assert_eq!(
        sorted(found(streets, 2).await.expect("found")),
        all(&|it| it.street.0.starts_with('a'))
    );
    let quoted = search().matching(r#"street:"b,c""#);
    assert_eq!(found(quoted, 9).await.expect("found"), all(&|it| it.street.0 == "b,c"));
    let early = search().filter(Parcel::by_due().within(..Some(Timestamp::from_micros(0))));
    let is_early = |it: &Parcel| it.due.is_some_and(|due| due < Timestamp::from_micros(0));
    assert_eq!(sorted(found(early, 4).await.expect("found")), all(&is_early));
    let by_ratio = found(search().order_by(Parcel::by_ratio()), 4).await.expect("found");
    let mut expected: Vec<_> = model.iter().collect();
    expected.sort_by(|one, other| one.1.ratio.total_cmp(&other.1.ratio).then(one.0.cmp(other.0)));
    // Both zeros are one value, and come by key.
    expected.sort_by(|one, other| {
        one.1.ratio.partial_cmp(&other.1.ratio).expect("numbers").then(one.0.cmp(other.0))
    });
    let expected: Vec<_> = expected.into_iter().map(|(key, _)| key.clone()).collect();
    assert_eq!(by_ratio, expected);
    let back = found(search().order_by(Parcel::by_ratio()).descending(), 3).await.expect("found");
    assert_eq!(back, expected.into_iter().rev().collect::<Vec<_>>());
    let states = search().matching("phase:packed").prefix("p1").states().await.expect("found");
    let expected: Vec<_> = model
        .iter()
        .filter(|(key, it)| key.starts_with("p1") && it.phase == Phase::Packed)
        .collect();
    let states: Vec<_> = states.rows.iter().map(|(key, it)| (key, &it.state)).collect();
    assert_eq!(states, expected);
    assert_eq!(node.check_indexes().await.expect("checked"), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_found_is_what_the_states_say_through_turns_deletions_and_restarts() {
    let world = World::new();
    let start = async || {
        let builder = Node::builder().store(world.disk.open().expect("readable"));
        builder.entity::<Parcel>().start().await.expect("starts")
    };
    let (mut node, mut model) = (start().await, Model::new());
    assert_found(&node, &model).await;
    let mut random = 1_u64;
    for round in 0..400_u64 {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = random >> 33;
        let key = format!("p{:02}", number % 23);
        let entity = node.entity::<Parcel>(&key);
        match number / 23 % 8 {
            0 => {
                node.delete(&EntityId::new("parcel", &key).expect("valid")).await.expect("deleted");
                model.remove(&key);
            }
            1 => drop(entity.refuse(9_999).await.expect_err("refused")),
            2 => {
                let grams = number as i64 % 3_000;
                entity.weigh(grams).await.expect("weighed");
                model.entry(key).or_default().grams = grams;
            }
            _ => {
                entity.set(parcel(number)).await.expect("set");
                model.insert(key, parcel(number));
            }
        }
        if round % 100 == 99 {
            assert_found(&node, &model).await;
            match round {
                199 => node.abort().await,
                _ => node.drain().await.expect("drained"),
            }
            node = start().await;
            assert_found(&node, &model).await;
        }
    }
}

#[tokio::test]
async fn turns_and_deletions_that_share_a_commit_leave_the_rows_of_the_last_state() {
    let world = World::new();
    let builder = Node::builder().store(world.disk.open().expect("readable"));
    let node = builder.entity::<Parcel>().start().await.expect("starts");
    let id = |key: &str| EntityId::new("parcel", key).expect("valid");
    for key in ["kept", "gone", "again"] {
        node.entity::<Parcel>(key).set(parcel(1)).await.expect("set");
    }
    world.disk.stall();
    let mut waiting = tokio::task::JoinSet::new();
    for (key, deletes) in [("kept", false), ("gone", true), ("again", true), ("new", false)] {
        let node = node.clone();
        let id = id(key);
        waiting.spawn(async move {
            let entity = node.entity::<Parcel>(id.key());
            for number in 2..40 {
                let set = entity.set(parcel(number));
                tokio::spawn(set.into_future());
                tokio::task::yield_now().await;
            }
            if deletes {
                let (node, id) = (node.clone(), id.clone());
                tokio::spawn(async move { node.delete(&id).await });
                tokio::task::yield_now().await;
            }
            if id.key() == "again" {
                tokio::spawn(entity.r#move("last".into()).into_future());
            }
        });
    }
    while waiting.join_next().await.is_some() {}
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    world.disk.resume();
    let moved = node.find::<Parcel>().matching("street:last");
    until_true("the last turn is found", async || {
        found(moved.clone(), 9).await.expect("found") == ["again"]
    })
    .await;
    let model = Model::from([
        ("kept".to_owned(), parcel(39)),
        ("new".to_owned(), parcel(39)),
        ("again".to_owned(), Parcel { street: Street("last".into()), ..Parcel::default() }),
    ]);
    until_true("the others are there", async || {
        node.count::<Parcel>("").await.expect("counted") == 3
            && node
                .state::<Parcel>("new")
                .await
                .expect("read")
                .is_some_and(|it| it.version.revision == 38)
    })
    .await;
    assert_found(&node, &model).await;
}

#[test]
fn an_index_follows_its_states_wherever_a_node_ends() {
    let story = async |node: TestNode| {
        for number in 0..4 {
            node.entity::<Parcel>(format!("p{number}")).set(parcel(number)).await.expect("set");
        }
        node.entity::<Parcel>("p1").r#move("a".into()).await.expect("moved");
        node.delete::<Parcel>("p2").await.expect("deleted");
        node.entity::<Parcel>("p2").weigh(2_000).await.expect("weighed");
        node.delete::<Parcel>("p3").await.expect("deleted");
        let search = node.node().await.find::<Parcel>();
        let a = search.clone().filter(Parcel::by_street().is(Street("a".into())));
        assert_eq!(found(a, 9).await.expect("found"), ["p1"]);
        assert_eq!(found(search.matching("is_heavy:true"), 9).await.expect("found"), ["p2"]);
    };
    let test = NodeTest::new().entity::<Parcel>();
    test.crash_everywhere(story);
    let mut faults = CommitFaults::default();
    (faults.refused, faults.answer_lost) = (0.2, 0.1);
    (faults.crash_before, faults.crash_after) = (0.1, 0.1);
    test.faults(faults).run_seeds(0..60, story);
}

#[tokio::test]
async fn what_no_index_can_mean_is_refused_with_what_there_is() {
    let node = World::new().start().await;
    for number in 0..5 {
        node.entity::<Counter>(number.to_string()).add(number).await.expect("added");
    }
    let refused = async |search: Find<()>| {
        let error = search.page().await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        error.message().to_owned()
    };
    let search = || node.find_of("counter");
    for (why, search) in [
        ("counter has no index \"size\"; there are: value (integer)", search().matching("size:1")),
        (
            "counter has no index \"size\"; there are: value (integer)",
            search().order_by_name("size"),
        ),
        ("journal has no index \"x\"; it has none", node.find_of("journal").matching("x:1")),
        ("the index value (integer): \"abc\" is no value of it", search().matching("value:>=abc")),
        ("asks for texts that begin so", search().matching("value:5*")),
        ("\"value\" is no filter", search().matching("value")),
        ("there is no filter", search().matching("")),
        ("a search needs a filter or an order", search()),
    ] {
        let message = refused(search).await;
        assert!(message.contains(why), "{message}");
    }
    let missing = node.find_of("nothing").matching("a:1").page().await.expect_err("no such type");
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let prefix = node.find::<Counter>().filter(Counter::by_value().starts_with("5"));
    let error = prefix.page().await.expect_err("no text");
    assert!(error.message().contains("only text begins with something"), "{error}");
    // A cursor is of its search, and of its store.
    let first = search().matching("value:>=0").limit(2).page().await.expect("a page");
    let next = first.next.expect("more");
    let rest = search().matching("value:>=0").limit(9).after(&next).page().await.expect("a page");
    assert_eq!(rest.rows.iter().map(|row| &*row.key).collect::<Vec<_>>(), ["2", "3", "4"]);
    let mut cut = next.clone();
    cut.pop();
    for (after, other) in [
        (next.clone(), search().matching("value:>=1")),
        (next.clone(), search().matching("value:>=0").descending()),
        (next.clone(), search().matching("value:>=0").prefix("1")),
        (cut, search().matching("value:>=0")),
        ("x".into(), search().matching("value:>=0")),
        (String::new(), search().matching("value:>=0")),
    ] {
        let message = refused(other.after(after)).await;
        assert!(message.contains("the `next` of a page of the same search"), "{message}");
    }
    let error = search().matching("value:>=0").select(&["size"]).await.expect_err("no such field");
    assert!(error.message().contains("has no field \"size\"; there are: value"), "{error}");
    let selected = search().matching("value:3").select(&["value"]).await.expect("found");
    let row = serde_json::to_value(&selected.rows[0]).expect("JSON");
    assert_eq!((&row["key"], &row["state"]), (&"3".into(), &serde_json::json!({ "value": 3 })));
}

#[tokio::test]
async fn a_value_that_cannot_be_indexed_fails_its_turn() {
    let world = World::new();
    let builder = Node::builder().store(world.disk.open().expect("readable"));
    let node = builder.entity::<Parcel>().start().await.expect("starts");
    let parcel = node.entity::<Parcel>("a");
    parcel.r#move("s".repeat(1_024)).await.expect("just short enough");
    let error = parcel.r#move("s".repeat(1_025)).await.expect_err("too long");
    let why = "the index street: a text of 1025 bytes is too long: the limit is 1024";
    assert!(error.to_string().contains(why), "{error}");
    let long = node.find::<Parcel>().filter(Parcel::by_street().starts_with("sss"));
    assert_eq!(found(long, 9).await.expect("found"), ["a"]);
    assert_eq!(node.check_indexes().await.expect("checked"), Vec::<String>::new());
}
