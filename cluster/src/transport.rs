//! What the shell needs of the network between a coordinator and a store.
//!
//! [`Fabric`] is the one transport there is, over QUIC; tests have another one in memory.

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
