//! How parts of a node reach other nodes: addresses from the map, services by number.

use bytes::Bytes;
use futures::future::BoxFuture;
use smalti_map::view::MapView;
use smalti_net::{CallError, DownReason, Endpoint, Peer, PeerPolicy, PeerState, RenewalError};
use smalti_raft::{RaftTransport, TransportError};
use smalti_storage::ids::NodeId;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;
use tokio::time::Instant;

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
    // 7 was for renewed certificates, which have a way in of their own.
    /// Who is a member.
    pub const MEMBERS: u8 = 8;
}

/// At least between two changes of where a node is looked for: longer than one attempt to connect.
const TURN_EVERY: Duration = Duration::from_millis(1500);

/// Where nodes are: as configured until the map says otherwise. Who is not there is looked for where it was
/// configured to be as well: when all nodes have moved, no map can say so before they have met.
#[derive(Debug, Default)]
pub struct AddressBook {
    entries: RwLock<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    nodes: BTreeMap<NodeId, SocketAddr>,
    /// They are those of a map.
    of_map: bool,
    configured: BTreeMap<NodeId, SocketAddr>,
    /// Whether a node is looked for as configured, and since when it is or is not.
    turned: BTreeMap<NodeId, (bool, Instant)>,
}

impl Entries {
    fn find(&self, node: NodeId) -> Option<SocketAddr> {
        let known = *self.nodes.get(&node)?;
        let turned = self.turned.get(&node).is_some_and(|(turned, _)| *turned);
        Some(self.other(node).filter(|_| turned).unwrap_or(known))
    }

    /// Another place where it might be.
    fn other(&self, node: NodeId) -> Option<SocketAddr> {
        let configured = self.configured.get(&node).copied();
        configured.filter(|configured| self.nodes.get(&node) != Some(configured))
    }
}

impl AddressBook {
    /// A book with the addresses known from configuration.
    pub fn new(entries: impl IntoIterator<Item = (NodeId, SocketAddr)>) -> Self {
        let configured: BTreeMap<_, _> = entries.into_iter().collect();
        let entries = Entries { nodes: configured.clone(), configured, ..Entries::default() };
        Self { entries: RwLock::new(entries) }
    }

    /// The address of a node.
    pub fn find(&self, node: NodeId) -> Option<SocketAddr> {
        self.read().find(node)
    }

    /// Everybody that is known.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.read().nodes.keys().copied().collect()
    }

    /// Sets or forgets one address.
    #[cfg(test)]
    pub(crate) fn set(&self, node: NodeId, addr: Option<SocketAddr>) {
        let nodes = &mut self.write().nodes;
        match addr {
            Some(addr) => drop(nodes.insert(node, addr)),
            None => drop(nodes.remove(&node)),
        }
    }

    /// Takes note of nodes that others know, beside those of the configuration and until there is a map.
    pub(crate) fn introduce(&self, known: Vec<(NodeId, SocketAddr)>) {
        let mut entries = self.write();
        if !entries.of_map {
            let mut nodes = entries.configured.clone();
            for (node, addr) in known {
                nodes.entry(node).or_insert(addr);
            }
            entries.nodes = nodes;
        }
    }

    /// Takes over what a map says; nodes it no longer names are forgotten.
    pub fn adopt(&self, map: &MapView) {
        if map.nodes.is_empty() {
            return;
        }
        let nodes = map.nodes.iter().map(|(id, node)| (*id, node.addresses.quic)).collect();
        let mut entries = self.write();
        let before = std::mem::replace(&mut entries.nodes, nodes);
        entries.of_map = true;
        let Entries { nodes, turned, .. } = &mut *entries;
        turned.retain(|node, _| nodes.get(node) == before.get(node));
    }

    /// A node was not reached there: if it might be elsewhere, that is where it is looked for next.
    fn turn(&self, node: NodeId, tried: SocketAddr) {
        let now = Instant::now();
        let mut entries = self.write();
        let last = entries.turned.get(&node).copied();
        let early = last.is_some_and(|(_, at)| now.duration_since(at) < TURN_EVERY);
        if entries.other(node).is_some() && entries.find(node) == Some(tried) && !early {
            let turned = last.is_some_and(|(turned, _)| turned);
            entries.turned.insert(node, (!turned, now));
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PeerPolicy for AddressBook {
    fn allow(&self, node: NodeId) -> bool {
        self.find(node).is_some()
    }
}

/// Reaches other nodes.
///
/// It keeps a handle to every node it has reached: a connection lasts as long as somebody holds
/// one, and a handshake for every call costs more than all the calls.
#[derive(Clone, Debug)]
pub struct Fabric {
    endpoint: Endpoint,
    book: Arc<AddressBook>,
    kept: Arc<Mutex<BTreeMap<NodeId, Peer>>>,
}

impl Fabric {
    /// Over an endpoint.
    pub fn new(endpoint: Endpoint, book: Arc<AddressBook>) -> Self {
        Self { endpoint, book, kept: Arc::default() }
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// A handle to a node; `None` when nobody knows where it is.
    pub fn peer(&self, node: NodeId) -> Option<Peer> {
        let addr = self.book.find(node)?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = kept.get(&node).filter(|peer| peer.addr() == addr) {
            return Some(peer.clone());
        }
        let peer = self.endpoint.peer(node, addr);
        kept.insert(node, peer.clone());
        Some(peer)
    }

    /// Lets go of nodes that nobody knows any more, and closes their connections to us.
    pub(crate) fn forget_strangers(&self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|node, _| self.book.find(*node).is_some());
        drop(kept);
        self.endpoint.enforce_policy();
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
        let answer = peer.call(service, request, timeout).await;
        // What is still being tried is not given up for a call that had little time.
        let is_elsewhere =
            |reason| matches!(reason, DownReason::Unreachable(_) | DownReason::Refused(_));
        if answer.is_err()
            && let PeerState::Down(reason) = peer.state()
            && is_elsewhere(reason)
        {
            self.book.turn(node, peer.addr());
        }
        answer.map_err(Unreached::Call)
    }

    /// Every node whose address is known.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.book.nodes()
    }

    /// Asks another node for another certificate, as works even when this node's own has expired.
    ///
    /// # Errors
    /// [`RenewalError`] when it is not known, not reached or does not sign.
    pub async fn ask_certificate(
        &self,
        node: NodeId,
        timeout: Duration,
    ) -> Result<String, RenewalError> {
        let unknown = || RenewalError::Unreached { node, why: "it is not known".into() };
        let addr = self.book.find(node).ok_or_else(unknown)?;
        self.endpoint.ask_certificate(node, addr, timeout).await
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

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_map::{ClusterMap, Node, NodeAddresses};
    use smalti_net::{ClusterCa, NetConfig, Service};
    use smalti_storage::ids::ClusterId;
    use uuid::Uuid;

    const LONG: Duration = Duration::from_secs(30);

    struct Echo;

    impl Service for Echo {
        fn call(&self, _from: NodeId, request: Bytes) -> BoxFuture<'_, Bytes> {
            Box::pin(std::future::ready(request))
        }
    }

    #[tokio::test]
    async fn calls_share_a_connection_that_outlives_them() {
        let ca = ClusterCa::generate(ClusterId(Uuid::from_u128(3))).expect("an authority");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let nodes = [NodeId(1), NodeId(2)];
        let book = Arc::new(AddressBook::new(nodes.map(|node| (node, any))));
        let bind = |node| {
            let credentials = ca.issue(node, "test").expect("issued");
            let policy = Arc::clone(&book) as Arc<dyn PeerPolicy>;
            Endpoint::bind(any, &credentials, policy, NetConfig::default()).expect("bound")
        };
        let [one, two] = nodes.map(bind);
        two.serve(service::BEAT, Arc::new(Echo));
        book.set(NodeId(2), Some(two.local_addr()));
        let fabric = Fabric::new(one, Arc::clone(&book));
        let mut state = None;
        for _ in 0..20 {
            let call = fabric.call(NodeId(2), service::BEAT, Bytes::from_static(b"hi"), LONG);
            assert_eq!(call.await.expect("an answer"), "hi");
            let watch =
                state.get_or_insert_with(|| fabric.peer(NodeId(2)).expect("a known node").watch());
            assert_eq!(*watch.borrow_and_update(), PeerState::Up);
            tokio::task::yield_now().await;
        }
        let state = state.expect("there was a call");
        assert!(!state.has_changed().expect("the handle lives"), "it was up all along");
        assert_eq!(two.guest_count(), 1);

        book.set(NodeId(2), None);
        fabric.forget_strangers();
        assert!(fabric.peer(NodeId(2)).is_none());
        let mut state = state;
        let down = state.wait_for(|state| matches!(state, PeerState::Down(_)));
        tokio::time::timeout(LONG, down).await.expect("soon").expect("told before it ends");
    }

    #[tokio::test]
    async fn a_node_that_is_not_where_the_map_says_is_found_where_it_was_configured() {
        let ca = ClusterCa::generate(ClusterId(Uuid::from_u128(3))).expect("an authority");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let bind = |no, book: &Arc<AddressBook>| {
            let credentials = ca.issue(NodeId(no), "test").expect("issued");
            let policy = Arc::clone(book) as Arc<dyn PeerPolicy>;
            Endpoint::bind(any, &credentials, policy, NetConfig::default()).expect("bound")
        };
        let theirs = Arc::new(AddressBook::new([(NodeId(1), any)]));
        let two = bind(2, &theirs);
        two.serve(service::BEAT, Arc::new(Echo));
        let moved = two.local_addr();
        // Where it was, nobody is; then somebody else is.
        let nobody = std::net::UdpSocket::bind(any).expect("bound");
        let three = bind(3, &theirs);
        for before in [nobody.local_addr().expect("bound"), three.local_addr()] {
            let book = Arc::new(AddressBook::new([(NodeId(2), moved)]));
            let addresses = NodeAddresses { quic: before, api: before, nbd: before };
            let nodes = [(NodeId(2), Node::new("n2".into(), addresses))].into();
            let mut map = ClusterMap { nodes, ..ClusterMap::default() };
            book.adopt(&Arc::new(map.clone()));
            assert_eq!(book.find(NodeId(2)), Some(before));
            let fabric = Fabric::new(bind(1, &book), Arc::clone(&book));
            let found = async {
                let request = Bytes::from_static(b"hi");
                while fabric.call(NodeId(2), service::BEAT, request.clone(), LONG).await.is_err() {}
            };
            tokio::time::timeout(LONG, found).await.expect("found");
            assert_eq!(book.find(NodeId(2)), Some(moved));
            // It has told the others: there is one address from then on, and one it has left behind.
            map.nodes.get_mut(&NodeId(2)).expect("there").addresses.quic = moved;
            book.adopt(&Arc::new(map));
            book.turn(NodeId(2), moved);
            assert_eq!(book.find(NodeId(2)), Some(moved));
        }
    }
}
