//! The ceiling of everything that is durable: RocksDB itself, flushed, with the same bytes.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use rocksdb::{DB, Options, WriteBatch, WriteOptions};
use stead::{
    EntityId, Timestamp,
    store::{
        record,
        tables::states::{StateHead, StateRecord},
    },
};

const PUTS_PER_BATCH: usize = 1_000;

/// A RocksDB with the options of its makers.
pub struct Ceiling {
    db: DB,
    synced: WriteOptions,
}

impl Ceiling {
    pub fn open(path: &Path) -> Result<Self> {
        let mut options = Options::default();
        options.create_if_missing(true);
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        Ok(Self { db: DB::open(&options, path)?, synced })
    }

    /// Puts a second for batches of a thousand states of `entities` counters in turn.
    pub fn puts_per_second(&self, entities: usize, length: Duration) -> Result<f64> {
        let rows: Vec<_> = (0..entities).map(row).collect();
        let (started, mut puts) = (Instant::now(), 0);
        let mut turn = rows.iter().cycle();
        while started.elapsed() < length {
            let mut batch = WriteBatch::default();
            for (key, value) in turn.by_ref().take(PUTS_PER_BATCH) {
                batch.put(key, value);
            }
            self.db.write_opt(batch, &self.synced)?;
            puts += PUTS_PER_BATCH;
        }
        Ok(puts as f64 / started.elapsed().as_secs_f64())
    }

    /// The time of each of `count` flushed puts of one state, in microseconds.
    pub fn put_micros(&self, count: usize) -> Result<Vec<f64>> {
        let (key, value) = row(0);
        let put = |_| {
            let started = Instant::now();
            self.db.put_opt(&key, &value, &self.synced)?;
            Ok(started.elapsed().as_secs_f64() * 1e6)
        };
        (0..count).map(put).collect()
    }

    /// Writes the states of `entities` counters into sorted files.
    pub fn fill(&self, entities: usize) -> Result<()> {
        for number in 0..entities {
            let (key, value) = row(number);
            self.db.put(key, value)?;
        }
        Ok(self.db.flush()?)
    }

    /// The time to read one state, in microseconds.
    pub fn get_micros(&self, number: usize) -> Result<f64> {
        let (key, _) = row(number);
        let started = Instant::now();
        let found = self.db.get(key)?;
        let micros = started.elapsed().as_secs_f64() * 1e6;
        anyhow::ensure!(found.is_some(), "row {number} is not there");
        Ok(micros)
    }
}

/// The key of the `number`-th counter.
pub fn key(number: usize) -> String {
    format!("k{number:07}")
}

/// The key and value bytes that stead stores for a counter.
pub fn row(number: usize) -> (Vec<u8>, Vec<u8>) {
    let id = EntityId::new("counter", &key(number)).expect("a valid id");
    let head = StateHead {
        version: 1,
        generation: 1 << 42 | 1 << 12,
        revision: 1_000,
        follows: 999,
        incarnation: 1,
        committed_at: Timestamp::from_micros(1_790_000_000_000_000),
    };
    let record = StateRecord::new(
        head,
        Vec::new(),
        stead::stored::encode(&1_000_i64).expect("a number can be stored"),
    );
    (id.as_str().as_bytes().to_vec(), record::encode(&record))
}
