//! Changes of all entities of a type: each one's newest version, its deletion, and a gap where something may be
//! missing, however often a stream is cut and wherever it goes on.

use std::{collections::BTreeMap, sync::Mutex};

use stead::{
    Routes, Snapshot, TypeChange, TypeChangeEvent, TypeChanges, Version,
    testing::{CommitFaults, NodeTest, TestNode},
    transport::{Faults, Network},
};
use stead_tests::events::Follower;

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Parcel {
    stage: u8,
    notes: Vec<u32>,
}

#[entity(name = "parcel", index(stage: u8), changes = HOUR)]
impl Parcel {
    pub fn note(&mut self, note: u32) -> u32 {
        self.notes.push(note);
        note
    }

    pub fn advance(&mut self, stage: u8) {
        self.stage = stage;
    }
}

/// The same data, by a program that keeps no changes.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Silent {
    stage: u8,
    notes: Vec<u32>,
}

#[entity(name = "parcel", index(stage: u8))]
impl Silent {
    pub fn note(&mut self, note: u32) -> u32 {
        self.notes.push(note);
        note
    }
}

fn id(key: &str) -> EntityId {
    EntityId::new("parcel", key).expect("valid")
}

type Followed = TypeChanges<Snapshot<Parcel>>;
type Event = TypeChangeEvent<Snapshot<Parcel>>;

async fn follow(node: &Node, after: Option<&str>) -> Followed {
    node.find::<Parcel>().changes(after).await.expect("begins")
}

async fn next(changes: &mut Followed) -> Event {
    changes.next().await.expect("it goes on").expect("readable")
}

/// An event in words.
fn words(event: &Event) -> String {
    match &event.change {
        TypeChange::State { key, state } => format!("{key} {:?}", state.state.notes),
        TypeChange::Left { key } => format!("{key} left"),
        TypeChange::Deleted { key } => format!("{key} deleted"),
        TypeChange::Gap => "gap".into(),
        TypeChange::CaughtUp => "caught up".into(),
        other => panic!("{other:?}"),
    }
}

async fn words_of(changes: &mut Followed, count: usize) -> Vec<String> {
    let mut words_of = Vec::new();
    for _ in 0..count {
        words_of.push(words(&next(changes).await));
    }
    words_of
}

#[tokio::test(start_paused = true)]
async fn a_stream_shows_who_is_there_and_then_who_changes() {
    let disk = MemoryDisk::new();
    let builder = || Node::builder().store(disk.open().expect("readable")).deterministic(1);
    let node = builder().entity::<Parcel>().entity::<Journal>().start().await.expect("starts");
    let note = async |key: &str, note| node.entity::<Parcel>(key).note(note).await.expect("noted");
    for (key, number) in [("a", 1), ("b", 2), ("c", 3)] {
        note(key, number).await;
    }
    let mut changes = follow(&node, None).await;
    let listed = next(&mut changes).await;
    assert_eq!(words(&listed), "a [1]");
    // What changes while the list is read is shown, at the latest behind it.
    note("b", 4).await;
    node.delete(&id("c")).await.expect("deleted");
    let mut seen = BTreeMap::new();
    loop {
        let event = next(&mut changes).await;
        match &event.change {
            TypeChange::State { key, state } => seen.insert(key.clone(), state.state.notes.clone()),
            TypeChange::Deleted { key } => seen.remove(key),
            TypeChange::CaughtUp => break,
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(seen, BTreeMap::from([("b".into(), vec![2, 4])]));
    note("a", 5).await;
    let changed = next(&mut changes).await;
    assert_eq!(words(&changed), "a [1, 5]");
    node.delete(&id("b")).await.expect("deleted");
    note("b", 6).await;
    let mut late = words_of(&mut changes, 1).await;
    if late == ["b deleted"] {
        late = words_of(&mut changes, 1).await;
    }
    assert_eq!(late, ["b [6]"]);
    // A turn that leaves nothing is no change; nor is one of another type.
    node.entity::<Journal>("a").append(1).await.expect("appended");
    node.delete(&id("a")).await.expect("deleted");
    let deleted = next(&mut changes).await;
    assert_eq!(words(&deleted), "a deleted");
    drop(changes);
    goes_on(&node, [listed, changed, deleted]).await;
    let refused = node.find::<Journal>().changes(None).await.expect_err("none are kept");
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(refused.message().contains("#[entity(changes ="), "{refused}");
    // It ends with its node.
    let mut changes = follow(&node, None).await;
    assert_eq!(words_of(&mut changes, 2).await, ["b [6]", "caught up"]);
    let draining = tokio::spawn(async move { node.drain().await });
    assert!(changes.next().await.is_none());
    draining.await.expect("no panic").expect("drained");
}

/// A stream goes on behind each of its positions, and says where it cannot.
async fn goes_on(node: &Node, [listed, changed, deleted]: [Event; 3]) {
    let position = |event: &Event| event.position.clone().expect("a position");
    let mut changes = follow(node, Some(&position(&listed))).await;
    // The list is read on, and the log from where it was when the list began.
    let expected = ["b [6]", "c deleted", "b [6]", "a deleted", "caught up"];
    assert_eq!(words_of(&mut changes, 5).await, expected);
    let mut changes = follow(node, Some(&position(&changed))).await;
    assert_eq!(words_of(&mut changes, 3).await, ["b [6]", "a deleted", "caught up"]);
    let mut changes = follow(node, Some(&position(&deleted))).await;
    assert_eq!(words_of(&mut changes, 1).await, ["caught up"]);
    let (search, after) = (node.find::<Parcel>().prefix("b"), position(&deleted));
    let mut of_another = search.changes(Some(&after)).await.expect("begins");
    assert_eq!(words_of(&mut of_another, 3).await, ["gap", "b [6]", "caught up"]);
    for after in ["nonsense", "", "AAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
        let mut changes = follow(node, Some(after)).await;
        assert_eq!(words_of(&mut changes, 3).await, ["gap", "b [6]", "caught up"], "{after}");
    }
    // A stream that shows nothing has a new position each minute; one that is older than an hour is a gap.
    let mut changes = follow(node, Some(&position(&deleted))).await;
    let mut kept = String::new();
    for _ in 0..100 {
        let event = next(&mut changes).await;
        assert_eq!(words(&event), "caught up");
        kept = position(&event);
    }
    let mut changes = follow(node, Some(&kept)).await;
    assert_eq!(words_of(&mut changes, 1).await, ["caught up"]);
    let mut changes = follow(node, Some(&position(&deleted))).await;
    assert_eq!(words_of(&mut changes, 3).await, ["gap", "b [6]", "caught up"]);
}

#[tokio::test(start_paused = true)]
async fn a_filtered_stream_tells_who_leaves() {
    let disk = MemoryDisk::new();
    let builder = Node::builder().store(disk.open().expect("readable")).deterministic(1);
    let node = builder.entity::<Parcel>().start().await.expect("starts");
    let advance = async |key: &str, stage| {
        node.entity::<Parcel>(key).advance(stage).await.expect("advanced");
    };
    for key in ["a1", "a2", "a3", "b1"] {
        advance(key, 1).await;
    }
    let search = || node.find::<Parcel>().filter(Parcel::by_stage().is(1_u8)).prefix("a");
    let mut changes = search().changes(None).await.expect("begins");
    assert_eq!(words_of(&mut changes, 4).await, ["a1 []", "a2 []", "a3 []", "caught up"]);
    advance("b1", 2).await;
    advance("a1", 2).await;
    // Of several changes that are read at once, one has left, and the last one says nothing.
    let left = next(&mut changes).await;
    assert_eq!(words(&left), "a1 left");
    drop(changes);
    advance("a2", 2).await;
    advance("a2", 3).await;
    advance("a1", 3).await;
    node.delete(&id("a3")).await.expect("deleted");
    node.delete(&id("b1")).await.expect("deleted");
    advance("a1", 1).await;
    let mut changes = search().changes(left.position.as_deref()).await.expect("begins");
    assert_eq!(words_of(&mut changes, 4).await, ["a2 left", "a3 deleted", "a1 []", "caught up"]);
    let wrong = node.find_of("parcel").matching("colour:red").change_views(None).await;
    assert!(wrong.expect_err("no such").message().contains("there are: stage"));
}

#[tokio::test(start_paused = true)]
async fn a_follower_who_is_behind_by_more_than_is_kept_is_told() {
    let disk = MemoryDisk::new();
    let builder = Node::builder().store(disk.open().expect("readable")).deterministic(1);
    let node = builder.entity::<Parcel>().start().await.expect("starts");
    let mut changes = follow(&node, None).await;
    let begun = next(&mut changes).await.position.expect("a position");
    drop(changes);
    for number in 0..600 {
        node.entity::<Parcel>(format!("p{number:03}")).note(number).await.expect("noted");
    }
    // Not long before its position is too old it reads a part of what it has missed.
    tokio::time::sleep(HOUR * 5 / 6).await;
    let mut changes = follow(&node, Some(&begun)).await;
    let mut last = None;
    for _ in 0..50 {
        last = next(&mut changes).await.position;
    }
    drop(changes);
    // The rest may be gone when it goes on.
    tokio::time::sleep(HOUR / 3).await;
    let mut changes = follow(&node, last.as_deref()).await;
    assert_eq!(words(&next(&mut changes).await), "gap");
    // A list that takes longer than changes are kept is no list of what is there.
    let listed = next(&mut changes).await.position;
    drop(changes);
    tokio::time::sleep(HOUR * 5 / 6).await;
    let mut changes = follow(&node, listed.as_deref()).await;
    let listed = next(&mut changes).await.position;
    tokio::time::sleep(HOUR / 3).await;
    let mut late = follow(&node, listed.as_deref()).await;
    assert_eq!(words(&next(&mut late).await), "gap");
}

/// The status of a request, and of a refusal what it says.
async fn get(url: &str, path: &str) -> (u16, String) {
    let answer = reqwest::get(format!("{url}{path}")).await.expect("answered");
    let status = answer.status().as_u16();
    // A stream goes on until its node ends.
    let is_stream = answer.headers()["content-type"] == "text/event-stream";
    (status, if is_stream { "events".into() } else { answer.text().await.expect("a body") })
}

#[tokio::test]
async fn the_changes_of_a_type_are_told_over_http_and_an_entity_named_changes_is_not_lost() {
    let disk = MemoryDisk::new();
    let builder = Node::builder().store(disk.open().expect("readable"));
    let node = builder.entity::<Parcel>().entity::<Journal>().start().await.expect("starts");
    node.entity::<Journal>("changes").append(7).await.expect("appended");
    node.entity::<Parcel>("changes").note(8).await.expect("noted");
    node.entity::<Parcel>("mine/1").note(9).await.expect("noted");
    let shown = Routes::new().entity::<Parcel>().keys("mine/");
    let app = axum::Router::new()
        .merge(node.router())
        .nest("/mine", node.router_of(shown))
        .nest("/c", node.router_of(Routes::new().keys("c")));
    let (url, _served) = serve(app).await;
    let parcel = "/v1/entities/parcel";
    for (path, expected, part) in [
        (format!("{parcel}/changes"), 200, "events"),
        (format!("{parcel}/changes?where=stage:0&prefix=m"), 200, "events"),
        (format!("{parcel}/%63hanges"), 200, "\"notes\":[8]"),
        ("/v1/entities/journal/changes".into(), 200, "\"entries\":[7]"),
        ("/v1/entities/journal/changes?where=any:1".into(), 400, "unknown parameter where"),
        ("/v1/entities/nothing/changes".into(), 404, "no entity type"),
        (format!("{parcel}/changes?limit=3"), 400, "unknown parameter limit"),
        (format!("{parcel}/changes?where=colour:1"), 400, "there are: stage"),
        (format!("{parcel}/changes?where=stage:red"), 400, "stage"),
        (format!("/mine{parcel}/changes"), 404, "no parcel/changes here"),
        (format!("/mine{parcel}/changes?prefix=mi"), 404, "no parcel/changes here"),
        (format!("/mine{parcel}/changes?prefix=mine/"), 200, "events"),
        (format!("/c{parcel}/changes"), 400, "?prefix=c"),
        (format!("/c{parcel}/changes?prefix=ch"), 200, "events"),
    ] {
        let (status, said) = get(&url, &path).await;
        assert_eq!(status, expected, "{path}: {said}");
        assert!(said.contains(part), "{path}: {said}");
    }
    let mut follower = Follower::new("parcel");
    follower.follow(&url, true).await.expect("caught up");
    assert_eq!(follower.states().into_keys().collect::<Vec<_>>(), ["changes", "mine/1"]);
    node.abort().await;
}

/// What a follower knows, by key.
#[derive(Debug, Default)]
struct Replica {
    known: BTreeMap<String, (Version, Vec<u32>)>,
    /// What was shown since the last gap, until the stream has caught up.
    relisted: Option<BTreeMap<String, ()>>,
    after: Option<String>,
    gaps: usize,
}

impl Replica {
    fn take(&mut self, event: Event) {
        match event.change {
            TypeChange::State { key, state } => {
                let order = |of: &Version| (of.generation, of.revision);
                if let Some((last, _)) = self.known.get(&key) {
                    assert!(order(last) <= order(&state.version), "{key} goes back");
                }
                if let Some(relisted) = &mut self.relisted {
                    relisted.insert(key.clone(), ());
                }
                self.known.insert(key, (state.version, state.state.notes));
            }
            TypeChange::Deleted { key } => drop(self.known.remove(&key)),
            TypeChange::Gap => {
                self.gaps += 1;
                self.relisted = Some(BTreeMap::new());
            }
            TypeChange::CaughtUp => {
                if let Some(shown) = self.relisted.take() {
                    self.known.retain(|key, _| shown.contains_key(key));
                }
            }
            other => panic!("{other:?}"),
        }
        self.after = event.position.or(self.after.take());
    }

    fn notes(&self) -> BTreeMap<String, Vec<u32>> {
        self.known.iter().map(|(key, (_, notes))| (key.clone(), notes.clone())).collect()
    }
}

/// What there is.
async fn present(node: &Node) -> BTreeMap<String, Vec<u32>> {
    let mut found = BTreeMap::new();
    for entity in node.list::<Parcel>("", None, 1_000).await.expect("listed").rows {
        let state = node.state::<Parcel>(&entity.key).await.expect("read").expect("there");
        found.insert(entity.key, state.state.notes);
    }
    found
}

#[test]
fn a_follower_knows_what_is_there_after_any_crash() {
    let story = async |node: TestNode| {
        let replica = Arc::new(Mutex::new(Replica::default()));
        let (watched, known) = (node.clone(), replica.clone());
        let watching = tokio::spawn(async move {
            loop {
                let after = known.lock().expect("whole").after.clone();
                let search = watched.node().await.find::<Parcel>();
                let Ok(mut changes) = search.changes(after.as_deref()).await else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                while let Some(Ok(event)) = changes.next().await {
                    known.lock().expect("whole").take(event);
                }
            }
        });
        for number in 0..12 {
            let parcel = node.entity::<Parcel>(format!("t{}", number % 4));
            parcel.note(number).signal().await.expect("sent");
            if number % 5 == 4 {
                node.delete::<Parcel>("t3").await.expect("deleted");
            }
        }
        node.assert_settles().await;
        node.advance(Duration::from_secs(2)).await;
        watching.abort();
        let present = present(&node.node().await).await;
        let replica = replica.lock().expect("whole");
        assert_eq!(replica.notes(), present);
        assert_eq!(replica.gaps, 0, "nothing is missing");
    };
    let test = NodeTest::new().entity::<Parcel>();
    test.crash_everywhere(story);
    let mut faults = CommitFaults::default();
    (faults.refused, faults.answer_lost) = (0.1, 0.1);
    (faults.crash_before, faults.crash_after) = (0.1, 0.1);
    test.faults(faults).run_seeds(0..40, story);
}

#[tokio::test(start_paused = true)]
async fn a_position_stays_small_however_often_a_node_starts() {
    let disk = MemoryDisk::new();
    let mut replica = Replica::default();
    for number in 0..60 {
        let builder = Node::builder().store(disk.open().expect("readable")).deterministic(number);
        let node = builder.entity::<Parcel>().start().await.expect("starts");
        node.entity::<Parcel>("a").note(number as u32).await.expect("noted");
        // Every third life is not followed.
        if number % 3 == 0 {
            let mut changes = follow(&node, replica.after.as_deref()).await;
            let expected: Vec<_> = (0..=number as u32).collect();
            for _ in 0..20 {
                if replica.notes().get("a") != Some(&expected) {
                    replica.take(next(&mut changes).await);
                }
            }
            assert_eq!(replica.notes().get("a"), Some(&expected));
            let length = replica.after.as_ref().map_or(0, String::len);
            assert!(length < 120, "{length} bytes after {number} starts");
        }
        node.abort().await;
    }
    assert_eq!(replica.gaps, 0);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_keeps_no_changes_leaves_a_gap() {
    let disk = MemoryDisk::new();
    let builder = || Node::builder().store(disk.open().expect("readable")).deterministic(1);
    let node = builder().entity::<Parcel>().start().await.expect("starts");
    node.entity::<Parcel>("a").note(1).await.expect("noted");
    let mut changes = follow(&node, None).await;
    let last = next(&mut changes).await.position.expect("a position");
    node.drain().await.expect("drained");
    let node = builder().entity::<Silent>().start().await.expect("starts");
    node.entity::<Silent>("a").note(2).await.expect("noted");
    node.drain().await.expect("drained");
    let node = builder().entity::<Parcel>().start().await.expect("starts");
    let mut changes = follow(&node, Some(&last)).await;
    assert_eq!(words_of(&mut changes, 3).await, ["gap", "a [1, 2]", "caught up"]);
    node.drain().await.expect("drained");
}

/// One of the nodes over one store.
async fn among<E: stead::Entity>(disk: &MemoryDisk, network: &Network, name: &str) -> Node {
    let store = disk.share_slowly(1, Duration::from_millis(5));
    let builder = Node::builder().share(store, network.at(name), name).name(name);
    builder.deterministic(1).entity::<E>().start().await.expect("starts")
}

#[tokio::test(start_paused = true)]
async fn nodes_of_different_programs_say_that_changes_are_missing() {
    let (disk, network) = (MemoryDisk::new(), Network::new(1, Faults::default()));
    let one = among::<Parcel>(&disk, &network, "one").await;
    one.entity::<Parcel>("a").note(1).await.expect("noted");
    let is_kept = async || one.find::<Parcel>().changes(None).await.is_ok();
    until_true("the changes are kept", is_kept).await;
    let mut changes = follow(&one, None).await;
    let last = next(&mut changes).await.position.expect("a position");
    let two = among::<Silent>(&disk, &network, "two").await;
    let owned = async |name: &str| {
        let owners = one.cluster_view().await.partitions;
        owners.iter().filter(|it| it.owner.as_deref() == Some(name)).count()
    };
    until_true("both own partitions", async || owned("one").await >= 4 && owned("two").await >= 4)
        .await;
    for number in 0..20 {
        one.entity::<Parcel>(format!("t{number}")).note(number).await.expect("noted");
    }
    let refused = one.find::<Parcel>().changes(Some(&last)).await.expect_err("not all are kept");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.message().contains("a program that does not keep them"), "{refused}");
    two.drain().await.expect("drained");
    let is_kept = async || one.find::<Parcel>().changes(Some(&last)).await.is_ok();
    until_true("the changes are kept again", is_kept).await;
    let mut changes = follow(&one, Some(&last)).await;
    assert_eq!(words_of(&mut changes, 2).await, ["gap", "a [1]"]);
    drop(changes);
    one.drain().await.expect("drained");
}

#[tokio::test(start_paused = true)]
async fn changes_are_kept_once_no_earlier_program_owns_a_partition() {
    let (disk, network) = (MemoryDisk::new(), Network::new(1, Faults::default()));
    let one = among::<Silent>(&disk, &network, "one").await;
    one.entity::<Silent>("a").note(1).await.expect("noted");
    let two = among::<Parcel>(&disk, &network, "two").await;
    for number in 0..20 {
        one.entity::<Silent>(format!("t{number}")).note(number).await.expect("noted");
        let refused = two.find::<Parcel>().changes(None).await.expect_err("not all are kept");
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    }
    one.drain().await.expect("drained");
    let is_kept = async || two.find::<Parcel>().changes(None).await.is_ok();
    until_true("the changes are kept", is_kept).await;
    let mut replica = Replica::default();
    let mut changes = follow(&two, None).await;
    for _ in 0..22 {
        replica.take(next(&mut changes).await);
    }
    assert_eq!(replica.notes(), present(&two).await);
}

const KEYS: usize = 20;
const NOTES: u32 = 2_500;
const CUTS: usize = 1_000;

#[tokio::test(start_paused = true)]
async fn a_stream_of_a_type_that_is_cut_a_thousand_times_goes_on_through_hand_offs() {
    let (disk, network) = (MemoryDisk::new(), Network::new(1, Faults::default()));
    let one = among::<Parcel>(&disk, &network, "one").await;
    let nodes = Arc::new(Mutex::new(vec![one.clone()]));
    let any = |nodes: &Mutex<Vec<Node>>, number: usize| {
        let nodes = nodes.lock().expect("whole");
        nodes[number % nodes.len()].clone()
    };
    let writer = tokio::spawn({
        let nodes = nodes.clone();
        async move {
            for note in 0..NOTES {
                let node = any(&nodes, note as usize);
                let parcel = node.entity::<Parcel>(format!("t{}", note as usize % KEYS));
                // It may be refused while partitions move.
                let _ = parcel.note(note).idempotency_key(format!("n{note}")).await;
                if note % 97 == 0 {
                    let _ = node.delete(&id(&format!("t{}", note as usize % KEYS))).await;
                }
                tokio::time::sleep(Duration::from_millis(4)).await;
            }
        }
    });
    let handing = tokio::spawn({
        let (nodes, disk, network) = (nodes.clone(), disk.clone(), network.clone());
        async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let two = among::<Parcel>(&disk, &network, "two").await;
            nodes.lock().expect("whole").push(two);
            tokio::time::sleep(Duration::from_secs(3)).await;
            let first = nodes.lock().expect("whole").remove(0);
            first.drain().await.expect("drained");
            let again = among::<Parcel>(&disk, &network, "one").await;
            nodes.lock().expect("whole").push(again);
        }
    });
    let mut replica = Replica::default();
    for cut in 0.. {
        let node = any(&nodes, cut);
        let mut heard = 0;
        if let Ok(mut changes) = node.find::<Parcel>().changes(replica.after.as_deref()).await {
            let pause = Duration::from_millis(600);
            while heard <= cut % 5
                && let Ok(Some(Ok(event))) = tokio::time::timeout(pause, changes.next()).await
            {
                heard += usize::from(!matches!(event.change, TypeChange::CaughtUp));
                replica.take(event);
            }
        }
        if cut >= CUTS && writer.is_finished() && handing.is_finished() && heard == 0 {
            break;
        }
    }
    writer.await.expect("no panic");
    handing.await.expect("no panic");
    assert_eq!(replica.notes(), present(&any(&nodes, 0)).await);
    assert_eq!(replica.gaps, 0, "nothing is missing");
    let shown: usize = replica.notes().values().map(Vec::len).sum();
    assert!(shown > 500, "{shown}");
    assert!(replica.after.is_some_and(|position| position.len() < 200));
}
