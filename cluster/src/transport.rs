//! What the shell needs of the network between a coordinator and a store, and what it promises.
//!
//! [`Fabric`] is the one transport there is, over QUIC; tests have another one in memory. What
//! must hold for both, and for the sessions that links and stores make of them:
//!
//! T1. Frames of a session arrive in order, each once. A session that breaks loses a part of what
//!     was under way, from the end; nothing of it is repeated, and nothing follows a gap.
//! T2. Whoever drops a frame or a reply of a session breaks it. After a reconnect there is a new
//!     session with a higher number, and what was not answered is asked again there.
//! T3. A change asked for in an older session is not made once a frame of a newer one was taken.
//! T4. What waits for a slow party is bounded, in number and in bytes, on both sides: senders
//!     wait, or lose their session.
//! T5. Either side takes what comes in while it waits to send, so that two slow ones never wait
//!     for each other; and one slow reader holds up nobody but itself.

use crate::fabric::{Fabric, service};
use bytes::Bytes;
use smalti_net::{FrameReceiver, FrameSender};
use smalti_storage::ids::NodeId;
use std::future::Future;
use std::time::Duration;

/// How long a session may take to open.
const OPEN_TIMEOUT: Duration = Duration::from_millis(500);

/// The sending half of a session.
pub(crate) trait SendFrames: Send + Sync + 'static {
    /// Queues a frame, waiting while there is no room. `None`: this direction has ended.
    fn send(&self, frame: Bytes) -> impl Future<Output = Option<()>> + Send;

    /// Waits until this direction has ended, as it does when the peer has gone.
    fn closed(&self) -> impl Future<Output = ()> + Send;
}

/// The receiving half of a session.
pub(crate) trait ReceiveFrames: Send + 'static {
    /// The next frame; `None` when there are no more. Can be dropped without losing one.
    fn recv(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// Opens sessions with the stores of other nodes.
pub(crate) trait Transport: Clone + Send + Sync + 'static {
    /// The sending half.
    type Tx: SendFrames;
    /// The receiving half.
    type Rx: ReceiveFrames;

    /// Opens one; `hello` says with which store.
    fn open(
        &self,
        node: NodeId,
        hello: Bytes,
    ) -> impl Future<Output = Option<(Self::Tx, Self::Rx)>> + Send;
}

impl SendFrames for FrameSender {
    async fn send(&self, frame: Bytes) -> Option<()> {
        Self::send(self, frame).await.ok()
    }

    async fn closed(&self) {
        Self::closed(self).await;
    }
}

impl ReceiveFrames for FrameReceiver {
    async fn recv(&mut self) -> Option<Bytes> {
        Self::recv(self).await.ok().flatten()
    }
}

impl Transport for Fabric {
    type Tx = FrameSender;
    type Rx = FrameReceiver;

    async fn open(&self, node: NodeId, hello: Bytes) -> Option<(FrameSender, FrameReceiver)> {
        match self.peer(node)?.open_session(service::ROWS, hello, OPEN_TIMEOUT).await {
            Ok(session) => Some((session.tx, session.rx)),
            Err(error) => {
                tracing::debug!(%node, %error, "no session with a store");
                None
            }
        }
    }
}
