use stead_entities::{JsonSchema, Layout};

#[derive(Clone, Default, serde::Serialize, serde::Deserialize, JsonSchema, Layout)]
struct Counter {
    #[serde(rename(serialize = "written", deserialize = "read"))]
    value: i64,
}

fn main() {}
