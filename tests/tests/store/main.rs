//! Every store passes the same conformance suite, and RocksDB keeps its own promises beside it.

mod backups;
mod postgres;
mod space;

use std::{
    fs,
    path::{Path, PathBuf},
};

use stead::{
    RocksStore, Timestamp,
    store::{
        Batch, CommitOutcome, Fence, Store, Write, conformance,
        memory::MemoryDisk,
        rocks::{OpenError, RocksSettings},
        tables::{
            dead_letters::{Cause, DeadLetter, DeadLetterId},
            meta::LayoutText,
        },
    },
};

#[tokio::test]
async fn the_memory_store_conforms() {
    let disk = MemoryDisk::new();
    conformance::suite(async || disk.open().expect("readable")).await;
}

#[tokio::test]
async fn the_rocksdb_store_conforms() {
    let directory = tempfile::tempdir().expect("a directory");
    let open = || RocksStore::open(directory.path()).expect("opens");
    conformance::suite(async || open()).await;
}

#[tokio::test(start_paused = true)]
async fn the_memory_store_conforms_when_it_is_shared() {
    conformance::shared_suite(MemoryDisk::new().share()).await;
}

async fn commit_empty(store: &RocksStore, number: u64) {
    commit(store, number, Vec::new()).await;
}

async fn commit(store: &RocksStore, number: u64, writes: Vec<Write>) {
    commit_as(store, number, writes, false).await;
}

async fn commit_as(store: &RocksStore, number: u64, writes: Vec<Write>, is_buffered: bool) {
    let fence = Fence { incarnation: store.opened().incarnation, lane: 0, number };
    let time = store.opened().time;
    let batch = Batch { fence, owner: "test".into(), time, is_clean: false, is_buffered, writes };
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

#[tokio::test]
async fn buffered_commits_are_synced_by_the_next_one_that_is_not_or_when_asked() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = RocksStore::open(directory.path()).expect("opens");
    let (before, first) = (store.log_syncs(), store.opened().last_batch + 1);
    for number in first..first + 10 {
        commit_as(&store, number, Vec::new(), true).await;
    }
    assert_eq!(store.log_syncs() - before, 0);
    commit_empty(&store, first + 10).await;
    assert_eq!(store.log_syncs() - before, 1);
    commit_as(&store, first + 11, Vec::new(), true).await;
    assert_eq!(store.flush().await, CommitOutcome::Committed);
    assert_eq!(store.log_syncs() - before, 2);
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
    last_log(directory)
}

fn last_log(directory: &Path) -> PathBuf {
    let files = fs::read_dir(directory.join("rocksdb")).expect("readable");
    let files = files.filter_map(|file| Some(file.ok()?.path()));
    let logs = files.filter(|path| path.extension().is_some_and(|kind| kind == "log"));
    logs.max().expect("a log")
}

/// Changes one byte of a file, at a place that depends on its length.
fn damage(path: &Path, place: impl Fn(usize) -> usize) {
    let mut bytes = fs::read(path).expect("readable");
    let place = place(bytes.len());
    bytes[place] ^= 0xFF;
    fs::write(path, bytes).expect("written");
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
    damage(&last, |length| length / 2);
    let opened = RocksStore::open(directory.path());
    assert!(matches!(opened, Err(OpenError::LostTail(_))), "{opened:?}");
}

/// Damage of one batch, with whole blocks of intact ones behind it: skipping it would leave the log
/// as long as it was, and a hole in it.
#[tokio::test]
async fn a_log_with_a_hole_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = RocksStore::open(directory.path()).expect("opens");
    let first = store.opened().last_batch + 1;
    for number in first..first + 60 {
        let text = format!("{number} ").repeat(1_000);
        commit(&store, number, vec![Write::put(&("t".into(), number as u32), &LayoutText(text))])
            .await;
    }
    store.close().await;
    drop(store);
    let last = last_log(directory.path());
    damage(&last, |length| length / 8);
    let opened = RocksStore::open(directory.path());
    assert!(matches!(opened, Err(OpenError::LostTail(_))), "{opened:?}");
}

/// A damaged block of a sorted file is met by reads and by compactions; neither may stop what has
/// nothing to do with it.
#[tokio::test]
async fn a_damaged_file_does_not_stop_commits_for_ever() {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = RocksSettings::with(|settings| settings.write_buffer_bytes = 256 << 10);
    let open = || RocksStore::open_with(directory.path(), &settings).expect("opens");
    let store = open();
    write_some(&store, 40).await;
    store.close().await;
    drop(store);
    let files = fs::read_dir(directory.path().join("rocksdb")).expect("readable");
    let files = files.filter_map(|file| Some(file.ok()?.path()));
    let sorted = files.filter(|path| path.extension().is_some_and(|kind| kind == "sst"));
    let largest = sorted.max_by_key(|path| fs::metadata(path).map_or(0, |file| file.len()));
    let path = largest.expect("a sorted file");
    // A block of rows comes first in a file.
    damage(&path, |_| 64);
    let mut poisoned = 0;
    for _ in 0..3 {
        let store = open();
        poisoned += i32::from(!write_some(&store, 200).await);
        store.close().await;
    }
    assert!(poisoned <= 1, "a compaction met the damage {poisoned} times");
}

/// Commits batches of some size; says whether all were committed.
async fn write_some(store: &RocksStore, batches: u64) -> bool {
    let first = store.opened().last_batch + 1;
    for number in first..first + batches {
        let fence = Fence { incarnation: store.opened().incarnation, lane: 0, number };
        let writes = (0..10).map(|row| {
            let id =
                DeadLetterId { partition: 0, is_rejection: false, number: number * 7 % 97 + row };
            Write::put(&id, &letter(number))
        });
        let batch = Batch {
            fence,
            owner: "test".into(),
            time: store.opened().time,
            is_clean: false,
            is_buffered: false,
            writes: writes.collect(),
        };
        if store.commit(batch).await != CommitOutcome::Committed {
            return false;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    true
}

fn letter(number: u64) -> DeadLetter {
    // Bytes that cannot be compressed.
    let noise = |n: u64| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u8;
    DeadLetter {
        entity: "counter/a".into(),
        sender: String::new(),
        operation: "add".into(),
        input: (0..2_000).map(|at| noise(number * 4_001 + at)).collect(),
        token: 0,
        cause: Cause::Failure,
        reason: String::new(),
        attempts: 1,
        accepted_at: Timestamp::default(),
        dead_lettered_at: Timestamp::default(),
    }
}
