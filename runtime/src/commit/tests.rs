//! The committer with a store in memory, and write groups made by hand.

use std::time::Duration;

use stead_entities::{EntityId, Timestamp};
use tokio::sync::watch;

use super::*;
use crate::{
    clock::ManualClock,
    lease::Lease,
    partition::reply::{ReplyReceiver, ReplySender, Response},
    store::{
        memory::{Fault, MemoryDisk, MemoryStore},
        shared::{Registration, SharedStore},
        tables::{
            Table,
            states::{StateHead, StateRecord},
        },
    },
};

fn group(term: u64, number: u64, follows: u64) -> (WriteGroup, ReplyReceiver) {
    let id = EntityId::new("counter", "a").expect("valid");
    let head = StateHead {
        version: 1,
        generation: 1,
        revision: follows + 1,
        follows,
        incarnation: 1,
        committed_at: Timestamp::default(),
    };
    let record = StateRecord::new(head, Vec::new(), vec![number as u8]);
    let (reply_to, waiting) = ReplySender::new(std::time::Duration::from_secs(9), None);
    let group = WriteGroup {
        term,
        number,
        writes: vec![Write::PutState(id, record)],
        replies: vec![(reply_to, Ok(Response::Done))],
        ..WriteGroup::default()
    };
    (group, waiting)
}

fn committer(store: Arc<MemoryStore>, number: u64, last_batch: u64) -> Committer {
    let clock = Arc::new(ManualClock::new(Timestamp::default()));
    let (fatal, _fatals) = watch::channel(None);
    let partitions: Arc<[Handle]> = Arc::new([Handle::new()]);
    let lease = Arc::new(Lease::for_ever());
    let incarnation = Incarnation { number, last_batch, lease, link: Arc::default() };
    Committer::new(
        store,
        clock,
        "t".into(),
        Arc::new(incarnation),
        (partitions, Arc::default()),
        fatal,
    )
}

#[tokio::test]
async fn a_write_group_that_was_built_on_a_refused_one_is_not_committed() {
    let disk = MemoryDisk::new();
    let store = Arc::new(disk.open().expect("readable"));
    let clock = Arc::new(ManualClock::new(Timestamp::default()));
    let (fatal, _fatals) = watch::channel(None);
    let partitions: Arc<[Handle]> = Arc::new([Handle::new()]);
    let incarnation = Arc::new(Incarnation {
        number: store.opened().incarnation,
        last_batch: store.opened().last_batch,
        lease: Arc::new(Lease::for_ever()),
        link: Arc::default(),
    });
    let mut committer =
        Committer::new(store, clock, "t".into(), incarnation, (partitions, Arc::default()), fatal);
    let (first, refused) = group(1, 1, 0);
    let (second, dropped) = group(1, 2, 1);
    disk.inject(Fault::Refuse);
    committer.commit(vec![first]).await;
    committer.commit(vec![second]).await;
    assert_eq!(refused.await.expect_err("refused").kind(), ErrorKind::Unavailable);
    assert_eq!(dropped.await.expect_err("dropped").kind(), ErrorKind::Unavailable);
    assert!(disk.rows(Table::States).is_empty(), "nothing of the term is stored");
    let (next, committed) = group(2, 1, 0);
    committer.commit(vec![next]).await;
    assert!(committed.await.is_ok(), "the next term goes on");
}

#[tokio::test]
async fn what_a_partition_does_after_it_was_given_up_is_never_committed() {
    let disk = MemoryDisk::new();
    let store = Arc::new(disk.share());
    let node = Registration {
        name: "a".into(),
        address: "a".into(),
        weight: 1,
        types: Vec::new(),
        lease: Duration::from_secs(9),
        secret: Vec::new(),
    };
    let joined = store.join(node).await.expect("the name is free");
    store.acquire(joined.incarnation, vec![0]).await.expect("it is free");
    let mut committer = committer(store, joined.incarnation, 0);
    committer.begun[0] = 1;
    let (done, freed) = oneshot::channel();
    committer.free(vec![(0, done)]).await;
    assert_eq!(freed.await, Ok(CommitOutcome::Committed));
    let (late, refused) = group(1, 1, 0);
    committer.commit(vec![late]).await;
    assert_eq!(refused.await.expect_err("refused").kind(), ErrorKind::Fenced);
    assert!(disk.rows(Table::States).is_empty());
}
