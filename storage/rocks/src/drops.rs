//! What was dropped and whose space was not taken back yet. It is noted with the drop itself, so that
//! neither a restart nor many drops at once leave space behind that nobody comes for.

use crate::apply::Dropped;
use crate::database::{Database, failed};
use crate::keys::{after_prefix, dropped};
use rocksdb::{ReadOptions, WriteBatch};
use smalti_storage::ids::Incarnation;
use smalti_storage::store::StoreError;
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers drops: two of the same range are two, or the space of the second could be taken for that
/// of the first.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    next: AtomicU64,
}

impl Numbers {
    /// Those of a run come after those of all runs before.
    pub(crate) fn begin(&self, incarnation: Incarnation) {
        self.next.store(incarnation.0 << 32, Ordering::Relaxed);
    }
}

/// A drop that is noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    key: Vec<u8>,
    pub(crate) range: Dropped,
}

impl Database {
    /// Notes a drop in the write that it becomes.
    pub(crate) fn note_drop(&self, write: &mut WriteBatch, range: &Dropped) {
        let no = self.numbers.next.fetch_add(1, Ordering::Relaxed);
        write.put_cf(self.state(), dropped::encode(no, &range.from), []);
    }

    /// The oldest drops that are noted.
    pub(crate) fn drops(&self, limit: usize) -> Result<Vec<Noted>, StoreError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(after_prefix(&dropped::PREFIX));
        let mut iterator = self.db.raw_iterator_cf_opt(self.state(), options);
        iterator.seek(dropped::PREFIX);
        let mut drops = Vec::new();
        while drops.len() < limit
            && let Some(key) = iterator.key()
        {
            let range = dropped::decode(key).map(|(_, prefix)| Dropped::prefix(prefix));
            drops.extend(range.map(|range| Noted { key: key.to_vec(), range }));
            iterator.next();
        }
        iterator.status().map_err(|error| failed(&error))?;
        Ok(drops)
    }

    /// The space of a drop was taken back. If this is lost it is done once more.
    pub(crate) fn forget_drop(&self, drop: &Noted) -> Result<(), StoreError> {
        self.db.delete_cf(self.state(), &drop.key).map_err(|error| failed(&error))
    }
}
