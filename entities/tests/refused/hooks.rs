//! The methods that a type names for the runtime to call have the form that it calls.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{DeadLetter, Layout, entity};

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Public;

#[entity(name = "public", on_dead_letter = heard)]
impl Public {
    pub fn heard(&mut self, _letter: DeadLetter) {}
}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Missing;

#[entity(name = "missing", on_activate = ready)]
impl Missing {}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Reading;

#[entity(name = "reading", on_activate = ready)]
impl Reading {
    fn ready(&self) {}
}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Other;

#[entity(name = "other", on_dead_letter = heard)]
impl Other {
    pub(crate) fn heard(&mut self, _letter: String) {}
}

fn main() {}
