//! Who gets another certificate, for which key, and that this way in leads nowhere else.

use super::{
    support::*,
    trust::{Gullible, Identity, expired, identity, not_yet},
};
use crate::{
    BoxFuture, CallErrorKind, ClusterCa, Endpoint, JoinerKey, NodeCredentials, RenewalError,
    RenewalHost, Validity, join::one_exchange,
};
use rustls::{ClientConfig, crypto::ring};
use smalti_storage::ids::NodeId;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

const MARK: [u8; 8] = *b"smltrnew";

struct Signer {
    ca: ClusterCa,
    asked: AtomicUsize,
}

impl RenewalHost for Signer {
    fn renew(&self, node: NodeId, key: JoinerKey) -> BoxFuture<'_, Result<String, String>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let validity = Validity::starting(SystemTime::now(), Duration::from_secs(600));
        let signed = self.ca.sign(node, "x", &key, validity);
        Box::pin(std::future::ready(signed.map_err(|error| error.to_string())))
    }
}

/// Node 9, which signs for nodes 1 to 3, and its echo, which is no business of the expired.
fn host() -> (Endpoint, Arc<Signer>, Arc<Echo>) {
    let ca = authority();
    let credentials = ca.issue(NodeId(9), "nine").expect("issue");
    let members = Members::of(&[1, 2, 3]);
    let endpoint = Endpoint::bind(any_port(), &credentials, members, patient()).expect("bind");
    let signer = Arc::new(Signer { ca, asked: AtomicUsize::new(0) });
    endpoint.accept_renewals(signer.clone());
    let echo = Arc::new(Echo::default());
    endpoint.serve(ECHO, echo.clone());
    (endpoint, signer, echo)
}

async fn ask(node: &Endpoint, host: &Endpoint) -> Result<String, RenewalError> {
    node.ask_certificate(NodeId(9), host.local_addr(), LONG).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_node_is_renewed_for_its_own_key_and_let_in_again() {
    let (host, signer, service) = host();
    let old = expired(&signer.ca, 1);
    let one = bind(&old);
    let error = echo(&one.peer(NodeId(9), host.local_addr())).await.expect_err("expired");
    assert_eq!(error.kind(), CallErrorKind::Refused, "{error}");
    let certificate = ask(&one, &host).await.expect("signed");
    // That it is for this node's key is checked here.
    let renewed = old.with_certificate(certificate).expect("its own key");
    assert_eq!(renewed.identity(), old.identity());
    assert_eq!(service.0.load(Ordering::SeqCst), 0);
    one.renew(&renewed).expect("it holds");
    echo(&one.peer(NodeId(9), host.local_addr())).await.expect("let in");
    // Before it expires it is the same.
    ask(&one, &host).await.expect("signed");
}

/// Comes by the way of those who renew, and believes whoever answers.
async fn connect(
    host: &Endpoint,
    who: Option<Identity>,
    alpn: &[u8],
) -> (quinn::Endpoint, Result<quinn::Connection, quinn::ConnectionError>) {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("tls 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match who {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("identity"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).expect("quic");
    let endpoint = quinn::Endpoint::client(any_port()).expect("client");
    let config = one_exchange(crypto, MARK);
    let connecting = endpoint.connect_with(config, host.local_addr(), "smalti").expect("connect");
    let connected = connecting.await;
    (endpoint, connected)
}

async fn say(connection: &quinn::Connection, message: &[u8]) -> Option<Vec<u8>> {
    let (mut send, mut recv) = connection.open_bi().await.ok()?;
    send.write_all(message).await.ok()?;
    send.finish().ok()?;
    recv.read_to_end(1 << 16).await.ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_but_the_end_of_a_certificate_is_overlooked() {
    let (host, signer, _) = host();
    let ca = &signer.ca;
    let same_name = ClusterCa::generate(ca.cluster()).expect("authority");
    let other_cluster = ClusterCa::generate(cluster(8)).expect("authority");
    let whom = |credentials: NodeCredentials| Some(identity(&credentials));
    for (what, who) in [
        ("no certificate", None),
        ("not yet valid", whom(not_yet(ca, 1))),
        ("not a member", whom(ca.issue(NodeId(4), "four").expect("issue"))),
        ("expired and not a member", whom(expired(ca, 4))),
        ("another authority", whom(same_name.issue(NodeId(1), "one").expect("issue"))),
        ("expired, of another authority", whom(expired(&same_name, 1))),
        ("expired, of another cluster", whom(expired(&other_cluster, 1))),
    ] {
        if let (_end, Ok(connection)) = connect(&host, who, b"smalti-renew/1").await {
            assert_eq!(say(&connection, &[1]).await, None, "{what}");
        }
    }
    for alpn in [&b"smalti/1"[..], b"smalti-join/1"] {
        let (_end, connected) = connect(&host, whom(expired(ca, 1)), alpn).await;
        connected.expect_err("another protocol");
    }
    assert_eq!(signer.asked.load(Ordering::SeqCst), 0);
    // Who signs has to have one that holds.
    let nine = bind(&expired(ca, 9));
    nine.accept_renewals(signer.clone());
    let one = bind(&expired(ca, 1));
    let error = ask(&one, &nine).await.expect_err("expired");
    assert!(matches!(error, RenewalError::Unreached { .. }), "{error}");
    assert_eq!(signer.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_node_reaches_no_service() {
    let (host, signer, service) = host();
    let who = || Some(identity(&expired(&signer.ca, 1)));
    for message in [&[1, 1, ECHO, 0, 0, 0, 2, b'h', b'i'][..], &[2, 1, ECHO, 0, 0, 0, 0], b"", &[2]]
    {
        let (_end, connection) = connect(&host, who(), b"smalti-renew/1").await;
        let connection = connection.expect("it may ask");
        let answer = say(&connection, message).await.expect("an answer");
        assert!(String::from_utf8_lossy(&answer).contains("can not be read"), "{answer:?}");
        // A stream may open before the end of the connection arrives; nobody reads it.
        assert_eq!(say(&connection, message).await, None, "it may ask once");
    }
    let (_end, connection) = connect(&host, who(), b"smalti-renew/1").await;
    assert_eq!(say(&connection.expect("it may ask"), &[1; 99]).await, None);
    assert_eq!((signer.asked.load(Ordering::SeqCst), service.0.load(Ordering::SeqCst)), (0, 0));
    assert_eq!(host.guest_count(), 0);
}
