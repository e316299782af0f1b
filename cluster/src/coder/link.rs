//! A coder's link to one store: one numbered session after another, as long as the coder lives.

use super::CoderMsg;
use crate::shard_store::{LocalSession, LocalStores, hello};
use crate::transport::{ReceiveFrames, SendFrames, Transport};
use ractor::ActorRef;
use smalti_rowcommit::msg::{Frame, Reply};
use smalti_storage::ids::{NodeId, StoreId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Frames that may wait for a session. The gateway bounds what is in flight far below this; a
/// store that lets so much pile up loses its session, and is suspected.
const FRAMES: usize = 4096;

const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(200);

pub(super) struct LinkArgs<T> {
    pub(super) store: StoreId,
    pub(super) node: NodeId,
    pub(super) me: NodeId,
    pub(super) transport: T,
    pub(super) local: LocalStores,
    pub(super) sessions: Arc<AtomicU64>,
    pub(super) tasks: TaskTracker,
    pub(super) coder: ActorRef<CoderMsg>,
}

/// The coder's end of a link. Dropping it ends the link.
pub(super) struct LinkHandle {
    frames: mpsc::Sender<Frame>,
    overrun: Arc<tokio::sync::Notify>,
    _stop: DropGuard,
}

impl LinkHandle {
    pub(super) fn start<T: Transport>(args: LinkArgs<T>) -> Self {
        let (frames, queue) = mpsc::channel(FRAMES);
        let stop = CancellationToken::new();
        let overrun = Arc::new(tokio::sync::Notify::new());
        let tasks = args.tasks.clone();
        let run = run(args, queue, Arc::clone(&overrun));
        let stopped = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = run => {}
            }
        });
        Self { frames, overrun, _stop: stop.drop_guard() }
    }

    /// Queues a frame for the current session; frames of an older one are dropped later.
    pub(super) fn send(&mut self, frame: Frame) {
        if self.frames.try_send(frame).is_err() {
            // What was dropped is unanswered, and goes again in the next session.
            self.overrun.notify_one();
        }
    }
}

async fn run<T: Transport>(
    args: LinkArgs<T>,
    mut queue: mpsc::Receiver<Frame>,
    overrun: Arc<tokio::sync::Notify>,
) {
    let store = args.store;
    let mut pause = PAUSE_MIN;
    loop {
        let Some(mut line) = open(&args).await else {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            continue;
        };
        pause = PAUSE_MIN;
        let session = args.sessions.fetch_add(1, Ordering::Relaxed);
        if args.coder.cast(CoderMsg::LinkUp { store, session }).is_err() {
            return;
        }
        loop {
            tokio::select! {
                frame = queue.recv() => {
                    let Some(frame) = frame else { return };
                    // Frames of an older session were made for a stream that is gone.
                    if frame.session == session && line.send(frame).await.is_none() {
                        break;
                    }
                }
                reply = line.recv() => {
                    let Some(reply) = reply else { break };
                    if args.coder.cast(CoderMsg::Reply { store, reply }).is_err() {
                        return;
                    }
                }
                () = overrun.notified() => break,
            }
        }
        if args.coder.cast(CoderMsg::LinkDown { store }).is_err() {
            return;
        }
    }
}

enum Line<T: Transport> {
    Local(LocalSession),
    Remote(T::Tx, T::Rx),
}

async fn open<T: Transport>(args: &LinkArgs<T>) -> Option<Line<T>> {
    if args.node == args.me {
        let store = args.local.iter().find(|store| store.id() == args.store)?;
        return Some(Line::Local(store.open_local(args.me, &args.tasks)));
    }
    let (tx, rx) = args.transport.open(args.node, hello(args.store)).await?;
    Some(Line::Remote(tx, rx))
}

impl<T: Transport> Line<T> {
    async fn send(&mut self, frame: Frame) -> Option<()> {
        match self {
            Self::Local(session) => session.frames.send(frame).await.ok(),
            Self::Remote(tx, _) => tx.send(frame.encode()).await,
        }
    }

    async fn recv(&mut self) -> Option<Reply> {
        match self {
            Self::Local(session) => session.replies.recv().await,
            Self::Remote(_, rx) => {
                let bytes = rx.recv().await?;
                Reply::decode(&bytes)
                    .inspect_err(|error| tracing::warn!(%error, "store sent no reply"))
                    .ok()
            }
        }
    }
}
