use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{Layout, entity};

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Counter {
    value: i64,
}

#[entity(name = "counter")]
impl Counter {
    pub fn add(&mut self, (one, two): (i64, i64)) {
        self.value += one + two;
    }
}

fn main() {}
