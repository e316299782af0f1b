//! Why a device call failed, in terms of what the caller can do about it.

use smalti_nbd::{DeviceError, DeviceErrorKind};
use smalti_rowcommit::coordinator::OpError;
use smalti_storage::record::BLOCK_LEN;
use smalti_storage::seal::OpenError;

/// Why a device call failed. A failed write was carried out, in part or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// Another coordinator has the volume: the call may be repeated through that one.
    #[error("the coordinator of the volume was replaced")]
    Fenced,
    /// The session with the coordinator's node ended before the answer came: the call may be
    /// repeated once there is a new one.
    #[error("the session with the coordinator's node ended")]
    Disconnected,
    /// A store is full.
    #[error("no space left on a store")]
    NoSpace,
    /// Too few shards of a row can be read.
    #[error("too few shards of a row can be read")]
    Unreadable,
    /// The record of a block is not what was sealed as that block.
    #[error("the record of block {block} does not authenticate")]
    Forged {
        /// The block's number within the volume.
        block: u64,
    },
    /// The record of a block is older than what this gateway wrote there.
    #[error("the record of block {block} is older than what was written last")]
    Stale {
        /// The block's number within the volume.
        block: u64,
    },
    /// The record of a block is sealed under a key that is not here.
    #[error("there is no key for the record of block {block}")]
    NoKey {
        /// The block's number within the volume.
        block: u64,
    },
    /// The range does not lie within the volume.
    #[error("the request does not fit the volume")]
    Invalid,
    /// An invariant of the gateway does not hold; the log says which.
    #[error("internal error of the gateway")]
    Internal,
}

impl GatewayError {
    /// Whether the same call can succeed through another coordinator or session. A write then may
    /// have been carried out already.
    pub fn is_retry_elsewhere(&self) -> bool {
        matches!(self, Self::Fenced | Self::Disconnected)
    }

    /// The block that could not be read, if it is one.
    pub fn block(&self) -> Option<u64> {
        match self {
            Self::Forged { block } | Self::Stale { block } | Self::NoKey { block } => Some(*block),
            _ => None,
        }
    }

    pub(crate) fn opening(block: u64, error: &OpenError) -> Self {
        match error {
            OpenError::NoEpoch(..) => Self::NoKey { block },
            _ => Self::Forged { block },
        }
    }
}

impl From<OpError> for GatewayError {
    fn from(error: OpError) -> Self {
        match error {
            OpError::Fenced => Self::Fenced,
            OpError::NoSpace => Self::NoSpace,
            OpError::Unreadable => Self::Unreadable,
            OpError::Invalid => Self::Invalid,
            other => {
                tracing::error!(error = %other, "unknown error of the coordinator");
                Self::Internal
            }
        }
    }
}

impl From<GatewayError> for DeviceError {
    fn from(error: GatewayError) -> Self {
        let kind = match error {
            GatewayError::Fenced | GatewayError::Disconnected => DeviceErrorKind::ShuttingDown,
            GatewayError::NoSpace => DeviceErrorKind::NoSpace,
            GatewayError::Invalid => DeviceErrorKind::Invalid,
            GatewayError::Unreadable
            | GatewayError::Forged { .. }
            | GatewayError::Stale { .. }
            | GatewayError::NoKey { .. }
            | GatewayError::Internal => DeviceErrorKind::Io,
        };
        let device = Self::new(kind, error.to_string());
        match error.block().and_then(|block| block.checked_mul(BLOCK_LEN as u64)) {
            Some(offset) => device.at(offset),
            None => device,
        }
    }
}
