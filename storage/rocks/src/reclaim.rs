//! Taking back the space of dropped groups and volumes, and of overwritten records.
//!
//! A drop is one mark per family; the bytes behind it go when a compaction meets them, which on a
//! quiet store may be never. So a thread compacts what was dropped. It is no more than a help:
//! what it misses, because it is busy or the store ends, goes with the compactions that come.
//!
//! Overwritten records stay in their blob files, among living ones. When half of all is dead the
//! same thread has the older half of the files rewritten: more than half of that is dead, for what
//! is old was overwritten most. So a record is moved less than once for each that is written, and
//! a store takes at most about twice its live records.

use crate::apply::Dropped;
use crate::database::Database;
use rocksdb::{BottommostLevelCompaction, CompactOptions};
use std::io;
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
const ALL: &str = "rocksdb.live-blob-file-size";
const GARBAGE: &str = "rocksdb.live-blob-file-garbage-size";
/// The part of the blob files, oldest first, that a collection rewrites.
const CUTOFF: &str = "blob_garbage_collection_age_cutoff";
const OLDER_HALF: [(&str, &str); 1] = [(CUTOFF, "0.5")];
const NOTHING: [(&str, &str); 1] = [(CUTOFF, "0.0")];

#[derive(Debug)]
pub(crate) struct Reclaim {
    inbox: Mutex<Option<SyncSender<Dropped>>>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Reclaim {
    pub(crate) fn start(database: Arc<Database>, garbage_bytes_min: u64) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = Builder::new()
            .name("smalti-reclaim".to_owned())
            .spawn(move || run(&database, &receiver, &stopped, garbage_bytes_min))?;
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

fn run(database: &Database, inbox: &Receiver<Dropped>, stop: &AtomicBool, garbage_min: u64) {
    let stopped = || stop.load(Ordering::Acquire);
    let mut options = CompactOptions::default();
    // Ordinary compactions go on meanwhile.
    options.set_exclusive_manual_compaction(false);
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
                collect(database, 0, &stopped);
            }
            Err(RecvTimeoutError::Timeout) => collect(database, garbage_min, &stopped),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Has the older blob files rewritten without their dead records, as long as that pays.
fn collect(database: &Database, garbage_min: u64, stopped: &impl Fn() -> bool) {
    for _ in 0..ROUNDS_MAX {
        let (all, garbage) = match sizes(database) {
            Ok(sizes) => sizes,
            Err(error) => {
                warn!(%error, "can not tell how much of the store is garbage");
                return;
            }
        };
        if stopped() || garbage == 0 || garbage < garbage_min || garbage < all / 2 {
            return;
        }
        if let Err(error) = rewrite_older_half(database) {
            warn!(%error, "can not take dead records out");
            return;
        }
        info!(all, garbage, "took dead records out");
    }
}

fn rewrite_older_half(database: &Database) -> Result<(), rocksdb::Error> {
    database.db.set_options_cf(database.data(), &OLDER_HALF)?;
    let mut options = CompactOptions::default();
    options.set_exclusive_manual_compaction(false);
    options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
    database.db.compact_range_cf_opt(database.data(), None::<&[u8]>, None::<&[u8]>, &options);
    database.db.set_options_cf(database.data(), &NOTHING)
}

/// Bytes of all blob files in use, and of the dead records in them.
fn sizes(database: &Database) -> Result<(u64, u64), rocksdb::Error> {
    let figure = |name| database.db.property_int_value_cf(database.data(), name);
    Ok((figure(ALL)?.unwrap_or(0), figure(GARBAGE)?.unwrap_or(0)))
}
