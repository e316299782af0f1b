//! Who catches up on which slot: admission of learners.

use super::catchup::{Learning, Stage};
use super::{Coordinator, Phase, Place, Purpose};
use crate::msg::Ask;
use crate::time::Time;
use smalti_map::mutant::{Mutant, lives};
use smalti_map::{Command, Group, GrowSlot};
use smalti_storage::ids::{GroupNo, Incarnation, Slot, StoreId};
use std::collections::BTreeSet;

impl Coordinator {
    /// The map or a link changed: adopts learners, and asks to admit slots that are out of sync
    /// and reachable.
    pub(super) fn catchup_on_map(&mut self) {
        if self.phase != Phase::Active {
            return;
        }
        self.catchup_retain();
        self.retain_suspects();
        self.call_candidates();
        let Some(volume) = &self.volume else { return };
        let mut admit = Vec::new();
        let mut adopt = Vec::new();
        let served = (0u16..).map(GroupNo).zip(&volume.groups).filter(|(_, group)| !group.offline);
        for (no, group) in served {
            for slot in volume.all_slots().iter() {
                let fit = |store: &StoreId| {
                    self.is_reached(*store)
                        && !self.is_kept_away(no, *store)
                        && (!self.is_unsettled(*store) || lives(Mutant::AdmitUnsettled))
                };
                let store = Self::candidates(group, slot).find(fit);
                let Some(store) = store else { continue };
                let Some(entry) = self.map.stores.get(&store) else { continue };
                let incarnation = entry.incarnation;
                let admitted = group
                    .learners
                    .get(&slot)
                    .is_some_and(|l| l.store == store && l.incarnation == incarnation);
                if !admitted {
                    admit.push(GrowSlot { group: no, slot, store, incarnation });
                } else if !self.catchup.is_learner((no, slot), store) {
                    adopt.push(((no, slot), store, incarnation));
                }
            }
        }
        for (place, store, incarnation) in adopt {
            self.adopt_learner(place, store, incarnation);
        }
        if !admit.is_empty() {
            let (volume, epoch) = (self.config.volume, self.epoch);
            self.propose("learn", Command::AddLearners { volume, epoch, slots: admit });
        }
        self.forget_holders();
        self.doubt_restarted();
        self.settle_offline();
    }

    /// The stores that may catch up on a slot, the first that is reached before the others: the one
    /// that holds the slot and is out of sync, and the one that is to hold it. While one is a learner
    /// no other can be.
    fn candidates(group: &Group, slot: Slot) -> impl Iterator<Item = StoreId> {
        let learner = group.learners.get(&slot).map(|learner| learner.store);
        let others = Self::waiting(group, slot).filter(move |_| learner.is_none());
        learner.into_iter().chain(others)
    }

    /// The one that holds the slot and is out of sync, and the one that is to hold it.
    fn waiting(group: &Group, slot: Slot) -> impl Iterator<Item = StoreId> {
        let holder = group.slots.get(slot.index()).filter(|_| !group.insync.contains(slot));
        [holder, group.targets.get(&slot)].into_iter().flatten().copied()
    }

    /// Whether the slot moves to the store, which did not hold it, and the operator wants no moves. One
    /// goes on where writes wait for it, and where it keeps the one that holds the slot and has come back
    /// from catching up.
    pub(super) fn is_paused(&self, (no, slot): Place, store: StoreId) -> bool {
        let group = self.volume.as_ref().and_then(|volume| volume.group(no));
        let Some(group) = group.filter(|_| self.map.moves_paused) else { return false };
        let Some(holder) = group.slots.get(slot.index()).filter(|holder| **holder != store) else {
            return false;
        };
        group.insync.contains(slot) || !self.is_reached(*holder) && self.may_acknowledge(no)
    }

    /// Whether a store answers. To have a session is not enough: a node whose disk was replaced takes
    /// those with the store that it had, and drops them.
    pub(super) fn is_reached(&self, store: StoreId) -> bool {
        self.links.has_answered(store)
            && !self.links.is_silent(store, self.now, self.config.suspect_after)
    }

    /// Whether the store is a learner in another one's way: while it is one, no other can be, and
    /// another one that may hold the slot answers.
    pub(super) fn is_in_the_way(&self, store: StoreId) -> bool {
        let groups = self.volume.iter().flat_map(|volume| &volume.groups);
        groups.flat_map(|group| group.learners.iter().map(move |(slot, l)| (group, *slot, l))).any(
            |(group, slot, learner)| {
                let mut others = Self::waiting(group, slot).filter(|other| *other != store);
                learner.store == store && others.any(|other| self.is_reached(other))
            },
        )
    }

    /// Asks those that have not answered anything in their session yet, and would have no reason to.
    fn call_candidates(&mut self) {
        let Some(volume) = &self.volume else { return };
        let slots = volume.all_slots();
        let of_slot = |group, slot| Self::candidates(group, slot).chain(Self::waiting(group, slot));
        let of_group = |group| slots.iter().flat_map(move |slot| of_slot(group, slot));
        let offline = volume.groups.iter().filter(|group| group.offline);
        let missed = offline.flat_map(Group::insync_stores);
        let all: BTreeSet<StoreId> =
            volume.groups.iter().flat_map(of_group).chain(missed).collect();
        let uncalled: BTreeSet<StoreId> =
            all.into_iter().filter(|store| self.links.is_uncalled(*store)).collect();
        for store in uncalled {
            self.ask_store(store, None, Ask::Nop, Purpose::Forget);
        }
    }

    fn adopt_learner(&mut self, place: Place, store: StoreId, incarnation: Incarnation) {
        self.catchup.lives += 1;
        let learning = Learning {
            store,
            incarnation,
            stage: Stage::Barrier { after: self.last_issued, opened: false },
            behind: BTreeSet::new(),
            repairing: 0,
            repaired: 0,
            failed: BTreeSet::new(),
            retry_at: Time::default(),
            vain: 0,
            lost: false,
            full_until: Time::default(),
            refused: None,
            marked: BTreeSet::new(),
            outstanding: 0,
            life: self.catchup.lives,
            rebuilt: self.store_of(place.0, place.1) != Some(store),
        };
        self.catchup.learners.insert(place, learning);
        let (group, slot) = place;
        self.ask_at(group, (slot, store), Ask::Nop, Purpose::Opened { group, slot });
    }
}
