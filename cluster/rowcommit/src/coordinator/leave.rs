//! Taking silent stores out of sync.
//!
//! S1. Of a group all stores that are silent go, or none: to take out one would not help who waits for
//!     the other, and if it came back first it would no longer count.
//! S2. Nobody goes before all that would remain have answered a request made since it came to light
//!     who is to go: one of them may have gone just then too, and be about to come back without what
//!     it held.
//! S3. Stores without which fewer than `min_insync` would remain go only after
//!     [`stall_patience`](super::CoordinatorConfig::stall_patience), not while one of those that remain may
//!     have forgotten something, and never any without which fewer would remain than there are data
//!     slots. Nothing of their group is written then until it has grown again.
//! S5. A store that answers, but far later than others, goes where every group of it has a slot to spare
//!     even then, and comes back when it is as fast as they are, or where it is needed.
//! U2. While one of a group's slots is a suspect whose disk may have gone back, another store of it is
//!     taken out only after [`power_patience`](super::CoordinatorConfig::power_patience).

use super::links::OVERDUE;
use super::{Action, Alarm, Coordinator, Pending, Phase, Purpose};
use crate::msg::Ask;
use crate::time::Time;
use smalti_map::mutant::{Mutant, lives};
use smalti_map::{Command, Group, Volume};
use smalti_storage::ids::{GroupNo, SlotSet, StoreId};
use std::collections::BTreeSet;

/// When all have promised, nobody is waited for longer than this many times the usual.
const LONGEST: u32 = 4;

impl Coordinator {
    /// What an answer should have come to long ago, from stores that may go on answering else.
    fn overdue(&self) -> impl Iterator<Item = &Pending> {
        let limit = OVERDUE * self.patience();
        let overdue =
            move |p: &&Pending| !p.ask.is_read() && !p.held && self.now.since(p.sent_at) > limit;
        self.pending.values().filter(overdue)
    }

    /// When the oldest of that was asked.
    fn overdue_from(&self, store: StoreId) -> Option<Time> {
        self.overdue().filter(|p| p.store == store).map(|p| p.sent_at).min()
    }

    /// Takes silent stores out, where enough others remain; silent learners begin anew. Those that
    /// remain have to be there: if one of them had gone meanwhile, and its disk came back without what
    /// it held, whoever was taken out before would be the one that is missed. Where that may have
    /// happened before, it takes longer (U2).
    pub(super) fn suspect_silent(&mut self) {
        let patience = self.patience();
        let mut silent: Vec<StoreId> = self.overdue().map(|p| p.store).collect();
        let quiet = |store: &&StoreId| self.links.is_silent(**store, self.now, patience);
        silent.extend(self.links.links.keys().filter(quiet));
        silent.sort_unstable();
        silent.dedup();
        for store in &silent {
            self.catchup_silent(*store);
        }
        let held = self.held_back(&silent);
        let mut leave = silent.clone();
        leave.retain(|store| !held.contains(store));
        let to_data = !self.may_shrink(&leave, false);
        if to_data {
            let early = self.too_early(&leave);
            leave.retain(|store| !early.contains(store));
        }
        if self.may_shrink(&leave, to_data) {
            if self.would_remain(&silent) {
                self.shrink(leave, to_data, |store| Alarm::Silent { store });
            }
        } else if silent.is_empty() {
            self.do_without_slow();
        }
    }

    /// S5: one at a time, while nobody is silent and nobody's memory is in doubt.
    fn do_without_slow(&mut self) {
        if self.phase != Phase::Active || !self.suspects.is_quiet() {
            return;
        }
        let spared = |store: &StoreId| {
            let groups = self.groups_in_sync(*store);
            !groups.is_empty()
                && groups.iter().all(|no| self.insync(*no).len() > self.enough_to_spare())
        };
        let Some(store) = self.slow.iter().copied().find(spared) else { return };
        if !self.would_remain(&[store]) {
            return;
        }
        self.shrink(vec![store], false, |store| Alarm::Slow { store });
    }

    /// With so many in sync a group has a slot to spare, and its writes go on.
    fn enough_to_spare(&self) -> u32 {
        let least = |volume: &Volume| volume.min_insync.max(volume.data + 1);
        self.volume.as_ref().map_or(u32::MAX, |volume| u32::from(least(volume)))
    }

    /// S5: whether a store is to stay out of a group, which has a slot to spare without it.
    pub(super) fn is_kept_away(&self, group: GroupNo, store: StoreId) -> bool {
        self.slow.contains(&store) && self.insync(group).len() >= self.enough_to_spare()
    }

    /// Whether all others in sync have answered since it came to light that these are to go, and a
    /// moment ago. Those that have not are asked.
    pub(super) fn would_remain(&mut self, without: &[StoreId]) -> bool {
        let (now, patience) = (self.now, self.patience());
        // What was given up begins anew.
        self.leaving.retain(|_, (_, wanted_at)| now.since(*wanted_at) <= patience / 2);
        let next = (self.next_request, now);
        let (asked, wanted_at) = self.leaving.entry(without.to_vec()).or_insert(next);
        *wanted_at = now;
        let asked = *asked;
        let remain = self.insync_stores.iter().filter(|store| !without.contains(store));
        let unheard =
            remain.filter(|store| !self.links.answered(**store, asked, now, patience / 2));
        let unheard: Vec<StoreId> = unheard.copied().collect();
        for store in &unheard {
            let asked = |p: &Pending| p.store == *store && matches!(p.ask, Ask::Nop);
            if !self.pending.values().any(asked) {
                self.ask_store(*store, None, Ask::Nop, Purpose::Forget);
            }
        }
        unheard.is_empty() || lives(Mutant::ShrinkUnheard)
    }

    /// Nobody is taken out who would be missed: see [`would_remain`](Self::would_remain).
    pub(super) fn shrink(
        &mut self,
        stores: Vec<StoreId>,
        to_data: bool,
        alarm: fn(StoreId) -> Alarm,
    ) {
        if stores.is_empty() || self.volume.is_none() {
            return;
        }
        let (volume, epoch) = (self.config.volume, self.epoch);
        let command = Command::Shrink { volume, epoch, stores: stores.clone(), to_data };
        if self.propose("shrink", command) {
            let alarms = stores.into_iter().map(|store| Action::Alarm(alarm(store)));
            self.actions.extend(alarms);
        }
    }

    /// Whether taking the stores out would change anything: of a group all go or none.
    fn may_shrink(&self, stores: &[StoreId], to_data: bool) -> bool {
        let spared = |volume: &Volume| {
            volume.groups.iter().filter(|group| !(volume.activated && group.offline)).any(|group| {
                let out = stores.iter().filter_map(|store| group.slot_of(*store));
                let out = out.collect::<SlotSet>().and(group.insync);
                let all = if lives(Mutant::ShrinkInPart) { 1 } else { out.len() };
                let fewest = if to_data { volume.data } else { volume.min_insync };
                out != SlotSet::EMPTY && group.insync.len() >= u32::from(fewest) + all
            })
        };
        let learns =
            |store: &StoreId| self.catchup.is_growing(*store) || self.is_in_the_way(*store);
        stores.iter().any(learns) || self.volume.as_ref().is_some_and(spared)
    }

    /// U2: which of these silent stores are not to be taken out yet.
    fn held_back(&self, silent: &[StoreId]) -> BTreeSet<StoreId> {
        self.kept(silent, |no, go, stay| {
            let doubts = || stay.iter().filter_map(|store| self.doubted_since(*store, no));
            let until = doubts().min().zip(doubts().max());
            until.is_some_and(|both| go.iter().any(|store| !self.is_overdue(*store, both)))
        })
    }

    /// S3: which of these have not owed answers for long enough, or may be the only ones that remember.
    fn too_early(&self, silent: &[StoreId]) -> BTreeSet<StoreId> {
        let (now, patience) = (self.now, self.config.stall_patience);
        let long = |store: &StoreId| {
            self.links.is_silent(*store, now, patience)
                || self.overdue_from(*store).is_some_and(|at| now.since(at) > patience)
        };
        self.kept(silent, |no, go, stay| {
            let doubted = || stay.iter().any(|store| self.doubted_since(*store, no).is_some());
            !go.iter().all(long) || doubted() && !lives(Mutant::DoubtedToData)
        })
    }

    /// Silent stores that are kept, and with them, of a group, all that are silent: all go or none.
    /// `keeps` says of a group whether those that are silent are, beside the others.
    fn kept(
        &self,
        silent: &[StoreId],
        keeps: impl Fn(GroupNo, &[StoreId], &[StoreId]) -> bool,
    ) -> BTreeSet<StoreId> {
        let mut held = BTreeSet::new();
        let groups = self.volume.iter().flat_map(|volume| &volume.groups);
        let groups = (0u16..).map(GroupNo).zip(groups);
        // Who is missed where nothing can be settled is no less to be done without elsewhere.
        let few = |group: &Group, go: &[StoreId]| {
            group.offline && group.insync.len() < u32::from(self.n()) + go.len() as u32
        };
        loop {
            let before = held.len();
            for (no, group) in groups.clone() {
                let (go, stay): (Vec<_>, Vec<_>) =
                    group.insync_stores().partition(|store| silent.contains(store));
                if self.phase == Phase::Active && group.offline {
                    continue;
                }
                let keeps = || !few(group, &go) && keeps(no, &go, &stay);
                if go.iter().any(|store| held.contains(store)) || keeps() {
                    held.extend(go);
                }
            }
            if held.len() == before {
                return held;
            }
        }
    }

    /// Since when this coordinator knows that the store's disk may have gone back behind what it
    /// acknowledged in the group, if it may have. Of one that has not promised nobody knows yet.
    fn doubted_since(&self, store: StoreId, group: GroupNo) -> Option<Time> {
        match self.phase {
            _ if lives(Mutant::HastenOn) => None,
            Phase::Active if !self.suspects.has(store, group) => None,
            Phase::Active => self.links.went_back_at(store),
            _ if self.takeover.incarnation(store).is_none() => Some(self.now),
            _ => self.links.went_back_at(store),
        }
    }

    /// Whether a silent store could have been heard of for long enough since the first and the last of
    /// those that remain came to be in doubt.
    fn is_overdue(&self, store: StoreId, (first, last): (Time, Time)) -> bool {
        let patience = self.config.power_patience;
        let silent_from = self.links.silent_from(store);
        let silent_from = self.overdue_from(store).map_or(silent_from, |at| at.min(silent_from));
        // Who has promised was there, and there is an end to what may be made of that.
        self.now.since(silent_from.max(last)) > patience
            || self.phase == Phase::Active && self.now.since(first) > LONGEST * patience
    }
}
