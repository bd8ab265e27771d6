use serde::{Deserialize, Serialize};
use stead_entities::Layout;

#[derive(Serialize, Deserialize, Layout)]
struct Account {
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
}

#[derive(Serialize, Deserialize, Layout)]
#[serde(tag = "kind")]
enum Shape {
    Round { radius: u32 },
}

fn main() {}
