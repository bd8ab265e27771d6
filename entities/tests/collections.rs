//! Maps and logs in states: what their authors may rely on, with every turn on a state that was stored.

#![allow(unreachable_pub, reason = "operations are public")]

use std::{collections::BTreeMap, ops::Bound, time::Duration};

use stead_entities::{
    CallError, Context, JsonSchema, Layout, Log, Map, Rejection, collections, entity,
    testing::Driver,
};

/// Collections in structs, enums and options, and with keys and values that are awkward.
#[derive(Clone, Default, serde::Serialize, serde::Deserialize, JsonSchema, Layout)]
struct Room {
    members: Map<String, Member>,
    messages: Log<Message>,
    shelf: Shelf,
    archive: Option<Box<Archive>>,
    sizes: Map<i64, Option<String>>,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, JsonSchema, Layout)]
struct Member {
    nick: Option<String>,
    visits: u32,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, JsonSchema, Layout)]
enum Message {
    Said(String, String),
    Left { who: String },
}

#[derive(Clone, Default, serde::Serialize, serde::Deserialize, JsonSchema, Layout)]
enum Shelf {
    #[default]
    Closed,
    Open {
        books: Map<u8, String>,
        notes: u32,
    },
    Lent(Log<u64>),
}

#[derive(Clone, Default, serde::Serialize, serde::Deserialize, JsonSchema, Layout)]
struct Archive {
    years: Map<Year, u64>,
}

#[derive(
    Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, JsonSchema, Layout,
)]
struct Year(i16);

#[entity(name = "room")]
impl Room {
    pub fn enter(&mut self, name: String) -> u32 {
        if !self.members.contains_key(&name) {
            self.members.insert(name.clone(), Member { nick: None, visits: 0 });
        }
        let visits = |member: &mut Member| {
            member.visits += 1;
            member.visits
        };
        self.members.update(&name, visits).unwrap_or_default()
    }
    pub fn leave(&mut self, ctx: &mut Context, name: String) -> Result<Member, Rejection> {
        let member = self.members.take(&name).ok_or_else(|| Rejection::new("nobody"))?;
        self.messages.push(ctx.now(), Message::Left { who: name });
        Ok(member)
    }
    pub fn say(&mut self, ctx: &mut Context, text: String) -> u64 {
        self.messages.push(ctx.now(), Message::Said("kim".into(), text))
    }
    pub fn trim(&mut self, count: u64) {
        self.messages.trim_to(count);
    }
    pub fn forget_old(&mut self, ctx: &mut Context, seconds: u64) -> u64 {
        let now = ctx.now().as_micros();
        let at = stead_entities::Timestamp::from_micros(now - 1_000_000 * seconds as i64);
        self.messages.trim_before(at)
    }
    pub fn open(&mut self) {
        let books = (0..200).map(|number| (number, format!("book {number}"))).collect();
        self.shelf = Shelf::Open { books, notes: 1 };
    }
    pub fn lend(&mut self, ctx: &mut Context, book: u8) -> Option<String> {
        let Shelf::Open { books, notes } = &mut self.shelf else { return None };
        *notes += 1;
        let taken = books.take(&book);
        if books.len() < 199 {
            let mut lent = Log::new();
            lent.push(ctx.now(), u64::from(book));
            self.shelf = Shelf::Lent(lent);
        }
        taken
    }
    pub fn copy_archive(&mut self) {
        let archive = self.archive.get_or_insert_default();
        archive.years.insert(Year(-1), 7);
        archive.years.insert(Year(2_026), 9);
    }
    /// Fails: not all entries are in memory.
    pub fn copy_shelf(&mut self) {
        let Shelf::Open { books, .. } = &self.shelf else { return };
        self.archive = None;
        let copy = books.clone();
        self.sizes.clear();
        self.shelf = Shelf::Open { books: copy, notes: 0 };
        if let Shelf::Open { books, .. } = self.shelf.clone() {
            self.sizes.insert(1, Some(books.len().to_string()));
        }
    }
    pub fn set(&mut self, key: i64, value: Option<String>) -> bool {
        self.sizes.insert(key, value)
    }
    pub fn too_long(&mut self) {
        self.members.insert("x".repeat(1_025), Member { nick: None, visits: 0 });
    }
    pub fn too_large(&mut self, ctx: &mut Context) {
        self.messages.push(ctx.now(), Message::Left { who: "x".repeat(1 << 20) });
    }
    pub fn fill(&mut self, count: i64) {
        self.sizes.extend((0..count).map(|key| (key, None)));
    }
    pub fn everything(&mut self) -> usize {
        self.sizes.iter().count()
    }
    #[index]
    pub fn members_count(&self) -> u64 {
        self.members.len()
    }
    pub fn page(&self, after: Option<String>) -> Vec<String> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let page = self.members.range((from, Bound::Unbounded)).take(3);
        page.map(|(name, _)| name.clone()).collect()
    }
    pub fn history(&self, from: u64, to: u64) -> Vec<(u64, Message)> {
        self.messages.range(from..to).map(|(index, entry)| (index, entry.value.clone())).collect()
    }
    pub fn newest(&self, count: u64) -> Vec<u64> {
        self.messages.newest(count).map(|(index, _)| index).collect()
    }
    pub fn size(&self, key: i64) -> Option<Option<String>> {
        self.sizes.get(&key).cloned()
    }
    pub fn between(&self, from: i64, to: i64) -> Vec<i64> {
        self.sizes.range(from..=to).map(|(key, _)| *key).collect()
    }
    pub fn every_tenth(&self, count: i64) -> usize {
        (0..count).map(|ten| self.sizes.range(10 * ten..10 * ten + 2).count()).sum()
    }
    pub async fn greet_all(&mut self, ctx: &mut Context) -> u32 {
        let mut greeted = 0;
        for name in ["ann", "bob", "kim"] {
            std::future::ready(()).await;
            if self.members.update(name, |member| member.visits += 1).is_some() {
                self.messages.push(ctx.now(), Message::Said("all".into(), name.into()));
                greeted += 1;
            }
        }
        greeted
    }
}

fn room() -> Driver<Room> {
    Driver::new("a")
}

fn why(error: CallError) -> String {
    error.to_string()
}

#[test]
fn entries_are_read_back_wherever_their_collection_is() {
    let mut room = room();
    let of = Room::of("a");
    for name in ["kim", "ann", "bob", "zoe", "kim"] {
        room.apply(of.enter(name.into())).expect("applied");
    }
    assert_eq!(room.apply(of.enter("kim".into())).expect("applied"), 3);
    assert_eq!(room.query(of.page(None)).expect("read"), ["ann", "bob", "kim"]);
    assert_eq!(room.query(of.page(Some("kim".into()))).expect("read"), ["zoe"]);
    assert_eq!(room.apply(of.leave("ann".into())).expect("there").visits, 1);
    assert!(room.apply(of.leave("ann".into())).is_err(), "gone");
    assert_eq!(room.apply(of.greet_all()).expect("applied"), 2);
    assert_eq!(room.state().members.len(), 3);
    assert_eq!(room.state().members.get("kim").expect("there").visits, 4);
    room.apply(of.copy_archive()).expect("applied");
    let archive = room.state().archive.as_ref().expect("made");
    let years: Vec<_> = archive.years.iter().map(|(year, _)| year.0).collect();
    assert_eq!(years, [-1, 2_026]);
    room.apply(of.open()).expect("applied");
    assert_eq!(room.apply(of.lend(7)).expect("applied").as_deref(), Some("book 7"));
    assert!(matches!(&room.state().shelf, Shelf::Open { books, notes: 2 } if books.len() == 199));
    room.apply(of.lend(8)).expect("applied");
    let Shelf::Lent(lent) = &room.state().shelf else { panic!("lent") };
    assert_eq!(lent.last().map(|entry| entry.value), Some(8));
}

#[test]
fn a_log_grows_at_one_end_and_is_trimmed_at_the_other() {
    let mut room = room();
    let of = Room::of("a");
    for number in 0..300_u64 {
        assert_eq!(room.apply(of.say(format!("{number}"))).expect("applied"), number);
        room.advance(Duration::from_secs(1)).expect("no reminders");
    }
    assert_eq!(room.query(of.newest(3)).expect("read"), [297, 298, 299]);
    let page = room.query(of.history(10, 12)).expect("read");
    assert_eq!(page[0], (10, Message::Said("kim".into(), "10".into())));
    room.apply(of.trim(200)).expect("applied");
    assert_eq!(room.state().messages.indexes(), 100..300);
    assert_eq!(room.query(of.history(0, 102)).expect("read").len(), 2, "those that are left");
    room.apply(of.trim(195)).expect("applied, by single rows");
    assert_eq!(room.apply(of.forget_old(100)).expect("applied"), 95, "older than 100 seconds");
    assert_eq!(room.state().messages.indexes(), 200..300);
    room.apply(of.trim(0)).expect("applied");
    assert_eq!(room.apply(of.say("more".into())).expect("applied"), 300, "no index is used again");
    assert_eq!(room.state().messages.len(), 1);
}

#[test]
fn a_map_does_what_a_map_in_memory_does() {
    let (mut room, of) = (room(), Room::of("a"));
    let mut model = BTreeMap::<i64, Option<String>>::new();
    let mut seed = 7_u64;
    for step in 0..600 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (key, kind) = ((seed >> 33) as i64 % 40 - 20, (seed >> 60) % 4);
        let value = (kind != 0).then(|| format!("{step}"));
        let is_new = room.apply(of.set(key, value.clone())).expect("applied");
        assert_eq!(is_new, model.insert(key, value).is_none(), "step {step}");
        assert_eq!(room.query(of.size(key)).expect("read").flatten(), model[&key]);
        let within: Vec<_> = model.range(-5_i64..=5).map(|(key, _)| *key).collect();
        assert_eq!(room.query(of.between(-5, 5)).expect("read"), within);
    }
    let all: BTreeMap<_, _> =
        room.state().sizes.iter().map(|(key, value)| (*key, value.clone())).collect();
    assert_eq!(all, model);
}

#[test]
fn a_turn_may_read_many_ranges() {
    let (mut room, of) = (room(), Room::of("a"));
    room.apply(of.fill(10_000)).expect("applied");
    assert_eq!(room.query(of.every_tenth(300)).expect("read"), 600);
}

#[test]
fn what_breaks_a_limit_fails_its_turn_and_says_so() {
    let (mut room, of) = (room(), Room::of("a"));
    let long = why(room.apply(of.too_long()).expect_err("too long"));
    assert_eq!(long, "a key of a map: a text of 1025 bytes is too long: the limit is 1024");
    let large = why(room.apply(of.too_large()).expect_err("too large"));
    assert!(large.contains("an entry of a collection has"), "{large}");
    assert!(large.contains("the limit is 1048576"), "{large}");
    room.apply(of.fill(10_001)).expect("entries of one turn have no such limit");
    let many = why(room.apply(of.everything()).expect_err("too many"));
    assert!(many.contains("at most 10000 entries") && many.contains("range(..).take(n)"), "{many}");
    assert_eq!(room.state().sizes.len(), 10_001);
}

#[test]
fn a_copy_is_a_collection_of_its_own() {
    let (mut room, of) = (room(), Room::of("a"));
    room.apply(of.open()).expect("applied");
    room.apply(of.copy_shelf()).expect("the copy takes the place of what it was made of");
    assert_eq!(room.query(of.size(1)).expect("read"), Some(Some("200".into())));

    #[derive(Clone, Default, serde::Serialize, serde::Deserialize, JsonSchema, Layout)]
    struct Twins {
        one: Map<u8, u8>,
        other: Map<u8, u8>,
    }
    #[entity(name = "twins")]
    impl Twins {
        pub fn fill(&mut self) {
            self.one.extend((0..9).map(|key| (key, key)));
            self.other = self.one.clone();
        }
        pub fn copy(&mut self) {
            self.other = self.one.clone();
        }
        pub fn swap(&mut self) {
            std::mem::swap(&mut self.one, &mut self.other);
            self.one.insert(1, 100);
        }
    }
    let (mut twins, of) = (Driver::<Twins>::new("a"), Twins::of("a"));
    twins.apply(of.fill()).expect("all entries are in memory");
    twins.apply(of.swap()).expect("applied");
    let read = |twins: &Driver<Twins>| {
        let Twins { one, other } = twins.state();
        (one.get(&1).copied(), other.get(&1).copied(), one.len(), other.len())
    };
    assert_eq!(read(&twins), (Some(100), Some(1), 9, 9));
    let refused = why(twins.apply(of.copy()).expect_err("they are not in memory"));
    assert!(refused.contains("not all in memory"), "{refused}");
}

#[test]
fn json_shows_a_page_and_the_length() {
    let (mut room, of) = (room(), Room::of("a"));
    room.apply(of.fill(101)).expect("applied");
    let shown = serde_json::to_value(&room.state().sizes).expect("JSON");
    assert_eq!(shown["length"], 101);
    assert_eq!(shown["entries"].as_object().expect("a map").len(), 100);
    let page = serde_json::from_value::<Map<i64, Option<String>>>(shown).expect("a page");
    assert_eq!((page.len(), page.get(&99)), (101, Some(&None)));
    assert!(std::panic::catch_unwind(|| page.get(&100).is_some()).is_err(), "not shown");
    assert_eq!(page, room.state().sizes, "as far as it is known");
    let length = serde_json::from_str::<Log<u8>>(r#"{"length":7}"#).expect("the length alone");
    assert_eq!(length.indexes(), 0..7);
    let small: Map<String, u8> = [("a".to_owned(), 1)].into_iter().collect();
    let shown = serde_json::to_string(&small).expect("JSON");
    assert_eq!(shown, r#"{"length":1,"entries":{"a":1}}"#);
    assert_eq!(serde_json::from_str::<Map<String, u8>>(&shown).expect("all of it"), small);
    room.apply(of.say("hi".into())).expect("applied");
    let shown = serde_json::to_value(&room.state().messages).expect("JSON");
    assert_eq!(shown["entries"][0]["value"]["Said"][1], "hi");
    let lengths = collections::attempt(collections::Access::Lengths, || {
        serde_json::to_value(&room.state().sizes).expect("JSON")
    });
    assert_eq!(lengths.expect("nothing is missed"), serde_json::json!({ "length": 101 }));
}

#[test]
fn layouts_tell_a_collection_from_a_plain_one() {
    let text = stead_entities::state::LayoutText::of::<Room>();
    assert!(text.contains("state.members: map of rows\nstate.members{key}: text\n"), "{text}");
    assert!(text.contains("state.shelf::Lent._0: log of rows\n"), "{text}");
    let nested = stead_entities::state::LayoutText::described::<Map<u8, Map<u8, u8>>>();
    assert_eq!(nested.nested_collection(), Some("state{value}"));
}
