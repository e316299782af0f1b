//! Who gets in, who does not, and who is thrown out.

use super::support::*;
use crate::{
    CallErrorKind, ClusterCa, CredentialError, DownReason, Endpoint, NodeCredentials, PeerState,
    Validity,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
};
use smalti_storage::ids::NodeId;
use std::{
    os::unix::fs::PermissionsExt,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn expired(ca: &ClusterCa, node: u64) -> NodeCredentials {
    let now = SystemTime::now();
    let validity = Validity { not_before: now - 10 * DAY, not_after: now - DAY };
    ca.issue_for(NodeId(node), "old", validity).expect("issue")
}

pub(super) fn not_yet(ca: &ClusterCa, node: u64) -> NodeCredentials {
    let now = SystemTime::now();
    let validity = Validity { not_before: now + DAY, not_after: now + 2 * DAY };
    ca.issue_for(NodeId(node), "early", validity).expect("issue")
}

/// A stranger that believes everybody, so that only the acceptor's check is left.
#[derive(Debug)]
pub(super) struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

pub(super) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

pub(super) fn identity(credentials: &NodeCredentials) -> Identity {
    (credentials.chain_der().expect("chain"), credentials.key_der().expect("key"))
}

/// Whether an acceptor lets a stranger in: it gets a welcome and an answer.
async fn lets_in(to: &Endpoint, identity: Option<Identity>, alpn: &[u8]) -> Result<(), String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("tls 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("identity"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).expect("quic");
    let endpoint = quinn::Endpoint::client(any_port()).expect("client");
    let connection = endpoint
        .connect_with(quinn::ClientConfig::new(Arc::new(crypto)), to.local_addr(), "smalti")
        .expect("connect")
        .await
        .map_err(|e| e.to_string())?;
    // Ask before the verdict can arrive: nothing of this may reach a service.
    if let Ok((mut send, _)) = connection.open_bi().await {
        let _ = send.write_all(&[1, 1, ECHO, 0, 0, 0, 0]).await;
        let _ = send.finish();
        connection.accept_uni().await.map_err(|e| e.to_string())?;
        return Ok(());
    }
    Err(connection.closed().await.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_acceptor_lets_in_members_of_its_cluster_and_nobody_else() {
    let ca = authority();
    let node = bind(&ca.issue(NodeId(2), "two").expect("issue"));
    let service = Arc::new(Echo::default());
    node.serve(ECHO, service.clone());
    let same_name = ClusterCa::generate(ca.cluster()).expect("authority");
    let other_cluster = ClusterCa::generate(cluster(8)).expect("authority");
    let issue = |ca: &ClusterCa, node| identity(&ca.issue(NodeId(node), "x").expect("issue"));
    let own_key = rcgen::generate_simple_self_signed(["smalti".to_owned()]).expect("self-signed");
    let self_signed: Identity = (
        vec![own_key.cert.der().clone()],
        PrivateKeyDer::try_from(own_key.signing_key.serialize_der()).expect("key"),
    );
    // A certificate of the authority's own, though not a node's.
    let as_authority: Identity = (
        crate::credentials::certificates(ca.certificate_pem(), "ca").expect("pem"),
        PrivateKeyDer::try_from(
            rcgen::KeyPair::from_pem(&ca.key_pem()).expect("key").serialize_der(),
        )
        .expect("key"),
    );
    for (what, stranger) in [
        ("no certificate", None),
        ("self-signed", Some(self_signed)),
        ("another authority of the same name", Some(issue(&same_name, 1))),
        ("another cluster", Some(issue(&other_cluster, 1))),
        ("expired", Some(identity(&expired(&ca, 1)))),
        ("not yet valid", Some(identity(&not_yet(&ca, 1)))),
        ("not a member", Some(issue(&ca, 99))),
        ("the authority itself", Some(as_authority)),
    ] {
        let verdict = lets_in(&node, stranger, b"smalti/1").await;
        assert!(verdict.is_err(), "{what} was let in");
    }
    let verdict = lets_in(&node, Some(issue(&ca, 1)), b"smalti/2").await;
    assert!(verdict.is_err(), "another protocol was let in");
    let verdict = lets_in(&node, None, b"smalti-join/1").await;
    assert!(verdict.is_err(), "a joiner that does not say so was let in");
    assert_eq!(service.0.load(Ordering::SeqCst), 0, "a stranger reached a service");
    assert_eq!(node.guest_count(), 0);

    // The same way in is open to a member, so the refusals above mean something.
    assert_eq!(lets_in(&node, Some(issue(&ca, 1)), b"smalti/1").await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dialer_talks_to_the_node_it_meant_and_nobody_else() {
    let ca = authority();
    let one = bind(&ca.issue(NodeId(1), "one").expect("issue"));
    let same_name = ClusterCa::generate(ca.cluster()).expect("authority");
    for (what, there, refused) in [
        ("the right one", ca.issue(NodeId(2), "two").expect("issue"), false),
        ("another node", ca.issue(NodeId(3), "three").expect("issue"), true),
        ("another authority", same_name.issue(NodeId(2), "two").expect("issue"), true),
        ("expired", expired(&ca, 2), true),
        ("not yet valid", not_yet(&ca, 2), true),
    ] {
        let other = bind(&there);
        let service = Arc::new(Echo::default());
        other.serve(ECHO, service.clone());
        let peer = one.peer(NodeId(2), other.local_addr());
        let outcome = echo(&peer).await;
        if refused {
            let error = outcome.expect_err(what);
            assert_eq!(error.kind(), CallErrorKind::Refused, "{what}: {error}");
            assert!(!error.may_have_acted());
            assert!(matches!(peer.state(), PeerState::Down(DownReason::Refused(_))), "{what}");
            assert_eq!(service.0.load(Ordering::SeqCst), 0, "{what}");
        } else {
            outcome.expect(what);
            assert_eq!(peer.state(), PeerState::Up);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_expired_certificate_is_told_apart_from_a_dead_peer() {
    let ca = authority();
    let two = bind(&ca.issue(NodeId(2), "two").expect("issue"));
    let one = bind(&expired(&ca, 1));
    let error = echo(&one.peer(NodeId(2), two.local_addr())).await.expect_err("expired");
    assert_eq!(error.kind(), CallErrorKind::Refused, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_is_cut_off_and_stays_out() {
    let ca = authority();
    let members = Members::of(&[1, 2, 3]);
    let two = ca.issue(NodeId(2), "two").expect("issue");
    let two = Endpoint::bind(any_port(), &two, members.clone(), patient()).expect("bind");
    let service = Arc::new(Echo::default());
    two.serve(ECHO, service.clone());
    two.accept_sessions(STREAM, Arc::new(EchoSessions));
    let node = |number| {
        let end = bind(&ca.issue(NodeId(number), "n").expect("issue"));
        let peer = end.peer(NodeId(2), two.local_addr());
        (end, peer)
    };
    let ((_one, from_one), (_three, from_three)) = (node(1), node(3));
    echo(&from_one).await.expect("a member");
    echo(&from_three).await.expect("a member");
    let mut session =
        from_one.open_session(STREAM, "x".into(), LONG).await.expect("session of a member");
    let before = service.0.load(Ordering::SeqCst);

    members.remove(1);
    // Even without being told, the acceptor asks for every stream.
    let error = echo(&from_one).await.expect_err("removed");
    assert!(matches!(error.kind(), CallErrorKind::Refused | CallErrorKind::Unreachable));
    two.enforce_policy();
    let cut = tokio::time::timeout(LONG, session.rx.recv()).await.expect("ends in time");
    cut.expect_err("the session of a removed node");
    until_down(&from_one).await;
    let error = echo(&from_one).await.expect_err("removed");
    assert_eq!(error.kind(), CallErrorKind::Refused, "{error}");
    assert_eq!(service.0.load(Ordering::SeqCst), before, "a removed node reached a service");
    echo(&from_three).await.expect("the others stay");
    until("only the member is connected", || async { two.guest_count() == 1 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enforcing_the_policy_ends_idle_sessions_by_itself() {
    let ca = authority();
    let members = Members::of(&[1, 2]);
    let two = ca.issue(NodeId(2), "two").expect("issue");
    let two = Endpoint::bind(any_port(), &two, members.clone(), patient()).expect("bind");
    let mut sessions = catch_sessions(&two, STREAM);
    let one = bind(&ca.issue(NodeId(1), "one").expect("issue"));
    let to_two = one.peer(NodeId(2), two.local_addr());
    let ours = to_two.open_session(STREAM, "x".into(), LONG).await.expect("session");
    let (from, hello, mut theirs) = sessions.recv().await.expect("session");
    assert_eq!((from, hello.as_ref()), (NodeId(1), b"x".as_ref()));
    members.remove(1);
    two.enforce_policy();
    let cut = tokio::time::timeout(LONG, theirs.rx.recv()).await.expect("ends in time");
    cut.expect_err("cut");
    tokio::time::timeout(LONG, ours.tx.closed()).await.expect("ends in time");
    ours.tx.send("late".into()).await.expect_err("cut");
}

#[test]
fn credentials_survive_a_file_and_nothing_else_does() {
    let folder = tempfile::tempdir().expect("folder");
    let ca = authority();
    let credentials = ca.issue(NodeId(5), "five").expect("issue");
    credentials.save(folder.path()).expect("save");
    credentials.save(folder.path()).expect("save over the first");
    let mode = |name: &str| {
        let metadata = folder.path().join(name).metadata().expect("metadata");
        metadata.permissions().mode() & 0o777
    };
    assert_eq!((mode("node.key"), mode("node.crt")), (0o600, 0o644));
    let loaded = NodeCredentials::load(folder.path()).expect("load");
    assert_eq!(loaded.identity(), credentials.identity());
    assert_eq!(loaded.key_pem(), credentials.key_pem());
    assert!(!format!("{credentials:?} {ca:?}").contains("PRIVATE"));

    ca.save(folder.path()).expect("save authority");
    assert!(ClusterCa::exists(folder.path()));
    let again = ClusterCa::load(folder.path()).expect("load authority");
    let mine = again.issue(NodeId(6), "six").expect("a loaded authority issues");
    assert_eq!(mine.identity().cluster, ca.cluster());

    let key = folder.path().join("node.key");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o640)).expect("chmod");
    let exposed = NodeCredentials::load(folder.path());
    assert!(matches!(exposed, Err(CredentialError::Exposed { .. })));

    let put = |chain: &NodeCredentials, key: &NodeCredentials, ca: &NodeCredentials| {
        NodeCredentials::from_pem(
            chain.certificate_chain_pem().to_owned(),
            key.key_pem().to_owned().into(),
            ca.ca_pem().to_owned(),
        )
    };
    assert!(matches!(put(&mine, &credentials, &mine), Err(CredentialError::KeyMismatch)));
    let other = ClusterCa::generate(cluster(8)).expect("authority");
    let foreign = other.issue(NodeId(5), "five").expect("issue");
    let mixed = put(&mine, &mine, &foreign);
    assert!(matches!(mixed, Err(CredentialError::OtherCluster { .. })));
    let garbage = NodeCredentials::from_pem("x".into(), String::new().into(), "y".into());
    assert!(matches!(garbage, Err(CredentialError::NotPem { .. })));
    let swapped = ClusterCa::from_pem(other.certificate_pem(), &ca.key_pem());
    assert!(matches!(swapped, Err(CredentialError::KeyMismatch)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loaded_authority_signs_for_the_same_cluster() {
    let folder = tempfile::tempdir().expect("folder");
    let ca = authority();
    ca.save(folder.path()).expect("save");
    let later = ClusterCa::load(folder.path()).expect("load");
    let one = bind(&ca.issue(NodeId(1), "one").expect("issue"));
    let two = bind(&later.issue(NodeId(2), "two").expect("issue"));
    two.serve(ECHO, Arc::new(Echo::default()));
    echo(&one.peer(NodeId(2), two.local_addr())).await.expect("both trust both");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_shown_from_then_on() {
    let ca = authority();
    let issue = |node| ca.issue(NodeId(node), "x").expect("issue");
    let old = expired(&ca, 2);
    let (one, two) = (bind(&issue(1)), bind(&old));
    two.serve(ECHO, Arc::new(Echo::default()));
    one.serve(ECHO, Arc::new(Echo::default()));
    let to_two = one.peer(NodeId(2), two.local_addr());
    let to_one = two.peer(NodeId(1), one.local_addr());
    for peer in [&to_two, &to_one] {
        let call = peer.call(ECHO, bytes::Bytes::new(), Duration::from_secs(2));
        call.await.expect_err("its certificate has expired");
    }
    // What others would not accept does not take the place of anything.
    for other in [expired(&ca, 2), not_yet(&ca, 2), issue(3)] {
        two.renew(&other).expect_err("of no use");
    }
    let stranger = ClusterCa::generate(ca.cluster()).expect("authority");
    two.renew(&stranger.issue(NodeId(2), "x").expect("issue")).expect_err("another authority's");

    let key = old.public_key().expect("P-256");
    let day = Validity::starting(SystemTime::now(), DAY);
    let signed = ca.sign(NodeId(2), "two", &key, day).expect("signed");
    let renewed = old.with_certificate(signed).expect("for the same key");
    let read = renewed.validity().expect("readable");
    assert!(read.not_after <= day.not_after && day.not_after < read.not_after + DAY / 1000);
    assert_eq!(renewed.key_pem(), old.key_pem());
    two.renew(&renewed).expect("renewed");
    echo(&to_two).await.expect("dialled");
    echo(&to_one).await.expect("dials");
}
