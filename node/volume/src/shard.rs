//! Cutting a volume, and opening what was cut.

use crate::cluster::{Cluster, Session};
use crate::custody::{make_keys, open_keys};
use crate::error::{KeysError, VolumeError};
use crate::metadata::ShardMetadata;
use smalti_gateway::{Gateway, GatewayConfig, GatewayLimits};
use smalti_map::placement::place_groups;
use smalti_storage::geometry::{GROUPS_DEFAULT, Geometry, SHARD_SIZE_DEFAULT};
use smalti_storage::ids::VolumeId;
use smalti_storage::keys::system_rng;
use smalti_storage::seal::SealIdentity;
use smalti_storage::secret::wipe_stack_after_use;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How large a volume is, and how large its shards are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeShape {
    /// Bytes of the volume; a positive multiple of 512.
    pub size: u64,
    /// Mean bytes of a shard: a power of two from 64 KiB to 64 MiB.
    pub shard_size: u32,
}

impl VolumeShape {
    /// A volume of `size` bytes, in shards of 1 MiB.
    pub const fn of_size(size: u64) -> Self {
        Self { size, shard_size: SHARD_SIZE_DEFAULT }
    }
}

/// Cuts a volume into `shard_count` data shards per stripe and adds `parity_count` parity shards:
/// chooses a store for every shard, derives a key for every data shard, wraps these keys, and
/// splits the wrapping key over the custodians.
///
/// Where stripes begin and which block goes to which shard is fixed by a pseudorandom function
/// under a key of the volume, which is wrapped too; nothing of it depends on the volume's size. No
/// space is taken yet: a block that was never written has no record.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// use smalti_storage::ids::VolumeId;
/// use smalti_volume::memory::MemoryCluster;
/// use smalti_volume::{VolumeShape, shard_volume};
/// use uuid::Uuid;
///
/// let cluster = MemoryCluster::new(3);
/// let id = VolumeId(Uuid::new_v4());
/// let metadata = shard_volume(&cluster, id, VolumeShape::of_size(1 << 30), 2, 1).await?;
///
/// assert_eq!(metadata.geometry.to_string(), "2+1");
/// // Every column is on a store, no two of a group on the same one, and data has a wrapped key.
/// for shard in metadata.shards() {
///     assert_eq!(shard.wrapped_key.is_some(), shard.slot.0 < 2);
/// }
/// # Ok::<(), smalti_volume::VolumeError>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When `shape` or the numbers are none a volume can have, when there are fewer nodes than
/// `shard_count + parity_count`, when too few custodians answer to put the master key together, or
/// when one of them does not take its share of the new wrapping key.
pub async fn shard_volume(
    cluster: &dyn Cluster,
    volume_id: VolumeId,
    shape: VolumeShape,
    shard_count: u8,
    parity_count: u8,
) -> Result<ShardMetadata, VolumeError> {
    let VolumeShape { size, shard_size } = shape;
    if size == 0 || !size.is_multiple_of(512) {
        return Err(VolumeError::Size(size));
    }
    let geometry = Geometry::new(shard_count, parity_count, shard_size, GROUPS_DEFAULT)?;
    let stores = cluster.stores();
    let locations = place_groups(volume_id, GROUPS_DEFAULT, shard_count, parity_count, &stores)?;
    let made = make_keys(cluster, volume_id, &geometry).await;
    wipe_stack_after_use();
    let epoch = made?;
    Ok(ShardMetadata {
        volume: volume_id,
        size,
        geometry,
        locations,
        key_epoch: epoch.no,
        key_epochs: BTreeMap::from([(epoch.no, epoch)]),
    })
}

/// Gives the volume back: opens the wrapped keys with the help of enough custodians, and makes of
/// the shards one virtual volume that is read and written in bytes.
///
/// The keys are in the returned [`Gateway`] and nowhere else; dropping it wipes them.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// use bytes::Bytes;
/// use smalti_gateway::BlockDevice;
/// use smalti_storage::ids::{NodeId, VolumeId};
/// use smalti_volume::memory::MemoryCluster;
/// use smalti_volume::{VolumeShape, shard_volume, unshard_volume};
/// use uuid::Uuid;
///
/// let cluster = MemoryCluster::new(3);
/// let id = VolumeId(Uuid::new_v4());
/// let metadata = shard_volume(&cluster, id, VolumeShape::of_size(1 << 30), 2, 1).await?;
/// cluster.add_volume("v", &metadata)?;
///
/// let volume = unshard_volume(&cluster, id, &metadata).await?;
/// volume.write(12_345, Bytes::from_static(b"anywhere, any length")).await?;
/// volume.read(12_345, 20).await?;
/// drop(volume);
///
/// // Two of three custodians are needed; one alone opens nothing.
/// cluster.stop_node(NodeId(2));
/// cluster.stop_node(NodeId(3));
/// let error = unshard_volume(&cluster, id, &metadata).await.expect_err("sealed");
/// assert!(error.to_string().starts_with("sealed: 1 of 2 custodians gave their share"));
/// # Ok::<(), smalti_volume::VolumeError>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When the metadata is of another volume or does not open, too few custodians give a good share,
/// or the volume's updates are not ordered here.
///
/// # Panics
/// Outside of a tokio runtime.
pub async fn unshard_volume(
    cluster: &dyn Cluster,
    volume_id: VolumeId,
    metadata: &ShardMetadata,
) -> Result<Gateway, VolumeError> {
    metadata.expect(volume_id)?;
    let keys = open_keys(cluster, metadata).await?;
    let random = system_rng().map_err(KeysError::from)?;
    let Session { rows, generation, snap, now } = cluster.session(volume_id).await?;
    let config = GatewayConfig {
        geometry: metadata.geometry,
        size: metadata.size,
        identity: SealIdentity { cluster: cluster.id(), volume: volume_id },
        generation,
        first_seq: 1,
        snap,
        now,
        limits: GatewayLimits::default(),
    };
    let gateway = Gateway::new(config, Arc::new(keys), rows, Box::new(random));
    // Now, and not only when the thread has nothing to do: a future is moved to where it stays as a whole, with
    // whatever lay where it has not been anything yet.
    wipe_stack_after_use();
    Ok(gateway)
}
