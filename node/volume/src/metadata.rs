//! What the cluster keeps of a cut volume.

use crate::error::VolumeError;
use serde::{Deserialize, Serialize};
use smalti_map::{KeyEpoch, NewVolume, ReadMode, Volume};
use smalti_storage::geometry::Geometry;
use smalti_storage::ids::{GroupNo, KeyEpochNo, Slot, StoreId, VolumeId};
use std::collections::BTreeMap;

/// All that is needed, beside the shards themselves and enough custodians, to put a volume
/// together: where its shards are, their wrapped keys, and what its parity is. Public: it says
/// nothing about the contents, and not even which block is where, without the custodians.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMetadata {
    /// The volume.
    pub volume: VolumeId,
    /// Its size in bytes.
    pub size: u64,
    /// Data and parity shards, shard size, groups.
    pub geometry: Geometry,
    /// The store of each slot `0..n+k`, for each group.
    pub locations: Vec<Vec<StoreId>>,
    /// The key epoch that new blocks are sealed under.
    pub key_epoch: KeyEpochNo,
    /// The wrapped keys of every key epoch that may be in use, and who can open them.
    pub key_epochs: BTreeMap<KeyEpochNo, KeyEpoch>,
}

/// The shards of one group that stand in one slot: a column, all on one store and, if they hold
/// data, under one wrapped key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard<'a> {
    /// The group.
    pub group: GroupNo,
    /// The slot: data in `0..n`, parity in `n..n+k`.
    pub slot: Slot,
    /// The store that holds it.
    pub store: StoreId,
    /// Its key of the current key epoch, wrapped; none for parity, which is computed from sealed
    /// records and needs none.
    pub wrapped_key: Option<&'a [u8]>,
}

impl ShardMetadata {
    /// The metadata of a volume of the map.
    ///
    /// # Errors
    /// When the map's numbers make no geometry.
    pub fn of(volume: &Volume) -> Result<Self, VolumeError> {
        let groups = u16::try_from(volume.groups.len())
            .map_err(|_| VolumeError::Metadata(format!("{} groups", volume.groups.len())))?;
        Ok(Self {
            volume: volume.id,
            size: volume.size,
            geometry: Geometry::new(volume.data, volume.parity, volume.shard_size, groups)?,
            locations: volume.groups.iter().map(|group| group.slots.clone()).collect(),
            key_epoch: volume.key_epoch,
            key_epochs: volume.key_epochs.clone(),
        })
    }

    /// What puts a volume that was just cut into the map, under a name. Its groups take writes
    /// while `min_insync` of their slots are in sync; unless told, that is n with one parity
    /// shard, and one to spare with more.
    ///
    /// # Errors
    /// When the current key epoch is missing.
    pub fn into_new_volume(
        mut self,
        name: String,
        min_insync: Option<u8>,
        read_mode: ReadMode,
    ) -> Result<NewVolume, VolumeError> {
        let key_epoch = self.key_epochs.remove(&self.key_epoch).ok_or_else(|| {
            VolumeError::Metadata(format!("no keys of key epoch {}", self.key_epoch))
        })?;
        let Geometry { data, parity, shard_size, .. } = self.geometry;
        Ok(NewVolume {
            id: self.volume,
            name,
            size: self.size,
            data,
            parity,
            shard_size,
            min_insync: min_insync.unwrap_or(if parity >= 2 { data + 1 } else { data }),
            read_mode,
            groups: self.locations,
            key_epoch,
        })
    }

    /// Every column: where it is, and its wrapped key.
    pub fn shards(&self) -> impl Iterator<Item = Shard<'_>> {
        let keys = self.key_epochs.get(&self.key_epoch).map(|epoch| epoch.shard_keys.as_slice());
        let data = usize::from(self.geometry.data);
        (0u16..).zip(&self.locations).flat_map(move |(group, table)| {
            (0u8..).zip(table).map(move |(slot, store)| {
                let column = usize::from(group) * data + usize::from(slot);
                let key = keys.filter(|_| usize::from(slot) < data).and_then(|k| k.get(column));
                Shard {
                    group: GroupNo(group),
                    slot: Slot(slot),
                    store: *store,
                    wrapped_key: key.map(Vec::as_slice),
                }
            })
        })
    }

    /// That it is of this volume.
    pub(crate) fn expect(&self, volume: VolumeId) -> Result<(), VolumeError> {
        if self.volume == volume {
            return Ok(());
        }
        Err(VolumeError::OtherVolume { asked: volume, found: self.volume })
    }
}
