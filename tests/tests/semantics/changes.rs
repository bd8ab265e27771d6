//! Streams of changes: what was committed, in order, up to the last, wherever the entity is and however often the
//! stream is cut.

use std::sync::Mutex;

use stead::{
    Change, ChangeEvent, Changes, Snapshot, Version,
    testing::{CommitFaults, NodeTest, TestNode},
    transport::{Faults, Network},
};

use super::*;

type Event = ChangeEvent<Snapshot<Journal>>;

fn id(key: &str) -> EntityId {
    EntityId::new("journal", key).expect("valid")
}

async fn next(changes: &mut Changes<Snapshot<Journal>>) -> Event {
    changes.next().await.expect("it goes on").expect("readable")
}

fn entries(event: &Event) -> Vec<u32> {
    match &event.change {
        Change::State(snapshot) => snapshot.state.entries.clone(),
        other => panic!("no state: {other:?}"),
    }
}

#[tokio::test]
async fn a_stream_shows_each_state_that_is_durable_and_the_deletion() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    let mut changes = node.changes::<Journal>("a", None).expect("begins");
    journal.append(1).await.expect("appended");
    let first = next(&mut changes).await;
    assert_eq!(entries(&first), [1]);
    // What is not durable is not shown, and what others do is not heard of.
    world.disk.stall();
    let appending = tokio::spawn(journal.append(2).into_future());
    let other = tokio::spawn(node.entity::<Journal>("b").append(7).into_future());
    tokio::select! {
        event = changes.next() => panic!("it is not durable: {event:?}"),
        () = tokio::time::sleep(Duration::from_millis(50)) => {}
    }
    world.disk.resume();
    let second = next(&mut changes).await;
    assert_eq!(entries(&second), [1, 2]);
    appending.await.expect("no panic").expect("appended");
    other.await.expect("no panic").expect("appended");
    // A turn that leaves nothing is no change.
    journal.refuse(9).await.expect_err("refused");
    node.delete(&id("a")).await.expect("deleted");
    let deleted = next(&mut changes).await;
    assert!(matches!(deleted.change, Change::Deleted));
    journal.append(3).await.expect("appended");
    let again = next(&mut changes).await;
    assert_eq!(entries(&again), [3]);
    drop(changes);
    goes_on(&node, [first, second, deleted, again]).await;
    // It ends with its node.
    let mut changes = node.changes::<Journal>("b", None).expect("begins");
    assert_eq!(entries(&next(&mut changes).await), [7]);
    let draining = tokio::spawn(async move { node.drain().await });
    assert!(changes.next().await.is_none());
    draining.await.expect("no panic").expect("drained");
}

/// A stream goes on where it was cut, and says where it cannot.
async fn goes_on(node: &Node, [first, second, deleted, again]: [Event; 4]) {
    let journal = node.entity::<Journal>("a");
    let position = |event: &Event| event.position.clone().expect("a position");
    let from = |after: &str| node.changes::<Journal>("a", Some(after)).expect("begins");
    for (after, expected) in [
        (position(&first), &["deleted", "3"][..]),
        (position(&second), &["deleted", "3"][..]),
        (position(&deleted), &["3"][..]),
        ("ffffffffffffff-1".into(), &["gap", "3"][..]),
        ("nonsense".into(), &["gap", "3"][..]),
        (String::new(), &["gap", "3"][..]),
    ] {
        let mut changes = from(&after);
        for expected in expected {
            let event = next(&mut changes).await;
            match event.change {
                Change::Deleted => assert_eq!(*expected, "deleted", "after {after}"),
                Change::Gap => assert_eq!(*expected, "gap", "after {after}"),
                _ => assert_eq!((*expected, entries(&event)), ("3", vec![3]), "after {after}"),
            }
        }
    }
    let mut changes = from(&position(&again));
    journal.append(4).await.expect("appended");
    assert_eq!(entries(&next(&mut changes).await), [3, 4], "nothing comes twice");

    // A slow reader skips, and ends at the last one.
    for entry in 5..200 {
        journal.append(entry).await.expect("appended");
    }
    let mut seen = Vec::new();
    while seen.last() != Some(&199) {
        seen = entries(&next(&mut changes).await);
    }
    let unknown = node.changes_of(&EntityId::new("nothing", "a").expect("valid"), None);
    assert_eq!(unknown.expect_err("unknown").kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_state_that_cannot_be_read_ends_its_stream_with_the_reason() {
    let world = World::new();
    let node = world.start().await;
    node.entity::<Journal>("a").append(1).await.expect("appended");
    world.disk.damage(&id("a"), |bytes| bytes.truncate(3));
    let mut changes = node.changes::<Journal>("a", None).expect("begins");
    let error = changes.next().await.expect("it is told").expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(changes.next().await.is_none());
}

#[test]
fn nothing_is_shown_that_a_crash_takes_back() {
    let story = async |node: TestNode| {
        let shown = Arc::new(Mutex::new(Vec::<Vec<u32>>::new()));
        let (watched, log) = (node.clone(), shown.clone());
        let watching = tokio::spawn(async move {
            let mut after = None::<String>;
            loop {
                let present = watched.node().await;
                let mut changes =
                    present.changes::<Journal>("a", after.as_deref()).expect("begins");
                while let Some(Ok(event)) = changes.next().await {
                    match event.change {
                        Change::State(it) => log.lock().expect("whole").push(it.state.entries),
                        other => panic!("{other:?}"),
                    }
                    after = event.position.or(after);
                }
            }
        });
        for entry in 0..12 {
            node.entity::<Journal>("a").append(entry).signal().await.expect("sent");
        }
        node.assert_settles().await;
        let last = node.state::<Journal>("a").await.expect("read").entries;
        assert_eq!(last.len(), 12);
        // The last state is shown, at once or a little later.
        node.advance(Duration::from_secs(2)).await;
        watching.abort();
        let shown = shown.lock().expect("whole");
        assert!(shown.iter().all(|state| last.starts_with(state)), "{shown:?}, at last {last:?}");
        assert!(shown.is_sorted_by_key(Vec::len), "it goes back: {shown:?}");
        assert_eq!(shown.last(), Some(&last));
    };
    let test = NodeTest::new().entity::<Journal>();
    test.crash_everywhere(story);
    let mut faults = CommitFaults::default();
    (faults.refused, faults.answer_lost) = (0.1, 0.1);
    (faults.crash_before, faults.crash_after) = (0.1, 0.1);
    test.faults(faults).run_seeds(0..40, story);
}

/// One of two nodes over one store.
async fn among(disk: &MemoryDisk, network: &Network, name: &str, seed: u64) -> Node {
    let store = disk.share_slowly(seed, Duration::from_millis(5));
    let builder = Node::builder().share(store, network.at(name), name).name(name);
    builder.deterministic(seed).entity::<Journal>().start().await.expect("starts")
}

/// The order in which versions come.
fn order(version: Version) -> (u64, u64) {
    (version.generation, version.revision)
}

const KEYS: usize = 5;
const ENTRIES: u32 = 2_500;
const CUTS: usize = 1_000;

/// The nodes that serve at present.
#[derive(Clone, Default)]
struct Nodes(Arc<Mutex<Vec<Node>>>, Arc<AtomicBool>);

impl Nodes {
    fn any(&self, number: usize) -> Node {
        let nodes = self.0.lock().expect("whole");
        nodes[number % nodes.len()].clone()
    }

    fn add(&self, node: &Node) {
        self.0.lock().expect("whole").push(node.clone());
    }

    fn remove_first(&self) {
        self.0.lock().expect("whole").remove(0);
    }

    fn is_over(&self) -> bool {
        self.1.load(Ordering::SeqCst)
    }

    /// Appends to all keys through any node.
    async fn write(self) {
        for entry in 0..ENTRIES {
            let key = entry as usize % KEYS;
            let journal = self.any(entry as usize).entity::<Journal>(format!("k{key}"));
            if let Err(error) = journal.append(entry).idempotency_key(format!("e{entry}")).await {
                // It may be applied all the same.
                use ErrorKind::{Closed, Unavailable, Unknown};
                assert!(matches!(kind(&error), Some(Unavailable | Unknown | Closed)), "{error}");
            }
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
        self.1.store(true, Ordering::SeqCst);
    }

    /// Hears the changes of a key, cut again and again, until all is over and nothing comes any more; returns
    /// how many entries it has seen.
    async fn hear(self, key: usize) -> (usize, usize) {
        let (mut last, mut after, mut total) = (None, None::<String>, 0);
        for cut in 0_usize.. {
            let node = self.any(cut + key);
            let changes = node.changes::<Journal>(format!("k{key}"), after.as_deref());
            let (mut changes, mut heard) = (changes.expect("begins"), 0);
            let pause = Duration::from_millis(300);
            // A stream that has ended, or was heard for long enough, is taken up at another node.
            while heard <= cut % 3
                && let Ok(Some(event)) = tokio::time::timeout(pause, changes.next()).await
            {
                let event: Event = event.expect("readable");
                let Change::State(snapshot) = &event.change else { panic!("{event:?}") };
                let version = Some(order(snapshot.version));
                assert!(version > last, "it goes back from {last:?} to {version:?}");
                assert!(snapshot.state.entries.len() >= total, "an earlier state");
                (last, total) = (version, snapshot.state.entries.len());
                after = event.position;
                heard += 1;
            }
            if cut >= CUTS / KEYS && self.is_over() && heard == 0 {
                break;
            }
        }
        (key, total)
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_cut_a_thousand_times_goes_on_through_hand_offs() {
    let (disk, network) = (MemoryDisk::new(), Network::new(1, Faults::default()));
    let (nodes, one) = (Nodes::default(), among(&disk, &network, "one", 1).await);
    nodes.add(&one);
    let mut hearing: tokio::task::JoinSet<_> =
        (0..KEYS).map(|key| nodes.clone().hear(key)).collect();
    let writer = tokio::spawn(nodes.clone().write());
    // Two hand-offs: a node comes, and the first one leaves and comes back.
    tokio::time::sleep(Duration::from_secs(2)).await;
    nodes.add(&among(&disk, &network, "two", 2).await);
    tokio::time::sleep(Duration::from_secs(3)).await;
    nodes.remove_first();
    one.drain().await.expect("drained");
    let again = among(&disk, &network, "one", 3).await;
    nodes.add(&again);
    writer.await.expect("no panic");
    while let Some(ended) = hearing.join_next().await {
        let (key, total) = ended.expect("no panic");
        let journal = again.entity::<Journal>(format!("k{key}"));
        assert_eq!(
            journal.entries().await.expect("read").len(),
            total,
            "k{key}: the last is shown"
        );
        assert!(total > 400, "{total}");
    }
}
