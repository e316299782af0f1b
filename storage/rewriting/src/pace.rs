//! How fast compactions may write.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Whoever sets a rate says so again within this, or all may write as they like: a compaction must not hang
/// because nobody watches any more, or because who watches waits for it.
const LASTS: Duration = Duration::from_secs(1);
/// The same where nothing may be written.
const NOTHING_LASTS: Duration = Duration::from_millis(400);

/// How fast compactions may write; at first, and when nobody says anything any more, as fast as they can.
#[derive(Debug, Default)]
pub struct Pace {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    limit: Option<Limit>,
    /// When what was let pass is done with, at the rate of its time.
    due: Option<Instant>,
    wanted: u64,
}

#[derive(Clone, Copy, Debug)]
struct Limit {
    bytes_per_sec: u64,
    until: Instant,
}

impl Pace {
    /// So many bytes a second for the next second, and nothing for less; `None`: as fast as they can.
    pub fn set(&self, bytes_per_sec: Option<u64>) {
        let lasts = if bytes_per_sec == Some(0) { NOTHING_LASTS } else { LASTS };
        let until = Instant::now() + lasts;
        let mut inner = self.lock();
        if inner.limit.map(|limit| limit.bytes_per_sec) != bytes_per_sec {
            inner.due = None;
            self.changed.notify_all();
        }
        inner.limit = bytes_per_sec.map(|bytes_per_sec| Limit { bytes_per_sec, until });
    }

    /// Bytes that compactions have written or wait to write.
    #[must_use]
    pub fn wanted(&self) -> u64 {
        self.lock().wanted
    }

    /// Returns when so many bytes may be written.
    pub(crate) fn pass(&self, bytes: u64) {
        let mut inner = self.lock();
        inner.wanted += bytes;
        loop {
            let now = Instant::now();
            let Some(limit) = inner.limit.filter(|limit| now < limit.until) else {
                inner.due = None;
                return;
            };
            // What was not used in time is not made up for.
            let due = inner.due.map_or(now, |due| due.max(now));
            let wait = match limit.bytes_per_sec {
                0 => limit.until - now,
                rate if due <= now => {
                    inner.due = Some(now + Duration::from_secs_f64(bytes as f64 / rate as f64));
                    return;
                }
                _ => (due - now).min(limit.until - now),
            };
            let waited = self.changed.wait_timeout(inner, wait);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
