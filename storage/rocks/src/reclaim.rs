//! Taking back the space of dropped groups and volumes.
//!
//! A drop is one mark per family; the bytes behind it go when a compaction meets them, which on a
//! quiet store may be never. So a thread compacts what was dropped. It is no more than a help:
//! what it misses, because it is busy or the store ends, goes with the compactions that come.

use crate::apply::Dropped;
use crate::database::Database;
use rocksdb::CompactOptions;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use tracing::debug;

const WAITING_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Reclaim {
    inbox: Mutex<Option<SyncSender<Dropped>>>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Reclaim {
    pub(crate) fn start(database: Arc<Database>) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = Builder::new()
            .name("smalti-reclaim".to_owned())
            .spawn(move || run(&database, &receiver, &stopped))?;
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

fn run(database: &Database, inbox: &Receiver<Dropped>, stop: &AtomicBool) {
    let mut options = CompactOptions::default();
    // Ordinary compactions go on meanwhile.
    options.set_exclusive_manual_compaction(false);
    while let Ok(Dropped { from, to }) = inbox.recv() {
        for family in [database.meta(), database.data()] {
            if stop.load(Ordering::Acquire) {
                return;
            }
            database.db.compact_range_cf_opt(family, Some(&from), Some(&to), &options);
        }
    }
}
