//! Sessions of coordinators with this node's stores, remote and local.

use super::replies::{self, ReplyReceiver, ReplySender, Room};
use super::{Job, QUEUE_BYTES, StoreHandle};
use crate::transport::{ReceiveFrames, SendFrames};
use bytes::Bytes;
use smalti_net::{Session, SessionHandler};
use smalti_rowcommit::msg::{Frame, Reply};
use smalti_storage::ids::{NodeId, StoreId};
use smalti_storage::store::StoreError;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// How long a frame of an epoch the store has not heard of waits for the map. Longer than a store may
/// be silent would have it suspected for nothing; refused, the frame is sent again.
const MAP_PATIENCE: Duration = Duration::from_millis(100);

/// Reading frames with more requests than this, and those that ask for pages of rows, go to the blocking
/// pool, so that a large read does not hold up the runtime's workers, nor leases behind it.
const INLINE_READS: usize = 32;

/// A frame with more reads than this gets several replies: one that has a record for each of
/// thousands would be larger than a session may send.
const REPLY_READS: usize = 1024;

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
        let found = self.stores.iter().find(|store| Some(store.id) == wanted);
        let Some(store) = found.filter(|store| !store.failed.is_cancelled()) else {
            tracing::debug!(%from, "session for a store that is not here");
            return;
        };
        self.tasks.spawn(remote(store.clone(), from, tx, rx));
    }
}

async fn remote(store: StoreHandle, from: NodeId, tx: impl SendFrames, mut rx: impl ReceiveFrames) {
    let (to, mut replies) = replies::channel();
    let send = async {
        while let Some((reply, room)) = replies.recv().await {
            if tx.send(reply.encode()).await.is_none() {
                break;
            }
            drop(room);
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
            drop(bytes);
            if store.serve(from, frame, &to).await.is_none() {
                break;
            }
        }
    };
    tokio::select! {
        biased;
        () = send => {}
        () = receive => {}
        // A frame may wait for a disk that hangs. Its session must not, when the peer has gone:
        // every attempt of the peer's would leave one more.
        () = tx.closed() => {}
        // A reply may wait for a peer that reads none, and answers have been dropped behind it.
        () = to.broken() => {}
    }
}

/// Sends frames of this node itself to one of its stores, as they are.
#[derive(Debug)]
pub(crate) struct LocalSender {
    store: StoreHandle,
    me: NodeId,
    to: ReplySender,
}

impl LocalSender {
    /// Passes a frame on, waiting while the store has no room. `None`: the store has ended.
    pub(crate) async fn send(&self, frame: Frame) -> Option<()> {
        self.store.serve(self.me, frame, &self.to).await
    }
}

impl StoreHandle {
    /// Opens a session of this node itself. `None`: the store has failed.
    pub(crate) fn open_local(&self, me: NodeId) -> Option<(LocalSender, ReplyReceiver)> {
        if self.failed.is_cancelled() {
            return None;
        }
        let (to, replies) = replies::channel();
        Some((LocalSender { store: self.clone(), me, to }, replies))
    }

    /// Passes one frame on. `None`: the store or the session has ended.
    async fn serve(&self, from: NodeId, frame: Frame, to: &ReplySender) -> Option<()> {
        if !self.is_admitted().await || self.failed.is_cancelled() {
            return None;
        }
        if self.reader.epoch_of(frame.volume).is_none_or(|known| known < frame.epoch) {
            self.wait_for_map(&frame).await;
        }
        if frame.requests.is_empty() || !frame.requests.iter().all(|r| r.ask.is_read()) {
            let bytes = u32::try_from(frame.payload_len().min(QUEUE_BYTES)).ok()?;
            let room = Arc::clone(&self.job_bytes).acquire_many_owned(bytes).await.ok()?;
            let reply = to.clone();
            return self.jobs.send(Job::Frame { from, frame, reply, room }).await.ok();
        }
        let Frame { requests, .. } = frame;
        let (pages, mut requests): (Vec<_>, Vec<_>) =
            requests.into_iter().partition(|request| request.ask.is_long());
        if !pages.is_empty() {
            self.read_pages(from, Frame { requests: pages, ..frame }, to).await?;
        }
        if (1..=INLINE_READS).contains(&requests.len()) {
            let frame = Frame { requests, ..frame };
            let room = to.reserve(&frame).await?;
            let reply = self.answered(self.reader.handle(from, &frame))?;
            return to.put(reply, room);
        }
        while !requests.is_empty() {
            let rest = requests.split_off(requests.len().min(REPLY_READS));
            let piece = Frame { requests, ..frame };
            self.read_large(from, piece, to).await?;
            requests = rest;
        }
        Some(())
    }

    /// A large read takes its time beside the session: updates and leases behind it must not wait
    /// for it. Their number is bounded, over all sessions; so the room for the answer comes first,
    /// or a peer that takes no answers would keep the others from reading.
    async fn read_large(&self, from: NodeId, frame: Frame, to: &ReplySender) -> Option<()> {
        let room = to.reserve(&frame).await?;
        let turn = Arc::clone(&self.large_reads).acquire_owned().await.ok()?;
        tokio::spawn(self.clone().read_beside(from, frame, to.clone(), (room, turn)));
        Some(())
    }

    /// Nothing waits for pages of rows, not for their turn either: on a slow disk each takes long.
    async fn read_pages(&self, from: NodeId, frame: Frame, to: &ReplySender) -> Option<()> {
        let room = to.reserve(&frame).await?;
        let (store, to) = (self.clone(), to.clone());
        tokio::spawn(async move {
            if let Ok(turn) = Arc::clone(&store.pages).acquire_owned().await {
                store.read_beside(from, frame, to, (room, turn)).await;
            }
        });
        Some(())
    }

    async fn read_beside(
        self,
        from: NodeId,
        frame: Frame,
        to: ReplySender,
        (room, turn): (Room, OwnedSemaphorePermit),
    ) {
        let reader = self.reader.clone();
        let reply = off_the_runtime(move || reader.handle(from, &frame)).await;
        let reply = reply.and_then(|reply| self.answered(reply));
        drop(turn);
        if let Some(reply) = reply {
            // The session has ended: nobody waits for it.
            let _ = to.put(reply, room);
        }
    }

    /// A disk that fails stops the process, whoever meets it.
    fn answered(&self, answer: Result<Reply, StoreError>) -> Option<Reply> {
        match answer {
            Ok(reply) => Some(reply),
            Err(error) => {
                self.fail("shard store failed to read", &error);
                None
            }
        }
    }

    /// The coordinator knows a newer configuration: gives the map here a little time to follow.
    /// When it does not, the frame is judged by what is known, and refused.
    async fn wait_for_map(&self, frame: &Frame) {
        let caught_up = async {
            loop {
                let mut adopted = pin!(self.adopted.notified());
                // Before the look, or news between look and wait would be missed.
                adopted.as_mut().enable();
                if self.reader.epoch_of(frame.volume).is_some_and(|known| known >= frame.epoch) {
                    return;
                }
                adopted.await;
            }
        };
        // Judged by what is known, and refused, if there is no news.
        let _ = tokio::time::timeout(MAP_PATIENCE, caught_up).await;
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

/// The stores of this node, for coders that run on it.
pub type LocalStores = Arc<Vec<StoreHandle>>;
