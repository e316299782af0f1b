//! Mutual TLS 1.3: both sides must be nodes of one cluster, and the right ones.
//!
//! T1. A peer's chain ends at the cluster's authority, holds now, and has the right usage.
//! T2. Its certificate names our cluster. The dialer demands the node it meant; the acceptor
//!     demands a node that the policy allows.
//!     To have its certificate renewed, and for nothing else, a node may show one that has expired:
//!     `join/renew.rs`.
//! T3. No resumption and no early data: every connection runs the whole check, so an expired
//!     certificate or a removed node can not come back on an old ticket.

use crate::{
    credentials::NodeCredentials,
    current_key::CurrentKey,
    error::{CredentialError, IdentityError},
    identity::PeerIdentity,
    join::JoinerKey,
};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::PublicKeyData;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, ring, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use smalti_storage::ids::{ClusterId, NodeId};
use std::{fmt, sync::Arc, time::Duration};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Names the protocol and its version. A peer that speaks another one fails the handshake, so
/// nothing after it has to ask.
pub(crate) const ALPN: &[u8] = b"smalti/1";

/// The name asked for in the handshake. Nodes are known by the name in their certificate, so
/// this one only fills a field that can not be empty.
pub(crate) const SERVER_NAME: &str = "smalti";

/// Which nodes may connect: the cluster's map, as this process knows it.
///
/// Asked on every handshake and every stream, so it must answer from memory.
pub trait PeerPolicy: Send + Sync + 'static {
    /// Whether `node` is a member.
    fn allow(&self, node: NodeId) -> bool;
}

/// Allows every node that the authority signed: for a cluster that has no map yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllowAll;

impl PeerPolicy for AllowAll {
    fn allow(&self, _: NodeId) -> bool {
        true
    }
}

/// Whether an acceptor takes a certificate that has expired and is right otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    Refused,
    Allowed,
}

/// What both roles need: who we are, whom we trust, how we sign.
pub(crate) struct Tls {
    identity: PeerIdentity,
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    key: Arc<CurrentKey>,
    join_key: Arc<CurrentKey>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Tls {
    pub(crate) fn new(credentials: &NodeCredentials) -> Result<Self, CredentialError> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in credentials.ca_der()? {
            roots.add(authority).map_err(CredentialError::tls)?;
        }
        let (key, join_key) = keys(credentials, &provider)?;
        Ok(Self {
            identity: credentials.identity(),
            provider,
            roots: Arc::new(roots),
            key: Arc::new(CurrentKey::new(key)),
            join_key: Arc::new(CurrentKey::new(join_key)),
        })
    }

    /// Shows another certificate of the same node from now on.
    pub(crate) fn renew(&self, credentials: &NodeCredentials) -> Result<(), CredentialError> {
        let (ours, theirs) = (self.identity, credentials.identity());
        in_cluster(theirs, ours.cluster).map_err(CredentialError::Identity)?;
        if ours != theirs {
            let (theirs, wanted) = (theirs.node, ours.node);
            return Err(CredentialError::Identity(IdentityError::OtherNode { theirs, wanted }));
        }
        self.check(credentials)?;
        let (key, join_key) = keys(credentials, &self.provider)?;
        self.key.replace(key);
        self.join_key.replace(join_key);
        Ok(())
    }

    /// Whether the authority that we believe has signed them, and they hold now.
    fn check(&self, credentials: &NodeCredentials) -> Result<(), CredentialError> {
        let chain = credentials.chain_der()?;
        let (leaf, intermediates) =
            chain.split_first().ok_or(CredentialError::NotPem { what: "certificate chain" })?;
        WebPkiClientVerifier::builder_with_provider(self.roots.clone(), self.provider.clone())
            .build()
            .map_err(|e| CredentialError::tls(Error::General(e.to_string())))?
            .verify_client_cert(leaf, intermediates, UnixTime::now())
            .map_err(CredentialError::tls)?;
        Ok(())
    }

    /// The acceptor's side: lets in what `policy` allows.
    pub(crate) fn server(
        &self,
        policy: Arc<dyn PeerPolicy>,
        alpn: &[u8],
        expired: Expired,
    ) -> Result<QuicServerConfig, CredentialError> {
        let chain =
            WebPkiClientVerifier::builder_with_provider(self.roots.clone(), self.provider.clone())
                .build()
                .map_err(|e| CredentialError::tls(Error::General(e.to_string())))?;
        let cluster = self.identity.cluster;
        let verifier = Arc::new(AcceptVerifier { cluster, chain, policy, expired });
        let config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(CredentialError::tls)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.key.clone());
        serving(config, alpn)
    }

    /// The side that answers joiners, who have no certificate. It shows the authority's as well, which
    /// they know by its pin only.
    pub(crate) fn join_server(&self, alpn: &[u8]) -> Result<QuicServerConfig, CredentialError> {
        let config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(CredentialError::tls)?
            .with_no_client_auth()
            .with_cert_resolver(self.join_key.clone());
        serving(config, alpn)
    }

    /// The dialer's side: accepts nobody but `node`.
    pub(crate) fn client(
        &self,
        node: NodeId,
        alpn: &[u8],
    ) -> Result<QuicClientConfig, CredentialError> {
        let wanted = PeerIdentity { cluster: self.identity.cluster, node };
        let judge = OneNode { wanted, roots: self.roots.clone() };
        let verifier = Arc::new(ServerVerifier { judge, provider: self.provider.clone() });
        let config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(CredentialError::tls)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(self.key.clone());
        dialing(config, alpn)
    }
}

/// No session is kept (T3), whoever is served.
fn serving(mut config: ServerConfig, alpn: &[u8]) -> Result<QuicServerConfig, CredentialError> {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    QuicServerConfig::try_from(config)
        .map_err(|e| CredentialError::tls(Error::General(e.to_string())))
}

/// The same, whoever dials.
pub(crate) fn dialing(
    mut config: ClientConfig,
    alpn: &[u8],
) -> Result<QuicClientConfig, CredentialError> {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    QuicClientConfig::try_from(config)
        .map_err(|e| CredentialError::tls(Error::General(e.to_string())))
}

/// What is shown to members, and to joiners.
fn keys(
    credentials: &NodeCredentials,
    provider: &CryptoProvider,
) -> Result<(CertifiedKey, CertifiedKey), CredentialError> {
    let chain = credentials.chain_der()?;
    let with_authority = [chain.clone(), credentials.ca_der()?].concat();
    let key = CertifiedKey::from_der(chain, credentials.key_der()?, provider)
        .map_err(CredentialError::tls)?;
    let join_key = CertifiedKey::new(with_authority, key.key.clone());
    Ok((key, join_key))
}

/// Whether others of the cluster would accept these credentials now.
pub(crate) fn check_own(credentials: &NodeCredentials) -> Result<(), CredentialError> {
    Tls::new(credentials)?.check(credentials)
}

/// The peer's certificate, which the verifiers below accepted, as an identity.
pub(crate) fn peer_identity(connection: &quinn::Connection) -> Result<PeerIdentity, IdentityError> {
    PeerIdentity::of_certificate(&peer_certificate(connection).ok_or(IdentityError::Missing)?)
}

/// The public key in the peer's certificate; that it has the private one TLS has seen to.
pub(crate) fn peer_key(connection: &quinn::Connection) -> Option<JoinerKey> {
    let leaf = peer_certificate(connection)?;
    let (_, leaf) = X509Certificate::from_der(&leaf).ok()?;
    let key = leaf.public_key();
    let point = JoinerKey::from_point(&key.subject_public_key.data)?;
    // A point of that length may also be one of another curve.
    (point.subject_public_key_info() == key.raw).then_some(point)
}

fn peer_certificate(connection: &quinn::Connection) -> Option<CertificateDer<'static>> {
    let any = connection.peer_identity()?;
    let chain = any.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.into_iter().next()
}

/// The last instant at which an expired certificate held.
fn last_instant(leaf: &CertificateDer<'_>, now: UnixTime) -> Option<UnixTime> {
    let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
    let seconds = u64::try_from(leaf.validity().not_after.timestamp()).ok()?;
    (seconds < now.as_secs()).then(|| UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

fn is_expired(error: &Error) -> bool {
    use CertificateError::{Expired, ExpiredContext};
    matches!(error, Error::InvalidCertificate(Expired | ExpiredContext { .. }))
}

pub(crate) fn in_cluster(
    identity: PeerIdentity,
    ours: ClusterId,
) -> Result<PeerIdentity, IdentityError> {
    if identity.cluster == ours {
        Ok(identity)
    } else {
        Err(IdentityError::OtherCluster { theirs: identity.cluster, ours })
    }
}

pub(crate) fn refuse(error: IdentityError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Whom the acceptor lets in.
struct AcceptVerifier {
    cluster: ClusterId,
    chain: Arc<dyn ClientCertVerifier>,
    policy: Arc<dyn PeerPolicy>,
    expired: Expired,
}

impl fmt::Debug for AcceptVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcceptVerifier").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for AcceptVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = match self.chain.verify_client_cert(leaf, intermediates, now) {
            // All but the time is looked at once more, as of when the time was right.
            Err(error) if self.expired == Expired::Allowed && is_expired(&error) => {
                let then = last_instant(leaf, now).ok_or(error)?;
                self.chain.verify_client_cert(leaf, intermediates, then)?
            }
            verified => verified?,
        };
        let identity = PeerIdentity::of_certificate(leaf)
            .and_then(|identity| in_cluster(identity, self.cluster))
            .map_err(refuse)?;
        if !self.policy.allow(identity.node) {
            return Err(refuse(IdentityError::NotAllowed { node: identity.node }));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("tls 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Decides whom a dialer talks to.
pub(crate) trait ServerJudge: fmt::Debug + Send + Sync + 'static {
    /// Whether that is whom it wants, by the certificates it shows; its signature is not for here.
    ///
    /// # Errors
    /// It is not, or they do not hold.
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error>;
}

/// A dialer's verifier: a judge, and the signatures of TLS 1.3.
#[derive(Debug)]
pub(crate) struct ServerVerifier<J> {
    pub(crate) judge: J,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl<J: ServerJudge> ServerCertVerifier for ServerVerifier<J> {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge.judge(leaf, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("tls 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The chain of a server ends at one of `roots`, and holds.
pub(crate) fn check_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<(), Error> {
    let algorithms = ring::default_provider().signature_verification_algorithms.all;
    let leaf = ParsedCertificate::try_from(leaf)?;
    verify_server_cert_signed_by_trust_anchor(&leaf, roots, intermediates, now, algorithms)
}

/// One node of the cluster.
#[derive(Debug)]
struct OneNode {
    wanted: PeerIdentity,
    roots: Arc<RootCertStore>,
}

impl ServerJudge for OneNode {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        check_chain(leaf, intermediates, &self.roots, now)?;
        let identity = PeerIdentity::of_certificate(leaf)
            .and_then(|identity| in_cluster(identity, self.wanted.cluster))
            .map_err(refuse)?;
        if identity.node != self.wanted.node {
            let (theirs, wanted) = (identity.node, self.wanted.node);
            return Err(refuse(IdentityError::OtherNode { theirs, wanted }));
        }
        Ok(())
    }
}
