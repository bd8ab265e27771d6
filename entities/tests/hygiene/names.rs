//! Methods that are named like those that generated code calls, and raw identifiers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{Context, Layout, entity, state::LayoutText, testing::Driver};

use crate::{described, now};

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Door {
    r#type: i64,
}

/// A trait whose methods take an entity by value and have the names of its operations.
pub trait Taken: Sized {
    fn take_over(self) -> String {
        "the trait's".into()
    }
    fn awaited(self) -> String {
        "the trait's".into()
    }
}
impl Taken for Door {}

#[entity(name = "door")]
#[allow(clippy::should_implement_trait, clippy::inherent_to_string, clippy::wrong_self_convention)]
impl Door {
    pub fn new() -> Self {
        Self { r#type: 100 }
    }

    pub fn clone(&self) -> i64 {
        1
    }

    pub fn bind(&mut self, bound: i64) -> i64 {
        bound
    }

    pub fn into(&mut self) -> i64 {
        3
    }

    pub async fn into_future(&mut self) -> i64 {
        4
    }

    pub fn operation(&mut self, name: String, input: i64) -> String {
        format!("{name} {input}")
    }

    pub fn query(&self, name: String, input: i64) -> String {
        format!("{name} {input}")
    }

    pub fn signal(&mut self) -> i64 {
        5
    }

    pub fn fmt(&self) -> i64 {
        6
    }

    pub fn default(&mut self) -> i64 {
        7
    }

    pub fn serialize(&mut self) -> i64 {
        8
    }

    pub fn operations(&self) -> i64 {
        9
    }

    pub fn upgrade(&mut self) -> i64 {
        10
    }

    pub fn describe(&self) -> i64 {
        11
    }

    pub fn reference(&self) -> i64 {
        12
    }

    pub fn unbound(&mut self) -> i64 {
        13
    }

    pub fn as_ref(&self) -> i64 {
        14
    }

    pub fn take_over(&mut self) -> i64 {
        15
    }

    pub async fn awaited(&mut self) -> i64 {
        16
    }

    pub fn eq(&self, other: i64) -> bool {
        self.r#type == other
    }

    pub fn r#move(&mut self, r#type: i64, r#fn: i64) -> i64 {
        self.r#type = r#type + r#fn;
        self.r#type
    }

    pub fn r#match(&self, r#type: i64) -> bool {
        self.r#type == r#type
    }

    pub async fn r#loop(&mut self, r#in: i64, ctx: &mut Context, r#as: i64) -> String {
        format!("{} {} {}", ctx.key(), r#in, r#as)
    }

    pub fn _start(&mut self, a: i64, b: i64) -> i64 {
        a + b
    }

    pub fn start(&mut self, a: String, b: String) -> String {
        a + &b
    }
}

#[test]
fn an_operation_with_the_name_of_a_method_of_the_macro_is_the_operation() {
    let (door, mut driver) = (Door::of("a"), Driver::<Door>::new("a"));
    assert_eq!(driver.query(door.clone()).expect("clone"), 1);
    assert_eq!(driver.apply(door.bind(2)).expect("bind"), 2);
    assert_eq!(driver.apply(Door::of("a").into()).expect("into"), 3);
    assert_eq!(now(driver.apply_async(door.into_future())).expect("into_future"), 4);
    assert_eq!(driver.apply(door.operation("a".into(), 1)).expect("operation"), "a 1");
    assert_eq!(driver.query(door.query("a".into(), 1)).expect("query"), "a 1");
    assert_eq!(driver.apply(door.signal()).expect("signal"), 5);
    assert_eq!(driver.query(door.fmt()).expect("fmt"), 6);
    assert_eq!(driver.apply(door.default()).expect("default"), 7);
    assert_eq!(driver.apply(door.serialize()).expect("serialize"), 8);
    assert_eq!(driver.query(door.operations()).expect("operations"), 9);
    assert_eq!(driver.apply(door.upgrade()).expect("upgrade"), 10);
    assert_eq!(driver.query(door.describe()).expect("describe"), 11);
    assert_eq!(driver.query(door.reference()).expect("reference"), 12);
    assert_eq!(driver.apply(door.unbound()).expect("unbound"), 13);
    assert_eq!(driver.query(door.as_ref()).expect("as_ref"), 14);
    assert_eq!(driver.apply(door.take_over()).expect("take_over"), 15);
    assert_eq!(now(driver.apply_async(door.awaited())).expect("awaited"), 16);
    assert!(driver.query(door.eq(0)).expect("eq"));
    assert_eq!(Door::new().r#type, 100);
    assert_eq!(Taken::take_over(Door::new()), Taken::awaited(Door::new()));
}

#[test]
fn two_operations_may_differ_by_an_underscore() {
    let (door, mut driver) = (Door::of("a"), Driver::<Door>::new("a"));
    assert_eq!(driver.apply(door._start(1, 2)).expect("numbers"), 3);
    assert_eq!(driver.apply(door.start("a".into(), "b".into())).expect("texts"), "ab");
}

#[test]
fn a_raw_name_has_no_prefix_outside() {
    let (door, mut driver) = (Door::of("a"), Driver::<Door>::new("a"));
    assert_eq!(driver.apply(door.r#move(1, 2)).expect("moved"), 3);
    assert!(driver.query(door.r#match(3)).expect("matched"));
    assert_eq!(now(driver.apply_async(door.r#loop(1, 2))).expect("looped"), "a 1 2");
    let request = door.r#move(1, 2).into_request().expect("a request");
    assert_eq!(request.operation, "move");
    assert_eq!(request.input, br#"{"type":1,"fn":2}"#);
    let described = described::<Door>("move");
    assert_eq!(described["input"]["$ref"], "#/$defs/MoveInput");
    let properties = &described["input"]["$defs"]["MoveInput"]["properties"];
    assert!(properties["type"].is_object() && properties["fn"].is_object());
    assert_eq!(serde_json::to_value(driver.state()).expect("JSON")["type"], 3);
}

#[test]
fn the_layout_of_a_raw_field_stays_what_is_stored() {
    assert_eq!(LayoutText::of::<Door>(), "state: struct\nstate.r#type: i64\n");
}
