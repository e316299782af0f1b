//! What a node proves itself with: its certificate chain, its key, and the authority it trusts.

use crate::{
    ca::Validity,
    error::CredentialError,
    identity::{PeerIdentity, authority_cluster},
    join::JoinerKey,
    pem_files::{self, Secrecy},
};
use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{
    fmt,
    path::Path,
    time::{Duration, SystemTime},
};
use webpki::EndEntityCert;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};
use zeroize::Zeroizing;

const CERTIFICATE_FILE: &str = "node.crt";
const KEY_FILE: &str = "node.key";
const AUTHORITY_FILE: &str = "ca.crt";

/// More certificates than this in one file are a mistake.
const CHAIN_MAX: usize = 8;

/// The credentials of one node. Always whole: what can not be parsed, or does not belong
/// together, is refused when it is read.
#[derive(Clone)]
pub struct NodeCredentials {
    identity: PeerIdentity,
    certificate_chain_pem: String,
    key_pem: Zeroizing<String>,
    ca_pem: String,
}

impl fmt::Debug for NodeCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeCredentials").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl NodeCredentials {
    /// Puts credentials together: the node's certificate (first) with any intermediate ones, the
    /// node's private key, and the certificate of the cluster's authority.
    ///
    /// # Errors
    /// Something is not PEM, the certificate does not name a node, the key is not the
    /// certificate's, or the authority is another cluster's. Validity is not checked: that is
    /// what peers do.
    pub fn from_pem(
        certificate_chain_pem: String,
        key_pem: Zeroizing<String>,
        ca_pem: String,
    ) -> Result<Self, CredentialError> {
        let chain = certificates(&certificate_chain_pem, "certificate chain")?;
        let leaf = chain.first().ok_or(CredentialError::NotPem { what: "certificate chain" })?;
        let identity = PeerIdentity::of_certificate(leaf).map_err(CredentialError::Identity)?;
        let key =
            KeyPair::from_pem(&key_pem).map_err(|_| CredentialError::NotPem { what: "key" })?;
        check_key(leaf, &key)?;
        for authority in certificates(&ca_pem, "authority certificate")? {
            let cluster = authority_cluster(&authority).map_err(CredentialError::Identity)?;
            if cluster != identity.cluster {
                return Err(CredentialError::OtherCluster { ours: identity.cluster, cluster });
            }
        }
        Ok(Self { identity, certificate_chain_pem, key_pem, ca_pem })
    }

    /// The same node and key with another certificate.
    ///
    /// # Errors
    /// As [`from_pem`](Self::from_pem).
    pub fn with_certificate(&self, certificate_chain_pem: String) -> Result<Self, CredentialError> {
        Self::from_pem(certificate_chain_pem, self.key_pem.clone(), self.ca_pem.clone())
    }

    /// The public key, to ask for a certificate with.
    pub fn public_key(&self) -> Result<JoinerKey, CredentialError> {
        let not_ours = CredentialError::NotPem { what: "P-256 key" };
        let key = KeyPair::from_pem(&self.key_pem).map_err(|_| not_ours)?;
        let not_ours = CredentialError::NotPem { what: "P-256 key" };
        JoinerKey::from_point(key.der_bytes()).ok_or(not_ours)
    }

    /// When the certificate holds.
    ///
    /// # Errors
    /// It does not say so in a way that can be.
    pub fn validity(&self) -> Result<Validity, CredentialError> {
        let unreadable = || CredentialError::NotPem { what: "certificate" };
        let chain = self.chain_der()?;
        let leaf = chain.first().ok_or_else(unreadable)?;
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| unreadable())?;
        let instant = |time: ASN1Time| {
            let seconds = u64::try_from(time.timestamp()).ok()?;
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
        };
        let times = (instant(leaf.validity().not_before), instant(leaf.validity().not_after));
        let (Some(not_before), Some(not_after)) = times else { return Err(unreadable()) };
        Ok(Validity { not_before, not_after })
    }

    /// Writes `node.crt` only, which a crash leaves as it was or as it is to be: the key stays.
    pub fn save_certificate(&self, folder: &Path) -> Result<(), CredentialError> {
        let path = folder.join(CERTIFICATE_FILE);
        pem_files::write(&path, &self.certificate_chain_pem, Secrecy::Public)
    }

    /// The node these credentials are for, and its cluster.
    pub fn identity(&self) -> PeerIdentity {
        self.identity
    }

    /// The node's certificate, then any intermediate ones.
    pub fn certificate_chain_pem(&self) -> &str {
        &self.certificate_chain_pem
    }

    /// The node's private key (PKCS#8). Keep it out of logs and messages.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// The authority's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Writes `node.crt`, `node.key` (mode 0600) and `ca.crt` into `folder`, which must exist.
    pub fn save(&self, folder: &Path) -> Result<(), CredentialError> {
        pem_files::write(&folder.join(KEY_FILE), &self.key_pem, Secrecy::Private)?;
        pem_files::write(&folder.join(AUTHORITY_FILE), &self.ca_pem, Secrecy::Public)?;
        let path = folder.join(CERTIFICATE_FILE);
        pem_files::write(&path, &self.certificate_chain_pem, Secrecy::Public)
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// As [`from_pem`](Self::from_pem); also when the key file can be read by others.
    pub fn load(folder: &Path) -> Result<Self, CredentialError> {
        let chain = pem_files::read(&folder.join(CERTIFICATE_FILE), Secrecy::Public)?;
        let key = pem_files::read(&folder.join(KEY_FILE), Secrecy::Private)?;
        let ca = pem_files::read(&folder.join(AUTHORITY_FILE), Secrecy::Public)?;
        Self::from_pem(chain.to_string(), key, ca.to_string())
    }

    pub(crate) fn chain_der(&self) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
        certificates(&self.certificate_chain_pem, "certificate chain")
    }

    pub(crate) fn ca_der(&self) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
        certificates(&self.ca_pem, "authority certificate")
    }

    pub(crate) fn key_der(&self) -> Result<PrivateKeyDer<'static>, CredentialError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|_| CredentialError::NotPem { what: "key" })
    }
}

/// The certificates of a PEM text, at least one.
pub(crate) fn certificates(
    pem: &str,
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let parsed: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).take(CHAIN_MAX + 1).collect();
    match parsed {
        Ok(list) if !list.is_empty() && list.len() <= CHAIN_MAX => Ok(list),
        _ => Err(CredentialError::NotPem { what }),
    }
}

/// Whether `key` is the private key of `certificate`.
pub(crate) fn check_key(
    certificate: &CertificateDer<'_>,
    key: &KeyPair,
) -> Result<(), CredentialError> {
    let certificate = EndEntityCert::try_from(certificate)
        .map_err(|_| CredentialError::NotPem { what: "certificate" })?;
    if certificate.subject_public_key_info().as_ref() == key.subject_public_key_info() {
        Ok(())
    } else {
        Err(CredentialError::KeyMismatch)
    }
}
