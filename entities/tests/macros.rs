//! `#[entity]` and `derive(Layout)` from outside, with nothing but this crate: what they write, and
//! what they refuse.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{
    Context, Entity, IndexType, Layout, Operation, OperationType, Policy, Reference, Rejection,
    entity, entity::EntityDescription, index::encode, state::LayoutText, testing::Driver,
};

/// A door, by the macro.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
#[schemars(rename = "Door", description = "A door.")]
pub struct Door {
    open: bool,
    moved: u32,
}

/// A door.
#[entity(name = "door", version = 3, index(moved: u32))]
impl Door {
    /// Pushes it open.
    pub fn push(&mut self, ctx: &mut Context) -> Result<u32, Rejection> {
        if self.open {
            return Err(Rejection::new("the door is open"));
        }
        self.open = true;
        self.moved += 1;
        ctx.signal(Door::of("bell").ring(2, "hall".into()));
        Ok(self.moved)
    }

    /// Rings.
    pub fn ring(&mut self, times: u32, place: String) {
        self.moved += times + place.len() as u32;
    }

    pub(crate) fn close(&mut self) {
        self.open = false;
    }

    /// Whether it is open.
    #[index]
    pub fn is_open(&self) -> bool {
        self.open
    }
}

/// The same door, by hand.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
#[schemars(rename = "Door", description = "A door.")]
struct Plain {
    open: bool,
    moved: u32,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct RingInput {
    times: u32,
    place: String,
}

impl Entity for Plain {
    const NAME: &'static str = "door";
    const VERSION: u32 = 3;
    const DESCRIPTION: &'static str = "A door.";

    fn indexes() -> Vec<IndexType<Self>> {
        vec![
            IndexType::new::<u32>("moved", |door| encode(&door.moved)),
            IndexType::new::<bool>("is_open", |door| encode(&door.open)),
        ]
    }

    fn operations() -> Vec<OperationType<Self>> {
        let push = |door: &mut Self, ctx: &mut Context, (): ()| {
            if door.open {
                return Err(Rejection::new("the door is open"));
            }
            door.open = true;
            door.moved += 1;
            let input = RingInput { times: 2, place: "hall".into() };
            let ring: Operation<()> =
                Reference::new("door", "bell").operation("ring", Some(&input));
            ctx.signal(ring);
            Ok(door.moved)
        };
        let ring = |door: &mut Self, _: &mut Context, input: RingInput| {
            door.moved += input.times + input.place.len() as u32;
        };
        vec![
            OperationType::operation("push", push).described("Pushes it open."),
            OperationType::operation("ring", ring).described("Rings."),
            OperationType::operation("close", |door: &mut Self, _, (): ()| door.open = false)
                .internal(),
            OperationType::query("is_open", |door: &Self, _, (): ()| door.open)
                .described("Whether it is open."),
        ]
    }
}

/// What an entity does when it is driven by name, with JSON.
fn story<E: Entity + std::fmt::Debug>() -> Vec<String> {
    let mut driver = Driver::<E>::new("front");
    let door = Reference::new("door", "front");
    let mut told = Vec::new();
    for name in ["push", "push", "close", "push"] {
        let operation: Operation<serde_json::Value> = door.operation(name, None);
        told.push(format!("{name}: {:?}", driver.apply(operation)));
    }
    let ring = RingInput { times: 1, place: "x".into() };
    let operation: Operation<serde_json::Value> = door.operation("ring", Some(&ring));
    told.push(format!("ring: {:?}", driver.apply(operation)));
    let operation: Operation<serde_json::Value> = door.operation("ring", Some(&1));
    told.push(format!("ring: {:?}", driver.apply(operation)));
    told.push(format!("{:?}", driver.take_signals()));
    told.push(serde_json::to_string(driver.state()).expect("JSON"));
    told.push(format!("revision {}", driver.revision()));
    let values = E::indexes().into_iter().map(|of| (of.name(), of.value(driver.state())));
    told.push(format!("{:?}", values.collect::<Vec<_>>()));
    told
}

#[test]
fn the_macro_and_a_hand_written_entity_behave_alike() {
    assert_eq!(story::<Door>(), story::<Plain>());
    assert_eq!(LayoutText::of::<Door>(), LayoutText::of::<Plain>());
    let described = |of: EntityDescription| serde_json::to_value(of).expect("JSON");
    assert_eq!(
        described(EntityDescription::of::<Door>(Policy::default())),
        described(EntityDescription::of::<Plain>(Policy::default()))
    );
}

mod inner {
    use super::*;

    #[derive(Serialize, Deserialize, Layout)]
    pub(super) struct Item {
        pub(super) deep: Option<Box<super::Item>>,
    }
}

#[derive(Serialize, Deserialize, Layout)]
struct Item {
    inner: Option<Box<inner::Item>>,
}

#[test]
fn a_layout_spells_out_every_place_and_ends_where_a_type_contains_itself() {
    let expected = "state: struct\nstate.inner: option\nstate.inner?: struct\n\
                    state.inner?.deep: option\nstate.inner?.deep?: again the struct, 2 up\n";
    assert_eq!(LayoutText::of::<Item>(), expected);
}

#[test]
fn mistakes_are_refused_with_their_fix() {
    trybuild::TestCases::new().compile_fail("tests/refused/*.rs");
}
