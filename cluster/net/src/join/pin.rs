//! Whom a joiner believes.

use super::pin_of;
use crate::{
    error::{CredentialError, IdentityError},
    identity::{PeerIdentity, authority_cluster},
    tls::{ServerJudge, ServerVerifier, check_chain, dialing, in_cluster, refuse},
};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::{
    ClientConfig, Error, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, UnixTime},
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
    let judge = PinnedAuthority { pin, stranger };
    let verifier = Arc::new(ServerVerifier { judge, provider: provider.clone() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(CredentialError::tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    dialing(config, alpn)
}

/// Whom a joiner believes: a node of the authority whose key it has been told.
#[derive(Debug)]
struct PinnedAuthority {
    pin: [u8; 32],
    stranger: Arc<AtomicBool>,
}

impl ServerJudge for PinnedAuthority {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let pinned = intermediates.iter().find(|der| pin_of(der) == Some(self.pin));
        let pinned = pinned.ok_or_else(|| {
            self.stranger.store(true, Ordering::Release);
            refuse(IdentityError::OtherAuthority)
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        check_chain(leaf, intermediates, &roots, now)?;
        let cluster = authority_cluster(pinned).map_err(refuse)?;
        let identity = PeerIdentity::of_certificate(leaf);
        identity.and_then(|identity| in_cluster(identity, cluster)).map_err(refuse)?;
        Ok(())
    }
}
