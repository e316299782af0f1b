//! Nodes, services and strangers for the tests.

use crate::{
    BoxFuture, CallError, ClusterCa, Endpoint, NetConfig, NodeCredentials, Peer, PeerPolicy,
    PeerState, Service, Session, SessionHandler, tls::Tls,
};
use bytes::Bytes;
use smalti_storage::ids::{ClusterId, NodeId};
use std::{
    collections::HashSet,
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use uuid::Uuid;

/// Longer than anything takes on a crowded machine.
pub(super) const LONG: Duration = Duration::from_secs(60);

pub(super) const ECHO: u8 = 1;
pub(super) const STREAM: u8 = 2;

/// The seed of a random test, printed so that `SMALTI_SEED=... cargo test NAME` repeats it.
pub(super) fn seed() -> u64 {
    let given = std::env::var("SMALTI_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("SMALTI_SEED={seed}");
    seed
}

pub(super) fn cluster(number: u128) -> ClusterId {
    ClusterId(Uuid::from_u128(number))
}

pub(super) fn authority() -> ClusterCa {
    ClusterCa::generate(cluster(7)).expect("a new authority")
}

pub(super) fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// A list of members that tests change.
#[derive(Debug, Default)]
pub(super) struct Members(Mutex<HashSet<NodeId>>);

impl Members {
    pub(super) fn of(nodes: &[u64]) -> Arc<Self> {
        Arc::new(Self(Mutex::new(nodes.iter().map(|n| NodeId(*n)).collect())))
    }

    pub(super) fn remove(&self, node: u64) {
        self.0.lock().expect("not poisoned").remove(&NodeId(node));
    }
}

impl PeerPolicy for Members {
    fn allow(&self, node: NodeId) -> bool {
        self.0.lock().expect("not poisoned").contains(&node)
    }
}

/// Settings under which a crowded machine does not fail a test.
pub(super) fn patient() -> NetConfig {
    NetConfig {
        connect_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(20),
        ..NetConfig::default()
    }
}

pub(super) fn bind_at(
    addr: SocketAddr,
    credentials: &NodeCredentials,
    config: NetConfig,
) -> Endpoint {
    Endpoint::bind(addr, credentials, Members::of(&[1, 2, 3]), config).expect("bind")
}

pub(super) fn bind(credentials: &NodeCredentials) -> Endpoint {
    bind_at(any_port(), credentials, patient())
}

/// Two nodes of one cluster: 1, and 2 with an echo service and echo sessions.
pub(super) struct Pair {
    pub(super) ca: ClusterCa,
    pub(super) one: Endpoint,
    pub(super) two: Endpoint,
    pub(super) to_two: Peer,
}

pub(super) fn pair_with(config: &NetConfig) -> Pair {
    let ca = authority();
    let issue = |node| ca.issue(NodeId(node), "test").expect("issue");
    let one = bind_at(any_port(), &issue(1), config.clone());
    let two = bind_at(any_port(), &issue(2), config.clone());
    two.serve(ECHO, Arc::new(Echo::default()));
    two.accept_sessions(STREAM, Arc::new(EchoSessions));
    let to_two = one.peer(NodeId(2), two.local_addr());
    Pair { ca, one, two, to_two }
}

pub(super) fn pair() -> Pair {
    pair_with(&patient())
}

pub(super) async fn echo(peer: &Peer) -> Result<(), CallError> {
    let answer = peer.call(ECHO, Bytes::from_static(b"hello"), LONG).await?;
    assert_eq!(answer, "hello");
    Ok(())
}

/// Answers with the request, and counts.
#[derive(Debug, Default)]
pub(super) struct Echo(pub(super) AtomicUsize);

impl Service for Echo {
    fn call(&self, _: NodeId, request: Bytes) -> BoxFuture<'_, Bytes> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move { request })
    }
}

pub(super) struct EchoSessions;

impl SessionHandler for EchoSessions {
    fn session(&self, _: NodeId, _: Bytes, session: Session) {
        tokio::spawn(async move {
            let Session { tx, mut rx } = session;
            while let Ok(Some(frame)) = rx.recv().await {
                if tx.send(frame).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Hands sessions to the test.
pub(super) struct Caught(mpsc::Sender<(NodeId, Bytes, Session)>);

impl SessionHandler for Caught {
    fn session(&self, from: NodeId, hello: Bytes, session: Session) {
        // A test that is over does not want it any more.
        let _ = self.0.try_send((from, hello, session));
    }
}

/// Sessions of `service` at `endpoint`, as they come.
pub(super) fn catch_sessions(
    endpoint: &Endpoint,
    service: u8,
) -> mpsc::Receiver<(NodeId, Bytes, Session)> {
    let (caught, sessions) = mpsc::channel(10_000);
    endpoint.accept_sessions(service, Arc::new(Caught(caught)));
    sessions
}

/// Polls until `check` holds.
pub(super) async fn until<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let deadline = Instant::now() + LONG;
    while !check().await {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(super) async fn until_down(peer: &Peer) {
    let mut state = peer.watch();
    tokio::time::timeout(LONG, state.wait_for(|state| *state != PeerState::Up))
        .await
        .expect("goes down in time")
        .expect("peer handle is alive");
}

/// A bare connection with valid credentials, to say what the API would not.
pub(super) async fn raw(
    credentials: &NodeCredentials,
    to: &Endpoint,
) -> (quinn::Endpoint, quinn::Connection) {
    let tls = Tls::new(credentials).expect("credentials");
    let crypto = tls.client(to.identity().node, crate::tls::ALPN).expect("client config");
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let transport = patient().transport(crate::config::Role::Dialer, 1 << 20).expect("transport");
    config.transport_config(transport);
    let endpoint = quinn::Endpoint::client(any_port()).expect("client");
    let connection = endpoint
        .connect_with(config, to.local_addr(), "smalti")
        .expect("connect")
        .await
        .expect("connected");
    let mut welcome = connection.accept_uni().await.expect("welcome");
    assert_eq!(welcome.read_to_end(64).await.expect("welcome"), crate::wire::WELCOME);
    (endpoint, connection)
}
