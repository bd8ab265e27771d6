//! Signals between entities: once, in order, or a dead letter.

use super::*;

#[tokio::test]
async fn signals_between_entities_are_applied_once_and_in_order() {
    let world = World::new();
    let node = world.start().await;
    let scatter = node.entity::<Journal>("from").scatter("to".into(), 600);
    scatter.await.expect("a call");
    let all: Vec<u32> = (0..600).collect();
    expect_entries(&node, "to", &all).await;
    node.drain().await.expect("drained");
    world.disk.crash();
    assert!(world.disk.rows(Table::Inbox).is_empty(), "applied signals leave the inbox");
    let node = world.start().await;
    expect_entries(&node, "to", &all).await;
}

#[tokio::test]
async fn signals_of_a_committed_turn_survive_a_crash_before_delivery() {
    let world = World::new();
    let node = world.start().await;
    node.entity::<Journal>("from").scatter("to".into(), 3).await.expect("a call");
    // Nothing of the receiver is durable from here on; the rows of the inbox are.
    world.disk.stall();
    world.disk.crash();
    let node = world.start().await;
    expect_entries(&node, "to", &[0, 1, 2]).await;
}

#[tokio::test]
async fn a_failing_signal_keeps_its_place_and_ends_as_a_dead_letter() {
    let world = World::new();
    let node = world.start().await;
    node.entity::<Journal>("from").send_trouble("to".into()).await.expect("a call");
    let to = node.entity::<Journal>("to");
    assert_eq!(to.append(9).await.expect("others pass"), 1);
    until_true("the first is dead, and the next follows", async || {
        world.advance(1);
        to.entries().await.expect("a query").len() > 1
    })
    .await;
    expect_entries(&node, "to", &[9, 2]).await;
    assert_eq!(world.disk.rows(Table::DeadLetters).len(), 1);
    assert!(world.disk.rows(Table::Inbox).is_empty());
}
