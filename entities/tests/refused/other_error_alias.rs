use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{Layout, entity};

type Answer<T> = Result<T, String>;

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Counter {
    value: i64,
}

#[entity(name = "counter")]
impl Counter {
    pub fn add(&mut self, amount: i64) -> Answer<i64> {
        self.value += amount;
        Ok(self.value)
    }
}

fn main() {}
