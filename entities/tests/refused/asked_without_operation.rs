use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{Context, Layout, entity};

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Counter {
    value: i64,
}

#[entity(name = "counter")]
impl Counter {
    pub fn add(&mut self, amount: i64) -> i64 {
        self.value += amount;
        self.value
    }

    pub fn ask(&mut self, ctx: &mut Context) {
        let then = Self::of(ctx.key()).add(1);
        ctx.ask(Self::of("other").add(5), then);
    }
}

fn main() {}
