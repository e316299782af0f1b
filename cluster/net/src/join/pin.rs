//! Whom a joiner believes.

use super::pin_of;
use crate::{
    error::{CredentialError, IdentityError},
    identity::{PeerIdentity, authority_cluster},
    tls::{in_cluster, refuse},
};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, ring, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// The joiner's side: it has no certificate, and accepts any node of the authority with that pin.
/// Sets `stranger` when whoever answered is of another authority: the handshake's own error does not
/// say so in words.
pub(super) fn client(
    pin: [u8; 32],
    alpn: &[u8],
    stranger: Arc<AtomicBool>,
) -> Result<QuicClientConfig, CredentialError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(PinVerifier { pin, stranger, provider: provider.clone() });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(CredentialError::tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    QuicClientConfig::try_from(config)
        .map_err(|e| CredentialError::tls(Error::General(e.to_string())))
}

/// Whom a joiner believes: a node of the authority whose key it has been told.
#[derive(Debug)]
struct PinVerifier {
    pin: [u8; 32],
    stranger: Arc<AtomicBool>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates.iter().find(|der| pin_of(der) == Some(self.pin));
        let pinned = pinned.ok_or_else(|| {
            self.stranger.store(true, Ordering::Release);
            refuse(IdentityError::OtherAuthority)
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let cluster = authority_cluster(pinned).map_err(refuse)?;
        let identity = PeerIdentity::of_certificate(leaf);
        identity.and_then(|identity| in_cluster(identity, cluster)).map_err(refuse)?;
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
