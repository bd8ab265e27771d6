//! Every store passes the same conformance suite, and RocksDB keeps its own promises beside it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use stead::{
    RocksStore,
    store::{
        Batch, CommitOutcome, Fence, Store, conformance, memory::MemoryDisk, rocks::OpenError,
    },
};

#[tokio::test]
async fn the_memory_store_conforms() {
    let disk = MemoryDisk::new();
    conformance::suite(|| Arc::new(disk.open().expect("readable"))).await;
}

#[tokio::test]
async fn the_rocksdb_store_conforms() {
    let directory = tempfile::tempdir().expect("a directory");
    conformance::suite(|| Arc::new(RocksStore::open(directory.path()).expect("opens"))).await;
}

async fn commit_empty(store: &RocksStore, number: u64) {
    let fence = Fence { incarnation: store.opened().incarnation, lane: 0, number };
    let time = store.opened().time;
    let batch = Batch { fence, owner: "test".into(), time, is_clean: false, writes: Vec::new() };
    assert_eq!(store.commit(batch).await, CommitOutcome::Committed);
}

#[tokio::test]
async fn every_commit_syncs_the_log() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = RocksStore::open(directory.path()).expect("opens");
    let before = store.log_syncs();
    let first = store.opened().last_batch + 1;
    for number in first..first + 10 {
        commit_empty(&store, number).await;
    }
    assert_eq!(store.log_syncs() - before, 10);
}

#[test]
fn a_directory_has_one_process() {
    let directory = tempfile::tempdir().expect("a directory");
    let _first = RocksStore::open(directory.path()).expect("opens");
    let second = RocksStore::open(directory.path());
    assert!(matches!(second, Err(OpenError::InUse(_))));
}

/// The log of a store that committed twenty batches and was closed.
async fn written_log(directory: &Path) -> PathBuf {
    let store = RocksStore::open(directory).expect("opens");
    let first = store.opened().last_batch + 1;
    for number in first..first + 20 {
        commit_empty(&store, number).await;
    }
    store.close().await;
    drop(store);
    let files = fs::read_dir(directory.join("rocksdb")).expect("readable");
    let files = files.filter_map(|file| Some(file.ok()?.path()));
    let logs = files.filter(|path| path.extension().is_some_and(|kind| kind == "log"));
    logs.max().expect("a log")
}

#[tokio::test]
async fn a_log_that_was_shortened_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let last = written_log(directory.path()).await;
    let length = fs::metadata(&last).expect("a file").len();
    let file = fs::File::options().write(true).open(&last).expect("opens");
    file.set_len(length / 2).expect("shortened");
    drop(file);
    let opened = RocksStore::open(directory.path());
    assert!(matches!(opened, Err(OpenError::LostTail(_))), "{opened:?}");
}

/// Damage in the middle of the log, with acknowledged batches behind it.
#[tokio::test]
async fn a_log_that_was_damaged_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let last = written_log(directory.path()).await;
    let mut bytes = fs::read(&last).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xFF;
    fs::write(&last, bytes).expect("written");
    let opened = RocksStore::open(directory.path());
    assert!(matches!(opened, Err(OpenError::LostTail(_))), "{opened:?}");
}
