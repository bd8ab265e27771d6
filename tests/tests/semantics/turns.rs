//! Turns: what is answered is durable, what is discarded leaves nothing.

use super::*;

#[tokio::test]
async fn what_was_answered_survives_a_crash() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    assert_eq!(journal.append(1).await.expect("a call"), 1);
    journal.append(2).signal().await.expect("a signal");
    world.disk.crash();
    let node = world.start().await;
    expect_entries(&node, "a", &[1, 2]).await;
}

#[tokio::test]
async fn nothing_is_answered_before_it_is_durable() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("gate");
    journal.append(1).await.expect("a call");
    world.disk.stall();
    let call = tokio::spawn(journal.append(2).into_future());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let query = tokio::spawn(journal.entries().into_future());
    let rejected = tokio::spawn(journal.refuse(3).into_future());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!call.is_finished(), "a reply left before its commit");
    assert!(!rejected.is_finished(), "a rejection left before the turn it rests on");
    assert!(!query.is_finished(), "a query showed what was not durable");
    world.disk.resume();
    assert_eq!(call.await.expect("joined").expect("a call"), 2);
    assert!(rejected.await.expect("joined").is_err());
    assert_eq!(query.await.expect("joined").expect("a query"), [1, 2]);
}

#[tokio::test]
async fn a_discarded_turn_restores_the_state_before_it() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    world.disk.stall();
    let first = tokio::spawn(journal.append(1).into_future());
    let panicked = tokio::spawn(journal.explode(2).into_future());
    let rejected = tokio::spawn(journal.refuse(3).into_future());
    tokio::time::sleep(Duration::from_millis(50)).await;
    let second = tokio::spawn(journal.append(4).into_future());
    world.disk.resume();
    first.await.expect("joined").expect("a call");
    let error = panicked.await.expect("joined").expect_err("a panic");
    assert_eq!(kind(&error), Some(ErrorKind::Internal));
    let error = rejected.await.expect("joined").expect_err("a rejection");
    assert_eq!(error.rejection().map(Rejection::reason), Some("never"));
    second.await.expect("joined").expect("a call");
    expect_entries(&node, "a", &[1, 4]).await;
}

#[tokio::test]
async fn a_failed_batch_discards_everything_built_on_it() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    journal.append(1).await.expect("a call");
    for fault in [Fault::Refuse, Fault::Full] {
        world.disk.inject(fault);
        let error = journal.append(2).await.expect_err("refused");
        assert!(matches!(kind(&error), Some(ErrorKind::Unavailable | ErrorKind::Full)));
    }
    assert_eq!(journal.append(3).await.expect("the node goes on"), 2);
    expect_entries(&node, "a", &[1, 3]).await;
}

#[tokio::test]
async fn an_operation_that_awaits_is_a_turn_like_any_other() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    assert_eq!(journal.fetch(1).await.expect("a call"), 1);
    journal.fetch(2).signal().await.expect("a signal");
    assert_eq!(journal.append(3).await.expect("behind it"), 3);
    let error = journal.hang().await.expect_err("too long");
    assert_eq!(kind(&error), Some(ErrorKind::Deadline));
    expect_entries(&node, "a", &[1, 2, 3]).await;
    node.drain().await.expect("drained");
    assert!(world.disk.rows(Table::Inbox).is_empty());
}

#[tokio::test]
async fn damaged_state_is_never_replaced() {
    let world = World::new();
    let node = world.start().await;
    node.entity::<Journal>("a").append(1).await.expect("a call");
    node.entity::<Journal>("b").append(1).await.expect("a call");
    node.drain().await.expect("drained");
    let id = EntityId::new("journal", "a").expect("valid");
    world.disk.damage(&id, |bytes| bytes.truncate(bytes.len() - 1));
    let before = world.disk.rows(Table::States);
    let node = world.start().await;
    let error = node.entity::<Journal>("a").append(2).await.expect_err("damaged");
    assert_eq!(kind(&error), Some(ErrorKind::Corrupt));
    assert_eq!(world.disk.rows(Table::States), before, "its bytes stay as they are");
    assert_eq!(node.entity::<Journal>("b").append(2).await.expect("others go on"), 2);
}

#[tokio::test]
async fn a_thousand_callers_of_one_entity_lose_nothing() {
    let world = World::new();
    let node = world.start().await;
    let counter = node.entity::<Counter>("hot");
    let calls: Vec<_> = (0..1_000).map(|_| tokio::spawn(counter.add(1).into_future())).collect();
    let mut seen = Vec::new();
    for call in calls {
        seen.push(call.await.expect("joined").expect("a call"));
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=1_000).collect::<Vec<i64>>());
    assert!(world.disk.commits() < 1_000, "turns share commits");
}
