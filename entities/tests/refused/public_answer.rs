use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{Answer, Layout, entity};

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Counter {
    value: i64,
}

#[entity(name = "counter")]
impl Counter {
    pub fn on_added(&mut self, answer: Answer<i64>) {
        self.value = answer.unwrap_or_default();
    }
}

fn main() {}
