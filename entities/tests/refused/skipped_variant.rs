use stead_entities::{JsonSchema, Layout, entity};

#[derive(Clone, Default, serde::Serialize, serde::Deserialize, JsonSchema, Layout)]
enum Status {
    #[default]
    New,
    #[serde(skip)]
    Draft,
    Approved,
}

#[derive(Clone, Default, serde::Serialize, serde::Deserialize, JsonSchema, Layout)]
struct Order {
    status: Status,
}

#[entity(name = "order")]
impl Order {
    pub fn approve(&mut self) {
        self.status = Status::Approved;
    }
}

fn main() {}
