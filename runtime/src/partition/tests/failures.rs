//! What a failed or refused turn leaves: nothing but what its commit says, and whoever is to hear of it.

use super::*;
use crate::store::Write;

#[test]
fn an_entity_hears_of_its_dead_letter_in_the_commit_that_keeps_it() {
    let mut bench = Bench::new();
    bench.signal("a", "give_up", "null");
    bench.answer();
    let writes = &bench.groups[0].writes;
    let is_letter = |write: &&Write| matches!(write, Write::Put(Table::DeadLetters, ..));
    assert_eq!(writes.iter().filter(is_letter).count(), 1);
    let told = writes.iter().find_map(|write| match write {
        Write::Accept(key, record) => Some((key, record)),
        _ => None,
    });
    let (key, record) = told.expect("a signal to itself");
    assert_eq!((&key.receiver, &*record.operation), (&id("a"), "on_lost"));
}

#[test]
fn a_dead_letter_is_heard_of_once_whenever_the_process_ends() {
    for flushes in 0..4 {
        let mut bench = Bench::new();
        bench.signal("a", "give_up", "null");
        let mut bench = bench.crashed_after(1 + flushes);
        assert_eq!(bench.entries("a"), [1_001], "{flushes}");
        assert_eq!((bench.rows(Table::Inbox), bench.rows(Table::DeadLetters)), (0, 1));
    }
}

#[test]
fn effects_that_a_rejection_keeps_are_in_its_commit_and_arrive_once() {
    for flushes in 0..4 {
        let mut bench = Bench::new();
        bench.signal("a", "append", "5");
        bench.settle();
        let told = bench.call("a", "give_up", "\"b\"");
        bench.answer();
        for _ in 0..flushes {
            bench.flush();
            bench.answer();
        }
        let mut bench = bench.crashed();
        bench.settle();
        let was_told = flushes > 0;
        let sent = if was_told { vec![1] } else { vec![] };
        assert_eq!((bench.entries("a"), bench.entries("b")), (vec![5], sent), "{flushes}");
        let rejected = matches!(self::told(told), Some(Ok(Response::Rejected(_))));
        assert_eq!(rejected, was_told, "the caller hears of it behind its effects");
        assert_eq!((bench.rows(Table::Inbox), bench.rows(Table::DeadLetters)), (0, 0));
    }
}
