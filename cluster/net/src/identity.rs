//! Who a certificate speaks for: the `smalti://CLUSTER/node/ID` name in it.

use crate::error::IdentityError;
use rustls::pki_types::CertificateDer;
use smalti_storage::ids::{ClusterId, NodeId};
use std::{fmt, str::FromStr};
use uuid::Uuid;
use webpki::EndEntityCert;

const SCHEME: &str = "smalti://";

/// A node of a cluster, as its certificate names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// The cluster whose authority signed the certificate.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/node/{}", self.cluster.0.hyphenated(), self.node.0)
    }
}

impl FromStr for PeerIdentity {
    type Err = IdentityError;

    /// Reads exactly what `Display` writes; any other spelling of the same name is refused, so
    /// that two different texts never mean one node.
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let malformed = || IdentityError::Malformed { name: shortened(text) };
        let rest = text.strip_prefix(SCHEME).ok_or_else(malformed)?;
        let (cluster, node) = rest.split_once("/node/").ok_or_else(malformed)?;
        let identity = Self {
            cluster: ClusterId(Uuid::try_parse(cluster).map_err(|_| malformed())?),
            node: NodeId(node.parse().map_err(|_| malformed())?),
        };
        if identity.to_string() == text { Ok(identity) } else { Err(malformed()) }
    }
}

impl PeerIdentity {
    /// The node a certificate was issued to.
    ///
    /// Says nothing about who signed it: verify the chain first.
    pub(crate) fn of_certificate(der: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        only_name(der)?.parse()
    }
}

/// The name of a cluster's authority in its own certificate.
pub(crate) fn authority_name(cluster: ClusterId) -> String {
    format!("{SCHEME}{}/ca", cluster.0.hyphenated())
}

/// The cluster an authority's certificate is for.
pub(crate) fn authority_cluster(der: &CertificateDer<'_>) -> Result<ClusterId, IdentityError> {
    let name = only_name(der)?;
    let malformed = || IdentityError::Malformed { name: shortened(&name) };
    let cluster = name
        .strip_prefix(SCHEME)
        .and_then(|rest| rest.strip_suffix("/ca"))
        .and_then(|uuid| Uuid::try_parse(uuid).ok())
        .map(ClusterId)
        .ok_or_else(malformed)?;
    if authority_name(cluster) == name { Ok(cluster) } else { Err(malformed()) }
}

/// The one name of our scheme in the certificate.
fn only_name(der: &CertificateDer<'_>) -> Result<String, IdentityError> {
    let certificate = EndEntityCert::try_from(der).map_err(|_| IdentityError::Unreadable)?;
    let mut names = certificate.valid_uri_names().filter(|name| name.starts_with(SCHEME));
    let name = names.next().ok_or(IdentityError::Missing)?.to_owned();
    // With two names it would depend on the reader whom the certificate speaks for.
    if names.next().is_some() { Err(IdentityError::Ambiguous) } else { Ok(name) }
}

/// At most 80 characters of a name that came from outside, for an error text.
fn shortened(name: &str) -> String {
    name.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_round_trip(cluster in any::<u128>(), node in any::<u64>()) {
            let identity =
                PeerIdentity { cluster: ClusterId(Uuid::from_u128(cluster)), node: NodeId(node) };
            prop_assert_eq!(identity.to_string().parse::<PeerIdentity>().ok(), Some(identity));
        }

        #[test]
        fn any_text_is_refused_or_canonical(text in "(smalti://)?[0-9a-f/nodeA-F+-]{0,60}") {
            if let Ok(identity) = text.parse::<PeerIdentity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        let uuid = "0190163d-8694-739b-aea5-966c26f8ad91";
        assert!(format!("smalti://{uuid}/node/7").parse::<PeerIdentity>().is_ok());
        for text in [
            format!("smalti://{uuid}/node/07"),
            format!("smalti://{uuid}/node/+7"),
            format!("smalti://{uuid}/node/7/"),
            format!("smalti://{}/node/7", uuid.to_uppercase()),
            format!("smalti://{}/node/7", uuid.replace('-', "")),
            format!("smalti://{uuid}/node/18446744073709551616"),
            format!("SMALTI://{uuid}/node/7"),
            String::new(),
        ] {
            assert!(text.parse::<PeerIdentity>().is_err(), "{text}");
        }
    }
}
