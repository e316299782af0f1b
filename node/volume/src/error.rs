//! Why a volume can not be cut, opened or read.

use smalti_gateway::GatewayError;
use smalti_map::placement::PlacementError;
use smalti_storage::geometry::GeometryError;
use smalti_storage::ids::{KeyEpochNo, NodeId, VolumeId};
use smalti_storage::keys::{NoRandomness, PartError};

/// Why a volume can not be cut, opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// The size is none a volume can have.
    #[error("size {0} is not a positive multiple of 512")]
    Size(u64),
    /// The numbers of shards or their size make no volume.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// There are too few nodes for the shards.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The keys can not be made or opened.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The metadata is of another volume.
    #[error("the metadata is of volume {found}, not of {asked}")]
    OtherVolume {
        /// The volume asked for.
        asked: VolumeId,
        /// The one the metadata describes.
        found: VolumeId,
    },
    /// The metadata contradicts itself.
    #[error("the shard metadata makes no sense: {0}")]
    Metadata(String),
    /// No such volume.
    #[error("there is no volume {0}")]
    NoVolume(VolumeId),
    /// Nobody serves the volume now.
    #[error("the volume is not served: {0}")]
    Unavailable(String),
    /// A read or write failed.
    #[error(transparent)]
    Device(#[from] GatewayError),
    /// What was read could not be written to where it should go.
    #[error("write the volume's contents: {0}")]
    Output(#[from] std::io::Error),
}

/// Why keys are not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// Too few custodians gave a good share.
    #[error("sealed: {have} of {need} custodians gave their share{}", list(.problems))]
    Sealed {
        /// Good shares.
        have: usize,
        /// Shares needed.
        need: usize,
        /// Who did not, and why.
        problems: Vec<String>,
    },
    /// A custodian did not take its share of a new secret.
    #[error("custodian {node} did not take its share: {reason}")]
    NotKept {
        /// Who.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// What the map holds is not what was wrapped.
    #[error("key epoch {key_epoch} does not open: {reason}")]
    Damaged {
        /// Which.
        key_epoch: KeyEpochNo,
        /// Why.
        reason: String,
    },
    /// The custodians are such that no secret can be split over them.
    #[error(transparent)]
    Split(PartError),
    /// The map's side of the recovery secret can not be read.
    #[error("the recovery secret: {0}")]
    Recovery(PartError),
    /// The system has no randomness to give.
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

fn list(problems: &[String]) -> String {
    if problems.is_empty() { String::new() } else { format!(" ({})", problems.join("; ")) }
}
