//! The versions of recently used row slots, kept in step with the batch that is being collected.
//!
//! Reads through this cache see changes that are not durable yet; that is right for deciding what
//! to do next and wrong for answering, which is why answers wait for the batch.

use bytes::Bytes;
use smalti_storage::ids::{GroupNo, RowSlot, Ver, VolumeNo};
use smalti_storage::store::{ShardStore, StoreError, VersionMeta};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// One row slot: its versions, newest first, and bytes of versions that were put lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub(super) versions: Vec<VersionMeta>,
    /// The metadata on disk can not be read: what versions there are is not known.
    pub(super) corrupt: bool,
    fresh: Vec<(Ver, Bytes)>,
}

impl Row {
    pub(super) fn head(&self) -> Option<&VersionMeta> {
        self.versions.first()
    }

    pub(super) fn head_ver(&self) -> Ver {
        self.head().map_or(Ver::NONE, |meta| meta.ver)
    }

    pub(super) fn has(&self, ver: Ver) -> bool {
        self.versions.iter().any(|meta| meta.ver == ver)
    }
}

fn loaded(versions: Result<Vec<VersionMeta>, StoreError>) -> Result<Row, StoreError> {
    let (versions, corrupt) = match versions {
        Ok(versions) => (versions, false),
        Err(StoreError::Corrupt { .. }) => (Vec::new(), true),
        Err(error) => return Err(error),
    };
    Ok(Row { versions, corrupt, fresh: Vec::new() })
}

pub(super) struct Rows {
    store: Arc<dyn ShardStore>,
    cached: BTreeMap<RowSlot, Row>,
    order: VecDeque<RowSlot>,
    /// Row slots with changes in the batch that is being collected.
    touched: BTreeSet<RowSlot>,
    /// To be looked at anew once the batch is on the disk.
    outdated: Vec<RowSlot>,
    /// Could not be read: looked at anew by the next batch, for it may have been for a moment.
    corrupt: Vec<RowSlot>,
    limit: usize,
}

impl Rows {
    pub(super) fn new(store: Arc<dyn ShardStore>, limit: usize) -> Self {
        Self {
            store,
            cached: BTreeMap::new(),
            order: VecDeque::new(),
            touched: BTreeSet::new(),
            outdated: Vec::new(),
            corrupt: Vec::new(),
            limit,
        }
    }

    /// The row slot, loaded when it is not at hand.
    pub(super) fn at(&mut self, at: RowSlot) -> Result<&mut Row, StoreError> {
        match self.cached.entry(at) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let row = loaded(self.store.versions(at))?;
                self.order.push_back(at);
                self.corrupt.extend(row.corrupt.then_some(at));
                Ok(entry.insert(row))
            }
        }
    }

    /// Loads what is not at hand of several row slots, with one look at the disk.
    pub(super) fn load(&mut self, slots: impl Iterator<Item = RowSlot>) -> Result<(), StoreError> {
        let missing: Vec<_> = slots.filter(|at| !self.cached.contains_key(at)).collect();
        if missing.len() < 2 {
            // The one is loaded when it is asked for.
            return Ok(());
        }
        for (at, versions) in missing.iter().zip(self.store.newest(&missing, usize::MAX)) {
            let row = loaded(versions)?;
            self.corrupt.extend(row.corrupt.then_some(*at));
            // A slot may have been named twice.
            if self.cached.insert(*at, row).is_none() {
                self.order.push_back(*at);
            }
        }
        Ok(())
    }

    /// The bytes of a version (empty when absent), or `None` when they do not verify.
    pub(super) fn verified_record(
        &mut self,
        at: RowSlot,
        meta: &VersionMeta,
    ) -> Result<Option<Bytes>, StoreError> {
        let fresh = self.at(at)?.fresh.iter().find(|(ver, _)| *ver == meta.ver);
        let record = match fresh {
            Some((_, record)) => record.clone(),
            None if !meta.present => Bytes::new(),
            None => match self.store.record(at, meta.ver) {
                Ok(Some(record)) => record,
                Ok(None) | Err(StoreError::Corrupt { .. }) => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        Ok(meta.verifies(at, &record).then_some(record))
    }

    /// Notes a version that was added to the batch.
    pub(super) fn put(
        &mut self,
        at: RowSlot,
        meta: VersionMeta,
        record: Bytes,
    ) -> Result<(), StoreError> {
        let first = self.touched.insert(at);
        let row = self.at(at)?;
        let place = row.versions.partition_point(|other| other.ver > meta.ver);
        // Bytes of this batch can be had nowhere else.
        row.fresh.retain(|(ver, _)| !first && *ver != meta.ver);
        row.fresh.push((meta.ver, record));
        row.versions.insert(place, meta);
        Ok(())
    }

    /// Notes a version whose deletion was added to the batch.
    pub(super) fn delete(&mut self, at: RowSlot, ver: Ver) -> Result<(), StoreError> {
        self.touched.insert(at);
        let row = self.at(at)?;
        row.versions.retain(|meta| meta.ver != ver);
        row.fresh.retain(|(fresh, _)| *fresh != ver);
        Ok(())
    }

    /// Notes that the whole row slot was dropped in the batch.
    pub(super) fn drop_slot(&mut self, at: RowSlot) -> Result<(), StoreError> {
        self.touched.insert(at);
        *self.at(at)? = Row::default();
        Ok(())
    }

    /// Looks at the disk again, where that has all there is to know: what was read once may have
    /// become unreadable since.
    pub(super) fn reload(&mut self, at: RowSlot) {
        if !self.touched.contains(&at) && self.cached.remove(&at).is_some() {
            self.order.retain(|other| *other != at);
        }
    }

    /// Has the disk looked at again once it holds the batch: what is deleted in it may have been all
    /// that was unreadable.
    pub(super) fn forget_after_batch(&mut self, at: RowSlot) {
        self.outdated.push(at);
    }

    pub(super) fn forget_group(&mut self, volume: VolumeNo, group: GroupNo) {
        let of_group = |at: &RowSlot| at.volume == volume && at.row.group == group;
        self.cached.retain(|at, _| !of_group(at));
        self.order.retain(|at| !of_group(at));
    }

    pub(super) fn forget_volume(&mut self, volume: VolumeNo) {
        self.cached.retain(|at, _| at.volume != volume);
        self.order.retain(|at| at.volume != volume);
    }

    /// Shrinks to the limit, and answers what [`Self::forget_after_batch`] was told. Only between
    /// batches: what is in a batch must stay at hand.
    pub(super) fn trim(&mut self) -> Vec<RowSlot> {
        self.touched.clear();
        let outdated = std::mem::take(&mut self.outdated);
        outdated.iter().for_each(|at| self.reload(*at));
        std::mem::take(&mut self.corrupt).into_iter().for_each(|at| self.reload(at));
        while self.order.len() > self.limit {
            if let Some(at) = self.order.pop_front() {
                self.cached.remove(&at);
            }
        }
        outdated
    }
}
