//! Who may join, and who is turned away.

use super::*;
use crate::{
    AllowAll, BoxFuture, ClusterCa, Endpoint, NetConfig, NodeCredentials, Service, Validity,
    tls::SERVER_NAME,
};
use bytes::Bytes;
use rcgen::KeyPair;
use smalti_storage::ids::{ClusterId, NodeId, TokenId};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(60);
const ECHO: u8 = 1;

/// The name of whom the signer of the tests can not tell of.
const UNDECIDED: &str = "undecided";

struct Signer {
    ca: ClusterCa,
    token: TokenId,
    proof_key: [u8; 32],
    asked: AtomicUsize,
    /// What it tells the joiner it is.
    says: NodeId,
    /// What it has signed.
    signs: NodeId,
}

impl JoinHost for Signer {
    fn join(&self, ask: JoinAsk) -> BoxFuture<'_, Result<JoinGrant, JoinDenial>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            if ask.wish.name == UNDECIDED {
                return Err(JoinDenial::Undecided("no majority".into()));
            }
            if ask.token != self.token || !ask.is_proven_by(&self.proof_key) {
                return Err("it does not have\nthe secret".into());
            }
            let validity = Validity::starting(SystemTime::now(), LONG);
            let signed = self.ca.sign(self.signs, "four", &ask.key, validity);
            Ok(JoinGrant {
                cluster: self.ca.cluster(),
                node: self.says,
                name: ask.wish.name,
                certificate_pem: signed.map_err(|error| error.to_string())?,
                ca_pem: self.ca.certificate_pem().to_owned(),
                peers: vec![],
            })
        })
    }
}

struct Echo;

impl Service for Echo {
    fn call(&self, _from: NodeId, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(std::future::ready(request))
    }
}

fn authority(cluster: u128) -> ClusterCa {
    ClusterCa::generate(ClusterId(Uuid::from_u128(cluster))).expect("an authority")
}

fn bind(credentials: &NodeCredentials) -> Endpoint {
    let config = NetConfig {
        connect_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(20),
        ..NetConfig::default()
    };
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Endpoint::bind(any, credentials, Arc::new(AllowAll), config).expect("bound")
}

/// A node that can sign, and a token for it.
fn host(says: u64) -> (Endpoint, Arc<Signer>, JoinToken) {
    host_that_signs(says, 4)
}

fn host_that_signs(says: u64, signs: u64) -> (Endpoint, Arc<Signer>, JoinToken) {
    let ca = authority(7);
    let credentials = ca.issue(NodeId(1), "one").expect("issued");
    let endpoint = bind(&credentials);
    let pin = ca.pin().expect("an authority");
    let token = JoinToken::draw(pin, vec![endpoint.local_addr()]).expect("drawn");
    let proof_key = token.proof_key().expect("a key");
    let asked = AtomicUsize::new(0);
    let (says, signs) = (NodeId(says), NodeId(signs));
    let signer = Arc::new(Signer { ca, token: token.id, proof_key, asked, says, signs });
    endpoint.accept_joins(signer.clone());
    endpoint.serve(ECHO, Arc::new(Echo));
    (endpoint, signer, token)
}

fn wish() -> JoinWish {
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    JoinWish {
        name: "four".into(),
        addresses: JoinAddresses { quic: at(1), api: at(2), nbd: at(3) },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_the_token_becomes_a_node_that_others_believe() {
    let (endpoint, signer, token) = host(4);
    let (joined, farewell) = join(&token, &wish()).await.expect("joined");
    farewell.done().await;
    assert_eq!(joined.credentials.identity().node, NodeId(4));
    assert_eq!(joined.credentials.identity().cluster, signer.ca.cluster());
    let four = bind(&joined.credentials);
    let peer = four.peer(NodeId(1), endpoint.local_addr());
    let answer = peer.call(ECHO, Bytes::from_static(b"hi"), LONG).await.expect("an answer");
    assert_eq!(answer, "hi");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_with_another_secret_is_worth_nothing() {
    let (endpoint, _signer, token) = host(4);
    let drawn = JoinToken::draw(token.pin, vec![endpoint.local_addr()]).expect("drawn");
    let forged = JoinToken { id: token.id, ..drawn };
    let error = join(&forged, &wish()).await.expect_err("another secret");
    assert_eq!(error.to_string(), "the cluster refused: it does not have the secret");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_tells_nothing_to_a_node_of_another_authority() {
    let (endpoint, signer, token) = host(4);
    for pin in [[0; 32], authority(7).pin().expect("an authority")] {
        let misled = JoinToken { pin, addresses: vec![endpoint.local_addr()], ..token.clone() };
        let error = join(&misled, &wish()).await.expect_err("not who was meant");
        assert!(matches!(error, JoinError::Unreached(_)), "{error:?}");
        assert!(error.to_string().contains("another authority"), "{error}");
    }
    assert_eq!(signer.asked.load(Ordering::Relaxed), 0);
    // A certificate that the pinned authority did not sign is not helped by showing the authority's.
    let impostor = authority(7);
    let own = impostor.issue(NodeId(1), "one").expect("issued");
    let shown = [own.certificate_chain_pem(), signer.ca.certificate_pem()].concat();
    let key = zeroize::Zeroizing::new(own.key_pem().to_owned());
    let posing = NodeCredentials::from_pem(shown, key, own.ca_pem().to_owned()).expect("whole");
    let posing = bind(&posing);
    posing.accept_joins(signer.clone());
    let misled = JoinToken { addresses: vec![posing.local_addr()], ..token };
    let error = join(&misled, &wish()).await.expect_err("an impostor");
    assert!(matches!(error, JoinError::Unreached(_)), "{error:?}");
    assert_eq!(signer.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_decides_and_where_nobody_is_a_joiner_is_told_so() {
    let (endpoint, _signer, token) = host(4);
    endpoint.inner_hosting().set(None);
    let error = dial::join_within(&token, &wish(), Duration::ZERO).await;
    let error = error.expect_err("nobody decides");
    assert!(matches!(error, JoinError::Busy(_)), "{error:?}");
    // The next address is tried.
    let (second, _signer, token) = host(4);
    let addresses = vec![endpoint.local_addr(), second.local_addr()];
    join(&JoinToken { addresses, ..token }, &wish()).await.expect("joined at the second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_does_not_hold_together_is_not_used() {
    let (_endpoint, _signer, token) = host(5);
    let error = join(&token, &wish()).await.expect_err("4 is not 5");
    assert!(matches!(error, JoinError::Unusable { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_does_not_become_the_node_that_answers_it() {
    let (_endpoint, _signer, token) = host_that_signs(1, 1);
    let error = join(&token, &wish()).await.expect_err("1 is the host");
    assert!(matches!(error, JoinError::Unusable { .. }), "{error:?}");
    assert!(error.to_string().contains("the one that answered"), "{error}");
}

/// Connects as a joiner does.
async fn connect(token: &JoinToken) -> (quinn::Endpoint, quinn::Connection) {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let endpoint = quinn::Endpoint::client(any).expect("a client");
    let config = dial::client_config(token, Arc::default()).expect("a config");
    let connecting = endpoint.connect_with(config, token.addresses[0], SERVER_NAME);
    let connection = connecting.expect("connects").await.expect("connected");
    (endpoint, connection)
}

/// Why not.
fn why(answer: wire::Answer) -> String {
    match answer {
        wire::Answer::Refused(why) => why,
        other => panic!("{other:?}"),
    }
}

async fn exchange(connection: &quinn::Connection, message: &[u8]) -> Option<wire::Answer> {
    let (mut send, mut recv) = connection.open_bi().await.ok()?;
    send.write_all(message).await.ok()?;
    send.finish().ok()?;
    wire::decode(&recv.read_to_end(wire::ANSWER_BYTES_MAX).await.ok()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_on_one_connection_is_worth_nothing_on_another() {
    let (_endpoint, signer, token) = host(4);
    let key = KeyPair::generate().expect("a key");
    let (_first, seen) = connect(&token).await;
    let recorded = dial::message(&token, &wish(), &key, &seen).expect("signed");
    let (_second, other) = connect(&token).await;
    let answer = exchange(&other, &recorded).await.expect("an answer");
    assert!(why(answer).contains("not signed"));
    assert_eq!(signer.asked.load(Ordering::Relaxed), 0);
    // A thief who signs with a key of its own has no proof of the token for this connection.
    let mut signed: wire::Signed = wire::decode(&recorded).expect("its own");
    let (_third, other) = connect(&token).await;
    let binding = proof::binding(&other).expect("connected");
    signed.key_proof = proof::prove_key(&key, &binding, &signed.ask).expect("signed");
    let message = wire::encode(&signed).expect("encodes");
    let answer = exchange(&other, &message).await.expect("an answer");
    assert!(why(answer).contains("secret"));
    assert_eq!(signer.asked.load(Ordering::Relaxed), 1);
    let answer = exchange(&seen, &recorded).await.expect("an answer");
    assert!(matches!(answer, wire::Answer::Granted(_)), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_request_change_nothing() {
    let (_endpoint, signer, token) = host(4);
    for message in [&b""[..], &[1], &[2, 0], &[0xff; 100], &[1; 4096], &[1; 9999]] {
        let (_client, connection) = connect(&token).await;
        if let Some(answer) = exchange(&connection, message).await {
            assert!(why(answer).contains("can not be read"));
        } else {
            assert!(message.len() > wire::ASK_BYTES_MAX, "{} bytes", message.len());
        }
    }
    assert_eq!(signer.asked.load(Ordering::Relaxed), 0);
    join(&token, &wish()).await.expect("joined all the same");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_none_is_not_even_looked_at() {
    let (_endpoint, signer, token) = host(4);
    for name in ["x".repeat(65), "\u{7f}".repeat(3000), "a b".into(), "\u{e4}".into()] {
        let error = join(&token, &JoinWish { name, ..wish() }).await.expect_err("no name");
        assert!(error.to_string().contains("is not a name"), "{error}");
    }
    assert_eq!(signer.asked.load(Ordering::Relaxed), 0);
    join(&token, &JoinWish { name: "x".repeat(64), ..wish() }).await.expect("joined");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_reaches_no_service() {
    let (_endpoint, signer, token) = host(4);
    let (_client, connection) = connect(&token).await;
    let answer = exchange(&connection, &[1, 1, ECHO, 0, 0, 0, 2, b'h', b'i']).await;
    assert!(why(answer.expect("told why not")).contains("can not be read"));
    assert!(connection.open_bi().await.is_err(), "it may ask once");
    assert_eq!(signer.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_leaves_it_open_is_not_told_as_a_refusal() {
    let (_endpoint, _signer, token) = host(4);
    let error = join(&token, &JoinWish { name: UNDECIDED.into(), ..wish() }).await;
    let error = error.expect_err("nobody knows");
    assert!(matches!(error, JoinError::Undecided { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("no majority") && text.contains("node list"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_outlasts_those_who_never_ask() {
    let (_endpoint, signer, token) = host(4);
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(connect(&token).await);
    }
    let error = dial::join_within(&token, &wish(), Duration::ZERO).await.expect_err("no place");
    assert!(error.to_string().contains("busy with other joiners"), "{error}");
    assert_eq!(signer.asked.load(Ordering::Relaxed), 0);
    let joining = tokio::spawn(async move { join(&token, &wish()).await });
    // One goes: there is room again.
    drop(silent.pop());
    joining.await.expect("no panic").expect("joined");
}
