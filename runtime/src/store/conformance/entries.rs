//! The entries of collections: they change with their state, end by range, and end with their generation alone.

use std::sync::Arc;

use stead_entities::{
    EntityId,
    collections::{EntryChanges, KeyRange, Miss, Wanted},
};

use super::{Store, Write, Writer, id, state};
use crate::store::{
    TypedReads as _,
    tables::{
        self,
        states::{Apart, Ended, EndedRows, StateRecord},
    },
};

type Entry = (u32, u8, Option<u8>);

/// The next state of an entity, with these entries changed and ranges of collection 1 ended.
fn put(of: &EntityId, revision: u64, entries: &[Entry], ended: &[(u8, Option<u8>)]) -> Write {
    let key = |byte: u8| vec![1, byte];
    let ended =
        ended.iter().map(|(from, to)| KeyRange { number: 1, from: key(*from), to: to.map(key) });
    let entries = entries
        .iter()
        .map(|(number, byte, value)| ((*number, key(*byte).into()), value.map(|it| vec![it])));
    let changes = EntryChanges { ended: ended.collect(), entries: entries.collect() };
    let apart = Apart { body: false, collections: vec![(1, 9), (2, 9)] };
    let record = StateRecord { changes: Some(Box::new(changes)), apart, ..state(revision) };
    Write::PutState(of.clone(), record)
}

/// The entries of a collection, read by range and by key.
async fn stored(writer: &Writer, of: &EntityId, generation: u64, number: u32) -> Vec<(u8, u8)> {
    let wanted = Wanted::Range { from: Vec::new(), to: None, limit: 9 };
    let all = writer.store.entries(of.clone(), generation, Miss { number, wanted }).await;
    let all = all.expect("readable");
    assert!(all.is_end);
    let keys: Vec<Arc<[u8]>> = (0..9).map(|byte| Arc::from([1, byte])).collect();
    let miss = Miss { number, wanted: Wanted::Keys(keys) };
    if let Some(cached) = writer.store.entries_cached(of, generation, &miss) {
        assert_eq!(cached.expect("readable").rows, all.rows, "without a disk");
    }
    let by_key = writer.store.entries(of.clone(), generation, miss).await.expect("readable");
    assert_eq!(by_key.rows, all.rows, "by key");
    all.rows.into_iter().map(|(key, value)| (key[1], value[0])).collect()
}

pub(super) async fn entries_change_and_end_with_their_state(
    open: &impl AsyncFn() -> Arc<dyn Store>,
) {
    let mut writer = Writer::new(open().await);
    let (of, other) = (id("entries"), id("entries2"));
    let all: Vec<_> = (0..5).map(|byte| (1, byte, Some(byte))).collect();
    let both = [&all[..], &[(2, 3, Some(7))]].concat();
    writer.write(vec![put(&of, 1, &both, &[]), put(&other, 1, &all, &[])]).await;
    assert_eq!(stored(&writer, &of, 9, 1).await.len(), 5);
    // Ranges end before what the same state changes.
    let changed = [(1, 1, Some(9)), (1, 4, None)];
    writer.write(vec![put(&of, 2, &changed, &[(0, Some(3))])]).await;
    assert_eq!(stored(&writer, &of, 9, 1).await, [(1, 9), (3, 3)]);
    writer.write(vec![put(&of, 3, &[], &[(2, None)])]).await;
    assert_eq!(stored(&writer, &of, 9, 1).await, [(1, 9)]);
    assert_eq!(stored(&writer, &of, 9, 2).await, [(3, 7)], "another collection's");
    // A page has no more than was asked for.
    let wanted = Wanted::Range { from: vec![1, 1], to: Some(vec![1, 4]), limit: 2 };
    let page = writer.store.entries(other.clone(), 9, Miss { number: 1, wanted }).await;
    let page = page.expect("readable");
    assert_eq!((page.rows.len(), page.is_end), (2, false));
    writer.store.close().await;

    let mut writer = Writer::new(open().await);
    assert_eq!(stored(&writer, &other, 9, 1).await.len(), 5, "opened again");
    let ended = Ended { entries: Some(EndedRows::All(9)), ..Ended::default() };
    writer.write(vec![Write::DeleteState(of.clone(), ended.clone())]).await;
    assert_eq!(stored(&writer, &of, 9, 1).await, []);
    assert_eq!(stored(&writer, &of, 9, 2).await, []);
    assert_eq!(stored(&writer, &other, 9, 1).await.len(), 5, "another entity's");
    // The next generation, in one commit with the end of the one before.
    let Write::PutState(_, record) = put(&other, 1, &[(1, 6, Some(6))], &[]) else {
        unreachable!("a state")
    };
    let mut next = StateRecord { ends: Some(EndedRows::All(9)), ..record };
    (next.head.generation, next.head.follows) = (10, 0);
    writer.write(vec![Write::PutState(other.clone(), next)]).await;
    assert_eq!(stored(&writer, &other, 9, 1).await, []);
    assert_eq!(stored(&writer, &other, 10, 1).await, [(6, 6)]);

    // A state that is a row of its own is read with its record.
    let mut changes = EntryChanges::default();
    changes.entries.insert(tables::entries::body(), Some(vec![5; 99]));
    let apart = Apart { body: true, collections: Vec::new() };
    let changes = Some(Box::new(changes));
    let large = StateRecord { state: Vec::new(), apart, changes, ..state(1) };
    writer.write(vec![Write::PutState(of.clone(), large)]).await;
    let read = writer.store.load(of.clone()).await.expect("readable").expect("there");
    assert_eq!((read.state, read.apart.body), (vec![5; 99], true));
    let end = |id: &EntityId| {
        let rows = if *id == other { EndedRows::All(10) } else { EndedRows::Body(9) };
        Write::DeleteState(id.clone(), Ended { entries: Some(rows), ..Ended::default() })
    };
    writer.write(vec![end(&of), end(&other)]).await;
    writer.store.close().await;
}
