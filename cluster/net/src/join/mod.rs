//! How a node that has no certificate yet becomes one of the cluster.
//!
//! ```text
//! joiner                                              node that has the authority's key
//! dials with a connection id that says so  ---------> TLS 1.3, ALPN `smalti-join/1`, no client cert
//! accepts only the pinned authority's nodes <--------
//! ask | proof of the token | proof of its key -------> JoinHost: token, map, signature
//! checks what it got                       <--------- grant, or a text that says why not
//! ```
//!
//! J1. A joiner meets nothing but this: it has a server configuration of its own, so that what lets
//!     members in never has to reckon with a peer that has no certificate.
//! J2. Both proofs are signatures over keying material of this very connection. Relayed, recorded or
//!     seen by whoever answers, they are worth nothing anywhere else.
//! J3. What strangers can make us do is bounded: so many at once, fewer of one source, from addresses
//!     that answer, in a few seconds, with messages of a few KiB.

mod dial;
mod gate;
mod host;
mod pin;
mod proof;
mod renew;
mod token;
mod wire;

pub use dial::{Farewell, JoinError, Joined, join};
pub use host::{JoinAsk, JoinDenial, JoinHost};
pub use proof::JoinerKey;
pub use renew::{RenewalError, RenewalHost};
pub use token::{JoinToken, TokenError};
pub use wire::{JoinAddresses, JoinGrant, JoinPeer, JoinWish};

#[cfg(test)]
pub(crate) use dial::one_exchange;
pub(crate) use host::Hosting;
pub(crate) use renew::ask as ask_certificate;

#[cfg(test)]
mod tests;

use crate::endpoint::Shared;
use quinn::Incoming;
use ring::digest;
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use webpki::EndEntityCert;

/// Names this protocol and its version.
pub(crate) const ALPN: &[u8] = b"smalti-join/1";

/// How a first packet of a joiner is known before anything in it can be read. Whoever else begins so
/// gets no further than a joiner would.
const MARK: [u8; 8] = *b"smltjoin";

/// Takes those who come by a way of their own; gives members back.
pub(crate) fn take(shared: &Arc<Shared>, incoming: Incoming) -> Option<Incoming> {
    let first = incoming.orig_dst_cid();
    if first.starts_with(&MARK) {
        host::take(shared, incoming);
    } else if first.starts_with(&renew::MARK) {
        renew::take(shared, incoming);
    } else {
        return Some(incoming);
    }
    None
}

/// SHA-256 of the public key of an authority's certificate.
pub(crate) fn pin_of(authority: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let certificate = EndEntityCert::try_from(authority).ok()?;
    let key = certificate.subject_public_key_info();
    digest::digest(&digest::SHA256, key.as_ref()).as_ref().try_into().ok()
}
