//! Taking back the space of dropped groups and volumes, and of overwritten records.
//!
//! A drop is one mark per family; the bytes behind it go when a compaction meets them, which on a
//! quiet store may be never. So a thread compacts what was dropped. It is no more than a help:
//! what it misses, because it is busy or the store ends, goes with the compactions that come.
//!
//! Overwritten records stay in their blob files, among living ones. When half of all is dead the
//! same thread has the older half of the files rewritten: more than half of that is dead, for what
//! is old was overwritten most. So a record is moved less than once for each that is written, and
//! a store takes at most about twice its live records. Rewritten files go only when all of them are
//! done, so a collection takes space before it gives any: on a disk that fills up it begins sooner
//! and takes fewer files at once, for one that ran out of space would end the store.

use crate::apply::Dropped;
use crate::database::Database;
use crate::space;
use rocksdb::{BottommostLevelCompaction, CompactOptions};
use smalti_storage::store::StoreError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use tracing::{debug, info, warn};

const WAITING_MAX: usize = 64;
/// How often the garbage is looked at. Counting it costs nothing.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A collection that has not brought the garbage below half by then waits for the next look.
const ROUNDS_MAX: usize = 8;
pub(crate) const BLOBS_SIZE: &str = "rocksdb.live-blob-file-size";
const GARBAGE: &str = "rocksdb.live-blob-file-garbage-size";
/// Which part of the blob files, oldest first, a compaction rewrites.
const CUTOFF: &str = "blob_garbage_collection_age_cutoff";
const CUTOFFS: [f64; 4] = [0.5, 0.25, 0.1, 0.05];

#[derive(Debug)]
pub(crate) struct Reclaim {
    inbox: Mutex<Option<SyncSender<Dropped>>>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Reclaim {
    pub(crate) fn start(
        database: Arc<Database>,
        directory: &Path,
        garbage_bytes_min: u64,
    ) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let collector = Collector { database, directory: directory.to_owned(), garbage_bytes_min };
        let thread = Builder::new()
            .name("smalti-reclaim".to_owned())
            .spawn(move || collector.run(&receiver, &stopped))?;
        Ok(Self { inbox: Mutex::new(Some(sender)), stop, thread: Mutex::new(Some(thread)) })
    }

    pub(crate) fn dropped(&self, range: Dropped) {
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(inbox) = &*inbox
            && inbox.try_send(range).is_err()
        {
            debug!("too many drops at once; ordinary compactions take the space back");
        }
    }

    /// Ends the thread once the compaction it is at ends; cancel that first.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            debug!("the reclaiming thread had panicked");
        }
    }
}

struct Collector {
    database: Arc<Database>,
    directory: PathBuf,
    garbage_bytes_min: u64,
}

impl Collector {
    fn run(&self, inbox: &Receiver<Dropped>, stop: &AtomicBool) {
        let stopped = || stop.load(Ordering::Acquire);
        let mut options = CompactOptions::default();
        // Ordinary compactions go on meanwhile.
        options.set_exclusive_manual_compaction(false);
        let database = &self.database;
        while !stopped() {
            match inbox.recv_timeout(LOOK_EVERY) {
                Ok(Dropped { from, to }) => {
                    for family in [database.meta(), database.data()] {
                        if stopped() {
                            return;
                        }
                        database.db.compact_range_cf_opt(family, Some(&from), Some(&to), &options);
                    }
                    // What was dropped is dead all at once, and wanted back.
                    self.collect(0, &stopped);
                }
                Err(RecvTimeoutError::Timeout) => self.collect(self.garbage_bytes_min, &stopped),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Has the older blob files rewritten without their dead records, as long as that pays.
    fn collect(&self, garbage_min: u64, stopped: &impl Fn() -> bool) {
        for _ in 0..ROUNDS_MAX {
            let (sizes, free) = match (self.sizes(), space::below(&self.directory, 0, 0)) {
                (Ok(sizes), Ok(space)) => (sizes, space.free),
                (Err(error), _) => {
                    warn!(%error, "can not tell how much of the store is garbage");
                    return;
                }
                (_, Err(error)) => {
                    warn!(%error, "can not tell how much space there is");
                    return;
                }
            };
            if stopped() || sizes.garbage < garbage_min {
                return;
            }
            let Some(cutoff) = cutoff(sizes, free) else { return };
            if let Err(error) = self.rewrite(cutoff) {
                warn!(%error, "can not take dead records out");
                return;
            }
            let Sizes { all, garbage } = sizes;
            let left = self.sizes().map_or(garbage, |sizes| sizes.garbage);
            info!(all, garbage, left, cutoff, "took dead records out");
            if left >= garbage {
                // Nothing came of it: not again before the next look.
                return;
            }
        }
    }

    fn rewrite(&self, cutoff: f64) -> Result<(), StoreError> {
        let database = &self.database;
        database.set_option(database.data(), CUTOFF, &cutoff.to_string())?;
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        database.db.compact_range_cf_opt(database.data(), None::<&[u8]>, None::<&[u8]>, &options);
        database.set_option(database.data(), CUTOFF, "0.0")
    }

    fn sizes(&self) -> Result<Sizes, rocksdb::Error> {
        let data = self.database.data();
        let figure = |name| self.database.db.property_int_value_cf(data, name);
        Ok(Sizes { all: figure(BLOBS_SIZE)?.unwrap_or(0), garbage: figure(GARBAGE)?.unwrap_or(0) })
    }
}

/// Bytes of all blob files in use, and of the dead records in them.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    all: u64,
    garbage: u64,
}

/// The part of the blob files, oldest first, to rewrite now; `None`: it does not pay, or there is
/// no room to do it in. What is rewritten takes at most as much again as it had, and half of what
/// is free is left to those who write meanwhile.
fn cutoff(sizes: Sizes, free: u64) -> Option<f64> {
    let Sizes { all, garbage } = sizes;
    // With room for all of it the cheapest time is at half; with less there is no time to wait.
    let worth = if free > all { all / 2 } else { all / 4 };
    if garbage == 0 || garbage < worth {
        return None;
    }
    let fits = |part: &f64| all as f64 * part <= free as f64 / 2.0;
    CUTOFFS.into_iter().find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collections_leave_room_and_begin_sooner_where_it_is_scarce() {
        let cut = |all, garbage, free| cutoff(Sizes { all, garbage }, free);
        assert_eq!(cut(1000, 499, 5000), None);
        assert_eq!(cut(1000, 500, 5000), Some(0.5));
        assert_eq!(cut(1000, 249, 900), None);
        assert_eq!(cut(1000, 250, 1000), Some(0.5), "half of what is free is enough for half");
        assert_eq!(cut(1000, 250, 999), Some(0.25));
        assert_eq!(cut(1000, 600, 200), Some(0.1));
        assert_eq!(cut(1000, 600, 100), Some(0.05));
        assert_eq!(cut(1000, 600, 99), None, "it would fill the disk");
        assert_eq!(cut(0, 0, 99), None);
    }
}
