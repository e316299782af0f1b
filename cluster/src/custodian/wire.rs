//! What custodians are asked, and answer. Travels over mutual TLS only.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smalti_storage::keys::{SecretName, ShareName};
use std::fmt;
use zeroize::Zeroizing;

const VERSION: u8 = 2;

/// Secrets that one request may name.
pub(crate) const SECRETS_MAX: usize = 64;

/// Log entries that one answer may have.
pub(crate) const ENTRIES_MAX: usize = 256;

/// Bytes of a share. Wiped when dropped, and never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ShareBytes(pub(crate) Zeroizing<Vec<u8>>);

impl fmt::Debug for ShareBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("share")
    }
}

/// One dealer and the commitments of its dealing, encoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DealerBytes {
    pub(crate) index: u8,
    pub(crate) commitments: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Keep this share of a new secret, which belongs to these commitments.
    Keep { secret: SecretName, share_epoch: u32, share: ShareBytes, commitments: Vec<u8> },
    /// Hand the share out.
    Release { share: ShareName },
    /// Deal the share on to those who are to have shares from `share_epoch` on.
    DealOn { share: ShareName, share_epoch: u32 },
    /// What a dealer gives to one of them.
    Take { from: ShareName, share_epoch: u32, dealer: u8, share: ShareBytes, commitments: Vec<u8> },
    /// Make a share of what these dealers gave, and keep it.
    Combine { from: ShareName, share_epoch: u32, dealers: Vec<DealerBytes> },
    /// Prove to have these shares.
    Prove { challenge: [u8; 32], shares: Vec<ShareName> },
    /// Entries of the log, after one.
    Audit { after: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Verified; and durable, but for what was taken of a dealer.
    Kept,
    /// The share.
    Released(ShareBytes),
    /// Every new custodian has taken what it was given.
    DealtOn { commitments: Vec<u8> },
    /// A proof of each share, or why there is none.
    Proofs(Vec<Result<Vec<u8>, String>>),
    /// Lines of the log.
    Entries(Vec<String>),
    /// Refused, in words.
    Refused(String),
}

macro_rules! wire {
    ($name:ident) => {
        impl $name {
            pub(crate) fn encode(&self) -> Bytes {
                postcard::to_extend(self, vec![VERSION])
                    .expect("a vector grows and every field is serialisable")
                    .into()
            }

            pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
                let (version, body) = bytes.split_first()?;
                if *version != VERSION {
                    return None;
                }
                match postcard::take_from_bytes(body) {
                    Ok((value, [])) => Some(value),
                    _ => None,
                }
            }
        }
    };
}

wire!(Ask);
wire!(Answer);
