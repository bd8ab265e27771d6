//! Space that deletions, and keys and changes past their retention, give back while the store is open.

use std::{path::Path, time::Duration};

use stead::{
    EntityId,
    collections::EntryChanges,
    store::{
        Horizons, TypedReads as _,
        tables::{
            changes::{ChangeKey, ChangeRecord, Place},
            idempotency::{IdempotencyKey, IdempotencyRecord, Remembered},
            states::{Apart, Ended, EndedRows, StateHead, StateRecord},
        },
    },
};
use stead_tests::wait::until;

use super::*;

const ENTITIES: u64 = 60_000;
const KEYS: u64 = 100_000;
const PER_BATCH: u64 = 2_000;

/// The bytes of everything in the database.
fn bytes(directory: &Path) -> u64 {
    let files = fs::read_dir(directory.join("rocksdb")).expect("a directory");
    files.filter_map(|file| file.ok()?.metadata().ok()).map(|file| file.len()).sum()
}

fn id(number: u64) -> EntityId {
    EntityId::new("parcel", &format!("p{number:08}")).expect("valid")
}

/// A state that no compression makes small.
fn state(number: u64) -> Write {
    let head = StateHead {
        version: 1,
        generation: 1,
        revision: 1,
        follows: 0,
        incarnation: 1,
        committed_at: Timestamp::from_micros(1),
    };
    let mut random = stead_tests::random::Random(number + 1);
    let state = (0..1_024).map(|_| random.below(256) as u8).collect();
    Write::PutState(id(number), StateRecord::new(head, Vec::new(), state))
}

fn open(directory: &Path) -> RocksStore {
    let settings = RocksSettings::with(|settings| {
        settings.write_buffer_bytes = 8 << 20;
        settings.tidy_interval = Duration::from_millis(20);
    });
    RocksStore::open_with(directory, &settings).expect("opens")
}

async fn write(store: &RocksStore, number: &mut u64, all: impl Iterator<Item = Write>) {
    let all: Vec<_> = all.collect();
    for writes in all.chunks(PER_BATCH as usize) {
        *number += 1;
        commit(store, *number, writes.to_vec()).await;
    }
}

#[tokio::test]
async fn deleted_entities_give_their_space_back_without_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let mut number = store.opened().last_batch;
    write(&store, &mut number, (0..ENTITIES).map(state)).await;
    let full = bytes(directory.path());
    assert!(full > ENTITIES * 1_024, "{full}");
    let deleted = (0..ENTITIES).map(|number| Write::DeleteState(id(number), Ended::default()));
    write(&store, &mut number, deleted).await;
    let shrunk = async || {
        store.maintain(Horizons::NONE);
        Ok((bytes(directory.path()) < full / 4).then_some(()))
    };
    until("the directory is a quarter of what it was", shrunk).await.unwrap_or_else(|error| {
        panic!("{error}: {} of {full} bytes", bytes(directory.path()));
    });
}

/// A state with so many entries in its only collection, of which no compression makes any small.
fn with_entries(number: u64, count: u64) -> Write {
    let Write::PutState(id, record) = state(number) else { unreachable!("a state") };
    let mut changes = EntryChanges::default();
    let mut random = stead_tests::random::Random(number + 1);
    for entry in 0..count {
        let stored = (0..1_024).map(|_| random.below(256) as u8).collect();
        changes.entries.insert((1, entry.to_be_bytes().into()), Some(stored));
    }
    let apart = Apart { body: false, collections: vec![(1, count)] };
    Write::PutState(id, StateRecord { apart, changes: Some(Box::new(changes)), ..record })
}

#[tokio::test]
async fn the_entries_of_deleted_entities_give_their_space_back_without_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let mut number = store.opened().last_batch;
    let count = ENTITIES / 10;
    for entity in 0..10 {
        number += 1;
        commit(&store, number, vec![with_entries(entity, count)]).await;
    }
    let full = bytes(directory.path());
    assert!(full > ENTITIES * 1_024, "{full}");
    let ended = |number: u64| {
        let entries = Some(EndedRows::All(1));
        Write::DeleteState(id(number), Ended { entries, ..Ended::default() })
    };
    number += 1;
    commit(&store, number, (0..10).map(ended).collect()).await;
    let shrunk = async || {
        store.maintain(Horizons::NONE);
        Ok((bytes(directory.path()) < full / 2).then_some(()))
    };
    until("the directory is half of what it was", shrunk).await.unwrap_or_else(|error| {
        panic!("{error}: {} of {full} bytes", bytes(directory.path()));
    });
}

#[tokio::test]
async fn changes_past_their_retention_leave_the_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let mut number = store.opened().last_batch;
    let change = |number: u64| {
        let place = Place { number, index: 0 };
        let key = ChangeKey { entity_type: "order".into(), incarnation: 1, place };
        let kept_until = Timestamp::from_micros(if number < KEYS { 10 } else { 1_000 });
        let entity = format!("{number:096}");
        let record = ChangeRecord { key: entity, version: None, kept_until, replaced: None };
        Write::put(&key, &record)
    };
    write(&store, &mut number, (0..KEYS + 10).map(change)).await;
    let full = bytes(directory.path());
    let gone = async || {
        store.maintain(Horizons { changes: Timestamp::from_micros(500), ..Horizons::NONE });
        Ok((bytes(directory.path()) < full / 4).then_some(()))
    };
    until("the changes are gone", gone).await.unwrap_or_else(|error| {
        panic!("{error}: {} of {full} bytes", bytes(directory.path()));
    });
}

#[tokio::test]
async fn keys_past_their_retention_leave_the_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let mut number = store.opened().last_batch;
    let key = |number: u64| IdempotencyKey {
        partition: (number % 256) as u16,
        id: id(number),
        caller: "".into(),
        key: format!("{number:032}").into(),
    };
    let record = |number: u64| IdempotencyRecord {
        fingerprint: u128::from(number) << 64,
        at: Timestamp::from_micros(if number < KEYS { 10 } else { 1_000 }),
        outcome: Remembered::Replied(format!("{number:064}").into_bytes()),
    };
    let put = |number| Write::put(&key(number), &record(number));
    write(&store, &mut number, (0..KEYS + 10).map(put)).await;
    let full = bytes(directory.path());
    let gone = async || {
        store.maintain(Horizons { keys: Timestamp::from_micros(500), ..Horizons::NONE });
        let first = store.remembered(key(0)).await?;
        Ok((first.is_none() && bytes(directory.path()) < full / 4).then_some(()))
    };
    until("the keys are gone", gone).await.unwrap_or_else(|error| {
        panic!("{error}: {} of {full} bytes", bytes(directory.path()));
    });
    for kept in KEYS..KEYS + 10 {
        assert!(
            store.remembered(key(kept)).await.expect("readable").is_some(),
            "{kept} is younger"
        );
    }
}
