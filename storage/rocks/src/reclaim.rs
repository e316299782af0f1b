//! Taking back the space of dropped groups and volumes, and of overwritten records.
//!
//! A drop is one mark per family; the bytes behind it go when a compaction meets them, which on a
//! quiet store may be never, and a full one is quiet. So a thread compacts what was dropped, which is
//! noted until that is done.
//!
//! The same holds for deletions, one for each record that was overwritten or trimmed: a store that
//! nobody writes to any more, because its disk is full, would never compact them. So when there are
//! enough of them the tables are compacted, which are small.
//!
//! Overwritten records stay in their blob files, among living ones. When half of all is dead the
//! same thread has the older half of the files rewritten: more than half of that is dead, for what
//! is old was overwritten most. So a record is moved less than once for each that is written, and
//! a store takes at most about twice its live records. Rewritten files go only when all of them are
//! done, so a collection takes space before it gives any: on a disk that fills up it begins sooner
//! and takes fewer files at once, for one that ran out of space would end the store.
//!
//! All of it begins with writing the buffers out. Where there may be no room for that nothing is done:
//! as long as a store waits its disk may get room again, and a store that has ended could not even start.

use crate::apply::Dropped;
use crate::database::Database;
use crate::drops::Noted;
use crate::garbage::{self, Sizes};
use crate::options::RocksOptions;
use crate::space;
use rocksdb::{BottommostLevelCompaction, ColumnFamily, CompactOptions};
use smalti_storage::store::{Space, StoreError};
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use tracing::{debug, info, warn};

/// How many drops are read at once.
const PAGE: usize = 64;
/// Nothing is begun where that could leave less than this, in bytes: others write meanwhile.
const SPARE: u64 = 16 << 20;
/// How often the garbage is looked at. Counting it costs nothing.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A collection that has not brought the garbage below half by then waits for the next look.
const ROUNDS_MAX: usize = 8;
pub(crate) const BLOBS_SIZE: &str = "rocksdb.live-blob-file-size";
/// Which part of the blob files, oldest first, a compaction rewrites.
const CUTOFF: &str = "blob_garbage_collection_age_cutoff";

#[derive(Debug)]
pub(crate) struct Reclaim {
    /// Something was dropped. One that waits says it of all.
    inbox: Mutex<Option<SyncSender<()>>>,
    stop: Arc<Stop>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Reclaim {
    pub(crate) fn start(
        database: Arc<Database>,
        directory: &Path,
        options: &RocksOptions,
    ) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(1);
        let stop = Arc::<Stop>::default();
        let stopped = Arc::clone(&stop);
        let (directory, buffers) = (directory.to_owned(), options.buffers());
        let collector = Collector {
            database,
            garbage_bytes_min: options.garbage_bytes_min,
            space: Box::new(move || space::below(&directory, 0, buffers)),
        };
        let thread = Builder::new()
            .name("smalti-reclaim".to_owned())
            .spawn(move || collector.run(&receiver, &stopped))?;
        Ok(Self { inbox: Mutex::new(Some(sender)), stop, thread: Mutex::new(Some(thread)) })
    }

    /// Something was dropped, and that is noted.
    pub(crate) fn dropped(&self) {
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(inbox) = &*inbox {
            // Full: the thread has yet to look for what was noted until now.
            let _ = inbox.try_send(());
        }
    }

    /// From now on nothing is written to the log any more, and nothing begun. Call it before what is at
    /// work is cancelled, which would be taken for done.
    pub(crate) fn write_nothing(&self) {
        self.stop.set();
    }

    /// Ends the thread once the compaction it is at ends; cancel that first.
    pub(crate) fn stop(&self) {
        self.write_nothing();
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            debug!("the reclaiming thread had panicked");
        }
    }
}

/// Whether the store ends.
#[derive(Debug, Default)]
struct Stop(Mutex<bool>);

impl Stop {
    fn set(&self) {
        *self.lock() = true;
    }

    fn is_set(&self) -> bool {
        *self.lock()
    }

    /// Does something that `set` waits for, unless it was called; `None` then.
    fn unless_set<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let stopped = self.lock();
        (!*stopped).then(work)
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Collector {
    database: Arc<Database>,
    garbage_bytes_min: u64,
    space: Box<dyn Fn() -> Result<Space, StoreError> + Send>,
}

impl Collector {
    fn run(&self, inbox: &Receiver<()>, stop: &Stop) {
        match self.database.deletions() {
            Ok(found) => {
                self.database.unmet.fetch_add(found, Ordering::Relaxed);
            }
            Err(error) => warn!(%error, "can not tell what was deleted before the start"),
        }
        // What the last run did not come to.
        self.take_back(stop);
        while !stop.is_set() {
            match inbox.recv_timeout(LOOK_EVERY) {
                Ok(()) => self.take_back(stop),
                Err(RecvTimeoutError::Timeout) => {
                    self.take_back(stop);
                    self.settle(stop);
                    self.collect(self.garbage_bytes_min, stop);
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Takes back the space of all that was dropped. What is left is tried again at the next look.
    fn take_back(&self, stop: &Stop) {
        let mut some = false;
        loop {
            let drops = self.database.drops(PAGE);
            let drops = drops.inspect_err(|error| warn!(%error, "can not tell what was dropped"));
            let Ok(drops) = drops else { return };
            if drops.is_empty() {
                break;
            }
            for drop in &drops {
                if self.room().is_none() {
                    return;
                }
                if let Err(error) = self.take_back_one(drop, stop) {
                    warn!(%error, "can not take back what was dropped");
                    return;
                }
                if stop.is_set() {
                    return;
                }
            }
            some = true;
        }
        if some && self.room().is_some() && self.flush() {
            // What was dropped is dead all at once, and wanted back.
            self.collect(0, stop);
        }
    }

    fn take_back_one(&self, drop: &Noted, stop: &Stop) -> Result<(), StoreError> {
        let Dropped { from, to } = &drop.range;
        for family in [self.database.meta(), self.database.data()] {
            if stop.is_set() {
                return Ok(());
            }
            self.compact(family, Some((from, to)), false);
        }
        // A compaction does not say that it failed.
        self.database.check_background()?;
        stop.unless_set(|| self.database.forget_drop(drop)).unwrap_or(Ok(()))
    }

    /// Has deletions meet their records where that is worth it. It moves no record: files all of
    /// whose records are dead go, and of the others it is known how much of them is.
    fn settle(&self, stop: &Stop) {
        let counted = self.database.unmet.load(Ordering::Relaxed);
        let Some((sizes, space)) = self.look() else { return };
        let pays = |unmet| sizes.settle(unmet, self.garbage_bytes_min, space);
        if stop.is_set() || !pays(counted) {
            return;
        }
        let unmet = garbage::take_unmet(&self.database);
        if !pays(unmet) {
            self.database.unmet.fetch_add(unmet, Ordering::Relaxed);
            return;
        }
        // Logs hold what was deleted once more.
        if !self.flush() {
            return;
        }
        self.compact(self.database.data(), None, false);
        let left = Sizes::of(&self.database).unwrap_or(sizes);
        info!(
            unmet,
            all = sizes.all,
            garbage = sizes.garbage,
            all_left = left.all,
            garbage_left = left.garbage,
            "deletions met their records"
        );
    }

    /// Has the older blob files rewritten without their dead records, as long as that pays. What was
    /// dropped goes first: it gives more, and takes less.
    fn collect(&self, garbage_min: u64, stop: &Stop) {
        for _ in 0..ROUNDS_MAX {
            let Some((sizes, space)) = self.look() else { return };
            if stop.is_set() || self.database.drops(1).is_ok_and(|drops| !drops.is_empty()) {
                return;
            }
            let Some(cutoff) = sizes.cutoff(garbage_min, space) else { return };
            let Sizes { all, garbage, .. } = sizes;
            info!(all, garbage, cutoff, "takes dead records out");
            if let Err(error) = self.rewrite(cutoff) {
                warn!(%error, "can not take dead records out");
                return;
            }
            let left = Sizes::of(&self.database).map_or(garbage, |sizes| sizes.garbage);
            info!(all, garbage, left, "took dead records out");
            if left >= garbage {
                // Nothing came of it: not again before the next look.
                return;
            }
        }
    }

    /// What there is to collect, if there is room to begin.
    fn look(&self) -> Option<(Sizes, Space)> {
        let sizes = Sizes::of(&self.database);
        let sizes = sizes
            .inspect_err(|error| warn!(%error, "can not tell how much of the store is garbage"));
        Some((sizes.ok()?, self.room()?))
    }

    /// How much space there is, if it is enough to write the buffers out and to compact tables.
    fn room(&self) -> Option<Space> {
        let space = (self.space)();
        let space =
            space.inspect_err(|error| warn!(%error, "can not tell how much space there is"));
        let needed = self.database.unwritten();
        let needed =
            needed.inspect_err(|error| warn!(%error, "can not tell how much is in buffers"));
        let (space, needed) = (space.ok()?, needed.ok()? + SPARE);
        if space.free < needed {
            debug!(free = space.free, needed, "too little room to reclaim any");
            return None;
        }
        Some(space)
    }

    fn flush(&self) -> bool {
        // The next commit finds it as well, and ends the store.
        self.database
            .flush()
            .inspect_err(|error| warn!(%error, "can not write the buffers out"))
            .is_ok()
    }

    fn rewrite(&self, cutoff: f64) -> Result<(), StoreError> {
        let database = &self.database;
        database.set_option(database.data(), CUTOFF, &cutoff.to_string())?;
        self.compact(database.data(), None, true);
        database.set_option(database.data(), CUTOFF, "0.0")
    }

    fn compact(&self, family: &ColumnFamily, range: Option<(&[u8], &[u8])>, all_levels: bool) {
        let mut options = CompactOptions::default();
        // Ordinary compactions go on meanwhile.
        options.set_exclusive_manual_compaction(false);
        if all_levels {
            options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        }
        let (from, to) = range.unzip();
        self.database.db.compact_range_cf_opt(family, from, to, &options);
    }
}

#[cfg(test)]
mod tests;
