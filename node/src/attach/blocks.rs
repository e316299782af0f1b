//! Block requests between nodes: a node without the seat asks the one that has it.

use super::AttachError;
use super::local::{LocalGateways, Place};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use smalti_cluster::Member;
use smalti_cluster::fabric::service;
use smalti_gateway::{
    BoxFuture, ClientId, ForwardClient, ForwardLimits, ForwardServer, FrameClosed, FrameTx,
};
use smalti_net::{FrameReceiver, FrameSender, Session, SessionHandler};
use smalti_storage::ids::{NodeId, VolumeNo};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
const HELLO_VERSION: u8 = 1;

fn hello(volume: VolumeNo, client: ClientId) -> Bytes {
    let mut bytes = vec![HELLO_VERSION];
    bytes.extend_from_slice(&volume.0.to_be_bytes());
    bytes.extend_from_slice(client.0.as_bytes());
    bytes.into()
}

fn read_hello(bytes: &[u8]) -> Option<(VolumeNo, ClientId)> {
    let (version, rest) = bytes.split_first()?;
    let (volume, rest) = rest.split_first_chunk::<4>()?;
    let client = Uuid::from_slice(rest).ok()?;
    (*version == HELLO_VERSION).then_some((VolumeNo(u32::from_be_bytes(*volume)), ClientId(client)))
}

struct Sender(FrameSender);

impl FrameTx for Sender {
    fn send(&self, frame: Bytes) -> BoxFuture<Result<(), FrameClosed>> {
        let sender = self.0.clone();
        Box::pin(async move { sender.send(frame).await.map_err(|_| FrameClosed) })
    }
}

fn frames(receiver: FrameReceiver) -> impl Stream<Item = Bytes> + Send + 'static {
    stream::unfold(receiver, |mut receiver| async move {
        match receiver.recv().await {
            Ok(Some(frame)) => Some((frame, receiver)),
            Ok(None) => None,
            Err(error) => {
                tracing::debug!(%error, "block session ended");
                None
            }
        }
    })
}

/// Opens a session with the node that serves a volume.
pub(super) async fn open_session(
    member: &Member,
    node: NodeId,
    volume: VolumeNo,
    client: ClientId,
) -> Result<ForwardClient, AttachError> {
    let unreached = |why: String| AttachError::Unreached(why);
    let peer = member
        .fabric()
        .peer(node)
        .ok_or_else(|| unreached(format!("{node} is not a known node")))?;
    let session = peer
        .open_session(service::BLOCKS, hello(volume, client), OPEN_TIMEOUT)
        .await
        .map_err(|error| unreached(error.to_string()))?;
    let Session { tx, rx } = session;
    Ok(ForwardClient::new(&ForwardLimits::default(), frames(rx), Arc::new(Sender(tx))))
}

/// Serves block sessions of other nodes.
pub struct BlockSessions {
    local: LocalGateways,
    server: Arc<ForwardServer>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl std::fmt::Debug for BlockSessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockSessions").finish_non_exhaustive()
    }
}

impl BlockSessions {
    /// Serves from the gateways here, until `stop`: then what was begun is answered, and no more
    /// is taken, for the seat can only be given up when nobody works with it.
    pub fn new(local: LocalGateways, stop: CancellationToken, tasks: TaskTracker) -> Self {
        let server = Arc::new(ForwardServer::new(ForwardLimits::default()));
        Self { local, server, stop, tasks }
    }
}

impl SessionHandler for BlockSessions {
    fn session(&self, from: NodeId, hello: Bytes, session: Session) {
        let Some((volume, client)) = read_hello(&hello) else {
            tracing::warn!(%from, "block session with a malformed hello");
            return;
        };
        let (local, server) = (self.local.clone(), Arc::clone(&self.server));
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let place = stop.run_until_cancelled(local.place(volume));
            let Some(place) = place.await else { return };
            let gateway = match place {
                Ok(Place::Here(gateway)) => gateway,
                Ok(Place::There(node)) => {
                    tracing::debug!(%from, %volume, %node, "block session for another node");
                    return;
                }
                Err(error) => {
                    tracing::info!(%from, %volume, %error, "block session refused");
                    return;
                }
            };
            let Session { tx, rx } = session;
            let (device, generation) = (gateway.device(), gateway.generation());
            // Only the device keeps the gateway, and so the seat, in use from here on.
            drop(gateway);
            // Another generation has other keys, perhaps: who is idle does not keep these.
            let over = async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = local.superseded(volume, generation) => {}
                }
            };
            let requests = frames(rx).take_until(Box::pin(over));
            let ended = server.serve(client, device, requests, Arc::new(Sender(tx))).await;
            tracing::debug!(%from, %volume, ?ended, "block session ended");
        });
    }
}
