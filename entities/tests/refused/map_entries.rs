use stead_entities::{JsonSchema, Layout, Log, Map};

/// Keys are scalars.
#[derive(Clone, Default, serde::Serialize, serde::Deserialize, JsonSchema, Layout)]
struct Pairs {
    by_pair: Map<(u8, u8), u32>,
}

/// A number that may not be finite is no key.
#[derive(Clone, Default, serde::Serialize, serde::Deserialize, JsonSchema, Layout)]
struct Floats {
    by_size: Option<Map<f64, u32>>,
}

/// Values have layouts.
#[derive(Clone, Default, serde::Serialize, serde::Deserialize, JsonSchema)]
struct NoLayout;

#[derive(Clone, Default, serde::Serialize, serde::Deserialize, JsonSchema, Layout)]
struct Values {
    all: Log<NoLayout>,
}

fn main() {}
