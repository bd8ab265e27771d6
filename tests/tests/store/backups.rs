//! What is opened is one unbroken history of batches; and a closed store lets go of its directory.

use std::{fs, path::Path, process::Command};

use stead::{
    Node, RocksStore, Timestamp,
    stock::Counter,
    store::{
        Store as _, Write,
        rocks::{OpenError, RocksSettings},
        tables::meta::LayoutText,
    },
};

use super::{commit, commit_empty};

/// Small buffers, so that logs are finished and removed soon.
fn open(path: &Path) -> Result<RocksStore, OpenError> {
    let settings = RocksSettings::with(|settings| settings.write_buffer_bytes = 64 << 10);
    RocksStore::open_with(path, &settings)
}

/// Some batches, of some size, of one start of the program.
async fn run(path: &Path, batches: u64, bytes: usize) {
    let store = open(path).expect("opens");
    let first = store.opened().last_batch + 1;
    for number in first..first + batches {
        let text = "x".repeat(bytes);
        commit(&store, number, vec![Write::put(&("t".into(), number as u32), &LayoutText(text))])
            .await;
    }
    store.close().await;
}

fn copy(from: &Path, to: &Path) {
    let contents = format!("{}/.", from.display());
    let copied = Command::new("cp").arg("-a").arg(contents).arg(to).status().expect("cp");
    assert!(copied.success());
}

#[tokio::test]
async fn a_backup_over_a_directory_that_was_not_emptied_is_refused() {
    let root = tempfile::tempdir().expect("a directory");
    let (data, backup) = (root.path().join("data"), root.path().join("backup"));
    fs::create_dir(&backup).expect("made");
    run(&data, 3, 100).await;
    copy(&data, &backup);
    // Enough that the logs of these batches are removed, then some that stay in a log.
    run(&data, 40, 20_000).await;
    run(&data, 3, 100).await;
    copy(&backup, &data);
    for _ in 0..2 {
        let opened = open(&data);
        let Err(OpenError::Gap(why)) = opened else { panic!("{opened:?}") };
        assert!(why.contains("batch"), "{why}");
    }
    // What the message says to do helps.
    fs::remove_dir_all(&data).expect("emptied");
    fs::create_dir(&data).expect("made");
    copy(&backup, &data);
    assert!(open(&data).is_ok());
}

/// Every batch is there: the same files, and what was written behind them.
#[tokio::test]
async fn a_backup_whose_whole_continuation_is_there_is_opened() {
    let root = tempfile::tempdir().expect("a directory");
    let (data, backup) = (root.path().join("data"), root.path().join("backup"));
    fs::create_dir(&backup).expect("made");
    run(&data, 3, 100).await;
    copy(&data, &backup);
    copy(&backup, &data);
    assert!(open(&data).is_ok());
}

/// Two programs went on from the same backup, and their files were mixed: the numbers of the batches fit
/// together, and what is in them does not.
#[tokio::test]
async fn files_of_two_histories_are_refused() {
    let root = tempfile::tempdir().expect("a directory");
    let (one, other) = (root.path().join("one"), root.path().join("other"));
    fs::create_dir(&other).expect("made");
    run(&one, 3, 100).await;
    copy(&one, &other);
    run(&one, 4, 100).await;
    run(&other, 4, 100).await;
    run(&other, 4, 100).await;
    // The last log of the other one, behind the logs of this one.
    let logs = |path: &Path| {
        let files = fs::read_dir(path.join("rocksdb")).expect("readable");
        let files = files.filter_map(|file| Some(file.ok()?.path()));
        let mut logs: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|kind| kind == "log")).collect();
        logs.sort();
        logs
    };
    let last = logs(&other).pop().expect("a log");
    let name = last.file_name().expect("a name").to_owned();
    fs::copy(&last, one.join("rocksdb").join(name)).expect("copied");
    let opened = open(&one);
    // Either the links do not fit, or RocksDB itself finds the log impossible.
    assert!(matches!(opened, Err(OpenError::Gap(_) | OpenError::LostTail(_))), "{opened:?}");
}

#[tokio::test]
async fn a_history_of_many_starts_and_many_batches_is_whole() {
    let root = tempfile::tempdir().expect("a directory");
    for _ in 0..5 {
        let store = open(root.path()).expect("opens");
        let first = store.opened().last_batch + 1;
        for number in first..first + 300 {
            commit_empty(&store, number).await;
        }
        // Without closing it, as a crash does.
        drop(store);
    }
    assert!(open(root.path()).is_ok());
}

#[tokio::test(flavor = "current_thread")]
async fn a_directory_is_opened_again_right_after_its_node_has_drained() {
    let root = tempfile::tempdir().expect("a directory");
    let mut kept = Vec::new();
    for round in 1..=20_i64 {
        let store =
            RocksStore::open(root.path()).unwrap_or_else(|error| panic!("{round}: {error}"));
        let node = Node::builder().store(store).entity::<Counter>().start().await.expect("starts");
        let visits = node.entity::<Counter>("visits");
        assert_eq!(visits.add(1).await.expect("applied"), round);
        // Tasks that hold the node, and a read that nobody waits for.
        let other = node.clone();
        kept.push(tokio::spawn(async move { other.entity::<Counter>("other").value().await }));
        node.drain().await.expect("in order");
        // References are still held.
        kept.push(tokio::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            drop(visits);
            Ok(0)
        }));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn opening_asynchronously_blocks_no_thread_of_the_runtime() {
    let root = tempfile::tempdir().expect("a directory");
    let first = RocksStore::open(root.path()).expect("opens");
    let opening = RocksStore::open_async(root.path(), RocksSettings::default());
    // It waits for the first to let go, which a task of this only thread does.
    let closing = async {
        tokio::task::yield_now().await;
        first.close().await;
    };
    let (opened, ()) = tokio::join!(opening, closing);
    assert!(opened.is_ok(), "{opened:?}");
}

#[tokio::test]
async fn a_clock_that_was_led_astray_is_set_back_and_numbers_still_grow() {
    let root = tempfile::tempdir().expect("a directory");
    let astray = {
        let store = open(root.path()).expect("opens");
        let year = std::time::Duration::from_secs(365 * 86_400);
        let astray = Timestamp::from_micros(now()) + year;
        let fence = stead::store::Fence {
            incarnation: store.opened().incarnation,
            lane: 0,
            number: store.opened().last_batch + 1,
        };
        let batch = stead::store::Batch {
            fence,
            owner: "test".into(),
            time: astray,
            is_clean: true,
            is_buffered: false,
            writes: Vec::new(),
        };
        store.commit(batch).await;
        store.close().await;
        astray
    };
    let store = open(root.path()).expect("opens");
    assert_eq!(store.opened().time, astray, "it never goes back by itself");
    store.close().await;
    let settings = RocksSettings::with(|settings| settings.reset_clock = true);
    let store = RocksStore::open_with(root.path(), &settings).expect("opens");
    assert!(store.opened().time.as_micros() <= now());
    let ahead = store.opened().numbers_ahead;
    let before = store.opened().time + ahead;
    assert!(before >= astray, "numbers go on behind those that were minted");
    store.close().await;
    let store = open(root.path()).expect("opens");
    assert!(store.opened().time.as_micros() <= now());
    assert_eq!(store.opened().numbers_ahead, ahead, "at each start, from where the clock is");
    let node = Node::builder().store(store).entity::<Counter>().start().await.expect("starts");
    assert!(node.notes().is_empty(), "the clock is right");
    let later = std::time::Duration::from_millis(20);
    node.entity::<Counter>("c").add(1).after(later).signal().await.expect("accepted");
    let applied = async || node.entity::<Counter>("c").value().await.expect("read") == 1;
    stead_tests::wait::until_true("a delay of 20 ms is over", applied).await;
}

#[tokio::test]
async fn ids_never_repeat_after_the_clock_was_set_back() {
    let root = tempfile::tempdir().expect("a directory");
    let id = async |reset_clock: bool, astray: bool| {
        let settings = RocksSettings::with(|settings| settings.reset_clock = reset_clock);
        let store = RocksStore::open_with(root.path(), &settings).expect("opens");
        let clock = std::sync::Arc::new(stead::clock::HighWaterClock::new());
        if astray {
            let day = std::time::Duration::from_secs(86_400);
            stead::clock::Clock::advance_to(&*clock, Timestamp::from_micros(now()) + day);
        }
        let node = Node::builder().store(store).clock(clock).entity::<Counter>();
        let node = node.start().await.expect("starts");
        let later = std::time::Duration::from_secs(1_000_000);
        let sent = node.entity::<Counter>("c").add(1).after(later).signal().await;
        let id = sent.expect("accepted").reminder.expect("an id");
        node.drain().await.expect("in order");
        match id {
            stead::ReminderId::Delayed(number) => number,
            other => panic!("{other:?}"),
        }
    };
    let mut last = id(false, true).await;
    for (round, reset) in [true, false, false, true, false].into_iter().enumerate() {
        let next = id(reset, false).await;
        assert!(next > last, "round {round}: {next} is not behind {last}");
        last = next;
    }
}

#[tokio::test]
async fn a_clock_that_is_far_ahead_is_told_of() {
    let root = tempfile::tempdir().expect("a directory");
    let store = open(root.path()).expect("opens");
    let node = Node::builder().store(store).entity::<Counter>().start().await.expect("starts");
    assert!(node.notes().is_empty());
    node.drain().await.expect("in order");
    let store = stead::store::memory::MemoryDisk::new().open().expect("opens");
    let clock = std::sync::Arc::new(stead::clock::HighWaterClock::new());
    let hour = std::time::Duration::from_secs(3_600);
    stead::clock::Clock::advance_to(&*clock, Timestamp::from_micros(now()) + hour);
    let node = Node::builder().store(store).clock(clock).entity::<Counter>().start().await;
    let notes = node.expect("starts").notes();
    assert!(notes.iter().any(|note| note.contains("ahead of the wall clock")), "{notes:?}");
}

/// The wall clock, in microseconds since 1970.
fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as i64)
}
