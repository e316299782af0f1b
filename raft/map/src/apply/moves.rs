//! Slots that move from one store to another.
//!
//! A move is a wish in the map, which outlives coordinators: `Move` says which store is to hold a
//! slot, the coordinator admits that store as a learner, and its growth replaces the one that held
//! the slot. That one keeps its data until the group is clean.

use super::invalid;
use super::membership::{done, group_mut};
use crate::command::{Applied, MoveSlot, Rejection};
use crate::types::{ClusterMap, Group};
use smalti_storage::ids::{Epoch, GroupNo, Slot, StoreId, VolumeNo};

impl ClusterMap {
    pub(super) fn move_slots(
        &mut self,
        no: VolumeNo,
        moves: &[MoveSlot],
    ) -> Result<Applied, Rejection> {
        let volume = self.volumes.get(&no).ok_or(Rejection::NoVolume(no))?;
        let mut changed = volume.clone();
        let mut dismissed = false;
        for MoveSlot { group, slot, store } in moves {
            let place = format!("{group}/{slot}");
            let group = group_mut(&mut changed, *group)?;
            let holder = group.slots.get(slot.index()).copied();
            let holder = holder.ok_or_else(|| invalid(format!("no slot {place}")))?;
            if !self.stores.contains_key(store) {
                return Err(invalid(format!("no store {store}")));
            }
            let before = group.targets.get(slot).copied();
            if *store == holder {
                group.targets.remove(slot);
            } else if group.slot_of(*store).is_some() {
                return Err(invalid(format!("store {store} holds another slot of {place}")));
            } else {
                group.targets.insert(*slot, *store);
            }
            let target = group.targets.get(slot).copied();
            dismissed |= before.is_some() && before != target;
            let learner = group.learners.get(slot).map(|learner| learner.store);
            if learner.is_some_and(|learner| learner != holder && Some(learner) != target) {
                group.learners.remove(slot);
            }
        }
        if dismissed {
            // What it was sent until now must not reach it after it has deleted what it had.
            changed.epoch = volume.next_epoch()?;
        }
        changed.check().map_err(Rejection::Invalid)?;
        self.check_volume(&changed).map_err(Rejection::Invalid)?;
        let epoch = changed.epoch;
        self.volumes.insert(no, changed);
        Ok(done(epoch))
    }

    pub(super) fn forget_holders(
        &mut self,
        volume: VolumeNo,
        epoch: Epoch,
        groups: &[GroupNo],
    ) -> Result<Applied, Rejection> {
        let planned = self.planned(volume, epoch)?;
        if !planned.activated {
            return Err(invalid("the coordinator has not finished its takeover"));
        }
        let all = planned.all_slots();
        for no in groups {
            let group = planned.group(*no).ok_or_else(|| invalid(format!("no group {no}")))?;
            if group.insync != all || !group.learners.is_empty() {
                return Err(invalid(format!("{no} is not clean")));
            }
        }
        if groups.is_empty() {
            return Err(invalid("no group is named"));
        }
        let volume = self.planned_mut(volume, epoch)?;
        // Frames from before can not reach a store that has deleted what it had.
        volume.epoch = volume.next_epoch()?;
        let epoch = volume.epoch;
        for no in groups {
            group_mut(volume, *no)?.old_holders.clear();
        }
        Ok(done(epoch))
    }
}

impl Group {
    /// Makes the store hold the slot, if another one does.
    pub(super) fn replace(&mut self, slot: Slot, store: StoreId) {
        let Some(holder) = self.slots.get_mut(slot.index()) else { return };
        if *holder != store {
            let old = std::mem::replace(holder, store);
            self.old_holders.remove(&store);
            self.old_holders.insert(old);
            self.targets.remove(&slot);
        }
    }
}
