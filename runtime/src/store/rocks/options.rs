//! How RocksDB is set up, and why.

use std::{ffi::CStr, sync::Arc};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, CompactionDecision, DB, DBRecoveryMode,
    Options, WriteBufferManager,
};

use super::{Directory, OpenError, RocksSettings, history};
use crate::{
    sabotage::Sabotage,
    store::{
        MovingHorizons,
        tables::{Description, Lifetime, Table, meta::WORKFLOWS_FAMILY},
    },
};

/// The most links of the chain of batches that wait in memory to be folded.
const LINKS_MAX: usize = 1_000;
/// How many files the database keeps open at most.
const OPEN_FILES_MAX: i32 = 256;

pub(super) fn open(
    directory: &Directory,
    settings: &RocksSettings,
    forget_before: &Arc<MovingHorizons>,
) -> Result<DB, OpenError> {
    let known = DB::list_cf(&Options::default(), directory.database()).unwrap_or_default();
    let mut whole = Options::default();
    // What was committed to must be there: a database that lost its head is not made anew.
    whole.create_if_missing(directory.is_new());
    whole.create_missing_column_families(directory.is_new() || has_first_tables(&known));
    // A torn tail of the log was never acknowledged and is dropped; damage before it is refused.
    // What was cut off behind our back is noticed by the commit horizon.
    whole.set_wal_recovery_mode(if Sabotage::DamagedLogSkipped.is_on() {
        DBRecoveryMode::SkipAnyCorruptedRecord
    } else {
        DBRecoveryMode::PointInTime
    });
    whole.set_track_and_verify_wals_in_manifest(true);
    whole.set_paranoid_checks(true);
    // There is one writer, and it goes through each batch in the order of its keys.
    whole.set_allow_concurrent_memtable_write(false);
    let buffer = directory.write_buffer_bytes();
    whole.set_max_total_wal_size(3 * buffer as u64);
    if let Some(bytes) = settings.write_buffers_bytes_max {
        // It has buffers written out before it is used up. Writes do not wait for that, but for the one table whose
        // buffers are full: a wait for all of them would have no end where one cannot be written.
        whole.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager(bytes, false));
        // A compaction reads dozens of files at one time, each with a buffer of this size.
        whole.set_compaction_readahead_size((bytes / 64).clamp(64 << 10, 2 << 20));
    }
    whole.set_max_open_files(OPEN_FILES_MAX);
    whole.set_max_background_jobs(2);
    whole.set_keep_log_file_num(4);
    whole.enable_statistics();
    whole.set_statistics_level(rocksdb::statistics::StatsLevel::ExceptHistogramOrTimers);
    let cache = Cache::new_lru_cache(settings.block_cache_bytes);
    let mark = known.into_iter().find(|name| name == WORKFLOWS_FAMILY);
    let mark = mark.map(|name| ColumnFamilyDescriptor::new(name, Options::default()));
    let tables = Table::ALL.into_iter().map(|table| {
        let mut options = table_options(table, buffer, &cache, forget_before);
        options.set_disable_auto_compactions(directory.is_damaged());
        ColumnFamilyDescriptor::new(table.column_family(), options)
    });
    DB::open_cf_descriptors(&whole, directory.database(), tables.chain(mark)).map_err(|error| {
        let text = error.to_string();
        if text.contains("Corruption") || text.contains("create_if_missing is false") {
            OpenError::LostTail(text)
        } else {
            OpenError::Unreadable(text)
        }
    })
}

/// Whether every table that the first programs had is there: then those that are missing came later, and
/// are made.
fn has_first_tables(known: &[String]) -> bool {
    let mut first = Table::ALL.into_iter().filter(|table| table.description().since == 1);
    first.all(|table| known.iter().any(|name| name == table.column_family()))
}

fn table_options(
    table: Table,
    buffer: usize,
    cache: &Cache,
    forget_before: &Arc<MovingHorizons>,
) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_bloom_filter(10.0, false);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    if table == Table::Meta {
        options.set_merge_operator_associative(history::OPERATOR, history::fold);
        // Links are folded as they come, so that opening has few of them to fold; see also
        // `keep_history_at_hand`.
        options.set_max_successive_merges(LINKS_MAX);
    }
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    let Description { lifetime, written_at, .. } = table.description();
    options.set_write_buffer_size(match lifetime {
        Lifetime::Large => buffer,
        Lifetime::Short | Lifetime::Settled => buffer / 4,
    });
    if table != Table::Meta {
        // What has become mostly deletions is compacted, until nothing of it is left.
        options.add_compact_on_deletion_collector_factory(4_096, 1_024, 0.5);
    }
    if let Some(written_at) = *written_at {
        let horizon = forget_before.clone();
        let name: &CStr = c"stead.forget";
        options.set_compaction_filter(name, move |_level, _key, value| {
            let forgotten = written_at(value).is_some_and(|at| at < horizon.get().of(table));
            if forgotten { CompactionDecision::Remove } else { CompactionDecision::Keep }
        });
    }
    options
}
