//! An index is of one scalar that follows from the state alone.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{Context, Layout, entity};

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Lines {
    lines: Vec<String>,
}

#[entity(name = "lines", index(lines: Vec<String>))]
impl Lines {}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Pair {
    pair: (i64, i64),
}

#[entity(name = "pair")]
impl Pair {
    #[index]
    fn both(&self) -> (i64, i64) {
        self.pair
    }
}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Asking;

#[entity(name = "asking")]
impl Asking {
    #[index]
    fn since(&self, ctx: &Context) -> i64 {
        ctx.now().as_micros()
    }
}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Borrowing {
    name: String,
}

#[entity(name = "borrowing")]
impl Borrowing {
    #[index]
    fn name(&self) -> &str {
        &self.name
    }
}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Other {
    name: String,
}

#[entity(name = "other", index(name: i64))]
impl Other {}

fn main() {}
