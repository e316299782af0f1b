//! The ends of catching up: slots grow into the in-sync sets, and those that held them before are let
//! go of.

use super::catchup::{Learning, Stage};
use super::{Coordinator, Place};
use smalti_map::mutant::{Mutant, lives};
use smalti_map::{Command, Group, GroupScrub, GrowSlot};
use smalti_storage::ids::{GroupNo, Incarnation, StoreId};
use std::collections::{BTreeMap, BTreeSet};

impl Coordinator {
    /// Once a group is whole, nothing of it is in doubt and nothing waits to be put right, those that held a
    /// slot of it before may delete what they have.
    pub(super) fn forget_holders(&mut self) {
        let Some(volume) = &self.volume else { return };
        let all = volume.all_slots();
        let clean = |(no, group): &(GroupNo, &Group)| {
            let whole = group.insync == all && group.learners.is_empty() && !group.offline;
            let lost = self.lost_rows.iter().any(|row| row.group == *no);
            let wrong = self.catchup.unrepaired.iter().any(|(row, _)| row.group == *no)
                || self.distrusted.iter().any(|(row, _)| row.group == *no);
            // What an earlier coordinator knew of, as far as a scrub has told.
            let told = volume.scrubs.groups.get(no).is_some_and(|scrub| scrub.unclear > 0);
            let doubt = lost || wrong || told || self.suspects.in_group(*no);
            !group.old_holders.is_empty() && whole && !doubt
        };
        let numbered = (0u16..).map(GroupNo).zip(&volume.groups);
        let groups: Vec<GroupNo> = numbered.filter(clean).map(|(no, _)| no).collect();
        if !groups.is_empty() && !lives(Mutant::KeepHolders) {
            let (volume, epoch) = (self.config.volume, self.epoch);
            self.propose("forget", Command::ForgetHolders { volume, epoch, groups });
        }
    }

    /// Those whose growth may be proposed. Where a slot moves and lacks what could not be made, the map says first
    /// that something of its group is wrong: else the next coordinator, who knows of nothing, might let whoever held
    /// it delete what may be the last of that.
    fn noted_as_lost(
        &mut self,
        ready: Vec<(Place, StoreId, Incarnation)>,
    ) -> Vec<(Place, StoreId, Incarnation)> {
        let Some(volume) = &self.volume else { return Vec::new() };
        let told = |no: &GroupNo| volume.scrubs.groups.get(no).is_some_and(|s| s.unclear > 0);
        let untold = |place: &Place, store: StoreId| {
            let lost = self.catchup.learners.get(place).is_some_and(|learning| learning.lost);
            let moves = self.store_of(place.0, place.1) != Some(store);
            lost && moves && !told(&place.0)
        };
        let (wait, ready): (Vec<_>, Vec<_>) =
            ready.into_iter().partition(|(place, store, _)| untold(place, *store));
        let groups = wait.iter().map(|((no, _), ..)| {
            let last = volume.scrubs.groups.get(no).copied().unwrap_or_default();
            (*no, GroupScrub { unclear: 1, ..last })
        });
        let groups: BTreeMap<GroupNo, GroupScrub> = groups.collect();
        if !groups.is_empty() {
            let (volume, epoch) = (self.config.volume, self.epoch);
            let groups = groups.into_iter().collect();
            self.propose("note", Command::NoteScrubs { volume, epoch, groups });
        }
        ready
    }

    /// Whether a slot may be taken from whoever holds it: what that one has of a row that is lost may be what
    /// it is decided with.
    pub(super) fn may_grow(&self, (no, slot): Place, store: StoreId) -> bool {
        self.store_of(no, slot) == Some(store) || !self.lost_rows.iter().any(|row| row.group == no)
    }

    pub(super) fn propose_growth(&mut self) {
        // All slots of one store in one step: each step is an epoch.
        let ready = |l: &Learning| l.is_growing() && (l.is_level() || lives(Mutant::GrowBehind));
        // Of a store that is kept out of some groups, whose moves are paused, or that can not be given all of
        // some group, others need not wait for those.
        let comes = |place: Place, l: &Learning| {
            let paused = self.is_paused(place, l.store);
            let stays = self.is_kept_away(place.0, l.store) || paused || l.is_stuck(self.now);
            l.is_growing() || !stays
        };
        let learners = || {
            let all = self.catchup.learners.iter();
            all.filter(|(place, l)| self.may_grow(**place, l.store) && comes(**place, l))
        };
        let waiting: BTreeSet<StoreId> =
            learners().filter(|(_, l)| !ready(l)).map(|(_, l)| l.store).collect();
        let ready: Vec<(Place, StoreId, Incarnation)> = learners()
            .filter(|(_, l)| !waiting.contains(&l.store))
            .map(|(place, l)| (*place, l.store, l.incarnation))
            .collect();
        let ready = self.noted_as_lost(ready);
        if ready.is_empty() {
            return;
        }
        let slots = ready
            .iter()
            .map(|((group, slot), store, incarnation)| GrowSlot {
                group: *group,
                slot: *slot,
                store: *store,
                incarnation: *incarnation,
            })
            .collect();
        let (volume, epoch) = (self.config.volume, self.epoch);
        if self.propose("grow", Command::Grow { volume, epoch, slots }) {
            for (place, ..) in ready {
                if let Some(learning) = self.catchup.learners.get_mut(&place) {
                    learning.stage = Stage::Growing { proposed: Some(epoch) };
                }
            }
        }
    }
}
