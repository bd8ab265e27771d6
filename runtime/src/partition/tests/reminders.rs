//! Reminders, delayed signals, and their end.

use super::*;

#[test]
fn a_scan_that_began_before_a_commit_fires_nothing_twice() {
    let mut bench = Bench::new();
    for entry in 0..600 {
        let due = Some(bench.now + Duration::from_secs(5));
        bench.send("a", Sent { due, ..sent("append", &entry.to_string()) });
    }
    bench.settle();
    assert_eq!(bench.rows(Table::Due), 600);
    let mut bench = bench.crashed();
    bench.advance(10);
    // Each scan is answered after the commit that removes what it saw.
    for _ in 0..20 {
        let stale = bench.read();
        let mut inputs = bench.commit();
        inputs.extend(stale);
        bench.step(inputs);
    }
    bench.settle();
    let entries = bench.entries("a");
    assert_eq!(entries.len(), 600);
    assert_eq!(bench.rows(Table::Due), 0);
}

#[test]
fn a_scan_that_failed_is_repeated() {
    let mut bench = Bench::new();
    bench.call("a", "remind_once", "1");
    bench.settle();
    bench.disk.crash();
    let now = bench.now + Duration::from_secs(20);
    let mut bench = Bench { reads: VecDeque::new(), ..Bench::on(bench.disk, now) };
    // As if the first scan had failed.
    let term = bench.partition.term();
    bench.partition.reminders.clear();
    bench.step([]);
    bench.reads.clear();
    let why = crate::store::ReadError::Unavailable("injected".into());
    bench.step([Input::Due(term, now, Err(why))]);
    assert!(bench.reads.is_empty(), "not at once");
    bench.advance(2);
    bench.settle();
    assert_eq!(bench.entries("a"), [1]);
}

#[test]
fn a_reminder_that_waits_for_a_retry_dies_with_its_entity() {
    let mut bench = Bench::new();
    bench.call("a", "remind_explosion", "");
    bench.settle();
    bench.advance(10);
    bench.settle();
    let delete = Sent { action: Some(Action::Delete), ..sent("entries", "") };
    bench.send("a", delete);
    bench.settle();
    assert_eq!((bench.rows(Table::Due), bench.rows(Table::Reminders)), (0, 0));
    bench.advance(3_600);
    bench.settle();
    assert_eq!((bench.rows(Table::Due), bench.rows(Table::States)), (0, 0));
}

#[test]
fn a_recurring_reminder_goes_on_after_an_occurrence_that_never_ends_well() {
    let mut bench = Bench::new();
    bench.call("a", "remind_explosion", "");
    bench.settle();
    for _ in 0..40 {
        bench.advance(1);
        bench.settle();
    }
    let (letters, due) = (bench.rows(Table::DeadLetters), bench.rows(Table::Due));
    assert!(letters >= 3, "{letters} occurrences died");
    assert_eq!(due, 1, "the next one is scheduled");
}

#[test]
fn an_operation_that_awaits_deletes_its_entity_in_one_commit() {
    let mut bench = Bench::new();
    bench.call("a", "append", "1");
    let due = Some(bench.now + Duration::from_secs(50));
    bench.send("a", Sent { due, ..sent("append", "2") });
    bench.settle();
    bench.call("a", "end", "");
    for _ in 0..20 {
        let mut inputs = bench.read();
        inputs.extend(bench.finish());
        inputs.extend(bench.commit());
        bench.step(inputs);
        let is_deleted = bench.rows(Table::States) == 0;
        assert_eq!(is_deleted, bench.rows(Table::Due) == 0, "never one without the other");
        assert_eq!(is_deleted, bench.rows(Table::DeadLetters) == 1);
    }
    assert_eq!(bench.rows(Table::States), 0);
}

#[test]
fn a_reminder_that_has_fired_stays_stored_until_its_turn_is_committed() {
    let mut bench = Bench::new();
    bench.call("a", "remind_once", "1");
    bench.settle();
    // A node that knows nothing of the entity yet: the reminder fires before its state is there.
    let mut bench = Bench::on(bench.disk, bench.now);
    bench.advance(20);
    bench.flush();
    let mut bench = bench.crashed();
    bench.settle();
    assert_eq!(bench.entries("a"), [1]);
}

#[test]
fn a_reminder_that_is_set_again_after_it_has_fired_causes_no_turn() {
    let mut bench = Bench::new();
    bench.call("a", "remind_once", "1");
    bench.settle();
    let mut bench = Bench::on(bench.disk, bench.now);
    bench.now = bench.now + Duration::from_secs(20);
    // The new setting arrives in the step in which the old one fires, before it.
    bench.call("a", "remind_once", "2");
    bench.settle();
    assert_eq!(bench.entries("a"), Vec::<u32>::new());
    bench.advance(20);
    bench.settle();
    assert_eq!(bench.entries("a"), [2]);
}
