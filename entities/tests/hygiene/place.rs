//! Where an entity stands: behind a path or an alias, in a function, written by a macro, configured.

use stead_entities::testing::Driver;

/// Entities that are named by a path or an alias, that have parameters, or that a macro writes.
mod elsewhere {
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};
    use stead_entities::{Layout, entity};

    pub mod inner {
        #[derive(
            Debug,
            Clone,
            Default,
            serde::Serialize,
            serde::Deserialize,
            schemars::JsonSchema,
            stead_entities::Layout,
        )]
        pub struct Gate {
            pub(super) open: u32,
        }

        #[derive(
            Debug,
            Clone,
            Default,
            serde::Serialize,
            serde::Deserialize,
            schemars::JsonSchema,
            stead_entities::Layout,
        )]
        pub struct Gauge<U> {
            pub(super) unit: U,
        }
    }

    #[entity(name = "gate")]
    impl inner::Gate {
        pub fn push(&mut self, by: u32, more: u32) -> inner::Gate {
            self.open += by + more;
            self.clone()
        }

        pub fn same(&self, one: Self) -> Self {
            one
        }

        pub(super) fn shut(&mut self) {
            self.open = 0;
        }

        pub fn open(&self) -> u32 {
            self.open
        }
    }

    pub type Meter = inner::Gauge<i64>;

    #[entity(name = "meter")]
    impl Meter {
        pub fn read(&mut self, unit: i64, more: i64) -> i64 {
            self.unit += unit + more;
            self.unit
        }
    }

    #[entity(name = "gauge")]
    impl inner::Gauge<String>
    where
        String: Clone,
    {
        pub fn read(&mut self, unit: String, more: String) -> String
        where
            String: Clone,
        {
            self.unit = unit + &more;
            self.unit.clone()
        }
    }

    macro_rules! tally {
        ($name:ident, $text:literal, $of:ty, $answer:ty) => {
            #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
            pub struct $name {
                all: Vec<$of>,
            }

            #[entity(name = $text)]
            impl $name {
                pub fn put(&mut self, state: $of, ctx: $of) -> $answer {
                    self.all.extend([state, ctx]);
                    Ok(self.all.len())
                }
            }
        };
    }
    tally!(Numbers, "numbers", i64, Result<usize, stead_entities::Rejection>);
}

/// Methods and an entity that are configured away, or twice.
mod configured {
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};
    use stead_entities::{Layout, entity};

    #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    pub struct Fan {
        speed: i64,
    }

    #[entity(name = "fan")]
    impl Fan {
        #[cfg(any())]
        pub fn set(&mut self, missing: Missing, more: Missing) -> Missing {
            missing
        }

        #[cfg(test)]
        pub fn set(&mut self, speed: i64, more: i64) -> i64 {
            self.speed = speed + more;
            self.speed
        }

        #[cfg_attr(all(), cfg(any()))]
        pub fn missing(&mut self, missing: Missing) -> Missing {
            missing
        }

        #[cfg_attr(all(), doc = "Shown.", inline)]
        pub fn speed(&self) -> i64 {
            self.speed
        }
    }

    #[entity(name = "missing")]
    #[cfg(any())]
    impl Missing {
        pub fn missing(&mut self, missing: Missing) -> Missing {
            missing
        }
    }
}

#[test]
fn an_entity_may_be_named_by_a_path_or_an_alias_and_have_parameters() {
    use elsewhere::{Meter, Numbers, inner};
    let (gate, mut driver) = (inner::Gate::of("a"), Driver::<inner::Gate>::new("a"));
    driver.apply(gate.push(1, 2)).expect("pushed");
    driver.query(gate.same(inner::Gate::default())).expect("the same");
    assert_eq!(driver.query(gate.open()).expect("open"), 3);
    driver.apply(gate.shut()).expect("shut");
    let mut driver = Driver::<Meter>::new("a");
    assert_eq!(driver.apply(Meter::of("a").read(1, 2)).expect("read"), 3);
    let mut driver = Driver::<inner::Gauge<String>>::new("a");
    let read = driver.apply(inner::Gauge::<String>::of("a").read("a".into(), "b".into()));
    assert_eq!(read.expect("read"), "ab");
    let mut driver = Driver::<Numbers>::new("a");
    assert_eq!(driver.apply(Numbers::of("a").put(1, 2)).expect("put"), 2);
}

#[test]
fn an_entity_may_live_in_a_function() {
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};
    use stead_entities::{Layout, Rejection, entity};

    type Answer = Result<Light, Rejection>;

    #[derive(
        Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout,
    )]
    enum Light {
        #[default]
        Red,
        Green,
    }

    #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    struct Crossing {
        light: Light,
    }

    #[entity(name = "crossing")]
    impl Crossing {
        pub fn change(&mut self, from: Light, to: Light) -> Answer {
            if self.light != from {
                return Err(Rejection::new("another light"));
            }
            self.light = to;
            Ok(self.light)
        }

        pub(crate) fn stop(&mut self) {
            self.light = Light::Red;
        }
    }

    let mut driver = Driver::<Crossing>::new("a");
    let changed = driver.apply(Crossing::of("a").change(Light::Red, Light::Green));
    assert_eq!(changed.expect("changed"), Light::Green);
    driver.apply(Crossing::of("a").stop()).expect("stopped");
    assert_eq!(driver.state().light, Light::Red);
}

#[test]
fn what_is_configured_out_is_nowhere() {
    use configured::Fan;
    let mut driver = Driver::<Fan>::new("a");
    assert_eq!(driver.apply(Fan::of("a").set(1, 2)).expect("set"), 3);
    assert_eq!(driver.query(Fan::of("a").speed()).expect("speed"), 3);
    let names: Vec<_> = <Fan as stead_entities::Entity>::operations()
        .iter()
        .map(stead_entities::OperationType::name)
        .collect();
    assert_eq!(names, ["set", "speed"]);
}
