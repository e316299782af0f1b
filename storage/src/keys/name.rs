//! Names of split secrets.

use crate::ids::{KeyEpochNo, VolumeId};
use serde::{Deserialize, Serialize};
use std::fmt;

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
