//! Making and removing volumes.

use super::{invalid, limits};
use crate::command::{Applied, NewVolume, Rejection};
use crate::scrub::Scrubs;
use crate::types::{ClusterMap, Group, Volume};
use smalti_storage::ids::{Epoch, SlotSet, VolumeId, VolumeNo};
use std::collections::{BTreeMap, BTreeSet};

impl ClusterMap {
    pub(super) fn create_volume(&mut self, new: &NewVolume) -> Result<Applied, Rejection> {
        if self.volumes.len() >= limits::VOLUMES {
            return Err(invalid(format!("a cluster has at most {} volumes", limits::VOLUMES)));
        }
        if self.volume_named(&new.name).is_some() {
            return Err(invalid(format!("there is a volume {} already", new.name)));
        }
        if self.volumes.values().any(|volume| volume.id == new.id) {
            return Err(invalid(format!("there is a volume with the identity {} already", new.id)));
        }
        // Custodians destroy the shares of what is gone, whenever they hear of it.
        if self.retired_keys.iter().any(|(id, _)| *id == new.id) {
            return Err(invalid(format!("there was a volume with the identity {}", new.id)));
        }
        let no = VolumeNo(self.next_volume);
        let following = self.next_volume.checked_add(1);
        let following = following.ok_or_else(|| invalid("volume numbers are used up"))?;
        let slots = new.data.checked_add(new.parity).filter(|slots| *slots <= limits::SLOTS);
        let slots = slots.ok_or_else(|| {
            invalid(format!("{} + {} slots are more than {}", new.data, new.parity, limits::SLOTS))
        })?;
        let group = |table: &Vec<_>| Group {
            slots: table.clone(),
            insync: SlotSet::first(slots),
            learners: BTreeMap::new(),
            targets: BTreeMap::new(),
            old_holders: BTreeSet::new(),
            insync_since: BTreeMap::new(),
            settled: Epoch::default(),
            offline: false,
        };
        let volume = Volume {
            no,
            id: new.id,
            name: new.name.clone(),
            size: new.size,
            data: new.data,
            parity: new.parity,
            shard_size: new.shard_size,
            min_insync: new.min_insync,
            read_mode: new.read_mode,
            epoch: Epoch(1),
            coordinator: None,
            activated: false,
            writer_gen: 0,
            snap_seq: 0,
            snapshots: BTreeMap::new(),
            snapshots_deleted: 0,
            key_epoch: new.key_epoch.no,
            key_epochs: BTreeMap::from([(new.key_epoch.no, new.key_epoch.clone())]),
            rotate: false,
            revoked: None,
            groups: new.groups.iter().map(group).collect(),
            scrubs: Scrubs::default(),
        };
        // The rules for a new volume are the invariants of every volume: one list of them.
        volume.check().map_err(Rejection::Invalid)?;
        self.check_volume(&volume).map_err(Rejection::Invalid)?;

        self.volumes.insert(no, volume);
        self.next_volume = following;
        Ok(Applied::Created(no))
    }

    pub(super) fn delete_volume(
        &mut self,
        volume: VolumeNo,
        id: VolumeId,
    ) -> Result<Applied, Rejection> {
        let found = self.volumes.get(&volume).ok_or(Rejection::NoVolume(volume))?;
        if found.id != id {
            return Err(invalid(format!("{volume} is {}, not {id}", found.id)));
        }
        if let Some(gone) = self.volumes.remove(&volume) {
            self.retired_keys.extend(gone.key_epochs.keys().map(|no| (gone.id, *no)));
        }
        Ok(Applied::Done)
    }
}
