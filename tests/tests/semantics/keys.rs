//! Outcomes that are not known, and the keys that settle them.

use super::*;

#[tokio::test]
async fn an_unknown_outcome_is_called_unknown_and_the_key_settles_it() {
    for (fault, is_kept) in [(Fault::LoseAndPoison, false), (Fault::KeepAndPoison, true)] {
        let world = World::new();
        let node = world.start().await;
        let append = |node: &Node, key: &str| {
            node.entity::<Journal>("a").append(1).idempotency_key(key.to_owned())
        };
        append(&node, "first").await.expect("a call");
        world.disk.inject(fault);
        let error = append(&node, "second").await.expect_err("poisoned");
        assert_eq!(kind(&error), Some(ErrorKind::Unknown));
        assert!(matches!(node.failed().await, stead::Fatal::Poisoned(_)));
        assert!(node.ready().await.is_err());
        assert!(append(&node, "third").await.is_err(), "a poisoned node acknowledges nothing");
        world.disk.crash();
        let node = world.start().await;
        assert_eq!(
            node.entity::<Journal>("a").entries().await.expect("read").len(),
            1 + usize::from(is_kept)
        );
        assert_eq!(append(&node, "second").await.expect("settled"), 2);
        assert_eq!(append(&node, "second").await.expect("the same"), 2);
        expect_entries(&node, "a", &[1, 1]).await;
    }
}

#[tokio::test]
async fn a_repeated_key_gets_the_stored_answer_and_another_body_is_refused() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    let other = node.entity::<Journal>("b");
    for _ in 0..3 {
        assert_eq!(journal.append(5).idempotency_key("k").await.expect("a call"), 1);
        journal.append(6).idempotency_key("s").signal().await.expect("a signal");
        journal.refuse(0).idempotency_key("r").await.expect_err("rejected");
    }
    assert_eq!(other.append(9).idempotency_key("k").await.expect("another entity"), 1);
    let error = journal.append(7).idempotency_key("k").await.expect_err("another body");
    assert_eq!(kind(&error), Some(ErrorKind::Conflict));
    let late = journal.append(6).idempotency_key("s").after(Duration::from_secs(9));
    let error = late.signal().await.expect_err("another delay");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    expect_entries(&node, "a", &[5, 6]).await;
    world.disk.crash();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    assert_eq!(journal.append(5).idempotency_key("k").await.expect("after a crash"), 1);
    journal.append(6).idempotency_key("s").signal().await.expect("after a crash");
    expect_entries(&node, "a", &[5, 6]).await;
}

#[tokio::test]
async fn repeats_that_overlap_join_the_first() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    world.disk.stall();
    let calls: Vec<_> = (0..8)
        .map(|_| tokio::spawn(journal.append(5).idempotency_key("k").into_future()))
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.disk.resume();
    for call in calls {
        assert_eq!(call.await.expect("joined").expect("a call"), 1);
    }
    expect_entries(&node, "a", &[5]).await;
}
