//! A policy has known words, at the place that they are for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{Layout, entity};

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Misplaced;

#[entity(name = "misplaced")]
impl Misplaced {
    #[operation(mailbox = 3)]
    pub fn one(&mut self) {}
}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Unknown;

#[entity(name = "unknown", timeout = 3)]
impl Unknown {}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Plain;

#[entity(name = "plain")]
impl Plain {
    #[operation(deadline = 30)]
    pub fn one(&mut self) {}
}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Helping;

#[entity(name = "helping")]
impl Helping {
    #[operation(retries = 1)]
    fn helper(&self) {}
}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Unsafe;

#[entity(name = "unsafe", durability = "none")]
impl Unsafe {}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Partly;

#[entity(name = "partly")]
impl Partly {
    #[operation(durability = "buffered")]
    pub fn one(&mut self) {}
}

fn main() {}
