//! The store side as a value: a copy over another disk, and its state in canonical form, for
//! checkers that go back and try something else.

use super::rows::Rows;
use super::{Fence, StoreCore};
use crate::time::{Time, lease_granted};
use smalti_storage::store::ShardStore;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

impl StoreCore {
    /// An independent copy that goes on over `store`, a copy of this one's disk. Of the changes
    /// that are collected none may be of rows: what a map asks for waits for the next frame.
    #[must_use]
    pub fn fork(&self, store: Arc<dyn ShardStore>) -> Self {
        Self {
            rows: Rows::new(Arc::clone(&store), self.config.cached_rows),
            store,
            opened: self.opened,
            config: self.config,
            boot: self.boot,
            registered: self.registered,
            room: self.room,
            volumes: self.volumes.clone(),
            recheck: self.recheck.clone(),
            batch: self.batch.clone(),
            must_sync: self.must_sync,
            fence: Arc::new(self.fence.copy()),
            fence_due: self.fence_due,
        }
    }

    /// Feeds its state, as seen at `now`, to a hasher; the disk's is not part of it. Times are told
    /// from now. Sessions are left out: a checker whose sessions break with all that is under way
    /// never has frames of an older one.
    pub fn digest(&self, now: Time, hasher: &mut impl Hasher) {
        (self.opened.incarnation, self.opened.clean, &self.recheck).hash(hasher);
        // Whether a restart's grants may still be believed in.
        self.boot.after(lease_granted(self.config.lease_max)).since(now).hash(hasher);
        (self.registered, self.volumes.len(), self.room, self.must_sync, self.fence_due)
            .hash(hasher);
        self.batch.hash(hasher);
        for (no, side) in &self.volumes {
            (no, side.epoch, side.coordinator, side.state, side.dirty).hash(hasher);
            (&side.prepared, &side.doubtful, &side.told, side.sweep, side.vetted).hash(hasher);
            (&side.keeps, &side.unasked, &side.unsettled, side.leases, &side.indexes).hash(hasher);
            (&side.snaps, side.deleted, &side.collecting).hash(hasher);
            let valid = side.grants.iter().filter(|(_, until)| *until > now);
            valid.map(|(who, until)| (who, until.since(now))).collect::<Vec<_>>().hash(hasher);
        }
        self.fence.digest(hasher);
    }
}

impl Fence {
    fn copy(&self) -> Self {
        Self { entries: std::sync::RwLock::new(self.snapshot()) }
    }

    fn digest(&self, hasher: &mut impl Hasher) {
        self.snapshot().hash(hasher);
    }
}
