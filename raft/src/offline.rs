//! Looking at the Raft store of a member that does not run: what whoever has its folder can learn of the map.
//!
//! Nothing is written, and nothing here can make a store a member's again; [`crate::RaftGroup`] does that.

use crate::db::{DbError, FORMAT, LOG, META, codec_error, decode_entry, key, log_index};
use crate::state_machine::{SnapshotBody, decode_body};
use crate::types::{Entry, SnapshotMeta};
use crate::{codec, stored};
use openraft::EntryPayload;
use rocksdb::{ColumnFamily, ColumnFamilyDescriptor, DB, DBRecoveryMode, IteratorMode, Options};
use serde::de::DeserializeOwned;
use smalti_map::view::MapView;
use std::path::Path;
use thiserror::Error;

/// Why the store of a stopped member can not be read.
#[derive(Debug, Error)]
#[error(transparent)]
pub struct OfflineError(#[from] DbError);

/// The newest map that the Raft store in `folder` tells of, whose member does not run. `seen` gets every map on
/// the way there: of the last snapshot and after each entry of the log, whether it was committed or not.
///
/// A log that has its beginning still is followed from there, and the snapshot waits for its turn: so maps are
/// seen that it has not.
///
/// # Errors
/// When the store can not be opened, or something in it does not verify.
pub fn read_stopped(
    folder: &Path,
    mut seen: impl FnMut(&MapView),
) -> Result<MapView, OfflineError> {
    let store = Stopped::open(folder)?;
    let snapshot = store.snapshot()?;
    let entries = store.entries()?;
    let has_beginning = entries.first().is_some_and(|entry| entry.log_id.index == 0);
    let (mut body, mut next) = (SnapshotBody::default(), 0);
    let mut snapshot =
        snapshot.map(|(meta, body)| (meta.last_log_id.map_or(0, |id| id.index), body));
    if !has_beginning && let Some((last, whole)) = snapshot.take() {
        (body, next) = (whole, last + 1);
        seen(&body.map);
    }
    let begin = next;
    for entry in entries.into_iter().filter(|entry| entry.log_id.index >= begin) {
        let index = entry.log_id.index;
        // A gap is what a snapshot from elsewhere leaves, whose entries never were here.
        if index != next {
            let what = format!("the log has a hole before {index}");
            return Err(DbError::Inconsistent(what).into());
        }
        next = index + 1;
        if let EntryPayload::Normal(proposal) = entry.payload {
            body.apply(&proposal);
            seen(&body.map);
        }
    }
    match snapshot {
        Some((last, newer)) if last >= next => {
            seen(&newer.map);
            Ok(newer.map)
        }
        _ => Ok(body.map),
    }
}

struct Stopped {
    rocks: DB,
}

impl Stopped {
    fn open(folder: &Path) -> Result<Self, DbError> {
        let mut options = Options::default();
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        let families =
            [LOG, META].map(|name| ColumnFamilyDescriptor::new(name, Options::default()));
        let rocks = DB::open_cf_descriptors_read_only(&options, folder, families, false)?;
        let store = Self { rocks };
        match store.meta(key::FORMAT)? {
            Some(FORMAT) => Ok(store),
            Some(other) => Err(DbError::Format(other)),
            None => Err(DbError::Inconsistent("it has no layout".into())),
        }
    }

    fn snapshot(&self) -> Result<Option<(SnapshotMeta, SnapshotBody)>, DbError> {
        let Some(meta) = self.meta(key::SNAPSHOT_META)? else { return Ok(None) };
        let data = self.raw_meta(key::SNAPSHOT_DATA)?;
        let data = data.ok_or_else(|| DbError::Inconsistent("a snapshot has no content".into()))?;
        Ok(Some((meta, decode_body(&data)?)))
    }

    fn entries(&self) -> Result<Vec<Entry>, DbError> {
        let mut entries = Vec::new();
        for item in self.rocks.iterator_cf(self.family(LOG), IteratorMode::Start) {
            let (index, value) = item?;
            let index = log_index(&index)?;
            let entry: Entry = decode_entry(index, &value)?;
            let named = entry.log_id.index;
            if named != index {
                let what = format!("log entry {named} stands at {index}");
                return Err(DbError::Inconsistent(what));
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn meta<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, DbError> {
        let bytes = self.raw_meta(key)?;
        bytes.map(|bytes| codec::decode(&bytes).map_err(codec_error(key))).transpose()
    }

    fn raw_meta(&self, key: &[u8]) -> Result<Option<Vec<u8>>, DbError> {
        let Some(bytes) = self.rocks.get_cf(self.family(META), key)? else { return Ok(None) };
        let content = stored::unwrap(META, key, &bytes).map_err(codec_error(key))?;
        Ok(Some(content.to_vec()))
    }

    fn family(&self, name: &str) -> &ColumnFamily {
        self.rocks.cf_handle(name).expect("the store was opened with this family")
    }
}
