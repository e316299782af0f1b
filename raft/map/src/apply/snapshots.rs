//! Making and deleting snapshots.
//!
//! Both raise the epoch, so that stores and coordinator agree in every message about which
//! snapshots there are: a store that takes an update keeps what the newest snapshot needs, and one
//! that has let go of what a deleted snapshot needed answers nobody who still reads it.

use super::{invalid, limits};
use crate::command::{Applied, Rejection};
use crate::types::{ClusterMap, Snapshot};
use smalti_storage::ids::{Epoch, VolumeNo};

impl ClusterMap {
    pub(super) fn add_snapshot(
        &mut self,
        volume: VolumeNo,
        epoch: Epoch,
        name: &str,
        created: u64,
    ) -> Result<Applied, Rejection> {
        let planned = self.planned(volume, epoch)?;
        if !planned.activated {
            return Err(invalid("the coordinator has not finished its takeover"));
        }
        crate::check::check_name(name).map_err(Rejection::Invalid)?;
        if planned.snapshot_named(name).is_some() {
            return Err(invalid(format!("there is a snapshot {name} already")));
        }
        if planned.snapshots.len() >= limits::SNAPSHOTS {
            return Err(invalid(format!("a volume has at most {} snapshots", limits::SNAPSHOTS)));
        }
        let snap = planned.snap_seq.checked_add(1);
        let snap = snap.ok_or_else(|| invalid("snapshot numbers are used up"))?;
        let next = planned.next_epoch()?;

        let volume = self.planned_mut(volume, epoch)?;
        volume.epoch = next;
        volume.snap_seq = snap;
        volume.snapshots.insert(snap, Snapshot { name: name.to_owned(), created });
        volume.note_settled();
        Ok(Applied::Epoch { epoch: next, refused: Vec::new() })
    }

    pub(super) fn drop_snapshot(
        &mut self,
        volume: VolumeNo,
        snap: u32,
    ) -> Result<Applied, Rejection> {
        let found = self.volumes.get_mut(&volume).ok_or(Rejection::NoVolume(volume))?;
        if !found.snapshots.contains_key(&snap) {
            return Err(invalid(format!("no snapshot {snap}")));
        }
        found.epoch = found.next_epoch()?;
        found.snapshots.remove(&snap);
        found.snapshots_deleted += 1;
        Ok(Applied::Epoch { epoch: found.epoch, refused: Vec::new() })
    }
}
