//! The shard-store actor: one disk, one writer.
//!
//! Frames of all sessions meet in the writer's bounded queue; it takes what waits, lets the pure
//! core judge it, commits all changes with one sync, and only then answers. Frames that only read
//! are served beside it from durable state. The actor itself starts the writer, passes the map and
//! the state of the disk on, and ends with it.

mod actor;
mod session;
mod space;
mod writer;

pub use actor::{ShardStoreArgs, ShardStoreMsg, start};
pub(crate) use session::hello;
pub use session::{LocalSession, LocalStores, StoreSessions};

use smalti_map::view::MapView;
use smalti_rowcommit::msg::{Frame, Reply};
use smalti_rowcommit::store::read::ReadSide;
use smalti_storage::ids::{NodeId, StoreId};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc, watch};

/// Frames that may wait for the writer. With 2 MiB frames this bounds what sessions can make the
/// store hold; a full queue holds the sessions' readers back, and so their senders.
const QUEUE_FRAMES: usize = 64;

/// What the writer is told.
enum Job {
    Frame { from: NodeId, frame: Frame, reply: mpsc::Sender<Reply> },
    Map(MapView),
    LookAtSpace,
    Stop,
}

/// Talks to one shard store on this node.
#[derive(Clone, Debug)]
pub struct StoreHandle {
    id: StoreId,
    jobs: mpsc::Sender<Job>,
    reader: ReadSide,
    /// Room for large reads, over all sessions.
    large_reads: Arc<Semaphore>,
    /// The version of the map the writer has adopted.
    adopted: watch::Receiver<u64>,
}

impl StoreHandle {
    /// The store.
    pub fn id(&self) -> StoreId {
        self.id
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Frame { .. } => "frame",
            Self::Map(_) => "map",
            Self::LookAtSpace => "space",
            Self::Stop => "stop",
        })
    }
}
