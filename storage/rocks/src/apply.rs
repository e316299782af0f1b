//! Turning a batch of changes into one RocksDB write.

use crate::database::{Database, failed};
use crate::keys::{after_prefix, change, slot, version, volume};
use crate::value;
use rocksdb::{ErrorKind, WriteBatch};
use smalti_storage::store::{Batch, Change, StoreError};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A range of slot or version keys that was dropped, and whose space can be taken back: all that begin
/// with `from`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) from: Vec<u8>,
    pub(crate) to: Vec<u8>,
}

impl Dropped {
    pub(crate) fn prefix(prefix: &[u8]) -> Self {
        Self { from: prefix.to_vec(), to: after_prefix(prefix) }
    }
}

/// The write that a batch becomes.
pub(crate) struct Prepared {
    pub(crate) write: WriteBatch,
    /// Whether ranges are dropped that are large enough to be worth a compaction of their own.
    pub(crate) drops: bool,
}

/// Builds the write. The keys the batch puts must be claimed from before this until it is written,
/// or another put of the same key could come between.
pub(crate) fn prepare(database: &Database, batch: &Batch) -> Result<Prepared, StoreError> {
    let mut write = WriteBatch::with_capacity_bytes(estimate(batch));
    let mut drops = false;
    let mut put = BTreeSet::new();
    for change in &batch.changes {
        match change {
            Change::PutVersion { at, meta, record, fresh } => {
                let key = version::encode(*at, meta.ver);
                let again = !put.insert(key);
                if again || (!fresh && is_stored(database, &key)?) {
                    delete_version(database, &mut write, &key);
                }
                write.put_cf(database.meta(), key, value::encode(&key, meta));
                if meta.present {
                    write.put_cf(database.data(), key, record);
                }
            }
            Change::DeleteVersion { at, ver } => {
                delete_version(database, &mut write, &version::encode(*at, *ver));
            }
            Change::SetPrepared { at, ver } => {
                let key = slot::encode(*at);
                write.put_cf(database.prep(), key, value::encode(&key, ver));
            }
            Change::ClearPrepared { at } => write.delete_cf(database.prep(), slot::encode(*at)),
            Change::DropSlot { at } => {
                drop_range(database, &mut write, &Dropped::prefix(&slot::encode(*at)));
            }
            Change::SetVolume { volume, state } => {
                let key = volume::encode(*volume);
                write.put_cf(database.state(), key, value::encode(&key, state));
            }
            Change::SetIndex { volume, group, index } => {
                let key = change::of_index(*volume, *group);
                write.put_cf(database.state(), key, value::encode(&key, index));
            }
            Change::NoteChanged { volume, row } => {
                // The key says it all. It lies in a checked block, and a row too many is no harm.
                write.put_cf(database.state(), change::of_row(*volume, *row), []);
            }
            Change::DropIndex { volume, group } => {
                drop_indexes(database, &mut write, &change::of_index(*volume, *group));
            }
            Change::DropGroup { volume, group } => {
                drop_indexes(database, &mut write, &change::of_index(*volume, *group));
                let range = Dropped::prefix(&slot::of_group(*volume, *group));
                drop_range(database, &mut write, &range);
                database.note_drop(&mut write, &range);
                drops = true;
            }
            Change::DropVolume { volume } => {
                let range = Dropped::prefix(&slot::of_volume(*volume));
                drop_range(database, &mut write, &range);
                write.delete_cf(database.state(), volume::encode(*volume));
                drop_indexes(database, &mut write, &change::of_volume(*volume));
                database.note_drop(&mut write, &range);
                drops = true;
            }
        }
    }
    Ok(Prepared { write, drops })
}

fn delete_version(database: &Database, write: &mut WriteBatch, key: &version::Key) {
    write.single_delete_cf(database.meta(), key);
    write.single_delete_cf(database.data(), key);
    database.unmet.fetch_add(1, Ordering::Relaxed);
}

fn drop_range(database: &Database, write: &mut WriteBatch, range: &Dropped) {
    for family in [database.meta(), database.data(), database.prep()] {
        write.delete_range_cf(family, &range.from, &range.to);
    }
}

fn drop_indexes(database: &Database, write: &mut WriteBatch, prefix: &[u8]) {
    write.delete_range_cf(database.state(), prefix, &after_prefix(prefix));
}

/// Whether a version is there, readable or not.
fn is_stored(database: &Database, key: &version::Key) -> Result<bool, StoreError> {
    match database.db.get_pinned_cf(database.meta(), key) {
        Ok(found) => Ok(found.is_some()),
        Err(error) if error.kind() == ErrorKind::Corruption => Ok(true),
        Err(error) => Err(failed(&error)),
    }
}

fn estimate(batch: &Batch) -> usize {
    let sizes = batch.changes.iter().map(|change| match change {
        Change::PutVersion { meta, record, .. } => 320 + record.len() + meta.vec.len() * 32,
        _ => 96,
    });
    sizes.sum()
}

/// The version keys that commits on their way are putting and that may be there already. Two puts
/// of one key wait for each other, so that the later sees the earlier and deletes it first.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    keys: Mutex<BTreeSet<version::Key>>,
    released: Condvar,
}

/// Keys claimed until dropped.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    claims: &'a Claims,
    keys: Vec<version::Key>,
}

impl Claims {
    /// Waits until no other commit puts a key of `batch`, and claims them all at once.
    pub(crate) fn claim(&self, batch: &Batch) -> Claim<'_> {
        let keys: Vec<_> = batch.changes.iter().filter_map(put_key).collect();
        let mut taken = self.lock();
        while keys.iter().any(|key| taken.contains(key)) {
            taken = self.released.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        taken.extend(&keys);
        Claim { claims: self, keys }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<version::Key>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut taken = self.claims.lock();
        for key in &self.keys {
            taken.remove(key);
        }
        drop(taken);
        self.claims.released.notify_all();
    }
}

fn put_key(change: &Change) -> Option<version::Key> {
    match change {
        Change::PutVersion { at, meta, fresh: false, .. } => Some(version::encode(*at, meta.ver)),
        _ => None,
    }
}
