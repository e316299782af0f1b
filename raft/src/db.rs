//! The RocksDB under the log and the snapshots.
//!
//! Two column families: `log` (key: index, big-endian) and `meta` (few fixed keys). All vital
//! writes are synced, so whatever a crash tears off the end of the write-ahead log, or makes of it,
//! was reported to nobody, and RocksDB takes the log up to there. Damage *before* that is another
//! matter, which [`crate::witness`] tells from it: then the store is not opened.

use crate::codec::{self, CodecError};
use crate::stored;
use crate::witness::{Said, Witness};
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DBRecoveryMode, Options, WriteBatch, WriteOptions,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thiserror::Error;
use tokio::sync::watch;

pub(crate) const LOG: &str = "log";
pub(crate) const META: &str = "meta";

/// Keys of `meta`. Each value has its own version byte; `FORMAT` is the layout of the whole.
pub(crate) mod key {
    pub(crate) const FORMAT: &[u8] = b"format";
    pub(crate) const NODE: &[u8] = b"node";
    pub(crate) const VOTE: &[u8] = b"vote";
    pub(crate) const COMMITTED: &[u8] = b"committed";
    pub(crate) const PURGED: &[u8] = b"purged";
    /// Which store it is, and whether the group knows it.
    pub(crate) const IDENTITY: &[u8] = b"identity";
    /// There since the store has a witness.
    pub(crate) const WITNESS: &[u8] = b"witness";
    pub(crate) const SNAPSHOT_META: &[u8] = b"snapshot-meta";
    pub(crate) const SNAPSHOT_DATA: &[u8] = b"snapshot-data";
}

/// The layout of keys and column families.
pub(crate) const FORMAT: u32 = 2;

#[derive(Debug, Error)]
pub(crate) enum DbError {
    #[error("raft store: {0}")]
    Rocks(#[from] rocksdb::Error),
    #[error("raft store, folder {folder}: {source}")]
    Folder { folder: String, source: io::Error },
    #[error("raft store, {what}: {source}")]
    Codec { what: String, source: CodecError },
    #[error("raft store has layout {0}, this program knows {FORMAT}")]
    Format(u32),
    #[error("raft store belongs to node {found}, this is node {expected}")]
    WrongNode { found: u64, expected: u64 },
    #[error("raft store: {0}")]
    Inconsistent(String),
    #[error("raft store forgot what its disk had said was written: {0}; it may not vote again")]
    Forgotten(String),
    #[error("raft store: the runtime is shutting down")]
    Stopped,
}

/// An open store. Its methods block.
pub(crate) struct Db {
    rocks: DB,
    /// Held during every write, so that what it notes as synced is.
    witness: Mutex<Witness>,
    /// Held while the two values of a snapshot are read or replaced.
    snapshots: Mutex<()>,
    /// Lets every write fail from now on.
    #[cfg(test)]
    pub(crate) broken: std::sync::atomic::AtomicBool,
    /// Last, so that it is dropped when RocksDB has closed.
    open: watch::Sender<()>,
}

impl Db {
    /// Opens the store of `node`, or makes it.
    pub(crate) fn open(dir: &Path, node: u64) -> Result<Self, DbError> {
        make_folder(dir)
            .map_err(|source| DbError::Folder { folder: dir.display().to_string(), source })?;
        let said = Said::before(dir)?;
        let logs = smalti_wal::check(dir)
            .map_err(|source| DbError::Folder { folder: dir.display().to_string(), source })?;
        if let Some(name) = logs.manifest {
            return Err(DbError::Forgotten(format!("{name} is damaged")));
        }
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_paranoid_checks(true);
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        options.set_track_and_verify_wals_in_manifest(true);
        // One batch spans both families; flushed one by one they could come back out of step.
        options.set_atomic_flush(true);
        options.set_max_total_wal_size(64 << 20);
        options.set_write_buffer_size(16 << 20);
        options.set_keep_log_file_num(4);
        let families = [LOG, META].map(|name| ColumnFamilyDescriptor::new(name, family_options()));
        let rocks = DB::open_cf_descriptors(&options, dir, families)?;
        let meta = rocks.cf_handle(META).expect("the store was opened with this family");
        let known = rocks.get_cf(meta, key::WITNESS)?.is_some();
        let sequence = rocks.latest_sequence_number();
        said.check(sequence, known)?;
        let db = Self {
            witness: Mutex::new(Witness::begin(dir, sequence)?),
            rocks,
            snapshots: Mutex::new(()),
            #[cfg(test)]
            broken: false.into(),
            open: watch::Sender::new(()),
        };
        match db.meta::<u32>(key::FORMAT)? {
            None => {
                let mut batch = Batch::new(&db);
                batch.put_meta(key::FORMAT, &FORMAT)?;
                batch.put_meta(key::NODE, &node)?;
                batch.commit_synced()?;
            }
            Some(FORMAT) => {}
            Some(other) => return Err(DbError::Format(other)),
        }
        if !known {
            let mut batch = Batch::new(&db);
            batch.put_meta(key::WITNESS, &true)?;
            batch.commit_synced()?;
        }
        match db.meta::<u64>(key::NODE)? {
            Some(found) if found == node => Ok(db),
            Some(found) => Err(DbError::WrongNode { found, expected: node }),
            None => Err(DbError::Inconsistent("it names no node".into())),
        }
    }

    /// Ends when the store has been closed and could be opened again.
    pub(crate) fn open_until(&self) -> watch::Receiver<()> {
        self.open.subscribe()
    }

    pub(crate) fn meta<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, DbError> {
        let bytes = self.raw_meta(key)?;
        bytes.map(|bytes| codec::decode(&bytes).map_err(codec_error(key))).transpose()
    }

    pub(crate) fn raw_meta(&self, key: &[u8]) -> Result<Option<Vec<u8>>, DbError> {
        let Some(bytes) = self.rocks.get_cf(self.family(META), key)? else { return Ok(None) };
        stored::unwrap(META, key, &bytes)
            .map(|content| Some(content.to_vec()))
            .map_err(codec_error(key))
    }

    /// Values of the log from `start` to before `end`, in order, until `enough` says so. What is
    /// missing at the front is left out; a gap is an error.
    pub(crate) fn log_range<T: DeserializeOwned>(
        &self,
        start: u64,
        end: u64,
        mut enough: impl FnMut(usize) -> bool,
    ) -> Result<Vec<(u64, T)>, DbError> {
        let mut found = Vec::new();
        let mut expected: Option<u64> = None;
        if start >= end {
            return Ok(found);
        }
        let from = start.to_be_bytes();
        let mode = rocksdb::IteratorMode::From(&from, rocksdb::Direction::Forward);
        for item in self.rocks.iterator_cf(self.family(LOG), mode) {
            let (index, value) = item?;
            let index = log_index(&index)?;
            if index >= end {
                break;
            }
            if expected.is_some_and(|expected| expected != index) {
                return Err(DbError::Inconsistent(format!("the log has a hole before {index}")));
            }
            expected = Some(index + 1);
            found.push((index, decode_entry(index, &value)?));
            if enough(value.len()) {
                break;
            }
        }
        Ok(found)
    }

    /// The last entry of the log.
    pub(crate) fn log_last<T: DeserializeOwned>(&self) -> Result<Option<T>, DbError> {
        let mut items = self.rocks.iterator_cf(self.family(LOG), rocksdb::IteratorMode::End);
        let Some(item) = items.next() else { return Ok(None) };
        let (index, value) = item?;
        decode_entry(log_index(&index)?, &value).map(Some)
    }

    /// The right to touch the stored snapshot.
    pub(crate) fn snapshots(&self) -> MutexGuard<'_, ()> {
        // Nothing is held under the lock but the order of two operations of RocksDB.
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything in a family, for tests that change it below the checksums.
    #[cfg(test)]
    pub(crate) fn raw(&self, family: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let items = self.rocks.iterator_cf(self.family(family), rocksdb::IteratorMode::Start);
        items.map(|item| item.expect("readable")).map(|(k, v)| (k.into(), v.into())).collect()
    }

    #[cfg(test)]
    pub(crate) fn put_raw(&self, family: &str, key: &[u8], bytes: &[u8]) {
        self.rocks.put_cf(self.family(family), key, bytes).expect("written");
    }

    #[cfg(test)]
    pub(crate) fn remove_raw(&self, family: &str, key: &[u8]) {
        self.rocks.delete_cf(self.family(family), key).expect("written");
    }

    fn family(&self, name: &str) -> &ColumnFamily {
        self.rocks.cf_handle(name).expect("the store was opened with this family")
    }
}

/// Runs blocking work on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    db: &Arc<Db>,
    work: impl FnOnce(&Db) -> Result<T, DbError> + Send + 'static,
) -> Result<T, DbError> {
    let db = Arc::clone(db);
    match tokio::task::spawn_blocking(move || work(&db)).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_cancelled) => Err(DbError::Stopped),
    }
}

/// Changes that become durable together.
pub(crate) struct Batch<'db> {
    db: &'db Db,
    batch: WriteBatch,
}

impl<'db> Batch<'db> {
    pub(crate) fn new(db: &'db Db) -> Self {
        Self { db, batch: WriteBatch::default() }
    }

    pub(crate) fn put_meta<T: Serialize>(&mut self, key: &[u8], value: &T) -> Result<(), DbError> {
        let bytes = codec::encode(value).map_err(codec_error(key))?;
        self.put_raw_meta(key, &bytes);
        Ok(())
    }

    pub(crate) fn put_raw_meta(&mut self, key: &[u8], bytes: &[u8]) {
        self.batch.put_cf(self.db.family(META), key, stored::wrap(META, key, bytes));
    }

    pub(crate) fn put_log<T: Serialize>(&mut self, index: u64, value: &T) -> Result<(), DbError> {
        let bytes = codec::encode(value)
            .map_err(|source| DbError::Codec { what: format!("log entry {index}"), source })?;
        let key = index.to_be_bytes();
        self.batch.put_cf(self.db.family(LOG), key, stored::wrap(LOG, &key, &bytes));
        Ok(())
    }

    /// Removes the entries from `start` on, or those before `end`.
    pub(crate) fn delete_log(&mut self, start: u64, end: Option<u64>) {
        let end = end.unwrap_or(u64::MAX).to_be_bytes();
        self.batch.delete_range_cf(self.db.family(LOG), start.to_be_bytes(), end);
    }

    /// Writes the batch and returns once it is on stable storage.
    pub(crate) fn commit_synced(self) -> Result<(), DbError> {
        #[cfg(test)]
        if self.db.broken.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(DbError::Inconsistent("a test broke it".into()));
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        let mut witness = self.db.witness.lock().unwrap_or_else(PoisonError::into_inner);
        self.db.rocks.write_opt(self.batch, &options)?;
        witness.note(self.db.rocks.latest_sequence_number())
    }

    /// Writes the batch; a crash may lose it, though not out of order.
    pub(crate) fn commit_lazily(self) -> Result<(), DbError> {
        let _not_noted = self.db.witness.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.db.rocks.write(self.batch)?)
    }
}

/// Makes the folder of the store, durably: RocksDB syncs what is in it, but not its own name, and
/// without that a power cut takes all votes and entries at once. Also when it is there already,
/// for whoever made it may not have synced it.
fn make_folder(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    match dir.canonicalize()?.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn family_options() -> Options {
    let mut options = Options::default();
    options.set_compression_type(rocksdb::DBCompressionType::None);
    options
}

pub(crate) fn decode_entry<T: DeserializeOwned>(index: u64, value: &[u8]) -> Result<T, DbError> {
    let what = || format!("log entry {index}");
    stored::unwrap(LOG, &index.to_be_bytes(), value)
        .and_then(codec::decode)
        .map_err(|source| DbError::Codec { what: what(), source })
}

pub(crate) fn log_index(key: &[u8]) -> Result<u64, DbError> {
    let bytes = key.try_into();
    bytes.map(u64::from_be_bytes).map_err(|_| DbError::Inconsistent("a log key is no index".into()))
}

pub(crate) fn codec_error(key: &[u8]) -> impl FnOnce(CodecError) -> DbError {
    let what = String::from_utf8_lossy(key).into_owned();
    |source| DbError::Codec { what, source }
}
