//! Recovery shares of a cluster in memory.

use super::MemoryCluster;
use crate::error::VolumeError;
use crate::metadata::ShardMetadata;
use smalti_map::{Applied, ClusterMap, Command, Custody, Recovery};
use smalti_storage::ids::{ClusterId, NodeId, VolumeId};
use smalti_storage::keys::{RecoveryShare, Secret, SecretName, get_key_parts};
use uuid::Uuid;

impl MemoryCluster {
    /// As [`new`](Self::new), with recovery shares: the lines that people keep come with it.
    ///
    /// # Panics
    /// Unless `2 <= threshold <= shares`.
    pub fn with_recovery(nodes: u8, threshold: u8, shares: u8) -> (Self, Vec<String>) {
        let cluster = ClusterId(Uuid::new_v4());
        let mut rng = rand::rng();
        let dealing = get_key_parts(&Secret::random(&mut rng), threshold, shares, &mut rng)
            .expect("so many of so many");
        let line = |part| RecoveryShare::new(cluster, part).to_text().to_string();
        let lines = dealing.parts.into_iter().map(line).collect();
        let commitments = dealing.commitments.to_bytes();
        let recovery = Recovery { threshold, shares, commitments };
        (Self::found(nodes, cluster, Some((recovery, dealing.commitments))), lines)
    }

    /// A custodian has no share of anything any more.
    pub fn lose_shares(&self, node: NodeId) {
        self.lock().shares.retain(|(of, _), _| *of != node);
    }

    /// Wants all secrets dealt anew to the custodians there are.
    ///
    /// # Errors
    /// When the map refuses it.
    pub fn new_share_epoch(&self) -> Result<(), VolumeError> {
        let plan = self.map().custodians;
        let (share_epoch, threshold) = (plan.share_epoch, plan.threshold);
        let nodes = plan.nodes().collect();
        self.accepted(&Command::SetCustodians {
            share_epoch,
            threshold,
            nodes,
            now: 1,
            new_master: false,
        })
    }

    /// Puts a dealing into the map instead of the one with the commitments `from`.
    ///
    /// # Errors
    /// When the map refuses it.
    pub fn take_custody(
        &self,
        secret: SecretName,
        from: Vec<u8>,
        custody: Custody,
    ) -> Result<(), VolumeError> {
        self.accepted(&Command::Reshare { secret, from, custody })
    }

    /// The map, as it is now.
    pub fn map(&self) -> ClusterMap {
        self.lock().map.clone()
    }

    /// What describes a volume now.
    ///
    /// # Errors
    /// When there is no such volume.
    pub fn metadata(&self, volume: VolumeId) -> Result<ShardMetadata, VolumeError> {
        ShardMetadata::of(self.lock().volume(volume)?)
    }

    fn accepted(&self, command: &Command) -> Result<(), VolumeError> {
        match self.lock().apply(command) {
            Applied::Rejected(why) => Err(VolumeError::Metadata(why.to_string())),
            _ => Ok(()),
        }
    }
}
