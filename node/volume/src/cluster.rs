//! How the functions of this crate reach the rest of a cluster.

use crate::error::VolumeError;
use futures::future::BoxFuture;
use smalti_gateway::{BlockDevice, Rows};
use smalti_map::placement::Candidate;
use smalti_map::{Custodians, Custody, Recovery};
use smalti_rowcommit::Time;
use smalti_storage::ids::{ClusterId, NodeId, VolumeId};
use smalti_storage::keys::{Commitments, KeyPart, SecretName, ShareName};
use std::sync::Arc;

/// A cluster, as whoever makes and opens volumes sees it.
pub trait Cluster: Send + Sync {
    /// Its identity, bound into every record.
    fn id(&self) -> ClusterId;

    /// The stores that shards can be put on.
    fn stores(&self) -> Vec<Candidate>;

    /// Who holds which share of the master secret.
    fn custody(&self) -> Custody;

    /// Who is to hold shares of new secrets.
    fn custodians(&self) -> Custodians;

    /// What new secrets are to be sealed to besides.
    fn recovery(&self) -> Option<Recovery>;

    /// The present, in seconds since 1970: what makes the keys of one key epoch differ from those
    /// of another.
    fn unix_seconds(&self) -> u64;

    /// Gives a custodian its share of a new secret, dealt in a share epoch. Verified and durable when the answer is `Ok`; otherwise the
    /// reason, in words.
    fn keep(
        &self,
        custodian: NodeId,
        secret: SecretName,
        share_epoch: u32,
        part: &KeyPart,
        commitments: &Commitments,
    ) -> BoxFuture<'_, Result<(), String>>;

    /// Asks a custodian for its share. What it gives is not trusted: the caller verifies it.
    fn release(
        &self,
        custodian: NodeId,
        share: ShareName,
    ) -> BoxFuture<'_, Result<KeyPart, String>>;

    /// Begins to use a volume whose updates are ordered here.
    fn session(&self, volume: VolumeId) -> BoxFuture<'_, Result<Session, VolumeError>>;
}

/// The right to write a volume: one attach of one gateway.
pub struct Session {
    /// Where its records are read and written.
    pub rows: Arc<dyn Rows>,
    /// The gateway's generation, never used before for this volume.
    pub generation: u32,
    /// The newest snapshot of the volume (0: none).
    pub snap: u32,
    /// The present, for the age of the first salt.
    pub now: Time,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// The volumes of a cluster, as whoever reads and writes them sees them.
pub trait Volumes: Send + Sync {
    /// The volume as a device of bytes, wherever its gateway is.
    fn device(&self, volume: VolumeId) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>, VolumeError>>;
}
