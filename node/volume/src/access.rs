//! Reading a volume by its identity: a piece of it, or all.

use crate::cluster::Volumes;
use crate::error::VolumeError;
use crate::metadata::ShardMetadata;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use smalti_gateway::{BlockDevice, GatewayError};
use smalti_nbd::{ReadReply, Segment};
use smalti_storage::ids::VolumeId;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Bytes fetched at once.
const WINDOW: u32 = 1 << 20;
/// Windows under way at once: enough that stores, network and opening overlap.
const WINDOWS_AHEAD: usize = 4;

/// Reads `size` bytes at byte `offset` of a volume: finds the shards of every block, fetches them,
/// rebuilds from parity what is missing or damaged, opens and assembles. What was never written
/// reads as zeroes.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// use bytes::Bytes;
/// use smalti_storage::ids::{NodeId, VolumeId};
/// use smalti_volume::memory::MemoryCluster;
/// use smalti_volume::{Volumes, VolumeShape, read_data, shard_volume};
/// use uuid::Uuid;
///
/// let cluster = MemoryCluster::new(3);
/// let id = VolumeId(Uuid::new_v4());
/// let metadata = shard_volume(&cluster, id, VolumeShape::of_size(1 << 30), 2, 1).await?;
/// cluster.add_volume("v", &metadata)?;
/// cluster.device(id).await?.write(1000, Bytes::from_static(b"mosaic")).await?;
///
/// // With a third of all shards gone, the rest says the same.
/// cluster.stop_node(NodeId(3));
/// assert_eq!(read_data(&cluster, id, 998, 10).await?, b"\0\0mosaic\0\0"[..]);
/// # Ok::<(), smalti_volume::VolumeError>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When there is no such volume or nobody serves it, the range does not lie within it, or fewer
/// than n shards of a row can be read.
pub async fn read_data(
    volumes: &dyn Volumes,
    volume_id: VolumeId,
    offset: u64,
    size: u64,
) -> Result<Bytes, VolumeError> {
    let device = volumes.device(volume_id).await?;
    // What does not fit into memory is not asked for: reconstruct_volume is for that.
    let total = usize::try_from(size).map_err(|_| VolumeError::Device(GatewayError::Invalid))?;
    let end = offset.checked_add(size).ok_or(VolumeError::Device(GatewayError::Invalid))?;
    // One look before the buffer is made: a size beyond the volume must not cost memory.
    if total > 0 {
        device.read(end - 1, 1).await?;
    } else {
        device.read(offset, 0).await?;
    }
    let mut data = BytesMut::with_capacity(total);
    let mut pieces = windows(device.as_ref(), offset..end);
    while let Some(reply) = pieces.try_next().await? {
        for segment in reply.segments() {
            match segment {
                Segment::Data(bytes) => data.extend_from_slice(bytes),
                Segment::Zero(length) => data.resize(data.len() + *length as usize, 0),
            }
        }
    }
    Ok(data.freeze())
}

/// Writes all of a volume, in order, to `out`: fetches the shards from their nodes, rebuilds the
/// missing ones from parity, opens and assembles. The number of bytes is returned; it is the size
/// of the volume. Writes of others meanwhile show or not, each block as a whole.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// use bytes::Bytes;
/// use smalti_storage::ids::{NodeId, VolumeId};
/// use smalti_volume::memory::MemoryCluster;
/// use smalti_volume::{Volumes, VolumeShape, reconstruct_volume, shard_volume};
/// use uuid::Uuid;
///
/// let cluster = MemoryCluster::new(5);
/// let id = VolumeId(Uuid::new_v4());
/// let metadata = shard_volume(&cluster, id, VolumeShape::of_size(8 << 20), 3, 2).await?;
/// cluster.add_volume("v", &metadata)?;
/// cluster.device(id).await?.write(7 << 20, Bytes::from_static(b"tessera")).await?;
///
/// // Any n of the n+k shards of a row will do.
/// cluster.stop_node(NodeId(4));
/// let mut image = Vec::new();
/// assert_eq!(reconstruct_volume(&cluster, id, &metadata, &mut image).await?, 8 << 20);
/// assert_eq!(&image[7 << 20..][..7], b"tessera");
/// # Ok::<(), smalti_volume::VolumeError>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`read_data`]; when the metadata is of another volume; when `out` fails. `out` then has a
/// part of the volume.
pub async fn reconstruct_volume<W: AsyncWrite + Unpin + Send>(
    volumes: &dyn Volumes,
    volume_id: VolumeId,
    metadata: &ShardMetadata,
    out: &mut W,
) -> Result<u64, VolumeError> {
    metadata.expect(volume_id)?;
    let device = volumes.device(volume_id).await?;
    let zeroes = Bytes::from(vec![0; WINDOW as usize]);
    let mut pieces = windows(device.as_ref(), 0..metadata.size);
    let mut written = 0;
    while let Some(reply) = pieces.try_next().await? {
        for segment in reply.segments() {
            let bytes = match segment {
                Segment::Data(bytes) => bytes.clone(),
                Segment::Zero(length) => zeroes.slice(..*length as usize),
            };
            out.write_all(&bytes).await?;
            written += bytes.len() as u64;
        }
    }
    out.flush().await?;
    Ok(written)
}

/// The contents of a range, in order, a few windows ahead of whoever takes them.
fn windows(
    device: &dyn BlockDevice,
    range: std::ops::Range<u64>,
) -> impl futures::Stream<Item = Result<ReadReply, GatewayError>> + Send + Unpin {
    let window = u64::from(WINDOW);
    let count = (range.end - range.start).div_ceil(window);
    let calls = (0..count).map(move |at| {
        let begin = range.start + at * window;
        let length = (range.end - begin).min(window);
        device.read(begin, u32::try_from(length).unwrap_or(WINDOW))
    });
    stream::iter(calls).buffered(WINDOWS_AHEAD)
}
