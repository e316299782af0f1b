//! How parts of a node reach other nodes: addresses from the map, services by number.

use bytes::Bytes;
use futures::future::BoxFuture;
use smalti_map::view::MapView;
use smalti_net::{CallError, Endpoint, Peer, PeerPolicy};
use smalti_raft::{RaftTransport, TransportError};
use smalti_storage::ids::NodeId;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Service bytes on the wire. Never reused.
pub mod service {
    /// Raft messages and proposals.
    pub const RAFT: u8 = 1;
    /// Sessions of a coordinator with a shard store.
    pub const ROWS: u8 = 2;
    /// Heartbeats.
    pub const BEAT: u8 = 3;
    /// Key shares.
    pub const CUSTODY: u8 = 4;
    /// Who coordinates what.
    pub const SEATS: u8 = 5;
    /// Block requests of another node's gateway.
    pub const BLOCKS: u8 = 6;
}

/// Where nodes are: as configured until the map says otherwise.
#[derive(Debug, Default)]
pub struct AddressBook {
    entries: RwLock<BTreeMap<NodeId, SocketAddr>>,
}

impl AddressBook {
    /// A book with the addresses known from configuration.
    pub fn new(entries: impl IntoIterator<Item = (NodeId, SocketAddr)>) -> Self {
        Self { entries: RwLock::new(entries.into_iter().collect()) }
    }

    /// The address of a node.
    pub fn find(&self, node: NodeId) -> Option<SocketAddr> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).get(&node).copied()
    }

    /// Takes over what a map says; nodes it no longer names are forgotten.
    pub fn adopt(&self, map: &MapView) {
        if map.nodes.is_empty() {
            return;
        }
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        *entries = map.nodes.iter().map(|(id, node)| (*id, node.addresses.quic)).collect();
    }
}

impl PeerPolicy for AddressBook {
    fn allow(&self, node: NodeId) -> bool {
        self.find(node).is_some()
    }
}

/// Reaches other nodes.
#[derive(Clone, Debug)]
pub struct Fabric {
    endpoint: Endpoint,
    book: Arc<AddressBook>,
}

impl Fabric {
    /// Over an endpoint.
    pub fn new(endpoint: Endpoint, book: Arc<AddressBook>) -> Self {
        Self { endpoint, book }
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// A handle to a node; `None` when nobody knows where it is.
    pub fn peer(&self, node: NodeId) -> Option<Peer> {
        self.book.find(node).map(|addr| self.endpoint.peer(node, addr))
    }

    /// Calls a service of another node.
    ///
    /// # Errors
    /// [`Unreached`] when it is not known, not reached or does not answer in time.
    pub async fn call(
        &self,
        node: NodeId,
        service: u8,
        request: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, Unreached> {
        let peer = self.peer(node).ok_or(Unreached::Unknown(node))?;
        peer.call(service, request, timeout).await.map_err(Unreached::Call)
    }
}

/// Why a node gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unreached {
    /// Neither the map nor the configuration names it.
    #[error("{0} is not a known node")]
    Unknown(NodeId),
    /// The transport failed.
    #[error(transparent)]
    Call(CallError),
}

impl RaftTransport for Fabric {
    fn call(
        &self,
        to: NodeId,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let fabric = self.clone();
        Box::pin(async move {
            fabric.call(to, service::RAFT, request, timeout).await.map_err(|error| match error {
                Unreached::Call(error) if error.kind() == smalti_net::CallErrorKind::Timeout => {
                    TransportError::Timeout { node: to, timeout }
                }
                other => TransportError::Unreachable { node: to, reason: other.to_string() },
            })
        })
    }
}
