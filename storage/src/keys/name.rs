//! Names of split secrets, and of the dealings in which they are split.

use crate::ids::{KeyEpochNo, VolumeId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// Which secret a share is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SecretName {
    /// The cluster's master secret.
    Master,
    /// The wrapping secret of one key epoch of a volume.
    Wrapping {
        /// The volume.
        volume: VolumeId,
        /// The key epoch.
        key_epoch: KeyEpochNo,
    },
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Master => f.write_str("master secret"),
            Self::Wrapping { volume, key_epoch } => {
                write!(f, "wrapping secret of volume {volume}, key epoch {key_epoch}")
            }
        }
    }
}

/// Which dealing of a secret a part is of: the first half of the SHA-256 of its commitments, which no two
/// dealings have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dealt([u8; 16]);

impl Dealt {
    /// The dealing with these commitments, encoded as the map has them.
    pub fn of(commitments: &[u8]) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&Sha256::digest(commitments)[..16]);
        Self(half)
    }
}

impl fmt::Display for Dealt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Which share a custodian has: of what, and of which dealing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShareName {
    /// The secret.
    pub secret: SecretName,
    /// The share epoch in which it was dealt.
    pub share_epoch: u32,
    /// The dealing.
    pub dealing: Dealt,
}

impl fmt::Display for ShareName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { secret, share_epoch, dealing } = self;
        write!(f, "{secret}, share epoch {share_epoch}, dealing {dealing}")
    }
}

/// Not what [`Dealt`] is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the digest of a dealing: 32 hexadecimal digits")]
pub struct NotDealt;

impl FromStr for Dealt {
    type Err = NotDealt;

    fn from_str(text: &str) -> Result<Self, NotDealt> {
        let digits =
            text.len() == 32 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        let number = u128::from_str_radix(text, 16).map_err(|_| NotDealt)?;
        if digits { Ok(Self(number.to_be_bytes())) } else { Err(NotDealt) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dealing_is_read_as_it_was_written() {
        let dealt = Dealt::of(b"commitments");
        assert_eq!(dealt.to_string().parse(), Ok(dealt));
        assert_ne!(dealt, Dealt::of(b"commitment"));
        let upper = dealt.to_string().to_uppercase();
        for wrong in ["", "00", "+0000000000000000000000000000001", upper.as_str()] {
            assert_eq!(wrong.parse::<Dealt>(), Err(NotDealt), "{wrong}");
        }
    }
}
