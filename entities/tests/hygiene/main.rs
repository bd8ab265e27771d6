//! Entities with the names that a macro trips over: their arguments, methods, constants and types
//! are called what generated code could use itself. Every entity is run, not only compiled.

#![allow(unreachable_pub, missing_docs, reason = "`lints` turns them on where they are tested")]

mod answers;
mod arguments;
pub mod lints;
mod names;
mod place;
mod scope;

use stead_entities::{Entity, entity::EntityDescription};

/// The description of one public operation, as JSON.
fn described<E: Entity>(operation: &str) -> serde_json::Value {
    let description =
        serde_json::to_value(EntityDescription::of::<E>(Default::default())).expect("JSON");
    let all = description["operations"].as_array().expect("a list").clone();
    all.into_iter().find(|one| one["name"] == operation).expect("an operation of this name")
}

/// Runs what awaits nothing.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("this awaits"),
    }
}
