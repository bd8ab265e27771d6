//! What stands around an entity: types, constants and modules with the names that generated code
//! could mean.

use stead_entities::testing::Driver;

use crate::described;

/// Everything that the prelude and the crate offer means something else here.
#[allow(unused, non_upper_case_globals)]
mod shadowed {
    use ::stead_entities::Layout;

    pub struct Option;
    pub struct Result;
    pub struct Vec;
    pub struct String;
    pub struct Box;
    pub struct Some;
    pub struct None;
    pub struct Ok;
    pub struct Err;
    pub struct Context;
    pub struct Reference;
    pub struct Operation;
    pub struct OperationType;
    pub struct Query;
    pub struct Unbound;
    pub struct Entity;
    pub struct TypedReference;
    pub struct Rejection;
    pub trait Clone {}
    pub trait Debug {}
    pub trait Into {}
    pub trait AsRef {}
    pub trait Sized {}
    pub trait Send {}
    pub mod core {}
    pub mod std {}
    pub mod alloc {}
    pub mod serde {}
    pub mod stead_entities {}
    pub const state: i64 = 1;
    pub const ctx: i64 = 1;
    pub const input: i64 = 1;
    pub const answer: i64 = 1;
    pub const layout: i64 = 1;
    pub const version: i64 = 1;
    pub const decoder: i64 = 1;
    pub const reference: i64 = 1;
    pub static running: i64 = 1;
    macro_rules! vec {
        () => {};
    }
    macro_rules! format {
        () => {};
    }
    macro_rules! panic {
        () => {};
    }
    macro_rules! assert {
        () => {};
    }
    macro_rules! concat {
        () => {};
    }
    pub(crate) use {assert, concat, format, panic, vec};

    #[derive(
        ::core::fmt::Debug,
        ::core::clone::Clone,
        ::core::default::Default,
        ::serde::Serialize,
        ::serde::Deserialize,
        ::schemars::JsonSchema,
        Layout,
    )]
    pub struct Lamp {
        lit: bool,
        level: ::core::option::Option<u8>,
    }

    #[derive(::serde::Serialize, ::serde::Deserialize, Layout)]
    pub enum OldLamp {
        Lit { value: bool },
        Dark(u8),
    }

    impl ::core::convert::From<OldLamp> for Lamp {
        fn from(_: OldLamp) -> Self {
            Self::default()
        }
    }

    type Answer = ::core::result::Result<bool, ::stead_entities::Rejection>;

    #[::stead_entities::entity(name = "lamp", version = 2, upgrade_from(1 = OldLamp))]
    impl Lamp {
        pub fn light(&mut self, from: bool, to: bool) -> bool {
            self.lit = to;
            from
        }

        pub fn level(&self) -> ::core::option::Option<u8> {
            self.level
        }

        pub fn checked(&mut self, level: u8) -> Answer {
            self.level = ::core::option::Option::Some(level);
            ::core::result::Result::Ok(self.lit)
        }

        pub async fn awaited(&mut self, environment: &mut ::stead_entities::Context) -> bool {
            environment.delete();
            self.lit
        }
    }
}

/// Types with the names of type parameters.
mod parameters {
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};
    use stead_entities::{Layout, entity};

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
    pub struct B {
        pub at: i64,
    }

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
    pub struct D {
        pub at: i64,
    }

    impl From<D> for B {
        fn from(d: D) -> Self {
            Self { at: d.at }
        }
    }
    impl From<E> for D {
        fn from(e: E) -> Self {
            Self { at: e.at }
        }
    }

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
    pub struct E {
        pub at: i64,
    }

    pub type T = i64;
    pub type R = B;
    pub type Kind = D;

    #[entity(name = "b", version = 2, upgrade_from(1 = D))]
    impl B {
        pub fn set(&mut self, b: B, d: D) -> B {
            self.at = b.at + d.at;
            self.clone()
        }

        pub fn b(&self, b: Option<B>) -> Vec<B> {
            b.into_iter().collect()
        }

        pub fn aliases(&mut self, t: T, r: R, kind: Kind) -> R {
            B { at: t + r.at + kind.at }
        }
    }

    #[entity(name = "d", version = 2, upgrade_from(1 = E))]
    impl D {
        pub fn set(&mut self, b: B, d: D) -> D {
            self.at = b.at * d.at;
            self.clone()
        }
    }

    #[entity(name = "e")]
    impl E {
        pub fn set(&mut self, e: E) -> E {
            e
        }
    }
}

/// Types with the names of argument structs.
mod bundles {
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};
    use stead_entities::{Layout, entity};

    #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    pub struct StartInput {
        pub speed: i64,
    }

    #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    pub struct Car {
        speed: i64,
    }

    #[entity(name = "car")]
    impl Car {
        pub fn start(&mut self, input: StartInput, more: i64) -> StartInput {
            self.speed = input.speed + more;
            StartInput { speed: self.speed }
        }
    }

    #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    pub struct Bus {
        seats: Vec<String>,
    }

    #[entity(name = "bus")]
    impl Bus {
        pub fn start(&mut self, from: String, to: String) -> String {
            self.seats.push(from + &to);
            self.seats.concat()
        }
    }
}

#[test]
fn what_the_prelude_offers_may_mean_something_else() {
    use shadowed::Lamp;
    let (lamp, mut driver) = (Lamp::of("a"), Driver::<Lamp>::new("a"));
    assert!(!driver.apply(lamp.light(false, true)).expect("lit"));
    assert!(driver.apply(lamp.checked(3)).expect("checked"));
    assert_eq!(driver.query(lamp.level()).expect("level"), Some(3));
    assert!(crate::now(driver.apply_async(lamp.awaited())).expect("awaited"));
    assert_eq!(driver.query(lamp.level()).expect("level"), None);
}

#[test]
fn a_type_may_have_the_name_of_a_type_parameter() {
    use parameters::{B, D, E};
    let (b, mut driver) = (B::of("a"), Driver::<B>::new("a"));
    assert_eq!(driver.apply(b.set(B { at: 2 }, D { at: 3 })).expect("set"), B { at: 5 });
    assert_eq!(driver.query(b.b(Some(B { at: 2 }))).expect("b"), [B { at: 2 }]);
    let sum = driver.apply(b.aliases(1, B { at: 2 }, D { at: 3 })).expect("aliases");
    assert_eq!(sum, B { at: 6 });
    let (d, mut driver) = (D::of("a"), Driver::<D>::new("a"));
    assert_eq!(driver.apply(d.set(B { at: 2 }, D { at: 3 })).expect("set"), D { at: 6 });
    let (e, mut driver) = (E::of("a"), Driver::<E>::new("a"));
    assert_eq!(driver.apply(e.set(E { at: 1 })).expect("set"), E { at: 1 });
}

#[test]
fn a_type_may_have_the_name_of_an_argument_struct() {
    use bundles::{Bus, Car, StartInput};
    let mut driver = Driver::<Car>::new("a");
    let started = driver.apply(Car::of("a").start(StartInput { speed: 1 }, 2)).expect("started");
    assert_eq!(started.speed, 3);
    // Both are in one schema, each with its own fields.
    let input = described::<Car>("start")["input"].clone();
    let fields = |name: &str| input["$defs"][name]["properties"].clone();
    let (first, second) = (fields("StartInput"), fields("StartInput2"));
    assert!(first["input"].is_object() != second["input"].is_object(), "{input}");
    assert!(first["speed"].is_object() != second["speed"].is_object(), "{input}");
    // Another entity of the module has an operation of the same name.
    let mut driver = Driver::<Bus>::new("a");
    let started = driver.apply(Bus::of("a").start("a".into(), "b".into()));
    assert_eq!(started.expect("started"), "ab");
}
