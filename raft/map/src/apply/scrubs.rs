//! Scrubs that are asked for and that have ended, and stores that had something wrong.

use super::invalid;
use crate::command::{Applied, Rejection};
use crate::scrub::GroupScrub;
use crate::types::ClusterMap;
use smalti_storage::ids::{Epoch, GroupNo, StoreId, VolumeNo};

impl ClusterMap {
    pub(super) fn ask_scrub(&mut self, volume: VolumeNo) -> Result<Applied, Rejection> {
        let found = self.volumes.get_mut(&volume).ok_or(Rejection::NoVolume(volume))?;
        let asked = found.scrubs.asked.checked_add(1);
        found.scrubs.asked = asked.ok_or_else(|| invalid("scrubs can not be counted any more"))?;
        Ok(Applied::Done)
    }

    pub(super) fn note_scrubs(
        &mut self,
        volume: VolumeNo,
        epoch: Epoch,
        groups: &[(GroupNo, GroupScrub)],
    ) -> Result<Applied, Rejection> {
        let planned = self.planned(volume, epoch)?;
        for (group, scrub) in groups {
            if planned.group(*group).is_none() {
                return Err(invalid(format!("no group {group}")));
            }
            if scrub.asked > planned.scrubs.asked {
                return Err(invalid(format!("a scrub of {group} that nobody asked for")));
            }
        }
        self.planned_mut(volume, epoch)?.scrubs.groups.extend(groups.iter().copied());
        Ok(Applied::Done)
    }

    /// Of stores that are not known any more nothing is noted.
    pub(super) fn note_faults(&mut self, at: u64, faults: &[(StoreId, u32)]) -> Applied {
        for (store, faults) in faults {
            if let Some(entry) = self.stores.get_mut(store) {
                entry.faults.add(at, *faults);
            }
        }
        Applied::Done
    }
}
