//! Every operation is applied once, and every answer is true.

use super::{super::turn::Halt, *};

#[test]
fn a_call_is_answered_by_its_write_group_and_not_before() {
    let mut bench = Bench::new();
    let waiting = bench.call("a", "append", "1");
    bench.answer();
    assert_eq!(bench.groups.len(), 1);
    let group = &bench.groups[0];
    assert_eq!((group.writes.len(), group.replies.len(), group.number), (1, 1, 1));
    let committed = bench.commit();
    assert!(matches!(answer(told(waiting)), Some(Response::Replied(json)) if json == b"1"));
    bench.step(committed);
}

#[test]
fn a_delayed_signal_that_is_due_already_is_applied_once() {
    for operation in ["fetch", "append", "fail_first"] {
        *FAILURES.lock().unwrap_or_else(PoisonError::into_inner) =
            u32::from(operation == "fail_first");
        let mut bench = Bench::new();
        let due = Some(bench.now);
        bench.send("a", Sent { due, ..sent(operation, "1") });
        bench.settle();
        bench.advance(1);
        bench.settle();
        assert_eq!(bench.entries("a"), [1], "{operation}");
        assert_eq!((bench.rows(Table::Inbox), bench.rows(Table::Due)), (0, 0));
    }
}

#[test]
fn what_is_accepted_and_applied_in_one_write_group_leaves_no_row() {
    let mut bench = Bench::new();
    bench.call("a", "fetch", "1");
    bench.answer();
    bench.flush();
    assert_eq!(bench.starts.len(), 1);
    // Behind the busy entity; two write groups are under way, so the third signal is in the open one.
    for entry in 2..5 {
        bench.signal("a", "append", &entry.to_string());
    }
    let back = bench.finish();
    bench.step(back);
    bench.settle();
    assert_eq!(bench.entries("a"), [1, 2, 3, 4]);
    assert_eq!(bench.rows(Table::Inbox), 0);
}

#[test]
fn a_call_that_failed_leaves_its_key_free() {
    let mut bench = Bench::new();
    let first = bench.keyed("fetch", "1", "k");
    bench.answer();
    bench.flush();
    let start = bench.starts.pop_front().expect("started");
    let error = Error::new(ErrorKind::Deadline, "too long");
    let term = bench.partition.term();
    let returned = Returned { id: start.id, run: start.run, result: Err(Halt::Failed(error)) };
    bench.step([Input::Returned(term, Box::new(returned))]);
    let joined = bench.keyed("fetch", "1", "k");
    bench.flush();
    assert_eq!(kind(told(first)), Some(ErrorKind::Deadline));
    assert_eq!(kind(told(joined)), Some(ErrorKind::Deadline), "who joined hears the same");
    let again = bench.keyed("fetch", "1", "k");
    bench.settle();
    assert!(
        matches!(answer(told(again)), Some(Response::Replied(json)) if json == b"1"),
        "it runs again"
    );
    assert_eq!(bench.rows(Table::Idempotency), 1);
}

#[test]
fn what_is_stored_is_never_said_to_be_not_applied() {
    let mut bench = Bench::new();
    let waiting = bench.keyed("fetch", "1", "k");
    bench.answer();
    bench.flush();
    let joined = bench.keyed("fetch", "1", "k");
    bench.signal("b", "append", "1");
    bench.answer();
    bench.refuse(&Error::new(ErrorKind::Full, "no room"));
    assert_eq!(kind(told(waiting)), Some(ErrorKind::Unknown));
    assert_eq!(kind(told(joined)), Some(ErrorKind::Unknown));
    bench.settle();
    assert_eq!(bench.entries("a"), [1], "it is applied all the same");
}

#[test]
fn a_full_disk_refuses_writes_and_answers_queries() {
    let mut bench = Bench::new();
    bench.call("a", "remind_once", "1");
    bench.settle();
    bench.has_room = false;
    bench.advance(20);
    let refused = bench.call("a", "append", "2");
    assert_eq!(bench.entries("a"), Vec::<u32>::new(), "a due reminder waits");
    assert_eq!(kind(told(refused)), Some(ErrorKind::Full));
    assert!(bench.groups.is_empty(), "nothing is tried");
    bench.has_room = true;
    bench.advance(1);
    bench.settle();
    assert_eq!(bench.entries("a"), [1], "it goes on by itself");
}

#[test]
fn a_dead_letter_is_replayed_once() {
    let mut bench = Bench::new();
    let letter = crate::store::tables::dead_letters::DeadLetterId {
        partition: 0,
        is_rejection: false,
        number: 1,
    };
    let replay = || Sent { replays: Some(letter), ..sent("append", "1") };
    bench.send("a", replay());
    let again = bench.send("a", replay());
    bench.settle();
    assert_eq!(kind(told(again)), Some(ErrorKind::NotFound));
    assert_eq!(bench.entries("a"), [1]);
}

#[test]
fn a_row_that_was_delivered_twice_is_applied_once() {
    let mut bench = Bench::new();
    let key = crate::store::tables::inbox::InboxKey {
        partition: 0,
        receiver: id("a"),
        sender: "log/b".into(),
        generation: 5,
        revision: 1,
        index: 0,
    };
    let record = crate::store::tables::inbox::InboxRecord::signal(
        1,
        "append".into(),
        b"1".to_vec(),
        bench.now,
    );
    // As the sender's commit wrote it.
    bench.groups.push_back(WriteGroup {
        term: 1,
        writes: vec![crate::store::Write::Accept(key.clone(), record.clone())],
        ..WriteGroup::default()
    });
    bench.flush();
    let deliver =
        || Input::Deliver(Some(Box::new(Delivery::Signal(key.clone(), record.clone()))), LINK);
    bench.step([deliver(), deliver()]);
    bench.settle();
    assert_eq!(bench.entries("a"), [1]);
}

#[test]
fn a_discarded_turn_restores_the_state_before_it_which_is_not_durable_yet() {
    let mut bench = Bench::new();
    bench.call("a", "append", "1");
    bench.answer();
    // The first turn is with the committer, and nothing of it in the store.
    let failed = bench.call("a", "explode", "");
    bench.call("a", "append", "2");
    bench.settle();
    assert_eq!(kind(told(failed)), Some(ErrorKind::Internal));
    assert_eq!(bench.entries("a"), [1, 2]);
}

#[test]
fn a_failed_signal_is_tried_again_though_nothing_else_happens() {
    let mut bench = Bench::new();
    bench.call("a", "append", "1");
    bench.settle();
    bench.signal("a", "explode", "");
    let retry = bench.now + Duration::from_millis(100);
    assert_eq!(bench.wake_at, retry, "asked for in the step that failed");
    assert!(!bench.groups.is_empty(), "before its record is durable");
}

#[test]
fn news_of_a_commit_wakes_only_a_partition_that_waits_for_it() {
    let mut bench = Bench::new();
    bench.call("a", "append", "1");
    bench.settle();
    bench.call("a", "append", "2");
    assert!(!bench.partition.waits_for_commit(), "the committer answers by itself");
    bench.signal("a", "append", "3");
    bench.signal("a", "append", "4");
    assert!(bench.partition.waits_for_commit(), "the third write group needs room");
    bench.settle();
    assert!(!bench.partition.waits_for_commit());
}

/// The results of the calls of the next write group, in the order of their turns.
fn results(bench: &mut Bench) -> Vec<u32> {
    let replies = bench.groups.front().into_iter().flat_map(|group| &group.replies);
    let results = replies.map(|(_, told)| match told {
        Ok(Response::Replied(json)) => serde_json::from_slice(json).expect("a number"),
        other => panic!("{other:?}"),
    });
    results.collect()
}

#[test]
fn a_busy_entity_shares_a_step_with_its_neighbours_until_the_step_is_long() {
    for is_slow in [false, true] {
        let mut bench = Bench::new();
        for key in ["a", "b"] {
            bench.call(key, "append", "0");
            bench.settle();
        }
        bench.is_slow = is_slow;
        let mut receivers = Vec::new();
        let keys = std::iter::repeat_n("a", 300).chain(["b"]);
        let arrivals: Vec<_> = keys
            .map(|key| {
                let (reply_to, receiver) = ReplySender::new(Duration::from_secs(30), None);
                receivers.push(receiver);
                arrival(key, Sent { is_call: true, ..sent("append", "1") }, reply_to)
            })
            .collect();
        bench.step(arrivals);
        let first: Vec<_> = (2..=65).collect();
        if is_slow {
            assert_eq!(results(&mut bench), first, "the rest is for other steps");
            bench.flush();
            let second: Vec<_> = [2].into_iter().chain(66..=129).collect();
            assert_eq!(results(&mut bench), second, "which begin with the neighbour");
        } else {
            let all: Vec<_> = first.into_iter().chain([2]).chain(66..=301).collect();
            assert_eq!(results(&mut bench), all, "the neighbour has its turn between");
        }
        for _ in 0..9 {
            bench.step([]);
            bench.settle();
        }
        let told: Vec<_> = receivers.into_iter().filter_map(told).collect();
        assert_eq!(told.len(), 301);
    }
}
