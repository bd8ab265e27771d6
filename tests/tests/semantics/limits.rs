//! What is too much, not allowed, or does not end.

use super::*;

#[tokio::test]
async fn a_full_mailbox_refuses_before_acceptance_and_drops_nothing() {
    let mut world = World::new();
    world.config.mailbox_max = 4;
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    let hanging = tokio::spawn(journal.hang().into_future());
    tokio::time::sleep(Duration::from_millis(30)).await;
    let mut accepted = Vec::new();
    let mut refused = 0;
    for entry in 0..10 {
        match journal.append(entry).signal().await {
            Ok(_) => accepted.push(entry),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Overloaded);
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && !accepted.is_empty());
    assert!(hanging.await.expect("joined").is_err());
    expect_entries(&node, "a", &accepted).await;
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_nothing() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    let hanging = tokio::spawn(journal.hang().into_future());
    tokio::time::sleep(Duration::from_millis(30)).await;
    let call = tokio::spawn(journal.append(1).into_future());
    tokio::time::sleep(Duration::from_millis(30)).await;
    call.abort();
    assert!(hanging.await.expect("joined").is_err());
    expect_entries(&node, "a", &[1]).await;
}

#[tokio::test]
async fn an_internal_operation_is_not_for_callers_outside() {
    let world = World::new();
    let node = world.start().await;
    let error = node.entity::<Journal>("a").hidden().await.expect_err("hidden");
    assert_eq!(kind(&error), Some(ErrorKind::NotFound));
}

/// Ends what blocks its thread also when the test fails.
struct LetGo;

impl Drop for LetGo {
    fn drop(&mut self) {
        LET_GO.store(true, Ordering::SeqCst);
    }
}

/// One test for everything about blocked threads, because what blocks its thread holds a thread until
/// it is let go.
#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn an_operation_that_blocks_its_thread_is_named_and_retired() {
    let _let_go = LetGo;
    let mut world = World::new();
    world.config.block_limit = Duration::from_secs(2);
    let node = world.start().await;
    node.entity::<Journal>("to").append(1).await.expect("a call");
    assert!(node.ready().await.is_ok());
    let error = node.entity::<Journal>("direct").block().await.expect_err("blocks");
    assert_eq!(kind(&error), Some(ErrorKind::Unknown), "told at the turn's deadline");
    assert!(node.ready().await.expect_err("not ready").contains("block of journal/direct"));
    let (world, node) = (World { disk: MemoryDisk::new(), ..world }, node);
    assert!(matches!(node.failed().await, stead::Fatal::Blocked(_)));

    let node = world.start().await;
    node.entity::<Journal>("to").append(1).await.expect("a call");
    node.entity::<Journal>("from").send_block("to".into()).await.expect("a call");
    let stead::Fatal::Blocked(name) = node.failed().await else { panic!("another reason") };
    assert_eq!(name, "block of journal/to");
    world.disk.crash();
    let node = world.start().await;
    expect_entries(&node, "to", &[1]).await;
    // Its commit is behind the one that retires the operation.
    assert_eq!(node.entity::<Journal>("to").append(2).await.expect("it goes on"), 2);
    assert_eq!(world.disk.rows(Table::DeadLetters).len(), 1, "retired after the restart");
    assert!(world.disk.rows(Table::Inbox).is_empty());
}
