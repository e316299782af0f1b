//! Secrets had whole again, by people who have enough shares of the recovery secret, and dealt anew.

use crate::cluster::Cluster;
use crate::custody::deal;
use crate::error::KeysError;
use smalti_map::{ClusterMap, Custody};
use smalti_storage::keys::{Commitments, Secret, SecretName, open_for_recovery, system_rng};

/// A secret of the map, as the recovery secret opens it.
#[derive(Debug)]
pub struct Opened {
    /// Which.
    pub name: SecretName,
    /// The secret, or why it does not open.
    pub secret: Result<Secret, String>,
}

/// Opens every secret of a cluster that was sealed for recovery.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// use smalti_storage::ids::{NodeId, VolumeId};
/// use smalti_storage::keys::combine_recovery_shares;
/// use smalti_volume::memory::MemoryCluster;
/// use smalti_volume::{
///     Cluster, VolumeShape, deal_anew, open_sealed, shard_volume, unshard_volume,
/// };
/// use uuid::Uuid;
///
/// let (cluster, lines) = MemoryCluster::with_recovery(3, 2, 3);
/// let id = VolumeId(Uuid::new_v4());
/// let volume = shard_volume(&cluster, id, VolumeShape::of_size(8 << 20), 2, 1).await?;
/// cluster.add_volume("v", &volume)?;
///
/// // Two of three custodians lose all they have.
/// cluster.lose_shares(NodeId(1));
/// cluster.lose_shares(NodeId(3));
/// assert!(unshard_volume(&cluster, id, &volume).await.is_err());
///
/// // Two of three people bring their lines.
/// let public = cluster.recovery().expect("it has recovery shares").commitments;
/// let secret = combine_recovery_shares(&lines[1..], cluster.id(), &public.try_into()?);
/// cluster.new_share_epoch()?;
/// for opened in open_sealed(&cluster.map(), &secret.expect("they are good")) {
///     let (name, secret) = (opened.name, opened.secret.expect("it opens"));
///     let before = cluster.map().custody_of(&name).expect("it is there").clone();
///     let custody = deal_anew(&cluster, &secret, name, &before).await?;
///     cluster.take_custody(name, before.commitments, custody)?;
/// }
/// unshard_volume(&cluster, id, &cluster.metadata(id)?).await?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn open_sealed(map: &ClusterMap, recovery: &Secret) -> Vec<Opened> {
    let open = |(name, custody): (SecretName, &Custody)| {
        let words = |error: &dyn std::fmt::Display| error.to_string();
        let commitments =
            Commitments::from_bytes(&custody.commitments).map_err(|error| words(&error));
        let secret = commitments.and_then(|of| {
            open_for_recovery(recovery, &custody.sealed_for_recovery, map.cluster, name, &of)
                .map_err(|error| words(&error))
        });
        Opened { name, secret }
    };
    map.custodies().map(open).collect()
}

/// Deals a secret anew, to those who are to hold shares. Each has its own, durably, when this returns; nothing of
/// it counts before the map has taken the custody that comes back instead of `before`.
///
/// # Errors
/// When one does not take its share.
pub async fn deal_anew(
    cluster: &dyn Cluster,
    secret: &Secret,
    name: SecretName,
    before: &Custody,
) -> Result<Custody, KeysError> {
    let sealed = before.sealed_for_recovery.clone();
    deal(cluster, secret, &cluster.custodians(), name, sealed, &mut system_rng()?).await
}
