//! The directory around the database: its lock, its commit horizon, its floor of free space.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fs4::FileExt as _;

use crate::{
    MemoryDivision,
    clock::{monotonic, wait},
};

/// How long opening waits for whoever uses the directory to end.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_INTERVAL: Duration = Duration::from_millis(10);
const HORIZON_INTERVAL: Duration = Duration::from_millis(200);
const ROOM_INTERVAL: Duration = Duration::from_millis(50);
/// Room for what opening writes; kept where the disk is large enough not to miss it.
const RESERVE_BYTES: u64 = 64 << 20;
/// The most that is kept free unless the settings say otherwise.
const FREE_BYTES_MIN: u64 = 256 << 20;
/// Numbers that a partition mints have 12 bits for it.
const PARTITIONS_MAX: u16 = 4_096;

/// How a directory is used.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RocksSettings {
    /// The name of the node, written as the owner.
    pub node: Arc<str>,
    /// How many partitions a new store gets; an existing one keeps its own number. 1 to 4,096.
    pub partitions: u16,
    /// Bytes of the block cache.
    pub block_cache_bytes: usize,
    /// Bytes of states, and as many of idempotency keys, that are kept in memory and in the log
    /// before they are written to a sorted file; at most a sixteenth of the disk is used. More makes
    /// writing cheaper and opening slower.
    pub write_buffer_bytes: usize,
    /// The most bytes of all tables together that are kept in memory before they are written to files. Not set:
    /// then each table has buffers of its own, as [`RocksSettings::write_buffer_bytes`] says.
    pub write_buffers_bytes_max: Option<usize>,
    /// Writes are refused while less than this many bytes of the disk are free. `None` takes a
    /// quarter of the disk, at most 256 MiB: room for what is in memory to be written out.
    pub free_bytes_min: Option<u64>,
    /// How often the store looks whether there is space to give back: what was deleted, and is not yet gone from
    /// its files. 30 s. Keys past their retention are looked for 100 times as seldom.
    pub tidy_interval: Duration,
    /// Sets the store's clock back to the wall clock where it is ahead, once, at this opening. For a
    /// store that a wall clock far ahead has led astray. Not set.
    pub reset_clock: bool,
}

impl RocksSettings {
    /// The same within a budget of memory: cache and write buffers have their parts of it.
    #[must_use]
    pub fn within(self, memory: &MemoryDivision) -> Self {
        Self {
            block_cache_bytes: self.block_cache_bytes.min(memory.cache),
            write_buffer_bytes: self.write_buffer_bytes.min(memory.write_buffers / 4),
            write_buffers_bytes_max: Some(memory.write_buffers),
            ..self
        }
    }

    /// The defaults, with what `change` sets.
    pub fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut settings = Self::default();
        change(&mut settings);
        settings
    }
}

impl Default for RocksSettings {
    fn default() -> Self {
        Self {
            node: "node".into(),
            partitions: 256,
            block_cache_bytes: 64 << 20,
            write_buffer_bytes: 64 << 20,
            write_buffers_bytes_max: None,
            free_bytes_min: None,
            tidy_interval: Duration::from_secs(30),
            reset_clock: false,
        }
    }
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses the directory.
    #[error("{0} is in use by another process, or by a node of this one that is not yet dropped")]
    InUse(String),
    /// The log ends before what is known to be durable: acknowledged data was lost.
    #[error(
        "acknowledged data is missing: {0}. The log was shortened or damaged after it was \
         flushed; restore the directory from a backup"
    )]
    LostTail(String),
    /// Batches are missing in the middle, or belong to another history: what was acknowledged in them
    /// was lost.
    #[error(
        "the data is not one unbroken history: {0}. Files of different times were mixed, for example \
         by a backup that was copied over a directory that was not empty. Empty the directory, then \
         copy a whole backup into it"
    )]
    Gap(String),
    /// The directory or the database cannot be opened.
    #[error("the data cannot be opened: {0}")]
    Unreadable(String),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// A directory that this process has locked.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    free_bytes_min: u64,
    write_buffer_bytes: usize,
    is_new: bool,
    _lock: File,
    durable: AtomicU64,
    horizon: Mutex<(File, u64, Instant)>,
    room: Mutex<(Instant, Result<(), String>)>,
    has_room: AtomicBool,
    reserved: AtomicBool,
}

impl Directory {
    pub(super) fn acquire(path: &Path, settings: &super::RocksSettings) -> Result<Self, OpenError> {
        if !(1..=PARTITIONS_MAX).contains(&settings.partitions) {
            let why = format!("a store has 1 to {PARTITIONS_MAX} partitions");
            return Err(OpenError::Unreadable(why));
        }
        create_private(path)?;
        let lock = File::options().create(true).append(true).open(path.join("LOCK.stead"))?;
        let asked = monotonic();
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                // Whoever has it may be about to end: a node that was just dropped, or a process.
                Err(TryLockError::WouldBlock) if asked.elapsed() < LOCK_TIMEOUT => {
                    wait(LOCK_INTERVAL);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(OpenError::InUse(path.display().to_string()));
                }
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
        let horizon = path.join("HORIZON");
        let created = !horizon.exists();
        let file =
            File::options().create(true).truncate(false).read(true).write(true).open(horizon)?;
        if created {
            File::open(path)?.sync_all()?;
        }
        let total = fs4::total_space(path).unwrap_or(u64::MAX);
        let floor = settings.free_bytes_min.unwrap_or(FREE_BYTES_MIN.min(total / 4));
        let buffer = usize::try_from(total / 16).unwrap_or(usize::MAX);
        let is_new = fs::metadata(path.join("HORIZON")).map_or(0, |file| file.len()) == 0;
        let directory = Self {
            path: path.to_owned(),
            free_bytes_min: floor,
            write_buffer_bytes: settings.write_buffer_bytes.min(buffer),
            is_new,
            _lock: lock,
            durable: AtomicU64::new(0),
            horizon: Mutex::new((file, 0, monotonic())),
            room: Mutex::new((monotonic(), Ok(()))),
            has_room: AtomicBool::new(true),
            reserved: AtomicBool::new(false),
        };
        directory.keep_reserve();
        let room = directory.measure_room();
        directory.has_room.store(room.is_ok(), Ordering::Relaxed);
        directory.room.lock().unwrap_or_else(PoisonError::into_inner).1 = room;
        Ok(directory)
    }

    pub(super) fn database(&self) -> PathBuf {
        self.path.join("rocksdb")
    }

    /// Whether nothing was ever committed here, as far as is known.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    pub(super) fn write_buffer_bytes(&self) -> usize {
        self.write_buffer_bytes
    }

    /// Notes that a part of the database is damaged. From the next opening on files are no longer
    /// compacted, which would meet the damage again and again and stop every commit.
    pub(super) fn mark_damaged(&self) {
        if let Err(error) = File::create(self.path.join("DAMAGED")) {
            tracing::error!(%error, "the damage cannot be noted");
        }
    }

    /// Whether a part of the database is known to be damaged.
    pub(super) fn is_damaged(&self) -> bool {
        self.path.join("DAMAGED").exists()
    }

    /// Refuses a log that ends before the horizon.
    pub(super) fn check_horizon(&self, recovered: u64) -> Result<(), OpenError> {
        let bytes = fs::read(self.path.join("HORIZON"))?;
        if bytes.is_empty() {
            return Ok(());
        }
        let known = bytes.first_chunk::<8>().map(|number| u64::from_be_bytes(*number));
        let check = bytes.get(8..16) == bytes.get(..8).map(|_| invert(&bytes)).as_deref();
        let Some(known) = known.filter(|_| check) else {
            return Err(OpenError::LostTail("the file HORIZON is damaged".into()));
        };
        if recovered < known {
            let text = format!("the log ends at batch {recovered}, batch {known} was durable");
            return Err(OpenError::LostTail(text));
        }
        Ok(())
    }

    /// Notes that a batch is durable.
    pub(super) fn note_durable(&self, batch: u64) {
        self.durable.store(batch, Ordering::Relaxed);
    }

    /// Writes the horizon if it is due, a few times a second, also when nothing is committed any more.
    pub(super) fn maintain_horizon(&self) {
        let due = {
            let horizon = self.horizon.lock().unwrap_or_else(PoisonError::into_inner);
            horizon.2.elapsed() >= HORIZON_INTERVAL
        };
        if due {
            self.flush_horizon();
        }
    }

    /// Writes the horizon. An error leaves the horizon behind, which detects less but never wrongly.
    pub(super) fn flush_horizon(&self) {
        let batch = self.durable.load(Ordering::Relaxed);
        let mut horizon = self.horizon.lock().unwrap_or_else(PoisonError::into_inner);
        horizon.2 = monotonic();
        if horizon.1 >= batch {
            return;
        }
        let mut bytes = batch.to_be_bytes().to_vec();
        bytes.extend(invert(&bytes));
        let written = write_at_start(&mut horizon.0, &bytes);
        match written {
            Ok(()) => horizon.1 = batch,
            Err(error) => tracing::warn!(%error, "the commit horizon cannot be written"),
        }
    }

    /// Whether more than the floor was free when last measured.
    pub(super) fn has_room(&self) -> bool {
        self.has_room.load(Ordering::Relaxed)
    }

    /// Whether more than the floor is free; measured some times a second.
    pub(super) fn check_room(&self) -> Result<(), String> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        if room.0.elapsed() >= ROOM_INTERVAL {
            let now = self.measure_room();
            if now.is_ok() != room.1.is_ok() {
                tracing::warn!(has_room = now.is_ok(), "the disk's free space crossed its floor");
            }
            self.has_room.store(now.is_ok(), Ordering::Relaxed);
            *room = (monotonic(), now);
        }
        room.1.clone()
    }

    fn measure_room(&self) -> Result<(), String> {
        let free = fs4::available_space(&self.path).unwrap_or(u64::MAX);
        let floor = self.free_bytes_min;
        if free < floor {
            return Err(format!(
                "{free} bytes are free, writes need {floor}: make room on the disk"
            ));
        }
        if !self.reserved.load(Ordering::Relaxed) {
            self.keep_reserve();
        }
        Ok(())
    }

    /// Keeps a file that is given back when there is too little room to open the database.
    fn keep_reserve(&self) {
        let path = self.path.join("RESERVE");
        let free = fs4::available_space(&self.path).unwrap_or(0);
        if free < RESERVE_BYTES {
            let _nothing_to_give_back = fs::remove_file(path);
            self.reserved.store(false, Ordering::Relaxed);
            return;
        }
        if fs::metadata(&path).is_ok_and(|file| file.len() == RESERVE_BYTES) {
            self.reserved.store(true, Ordering::Relaxed);
        } else if free > self.free_bytes_min.saturating_add(8 * RESERVE_BYTES) {
            let made = File::create(&path).and_then(|file| file.allocate(RESERVE_BYTES));
            self.reserved.store(made.is_ok(), Ordering::Relaxed);
        }
    }
}

fn write_at_start(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    use io::Seek as _;
    file.seek(io::SeekFrom::Start(0))?;
    file.write_all(bytes)?;
    file.sync_data()
}

fn invert(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().take(8).map(|byte| !byte).collect()
}

fn create_private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}
