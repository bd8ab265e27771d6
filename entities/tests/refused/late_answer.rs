use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{Answer, Layout, entity};

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Counter {
    value: i64,
}

#[entity(name = "counter")]
impl Counter {
    pub(crate) fn on_added(&mut self, order: u64, answers: Vec<Answer<i64>>) {
        self.value = order as i64 + answers.len() as i64;
    }
}

fn main() {}
