use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{Layout, entity};

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
struct Rejection;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
struct Refusal;

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Counter {
    value: i64,
}

#[entity(name = "counter")]
impl Counter {
    pub fn add(&mut self, amount: i64) -> Result<i64, Rejection> {
        self.value += amount;
        Ok(self.value)
    }

    pub fn value(&self) -> Result<i64, Refusal> {
        Ok(self.value)
    }
}

fn main() {}
