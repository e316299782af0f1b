//! The Raft log and vote.

use crate::db::{Batch, Db, DbError, blocking, key};
use crate::types::{Entry, LogId, MapRaft, StorageError, StorageIOError};
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, OptionalSend, RaftLogReader, Vote};
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

/// Bytes of entries in one append request, where one entry alone is not larger.
const APPEND_BYTES: usize = 1 << 20;

/// The log half of the store.
#[derive(Clone)]
pub(crate) struct LogStore {
    db: Arc<Db>,
}

impl LogStore {
    pub(crate) fn new(db: Arc<Db>) -> Self {
        Self { db }
    }

    async fn read(&self, start: u64, end: u64, bytes: usize) -> Result<Vec<Entry>, StorageError> {
        let read = move |db: &Db| {
            let mut total = 0;
            let found = db.log_range::<Entry>(start, end, |size| {
                total += size;
                total >= bytes
            })?;
            // The key says where an entry is, the entry says which it is.
            let check = |(index, entry): (u64, Entry)| {
                let named = entry.log_id.index;
                if named == index {
                    return Ok(entry);
                }
                Err(DbError::Inconsistent(format!("log entry {named} stands at {index}")))
            };
            found.into_iter().map(check).collect()
        };
        blocking(&self.db, read)
            .await
            .map_err(|error| StorageIOError::read_logs(any(&error)).into())
    }
}

impl RaftLogReader<MapRaft> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.read(start, end, APPEND_BYTES).await
    }
}

impl RaftLogStorage<MapRaft> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<MapRaft>, StorageError> {
        let read = |db: &Db| {
            let purged: Option<LogId> = db.meta(key::PURGED)?;
            let last: Option<Entry> = db.log_last()?;
            Ok((purged, last.map(|entry| entry.log_id)))
        };
        let (last_purged_log_id, last) = blocking(&self.db, read)
            .await
            .map_err(|error| StorageIOError::read_logs(any(&error)))?;
        Ok(LogState { last_purged_log_id, last_log_id: last.or(last_purged_log_id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError> {
        let vote = *vote;
        let write = move |db: &Db| {
            let mut batch = Batch::new(db);
            batch.put_meta(key::VOTE, &vote)?;
            batch.commit_synced()
        };
        blocking(&self.db, write).await.map_err(|e| StorageIOError::write_vote(any(&e)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError> {
        let vote = blocking(&self.db, |db| db.meta(key::VOTE)).await;
        vote.map_err(|error| StorageIOError::read_vote(any(&error)).into())
    }

    /// Not synced: it only tells the next start how far it may apply the log before it has heard
    /// from a leader, and an older answer is as true.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let write = move |db: &Db| {
            let mut batch = Batch::new(db);
            batch.put_meta(key::COMMITTED, &committed)?;
            batch.commit_lazily()
        };
        blocking(&self.db, write).await.map_err(|e| StorageIOError::write(any(&e)).into())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let committed = blocking(&self.db, |db| db.meta::<Option<LogId>>(key::COMMITTED)).await;
        committed.map(Option::flatten).map_err(|error| StorageIOError::read(any(&error)).into())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<MapRaft>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let write = move |db: &Db| {
            let mut batch = Batch::new(db);
            for entry in &entries {
                batch.put_log(entry.log_id.index, entry)?;
            }
            batch.commit_synced()
        };
        match blocking(&self.db, write).await {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                let failure = StorageIOError::write_logs(any(&error));
                callback.log_io_completed(Err(std::io::Error::other(error)));
                Err(failure.into())
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let write = move |db: &Db| {
            let mut batch = Batch::new(db);
            batch.delete_log(log_id.index, None);
            batch.commit_synced()
        };
        blocking(&self.db, write).await.map_err(|e| StorageIOError::write_logs(any(&e)).into())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let write = move |db: &Db| {
            let mut batch = Batch::new(db);
            let purged: Option<LogId> = db.meta(key::PURGED)?;
            if purged < Some(log_id) {
                batch.put_meta(key::PURGED, &log_id)?;
            }
            batch.delete_log(0, Some(log_id.index.saturating_add(1)));
            batch.commit_synced()
        };
        blocking(&self.db, write).await.map_err(|e| StorageIOError::write_logs(any(&e)).into())
    }
}

pub(crate) fn any(error: &DbError) -> AnyError {
    AnyError::new(error)
}
