//! Collections of a state: whatever was written, merged, deleted, lost and loaded, a turn sees all entries as the
//! turns before it left them, and nothing else.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use stead::{
    CallError, DeadLetterFilter, Log, Map,
    collections::ENTRIES_PER_TURN_MAX,
    store::memory::Reach,
    testing::{CommitFaults, NodeTest, TestNode},
    transport::{Faults, Network},
};

use super::*;

/// Each try of [`Shelf::stamp`], with what it was given.
static TRIES: Mutex<Vec<(Timestamp, u64, String)>> = Mutex::new(Vec::new());

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Shelf {
    books: Map<u32, String>,
    history: Log<String>,
    lent: Option<Lent>,
    turns: u32,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Lent {
    by: Map<String, u64>,
}

#[entity(name = "shelf")]
impl Shelf {
    pub fn put(&mut self, ctx: &mut Context, book: u32, title: String) -> bool {
        self.turns += 1;
        self.history.push(ctx.now(), title.clone());
        self.books.insert(book, title)
    }
    pub fn order(&mut self, ctx: &mut Context, shelves: Vec<String>) {
        for shelf in shelves {
            ctx.signal(Self::of(&shelf).put(1, "again".into()));
        }
    }
    pub fn take(&mut self, book: u32) -> Option<String> {
        self.books.take(&book)
    }
    pub fn fill(&mut self, from: u32, to: u32, bytes: usize) {
        self.books.extend((from..to).map(|book| (book, "x".repeat(bytes))));
    }
    pub fn lend(&mut self, to: String, book: u64) {
        self.lent.get_or_insert_default().by.insert(to, book);
    }
    pub fn give_back(&mut self) {
        self.lent = None;
    }
    pub fn trim(&mut self, count: u64) {
        self.history.trim_to(count);
    }
    pub fn stamp(&mut self, ctx: &mut Context, book: u32) -> u64 {
        let number = ctx.entropy();
        let mut tries = TRIES.lock().unwrap_or_else(PoisonError::into_inner);
        tries.push((ctx.now(), number, ctx.token()));
        drop(tries);
        let known = self.books.get(&book).map_or(0, |title| title.len() as u64);
        // Nobody who catches panics can go on without the entry.
        let _hidden = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.books.contains_key(&(book + 1))
        }));
        self.books.insert(book, number.to_string());
        known
    }
    pub fn refuse(&mut self, book: u32) -> Result<(), Rejection> {
        self.books.insert(book, "refused".into());
        Err(Rejection::new("never"))
    }
    pub fn clear(&mut self) {
        self.books.clear();
        self.history.clear();
    }
    pub async fn slowly(&mut self, book: u32) -> Option<String> {
        std::future::ready(()).await;
        let title = self.books.get(&book).cloned();
        self.books.insert(book, "slowly".into());
        title
    }
    pub fn title(&self, book: u32) -> Option<String> {
        self.books.get(&book).cloned()
    }
    pub fn titles(&self, from: u32, to: u32) -> Vec<(u32, String)> {
        self.books.range(from..to).map(|(book, title)| (*book, title.clone())).collect()
    }
    pub fn said(&self, from: u64, to: u64) -> Vec<(u64, String)> {
        self.history.range(from..to).map(|(index, said)| (index, said.value.clone())).collect()
    }
    pub fn lengths(&self) -> (u64, u64, Option<u64>) {
        (self.books.len(), self.history.len(), self.lent.as_ref().map(|lent| lent.by.len()))
    }
    pub fn turn_count(&self) -> u32 {
        self.turns
    }
    pub fn count_all(&self) -> usize {
        self.books.iter().count()
    }
}

/// Kills the node, and starts it with nothing in memory.
async fn reborn(node: &TestNode) {
    node.kill().await;
    node.restart().await;
}

/// What a shelf should have.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    books: BTreeMap<u32, String>,
    history: Vec<String>,
    trimmed: usize,
    lent: Option<BTreeMap<String, u64>>,
}

async fn assert_has(node: &TestNode, key: &str, model: &Model) {
    let shelf = node.entity::<Shelf>(key);
    let titles = shelf.titles(0, u32::MAX).await.expect("read");
    assert_eq!(titles, model.books.clone().into_iter().collect::<Vec<_>>(), "{key}");
    let committed = shelf.titles(0, u32::MAX).committed().await.expect("read");
    assert_eq!(committed, titles, "{key}: nothing was under way");
    let said: Vec<_> = shelf.said(0, u64::MAX).await.expect("read");
    let expected: Vec<_> =
        (0..).zip(model.history.clone()).skip(model.trimmed).collect::<Vec<(u64, _)>>();
    assert_eq!(said, expected, "{key}");
    let lengths = shelf.lengths().await.expect("read");
    let lent = model.lent.as_ref().map(|lent| lent.len() as u64);
    let history = (model.history.len() - model.trimmed) as u64;
    assert_eq!(lengths, (model.books.len() as u64, history, lent), "{key}");
}

/// One step of a random walk, at the node and in the model.
async fn step(node: &TestNode, model: &mut BTreeMap<String, Model>, number: u64) {
    let key = format!("s{}", number % 3);
    let (book, kind) = ((number / 3 % 9) as u32, number / 27 % 16);
    let shelf = node.entity::<Shelf>(&key);
    let known = model.entry(key.clone()).or_default();
    match kind {
        0 => {
            node.delete::<Shelf>(&key).await.expect("deleted");
            *known = Model::default();
        }
        1 => drop(shelf.refuse(book).await.expect_err("refused")),
        2 | 3 => {
            let taken = shelf.take(book).idempotency_key(format!("{number}")).await;
            assert_eq!(taken.expect("taken"), known.books.remove(&book), "{key}: {number}");
        }
        4 => {
            shelf.lend(format!("p{book}"), number).await.expect("lent");
            known.lent.get_or_insert_default().insert(format!("p{book}"), number);
        }
        5 => {
            shelf.give_back().await.expect("given back");
            known.lent = None;
        }
        6 => {
            shelf.trim(4).await.expect("trimmed");
            known.trimmed = known.trimmed.max(known.history.len().saturating_sub(4));
        }
        7 => {
            let title = shelf.title(book).await.expect("read");
            assert_eq!(title, known.books.get(&book).cloned(), "{key}: {number}");
        }
        8 => {
            let key = format!("{number}");
            shelf.slowly(book).idempotency_key(key).await.expect("called");
            known.books.insert(book, "slowly".into());
        }
        9 if number.is_multiple_of(5) => {
            shelf.clear().await.expect("cleared");
            known.books.clear();
            known.trimmed = known.history.len();
        }
        _ => {
            let title = format!("{number}");
            let put = shelf.put(book, title.clone()).idempotency_key(format!("put {number}"));
            put.await.expect("put");
            known.books.insert(book, title.clone());
            known.history.push(title);
        }
    }
}

#[test]
fn entries_are_what_the_turns_left_through_kills_power_cuts_and_lost_answers() {
    for seed in 0..12 {
        let test = NodeTest::new().seed(seed).entity::<Shelf>();
        let faults = CommitFaults::default().with(|faults| {
            (faults.refused, faults.answer_lost) = (0.01, 0.01);
            (faults.crash_before, faults.crash_after) = (0.02, 0.02);
        });
        test.faults(faults).run(async |node| {
            let mut model = BTreeMap::new();
            let mut random = seed.wrapping_mul(7_919) + 1;
            for round in 0..120 {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                step(&node, &mut model, random >> 33).await;
                match round {
                    30 | 90 => reborn(&node).await,
                    60 => {
                        node.cut_power().await;
                        node.restart().await;
                    }
                    _ => {}
                }
            }
            for (key, model) in &model {
                assert_has(&node, key, model).await;
            }
        });
    }
}

#[tokio::test]
async fn turns_that_share_a_commit_leave_the_entries_of_all() {
    let world = World::new();
    let start = async || {
        let builder = Node::builder().store(world.disk.open().expect("readable"));
        builder.entity::<Shelf>().start().await.expect("starts")
    };
    let node = start().await;
    node.entity::<Shelf>("a").put(0, "0".into()).await.expect("put");
    world.disk.stall();
    let mut waiting = tokio::task::JoinSet::new();
    // The commit of another entity is under way, and the first of these wait for it in write groups of their own.
    let other = node.entity::<Shelf>("another partition's").put(0, "0".into());
    waiting.spawn(other.into_future());
    for book in 1..200 {
        for _ in 0..if book < 5 { 50 } else { 1 } {
            tokio::task::yield_now().await;
        }
        let put = node.entity::<Shelf>("a").put(book, format!("{book}"));
        waiting.spawn(put.into_future());
    }
    world.disk.resume();
    while let Some(put) = waiting.join_next().await {
        put.expect("no panic").expect("put");
    }
    node.abort().await;
    let titles = start().await.entity::<Shelf>("a").titles(0, 999).await.expect("read");
    let expected = (0..200).map(|book| (book, format!("{book}")));
    assert_eq!(titles, expected.collect::<Vec<_>>());
}

#[test]
fn a_turn_that_lacked_entries_is_run_again_with_the_same_time_and_entropy() {
    NodeTest::new().entity::<Shelf>().run(async |node| {
        node.entity::<Shelf>("a").put(1, "one".into()).await.expect("put");
        reborn(&node).await;
        TRIES.lock().unwrap_or_else(PoisonError::into_inner).clear();
        assert_eq!(node.entity::<Shelf>("a").stamp(1).await.expect("called"), 3);
        let tries = TRIES.lock().unwrap_or_else(PoisonError::into_inner).clone();
        assert_eq!(tries.len(), 3, "it lacks one entry, and then the other: {tries:?}");
        assert!(tries.iter().all(|it| *it == tries[0]), "{tries:?}");
        let title = node.entity::<Shelf>("a").title(1).await.expect("read");
        assert_eq!(title, Some(tries[0].1.to_string()), "nothing of the first tries stays");
    });
}

#[test]
fn a_map_larger_than_its_share_of_memory_shows_every_turn_the_last_value() {
    let config = Config::with(|config| config.memory = 128 << 20);
    NodeTest::new().config(config).entity::<Shelf>().run(async |node| {
        let shelf = node.entity::<Shelf>("a");
        for tens in 0..6 {
            shelf.fill(10 * tens, 10 * tens + 10, 100 << 10).await.expect("filled");
        }
        for round in 0..20_u32 {
            let (book, title) = (round % 7, format!("{round}"));
            // All of it is in memory, so that the entry leaves it when its commit begins, which takes a while.
            assert_eq!(shelf.titles(0, 60).await.expect("read").len(), 60);
            node.inject(Fault::Delay(Duration::from_millis(50)));
            let put = tokio::spawn(shelf.put(book, title.clone()).into_future());
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
            let read = tokio::spawn(shelf.title(book).into_future());
            assert!(!put.await.expect("no panic").expect("put"), "it was there");
            assert_eq!(read.await.expect("no panic").expect("read"), Some(title), "round {round}");
        }
        assert_eq!(shelf.lengths().await.expect("read").0, 60);
    });
}

#[test]
fn iterating_over_too_many_entries_is_refused_with_what_to_do() {
    NodeTest::new().entity::<Shelf>().run(async |node| {
        let shelf = node.entity::<Shelf>("a");
        let many = ENTRIES_PER_TURN_MAX as u32 + 1;
        shelf.fill(0, many, 1).await.expect("filled");
        for kind in ["in memory", "loaded"] {
            let refused = shelf.count_all().await.expect_err("too many").to_string();
            assert!(refused.contains("at most 10000 entries"), "{kind}: {refused}");
            let page = shelf.titles(many - 3, many).await.expect("a page");
            assert_eq!(page.len(), 3, "{kind}");
            reborn(&node).await;
        }
        let state = node.state::<Shelf>("a").await.expect("shown");
        assert_eq!((state.books.len(), state.books.iter().take(100).count()), (many.into(), 100));
    });
}

#[test]
fn a_large_state_is_read_back_wherever_it_is_stored() {
    #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    struct Page {
        text: String,
    }
    #[entity(name = "page")]
    impl Page {
        pub fn write(&mut self, bytes: usize) {
            self.text = "x".repeat(bytes);
        }
        pub fn touch(&mut self) {}
        pub fn bytes(&self) -> usize {
            self.text.len()
        }
    }
    NodeTest::new().entity::<Page>().run(async |node| {
        let page = node.entity::<Page>("a");
        page.write(1 << 20).await.expect("written");
        for round in 0..3 {
            for _ in 0..5 {
                page.touch().await.expect("touched");
            }
            if round == 1 {
                reborn(&node).await;
            }
        }
        assert_eq!(page.bytes().await.expect("read"), 1 << 20);
        assert_eq!(page.bytes().committed().await.expect("read"), 1 << 20);
        page.write(100).await.expect("written");
        assert_eq!(page.bytes().committed().await.expect("read"), 100);
        reborn(&node).await;
        assert_eq!(page.bytes().await.expect("read"), 100);
        page.write(1 << 20).await.expect("written");
        node.delete::<Page>("a").await.expect("deleted");
        assert_eq!(page.bytes().await.expect("read"), 0);
    });
}

#[tokio::test]
async fn a_damaged_entry_fails_the_turns_that_read_it_and_no_others() {
    let world = World::new();
    let start = async || {
        let builder = Node::builder().store(world.disk.open().expect("readable"));
        builder.entity::<Shelf>().start().await.expect("starts")
    };
    let node = start().await;
    for book in 0..3 {
        node.entity::<Shelf>("a").put(book, format!("{book}")).await.expect("put");
    }
    node.drain().await.expect("drained");
    let rows = world.disk.rows(Table::Entries);
    let (_, book) = rows.iter().find(|(_, value)| value.ends_with(b"\x011")).expect("the book 1");
    let key = &rows.iter().find(|(_, value)| value == book).expect("the same").0;
    world.disk.damage_row(Table::Entries, key, |value| *value = vec![1, 0, 0, 0, 1, 0xff]);

    let node = start().await;
    let shelf = node.entity::<Shelf>("a");
    let refused = shelf.title(1).await.expect_err("damaged");
    assert!(matches!(&refused, CallError::Failed(error) if error.kind() == ErrorKind::Corrupt));
    let refused = shelf.title(1).committed().await.expect_err("damaged");
    assert!(matches!(&refused, CallError::Failed(error) if error.kind() == ErrorKind::Corrupt));
    assert!(shelf.put(1, "new".into()).await.is_err(), "it is left as it is");
    assert_eq!(shelf.title(2).await.expect("read"), Some("2".into()));
    assert!(shelf.put(3, "3".into()).await.expect("the entity goes on"));
    assert!(
        world.disk.rows(Table::Entries).iter().any(|(of, it)| of == key && it.ends_with(&[0xff]))
    );
    node.drain().await.expect("drained");
}

#[tokio::test]
async fn a_changed_collection_without_a_new_version_keeps_the_node_from_starting() {
    #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    struct Changed {
        books: Map<u64, String>,
        history: Log<String>,
        lent: Option<Lent>,
        turns: u32,
    }
    #[entity(name = "shelf")]
    impl Changed {
        pub fn count(&self) -> u64 {
            self.books.len()
        }
    }
    let world = World::new();
    let store = || world.disk.open().expect("readable");
    let node = Node::builder().store(store()).entity::<Shelf>().start().await.expect("starts");
    node.drain().await.expect("drained");
    let refused = Node::builder().store(store()).entity::<Changed>().start().await;
    let refused = refused.expect_err("the keys are others").to_string();
    assert!(refused.contains("shelf") && refused.contains("version"), "{refused}");

    #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    struct Nested {
        by: Map<u8, Lent>,
    }
    #[entity(name = "nested")]
    impl Nested {
        pub fn count(&self) -> u64 {
            self.by.len()
        }
    }
    let refused = Node::builder().store(store()).entity::<Nested>().start().await;
    let refused = refused.expect_err("one in the entry of another").to_string();
    assert!(refused.contains("state.by{value}.by is a collection in an entry"), "{refused}");
}

#[test]
fn an_earlier_version_takes_its_collections_along() {
    #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    struct Library {
        lent: Map<String, u64>,
        books: Map<u32, String>,
        name: String,
    }
    impl From<Shelf> for Library {
        fn from(Shelf { books, lent, .. }: Shelf) -> Self {
            let lent = lent.unwrap_or_default().by;
            Self { lent, books, name: "library".into() }
        }
    }
    #[entity(name = "shelf", version = 2, upgrade_from(1 = Shelf))]
    impl Library {
        pub fn put(&mut self, book: u32, title: String) -> bool {
            self.books.insert(book, title)
        }
        pub fn everything(&self) -> (Vec<String>, Vec<u64>) {
            let titles = self.books.iter().map(|(_, title)| title.clone());
            (titles.collect(), self.lent.iter().map(|(_, book)| *book).collect())
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let world = World::new();
        let store = || world.disk.open().expect("readable");
        let node = Node::builder().store(store()).entity::<Shelf>().start().await.expect("starts");
        let shelf = node.entity::<Shelf>("a");
        for book in 0..3 {
            shelf.put(book, format!("{book}")).await.expect("put");
        }
        shelf.lend("kim".into(), 7).await.expect("lent");
        node.drain().await.expect("drained");
        let builder = Node::builder().store(store()).entity::<Library>();
        let node = builder.start().await.expect("starts");
        let library = node.entity::<Library>("a");
        let all = (vec!["0".to_owned(), "1".to_owned(), "2".to_owned()], vec![7]);
        assert_eq!(library.everything().committed().await.expect("read"), all);
        assert!(library.put(3, "3".into()).await.expect("put"));
        node.drain().await.expect("drained");
        let builder = Node::builder().store(store()).entity::<Library>();
        let node = builder.start().await.expect("starts");
        let (titles, lent) = node.entity::<Library>("a").everything().await.expect("read");
        assert_eq!((titles.len(), lent), (4, vec![7]));
        assert_eq!(node.check_indexes().await.expect("checked"), Vec::<String>::new());
        node.drain().await.expect("drained");
    });
}

#[tokio::test(start_paused = true)]
async fn signals_wait_for_entries_while_the_store_cannot_read() {
    let (disk, network) = (MemoryDisk::new(), Network::new(1, Faults::default()));
    let store = disk.share_slowly(1, Duration::from_millis(2));
    let config = Config::with(|config| {
        (config.retries, config.retry_delay) = (2, Duration::from_millis(10));
        config.idle = Duration::from_millis(20);
    });
    let builder = Node::builder().share(store.clone(), network.at("a"), "a").name("a");
    let builder = builder.config(config).deterministic(1).entity::<Shelf>();
    let node = builder.start().await.expect("starts");
    let keys: Vec<_> = (0..40).map(|number| format!("s{number}")).collect();
    for key in &keys {
        node.entity::<Shelf>(key).put(1, "first".into()).await.expect("put");
    }
    node.entity::<Shelf>("orders").put(1, "first".into()).await.expect("put");
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.entity::<Shelf>("orders").turn_count().await.expect("in memory");
    store.set_reach(Reach::ReadsLost);
    node.entity::<Shelf>("orders").order(keys.clone()).await.expect("sent");
    tokio::time::sleep(Duration::from_secs(5)).await;
    store.set_reach(Reach::Open);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let letters = node.dead_letters(&DeadLetterFilter::default(), None, 50).await;
    assert_eq!(letters.expect("a list").rows.len(), 0, "nothing was given up");
    for key in &keys {
        let title = node.entity::<Shelf>(key).title(1).await.expect("a title");
        assert_eq!(title.as_deref(), Some("again"), "{key}");
    }
    node.drain().await.expect("drained");
}
