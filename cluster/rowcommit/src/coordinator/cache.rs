//! Version vectors of rows used lately: with one at hand a read asks one store only.

use smalti_storage::ids::RowAddr;
use smalti_storage::store::VecEntry;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// A row's version vector: one entry per data slot.
pub(super) type RowVec = Arc<[VecEntry]>;

/// A bounded first-in first-out cache. Committed vectors only.
#[derive(Clone, Debug)]
pub(super) struct VecCache {
    vectors: BTreeMap<RowAddr, RowVec>,
    order: VecDeque<RowAddr>,
    limit: usize,
}

impl VecCache {
    pub(super) fn new(limit: usize) -> Self {
        Self { vectors: BTreeMap::new(), order: VecDeque::new(), limit: limit.max(1) }
    }

    pub(super) fn find(&self, row: RowAddr) -> Option<RowVec> {
        self.vectors.get(&row).cloned()
    }

    pub(super) fn put(&mut self, row: RowAddr, vector: RowVec) {
        if self.vectors.insert(row, vector).is_none() {
            self.order.push_back(row);
        }
        while self.order.len() > self.limit {
            if let Some(oldest) = self.order.pop_front() {
                self.vectors.remove(&oldest);
            }
        }
    }

    /// Drops a row's vector; its place in the order stays until its turn comes.
    pub(super) fn forget(&mut self, row: RowAddr) {
        self.vectors.remove(&row);
    }

    /// Feeds the vectors to a hasher, but not the order in which they would be dropped.
    pub(super) fn digest(&self, hasher: &mut impl Hasher) {
        self.vectors.hash(hasher);
    }

    pub(super) fn clear(&mut self) {
        self.vectors.clear();
        self.order.clear();
    }
}
