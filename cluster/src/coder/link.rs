//! A coder's link to one store: one numbered session after another, as long as the coder lives.

use super::CoderMsg;
use super::queue::FrameQueue;
use crate::shard_store::{LocalSender, LocalStores, ReplyReceiver, hello};
use crate::transport::{ReceiveFrames, SendFrames, Transport};
use ractor::ActorRef;
use smalti_rowcommit::msg::{Frame, Reply};
use smalti_storage::ids::{NodeId, StoreId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// After a session that lasted less, the next one waits.
const SHORT: Duration = Duration::from_secs(1);

pub(crate) struct LinkArgs<T> {
    pub(crate) store: StoreId,
    pub(crate) node: NodeId,
    pub(crate) me: NodeId,
    pub(crate) transport: T,
    pub(crate) local: LocalStores,
    pub(crate) sessions: Arc<AtomicU64>,
    pub(crate) tasks: TaskTracker,
    pub(crate) coder: ActorRef<CoderMsg>,
}

/// The coder's end of a link. Dropping it ends the link.
pub(crate) struct LinkHandle {
    #[cfg(test)]
    store: StoreId,
    queue: Arc<FrameQueue>,
    _stop: DropGuard,
}

impl LinkHandle {
    pub(crate) fn start<T: Transport>(args: LinkArgs<T>) -> Self {
        #[cfg(test)]
        let store = args.store;
        let queue = Arc::new(FrameQueue::default());
        let stop = CancellationToken::new();
        let tasks = args.tasks.clone();
        let run = run(args, Arc::clone(&queue));
        let stopped = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stopped.cancelled() => {}
                () = run => {}
            }
        });
        Self {
            #[cfg(test)]
            store,
            queue,
            _stop: stop.drop_guard(),
        }
    }

    /// Queues a frame for the current session; one of an older session is dropped. So is the
    /// session, with all that waits for it, when that becomes too much.
    pub(crate) fn send(&self, frame: Frame) {
        #[cfg(test)]
        crate::tests::probe::sent(self.store, &frame);
        self.queue.push(frame);
    }

    /// All that there was to be sent for now has been.
    pub(crate) fn flushed(&self) {
        self.queue.flushed();
    }
}

async fn run<T: Transport>(args: LinkArgs<T>, queue: Arc<FrameQueue>) {
    let store = args.store;
    let mut pause = PAUSE_MIN;
    loop {
        let Some(line) = open(&args).await else {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            continue;
        };
        let began = Instant::now();
        let session = args.sessions.fetch_add(1, Ordering::Relaxed);
        // The coder makes frames of the session as soon as it has heard of it.
        queue.begin(session);
        if args.coder.cast(CoderMsg::LinkUp { store, session }).is_err() {
            return;
        }
        let end = match line {
            Line::Local(to, from) => converse(&args, &queue, session, *to, from).await,
            Line::Remote(tx, rx) => {
                converse(&args, &queue, session, RemoteTx(tx), RemoteRx(rx)).await
            }
        };
        queue.end();
        if end == End::Coder || args.coder.cast(CoderMsg::LinkDown { store }).is_err() {
            return;
        }
        if began.elapsed() >= SHORT {
            pause = PAUSE_MIN;
        } else {
            // Somebody takes our sessions only to drop them.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// Who has ended a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Line,
    Coder,
}

/// Both directions at once: while a frame waits for room, replies are taken. A store may have no
/// room for frames just because nobody takes its replies.
async fn converse<T>(
    args: &LinkArgs<T>,
    queue: &FrameQueue,
    session: u64,
    to: impl SendToStore,
    mut from: impl HearStore,
) -> End {
    let store = args.store;
    let receiving = async {
        while let Some(reply) = from.recv().await {
            #[cfg(test)]
            crate::tests::probe::heard(store, &reply);
            if args.coder.cast(CoderMsg::Reply { store, reply }).is_err() {
                return End::Coder;
            }
        }
        End::Line
    };
    let sending = async {
        while let Some(frame) = queue.next(session).await {
            if to.send(frame).await.is_none() {
                break;
            }
        }
    };
    tokio::select! {
        biased;
        end = receiving => end,
        () = sending => End::Line,
        () = queue.ended(session) => {
            tracing::debug!(%store, session, "a store takes too little: its session ends");
            End::Line
        }
    }
}

enum Line<T: Transport> {
    Local(Box<LocalSender>, ReplyReceiver),
    Remote(T::Tx, T::Rx),
}

async fn open<T: Transport>(args: &LinkArgs<T>) -> Option<Line<T>> {
    if args.node == args.me {
        let store = args.local.iter().find(|store| store.id() == args.store)?;
        let (to, from) = store.open_local(args.me)?;
        return Some(Line::Local(Box::new(to), from));
    }
    let (tx, rx) = args.transport.open(args.node, hello(args.store)).await?;
    Some(Line::Remote(tx, rx))
}

trait SendToStore {
    async fn send(&self, frame: Frame) -> Option<()>;
}

trait HearStore {
    async fn recv(&mut self) -> Option<Reply>;
}

impl SendToStore for LocalSender {
    async fn send(&self, frame: Frame) -> Option<()> {
        Self::send(self, frame).await
    }
}

impl HearStore for ReplyReceiver {
    async fn recv(&mut self) -> Option<Reply> {
        Self::recv(self).await.map(|(reply, _room)| reply)
    }
}

struct RemoteTx<S>(S);
struct RemoteRx<R>(R);

impl<S: SendFrames> SendToStore for RemoteTx<S> {
    async fn send(&self, frame: Frame) -> Option<()> {
        self.0.send(frame.encode()).await
    }
}

impl<R: ReceiveFrames> HearStore for RemoteRx<R> {
    async fn recv(&mut self) -> Option<Reply> {
        let bytes = self.0.recv().await?;
        Reply::decode(&bytes)
            .inspect_err(|error| tracing::warn!(%error, "store sent no reply"))
            .ok()
    }
}
