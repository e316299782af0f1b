//! The shard store in memory: the twin of the one on disk, for simulators and tests.
//!
//! Deterministic, without clock or randomness. What it holds survives [`MemoryStore::restart`],
//! which stands for the end of a process and the start of the next, and nothing else.
//!
//! M1. A restart loses whole relaxed batches from the end and nothing else.
//! M2. A batch that does not fit changes nothing and leaves the store failed until a restart,
//!     as a disk's does.

use super::{
    Admission, Announced, Batch, Change, ChangeIndex, Opened, ShardStore, SlotVersions, Space,
    StoreError, VersionMeta, VolumeState, admitted_before, announce_too,
};
use crate::ids::{GroupNo, Incarnation, RowAddr, RowSlot, RunId, Slot, StoreId, Ver, VolumeNo};
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use twox_hash::XxHash3_128;

/// What one version takes besides its record, in bytes: keys, metadata and their indexes on disk,
/// roughly.
const VERSION_COST: u64 = 256;

/// A shard store that lives in memory. Shared by reference; see [`MemoryStore::fork`] for a copy.
#[derive(Debug)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

/// How a [`MemoryStore`] ends one run and begins the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restart {
    /// Whether the run ended with a clean marker.
    pub clean: bool,
    /// How many of the relaxed batches at the very end are lost; more than there are means all.
    pub lost: usize,
    /// Whether it was the machine that ended and not only the process: [`Opened::went_back`].
    pub went_back: bool,
}

#[derive(Clone, Debug)]
struct Inner {
    id: StoreId,
    incarnation: Incarnation,
    run: RunId,
    announced: Announced,
    clean: bool,
    went_back: bool,
    closed: bool,
    failed: Option<String>,
    capacity: u64,
    /// Shared with forks until one of them writes.
    content: Arc<Content>,
    /// How to undo each relaxed batch since the last durable one, oldest first.
    undo: Vec<Vec<Undo>>,
}

#[derive(Clone, Debug, Default, Hash)]
struct Content {
    rows: BTreeMap<RowSlot, BTreeMap<Reverse<Ver>, Stored>>,
    prepared: BTreeMap<RowSlot, Ver>,
    volumes: BTreeMap<VolumeNo, VolumeState>,
    indexes: BTreeMap<(VolumeNo, GroupNo), Index>,
    used: u64,
}

/// What an index says of itself, and its rows.
type Index = (Option<ChangeIndex>, BTreeSet<RowAddr>);

#[derive(Clone, Debug, Hash)]
struct Stored {
    meta: VersionMeta,
    record: Bytes,
    meta_corrupt: bool,
}

impl Stored {
    fn cost(&self) -> u64 {
        VERSION_COST + self.record.len() as u64
    }
}

/// What stood in a place before a change.
#[derive(Clone, Debug, Hash)]
enum Undo {
    Version(RowSlot, Ver, Option<Stored>),
    Mark(RowSlot, Option<Ver>),
    Volume(VolumeNo, Option<VolumeState>),
    Noted(VolumeNo, RowAddr),
    Index(VolumeNo, GroupNo, Option<Index>),
}

impl MemoryStore {
    /// An empty store of its first incarnation, as large as can be.
    pub fn new(id: StoreId) -> Self {
        Self {
            inner: Mutex::new(Inner {
                id,
                incarnation: Incarnation(1),
                run: RunId::default(),
                announced: Announced::default(),
                clean: true,
                went_back: false,
                closed: false,
                failed: None,
                capacity: u64::MAX,
                content: Arc::default(),
                undo: Vec::new(),
            }),
        }
    }

    /// Limits the bytes it takes; a commit that would go over it fails as on a full disk.
    #[must_use]
    pub fn with_capacity(self, bytes: u64) -> Self {
        self.set_capacity(bytes);
        self
    }

    /// Changes the limit of [`Self::with_capacity`]; one below what is used lets nothing be added.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity = bytes;
    }

    /// An independent copy, cheap until one of both is written to. Restarted later it is the disk
    /// as it was now: a way to play a disk that forgets.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { inner: Mutex::new(self.lock().clone()) }
    }

    /// Takes the content of an earlier [`Self::fork`] back: a disk that forgets what it
    /// acknowledged since. Which run it is stays.
    pub fn roll_back(&self, to: &Self) {
        let content = to.content();
        let mut inner = self.lock();
        inner.content = content;
        inner.undo.clear();
        inner.went_back = !inner.clean;
    }

    /// Ends this run and begins the next one over the same content.
    pub fn restart(&self, how: Restart) -> Opened {
        let mut inner = self.lock();
        for _ in 0..how.lost.min(inner.undo.len()) {
            let undo = inner.undo.pop().expect("not more than there are");
            Arc::make_mut(&mut inner.content).undo(undo);
        }
        inner.undo.clear();
        inner.incarnation.0 += 1;
        inner.clean = how.clean;
        // A second crash brings nothing back.
        inner.went_back = !how.clean && (how.went_back || inner.went_back);
        inner.closed = false;
        inner.failed = None;
        inner.opened()
    }

    /// Flips every bit of one byte of a stored record, counted round its end. False if there is
    /// no such record or it has no bytes.
    pub fn corrupt_record(&self, at: RowSlot, ver: Ver, byte: usize) -> bool {
        let mut inner = self.lock();
        let Some(stored) = Arc::make_mut(&mut inner.content).stored_mut(at, ver) else {
            return false;
        };
        if stored.record.is_empty() {
            return false;
        }
        let mut bytes = stored.record.to_vec();
        let place = byte % bytes.len();
        bytes[place] ^= 0xff;
        stored.record = bytes.into();
        true
    }

    /// Puts other bytes in a stored record's place: none, if its write was lost, or another one's,
    /// if that went astray. False if there is no such record or it has no bytes.
    pub fn replace_record(&self, at: RowSlot, ver: Ver, bytes: Bytes) -> bool {
        let mut inner = self.lock();
        let content = Arc::make_mut(&mut inner.content);
        let stored = content.stored_mut(at, ver).filter(|stored| !stored.record.is_empty());
        let Some(stored) = stored else { return false };
        let (before, now) = (stored.record.len() as u64, bytes.len() as u64);
        stored.record = bytes;
        content.used = content.used + now - before;
        true
    }

    /// Makes the metadata of a version unreadable. False if there is no such version.
    pub fn corrupt_meta(&self, at: RowSlot, ver: Ver) -> bool {
        let mut inner = self.lock();
        let content = Arc::make_mut(&mut inner.content);
        content.stored_mut(at, ver).map(|stored| stored.meta_corrupt = true).is_some()
    }

    /// Loses one version without a trace, as a disk does that dropped a write. False if there is
    /// no such version.
    pub fn forget(&self, at: RowSlot, ver: Ver) -> bool {
        let mut inner = self.lock();
        Arc::make_mut(&mut inner.content).set_version(at, ver, None).is_some()
    }

    /// Puts a version, or nothing, in the place of all that are newer, as if their writes had been lost. False if there
    /// is none, or the slot has one that is not known to be committed.
    pub fn put_back(&self, at: RowSlot, meta: VersionMeta, record: Bytes) -> bool {
        let mut inner = self.lock();
        let content = Arc::make_mut(&mut inner.content);
        if content.prepared.contains_key(&at) {
            return false;
        }
        let held = content.rows.get(&at).into_iter().flat_map(BTreeMap::keys);
        let newer: Vec<Ver> = held.map(|Reverse(ver)| *ver).filter(|ver| *ver > meta.ver).collect();
        for ver in &newer {
            content.set_version(at, *ver, None);
        }
        if !newer.is_empty() && !meta.ver.is_none() {
            content.set_version(at, meta.ver, Some(Stored { meta, record, meta_corrupt: false }));
        }
        !newer.is_empty()
    }

    /// A hash of all content: equal for stores that answer everything alike. Tells nothing of
    /// identity, incarnation and limits.
    pub fn fingerprint(&self) -> u128 {
        let content = Arc::clone(&self.lock().content);
        let mut hasher = Fingerprint(XxHash3_128::new());
        content.rows.hash(&mut hasher);
        content.prepared.hash(&mut hasher);
        content.volumes.hash(&mut hasher);
        content.indexes.hash(&mut hasher);
        hasher.0.finish_128()
    }

    /// Feeds all that tells this store from another one to a hasher: what it holds, what a restart
    /// may lose of it, and how it came up.
    pub fn digest(&self, hasher: &mut impl Hasher) {
        let inner = self.lock();
        inner.opened().hash(hasher);
        (inner.closed, inner.failed.is_some(), inner.capacity).hash(hasher);
        inner.content.hash(hasher);
        inner.undo.hash(hasher);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing is left half done by a panic: a change is made whole or undone under the lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn content(&self) -> Arc<Content> {
        Arc::clone(&self.lock().content)
    }
}

impl Inner {
    fn opened(&self) -> Opened {
        let Self { id, incarnation, run, clean, went_back, announced, .. } = *self;
        Opened { id, incarnation, run, clean, went_back, announced }
    }

    fn admit(&mut self, admission: Admission) -> Result<(), StoreError> {
        self.serving()?;
        let Admission { run, incarnation, clean } = admission;
        if incarnation < self.incarnation {
            return Err(admitted_before(admission, self.incarnation));
        }
        self.went_back |= self.clean && !clean;
        (self.run, self.incarnation, self.clean) = (run, incarnation, clean);
        self.announced = Announced::default();
        Ok(())
    }

    fn serving(&self) -> Result<(), StoreError> {
        if let Some(why) = &self.failed {
            return Err(StoreError::Io(why.clone()));
        }
        if self.closed {
            return Err(StoreError::Io("the store is closed".into()));
        }
        Ok(())
    }

    fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        self.serving()?;
        batch.check()?;
        let before = self.content.used;
        let content = Arc::make_mut(&mut self.content);
        let mut undo = Vec::with_capacity(batch.changes.len());
        for change in batch.changes {
            content.apply(change, &mut undo);
        }
        if content.used > before && content.used > self.capacity {
            content.undo(undo);
            let why = "no space left on device".to_owned();
            self.failed = Some(why.clone());
            return Err(StoreError::Io(why));
        }
        if batch.relaxed {
            self.undo.push(undo);
        } else {
            self.undo.clear();
        }
        Ok(())
    }
}

impl Content {
    fn apply(&mut self, change: Change, undo: &mut Vec<Undo>) {
        match change {
            Change::PutVersion { at, meta, record, fresh } => {
                let ver = meta.ver;
                let stored = Stored { meta, record, meta_corrupt: false };
                let old = self.set_version(at, ver, Some(stored));
                assert!(!fresh || old.is_none(), "{ver} of {at} is there, and was called fresh");
                undo.push(Undo::Version(at, ver, old));
            }
            Change::DeleteVersion { at, ver } => {
                undo.push(Undo::Version(at, ver, self.set_version(at, ver, None)));
            }
            Change::SetPrepared { at, ver } => {
                undo.push(Undo::Mark(at, self.prepared.insert(at, ver)));
            }
            Change::ClearPrepared { at } => undo.push(Undo::Mark(at, self.prepared.remove(&at))),
            Change::DropSlot { at } => self.drop_range(at, at, undo),
            Change::SetVolume { volume, state } => {
                undo.push(Undo::Volume(volume, self.volumes.insert(volume, state)));
            }
            Change::SetIndex { volume, group, index } => {
                let old = self.indexes.get(&(volume, group)).cloned();
                let rows = old.as_ref().map(|(_, rows)| rows.clone()).unwrap_or_default();
                undo.push(Undo::Index(volume, group, old));
                self.indexes.insert((volume, group), (Some(index), rows));
            }
            Change::NoteChanged { volume, row } => {
                let (_, rows) = self.indexes.entry((volume, row.group)).or_default();
                if rows.insert(row) {
                    undo.push(Undo::Noted(volume, row));
                }
            }
            Change::DropIndex { volume, group } => self.drop_indexes(volume, group, group, undo),
            Change::DropGroup { volume, group } => {
                let (first, last) = group_bounds(volume, group);
                self.drop_range(first, last, undo);
                self.drop_indexes(volume, group, group, undo);
            }
            Change::DropVolume { volume } => {
                let (first, _) = group_bounds(volume, GroupNo(0));
                let (_, last) = group_bounds(volume, GroupNo(u16::MAX));
                self.drop_range(first, last, undo);
                self.drop_indexes(volume, GroupNo(0), GroupNo(u16::MAX), undo);
                undo.push(Undo::Volume(volume, self.volumes.remove(&volume)));
            }
        }
    }

    /// Forgets the rows and marks of `first..=last`.
    fn drop_range(&mut self, first: RowSlot, last: RowSlot, undo: &mut Vec<Undo>) {
        let slots: Vec<_> = self.rows.range(first..=last).map(|(at, _)| *at).collect();
        for at in slots {
            for (Reverse(ver), stored) in self.rows.remove(&at).unwrap_or_default() {
                self.used -= stored.cost();
                undo.push(Undo::Version(at, ver, Some(stored)));
            }
        }
        let marks: Vec<_> = self.prepared.range(first..=last).map(|(at, _)| *at).collect();
        for at in marks {
            undo.push(Undo::Mark(at, self.prepared.remove(&at)));
        }
    }

    fn drop_indexes(&mut self, no: VolumeNo, from: GroupNo, to: GroupNo, undo: &mut Vec<Undo>) {
        let found = self.indexes.range((no, from)..=(no, to)).map(|(place, _)| *place);
        for (volume, group) in found.collect::<Vec<_>>() {
            undo.push(Undo::Index(volume, group, self.indexes.remove(&(volume, group))));
        }
    }

    fn undo(&mut self, undo: Vec<Undo>) {
        for step in undo.into_iter().rev() {
            match step {
                Undo::Version(at, ver, old) => drop(self.set_version(at, ver, old)),
                Undo::Mark(at, Some(ver)) => drop(self.prepared.insert(at, ver)),
                Undo::Mark(at, None) => drop(self.prepared.remove(&at)),
                Undo::Volume(volume, Some(state)) => drop(self.volumes.insert(volume, state)),
                Undo::Volume(volume, None) => drop(self.volumes.remove(&volume)),
                Undo::Noted(volume, row) => {
                    if let Some((_, rows)) = self.indexes.get_mut(&(volume, row.group)) {
                        rows.remove(&row);
                    }
                }
                Undo::Index(volume, group, Some(old)) => {
                    self.indexes.insert((volume, group), old);
                }
                Undo::Index(volume, group, None) => {
                    self.indexes.remove(&(volume, group));
                }
            }
        }
    }

    /// Puts or removes one version and answers what stood there.
    fn set_version(&mut self, at: RowSlot, ver: Ver, new: Option<Stored>) -> Option<Stored> {
        self.used += new.as_ref().map_or(0, Stored::cost);
        let old = match new {
            Some(stored) => self.rows.entry(at).or_default().insert(Reverse(ver), stored),
            None => {
                let versions = self.rows.get_mut(&at)?;
                let old = versions.remove(&Reverse(ver));
                if versions.is_empty() {
                    self.rows.remove(&at);
                }
                old
            }
        };
        self.used -= old.as_ref().map_or(0, Stored::cost);
        old
    }

    fn stored(&self, at: RowSlot, ver: Ver) -> Option<&Stored> {
        self.rows.get(&at)?.get(&Reverse(ver))
    }

    fn stored_mut(&mut self, at: RowSlot, ver: Ver) -> Option<&mut Stored> {
        self.rows.get_mut(&at)?.get_mut(&Reverse(ver))
    }

    fn versions(&self, at: RowSlot) -> Result<Vec<VersionMeta>, StoreError> {
        let versions = self.rows.get(&at).into_iter().flat_map(BTreeMap::values);
        versions.map(|stored| readable(at, stored)).collect()
    }

    fn record(&self, at: RowSlot, ver: Ver) -> Option<Bytes> {
        self.stored(at, ver).filter(|stored| stored.meta.present).map(|s| s.record.clone())
    }
}

impl ShardStore for MemoryStore {
    fn opened(&self) -> Opened {
        self.lock().opened()
    }

    fn announce(&self, run: RunId) -> Result<(), StoreError> {
        let mut inner = self.lock();
        inner.serving()?;
        inner.announced = announce_too(inner.announced, run);
        Ok(())
    }

    fn admit(&self, admission: Admission) -> Result<(), StoreError> {
        self.lock().admit(admission)
    }

    fn versions(&self, at: RowSlot) -> Result<Vec<VersionMeta>, StoreError> {
        self.content().versions(at)
    }

    fn head(&self, at: RowSlot) -> Result<Option<VersionMeta>, StoreError> {
        let content = self.content();
        let newest = content.rows.get(&at).and_then(|versions| versions.values().next());
        newest.map(|stored| readable(at, stored)).transpose()
    }

    fn meta(&self, at: RowSlot, ver: Ver) -> Result<Option<VersionMeta>, StoreError> {
        self.content().stored(at, ver).map(|stored| readable(at, stored)).transpose()
    }

    fn record(&self, at: RowSlot, ver: Ver) -> Result<Option<Bytes>, StoreError> {
        Ok(self.content().record(at, ver))
    }

    fn records(&self, wanted: &[(RowSlot, Ver)]) -> Vec<Result<Option<Bytes>, StoreError>> {
        let content = self.content();
        wanted.iter().map(|(at, ver)| Ok(content.record(*at, *ver))).collect()
    }

    fn scan(
        &self,
        volume: VolumeNo,
        group: GroupNo,
        after: Option<RowSlot>,
        limit: usize,
    ) -> Result<Vec<SlotVersions>, StoreError> {
        let (first, last) = group_bounds(volume, group);
        let start = match after {
            Some(after) if after >= last => return Ok(Vec::new()),
            Some(after) if after >= first => Bound::Excluded(after),
            _ => Bound::Included(first),
        };
        let content = self.content();
        let mut page = Vec::new();
        for at in content.rows.range((start, Bound::Included(last))).map(|(at, _)| *at).take(limit)
        {
            match content.versions(at) {
                Ok(versions) => page.push((at, versions)),
                Err(error) if page.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(page)
    }

    fn prepared(&self, volume: VolumeNo) -> Result<Vec<(RowSlot, Ver)>, StoreError> {
        let (first, _) = group_bounds(volume, GroupNo(0));
        let (_, last) = group_bounds(volume, GroupNo(u16::MAX));
        let content = self.content();
        Ok(content.prepared.range(first..=last).map(|(at, ver)| (*at, *ver)).collect())
    }

    fn volume(&self, volume: VolumeNo) -> Result<VolumeState, StoreError> {
        Ok(self.content().volumes.get(&volume).copied().unwrap_or_default())
    }

    fn index(&self, volume: VolumeNo, group: GroupNo) -> Result<Option<ChangeIndex>, StoreError> {
        let content = self.content();
        Ok(content.indexes.get(&(volume, group)).and_then(|(index, _)| index.clone()))
    }

    fn changed(
        &self,
        volume: VolumeNo,
        group: GroupNo,
        after: Option<RowAddr>,
        limit: usize,
    ) -> Result<Vec<RowAddr>, StoreError> {
        let content = self.content();
        let rows = content.indexes.get(&(volume, group)).map(|(_, rows)| rows);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = rows.into_iter().flat_map(|rows| rows.range((from, Bound::Unbounded)));
        Ok(rows.take(limit).copied().collect())
    }

    fn volumes(&self) -> Result<Vec<VolumeNo>, StoreError> {
        let content = self.content();
        let mut all: Vec<_> = content.volumes.keys().copied().collect();
        all.extend(content.rows.keys().map(|at| at.volume));
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.lock().commit(batch)
    }

    fn space(&self) -> Result<Space, StoreError> {
        let inner = self.lock();
        let free = inner.capacity.saturating_sub(inner.content.used);
        Ok(Space { total: inner.capacity, free, used: inner.content.used, buffers: 0 })
    }

    fn close(&self) -> Result<(), StoreError> {
        let mut inner = self.lock();
        if let Some(why) = &inner.failed {
            return Err(StoreError::Io(why.clone()));
        }
        inner.undo.clear();
        inner.closed = true;
        Ok(())
    }
}

fn readable(at: RowSlot, stored: &Stored) -> Result<VersionMeta, StoreError> {
    if stored.meta_corrupt {
        return Err(StoreError::Corrupt { at, what: "metadata" });
    }
    Ok(stored.meta.clone())
}

/// The smallest and the largest row slot of a group.
fn group_bounds(volume: VolumeNo, group: GroupNo) -> (RowSlot, RowSlot) {
    let at = |stripe, index, slot| RowSlot {
        volume,
        row: RowAddr { group, stripe, index },
        slot: Slot(slot),
    };
    (at(0, 0, 0), at(u64::MAX, u32::MAX, u8::MAX))
}

struct Fingerprint(XxHash3_128);

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    fn finish(&self) -> u64 {
        #[expect(clippy::cast_possible_truncation, reason = "a part of the hash is asked for")]
        let low = self.0.finish_128() as u64;
        low
    }
}

#[cfg(test)]
mod tests;
