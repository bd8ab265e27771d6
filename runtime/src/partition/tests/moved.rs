//! Reminders that are put off again and again.

use super::*;
use crate::store::Write;

/// How many writes of the groups that wait are about reminders.
fn reminder_writes(bench: &Bench) -> usize {
    let is_one = |write: &&Write| matches!(write, Write::Remind(..) | Write::CancelReminder { .. });
    bench.groups.iter().flat_map(|group| &group.writes).filter(is_one).count()
}

/// Sets the reminder once more, for ten seconds from now, and returns how many rows that takes.
fn put_off(bench: &mut Bench, entry: u32) -> usize {
    bench.call("a", "remind_once", &entry.to_string());
    bench.answer();
    let writes = reminder_writes(bench);
    bench.settle();
    writes
}

#[test]
fn a_reminder_that_is_put_off_writes_no_row_until_its_old_time_comes() {
    let mut bench = Bench::new();
    assert_eq!(put_off(&mut bench, 1), 1);
    for _ in 0..9 {
        bench.advance(1);
        assert_eq!(put_off(&mut bench, 1), 0);
    }
    // Its row is due, and follows.
    bench.advance(1);
    assert_eq!(reminder_writes(&bench), 2);
    bench.settle();
    assert_eq!((bench.entries("a"), bench.rows(Table::Due)), (vec![], 1));
    bench.advance(8);
    bench.settle();
    assert!(bench.entries("a").is_empty(), "nine seconds after it was set last");
    bench.advance(1);
    bench.settle();
    assert_eq!((bench.entries("a"), bench.rows(Table::Due)), (vec![1], 0));
}

#[test]
fn a_reminder_that_was_put_off_fires_once_at_its_new_time_whenever_the_process_ends() {
    for crash_at in 0..25 {
        let mut bench = Bench::new();
        put_off(&mut bench, 1);
        bench.advance(7);
        put_off(&mut bench, 1);
        let new_due = bench.now + Duration::from_secs(10);
        for second in 0..30 {
            if second == crash_at {
                bench.step([Input::Tick]);
                bench.flush();
                bench = bench.crashed();
            }
            let has_fired = !bench.entries("a").is_empty();
            assert_eq!(has_fired, bench.now >= new_due, "{crash_at}: second {second}");
            bench.advance(1);
            bench.settle();
        }
        assert_eq!((bench.entries("a"), bench.rows(Table::Due)), (vec![1], 0), "{crash_at}");
    }
}

#[test]
fn a_reminder_that_was_put_off_is_cancelled_replaced_and_deleted_with_its_row() {
    let cancel = Action::Cancel(crate::store::tables::reminders::Slot::Named("once".into()));
    for action in [cancel, Action::Delete] {
        let mut bench = Bench::new();
        put_off(&mut bench, 1);
        bench.advance(5);
        assert_eq!(put_off(&mut bench, 1), 0);
        let told = bench.send("a", Sent { action: Some(action), ..sent("entries", "") });
        bench.settle();
        assert!(matches!(answer(super::told(told)), Some(Response::Done)));
        assert_eq!((bench.rows(Table::Due), bench.rows(Table::Reminders)), (0, 0));
    }
    let mut bench = Bench::new();
    put_off(&mut bench, 1);
    bench.advance(5);
    put_off(&mut bench, 1);
    // With another argument it is another reminder, and its row is written anew.
    assert_eq!(put_off(&mut bench, 2), 2);
    assert_eq!((bench.rows(Table::Due), bench.rows(Table::Reminders)), (1, 1));
    // What another process knows of it is not what it is for, so it writes a row once.
    let mut bench = bench.crashed();
    assert_eq!(put_off(&mut bench, 2), 2);
    assert_eq!(put_off(&mut bench, 2), 0);
    bench.advance(30);
    bench.settle();
    assert_eq!((bench.entries("a"), bench.rows(Table::Due)), (vec![2], 0));
}
