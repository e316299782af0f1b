//! The store itself: reads, commits, start and end.

use crate::apply::{Claims, prepare};
use crate::blobs;
use crate::database::{Database, failed, read_failed};
use crate::held::Held;
use crate::keys::{after_prefix, change, slot, version, volume};
use crate::label::{self, Directory, Label};
use crate::options::{Expect, RocksOptions};
use crate::reclaim::Reclaim;
use crate::space;
use crate::value;
use bytes::Bytes;
use rocksdb::{DBPinnableSlice, DBRawIterator, ReadOptions, WriteOptions};
use smalti_storage::ids::{Epoch, GroupNo, RowAddr, RowSlot, RunId, Ver, VolumeNo};
use smalti_storage::store::{
    Admission, Announced, Batch, ChangeIndex, Opened, ShardStore, SlotVersions, Space, StoreError,
    VersionMeta, VolumeState, admitted_before, announce_too,
};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use tracing::{error, info};
use uuid::Uuid;

/// Pages from this many row slots on read ahead and stay out of the cache.
const LONG_SCAN: usize = 64;
const READAHEAD: usize = 256 * 1024;
/// Records pinned at once by one multi-get.
const MULTI_GET: usize = 256;

/// A shard store in a directory, locked for this process.
///
/// Dropping it without [`ShardStore::close`] is as good as a crash: nothing acknowledged is lost,
/// and the next start is not clean.
#[derive(Debug)]
pub struct RocksStore {
    pub(crate) database: Held,
    directory: Directory,
    label: Mutex<Label>,
    opened: Mutex<Opened>,
    reclaim: Reclaim,
    buffers: u64,
    claims: Claims,
    /// Held for reading by every commit on its way, for writing to end them.
    phase: RwLock<Phase>,
}

#[derive(Clone, Debug)]
enum Phase {
    Serving,
    Closed,
    Failed(String),
}

impl RocksStore {
    /// Opens the store in `path`, or makes a new one where there is nothing.
    ///
    /// # Errors
    /// [`StoreError::Refused`] with one line to show when the directory is in use, is no store, is
    /// another cluster's or of a newer format, and [`StoreError::Damaged`] when its label, its list of
    /// files or what is read at the start does not verify; then nothing was written to it but, at most,
    /// that it was being opened. [`StoreError::Io`] when the disk fails.
    pub fn open(
        path: impl AsRef<Path>,
        options: &RocksOptions,
        expect: Expect,
    ) -> Result<Self, StoreError> {
        let (directory, label) = Directory::open(path.as_ref(), expect, options.create)?;
        let started = Database::start(&directory, &label, options)?;
        let new = label.incarnation.0 == 0;
        let clean = started.whole && (new || label.clean.is_some());
        let boot = label::boot();
        let opened = Opened {
            id: label.store,
            incarnation: started.incarnation,
            run: label.run,
            announced: label.announced,
            clean,
            went_back: !clean && (started.lacks || boot.is_nil() || label.boot != boot),
        };
        // What a power cut took is not back because the process starts once more.
        let boot = if opened.went_back { Uuid::nil() } else { boot };
        let begun = Some(directory.beginning()?);
        let (incarnation, opening) = (started.incarnation, false);
        let label = Label { incarnation, boot, clean: None, begun, opening, ..label };
        // The name of the database's folder is there before a label that counts on it.
        label::sync(directory.path())?;
        directory.write(&label)?;
        let database = Arc::new(started.database);
        let reclaim = Reclaim::start(Arc::clone(&database), directory.path(), options)
            .map_err(|error| StoreError::Io(format!("no thread to reclaim space: {error}")))?;
        info!(store = %opened.id, incarnation = %opened.incarnation, clean = opened.clean,
            path = %directory.path().display(), "store opened");
        Ok(Self {
            database: Held::new(database),
            directory,
            label: Mutex::new(label),
            opened: Mutex::new(opened),
            reclaim,
            buffers: options.buffers(),
            claims: Claims::default(),
            phase: RwLock::new(Phase::Serving),
        })
    }

    /// How often the log was synced to the disk since the store was opened, with
    /// [`RocksOptions::count_syncs`]; 0 without. Several commits at once may share a sync.
    pub fn log_syncs(&self) -> u64 {
        self.database.log_syncs()
    }

    /// Reads the versions whose keys begin with each slot's, newest first, at most `limit`. One
    /// iterator serves all slots: to make one costs more than to move it, and where the slots
    /// follow each other it stands at the next one already.
    fn newest_by(
        &self,
        slots: impl Iterator<Item = RowSlot>,
        limit: usize,
        mut take: impl FnMut(Result<Vec<VersionMeta>, StoreError>),
    ) {
        let mut options = ReadOptions::default();
        let several = slots.size_hint().0 > 1;
        options.set_prefix_same_as_start(!several);
        options.set_total_order_seek(several);
        let mut iterator = self.database.db.raw_iterator_cf_opt(self.database.meta(), options);
        let mut last = None;
        for at in slots {
            let prefix = slot::encode(at);
            // Within the slot that was just read it may stand anywhere.
            let there = last != Some(at) && iterator.key().is_some_and(|k| k.starts_with(&prefix));
            if !there {
                iterator.seek(prefix);
            }
            last = Some(at);
            take(read_versions(&mut iterator, at, &prefix, limit));
        }
    }

    fn newest_one(&self, at: RowSlot, limit: usize) -> Result<Vec<VersionMeta>, StoreError> {
        let mut found = Ok(Vec::new());
        self.newest_by(std::iter::once(at), limit, |versions| found = versions);
        found
    }

    /// Holds up the end of the store.
    fn serving(&self) -> Result<RwLockReadGuard<'_, Phase>, StoreError> {
        let phase = self.phase.read().unwrap_or_else(PoisonError::into_inner);
        match &*phase {
            Phase::Serving => Ok(phase),
            Phase::Closed => Err(StoreError::Io("the store is closed".to_owned())),
            Phase::Failed(why) => Err(StoreError::Io(why.clone())),
        }
    }

    fn fail(&self, why: StoreError) -> StoreError {
        let mut phase = self.phase.write().unwrap_or_else(PoisonError::into_inner);
        if let Phase::Serving = *phase {
            error!(store = %self.opened().id, error = %why, "store failed");
            *phase = Phase::Failed(match &why {
                StoreError::Io(text) => text.clone(),
                other => other.to_string(),
            });
        }
        why
    }

    fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        self.database.check_background()?;
        let claim = self.claims.claim(batch);
        let prepared = prepare(&self.database, batch)?;
        let mut options = WriteOptions::default();
        options.set_sync(!batch.relaxed);
        self.database.db.write_opt(prepared.write, &options).map_err(|error| failed(&error))?;
        drop(claim);
        if prepared.drops {
            self.reclaim.dropped();
        }
        Ok(())
    }

    /// Writes everything out, so that the log is empty and only the manifest and what it names
    /// matter, and puts the clean marker into the label.
    fn finish(&self) -> Result<(), StoreError> {
        let db = &self.database.db;
        self.database.pace.set(None);
        self.reclaim.write_nothing();
        self.database.flush()?;
        db.flush_wal(true).map_err(|error| failed(&error))?;
        self.database.check_background()?;
        db.cancel_all_background_work(true);
        self.reclaim.stop();
        // What was at work until now may have failed just before it ended.
        self.database.check_background()?;
        // What that broke off was never synced, and no table needs it. RocksDB removes such files
        // when deletions are allowed again; otherwise when it is dropped, but by then the label has
        // counted them.
        db.disable_file_deletions().map_err(|error| failed(&error))?;
        db.enable_file_deletions().map_err(|error| failed(&error))?;
        let folder = self.directory.database();
        let blobs = blobs::names(&folder)
            .map_err(|error| StoreError::Io(format!("{}: {error}", folder.display())))?;
        blobs::remove_unfinished(&self.database, &folder, &blobs);
        let clean = Some(self.directory.ending()?);
        self.directory.write(&Label { clean, ..self.label().clone() })
    }

    fn label(&self) -> MutexGuard<'_, Label> {
        self.label.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was stored of a volume by labels up to format 3.
#[derive(serde::Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
struct StateBeforeSnapshots {
    promised: Epoch,
    watermark: Ver,
}

impl From<StateBeforeSnapshots> for VolumeState {
    fn from(StateBeforeSnapshots { promised, watermark }: StateBeforeSnapshots) -> Self {
        Self { promised, watermark, ..Self::default() }
    }
}

impl ShardStore for RocksStore {
    fn opened(&self) -> Opened {
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self, run: RunId) -> Result<(), StoreError> {
        // As long as it is held no clean marker is written.
        let serving = self.serving()?;
        let mut label = self.label();
        let next = Label { announced: announce_too(label.announced, run), ..label.clone() };
        if let Err(why) = self.directory.write(&next) {
            drop((label, serving));
            return Err(self.fail(why));
        }
        *label = next;
        Ok(())
    }

    fn admit(&self, admission: Admission) -> Result<(), StoreError> {
        let Admission { run, incarnation, clean } = admission;
        // As long as it is held no clean marker is written.
        let serving = self.serving()?;
        let mut label = self.label();
        if incarnation < label.incarnation {
            return Err(admitted_before(admission, label.incarnation));
        }
        let announced = Announced::default();
        // The cluster may know more of a disk that seemed to be whole.
        let Opened { clean: whole, went_back, .. } = self.opened();
        let went_back = went_back || whole && !clean;
        let boot = if went_back { Uuid::nil() } else { label.boot };
        let next = Label { incarnation, run, announced, boot, ..label.clone() };
        let begun = if incarnation > label.incarnation {
            self.database.begin(label.store, incarnation)
        } else {
            Ok(())
        };
        if let Err(why) = begun.and_then(|()| self.directory.write(&next)) {
            drop((label, serving));
            return Err(self.fail(why));
        }
        let opened = Opened { id: next.store, incarnation, run, clean, went_back, announced };
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = opened;
        info!(store = %next.store, %incarnation, %run, clean, "store admitted");
        *label = next;
        Ok(())
    }

    fn versions(&self, at: RowSlot) -> Result<Vec<VersionMeta>, StoreError> {
        self.newest_one(at, usize::MAX)
    }

    fn head(&self, at: RowSlot) -> Result<Option<VersionMeta>, StoreError> {
        Ok(self.newest_one(at, 1)?.pop())
    }

    fn newest(&self, slots: &[RowSlot], limit: usize) -> Vec<Result<Vec<VersionMeta>, StoreError>> {
        let mut answers = Vec::with_capacity(slots.len());
        self.newest_by(slots.iter().copied(), limit, |versions| answers.push(versions));
        for (at, answer) in slots.iter().zip(&mut answers) {
            // On its way to the next slot the iterator may have met damage that is not this one's.
            if matches!(answer, Err(StoreError::Corrupt { .. })) {
                *answer = self.newest_one(*at, limit);
            }
        }
        answers
    }

    fn meta(&self, at: RowSlot, ver: Ver) -> Result<Option<VersionMeta>, StoreError> {
        let key = version::encode(at, ver);
        let found = self.database.db.get_pinned_cf(self.database.meta(), key);
        let found = found.map_err(|error| read_failed(&error, at, "metadata"))?;
        found.map(|bytes| decode_meta(at, &key, &bytes)).transpose()
    }

    fn metas(&self, wanted: &[(RowSlot, Ver)]) -> Vec<Result<Option<VersionMeta>, StoreError>> {
        let mut answers = Vec::with_capacity(wanted.len());
        for wanted in wanted.chunks(MULTI_GET) {
            let keys: Vec<_> = wanted.iter().map(|(at, ver)| version::encode(*at, *ver)).collect();
            let found =
                self.database.db.batched_multi_get_cf(self.database.meta(), keys.iter(), false);
            answers.extend(wanted.iter().zip(&keys).zip(found).map(|(((at, _), key), found)| {
                let found = found.map_err(|error| read_failed(&error, *at, "metadata"))?;
                found.map(|bytes| decode_meta(*at, key, &bytes)).transpose()
            }));
        }
        answers
    }

    fn record(&self, at: RowSlot, ver: Ver) -> Result<Option<Bytes>, StoreError> {
        let key = version::encode(at, ver);
        record_answer(at, self.database.db.get_pinned_cf(self.database.data(), key))
    }

    fn records(&self, wanted: &[(RowSlot, Ver)]) -> Vec<Result<Option<Bytes>, StoreError>> {
        let mut answers = Vec::with_capacity(wanted.len());
        for wanted in wanted.chunks(MULTI_GET) {
            let keys: Vec<_> = wanted.iter().map(|(at, ver)| version::encode(*at, *ver)).collect();
            let found =
                self.database.db.batched_multi_get_cf(self.database.data(), keys.iter(), false);
            answers
                .extend(wanted.iter().zip(found).map(|((at, _), found)| record_answer(*at, found)));
        }
        answers
    }

    fn scan(
        &self,
        volume: VolumeNo,
        group: GroupNo,
        after: Option<RowSlot>,
        limit: usize,
    ) -> Result<Vec<SlotVersions>, StoreError> {
        let first = slot::of_group(volume, group);
        let end = after_prefix(&first);
        let start = after.map_or(Vec::new(), |after| after_prefix(&slot::encode(after)));
        let start = start.max(first.to_vec());
        if limit == 0 || start >= end {
            return Ok(Vec::new());
        }
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        options.set_iterate_upper_bound(end);
        if limit >= LONG_SCAN {
            options.set_readahead_size(READAHEAD);
            options.fill_cache(false);
        }
        let mut iterator = self.database.db.raw_iterator_cf_opt(self.database.meta(), options);
        iterator.seek(&start);
        let mut page: Vec<SlotVersions> = Vec::new();
        while let Some((key, bytes)) = iterator.item() {
            let at = slot_of(key)?;
            let is_new = page.last().is_none_or(|(last, _)| *last != at);
            if is_new && page.len() == limit {
                break;
            }
            match decode_meta(at, key, bytes) {
                Ok(meta) if is_new => page.push((at, vec![meta])),
                Ok(meta) => page.last_mut().expect("not new").1.push(meta),
                Err(error) => {
                    // The page ends before the row slot that has it, see the trait.
                    page.pop_if(|(last, _)| *last == at);
                    return if page.is_empty() { Err(error) } else { Ok(page) };
                }
            }
            iterator.next();
        }
        // Unlike one damaged value this is a table that can not be walked: no page would be whole.
        iterator.status().map_err(|error| failed(&error))?;
        Ok(page)
    }

    fn prepared(&self, volume: VolumeNo) -> Result<Vec<(RowSlot, Ver)>, StoreError> {
        let first = slot::of_volume(volume);
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(after_prefix(&first));
        let mut iterator = self.database.db.raw_iterator_cf_opt(self.database.prep(), options);
        iterator.seek(first);
        let mut marks = Vec::new();
        while let Some((key, bytes)) = iterator.item() {
            let at = slot_of(key)?;
            let ver = value::decode(key, bytes)
                .map_err(|_| StoreError::Corrupt { at, what: "prepared mark" })?;
            marks.push((at, ver));
            iterator.next();
        }
        iterator.status().map_err(|error| failed(&error))?;
        Ok(marks)
    }

    fn prepared_at(&self, at: RowSlot) -> Result<Option<Ver>, StoreError> {
        let key = slot::encode(at);
        let found = self.database.db.get_pinned_cf(self.database.prep(), key);
        let Some(bytes) = found.map_err(|error| failed(&error))? else { return Ok(None) };
        value::decode(&key, &bytes)
            .map(Some)
            .map_err(|_| StoreError::Corrupt { at, what: "prepared mark" })
    }

    fn volume(&self, volume: VolumeNo) -> Result<VolumeState, StoreError> {
        let key = volume::encode(volume);
        let found = self.database.db.get_pinned_cf(self.database.state(), key);
        let Some(bytes) = found.map_err(|error| failed(&error))? else {
            return Ok(VolumeState::default());
        };
        // A store that forgot what it promised may serve nobody.
        value::decode(&key, &bytes)
            .or_else(|_| value::decode(&key, &bytes).map(StateBeforeSnapshots::into))
            .map_err(|_| StoreError::Io(format!("stored state of {volume} does not verify")))
    }

    fn index(&self, volume: VolumeNo, group: GroupNo) -> Result<Option<ChangeIndex>, StoreError> {
        let key = change::of_index(volume, group);
        let found = self.database.db.get_pinned_cf(self.database.state(), key);
        let found = found.map_err(|error| failed(&error))?;
        // Without one all rows are compared, which is right whatever it said.
        Ok(found.and_then(|bytes| value::decode(&key, &bytes).ok()))
    }

    fn changed(
        &self,
        volume: VolumeNo,
        group: GroupNo,
        after: Option<RowAddr>,
        limit: usize,
    ) -> Result<Vec<RowAddr>, StoreError> {
        let prefix = change::of_index(volume, group);
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(after_prefix(&prefix));
        let mut iterator = self.database.db.raw_iterator_cf_opt(self.database.state(), options);
        match after {
            Some(after) => iterator.seek(after_prefix(&change::of_row(volume, after))),
            None => iterator.seek(prefix),
        }
        let mut rows = Vec::new();
        while rows.len() < limit
            && let Some(key) = iterator.key()
        {
            // The index itself comes first.
            rows.extend(change::row(key));
            iterator.next();
        }
        iterator.status().map_err(|error| failed(&error))?;
        Ok(rows)
    }

    fn volumes(&self) -> Result<Vec<VolumeNo>, StoreError> {
        let mut volumes = Vec::new();
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(after_prefix(&volume::PREFIX));
        let mut states = self.database.db.raw_iterator_cf_opt(self.database.state(), options);
        states.seek(volume::PREFIX);
        while let Some(key) = states.key() {
            volumes.extend(volume::decode(key));
            states.next();
        }
        states.status().map_err(|error| failed(&error))?;

        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        let mut rows = self.database.db.raw_iterator_cf_opt(self.database.meta(), options);
        rows.seek_to_first();
        while let Some(key) = rows.key() {
            let volume = slot_of(key)?.volume;
            volumes.push(volume);
            rows.seek(after_prefix(&slot::of_volume(volume)));
        }
        rows.status().map_err(|error| failed(&error))?;
        volumes.sort_unstable();
        volumes.dedup();
        Ok(volumes)
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        batch.check()?;
        let result = {
            let _serving = self.serving()?;
            self.write(&batch)
        };
        result.map_err(|why| self.fail(why))
    }

    fn space(&self) -> Result<Space, StoreError> {
        space::below(self.directory.path(), self.database.used()?, self.buffers)
    }

    fn pace_rewriting(&self, bytes_per_sec: Option<u64>) {
        self.database.pace.set(bytes_per_sec);
    }

    fn rewritten(&self) -> u64 {
        self.database.pace.wanted()
    }

    fn is_behind(&self) -> bool {
        self.database.is_behind()
    }

    fn close(&self) -> Result<(), StoreError> {
        let mut phase = self.phase.write().unwrap_or_else(PoisonError::into_inner);
        match &*phase {
            Phase::Closed => return Ok(()),
            Phase::Failed(why) => return Err(StoreError::Io(why.clone())),
            Phase::Serving => {}
        }
        let result = self.finish();
        *phase = match &result {
            Ok(()) => Phase::Closed,
            Err(why) => Phase::Failed(why.to_string()),
        };
        drop(phase);
        if result.is_ok() {
            info!(store = %self.opened().id, "store closed");
        }
        result
    }
}

impl Drop for RocksStore {
    fn drop(&mut self) {
        let phase = self.phase.get_mut().unwrap_or_else(PoisonError::into_inner);
        let failed = matches!(phase, Phase::Failed(_)) || self.database.check_background().is_err();
        self.database.failed = failed;
        // Otherwise the thread would keep the database open, and its lock held, for as long as a
        // compaction takes.
        self.database.pace.set(None);
        self.reclaim.write_nothing();
        self.database.db.cancel_all_background_work(!failed);
        self.reclaim.stop();
    }
}

/// Reads versions from where an iterator stands, as long as their keys begin with `prefix`.
fn read_versions(
    iterator: &mut DBRawIterator<'_>,
    at: RowSlot,
    prefix: &[u8],
    limit: usize,
) -> Result<Vec<VersionMeta>, StoreError> {
    let mut versions = Vec::new();
    while versions.len() < limit
        && let Some((key, bytes)) = iterator.item()
        && key.starts_with(prefix)
    {
        versions.push(decode_meta(at, key, bytes)?);
        // A step further may walk over all that was deleted since the last write-out.
        if versions.len() < limit {
            iterator.next();
        }
    }
    iterator.status().map_err(|error| read_failed(&error, at, "metadata"))?;
    Ok(versions)
}

fn decode_meta(at: RowSlot, key: &[u8], bytes: &[u8]) -> Result<VersionMeta, StoreError> {
    let corrupt = StoreError::Corrupt { at, what: "metadata" };
    match value::decode::<VersionMeta>(key, bytes) {
        Ok(meta) if version::decode(key) == Some((at, meta.ver)) => Ok(meta),
        _ => Err(corrupt),
    }
}

/// The row slot a slot or version key belongs to.
fn slot_of(key: &[u8]) -> Result<RowSlot, StoreError> {
    key.get(..slot::LEN)
        .and_then(slot::decode)
        .ok_or_else(|| StoreError::Io("a stored key is too short".to_owned()))
}

fn record_answer(
    at: RowSlot,
    found: Result<Option<DBPinnableSlice<'_>>, rocksdb::Error>,
) -> Result<Option<Bytes>, StoreError> {
    let found = found.map_err(|error| read_failed(&error, at, "record"))?;
    Ok(found.map(|bytes| Bytes::copy_from_slice(&bytes)))
}

#[cfg(test)]
mod flips;
#[cfg(test)]
mod tests;
