//! The endpoint of a node: one UDP socket for everything it says and hears.

use crate::{
    accept,
    config::{NetConfig, Role},
    credentials::NodeCredentials,
    error::{BindError, CredentialError},
    identity::PeerIdentity,
    join::{self, Hosting, JoinHost, RenewalError, RenewalHost},
    peer::{self, Peer},
    service::{Service, Services, SessionHandler},
    socket,
    tls::{ALPN, Expired, PeerPolicy, Tls},
    wire::code,
};
use quinn::{Connection, EndpointConfig, ServerConfig, TokioRuntime, TransportConfig};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use smalti_storage::ids::NodeId;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long [`Endpoint::close`] waits for peers to hear of it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the endpoint, its peers and its guests share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: NetConfig,
    pub(crate) quinn: quinn::Endpoint,
    pub(crate) tls: Tls,
    pub(crate) policy: Policy,
    pub(crate) dial_transport: Arc<TransportConfig>,
    pub(crate) services: Services,
    pub(crate) hosting: Hosting,
    pub(crate) guests: Guests,
    pub(crate) tasks: TaskTracker,
    pub(crate) closing: CancellationToken,
    local_addr: SocketAddr,
    identity: PeerIdentity,
    peers: Mutex<HashMap<NodeId, Weak<peer::Inner>>>,
}

/// A node's endpoint. Clones are the same endpoint; it closes when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Endpoint {
    inner: Arc<Owner>,
}

#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.shut();
    }
}

impl Endpoint {
    /// Binds `addr` (port 0 takes a free one) and begins to accept the nodes that `policy`
    /// allows. Must be called inside a tokio runtime.
    ///
    /// Until a service is registered, calls to it are refused.
    pub fn bind(
        addr: SocketAddr,
        credentials: &NodeCredentials,
        policy: Arc<dyn PeerPolicy>,
        config: NetConfig,
    ) -> Result<Self, BindError> {
        config.check()?;
        let tls = Tls::new(credentials)?;
        let mut server = ServerConfig::with_crypto(Arc::new(tls.server(
            policy.clone(),
            ALPN,
            Expired::Refused,
        )?));
        // Nodes have fixed addresses; a connection that moves is somebody else's trick.
        server.migration(false);
        let (socket, buffer) = socket::bind(addr, &config)?;
        server.transport_config(config.transport(Role::Acceptor, buffer)?);
        let failed = |source| BindError::Socket { addr, source };
        let local_addr = socket.local_addr().map_err(failed)?;
        let quinn = quinn::Endpoint::new_with_abstract_socket(
            endpoint_config(credentials, &config)?,
            Some(server),
            socket,
            Arc::new(TokioRuntime),
        )
        .map_err(failed)?;
        let hosting = Hosting::new(&tls, policy.clone())?;
        let shared = Arc::new(Shared {
            dial_transport: config.transport(Role::Dialer, buffer)?,
            config,
            quinn,
            tls,
            policy: Policy(policy),
            services: Services::default(),
            hosting,
            guests: Guests::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            local_addr,
            identity: credentials.identity(),
            peers: Mutex::default(),
        });
        shared.tasks.spawn(accept::run(shared.clone()));
        Ok(Self { inner: Arc::new(Owner { shared }) })
    }

    /// The address that was bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.shared.local_addr
    }

    /// Who this node is.
    pub fn identity(&self) -> PeerIdentity {
        self.inner.shared.identity
    }

    /// Answers the calls of `service` from now on with `handler`, in place of an earlier one.
    pub fn serve(&self, service: u8, handler: Arc<dyn Service>) {
        self.inner.shared.services.set_call(service, handler);
    }

    /// Hands sessions of `service` from now on to `handler`, in place of an earlier one.
    pub fn accept_sessions(&self, service: u8, handler: Arc<dyn SessionHandler>) {
        self.inner.shared.services.set_session(service, handler);
    }

    /// Shows a renewed certificate of this node from now on; connections that there are go on.
    ///
    /// # Errors
    /// It is another node's, or others would not accept it.
    pub fn renew(&self, credentials: &NodeCredentials) -> Result<(), CredentialError> {
        self.inner.shared.tls.renew(credentials)
    }

    /// Lets `host` decide about machines that want to join. Until then they are turned away.
    pub fn accept_joins(&self, host: Arc<dyn JoinHost>) {
        self.inner.shared.hosting.set(Some(host));
    }

    /// Lets `host` sign for members that want another certificate, be their own expired.
    pub fn accept_renewals(&self, host: Arc<dyn RenewalHost>) {
        self.inner.shared.hosting.set_renewals(Some(host));
    }

    /// Asks `node` at `addr` for another certificate, in PEM, for the key that this node shows. Nothing is
    /// believed of it yet.
    ///
    /// # Errors
    /// It is not reached, or does not sign.
    pub async fn ask_certificate(
        &self,
        node: NodeId,
        addr: SocketAddr,
        timeout: Duration,
    ) -> Result<String, RenewalError> {
        join::ask_certificate(&self.inner.shared, node, addr, timeout).await
    }

    #[cfg(test)]
    pub(crate) fn inner_hosting(&self) -> &Hosting {
        &self.inner.shared.hosting
    }

    /// A handle to `node` at `addr`. Handles to the same node and address share a connection;
    /// a new address gets its own, and leaves the old one to those who still hold it.
    pub fn peer(&self, node: NodeId, addr: SocketAddr) -> Peer {
        let shared = &self.inner.shared;
        let mut peers = shared.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(inner) = peers.get(&node).and_then(Weak::upgrade) {
            let known = Peer::from_inner(inner);
            if known.addr() == addr {
                return known;
            }
        }
        peers.retain(|_, inner| inner.strong_count() > 0);
        let peer = Peer::new(shared.clone(), node, addr);
        peers.insert(node, Arc::downgrade(peer.inner()));
        peer
    }

    /// Closes the connections of nodes that the policy no longer allows. Call it when the map
    /// changed; new connections and streams are checked in any case.
    pub fn enforce_policy(&self) {
        let shared = &self.inner.shared;
        shared.guests.close_where(|node| !shared.policy.allow(node));
    }

    /// How many connections other nodes have to us.
    pub fn guest_count(&self) -> usize {
        self.inner.shared.guests.lock().len()
    }

    /// Closes all connections, and waits a little until the peers have heard. Calls that are
    /// being answered go on to their end, unheard. The port is free once all handles are gone.
    pub async fn close(&self) {
        let shared = &self.inner.shared;
        shared.shut();
        if tokio::time::timeout(CLOSE_TIMEOUT, shared.quinn.wait_idle()).await.is_err() {
            tracing::debug!("some peers did not confirm the close");
        }
    }
}

impl Shared {
    fn shut(&self) {
        self.closing.cancel();
        self.quinn.close(code::CLOSED, b"node stops");
        self.services.clear();
        self.hosting.set(None);
        self.hosting.set_renewals(None);
    }
}

/// Settings that live as long as the socket.
///
/// The reset key and the connection ids come from the node's private key, so that after a
/// restart the node can tell peers, provably, that their old connections are gone. Otherwise
/// they would find out only when the idle timeout passes.
fn endpoint_config(
    credentials: &NodeCredentials,
    config: &NetConfig,
) -> Result<EndpointConfig, CredentialError> {
    let key = credentials.key_der()?;
    let derive =
        |purpose: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.secret_der()), purpose);
    let reset = hmac::Key::new(hmac::HMAC_SHA256, derive(b"smalti stateless reset").as_ref());
    let ids = derive(b"smalti connection ids");
    let ids = ids.as_ref().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let mut endpoint = EndpointConfig::new(Arc::new(reset));
    endpoint.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    // Within quinn's range, because the configuration was checked.
    endpoint
        .max_udp_payload_size(config.datagram_max)
        .map_err(|_| CredentialError::tls(rustls::Error::General("datagram size".into())))?;
    Ok(endpoint)
}

/// The policy, with a `Debug`.
pub(crate) struct Policy(Arc<dyn PeerPolicy>);

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Policy")
    }
}

impl Policy {
    pub(crate) fn allow(&self, node: NodeId) -> bool {
        self.0.allow(node)
    }
}

/// The connections of other nodes to us, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    list: Mutex<Vec<(NodeId, Connection)>>,
}

impl Guests {
    /// Takes note of a connection; false when there are too many. A node that has too many
    /// loses its oldest: it was most likely restarted, and the old ones are dead.
    pub(crate) fn admit(&self, node: NodeId, connection: &Connection, config: &NetConfig) -> bool {
        let mut list = self.lock();
        let own = list.iter().filter(|(other, _)| *other == node).count();
        if own >= config.connections_per_node_max
            && let Some(at) = list.iter().position(|(other, _)| *other == node)
        {
            list.remove(at).1.close(code::CROWDED, b"replaced by a newer connection");
        }
        if list.len() >= config.connections_max {
            return false;
        }
        list.push((node, connection.clone()));
        true
    }

    pub(crate) fn forget(&self, connection: &Connection) {
        self.lock().retain(|(_, other)| other.stable_id() != connection.stable_id());
    }

    fn close_where(&self, matches: impl Fn(NodeId) -> bool) {
        // Not under the lock: the policy is foreign code.
        let list: Vec<_> = self.lock().clone();
        for (node, connection) in list {
            if matches(node) {
                connection.close(code::REMOVED, b"not a member");
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(NodeId, Connection)>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
