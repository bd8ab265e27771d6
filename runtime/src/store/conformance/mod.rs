//! The obligations of a [`Store`], as checks that every implementation runs in one line.
//!
//! Each check panics with the obligation that is broken. A store is opened by the closure, each time
//! under a new incarnation on the same data.

mod entries;
mod find;
mod shared;
mod tables;

use std::sync::Arc;

use stead_entities::{EntityId, Timestamp};

use super::{
    Batch, CommitOutcome, DeadLetterFilter, Fence, Haste, Store, TypedReads as _, Write,
    tables::{
        dead_letters::{Cause, DeadLetter, DeadLetterId},
        idempotency::{IdempotencyKey, IdempotencyRecord, Remembered},
        inbox::{InboxKey, InboxRecord},
        meta::{Declarations, LayoutText, OperationNames},
        reminders::{ReminderRecord, Slot},
        states::sample as state,
    },
};

pub use shared::shared_suite;
pub use tables::check_rows;

/// Runs every check.
///
/// # Panics
/// With the first obligation that is broken.
pub async fn suite<S: Store>(open: impl AsyncFn() -> S) {
    let open = async || Arc::new(open().await) as Arc<dyn Store>;
    tables::every_table_keeps_its_rows(&open).await;
    a_batch_is_read_back_after_opening_again(&open).await;
    a_wrong_fence_writes_nothing(&open).await;
    a_buffered_batch_is_read_at_once_and_followed(&open).await;
    a_missing_row_refuses_the_whole_batch(&open).await;
    a_row_is_replaced_by_who_has_read_it_last(&open).await;
    pages_follow_each_other(&open).await;
    find::entities_are_found_in_order_and_back(&open).await;
    entries::entries_change_and_end_with_their_state(&open).await;
    reminders_are_found_by_due_time(&open).await;
    letters_are_filtered_and_what_waits_is_found(&open).await;
}

/// Writes the next batches of one incarnation.
struct Writer {
    store: Arc<dyn Store>,
    number: u64,
}

impl Writer {
    fn new(store: Arc<dyn Store>) -> Self {
        let number = store.opened().last_batch;
        Self { store, number }
    }

    fn batch(&self, writes: Vec<Write>) -> Batch {
        let incarnation = self.store.opened().incarnation;
        let fence = Fence { incarnation, lane: 0, number: self.number + 1 };
        let time = Timestamp::from_micros(5);
        Batch { fence, owner: "suite".into(), time, is_clean: false, is_buffered: false, writes }
    }

    async fn write(&mut self, writes: Vec<Write>) {
        let outcome = self.store.commit(self.batch(writes)).await;
        assert_eq!(outcome, CommitOutcome::Committed, "a batch in order is committed");
        self.number += 1;
    }
}

fn id(key: &str) -> EntityId {
    EntityId::new("suite", key).expect("a valid id")
}

fn row(sender: &str, revision: u64) -> (InboxKey, InboxRecord) {
    let key = InboxKey {
        partition: 3,
        receiver: id("receiver"),
        sender: sender.into(),
        generation: 1,
        revision,
        index: 0,
    };
    let record = InboxRecord::signal(1, "add".into(), b"1".to_vec(), Timestamp::from_micros(1));
    (key, record)
}

async fn a_batch_is_read_back_after_opening_again(open: &impl AsyncFn() -> Arc<dyn Store>) {
    let key = IdempotencyKey { partition: 3, id: id("a"), caller: "".into(), key: "k".into() };
    let kept = IdempotencyRecord {
        fingerprint: 5,
        at: Timestamp::from_micros(1),
        outcome: Remembered::Replied(b"5".to_vec()),
    };
    let letter_id = DeadLetterId { partition: 3, is_rejection: false, number: 1 };
    let letter = DeadLetter {
        entity: "suite/a".into(),
        sender: String::new(),
        operation: "add".into(),
        input: Vec::new(),
        token: 1,
        cause: Cause::Failure,
        reason: "why".into(),
        attempts: 9,
        accepted_at: Timestamp::default(),
        dead_lettered_at: Timestamp::default(),
    };
    let first = {
        let mut writer = Writer::new(open().await);
        let first = writer.store.opened().incarnation;
        let writes = vec![
            Write::PutState(id("a"), state(1)),
            Write::put(&key, &kept),
            Write::put(&letter_id, &letter),
            Write::put(&("suite".into(), 1), &LayoutText("state: unit\n".into())),
        ];
        writer.write(writes).await;
        writer.store.close().await;
        first
    };
    let store = open().await;
    assert!(store.opened().incarnation > first, "an opening mints an incarnation");
    assert!(store.opened().time >= Timestamp::from_micros(5), "the clock's mark is kept");
    let loaded = store.load(id("a")).await;
    assert_eq!(loaded.expect("readable"), Some(state(1)), "a state is read back");
    let found = store.remembered(key).await.expect("readable");
    assert_eq!(found, Some(kept), "an idempotency record is read back");
    let found = store.dead_letter(letter_id).await.expect("readable");
    assert_eq!(found, Some(letter), "a dead letter is read back");
    let found = store.layouts("suite".into()).await.expect("readable");
    assert_eq!(found, [(1, "state: unit\n".to_owned())], "a layout is read back");
    store.close().await;
}

async fn a_wrong_fence_writes_nothing(open: &impl AsyncFn() -> Arc<dyn Store>) {
    let store = open().await;
    let writer = Writer::new(store.clone());
    let wrong: [fn(&mut Fence); 3] =
        [|fence| fence.number += 1, |fence| fence.number -= 1, |fence| fence.incarnation -= 1];
    for change in wrong {
        let mut batch = writer.batch(vec![Write::PutState(id("fenced"), state(1))]);
        change(&mut batch.fence);
        assert_eq!(store.commit(batch).await, CommitOutcome::Fenced, "a wrong fence is refused");
    }
    let loaded = store.load(id("fenced")).await.expect("readable");
    assert_eq!(loaded, None, "a fenced batch writes nothing");
    store.close().await;
}

async fn a_buffered_batch_is_read_at_once_and_followed(open: &impl AsyncFn() -> Arc<dyn Store>) {
    let mut writer = Writer::new(open().await);
    for revision in 1..=3 {
        let mut batch = writer.batch(vec![Write::PutState(id("buffered"), state(revision))]);
        batch.is_buffered = revision != 2;
        let outcome = writer.store.commit(batch).await;
        assert_eq!(outcome, CommitOutcome::Committed, "a buffered batch is committed");
        writer.number += 1;
        let loaded = writer.store.load(id("buffered")).await.expect("readable");
        assert_eq!(loaded, Some(state(revision)), "a buffered batch is read at once");
    }
    let outcome = writer.store.flush().await;
    assert_eq!(outcome, CommitOutcome::Committed, "what was buffered is flushed");
    writer.store.close().await;
    let store = open().await;
    let loaded = store.load(id("buffered")).await.expect("readable");
    assert_eq!(loaded, Some(state(3)), "a buffered batch is read back");
    store.close().await;
}

async fn a_missing_row_refuses_the_whole_batch(open: &impl AsyncFn() -> Arc<dyn Store>) {
    let mut writer = Writer::new(open().await);
    let (key, record) = row("suite/sender", 1);
    writer.write(vec![Write::Accept(key.clone(), record)]).await;
    writer.write(vec![Write::Consume(key.clone())]).await;
    let again = vec![Write::PutState(id("twice"), state(1)), Write::Consume(key)];
    let outcome = writer.store.commit(writer.batch(again)).await;
    assert!(
        matches!(outcome, CommitOutcome::Unavailable(_)),
        "a row is consumed once, not {outcome:?}"
    );
    let loaded = writer.store.load(id("twice")).await.expect("readable");
    assert_eq!(loaded, None, "a refused batch writes nothing");
    writer.write(Vec::new()).await;
    writer.store.close().await;
}

async fn a_row_is_replaced_by_who_has_read_it_last(open: &impl AsyncFn() -> Arc<dyn Store>) {
    let mut writer = Writer::new(open().await);
    let replace = |before: Option<u64>, value| {
        let before = before.map(Declarations);
        Write::replace(&(), before.as_ref(), &Declarations(value))
    };
    writer.write(vec![replace(None, 1)]).await;
    writer.write(vec![replace(Some(1), 2)]).await;
    for before in [None, Some(1), Some(3)] {
        let late = vec![Write::PutState(id("late"), state(1)), replace(before, 4)];
        let outcome = writer.store.commit(writer.batch(late)).await;
        let is_refused = matches!(outcome, CommitOutcome::Unavailable(_));
        assert!(is_refused, "it is 2, and not {before:?}: {outcome:?}");
    }
    writer.write(vec![Write::delete::<Declarations>(&())]).await;
    let outcome = writer.store.commit(writer.batch(vec![replace(Some(2), 3)])).await;
    assert!(matches!(outcome, CommitOutcome::Unavailable(_)), "no row: {outcome:?}");
    let loaded = writer.store.load(id("late")).await.expect("readable");
    assert_eq!(loaded, None, "a refused batch writes nothing");
    writer.store.close().await;
}

async fn pages_follow_each_other(open: &impl AsyncFn() -> Arc<dyn Store>) {
    let mut writer = Writer::new(open().await);
    let rows: Vec<_> = (1..=5).map(|revision| row("suite/pager", revision)).collect();
    let mut writes: Vec<_> =
        rows.iter().cloned().map(|(key, record)| Write::Accept(key, record)).collect();
    let keys = ["p/1", "p/2", "p/3", "q"];
    writes.extend(keys.iter().map(|key| Write::PutState(id(key), state(1))));
    writer.write(writes).await;
    let store = &writer.store;
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let page = store.inbox(3, id("receiver"), after, 2).await.expect("readable");
        let Some((last, _)) = page.rows.last() else { break };
        after = Some(last.clone());
        seen.extend(page.rows);
    }
    assert_eq!(seen, rows, "inbox pages hold every row once, in order");
    let receivers = store.receivers(3).await.expect("readable");
    assert_eq!(receivers, [id("receiver")], "receivers are found");
    let list =
        |after: Option<&str>| store.list("suite".into(), "p/".into(), after.map(str::to_owned), 2);
    let page = list(None).await.expect("readable");
    assert_eq!(page.rows.len(), 2, "a page is as long as asked for");
    let rest = list(Some("p/2")).await.expect("readable");
    assert_eq!(rest.rows.len(), 1, "the last page holds the rest, and only the prefix");
    assert_eq!(rest.rows[0].0, id("p/3"), "pages follow each other");
    writer.store.clone().close().await;
}

async fn reminders_are_found_by_due_time(open: &impl AsyncFn() -> Arc<dyn Store>) {
    let mut writer = Writer::new(open().await);
    let reminder = |due: i64| ReminderRecord {
        due: Timestamp::from_micros(due),
        number: due.unsigned_abs(),
        schedule: None,
        operation: "ring".into(),
        input: Vec::new(),
        token: 0,
        attempts: 0,
        accepted_at: Timestamp::default(),
        sender: String::new(),
        origin: None,
    };
    let slot = |name: &str| Slot::Named(name.into());
    let set = |name: &str, due| Write::Remind(4, id("r"), slot(name), reminder(due));
    writer.write(vec![set("late", 300), set("early", 100), set("cancelled", 200)]).await;
    let cancel = Write::CancelReminder {
        partition: 4,
        id: id("r"),
        slot: slot("cancelled"),
        due: Timestamp::from_micros(200),
        has_origin: false,
    };
    writer.write(vec![cancel]).await;
    let store = &writer.store;
    let due = async |after, until, limit| {
        let until = Timestamp::from_micros(until);
        store.due(4, after, until, limit).await.expect("readable")
    };
    assert!(due(None, 99, 9).await.rows.is_empty(), "nothing is due early");
    let found = due(None, 300, 9).await;
    assert!(found.is_end, "there are no more");
    let names: Vec<_> =
        found.rows.into_iter().map(|(_, slot, record)| (slot, record.due)).collect();
    let early = (slot("early"), Timestamp::from_micros(100));
    let late = (slot("late"), Timestamp::from_micros(300));
    assert_eq!(names, [early, late], "what is due comes in order, without the cancelled");
    let first = due(None, 300, 1).await;
    assert_eq!((first.rows.len(), first.is_end), (1, false), "a scan is bounded");
    let (of, slot, record) = first.rows[0].clone();
    let next = due(Some((record.due, of, slot)), 300, 9).await;
    assert!(next.is_end && !next.rows.is_empty(), "a scan goes on where the last one ended");
    assert!(next.rows.iter().all(|(.., next)| next.due >= record.due), "in order");
    let all = store.reminders(Haste::Short, 4, id("r"), None, 9).await.expect("readable");
    assert_eq!((all.rows.len(), all.is_end), (2, true), "an entity's reminders are found");
    let (_, slot, record) = &all.rows[0];
    let rest =
        store.reminders(Haste::Long, 4, id("r"), Some(slot.clone()), 9).await.expect("readable");
    assert_eq!(rest.rows, all.rows[1..], "pages follow each other");
    let one = store.reminder(4, id("r"), slot.clone()).await.expect("readable");
    assert_eq!(one.as_ref(), Some(record), "one is read alone");
    writer.store.clone().close().await;
}

async fn letters_are_filtered_and_what_waits_is_found(open: &impl AsyncFn() -> Arc<dyn Store>) {
    let store = open().await;
    let mut writer = Writer::new(store.clone());
    let letter = |key: &str, cause| DeadLetter {
        entity: format!("filtered/{key}"),
        sender: String::new(),
        operation: "add".into(),
        input: Vec::new(),
        token: 1,
        cause,
        reason: "why".into(),
        attempts: 1,
        accepted_at: Timestamp::default(),
        dead_lettered_at: Timestamp::from_micros(9),
    };
    let at = |number| DeadLetterId { partition: 5, is_rejection: false, number };
    let letters = (1..=6).map(|number| {
        let cause = if number % 2 == 0 { Cause::Failure } else { Cause::Undecodable };
        Write::put(&at(number), &letter(&number.to_string(), cause))
    });
    writer.write(letters.collect()).await;
    let mut filter = DeadLetterFilter {
        entity_type: Some("filtered".into()),
        cause: Some(Cause::Failure),
        ..DeadLetterFilter::default()
    };
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = store.dead_letters(filter.clone(), after, 1).await.expect("readable");
        found.extend(page.rows.into_iter().map(|(id, _)| id.number));
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(found, [2, 4, 6], "pages of a filter follow each other");
    filter.operation = Some("subtract".into());
    let page = store.dead_letters(filter, None, 9).await.expect("readable");
    assert!(page.rows.is_empty() && page.next.is_none(), "none fits every part");
    let heads = store.dead_letter_heads(5, Some(at(3)), 9).await.expect("readable");
    let numbers: Vec<_> = heads.rows.iter().map(|head| head.id.number).collect();
    assert_eq!((numbers, heads.is_end), (vec![4, 5, 6], true), "of one partition, behind one");
    assert!(heads.rows.iter().all(|head| head.at.as_micros() == 9 && head.bytes > 0));
    let names = vec!["add".to_owned(), "set".to_owned()];
    writer.write(vec![Write::put(&"filtered".to_owned(), &OperationNames(names.clone()))]).await;
    let known = store.operations().await.expect("readable");
    assert!(known.contains(&("filtered".into(), names)), "operations are read back");
    let waiting = store.waiting(3, "suite".into(), vec!["add".into()], 9).await.expect("readable");
    assert!(waiting.iter().all(|row| row.operation != "add"), "what is excepted is left out");
}
