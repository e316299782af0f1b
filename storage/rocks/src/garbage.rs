//! How much of a store is dead, and when it pays to take it out.
//!
//! A deleted record lies in its blob file until nothing there lives, or until what lives is moved
//! elsewhere. RocksDB counts it as garbage once a compaction has met its deletion; those that none has
//! met yet are counted here.

use crate::database::Database;
use crate::reclaim::BLOBS_SIZE;
use smalti_storage::record::RECORD_LEN;
use smalti_storage::store::Space;
use std::sync::atomic::Ordering;

const GARBAGE: &str = "rocksdb.live-blob-file-garbage-size";
const FILES: &str = "rocksdb.num-blob-files";
/// Where space is scarce so much garbage is worth a compaction, however much a store would wait for
/// otherwise.
const SCARCE_BYTES_MIN: u64 = 16 << 20;

/// What of all blob files in use is dead, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// All of it.
    pub(crate) all: u64,
    /// Dead records.
    pub(crate) garbage: u64,
    /// How many files.
    pub(crate) files: u64,
}

impl Sizes {
    pub(crate) fn of(database: &Database) -> Result<Self, rocksdb::Error> {
        let figure = |name| database.db.property_int_value_cf(database.data(), name);
        let figure = |name| Ok(figure(name)?.unwrap_or(0));
        Ok(Self { all: figure(BLOBS_SIZE)?, garbage: figure(GARBAGE)?, files: figure(FILES)? })
    }

    /// So much garbage is worth moving what lives beside it.
    fn worth(self, space: Space) -> u64 {
        match space.room() {
            // Otherwise a disk would stay full for good though clients have trimmed.
            0 => self.all / 16,
            // With room for all of it the cheapest time is at half.
            _ if space.free > self.all => self.all / 2,
            _ => self.all / 4,
        }
    }

    /// Whether tables are to be compacted, so that so many deleted records are known to be garbage:
    /// with them it is worth more than that.
    pub(crate) fn settle(self, unmet: u64, garbage_min: u64, space: Space) -> bool {
        let bytes = unmet.saturating_mul(RECORD_LEN as u64);
        let worth = self.worth(space).max(least(garbage_min, space));
        // Not for a few more where nothing comes of the many.
        bytes >= worth / 4 && self.garbage.saturating_add(bytes) >= worth
    }

    /// The part of the blob files, oldest first, to rewrite now; `None`: it does not pay, or there is
    /// no room to do it in. What is rewritten takes at most as much again as it had, and three quarters
    /// of what is free are left to those who write meanwhile, and to other stores on the disk that do
    /// the same.
    pub(crate) fn cutoff(self, garbage_min: u64, space: Space) -> Option<f64> {
        let Self { all, garbage, files } = self;
        if garbage == 0 || garbage < self.worth(space).max(least(garbage_min, space)) {
            return None;
        }
        // RocksDB takes whole files, rounding down: a part of less than one is none.
        let fit = (space.free / 4).checked_div(all / files.max(1)).unwrap_or(files);
        let taken = fit.min(files.div_ceil(2));
        (taken > 0).then(|| ((taken as f64 + 0.5) / files as f64).min(1.0))
    }
}

fn least(garbage_min: u64, space: Space) -> u64 {
    if space.room() == 0 { garbage_min.min(SCARCE_BYTES_MIN) } else { garbage_min }
}

/// Takes the count of deleted records that no compaction has met; those that a compaction of its own
/// accord has met since they were counted are left out.
pub(crate) fn take_unmet(database: &Database) -> u64 {
    let counted = database.unmet.swap(0, Ordering::Relaxed);
    database.deletions().map_or(counted, |there| counted.min(there))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A disk with so much free and, of 1000 MiB in all, a twentieth in reserve and a tenth beside it.
    fn disk(free: u64) -> Space {
        Space { total: 1000 * MIB, free: free * MIB, ..Space::default() }
    }

    fn sizes(all: u64, garbage: u64) -> Sizes {
        Sizes { all: all * MIB, garbage: garbage * MIB, files: all / 10 }
    }

    /// How many files RocksDB takes then.
    fn taken(sizes: Sizes, garbage_min: u64, free: u64) -> Option<u64> {
        let cutoff = sizes.cutoff(garbage_min, disk(free));
        cutoff.map(|part| (part * sizes.files as f64) as u64)
    }

    #[test]
    fn collections_leave_room_and_begin_sooner_where_it_is_scarce() {
        let cut = |all, garbage, free| taken(sizes(all, garbage), 0, free);
        assert_eq!(cut(400, 199, 800), None);
        assert_eq!(cut(400, 200, 800), Some(20), "a quarter of what is free is enough for half");
        assert_eq!(cut(400, 200, 799), Some(19));
        assert_eq!(cut(400, 99, 400), None);
        assert_eq!(cut(400, 100, 400), Some(10));
        assert_eq!(cut(800, 49, 150), None);
        assert_eq!(cut(800, 50, 150), Some(3), "nearly full");
        assert_eq!(cut(800, 500, 15), None, "it would fill the disk");
        assert_eq!(cut(0, 0, 99), None);
    }

    #[test]
    fn what_is_less_than_a_file_is_not_begun() {
        let large = Sizes { files: 16, ..sizes(1024, 600) };
        assert_eq!(taken(large, 0, 255), None);
        assert_eq!(taken(large, 0, 256), Some(1));
        assert_eq!(taken(large, 0, 600), Some(2));
        let one = Sizes { files: 1, ..sizes(64, 40) };
        assert_eq!(one.cutoff(0, disk(900)), Some(1.0));
        assert_eq!(one.cutoff(0, disk(255)), None);
    }

    #[test]
    fn a_small_store_waits_for_garbage_only_where_there_is_room() {
        let cut = |free| taken(sizes(100, 50), 256 * MIB, free);
        assert_eq!(cut(900), None);
        assert_eq!(cut(150), Some(3));
        assert_eq!(taken(sizes(100, 15), 256 * MIB, 150), None);
    }

    #[test]
    fn tables_are_compacted_for_what_was_deleted_and_not_for_what_was_found() {
        let settle = |garbage, deleted: u64, free| {
            let unmet = (deleted * MIB).div_ceil(RECORD_LEN as u64);
            sizes(400, garbage).settle(unmet, 0, disk(free))
        };
        assert!(settle(0, 200, 800));
        assert!(!settle(0, 199, 800));
        assert!(settle(150, 50, 800));
        assert!(!settle(200, 49, 800));
        assert!(settle(0, 25, 100));
        assert!(!settle(0, 24, 100));
    }
}
