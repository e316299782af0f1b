//! What a key service and a custodian say to each other. Travels over mutual TLS only.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smalti_storage::keys::SecretName;
use std::fmt;
use zeroize::Zeroizing;

const VERSION: u8 = 1;

/// Bytes of a share. Wiped when dropped, and never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ShareBytes(pub(crate) Zeroizing<Vec<u8>>);

impl fmt::Debug for ShareBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("share")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Keep this share, which belongs to these commitments.
    Keep { secret: SecretName, share: ShareBytes, commitments: Vec<u8> },
    /// Hand the share out.
    Release { secret: SecretName },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Verified and durable.
    Kept,
    /// The share.
    Released(ShareBytes),
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
