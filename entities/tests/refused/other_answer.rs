use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{Answer, Context, Layout, entity};

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
        let then = Self::of(ctx.key()).on_added();
        ctx.ask(Self::of("other").add(5), then);
    }

    pub(crate) fn on_added(&mut self, answer: Answer<String>) {
        self.value = answer.map_or(0, |text| text.len() as i64);
    }
}

fn main() {}
