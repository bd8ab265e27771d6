//! What a restart finds, counts and leaves alone.

use super::*;
use crate::store::{Write, record::Damaged};

impl Bench {
    /// Reads and commits so many times, crashes, and lets the next incarnation finish what it finds.
    pub(super) fn crashed_after(mut self, flushes: usize) -> Self {
        for _ in 0..flushes {
            self.answer();
            self.flush();
        }
        let mut bench = self.crashed();
        bench.settle();
        bench
    }
}

#[test]
fn a_restart_in_process_counts_no_attempt() {
    let mut bench = Bench::new();
    bench.call("a", "fetch", "1");
    bench.answer();
    bench.flush();
    bench.signal("a", "append", "2");
    bench.flush();
    for _ in 0..9 {
        bench.starts.clear();
        bench.signal("b", "append", "1");
        bench.answer();
        bench.refuse(&Error::new(ErrorKind::Full, "no room"));
        bench.answer();
        bench.answer();
    }
    bench.settle();
    assert_eq!(bench.entries("a"), [1, 2]);
    assert_eq!(bench.rows(Table::DeadLetters), 0);
}

#[test]
fn an_unclean_stop_counts_what_runs_and_not_what_waits_behind_it() {
    let mut bench = Bench::new();
    bench.call("a", "fetch", "1");
    bench.answer();
    bench.flush();
    for entry in 2..5 {
        bench.signal("a", "append", &entry.to_string());
    }
    for _ in 0..2 {
        bench.flush();
    }
    assert_eq!(bench.rows(Table::Inbox), 4);
    // The first row ends the process whenever it runs; three retries make four attempts.
    for _ in 0..4 {
        bench.disk.crash();
        bench = started(bench);
        assert_eq!(bench.starts.len(), 1, "it runs once its attempt is durable");
        bench.starts.clear();
    }
    bench.disk.crash();
    let mut bench = started(bench);
    bench.settle();
    assert_eq!(bench.entries("a"), [2, 3, 4]);
    assert_eq!(bench.rows(Table::DeadLetters), 1);
}

/// Marks that outlive a process, and those that were set.
#[derive(Debug, Default)]
struct Marks(Mutex<(Option<u128>, Vec<u128>)>);

impl RunningMarks for Marks {
    fn mark(&self, _partition: u16, token: Option<u128>) {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        marks.0 = token;
        marks.1.extend(token);
    }
}

#[test]
fn what_merely_waited_when_the_process_ended_is_never_counted() {
    let mut bench = Bench::new();
    let delay = Duration::from_secs(5);
    for entry in 0..50 {
        let due = Some(bench.now + delay);
        bench.send(&format!("k{entry}"), Sent { due, ..sent("append", &entry.to_string()) });
    }
    bench.settle();
    let marks = Arc::new(Marks::default());
    // The process ends again and again while all of it is due and nothing has run.
    for _ in 0..12 {
        bench.disk.crash();
        let now = bench.now + delay;
        bench = Bench::open_marked(bench.disk, now, Some(marks.clone()), &[]);
        for _ in 0..4 {
            let mut inputs = bench.read();
            inputs.retain(|input| !matches!(input, Input::Loaded(..)));
            inputs.extend(bench.commit());
            bench.step(inputs);
        }
    }
    bench.disk.crash();
    let now = bench.now + delay;
    let mut bench = Bench::open_marked(bench.disk, now, Some(marks.clone()), &[]);
    bench.settle();
    assert_eq!(bench.rows(Table::DeadLetters), 0, "all of them were valid");
    for entry in 0..50 {
        assert_eq!(bench.entries(&format!("k{entry}")), [entry]);
    }
    let marks = marks.0.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!((marks.0, marks.1.len()), (None, 50), "each was marked while it ran");
}

#[test]
fn what_ran_whenever_the_process_ended_is_counted_and_retired() {
    let mut bench = Bench::new();
    let due = Some(bench.now + Duration::from_secs(5));
    bench.send("a", Sent { due, ..sent("append", "1") });
    bench.send("a", Sent { due, ..sent("append", "2") });
    bench.settle();
    let reading = bench.store.reminders(Haste::Short, 0, id("a"), None, 9);
    let first = ready(reading).expect("readable").rows.remove(0).2;
    assert_eq!(first.input, b"1");
    let marks: Arc<dyn RunningMarks> = Arc::new(Marks::default());
    let mut runs = 0;
    while runs < 20 {
        bench.disk.crash();
        let now = bench.now + Duration::from_secs(10);
        let ran: &[u128] = if runs == 0 { &[] } else { &[first.token] };
        bench = Bench::open_marked(bench.disk, now, Some(marks.clone()), ran);
        if runs > 0 {
            // Until the attempt of the first is durable; then it runs, and the process ends.
            for _ in 0..12 {
                let mut inputs = bench.read();
                inputs.extend(bench.commit());
                bench.step(inputs);
                bench.groups.retain(|group| !consumes(group));
            }
        }
        runs += 1;
        let letters = bench.rows(Table::DeadLetters);
        if letters > 0 {
            break;
        }
    }
    bench.settle();
    // Three retries make four attempts.
    assert!((5..=7).contains(&runs), "{runs}");
    assert_eq!(bench.rows(Table::DeadLetters), 1);
    assert_eq!(bench.entries("a"), [2], "what is behind it goes on");
}

/// Whether a write group holds the turn in which the process ends.
fn consumes(group: &WriteGroup) -> bool {
    let has = |is_it: fn(&Write) -> bool| group.writes.iter().any(is_it);
    has(|row| matches!(row, Write::PutState(..)))
        && !has(|row| matches!(row, Write::Put(Table::DeadLetters, ..)))
}

/// A new incarnation, up to the first operation that awaits.
fn started(bench: Bench) -> Bench {
    let mut bench = Bench::open(bench.disk, bench.now + Duration::from_secs(1));
    while bench.starts.is_empty() {
        let mut inputs = bench.read();
        inputs.extend(bench.commit());
        if inputs.is_empty() {
            break;
        }
        bench.step(inputs);
    }
    bench
}

#[test]
fn an_entity_that_fails_its_partition_is_left_alone_and_others_go_on() {
    let mut bench = Bench::new();
    for _ in 0..FAILURES_MAX {
        bench.partition.activations.activate(&id("a"), bench.now);
        bench.partition.activations.make_ready(&id("a"));
        assert_eq!(bench.partition.activations.begin_running(), Some(id("a")));
        bench.partition.panicked(&Error::new(ErrorKind::Unavailable, "the partition restarts"));
        bench.step([]);
        bench.settle();
    }
    let refused = bench.call("a", "append", "1");
    bench.call("b", "append", "1");
    bench.settle();
    assert_eq!(kind(told(refused)), Some(ErrorKind::Corrupt));
    assert_eq!(bench.entries("b"), [1]);
}

#[test]
fn minted_numbers_grow_over_restarts_and_write_groups() {
    let mut bench = Bench::new();
    let first: Vec<u64> =
        (0..100_000).map(|_| bench.partition.environment.mint(bench.now)).collect();
    assert!(first.is_sorted_by(|a, b| a < b));
    let mut bench = bench.crashed();
    assert!(bench.partition.environment.mint(bench.now) > first[first.len() - 1]);
}

#[test]
fn what_could_not_be_read_is_read_again_whatever_else_wakes_the_partition() {
    let mut bench = Bench::open(MemoryDisk::new(), Timestamp::from_micros(1_000_000_000));
    let term = bench.partition.term();
    bench.step([Input::Barrier(term)]);
    let failed = ReadError::Unavailable("on purpose".into());
    bench.step([Input::Recovered(term, Err(failed))]);
    let again = bench.wake_at;
    assert!(again > bench.now && again < Timestamp::MAX);
    // An earlier tick comes to nothing, and the wish is not forgotten.
    bench.step([Input::Tick]);
    assert_eq!(bench.wake_at, again);
    bench.reads.clear();
    bench.now = again;
    bench.step([Input::Tick]);
    assert!(matches!(bench.reads.front(), Some(Output::Recover)));
}

#[test]
fn a_partition_that_has_drained_begins_nothing_more() {
    let mut bench = Bench::new();
    bench.call("a", "remind_once", "1");
    bench.settle();
    let (reply_to, drained) = ReplySender::new(Duration::from_secs(30), None);
    bench.step([Input::Drain(reply_to)]);
    assert!(matches!(answer(told(drained)), Some(Response::Done)));
    bench.advance(60);
    assert_eq!(bench.wake_at, Timestamp::MAX, "it asks for nothing");
    assert!(bench.groups.is_empty() && bench.reads.is_empty());
    let late = bench.call("a", "append", "2");
    assert_eq!(kind(told(late)), Some(ErrorKind::Closed));
}

#[test]
fn a_signal_for_a_type_that_is_not_served_waits_in_the_store() {
    let mut bench = Bench::new();
    for revision in 1..4 {
        let receiver = EntityId::new("unheard", "a").expect("valid");
        let sender = "log/a".into();
        let key = InboxKey { partition: 0, receiver, sender, generation: 1, revision, index: 0 };
        let record = InboxRecord::signal(0, "add".into(), Vec::new(), bench.now);
        let delivery = Some(Box::new(Delivery::Signal(key, record)));
        bench.step([Input::Deliver(delivery, Link { place: revision, ..LINK })]);
        bench.settle();
    }
    assert_eq!(bench.rows(Table::DeadLetters), 0, "somebody else may know the type");
}

#[test]
fn a_delivery_that_could_not_be_read_has_the_store_read() {
    let mut bench = Bench::new();
    bench.settle();
    bench.step([Input::Deliver(None, LINK)]);
    assert!(bench.reads.iter().any(|read| matches!(read, Output::Receivers)), "the inbox");
    assert!(bench.reads.iter().any(|read| matches!(read, Output::Due(None, ..))), "from the start");
}

/// A partition whose entity `a` has rows of an earlier term, at the read of their first page.
fn at_the_first_page() -> Bench {
    let mut bench = Bench::new();
    bench.signal("a", "append", "1");
    bench.settle();
    bench.call("a", "fetch", "2");
    bench.answer();
    bench.flush();
    bench.signal("a", "append", "3");
    bench.flush();
    let mut bench = bench.crashed_quietly();
    for _ in 0..2 {
        bench.answer();
    }
    bench
}

/// Has the read of the first page fail that is under way.
fn fail_page(bench: &mut Bench, error: ReadError) {
    let place = bench.reads.iter().position(|read| matches!(read, Output::Inbox(_, None)));
    bench.reads.remove(place.expect("a page that is read"));
    let permits = bench.permits.clone().try_acquire_many_owned(INBOX_PAGE as u32);
    let term = bench.partition.term();
    bench.step([Input::Inbox(term, id("a"), Err(error), permits.expect("permits"))]);
}

#[test]
fn an_entity_whose_inbox_could_not_be_read_is_read_again_with_its_state() {
    let mut bench = at_the_first_page();
    fail_page(&mut bench, ReadError::Unavailable("on purpose".into()));
    bench.settle();
    let asked = bench.call("a", "entries", "");
    bench.settle();
    bench.now = bench.wake_at;
    bench.step([Input::Tick]);
    bench.settle();
    let told = answer(told(asked)).expect("an answer");
    assert!(matches!(told, Response::Replied(json) if *json == *b"[1,2,3]"));
}

#[test]
fn an_entity_whose_inbox_is_damaged_is_left_alone_also_while_its_state_is_read() {
    for is_loading in [false, true] {
        let mut bench = at_the_first_page();
        let damaged = || ReadError::Damaged(Damaged("on purpose".into()));
        let asked = is_loading.then(|| bench.call("a", "entries", ""));
        fail_page(&mut bench, damaged());
        if is_loading {
            bench.answer();
            fail_page(&mut bench, damaged());
        }
        let asked = asked.unwrap_or_else(|| bench.call("a", "entries", ""));
        bench.settle();
        assert_eq!(kind(told(asked)), Some(ErrorKind::Corrupt));
        assert_eq!(bench.rows(Table::Inbox), 2, "they stay");
    }
}
