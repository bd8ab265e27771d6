//! Very much that is due, delayed or dead at one time: bounded in memory, complete, and once.

use super::*;
use crate::store::tables::{
    dead_letters::{Cause, DeadLetter},
    reminders::Slot,
};

/// Sends `count` delayed signals for one instant.
fn delay(bench: &mut Bench, key: &str, entries: std::ops::Range<u32>, after: Duration) {
    for entry in entries {
        let due = Some(bench.now + after);
        bench.send(key, Sent { due, ..sent("append", &entry.to_string()) });
        if entry % 500 == 0 {
            bench.settle();
        }
    }
    bench.settle();
}

fn sorted(mut entries: Vec<u32>) -> Vec<u32> {
    entries.sort_unstable();
    entries
}

fn letters(bench: &Bench) -> Vec<DeadLetter> {
    let filter = crate::store::DeadLetterFilter::default();
    let page = ready(bench.store.dead_letters(filter, None, 10_000)).expect("readable");
    page.rows.into_iter().map(|(_, letter)| letter).collect()
}

fn delete(bench: &mut Bench, key: &str) -> ReplyReceiver {
    bench.send(key, Sent { action: Some(Action::Delete), ..sent("entries", "") })
}

#[test]
fn what_is_due_at_one_instant_is_read_page_by_page_and_no_row_twice() {
    const COUNT: u32 = 3_000;
    let mut bench = Bench::new();
    delay(&mut bench, "a", 0..COUNT, Duration::from_secs(5));
    let mut bench = bench.crashed();
    bench.permits = Arc::new(Semaphore::new(64));
    bench.now = bench.now + Duration::from_secs(10);
    bench.step([Input::Tick]);
    let (mut scans, mut most) = (0, 0);
    for _ in 0..10_000 {
        scans += bench.reads.iter().filter(|read| matches!(read, Output::Due(..))).count();
        // Flushes are slow: what has fired stays in the store for many steps.
        let mut inputs = bench.read();
        if inputs.is_empty() {
            inputs.extend(bench.commit());
        }
        if inputs.is_empty() {
            break;
        }
        bench.step(inputs);
        most = most.max(bench.partition.reminders.in_memory());
    }
    bench.settle();
    let entries = bench.entries("a");
    assert_eq!(sorted(entries), (0..COUNT).collect::<Vec<_>>());
    assert_eq!(bench.rows(Table::Due), 0);
    assert!(scans <= COUNT as usize / 100 + 5, "{scans} scans read rows again and again");
    assert!(most <= 512 + 64, "{most} rows in memory");
}

#[test]
fn what_is_set_beyond_the_window_stays_on_disk_and_fires() {
    const COUNT: u32 = 4_000;
    let mut bench = Bench::new();
    // Within the time that the window covers, so that each is noted as it is set.
    delay(&mut bench, "a", 0..COUNT, Duration::from_secs(5));
    assert!(bench.partition.reminders.in_memory() <= 512, "the rest is on disk");
    bench.advance(6);
    bench.settle();
    let entries = bench.entries("a");
    assert_eq!(sorted(entries), (0..COUNT).collect::<Vec<_>>());
}

#[test]
fn what_is_set_while_the_window_is_full_is_not_missed() {
    let mut bench = Bench::new();
    let mut expected = Vec::new();
    for round in 0..40_u32 {
        let entries = round * 100..(round + 1) * 100;
        expected.extend(entries.clone());
        // Later ones before earlier ones, unflushed and flushed, while scans are under way.
        let after = Duration::from_millis(u64::from(4_000 - (round % 7) * 500));
        for entry in entries {
            let due = Some(bench.now + after);
            bench.send("a", Sent { due, ..sent("append", &entry.to_string()) });
        }
        match round % 3 {
            0 => bench.answer(),
            1 => bench.flush(),
            _ => bench.settle(),
        }
        bench.now = bench.now + Duration::from_millis(200);
        bench.step([Input::Tick]);
    }
    bench.settle();
    bench.advance(10);
    bench.settle();
    assert_eq!(sorted(bench.entries("a")), expected);
    assert_eq!(bench.rows(Table::Due), 0);
}

#[test]
fn what_fires_waits_for_permits_and_gives_them_back_when_it_is_durable() {
    let mut bench = Bench::new();
    bench.permits = Arc::new(Semaphore::new(16));
    for number in 0..100 {
        let due = Some(bench.now + Duration::from_secs(1));
        bench.send(&format!("k{number}"), Sent { due, ..sent("append", "1") });
    }
    bench.settle();
    bench.now = bench.now + Duration::from_secs(2);
    bench.step([Input::Tick]);
    for _ in 0..100 {
        assert!(bench.partition.reminders.fired_count() <= 16, "as many as there are permits");
        let mut inputs = bench.read();
        inputs.extend(bench.commit());
        bench.step(inputs);
        bench.step([Input::Tick]);
    }
    bench.settle();
    assert_eq!(bench.rows(Table::Due), 0, "all of them were applied");
    assert_eq!(bench.permits.available_permits(), 16, "and every permit was given back");
}

#[test]
fn a_deletion_with_very_many_delayed_signals_goes_step_by_step_and_none_is_applied() {
    let mut bench = Bench::new();
    bench.call("a", "append", "1");
    delay(&mut bench, "a", 0..2_000, Duration::from_secs(30));
    let deleted = delete(&mut bench, "a");
    // Until the deletion is answered, and no longer.
    for _ in 0..3 {
        let mut inputs = bench.read();
        inputs.extend(bench.commit());
        bench.step(inputs);
    }
    assert!(matches!(answer(told(deleted)), Some(Response::Done)));
    assert!(bench.rows(Table::Reminders) > 1_000, "most of them are removed behind it");
    // The next generation goes on meanwhile, with delayed signals of its own.
    let called = bench.call("a", "append", "7");
    let due = Some(bench.now + Duration::from_secs(30));
    let delayed = bench.send("a", Sent { due, ..sent("append", "8") });
    for _ in 0..3 {
        let mut inputs = bench.read();
        inputs.extend(bench.commit());
        bench.step(inputs);
    }
    assert!(matches!(answer(told(called)), Some(Response::Replied(json)) if json == b"1"));
    assert!(matches!(answer(told(delayed)), Some(Response::Scheduled(_))));
    assert!(bench.rows(Table::Reminders) > 1, "still not all of them are removed");
    // And a crash in the middle changes nothing.
    let mut bench = bench.crashed();
    bench.now = bench.now + Duration::from_secs(60);
    bench.step([Input::Tick]);
    bench.settle();
    assert_eq!(bench.entries("a"), [7, 8]);
    assert_eq!((bench.rows(Table::Reminders), bench.rows(Table::Inbox)), (0, 0));
    let letters = letters(&bench);
    assert!(letters.iter().all(|letter| letter.cause == Cause::Deleted));
    assert_eq!(letters.len(), 100, "the newest are kept, and push no failure out");
}

#[test]
fn a_turn_that_deletes_its_entity_leaves_what_it_sends_itself() {
    let mut bench = Bench::new();
    delay(&mut bench, "a", 0..1_500, Duration::from_secs(30));
    bench.call("a", "end_and_begin", "");
    bench.settle();
    bench.advance(60);
    bench.settle();
    assert_eq!(bench.entries("a"), [77], "what was delayed before is dead");
}

#[test]
fn dead_letters_are_kept_to_a_number_bytes_and_an_age() {
    let mut bench = Bench::new();
    bench.set(|config| {
        *config = Config {
            retries: 0,
            dead_letters_max: 20,
            rejections_max: 10,
            dead_letters_age: Duration::from_secs(3_600),
            ..Config::default()
        }
    });
    for _ in 0..50 {
        bench.signal("a", "explode", "");
    }
    bench.settle();
    assert_eq!(bench.rows(Table::DeadLetters), 20);
    let dropped = bench.dropped.load(std::sync::atomic::Ordering::Relaxed);
    assert!(dropped > 0, "what is dropped is counted");
    bench.set(|config| config.dead_letter_bytes_max = 1_000);
    bench.signal("a", "explode", "");
    bench.settle();
    let kept = bench.rows(Table::DeadLetters);
    assert!((1..20).contains(&kept), "{kept}");
    // Also those that an earlier incarnation left.
    let mut bench = bench.crashed();
    bench.set(|config| *config = Config { dead_letters_max: 2, ..Config::default() });
    bench.partition.restart(&Error::new(ErrorKind::Unavailable, "injected"));
    bench.step([]);
    bench.settle();
    assert_eq!(bench.rows(Table::DeadLetters), 2);
    bench.advance(40 * 86_400);
    bench.settle();
    assert_eq!(bench.rows(Table::DeadLetters), 0, "they are too old");
}

#[test]
fn a_replay_that_was_not_carried_out_can_be_repeated() {
    let mut bench = Bench::new();
    bench.set(|config| *config = Config { retries: 0, ..Config::default() });
    bench.signal("a", "explode", "");
    bench.settle();
    let (letter, _) = ready(bench.store.dead_letters(Default::default(), None, 9))
        .expect("readable")
        .rows
        .remove(0);
    let replay =
        |bench: &mut Bench| bench.send("a", Sent { replays: Some(letter), ..sent("append", "5") });
    // The entity is busy until the caller's deadline.
    bench.signal("a", "fetch", "1");
    bench.answer();
    bench.flush();
    let (reply_to, _waiting) = ReplySender::new(Duration::ZERO, None);
    reply_to.make_withdrawn();
    let given_up = Sent { replays: Some(letter), ..sent("append", "5") };
    bench.step([arrival("a", given_up, reply_to)]);
    bench.settle();
    assert_eq!(bench.rows(Table::DeadLetters), 1, "it is still there");
    // Refused further in: there is no room for writes.
    bench.has_room = false;
    let refused = replay(&mut bench);
    assert_eq!(kind(told(refused)), Some(ErrorKind::Full));
    bench.has_room = true;
    let replayed = replay(&mut bench);
    let twice = replay(&mut bench);
    bench.settle();
    assert!(matches!(answer(told(replayed)), Some(Response::Done)));
    assert_eq!(kind(told(twice)), Some(ErrorKind::NotFound), "once");
    assert_eq!(bench.rows(Table::DeadLetters), 0);
    assert_eq!(bench.entries("a"), [1, 5]);
}

#[test]
fn a_delayed_signal_that_is_due_and_waits_is_cancelled_in_its_entitys_order() {
    let mut bench = Bench::new();
    let due = Some(bench.now + Duration::from_secs(5));
    let accepted = bench.send("a", Sent { due, ..sent("append", "1") });
    bench.settle();
    let Some(Response::Scheduled(number)) = answer(told(accepted)) else { panic!("no id") };
    bench.signal("a", "fetch", "2");
    bench.answer();
    bench.flush();
    // It becomes due while the entity is busy, and waits behind the cancellation.
    let cancel = |bench: &mut Bench| {
        let action = Some(Action::Cancel(Slot::Delayed(number)));
        bench.send("a", Sent { action, ..sent("append", "") })
    };
    let cancelled = cancel(&mut bench);
    bench.advance(6);
    bench.settle();
    assert!(matches!(answer(told(cancelled)), Some(Response::Done)));
    assert_eq!((bench.entries("a"), bench.rows(Table::Reminders)), (vec![2], 0));
    let again = cancel(&mut bench);
    bench.settle();
    assert_eq!(kind(told(again)), Some(ErrorKind::NotFound));
}

#[test]
fn an_entity_whose_callers_wait_behind_its_backlog_goes_on() {
    let mut bench = Bench::new();
    for entry in 0..40 {
        bench.signal("a", "append", &entry.to_string());
    }
    // An operation that awaits keeps them on disk.
    bench.signal("b", "fetch", "1");
    bench.call("a", "fetch", "100");
    for _ in 0..4 {
        let mut inputs = bench.read();
        inputs.extend(bench.commit());
        bench.step(inputs);
    }
    let sent: Vec<_> =
        (40..80).map(|entry| bench.signal("a", "append", &entry.to_string())).collect();
    for _ in 0..4 {
        bench.flush();
    }
    let accepted = sent.into_iter().map(told).filter(Option::is_some).count();
    assert!(accepted > 20);
    let mut bench = bench.crashed_quietly();
    bench.set(|config| config.mailbox_max = 4);
    while !bench.reads.iter().any(|read| matches!(read, Output::Inbox(..))) {
        bench.answer();
    }
    // As many callers as there is room for, before the first of several pages is there.
    let calls: Vec<_> = (0..4).map(|_| bench.call("a", "entries", "")).collect();
    assert!(accepted > 2 * INBOX_PAGE);
    bench.settle();
    assert_eq!(bench.rows(Table::Inbox), 0, "every row was applied");
    assert!(calls.into_iter().all(|call| told(call).is_some()), "every caller heard something");
    let entries = bench.entries("a");
    assert!(entries.iter().filter(|entry| (40..80).contains(*entry)).count() >= accepted);
}

#[test]
fn a_signal_that_died_is_not_taken_off_the_disk_twice() {
    let mut bench = Bench::new();
    bench.set(|config| *config = Config { retries: 0, ..Config::default() });
    let due = Some(bench.now + Duration::from_secs(5));
    let accepted = bench.send("a", Sent { due, ..sent("explode", "") });
    bench.settle();
    let Some(Response::Scheduled(number)) = answer(told(accepted)) else { panic!("no id") };
    bench.advance(6);
    bench.answer();
    // It has died, and that is not durable yet.
    let action = Some(Action::Cancel(Slot::Delayed(number)));
    let cancelled = bench.send("a", Sent { action, ..sent("append", "") });
    let stale = bench.read();
    let committed = bench.commit();
    bench.step(committed);
    bench.step(stale);
    bench.settle();
    assert_eq!(kind(told(cancelled)), Some(ErrorKind::NotFound));
    assert_eq!(bench.rows(Table::DeadLetters), 1);
}

#[test]
fn a_condition_is_judged_when_the_operation_begins() {
    let mut bench = Bench::new();
    bench.call("a", "append", "1");
    bench.settle();
    let version = |bench: &mut Bench| {
        let shown = bench.send("a", Sent { action: Some(Action::State), ..sent("append", "") });
        bench.settle();
        match answer(told(shown)) {
            Some(Response::State(Some(view))) => view.version(),
            other => panic!("{other:?}"),
        }
    };
    let now = version(&mut bench);
    let condition = Some(Condition::OneOf(vec![now]));
    // It awaits, so it is stored first; before it begins, another turn changes the entity.
    let first = Sent { condition: condition.clone(), is_call: true, ..sent("fetch", "2") };
    let fetched = bench.send("a", first);
    bench.settle();
    assert!(matches!(answer(told(fetched)), Some(Response::Replied(_))), "it holds");
    let late = Sent { condition, is_call: true, ..sent("fetch", "3") };
    let refused = bench.send("a", late);
    bench.settle();
    assert_eq!(kind(told(refused)), Some(ErrorKind::Precondition));
    assert_eq!(bench.entries("a"), [1, 2]);
    assert_eq!(bench.rows(Table::Inbox), 0);
}
