//! How RocksDB is set up, and why.

use crate::keys::slot;
use rocksdb::statistics::StatsLevel;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType,
    DBRecoveryMode, Options, SliceTransform,
};
use smalti_storage::ids::ClusterId;

/// Metadata by version key.
pub(crate) const META: &str = "meta";
/// Record bytes by version key.
pub(crate) const DATA: &str = "data";
/// Prepared marks by slot key.
pub(crate) const PREP: &str = "prep";
/// Volume states, and which store this is.
pub(crate) const STATE: &str = "state";

/// Every compaction rewrites the metadata of all rows between the least and the most in its files;
/// with writes all over a volume, of nearly all. So it waits for twice as many files as usual;
/// a look-up passes over the others by their filters.
const FILES_BEFORE_COMPACTION: i32 = 8;
/// A row overwritten again and again leaves two dead entries each time in the buffer, which every
/// look at its versions walks over. They meet and vanish when the buffer is written out, so that
/// is done once a walk gets this long. (The option has no setter of its own.)
const SCAN_FLUSH: &str = "memtable_op_scan_flush_trigger=512";

/// Size of one buffer of each small family, in bytes; there are two.
const SMALL_BUFFER: usize = 4 * MIB;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Size of a table, in bytes.
const META_TABLE: usize = 16 * MIB;
/// They hold about 60 bytes per record.
const DATA_TABLE: usize = 8 * MIB;
/// RocksDB compacts so many tables at once, about.
const TABLES_AT_ONCE: usize = 25;
/// What one compaction of metadata writes at most before it lets go of anything, in bytes, about.
pub(crate) const META_COMPACTION_MAX: u64 = (TABLES_AT_ONCE * META_TABLE) as u64;
/// The same of the keys of records.
pub(crate) const DATA_COMPACTION_MAX: u64 = (TABLES_AT_ONCE * DATA_TABLE) as u64;

/// What a store takes of the machine. The default keeps one store under 250 MiB, so that three
/// nodes fit on a small machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RocksOptions {
    /// Makes a new store when the directory is absent or empty.
    pub create: bool,
    /// Cache for blocks of metadata, indexes and filters, in bytes.
    pub cache_bytes: usize,
    /// Size of one buffer of records, in bytes; a full one is written out in the background.
    pub data_buffer_bytes: usize,
    /// How many buffers of records may wait before writers do.
    pub data_buffers: u8,
    /// Size of one buffer of metadata, in bytes; there are two.
    pub meta_buffer_bytes: usize,
    /// Log kept for replay before all buffers are written out, in bytes. Bounds the time a start
    /// after a crash takes.
    pub wal_bytes_max: u64,
    /// Threads that write out and compact. Of three one writes out, and one compacts what piles up while
    /// another one takes dead records out.
    pub background_jobs: u8,
    /// Dead records are taken out of the files they lie in once they are at least so many bytes, and as
    /// large a part of the store as the room on the disk makes it worth while.
    pub garbage_bytes_min: u64,
    /// Keeps the counters behind [`RocksStore::log_syncs`](crate::RocksStore::log_syncs). All
    /// others come with them, at every look at a key, so this is for tests.
    pub count_syncs: bool,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            create: true,
            cache_bytes: 64 * MIB,
            data_buffer_bytes: 32 * MIB,
            data_buffers: 3,
            meta_buffer_bytes: 16 * MIB,
            wal_bytes_max: 128 * MIB as u64,
            background_jobs: 3,
            garbage_bytes_min: 256 * MIB as u64,
            count_syncs: false,
        }
    }
}

/// Whose store a directory must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The cluster it belongs to; a new store is made for it.
    pub cluster: ClusterId,
}

/// Whether RocksDB compares its logs with what its manifest says of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WalCheck {
    On,
    Off,
}

impl RocksOptions {
    /// What all buffers hold at most, in bytes.
    pub(crate) fn buffers(&self) -> u64 {
        let data = self.data_buffer_bytes * usize::from(self.data_buffers);
        // Of metadata, and of the two small families.
        (data + 2 * (self.meta_buffer_bytes + 2 * SMALL_BUFFER)) as u64
    }

    pub(crate) fn database(&self, create: bool, wals: WalCheck) -> Options {
        let mut options = Options::default();
        options.create_if_missing(create);
        options.create_missing_column_families(create);

        // A log that ends in a torn record is replayed up to it. What that loses was either not
        // acknowledged or its disk lied; such a start is never a clean one.
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        options.set_track_and_verify_wals_in_manifest(wals == WalCheck::On);
        // A recycled log may show an older run's records behind its end.
        options.set_recycle_log_file_num(0);
        options.set_unordered_write(false);
        // Commits come from one thread.
        options.set_allow_concurrent_memtable_write(false);
        options.set_manual_wal_flush(false);
        options.set_paranoid_checks(true);
        options.set_max_total_wal_size(self.wal_bytes_max);

        options.set_max_background_jobs(i32::from(self.background_jobs));
        // Written pages go out steadily, so that a log sync does not wait behind a burst.
        options.set_bytes_per_sync(MIB as u64);
        options.set_max_open_files(1024);
        options.set_max_manifest_file_size(16 * MIB);
        options.set_keep_log_file_num(4);
        options.set_max_log_file_size(4 * MIB);
        if self.count_syncs {
            options.enable_statistics();
            options.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
        }
        options.set_stats_dump_period_sec(0);
        options.set_stats_persist_period_sec(0);
        options
    }

    pub(crate) fn families(&self) -> Result<Vec<ColumnFamilyDescriptor>, rocksdb::Error> {
        let cache = Cache::new_lru_cache(self.cache_bytes);
        let families = [
            (META, self.meta(&cache)?),
            (DATA, self.data(&cache)),
            (PREP, small(&cache)),
            (STATE, small(&cache)),
        ];
        Ok(families.map(|(name, options)| ColumnFamilyDescriptor::new(name, options)).into())
    }

    /// Heads are found by a seek behind the slot's prefix, so both whole keys and prefixes are
    /// filtered, in tables and in buffers.
    fn meta(&self, cache: &Cache) -> Result<Options, rocksdb::Error> {
        let mut options = Options::default().get_options_from_string(SCAN_FLUSH)?;
        options.set_block_based_table_factory(&tables(cache, 4 * KIB));
        options.set_prefix_extractor(SliceTransform::create_fixed_prefix(slot::LEN));
        options.set_memtable_prefix_bloom_ratio(0.1);
        options.set_memtable_whole_key_filtering(true);
        options.set_write_buffer_size(self.meta_buffer_bytes);
        options.set_max_write_buffer_number(2);
        options.set_compression_type(DBCompressionType::None);
        options.set_target_file_size_base(META_TABLE as u64);
        options.set_max_compaction_bytes(META_COMPACTION_MAX);
        options.set_level_zero_file_num_compaction_trigger(FILES_BEFORE_COMPACTION);
        Ok(options)
    }

    /// Records are ciphertext: they do not compress, and they are moved as seldom as possible, so
    /// they lie in blob files beside small tables of keys.
    fn data(&self, cache: &Cache) -> Options {
        let mut options = Options::default();
        options.set_block_based_table_factory(&tables(cache, 4 * KIB));
        options.set_write_buffer_size(self.data_buffer_bytes);
        options.set_max_write_buffer_number(i32::from(self.data_buffers));
        options.set_compression_type(DBCompressionType::None);
        options.set_enable_blob_files(true);
        options.set_min_blob_size(KIB as u64);
        options.set_blob_file_size(64 * MIB as u64);
        options.set_blob_compression_type(DBCompressionType::None);
        options.set_enable_blob_gc(true);
        // Left alone, every compaction would move whatever still lives in the oldest files, were
        // nothing dead in them: on a volume written in order again and again, more than its clients
        // write. So a file goes when all of it is dead, and `reclaim` moves the rest when it pays.
        options.set_blob_gc_age_cutoff(0.0);
        options.set_target_file_size_base(DATA_TABLE as u64);
        options.set_max_compaction_bytes(DATA_COMPACTION_MAX);
        options.set_max_bytes_for_level_base(64 * MIB as u64);
        options.set_level_zero_file_num_compaction_trigger(FILES_BEFORE_COMPACTION);
        options
    }
}

fn small(cache: &Cache) -> Options {
    let mut options = Options::default();
    options.set_block_based_table_factory(&tables(cache, 4 * KIB));
    options.set_write_buffer_size(SMALL_BUFFER);
    options.set_max_write_buffer_number(2);
    options.set_compression_type(DBCompressionType::None);
    options
}

/// Filters and indexes are cut in pieces and cached like data: whole ones of a large store would
/// not fit in its memory.
fn tables(cache: &Cache, block: usize) -> BlockBasedOptions {
    let mut tables = BlockBasedOptions::default();
    tables.set_block_cache(cache);
    tables.set_block_size(block);
    tables.set_bloom_filter(10.0, false);
    tables.set_whole_key_filtering(true);
    tables.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    tables.set_partition_filters(true);
    tables.set_cache_index_and_filter_blocks(true);
    tables.set_pin_l0_filter_and_index_blocks_in_cache(true);
    tables.set_pin_top_level_index_and_filter(true);
    tables.set_format_version(5);
    tables
}
