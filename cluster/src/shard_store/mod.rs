//! The shard-store actor: one disk, one writer.
//!
//! Frames of all sessions meet in the writer's bounded queue; it takes what waits, lets the pure
//! core judge it, commits all changes with one sync, and only then answers. Frames that only read
//! are served beside it from durable state. The actor itself starts the writer, passes the map and
//! the state of the disk on, and ends with it.

mod actor;
mod pace;
mod replies;
mod rewriting;
mod session;
mod space;
mod writer;

pub use actor::{ShardStoreArgs, ShardStoreMsg, start};
pub use pace::{SlowDisk, slow_disks};
pub(crate) use replies::ReplyReceiver;
pub(crate) use session::LocalSender;
pub(crate) use session::hello;
pub use session::{LocalStores, StoreSessions};
pub use space::{Fullness, StoreSpace};

use replies::ReplySender;
use smalti_map::view::MapView;
use smalti_rowcommit::governor::Burden;
use smalti_rowcommit::msg::Frame;
use smalti_rowcommit::store::read::ReadSide;
use smalti_storage::ids::{NodeId, StoreId};
use smalti_storage::store::{Admission, StoreError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Frames that may wait for the writer. A full queue holds the sessions' readers back, and so their
/// senders.
const QUEUE_FRAMES: usize = 64;

/// And their records in bytes; a larger frame goes alone.
const QUEUE_BYTES: usize = 32 << 20;

/// What the writer is told.
enum Job {
    /// The cluster admits the store; no frame comes before that is done.
    Admitted(Admission),
    Frame {
        from: NodeId,
        frame: Frame,
        reply: ReplySender,
        room: OwnedSemaphorePermit,
    },
    Map(MapView),
    LookAtSpace,
    Around(Burden),
    Stop,
}

/// Talks to one shard store on this node.
#[derive(Clone, Debug)]
pub struct StoreHandle {
    id: StoreId,
    /// Whether the store may serve.
    admitted: watch::Receiver<bool>,
    /// What was last seen of its disk.
    space: watch::Receiver<StoreSpace>,
    /// What a batch takes on it, once that is known.
    pace: watch::Receiver<Option<Duration>>,
    /// Whether it rewrites what it has.
    rewriting: watch::Receiver<bool>,
    jobs: mpsc::Sender<Job>,
    /// Room for records in that queue, over all sessions.
    job_bytes: Arc<Semaphore>,
    reader: ReadSide,
    /// Room for large reads, over all sessions.
    large_reads: Arc<Semaphore>,
    /// The same for pages of rows.
    pages: Arc<Semaphore>,
    /// Notified when the writer has adopted a map.
    adopted: Arc<Notify>,
    /// Told when the disk fails.
    fatal: mpsc::Sender<Fatal>,
    /// Cancelled then: nobody is served any more.
    failed: CancellationToken,
}

/// Why this process can not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fatal {
    /// Something failed that can not be tried again, such as a sync.
    Failed(String),
    /// The disk works, and some of what is on it is not what was written there.
    Damaged(String),
}

impl Fatal {
    fn of(what: &str, error: &StoreError) -> Self {
        let why = format!("{what}: {error}");
        match error {
            StoreError::Damaged(_) => Self::Damaged(why),
            _ => Self::Failed(why),
        }
    }
}

impl StoreHandle {
    /// The store.
    pub fn id(&self) -> StoreId {
        self.id
    }

    /// Whether the store may serve.
    pub(crate) fn may_serve(&self) -> bool {
        *self.admitted.borrow() && !self.failed.is_cancelled()
    }

    /// Something failed that ends the store.
    fn fail(&self, what: &str, error: &StoreError) {
        tracing::error!(%error, what);
        self.failed.cancel();
        // The queue holds one message and the first failure is the one that counts.
        let _ = self.fatal.try_send(Fatal::of(what, error));
    }

    /// What was last seen of its disk.
    pub(crate) fn space(&self) -> StoreSpace {
        *self.space.borrow()
    }

    /// What a batch takes on its disk, while there are enough to say so.
    pub(crate) fn pace(&self) -> Option<Duration> {
        *self.pace.borrow()
    }

    /// Whether it rewrites what it has, to free space.
    pub(crate) fn rewrites(&self) -> bool {
        *self.rewriting.borrow()
    }

    /// Waits until the store may serve. `false`: it has ended before.
    pub(crate) async fn is_admitted(&self) -> bool {
        self.admitted.clone().wait_for(|admitted| *admitted).await.is_ok()
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Admitted(_) => "admitted",
            Self::Frame { .. } => "frame",
            Self::Map(_) => "map",
            Self::LookAtSpace => "space",
            Self::Around(_) => "around",
            Self::Stop => "stop",
        })
    }
}
