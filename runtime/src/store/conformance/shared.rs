//! The obligations of a [`SharedStore`].

use std::{sync::Arc, time::Duration};

use super::{id, state};
use crate::{
    clock,
    store::{
        Batch, CommitOutcome, Fence, TypedReads as _, Write,
        shared::{ClusterState, MemberError, Ownership, Registration, SharedStore},
    },
};

/// How long leases last in these checks.
const LEASE: Duration = Duration::from_millis(800);
/// More than a lease.
const LONGER: Duration = Duration::from_millis(1_200);

/// Runs every check, each with names of its own on the same store.
///
/// # Panics
/// With the first obligation that is broken.
pub async fn shared_suite<S: SharedStore>(store: S) {
    let store: Arc<dyn SharedStore> = Arc::new(store);
    a_name_is_held_while_its_lease_lasts(&store).await;
    a_lease_that_ran_out_is_not_renewed(&store).await;
    only_free_partitions_are_taken_and_epochs_grow(&store).await;
    who_was_evicted_can_do_nothing_more(&store).await;
    a_partition_is_given_up_by_its_owner_only(&store).await;
}

fn node(name: &str) -> Registration {
    Registration {
        name: name.into(),
        address: format!("{name}:1").into(),
        weight: 2,
        types: vec!["counter".into(), "log".into()],
        lease: LEASE,
        secret: b"secret".to_vec(),
    }
}

async fn join(store: &Arc<dyn SharedStore>, name: &str) -> u64 {
    store.join(node(name)).await.expect("the name is free").incarnation
}

async fn view(store: &Arc<dyn SharedStore>) -> ClusterState {
    store.view().await.expect("readable")
}

async fn owned(store: &Arc<dyn SharedStore>, partition: u16) -> Ownership {
    view(store).await.partitions[usize::from(partition)]
}

async fn commit(
    store: &Arc<dyn SharedStore>,
    incarnation: u64,
    number: u64,
    writes: Vec<Write>,
) -> CommitOutcome {
    let fence = Fence { incarnation, lane: 0, number };
    let time = store.opened().time;
    store
        .commit(Batch {
            fence,
            owner: "suite".into(),
            time,
            is_clean: false,
            is_buffered: false,
            writes,
        })
        .await
}

async fn a_name_is_held_while_its_lease_lasts(store: &Arc<dyn SharedStore>) {
    let before = view(store).await.membership;
    let first = join(store, "held").await;
    let refused = store.join(node("held")).await.expect_err("the name is held");
    let MemberError::Held { incarnation, left } = refused else { panic!("{refused:?}") };
    assert_eq!(incarnation, first, "who holds a name is told");
    assert!(left > Duration::ZERO && left <= LEASE, "and for how much longer: {left:?}");
    let stranger = Registration { secret: b"another".to_vec(), ..node("stranger") };
    let refused = store.join(stranger).await;
    assert_eq!(refused, Err(MemberError::Stranger("held".into())), "who has another secret");
    let seen = view(store).await;
    assert!(seen.membership > before, "a join raises the version of the membership");
    let member = seen.member(first).expect("it has joined");
    assert_eq!((&*member.name, &*member.address, member.weight), ("held", "held:1", 2));
    assert_eq!(member.types, ["counter", "log"], "what a node serves is told");
    assert!(!member.is_leaving);
    store.announce_leave(first).await.expect("a member");
    assert!(view(store).await.member(first).is_some_and(|member| member.is_leaving));
    clock::sleep(LONGER).await;
    let second = join(store, "held").await;
    assert!(second > first, "incarnations grow");
    assert!(view(store).await.member(first).is_none(), "who held the name before is gone");
    store.leave(second).await.expect("a member");
    assert_eq!(store.leave(second).await, Err(MemberError::Lost), "a member leaves once");
}

async fn a_lease_that_ran_out_is_not_renewed(store: &Arc<dyn SharedStore>) {
    let member = join(store, "late").await;
    let mut last = store.renew(member).await.expect("in time").time;
    for _ in 0..3 {
        clock::sleep(LEASE / 2).await;
        let renewed = store.renew(member).await.expect("each renewal counts anew");
        assert!(renewed.time > last, "the store's clock goes on");
        last = renewed.time;
    }
    clock::sleep(LONGER).await;
    assert_eq!(store.renew(member).await, Err(MemberError::Lost), "it came late");
    assert_eq!(store.renew(member).await, Err(MemberError::Lost), "and stays lost");
    let other = join(store, "other").await;
    let seen = store.renew(other).await.expect("in time");
    assert!(seen.has_expired, "others are told that a lease has run out");
    assert_eq!(store.evict(member).await, Ok(true));
    assert!(!store.renew(other).await.expect("in time").has_expired);
    store.leave(other).await.expect("a member");
}

async fn only_free_partitions_are_taken_and_epochs_grow(store: &Arc<dyn SharedStore>) {
    let (one, other) = (join(store, "one").await, join(store, "other").await);
    let before = view(store).await;
    store.acquire(one, vec![1, 2]).await.expect("a member");
    store.acquire(other, vec![2, 3]).await.expect("a member");
    let after = view(store).await;
    let owners = [1, 2, 3].map(|partition: usize| after.partitions[partition].owner);
    assert_eq!(owners, [Some(one), Some(one), Some(other)]);
    assert!(after.partitions[1].epoch > before.partitions[1].epoch, "a new owner, a new epoch");
    let renewed = store.renew(one).await.expect("in time");
    assert_eq!(renewed.ownership, after.ownership(), "what renewals tell is what a view shows");
    assert_eq!(renewed.membership, after.membership);
    store.leave(one).await.expect("a member");
    let left = owned(store, 1).await;
    assert_eq!(left.owner, None, "who leaves owns nothing");
    assert!(left.epoch > after.partitions[1].epoch);
    store.leave(other).await.expect("a member");
}

async fn who_was_evicted_can_do_nothing_more(store: &Arc<dyn SharedStore>) {
    let member = join(store, "dead").await;
    store.acquire(member, vec![4]).await.expect("a member");
    let before = view(store).await;
    assert_eq!(store.evict(member).await, Ok(false), "its lease has not run out");
    let put = vec![Write::PutState(id("evicted"), state(1))];
    assert_eq!(commit(store, member, 1, put).await, CommitOutcome::Committed);
    clock::sleep(LONGER).await;
    assert_eq!(store.evict(member).await, Ok(true));
    assert_eq!(store.evict(member).await, Ok(false), "once");
    let after = view(store).await;
    assert!(after.membership > before.membership);
    let free = after.partitions[4];
    assert_eq!((free.owner, free.was_unclean), (None, true), "it lost what it owned");
    assert!(free.epoch > before.partitions[4].epoch);
    let put = vec![Write::PutState(id("evicted"), state(2))];
    assert_eq!(commit(store, member, 2, put).await, CommitOutcome::Fenced, "its lane is closed");
    assert_eq!(store.renew(member).await, Err(MemberError::Lost));
    assert_eq!(store.acquire(member, vec![4]).await, Err(MemberError::Lost));
    assert_eq!(owned(store, 4).await, free, "nothing was taken");
    let kept = store.load(id("evicted")).await.expect("readable").expect("committed before");
    assert_eq!(kept.head.revision, 1);
}

async fn a_partition_is_given_up_by_its_owner_only(store: &Arc<dyn SharedStore>) {
    let (owner, other) = (join(store, "owner").await, join(store, "other").await);
    store.acquire(owner, vec![5]).await.expect("a member");
    let taken = owned(store, 5).await;
    let foreign = vec![Write::PutState(id("foreign"), state(1)), Write::FreePartition(5)];
    let outcome = commit(store, other, 1, foreign).await;
    assert!(matches!(outcome, CommitOutcome::Unavailable(_)), "not its own: {outcome:?}");
    let loaded = store.load(id("foreign")).await.expect("readable");
    assert_eq!(loaded, None, "a refused batch writes nothing");
    assert_eq!(owned(store, 5).await, taken);
    assert_eq!(
        commit(store, owner, 1, vec![Write::FreePartition(5)]).await,
        CommitOutcome::Committed
    );
    let given = owned(store, 5).await;
    assert_eq!((given.owner, given.was_unclean), (None, false), "it was given up in order");
    assert!(given.epoch > taken.epoch);
    store.acquire(other, vec![5]).await.expect("a member");
    assert_eq!(owned(store, 5).await.owner, Some(other));
    let fork = vec![Write::PutState(id("chain"), state(2))];
    let outcome = commit(store, other, 1, fork).await;
    assert!(
        matches!(outcome, CommitOutcome::Unavailable(_)),
        "a state follows the stored one: {outcome:?}"
    );
    for member in [owner, other] {
        store.leave(member).await.expect("a member");
    }
}
