use std::collections::BTreeMap;

use stead_entities::{JsonSchema, Layout};

/// A newtype of text may be a key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize, JsonSchema, Layout)]
struct Name(String);

/// A pair may not.
#[derive(Clone, Default, serde::Serialize, serde::Deserialize, JsonSchema, Layout)]
struct Board {
    players: BTreeMap<Name, u32>,
    fields: Vec<Option<BTreeMap<(u8, u8), u32>>>,
}

fn main() {}
