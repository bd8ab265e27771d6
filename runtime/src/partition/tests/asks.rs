//! Every question has one answer, in the commit in which it ends.

use super::*;
use crate::store::{DeadLetterFilter, Write, tables::dead_letters::Cause};

/// The write group that ends a question of `a` to `b`, and everything before it.
fn at_the_answer() -> Bench {
    let mut bench = Bench::new();
    bench.call("a", "ask", r#"{"other":"b","seconds":null}"#);
    bench.answer();
    bench.flush();
    bench.answer();
    assert_eq!(bench.groups.len(), 1, "the question has had its turn");
    bench
}

#[test]
fn an_answer_is_in_the_commit_in_which_its_question_ends() {
    let bench = at_the_answer();
    let writes = &bench.groups[0].writes;
    let consumed = writes.iter().find_map(|write| match write {
        Write::Consume(key) => Some(key),
        _ => None,
    });
    let accepted = writes.iter().find_map(|write| match write {
        Write::Accept(key, record) => Some((key, record)),
        _ => None,
    });
    let (answer, record) = accepted.expect("an answer");
    let question = consumed.expect("a question");
    assert_eq!(question.of_answer(|_| 0).as_ref(), Ok(answer));
    assert_eq!((&*record.operation, &record.input[..]), ("on_one", &b"{\"Ok\":1}"[..]));
}

#[test]
fn an_answer_arrives_once_whenever_the_process_ends() {
    for flushes in 0..4 {
        let mut bench = Bench::new();
        bench.call("a", "ask", r#"{"other":"b","seconds":null}"#);
        let mut bench = bench.crashed_after(1 + flushes);
        assert_eq!((bench.entries("a"), bench.entries("b")), (vec![1], vec![7]), "{flushes}");
        assert_eq!(bench.rows(Table::Inbox), 0);
    }
}

#[test]
fn a_no_and_a_failure_come_back_and_only_the_failure_is_a_dead_letter() {
    let mut bench = Bench::new();
    bench.call("a", "ask", r#"{"other":"no","seconds":60}"#);
    bench.settle();
    assert_eq!((bench.entries("a"), bench.rows(Table::DeadLetters)), (vec![100], 0));
    bench.call("a", "ask", r#"{"other":"bad","seconds":null}"#);
    bench.settle();
    for _ in 0..8 {
        bench.advance(1);
        bench.settle();
    }
    assert_eq!((bench.entries("a"), bench.rows(Table::DeadLetters)), (vec![100, 200], 1));
    assert_eq!(
        (bench.rows(Table::Reminders), bench.rows(Table::Due)),
        (0, 0),
        "no timeout is left"
    );
}

#[test]
fn answers_of_many_are_taken_together_in_the_order_of_the_questions() {
    let ask = r#"{"others":["c","no","b","c"],"seconds":60}"#;
    let mut bench = Bench::new();
    bench.call("a", "ask_all", ask);
    bench.settle();
    assert_eq!(bench.entries("a"), [1_001, 1_100, 1_001, 1_002]);
    assert_eq!((bench.rows(Table::Inbox), bench.rows(Table::Reminders)), (0, 0));
    let mut bench = bench.crashed();
    bench.advance(120);
    bench.settle();
    assert_eq!(bench.entries("a").len(), 4, "the timeout is gone");
    bench.call("d", "ask_all", r#"{"others":[],"seconds":null}"#);
    bench.settle();
    assert_eq!(bench.entries("d"), [0_u32; 0], "nobody was asked");
}

#[test]
fn answers_that_are_there_survive_a_crash_and_the_rest_times_out() {
    let mut bench = Bench::new();
    bench.call("a", "ask_all", r#"{"others":["b","bad","no"],"seconds":60}"#);
    bench.settle();
    assert_eq!(bench.rows(Table::Inbox), 3, "two answers, and a question that is tried again");
    let idle = bench.partition.environment.config().idle;
    bench.advance(idle.as_secs().min(50));
    let mut bench = bench.crashed_quietly();
    // The question that fails is not tried any more.
    bench.set(|config| config.retry_delay = Duration::from_secs(10_000));
    bench.settle();
    bench.advance(60);
    bench.settle();
    assert_eq!(bench.entries("a"), [1_001, 1_300, 1_100]);
    assert_eq!(bench.rows(Table::Inbox), 1, "the question");
    bench.set(|config| config.retries = 0);
    bench.advance(20_000);
    bench.settle();
    assert_eq!(bench.entries("a").len(), 3, "a late answer changes nothing");
    assert_eq!((bench.rows(Table::Inbox), bench.rows(Table::DeadLetters)), (0, 1));
}

#[test]
fn an_answer_to_an_entity_that_was_deleted_is_a_dead_letter_of_its_own_cause() {
    let mut bench = Bench::new();
    bench.call("a", "ask_all", r#"{"others":["b","bad"],"seconds":null}"#);
    bench.settle();
    bench.call("a", "end", "");
    bench.settle();
    for _ in 0..8 {
        bench.advance(1);
        bench.settle();
    }
    assert_eq!(bench.entries("a"), [0_u32; 0]);
    let letters = ready(bench.store.dead_letters(DeadLetterFilter::default(), None, 10))
        .expect("readable")
        .rows;
    let causes: Vec<_> = letters.iter().map(|(_, letter)| letter.cause).collect();
    let orphans = causes.iter().filter(|cause| **cause == Cause::Orphan).count();
    assert_eq!((orphans, causes.len()), (2, 3), "{causes:?}");
    assert_eq!(bench.rows(Table::Inbox), 0);
}

#[test]
fn a_question_that_waits_for_its_retry_is_answered_when_its_entity_is_deleted() {
    let mut bench = Bench::new();
    bench.call("a", "ask", r#"{"other":"bad","seconds":null}"#);
    bench.settle();
    bench.call("bad", "end", "");
    bench.settle();
    assert_eq!((bench.entries("a"), bench.rows(Table::DeadLetters)), (vec![200], 1));
}

#[test]
fn an_ask_that_cannot_be_answered_fails_its_turn() {
    let mut bench = Bench::new();
    bench.call("a", "append", "5");
    let refused = bench.call("a", "ask", r#"{"other":"","seconds":null}"#);
    bench.settle();
    assert_eq!(kind(told(refused)), Some(ErrorKind::Internal), "nobody has that key");
    bench.set(|config| config.reminders_max = 1);
    bench.call("a", "ask", r#"{"other":"bad","seconds":60}"#);
    let refused = bench.call("a", "ask", r#"{"other":"b","seconds":60}"#);
    bench.settle();
    assert_eq!(kind(told(refused)), Some(ErrorKind::Invalid), "timeouts are reminders");
}

/// A partition that was left behind when two answers for `a` were stored, the first with a timeout, and begins
/// when that has passed.
fn behind_the_timeout() -> Bench {
    let mut bench = Bench::new();
    bench.call("a", "ask", r#"{"other":"b","seconds":60}"#);
    bench.call("a", "ask", r#"{"other":"b","seconds":null}"#);
    bench.answer();
    bench.flush();
    bench.answer();
    assert_eq!(bench.commit().len(), 3, "two answers that nobody hears of, and word of the commit");
    bench.now = bench.now + Duration::from_secs(120);
    bench.crashed_quietly()
}

#[test]
fn a_timeout_that_an_answer_has_ended_is_not_written_again() {
    let mut bench = behind_the_timeout();
    bench.settle();
    assert_eq!(bench.entries("a"), [1, 2]);
    assert_eq!((bench.rows(Table::Reminders), bench.rows(Table::Due)), (0, 0));
}

#[test]
fn a_timeout_takes_the_answers_that_wait_for_their_retry() {
    let mut bench = Bench::new();
    bench.call("a", "ask_all", r#"{"others":["b","c"],"seconds":60}"#);
    // The turn that takes the answers fails the first time, and waits for long.
    bench.set(|config| config.retry_delay = Duration::from_secs(100));
    bench.signal("a", "fail_answers", "1");
    bench.settle();
    assert_eq!(bench.rows(Table::Inbox), 2, "the answers");
    bench.advance(61);
    bench.settle();
    assert_eq!(bench.entries("a"), [1_001, 1_001], "none of them is called late");
    bench.advance(200);
    bench.settle();
    assert_eq!((bench.entries("a").len(), bench.rows(Table::Inbox)), (2, 0));
    assert_eq!(bench.rows(Table::DeadLetters), 0);
}

#[test]
fn an_entity_that_cannot_be_used_lets_go_of_the_answers_that_it_has() {
    let mut bench = Bench::new();
    bench.call("a", "ask_all", r#"{"others":["b","bad"],"seconds":null}"#);
    bench.settle();
    let error = Error::new(ErrorKind::Corrupt, "on purpose");
    bench.partition.activations.of(&id("a")).make_unusable(error);
    let asked = bench.call("a", "entries", "");
    bench.settle();
    assert_eq!(kind(told(asked)), Some(ErrorKind::Corrupt));
    let idle = bench.partition.environment.config().idle;
    for _ in 0..5 {
        bench.advance(idle.as_secs());
    }
    assert!(!bench.partition.activations.contains(&id("a")), "it is forgotten");
}
