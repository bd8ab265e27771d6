use serde::{Deserialize, Serialize};
use stead_entities::Layout;

#[derive(Serialize, Deserialize)]
struct Money(i64);

#[derive(Serialize, Deserialize, Layout)]
struct Account {
    balance: Money,
}

fn main() {}
