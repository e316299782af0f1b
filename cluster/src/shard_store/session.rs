//! Sessions of coordinators with this node's stores, remote and local.

use super::{Job, StoreHandle};
use crate::transport::{ReceiveFrames, SendFrames};
use bytes::Bytes;
use smalti_net::{Session, SessionHandler};
use smalti_rowcommit::msg::{Frame, Reply};
use smalti_storage::ids::{NodeId, StoreId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// Replies that may wait to be sent. A session that lets this many pile up is as good as gone.
const REPLIES: usize = 1024;

/// How long a frame of an epoch the store has not heard of waits for the map.
const MAP_PATIENCE: Duration = Duration::from_secs(1);

/// Reading frames with more requests than this go to the blocking pool, so that a large read does
/// not hold up the runtime's workers.
const INLINE_READS: usize = 32;

/// The version of the session's hello.
const HELLO_VERSION: u8 = 1;

/// The hello that opens a session with a store.
pub(crate) fn hello(store: StoreId) -> Bytes {
    let mut bytes = vec![HELLO_VERSION];
    bytes.extend_from_slice(store.0.as_bytes());
    bytes.into()
}

fn read_hello(bytes: &[u8]) -> Option<StoreId> {
    let (version, rest) = bytes.split_first()?;
    let uuid = Uuid::from_slice(rest).ok()?;
    (*version == HELLO_VERSION).then_some(StoreId(uuid))
}

/// Accepts sessions of other nodes with the stores here.
#[derive(Debug)]
pub struct StoreSessions {
    /// The stores.
    pub stores: Vec<StoreHandle>,
    /// Where the sessions' tasks run.
    pub tasks: TaskTracker,
}

impl SessionHandler for StoreSessions {
    fn session(&self, from: NodeId, hello: Bytes, session: Session) {
        self.accept(from, &hello, session.tx, session.rx);
    }
}

impl StoreSessions {
    /// Takes a session over; drops it when its store is not here.
    pub(crate) fn accept(
        &self,
        from: NodeId,
        hello: &[u8],
        tx: impl SendFrames,
        rx: impl ReceiveFrames,
    ) {
        let wanted = read_hello(hello);
        let Some(store) = self.stores.iter().find(|store| Some(store.id) == wanted) else {
            tracing::debug!(%from, "session for a store that is not here");
            return;
        };
        self.tasks.spawn(remote(store.clone(), from, tx, rx));
    }
}

async fn remote(store: StoreHandle, from: NodeId, tx: impl SendFrames, mut rx: impl ReceiveFrames) {
    let (replies, mut waiting) = mpsc::channel::<Reply>(REPLIES);
    let send = async {
        while let Some(reply) = waiting.recv().await {
            if tx.send(reply.encode()).await.is_none() {
                break;
            }
        }
    };
    let receive = async {
        while let Some(bytes) = rx.recv().await {
            let frame = match Frame::decode(&bytes) {
                Ok(frame) => frame,
                Err(error) => {
                    tracing::warn!(%from, %error, "session sent something else than a frame");
                    break;
                }
            };
            if store.serve(from, frame, &replies).await.is_none() {
                break;
            }
        }
    };
    tokio::select! {
        () = send => {}
        () = receive => {}
    }
}

/// A session within the process: frames and replies are passed as they are.
#[derive(Debug)]
pub struct LocalSession {
    /// To the store.
    pub frames: mpsc::Sender<Frame>,
    /// From the store.
    pub replies: mpsc::Receiver<Reply>,
}

impl StoreHandle {
    /// Opens a session of this node itself.
    pub fn open_local(&self, me: NodeId, tasks: &TaskTracker) -> LocalSession {
        let (frames, mut queue) = mpsc::channel::<Frame>(REPLIES);
        let (reply, replies) = mpsc::channel(REPLIES);
        let store = self.clone();
        tasks.spawn(async move {
            while let Some(frame) = queue.recv().await {
                if store.serve(me, frame, &reply).await.is_none() {
                    break;
                }
            }
        });
        LocalSession { frames, replies }
    }

    /// Passes one frame on. `None`: the store or the session has ended.
    async fn serve(&self, from: NodeId, frame: Frame, reply: &mpsc::Sender<Reply>) -> Option<()> {
        if self.reader.epoch_of(frame.volume).is_none_or(|known| known < frame.epoch) {
            self.wait_for_map(&frame).await?;
        }
        if frame.requests.is_empty() || !frame.requests.iter().all(|r| r.ask.is_read()) {
            let reply = reply.clone();
            return self.jobs.send(Job::Frame { from, frame, reply }).await.ok();
        }
        if frame.requests.len() <= INLINE_READS {
            return pass_on(self.reader.handle(from, &frame), reply).await;
        }
        // A large read takes its time beside the session: updates and leases behind it must not
        // wait for it. Their number is bounded, and with it what one session keeps busy.
        let room = Arc::clone(&self.large_reads).acquire_owned().await.ok()?;
        let (reader, reply) = (self.reader.clone(), reply.clone());
        tokio::spawn(async move {
            if let Some(answer) = off_the_runtime(move || reader.handle(from, &frame)).await {
                pass_on(answer, &reply).await;
            }
            drop(room);
        });
        Some(())
    }

    /// The coordinator knows a newer configuration: gives the map here a little time to follow.
    /// When it does not, the frame is judged by what is known, and refused.
    async fn wait_for_map(&self, frame: &Frame) -> Option<()> {
        let mut adopted = self.adopted.clone();
        let caught_up = async {
            while self.reader.epoch_of(frame.volume).is_none_or(|known| known < frame.epoch) {
                adopted.changed().await.ok()?;
            }
            Some(())
        };
        match tokio::time::timeout(MAP_PATIENCE, caught_up).await {
            Ok(done) => done,
            Err(_elapsed) => Some(()),
        }
    }
}

/// Runs work that may take long on the blocking pool; in simulations here, for they have but one
/// thread. `None`: the process is ending.
async fn off_the_runtime<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Option<R> {
    #[cfg(test)]
    if crate::clock::simulated::is_on() {
        return Some(work());
    }
    tokio::task::spawn_blocking(work).await.ok()
}

async fn pass_on(
    answer: Result<Reply, smalti_storage::store::StoreError>,
    reply: &mpsc::Sender<Reply>,
) -> Option<()> {
    match answer {
        Ok(answer) => reply.send(answer).await.ok(),
        Err(error) => {
            tracing::error!(%error, "shard store failed to read");
            None
        }
    }
}

/// The stores of this node, for coders that run on it.
pub type LocalStores = Arc<Vec<StoreHandle>>;
