//! Closing a database whose disk has failed.

use crate::database::Database;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::Builder;
use std::time::Duration;
use tracing::warn;

/// A database whose disk has failed has this long to be closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A store's database until the store is dropped. RocksDB 11.8 may wait for ever, when it is closed,
/// for work that ended with the failure of its disk; the process is to end then, and must not wait
/// for that.
#[derive(Debug)]
pub(crate) struct Held {
    /// There until it is dropped.
    database: Option<Arc<Database>>,
    /// The disk has failed: it is not waited for without end.
    pub(crate) failed: bool,
}

impl Held {
    pub(crate) fn new(database: Arc<Database>) -> Self {
        Self { database: Some(database), failed: false }
    }
}

impl Deref for Held {
    type Target = Database;

    fn deref(&self) -> &Database {
        self.database.as_ref().expect("there until it is dropped")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let database = self.database.take();
        if !self.failed {
            return;
        }
        let (closed, closing) = sync_channel(1);
        let close = move || {
            drop(database);
            // Nobody waits any more if it took too long.
            let _ = closed.send(());
        };
        match Builder::new().name("smalti-close".to_owned()).spawn(close) {
            Ok(_) if closing.recv_timeout(CLOSE_TIMEOUT).is_ok() => {}
            Ok(_) => warn!("RocksDB does not close after its disk has failed; it is left behind"),
            Err(error) => warn!(%error, "there was no thread to close RocksDB"),
        }
    }
}
