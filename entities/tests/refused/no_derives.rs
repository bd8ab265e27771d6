use stead_entities::entity;

struct Counter {
    value: i64,
}

#[entity(name = "counter")]
impl Counter {
    pub fn value(&self) -> i64 {
        self.value
    }
}

fn main() {}
