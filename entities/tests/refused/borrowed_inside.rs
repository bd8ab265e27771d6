use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{Layout, entity};

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Counter {
    value: i64,
}

#[entity(name = "counter")]
impl Counter {
    pub fn parse(&mut self, texts: Vec<Option<&str>>) {
        self.value = texts.len() as i64;
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Names {
    first: Option<String>,
}

#[entity(name = "names")]
impl Names {
    pub fn first(&self) -> Option<&str> {
        self.first.as_deref()
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Texts {
    first: String,
}

#[entity(name = "texts")]
impl Texts {
    pub fn first(&self) -> std::borrow::Cow<'_, str> {
        (&self.first).into()
    }
}

fn main() {}
