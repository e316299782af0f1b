//! Who coordinates a volume and which slots are in sync: the compare-and-set commands.

use super::invalid;
use crate::command::{Applied, GrowSlot, Rejection};
use crate::mutant::{Mutant, lives};
use crate::types::{ClusterMap, Coordinator, Group, Learner, Volume};
use smalti_storage::ids::{Epoch, GroupNo, Incarnation, NodeId, SlotSet, StoreId, VolumeNo};
use std::collections::BTreeSet;

impl ClusterMap {
    /// Takes stores out of the in-sync sets: of a group all that are named, or, where too few would
    /// be left, none of them. To take out some would not help those that wait for the others, and if
    /// one that was taken out came back first, it could not help them either.
    pub(super) fn shrink(
        &mut self,
        volume: VolumeNo,
        epoch: Epoch,
        stores: &[StoreId],
        to_data: bool,
    ) -> Result<Applied, Rejection> {
        let volume = self.planned_mut(volume, epoch)?;
        let next = volume.next_epoch()?;
        let mut changed = false;
        let mut refused = Vec::new();
        let fewest = u32::from(if to_data { volume.data } else { volume.min_insync });
        // Nothing is written before `changed` is set, so a refusal leaves no trace.
        for (no, group) in (0u16..).map(GroupNo).zip(&mut volume.groups) {
            // Only a takeover can tell whom an offline group may do without.
            let settled = !(volume.activated && group.offline);
            let out = stores.iter().filter(|_| settled).filter_map(|store| group.slot_of(*store));
            let out = out.collect::<SlotSet>().and(group.insync);
            let learners = group.learners.len();
            group.learners.retain(|_, learner| !stores.contains(&learner.store));
            changed |= group.learners.len() < learners;
            let enough = group.insync.len() >= fewest + out.len();
            if enough || lives(Mutant::ShrinkBelowData) {
                changed |= out != SlotSet::EMPTY;
                group.insync = group.insync.minus(out);
            } else if lives(Mutant::ShrinkInPart) {
                let spare = group.insync.len() - fewest.min(group.insync.len());
                let out = out.iter().take(spare as usize).collect::<SlotSet>();
                changed |= out != SlotSet::EMPTY;
                group.insync = group.insync.minus(out);
            } else {
                refused.push(no);
            }
        }
        if !changed {
            return Err(if refused.is_empty() {
                invalid("not in sync anywhere")
            } else {
                Rejection::MinInsync
            });
        }
        volume.epoch = if lives(Mutant::ShrinkSameEpoch) { epoch } else { next };
        Ok(Applied::Epoch { epoch: next, refused })
    }

    pub(super) fn elect(
        &mut self,
        volume: VolumeNo,
        epoch: Epoch,
        node: NodeId,
        incarnation: Incarnation,
    ) -> Result<Applied, Rejection> {
        self.planned(volume, epoch)?;
        let entry = self.nodes.get(&node).ok_or_else(|| invalid(format!("no node {node}")))?;
        // Incarnation 0 is a member that never registered, so nothing runs under it.
        if entry.incarnation != incarnation || incarnation == Incarnation(0) {
            return Err(Rejection::Incarnation);
        }
        let volume = self.planned_mut(volume, epoch)?;
        let next = volume.next_epoch()?;
        volume.seat(next, Coordinator { node, incarnation });
        Ok(done(next))
    }

    pub(super) fn activate(
        &mut self,
        volume: VolumeNo,
        epoch: Epoch,
        online: &[GroupNo],
    ) -> Result<Applied, Rejection> {
        let volume = self.taken_over(volume, epoch, online)?;
        // What watermarks say of a group begins with an epoch, as it ends with one.
        let epoch = if online.is_empty() { epoch } else { volume.next_epoch()? };
        volume.epoch = epoch;
        volume.activated = true;
        for no in online {
            group_mut(volume, *no)?.offline = false;
        }
        volume.note_settled();
        Ok(done(epoch))
    }

    /// The epoch ends with it: stores obey coordinators of their own map's epoch alone, so none of them
    /// believes a watermark of an epoch in which a group is offline and does not know that it is.
    pub(super) fn set_offline(
        &mut self,
        volume: VolumeNo,
        epoch: Epoch,
        groups: &[GroupNo],
    ) -> Result<Applied, Rejection> {
        let volume = self.taken_over(volume, epoch, groups)?;
        let next = volume.next_epoch()?;
        let stays = |(no, group): (GroupNo, &Group)| !group.offline && !groups.contains(&no);
        if groups.is_empty() || !(0u16..).map(GroupNo).zip(&volume.groups).any(stays) {
            return Err(invalid("no group is named, or none would be served"));
        }
        for no in groups {
            group_mut(volume, *no)?.offline = true;
        }
        volume.epoch = if lives(Mutant::OfflineSameEpoch) { epoch } else { next };
        Ok(done(next))
    }

    /// A volume whose coordinator is taking over, and has all these groups.
    fn taken_over(
        &mut self,
        volume: VolumeNo,
        epoch: Epoch,
        groups: &[GroupNo],
    ) -> Result<&mut Volume, Rejection> {
        let volume = self.planned_mut(volume, epoch)?;
        if volume.coordinator.is_none() {
            return Err(invalid("there is no coordinator to activate"));
        }
        if volume.activated {
            return Err(invalid("activated already"));
        }
        if let Some(no) = groups.iter().find(|no| volume.group(**no).is_none()) {
            return Err(invalid(format!("no group {no}")));
        }
        Ok(volume)
    }

    pub(super) fn add_learners(
        &mut self,
        volume: VolumeNo,
        epoch: Epoch,
        slots: &[GrowSlot],
    ) -> Result<Applied, Rejection> {
        let planned = self.growable(volume, epoch, slots)?;
        for GrowSlot { group: no, slot, store, .. } in slots {
            // It would have to be told that it is none any more, which takes an epoch.
            let other = planned.group(*no).and_then(|group| group.learners.get(slot));
            if other.is_some_and(|learner| learner.store != *store) {
                return Err(invalid(format!("{no}/{slot} has another learner")));
            }
        }
        let volume = self.planned_mut(volume, epoch)?;
        for grow in slots {
            let learner = Learner { store: grow.store, incarnation: grow.incarnation };
            group_mut(volume, grow.group)?.learners.insert(grow.slot, learner);
        }
        Ok(done(epoch))
    }

    pub(super) fn grow(
        &mut self,
        volume: VolumeNo,
        epoch: Epoch,
        slots: &[GrowSlot],
    ) -> Result<Applied, Rejection> {
        let planned = self.growable(volume, epoch, slots)?;
        for grow in slots {
            let expected = Learner { store: grow.store, incarnation: grow.incarnation };
            let learner =
                planned.group(grow.group).and_then(|group| group.learners.get(&grow.slot));
            if learner != Some(&expected) {
                return Err(invalid(format!("{}/{} is not such a learner", grow.group, grow.slot)));
            }
        }
        let volume = self.planned_mut(volume, epoch)?;
        let next = volume.next_epoch()?;
        for grow in slots {
            let group = group_mut(volume, grow.group)?;
            group.learners.remove(&grow.slot);
            group.insync = group.insync.with(grow.slot);
            group.insync_since.insert(grow.slot, next);
            group.replace(grow.slot, grow.store);
        }
        volume.epoch = next;
        Ok(done(next))
    }

    /// What `AddLearners` and `Grow` both demand: an activated coordinator, and each slot named once,
    /// with the store of the table, out of sync, or the one it is to move to, in its registered
    /// incarnation.
    fn growable(
        &self,
        volume: VolumeNo,
        epoch: Epoch,
        slots: &[GrowSlot],
    ) -> Result<&Volume, Rejection> {
        let volume = self.planned(volume, epoch)?;
        if !volume.activated {
            return Err(invalid("the coordinator has not finished its takeover"));
        }
        if slots.is_empty() {
            return Err(invalid("no slot is named"));
        }
        let mut seen = BTreeSet::new();
        for grow in slots {
            let GrowSlot { group: no, slot, store, incarnation } = *grow;
            let group = volume.group(no).ok_or_else(|| invalid(format!("no group {no}")))?;
            let moves = group.targets.get(&slot) == Some(&store);
            if !moves && group.slots.get(slot.index()) != Some(&store) {
                return Err(invalid(format!("{no}/{slot} is not a slot of store {store}")));
            }
            if !moves && group.insync.contains(slot) {
                return Err(invalid(format!("{no}/{slot} is in sync already")));
            }
            if !seen.insert((no, slot)) {
                return Err(invalid(format!("{no}/{slot} is named twice")));
            }
            let registered = self.stores.get(&store).map(|entry| entry.incarnation);
            if registered != Some(incarnation) && !lives(Mutant::GrowAnyStart) {
                return Err(Rejection::Incarnation);
            }
        }
        Ok(volume)
    }
}

impl Volume {
    /// Takes a store out of the in-sync sets whose disk is known not to be what its last run left
    /// behind, wherever enough others are left. What it has forgotten nobody needs to find out
    /// then; and were it counted, others that are only away could be taken out in its stead.
    pub(super) fn take_out(&mut self, store: StoreId) {
        let min_insync = u32::from(self.min_insync);
        let Ok(next) = self.next_epoch() else { return };
        for group in &mut self.groups {
            let slot = group.slot_of(store).filter(|slot| group.insync.contains(*slot));
            let Some(slot) = slot.filter(|_| group.insync.len() > min_insync) else { continue };
            group.insync = group.insync.without(slot);
            self.epoch = next;
        }
    }

    /// In this epoch, what was issued before it is decided in all groups that are served.
    pub(super) fn note_settled(&mut self) {
        let epoch = self.epoch;
        let served = self.groups.iter_mut().filter(|group| !group.offline);
        served.for_each(|group| group.settled = epoch);
    }

    pub(super) fn next_epoch(&self) -> Result<Epoch, Rejection> {
        self.epoch.0.checked_add(1).map(Epoch).ok_or_else(|| invalid("epochs are used up"))
    }

    /// An epoch begins with an election.
    pub(super) fn seat(&mut self, epoch: Epoch, coordinator: Coordinator) {
        self.epoch = epoch;
        self.coordinator = Some(coordinator);
        self.activated = false;
        self.writer_gen = epoch.0;
        // What a learner missed was known only to the coordinator that admitted it.
        for group in &mut self.groups {
            group.learners.clear();
        }
    }
}

pub(super) fn group_mut(volume: &mut Volume, no: GroupNo) -> Result<&mut Group, Rejection> {
    volume.groups.get_mut(usize::from(no.0)).ok_or_else(|| invalid(format!("no group {no}")))
}

pub(super) fn done(epoch: Epoch) -> Applied {
    Applied::Epoch { epoch, refused: Vec::new() }
}
