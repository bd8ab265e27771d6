//! The end of entities at their time, and what keeps them.

use super::*;

fn live_for(bench: &mut Bench, key: &str, seconds: u64) {
    bench.call(key, "append_for", &format!("{{\"entry\":1,\"seconds\":{seconds}}}"));
    bench.settle();
}

/// Passes so many seconds, one at a time.
fn pass(bench: &mut Bench, seconds: u64) {
    for _ in 0..seconds {
        bench.advance(1);
        bench.settle();
    }
}

fn is_there(bench: &Bench) -> bool {
    bench.rows(Table::States) == 1
}

#[test]
fn an_entity_expires_at_its_time_also_after_downtime_whenever_the_process_ends() {
    for crash_at in 0..15 {
        let mut bench = Bench::new();
        live_for(&mut bench, "a", 10);
        let due = bench.now + Duration::from_secs(10);
        for second in 0..15 {
            if second == crash_at {
                bench.step([Input::Tick]);
                bench.flush();
                bench = bench.crashed();
            }
            assert_eq!(is_there(&bench), bench.now < due, "{crash_at}: second {second}");
            bench.advance(1);
            bench.settle();
        }
        let left = [Table::States, Table::Reminders, Table::Due, Table::Inbox, Table::DeadLetters];
        assert_eq!(left.map(|table| bench.rows(table)), [0; 5], "{crash_at}");
        assert_eq!(bench.entries("a"), Vec::<u32>::new());
    }
    let mut bench = Bench::new();
    live_for(&mut bench, "a", 10);
    bench.disk.crash();
    let later = bench.now + Duration::from_secs(1_000_000);
    let bench = Bench::on(bench.disk, later);
    assert!(!is_there(&bench));
}

#[test]
fn a_later_turn_puts_the_end_off_or_away() {
    let mut bench = Bench::new();
    live_for(&mut bench, "a", 10);
    pass(&mut bench, 8);
    live_for(&mut bench, "a", 10);
    pass(&mut bench, 9);
    assert_eq!(bench.entries("a"), [1, 1]);
    bench.call("a", "append_for", "{\"entry\":2,\"seconds\":null}");
    bench.settle();
    pass(&mut bench, 60);
    assert_eq!((bench.entries("a"), bench.rows(Table::Due)), (vec![1, 1, 2], 0));
    // A turn that says nothing changes nothing, and an earlier end counts.
    live_for(&mut bench, "a", 100);
    live_for(&mut bench, "a", 5);
    bench.call("a", "append", "3");
    bench.settle();
    pass(&mut bench, 5);
    assert!(!is_there(&bench));
}

#[test]
fn an_entity_does_not_expire_while_accepted_work_waits_for_it() {
    // Delayed.
    let mut bench = Bench::new();
    live_for(&mut bench, "a", 10);
    let due = Some(bench.now + Duration::from_secs(30));
    bench.send("a", Sent { due, ..sent("append", "7") });
    bench.settle();
    pass(&mut bench, 30);
    assert_eq!(bench.entries("a"), [1, 7]);
    pass(&mut bench, 3);
    assert!(!is_there(&bench), "it ends behind its work");
    assert_eq!(bench.rows(Table::DeadLetters), 0);

    // Waiting for a retry.
    let mut bench = Bench::new();
    live_for(&mut bench, "a", 10);
    let from = bench.now + Duration::from_secs(20);
    bench.signal("a", "append_from", &format!("\"{from}\""));
    bench.settle();
    pass(&mut bench, 19);
    assert_eq!(bench.entries("a"), [1]);
    pass(&mut bench, 3);
    assert_eq!((bench.entries("a"), bench.entries("told")), (vec![], vec![2]));

    // While an operation awaits, and what came meanwhile.
    let mut bench = Bench::new();
    live_for(&mut bench, "a", 10);
    bench.signal("a", "fetch", "7");
    bench.answer();
    bench.flush();
    let from = format!("\"{}\"", bench.now);
    for _ in 0..2 {
        bench.signal("a", "append_from", &from);
    }
    bench.flush();
    bench.advance(20);
    bench.answer();
    assert!(is_there(&bench));
    bench.settle();
    pass(&mut bench, 3);
    assert_eq!((bench.entries("a"), bench.entries("told")), (vec![], vec![3, 4]));

    // An ask with a timeout.
    let mut bench = Bench::new();
    live_for(&mut bench, "a", 10);
    bench.set(|config| config.retry_delay = Duration::from_secs(3_600));
    bench.call("a", "ask", r#"{"other":"bad","seconds":30}"#);
    bench.settle();
    pass(&mut bench, 29);
    assert_eq!(bench.entries("a"), [1]);
    pass(&mut bench, 10);
    assert_eq!((bench.entries("a"), bench.rows(Table::DeadLetters)), (vec![], 0));
}

#[test]
fn an_expiry_keeps_no_read_waiting_while_the_disk_is_nearly_full() {
    let mut bench = Bench::new();
    live_for(&mut bench, "a", 10);
    bench.has_room = false;
    pass(&mut bench, 15);
    assert_eq!(bench.entries("a"), [1]);
    bench.has_room = true;
    pass(&mut bench, 2);
    assert!(!is_there(&bench));
}
