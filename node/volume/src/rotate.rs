//! New keys for a volume.

use crate::cluster::Cluster;
use crate::custody::make_next_keys;
use crate::error::VolumeError;
use crate::metadata::ShardMetadata;
use smalti_map::KeyEpoch;
use smalti_storage::ids::VolumeId;
use smalti_storage::secret::wipe_stack_after_use;

/// Makes the next key epoch of a volume: a shard key for every column, derived from the master key and the
/// time, wrapped under a new secret of which every custodian has its share when this returns. Nothing uses
/// it before the cluster map has it; blocks that were sealed before stay readable with the older keys.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// use bytes::Bytes;
/// use smalti_gateway::BlockDevice;
/// use smalti_storage::ids::VolumeId;
/// use smalti_volume::memory::MemoryCluster;
/// use smalti_volume::{VolumeShape, read_data, rotate_keys, shard_volume, unshard_volume};
/// use uuid::Uuid;
///
/// let cluster = MemoryCluster::new(3);
/// let id = VolumeId(Uuid::new_v4());
/// let before = shard_volume(&cluster, id, VolumeShape::of_size(8 << 20), 2, 1).await?;
/// cluster.add_volume("v", &before)?;
/// let volume = unshard_volume(&cluster, id, &before).await?;
/// volume.write(0, Bytes::from_static(b"under the first keys")).await?;
///
/// let key_epoch = rotate_keys(&cluster, id, &before).await?;
/// assert_eq!(key_epoch.no.0, 2);
/// let after = cluster.begin_key_epoch(id, key_epoch)?;
///
/// // The gateway of before is not let write any more; a new one has both keys.
/// assert!(volume.write(0, Bytes::from_static(b"too late")).await.is_err());
/// drop(volume);
/// unshard_volume(&cluster, id, &after).await?;
/// assert_eq!(read_data(&cluster, id, 0, 20).await?, b"under the first keys"[..]);
/// # Ok::<(), smalti_volume::VolumeError>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When the metadata is of another volume, too few custodians answer to put the master key and the current
/// wrapping key together, or one of them does not take its share of the new one.
pub async fn rotate_keys(
    cluster: &dyn Cluster,
    volume_id: VolumeId,
    metadata: &ShardMetadata,
) -> Result<KeyEpoch, VolumeError> {
    metadata.expect(volume_id)?;
    let made = make_next_keys(cluster, metadata).await;
    wipe_stack_after_use();
    Ok(made?)
}
