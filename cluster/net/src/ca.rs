//! The cluster's certificate authority: signs the certificates by which nodes know each other.

use crate::{
    credentials::{NodeCredentials, certificates},
    error::CredentialError,
    identity::{PeerIdentity, authority_cluster, authority_name},
    join::{JoinerKey, pin_of},
    pem_files::{self, Secrecy},
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, string::Ia5String,
};
use smalti_storage::ids::{ClusterId, NodeId};
use std::{
    fmt, fs,
    path::Path,
    time::{Duration, SystemTime},
};
use zeroize::Zeroizing;

const CERTIFICATE_FILE: &str = "ca.crt";
const KEY_FILE: &str = "ca.key";

/// When a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Refused before this instant.
    pub not_before: SystemTime,
    /// Refused after this instant.
    pub not_after: SystemTime,
}

impl Validity {
    /// Ten years: for nodes that may be stopped for long, all of them.
    pub const LONG: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

    /// How far clocks of nodes may be apart when a fresh certificate is first used.
    const SKEW: Duration = Duration::from_secs(24 * 3600);

    /// From `now`, less a day for clocks that are behind, for `duration`.
    pub fn starting(now: SystemTime, duration: Duration) -> Self {
        Self { not_before: now - Self::SKEW, not_after: now + duration }
    }

    /// When a certificate that was made by [`starting`](Self::starting) is to be renewed: at two thirds
    /// of its life.
    pub fn renewal(&self) -> SystemTime {
        let whole = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_after - whole.saturating_sub(Self::SKEW) / 3
    }
}

/// The authority of one cluster: its certificate and its private key.
///
/// Whoever holds it can make nodes, so it is kept where the operator decides; a running node needs
/// it only to let others join.
pub struct ClusterCa {
    cluster: ClusterId,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterCa").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl ClusterCa {
    /// A new authority with a fresh ECDSA P-256 key, good for [`Validity::LONG`] from now.
    pub fn generate(cluster: ClusterId) -> Result<Self, CredentialError> {
        let key = KeyPair::generate().map_err(CredentialError::signing)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&format!("smalti cluster {cluster}"));
        params.subject_alt_names = vec![uri(&authority_name(cluster))?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        apply(&mut params, Validity::starting(SystemTime::now(), Validity::LONG));
        let certificate = params.self_signed(&key).map_err(CredentialError::signing)?;
        let issuer = Issuer::new(params, key);
        Ok(Self { cluster, certificate_pem: certificate.pem(), issuer })
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The authority's certificate: public, and what every node must have.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// What a joiner is to know the authority by: SHA-256 of its public key.
    ///
    /// # Errors
    /// The certificate is not one.
    pub fn pin(&self) -> Result<[u8; 32], CredentialError> {
        let der = certificates(&self.certificate_pem, "authority certificate")?;
        let pin = der.first().and_then(pin_of);
        pin.ok_or(CredentialError::NotPem { what: "authority certificate" })
    }

    /// The authority's private key as PEM.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    /// Reads an authority back from its certificate and key.
    ///
    /// # Errors
    /// Not PEM, not an authority of a cluster, or a key that is not the certificate's.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, CredentialError> {
        let der = certificates(certificate_pem, "authority certificate")?;
        let [certificate] = der.as_slice() else {
            return Err(CredentialError::NotPem { what: "single authority certificate" });
        };
        let cluster = authority_cluster(certificate).map_err(CredentialError::Identity)?;
        let key = KeyPair::from_pem(key_pem)
            .map_err(|_| CredentialError::NotPem { what: "authority key" })?;
        crate::credentials::check_key(certificate, &key)?;
        let issuer =
            Issuer::from_ca_cert_der(certificate, key).map_err(CredentialError::signing)?;
        Ok(Self { cluster, certificate_pem: certificate_pem.to_owned(), issuer })
    }

    /// Writes `ca.crt` and `ca.key` (mode 0600) into `folder`, which must exist.
    pub fn save(&self, folder: &Path) -> Result<(), CredentialError> {
        pem_files::write(&folder.join(KEY_FILE), &self.key_pem(), Secrecy::Private)?;
        pem_files::write(&folder.join(CERTIFICATE_FILE), &self.certificate_pem, Secrecy::Public)
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// As [`from_pem`](Self::from_pem); also when the key file can be read by others.
    pub fn load(folder: &Path) -> Result<Self, CredentialError> {
        let certificate = pem_files::read(&folder.join(CERTIFICATE_FILE), Secrecy::Public)?;
        let key = pem_files::read(&folder.join(KEY_FILE), Secrecy::Private)?;
        Self::from_pem(&certificate, &key)
    }

    /// Whether `folder` holds an authority.
    pub fn exists(folder: &Path) -> bool {
        fs::exists(folder.join(KEY_FILE)).unwrap_or(false)
    }

    /// Credentials for `node`, good for [`Validity::LONG`] from now. `name` is for people only.
    pub fn issue(&self, node: NodeId, name: &str) -> Result<NodeCredentials, CredentialError> {
        self.issue_for(node, name, Validity::starting(SystemTime::now(), Validity::LONG))
    }

    /// Credentials for `node` that hold as long as `validity` says.
    pub fn issue_for(
        &self,
        node: NodeId,
        name: &str,
        validity: Validity,
    ) -> Result<NodeCredentials, CredentialError> {
        let key = KeyPair::generate().map_err(CredentialError::signing)?;
        NodeCredentials::from_pem(
            self.certify(node, name, &key, validity)?,
            Zeroizing::new(key.serialize_pem()),
            self.certificate_pem.clone(),
        )
    }

    /// A certificate for `node`, whose key is and stays elsewhere.
    pub fn sign(
        &self,
        node: NodeId,
        name: &str,
        key: &JoinerKey,
        validity: Validity,
    ) -> Result<String, CredentialError> {
        self.certify(node, name, key, validity)
    }

    fn certify(
        &self,
        node: NodeId,
        name: &str,
        key: &impl PublicKeyData,
        validity: Validity,
    ) -> Result<String, CredentialError> {
        let identity = PeerIdentity { cluster: self.cluster, node };
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name);
        params.subject_alt_names = vec![uri(&identity.to_string())?];
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        apply(&mut params, validity);
        let certificate = params.signed_by(key, &self.issuer).map_err(CredentialError::signing)?;
        Ok(certificate.pem())
    }
}

fn apply(params: &mut CertificateParams, validity: Validity) {
    params.not_before = validity.not_before.into();
    params.not_after = validity.not_after.into();
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn uri(name: &str) -> Result<SanType, CredentialError> {
    Ok(SanType::URI(Ia5String::try_from(name).map_err(CredentialError::signing)?))
}
