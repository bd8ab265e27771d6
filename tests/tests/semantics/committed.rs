//! Reads beside the order of an entity: at once, durable, and never behind what was acknowledged.

use stead::Client;

use super::*;

fn journal(key: &str) -> EntityId {
    EntityId::new("journal", key).expect("valid")
}

#[tokio::test]
async fn a_committed_read_waits_neither_for_an_operation_that_awaits_nor_for_a_long_mailbox() {
    let mut world = World::new();
    world.config.turn_deadline = Duration::from_secs(30);
    let node = world.start().await;
    let entity = node.entity::<Journal>("a");
    entity.append(1).await.expect("applied");
    let hanging = tokio::spawn(entity.hang().into_future());
    let begun = async || !world.disk.rows(Table::Inbox).is_empty();
    until_true("it hangs", begun).await;
    let waiting: Vec<_> = (0..100).map(|n| tokio::spawn(entity.append(n).into_future())).collect();
    let in_order = tokio::spawn(entity.entries().into_future());
    for _ in 0..10 {
        assert_eq!(entity.entries().committed().await.expect("a read"), [1]);
        let shown = node.committed_state_of(&journal("a")).await.expect("a read").expect("a state");
        assert_eq!(shown.revision, 1);
    }
    assert!(!in_order.is_finished() && waiting.iter().all(|it| !it.is_finished()));
    node.abort().await;
    hanging.abort();
}

#[tokio::test]
async fn a_committed_read_shows_nothing_before_it_is_durable_and_all_that_was_acknowledged() {
    let world = World::new();
    let node = world.start().await;
    let entity = node.entity::<Journal>("a");
    for n in 1..=20 {
        assert_eq!(entity.append(n).await.expect("applied"), n);
        let seen = entity.entries().committed().await.expect("a read");
        assert_eq!(seen.len(), n as usize, "what was acknowledged");
    }
    world.disk.stall();
    let held = tokio::spawn(entity.append(21).into_future());
    until_true("it was written", async || world.disk.commits() > 20).await;
    for _ in 0..10 {
        assert_eq!(entity.entries().committed().await.expect("a read").len(), 20);
    }
    world.disk.resume();
    held.await.expect("joined").expect("applied");
    assert_eq!(entity.entries().committed().await.expect("a read").len(), 21);
    node.abort().await;
}

#[tokio::test]
async fn a_committed_read_of_what_was_never_committed_is_as_one_in_order() {
    let world = World::new();
    let node = world.start().await;
    let entity = node.entity::<Journal>("a");
    assert_eq!(entity.entries().committed().await.expect("a read"), Vec::<u32>::new());
    assert_eq!(node.committed_state_of(&journal("a")).await.expect("a read"), None);
    entity.append(1).await.expect("applied");
    node.delete(&journal("a")).await.expect("deleted");
    assert_eq!(entity.entries().committed().await.expect("a read"), Vec::<u32>::new());
    assert_eq!(node.committed_state_of(&journal("a")).await.expect("a read"), None);
    // A stored one that makes no sense is said to be so, and one that was damaged is left alone.
    node.entity::<Journal>("b").append(1).await.expect("applied");
    world.disk.damage(&journal("b"), |bytes| bytes.truncate(3));
    let damaged = node.entity::<Journal>("b").entries().committed().await.expect_err("damaged");
    assert_eq!(kind(&damaged), Some(ErrorKind::Corrupt));
    node.abort().await;
}

#[tokio::test]
async fn a_committed_read_over_http_is_named_in_the_query() {
    let world = World::new();
    let node = world.start().await;
    let (url, served) = serve(node.router()).await;
    let client = Client::new(&url).expect("a URL");
    client.entity::<Journal>("a").append(5).await.expect("applied");
    let seen = client.entity::<Journal>("a").entries().committed().await.expect("a read");
    assert_eq!(seen, [5]);
    let get = async |path: &str| {
        let response = reqwest::get(format!("{url}/v1/entities/{path}")).await.expect("answered");
        (response.status().as_u16(), response.text().await.expect("a body"))
    };
    let (status, shown) = get("journal/a?read=committed").await;
    assert!(status == 200 && shown.contains("\"revision\":1"), "{shown}");
    assert_eq!(get("journal/never?read=committed").await.0, 404);
    let (status, told) = get("journal/a/queries/entries?read=latest").await;
    assert!(status == 400 && told.contains("`committed`"), "{told}");
    served.abort();
    node.abort().await;
}
