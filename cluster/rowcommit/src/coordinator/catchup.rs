//! Bringing slots that are out of sync back: learner, walk, repair, growth.
//!
//! From the moment the map names a learner it is sent every update of its slot. Then all rows of
//! the group are compared by metadata, page by page ([`super::walk`]), and those that differ are
//! repaired under their row lock. When no row is behind, acknowledgements and leases begin to
//! count the learner too, and `Grow` is proposed.
//!
//! K1. Once `Grow` was proposed in an epoch, its slot counts until that epoch is over or the
//!     store is registered with another start: the proposal may be accepted at any time.

use super::listing::Listing;
use super::progress::Rebuilt;
use super::unrepaired::Unrepaired;
use super::walk::Walk;
use super::{Coordinator, Pending, Place, Purpose, Seat};
use crate::governor::Work;
use crate::msg::Ask;
use crate::time::Time;
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{Epoch, GroupNo, Incarnation, RowAddr, Slot, StoreId, Ver};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

/// A row whose repair failed is tried again after this long: what it lacks is not there.
const RETRY: Duration = Duration::from_secs(1);

/// Background work that was asked for so long ago goes on no more.
pub(super) const BACKGROUND_ENDS: Duration = Duration::from_secs(1);

/// A slot that lacks nothing but rows whose repair failed so often again is not waited for.
const STUCK: u8 = 3;

/// All slots that are catching up.
#[derive(Clone, Debug, Default)]
pub(super) struct Catchup {
    pub(super) learners: BTreeMap<Place, Learning>,
    /// Repairs that wait or run.
    pub(super) claimed: BTreeSet<(RowAddr, Seat)>,
    pub(super) unrepaired: Unrepaired,
    pub(super) lives: u64,
    pub(super) rounds: u64,
    /// For people.
    pub(super) rebuilt: Rebuilt,
}

#[derive(Clone, Debug)]
pub(super) struct Learning {
    pub(super) store: StoreId,
    pub(super) incarnation: Incarnation,
    pub(super) stage: Stage,
    pub(super) behind: BTreeSet<RowAddr>,
    pub(super) repairing: usize,
    /// Rows that were repaired.
    pub(super) repaired: u64,
    /// Rows whose repair failed, and when they are tried again.
    pub(super) failed: BTreeSet<RowAddr>,
    pub(super) retry_at: Time,
    /// How often they failed again, with nothing else left to do.
    pub(super) vain: u8,
    /// Its disk was full: nothing more is sent until then, and first what comes behind that row.
    pub(super) full_until: Time,
    pub(super) refused: Option<RowAddr>,
    /// Rows that it keeps a part of, and nobody can tell what it is to hold.
    pub(super) marked: BTreeSet<RowAddr>,
    /// Something that it is to hold could not be made from what is left.
    pub(super) lost: bool,
    /// Changes it was sent and has not answered.
    pub(super) outstanding: u64,
    /// Tells repairs of this admission from those of an earlier one.
    pub(super) life: u64,
    /// The slot was another store's: it is given all of it.
    pub(super) rebuilt: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Stage {
    /// Updates that were in flight when the learner came do not reach it, and what an earlier
    /// session sent it may still arrive: waits for the former to end and for the first answer of
    /// this session, after which the store takes nothing of an earlier one.
    Barrier { after: Ver, opened: bool },
    /// What has changed since it left is listed, and repaired meanwhile.
    Listing(Listing),
    /// Being compared; what is found behind is repaired meanwhile.
    Walking(Walk),
    /// Compared; the rest is being repaired.
    Repairing,
    /// In every acknowledgement and lease; growth proposed in this epoch.
    Growing { proposed: Option<Epoch> },
}

impl Catchup {
    /// The learners by stage, in a few words.
    pub(super) fn describe(&self) -> String {
        let mut stages: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut behind, mut repairing, mut outstanding) = (0, 0, 0);
        for learning in self.learners.values() {
            let stage = match learning.stage {
                Stage::Barrier { opened: false, .. } => "unopened",
                Stage::Barrier { .. } => "barrier",
                Stage::Listing(_) => "listing",
                Stage::Walking(_) => "walking",
                Stage::Repairing => "repairing",
                Stage::Growing { .. } => "growing",
            };
            *stages.entry(stage).or_default() += 1;
            behind += learning.behind.len();
            repairing += learning.repairing;
            outstanding += learning.outstanding;
        }
        format!("{stages:?} behind {behind} repairing {repairing} outstanding {outstanding}")
    }

    /// Learners of the group; they are sent updates.
    pub(super) fn seats(&self, group: GroupNo) -> impl Iterator<Item = Seat> {
        self.of(group).map(|((_, slot), learning)| (*slot, learning.store))
    }

    /// Those whose answers acknowledgements wait for already.
    pub(super) fn growing_seats(&self, group: GroupNo) -> impl Iterator<Item = Seat> {
        self.of(group).filter(|(_, l)| l.is_growing()).map(|((_, slot), l)| (*slot, l.store))
    }

    pub(super) fn growing_stores(&self) -> impl Iterator<Item = StoreId> {
        self.learners.values().filter(|l| l.is_growing()).map(|l| l.store)
    }

    pub(super) fn is_growing(&self, store: StoreId) -> bool {
        self.growing_stores().any(|growing| growing == store)
    }

    pub(super) fn is_learner(&self, place: Place, store: StoreId) -> bool {
        self.learners.get(&place).is_some_and(|learning| learning.store == store)
    }

    fn of(&self, group: GroupNo) -> impl Iterator<Item = (&Place, &Learning)> {
        self.learners.range((group, Slot(0))..=(group, Slot(u8::MAX)))
    }

    /// Notes a request to a slot, and that it has ended: a learner is not grown while changes of
    /// its rows are on their way.
    pub(super) fn asked(&mut self, place: Place, store: StoreId, ask: &Ask) {
        if !ask.is_read()
            && let Some(learning) = self.learners.get_mut(&place)
            && learning.store == store
        {
            learning.outstanding += 1;
        }
    }

    pub(super) fn settled(&mut self, place: Place, store: StoreId, ask: &Ask) {
        if !ask.is_read()
            && let Some(learning) = self.learners.get_mut(&place)
            && learning.store == store
        {
            learning.outstanding = learning.outstanding.saturating_sub(1);
        }
    }

    pub(super) fn opened(&mut self, place: Place) {
        if let Some(Learning { stage: Stage::Barrier { opened, .. }, .. }) =
            self.learners.get_mut(&place)
        {
            *opened = true;
        }
    }

    /// An update did not reach the learner. `outdated`: because it had another base, which the
    /// walk will see by itself if it has yet to ask for the page of the row.
    pub(super) fn behind(&mut self, row: RowAddr, (slot, store): Seat, outdated: bool) {
        let learning = self.learners.get_mut(&(row.group, slot));
        let Some(learning) = learning.filter(|learning| learning.store == store) else { return };
        match &mut learning.stage {
            Stage::Barrier { .. } if outdated => {}
            Stage::Walking(walk) if outdated && walk.is_ahead(row) => {
                if !walk.paused && !lives(Mutant::WalkUntouched) {
                    walk.touched.insert(row);
                }
            }
            _ => {
                learning.behind.insert(row);
                learning.vain = 0;
            }
        }
    }

    /// Whether a slot is coming nearer to being in sync.
    pub(super) fn is_at_work(&self) -> bool {
        self.learners.values().any(|l| {
            let looking =
                matches!(l.stage, Stage::Barrier { .. } | Stage::Listing(_) | Stage::Walking(_));
            looking || !l.behind.is_empty() || l.repairing > 0
        })
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.learners.is_empty() && self.claimed.is_empty() && self.unrepaired.is_empty()
    }

    /// Repairs under way.
    fn repairing(&self) -> usize {
        self.learners.values().map(|learning| learning.repairing).sum()
    }

    /// Claims the repair of a row slot; false when one waits or runs already.
    pub(super) fn claim_repair(&mut self, row: RowAddr, seat: Seat) -> bool {
        self.claimed.insert((row, seat))
    }

    /// Whether the row slot is under repair, or was and could not be put right.
    pub(super) fn knows_wrong(&self, row: RowAddr, seat: Seat) -> bool {
        self.claimed.contains(&(row, seat)) || self.unrepaired.knows(row, seat)
    }

    /// A slot that comes back was told that nobody knows what it is to hold of the row.
    pub(super) fn mark(&mut self, row: RowAddr, seat: Seat) {
        if let Some(learning) = self.learners.get_mut(&(row.group, seat.0))
            && learning.store == seat.1
        {
            learning.marked.insert(row);
            learning.lost = true;
        }
    }

    /// A slot that catches up can not be given all that it is to hold of a row.
    pub(super) fn lost(&mut self, row: RowAddr, seat: Seat) {
        let learning = self.learners.get_mut(&(row.group, seat.0));
        if let Some(learning) = learning.filter(|learning| learning.store == seat.1) {
            learning.lost = true;
        }
    }

    /// A row was refused for want of space.
    pub(super) fn no_room(&mut self, now: Time, row: RowAddr, seat: Seat) {
        let learning = self.learners.get_mut(&(row.group, seat.0));
        if let Some(learning) = learning.filter(|learning| learning.store == seat.1) {
            learning.full_until = now.after(RETRY);
            learning.refused = learning.refused.max(Some(row));
        }
    }

    /// A claimed repair has ended.
    pub(super) fn repaired(
        &mut self,
        now: Time,
        row: RowAddr,
        seat: Seat,
        life: Option<u64>,
        good: bool,
    ) {
        self.claimed.remove(&(row, seat));
        if life.is_none() {
            self.unrepaired.repaired(now, row, seat, good);
        }
        if let Some(learning) = self.learners.get_mut(&(row.group, seat.0))
            && life == Some(learning.life)
        {
            learning.repairing = learning.repairing.saturating_sub(1);
            learning.repaired += u64::from(good);
            if good {
                learning.vain = 0;
            } else {
                learning.failed.insert(row);
                learning.retry_at = now.after(RETRY);
            }
        }
    }
}

impl Learning {
    pub(super) fn refused(&self) -> Option<RowAddr> {
        self.refused
    }

    /// No row is known to be behind.
    pub(super) fn is_level(&self) -> bool {
        self.behind.is_empty() && self.failed.is_empty() && self.repairing == 0
    }

    pub(super) fn is_growing(&self) -> bool {
        matches!(self.stage, Stage::Growing { .. })
    }

    /// Whether it does not get on: what it lacks nobody has who answers, or its disk is full.
    pub(super) fn is_stuck(&self, now: Time) -> bool {
        let full = self.full_until > now && matches!(self.stage, Stage::Repairing);
        full || self.is_in_vain()
    }

    /// Whether it is the former.
    pub(super) fn is_in_vain(&self) -> bool {
        self.vain >= STUCK && matches!(self.stage, Stage::Repairing)
    }
}

impl Coordinator {
    /// Slots that are on their way to another store and do not get on: what they lack can not be made, or not
    /// be decided, with the stores that answer.
    pub fn moves_in_vain(&self) -> BTreeSet<(GroupNo, Slot)> {
        let moves = |(place, learning): &(&Place, &Learning)| {
            let undecided = learning.is_growing() && !self.may_grow(**place, learning.store);
            self.store_of(place.0, place.1) != Some(learning.store)
                && (undecided || learning.is_in_vain())
        };
        self.catchup.learners.iter().filter(moves).map(|(place, _)| *place).collect()
    }

    /// Drops what the map does not call a learner any more.
    pub(super) fn catchup_retain(&mut self) {
        if self.catchup.learners.is_empty() {
            return;
        }
        let Some(volume) = &self.volume else { return };
        let (mut grown, mut gone, mut again) = (Vec::new(), Vec::new(), Vec::new());
        for (place, learning) in &self.catchup.learners {
            let (no, slot) = *place;
            let Some(group) = volume.group(no) else { continue };
            let holds = group.slots.get(slot.index()) == Some(&learning.store);
            if holds && group.insync.contains(slot) {
                grown.push((*place, learning.store, learning.incarnation));
                continue;
            }
            let registered = self.map.stores.get(&learning.store).map(|entry| entry.incarnation);
            let same_start = registered == Some(learning.incarnation);
            let bound = match learning.stage {
                Stage::Growing { proposed } => {
                    proposed == Some(self.epoch) && !lives(Mutant::GrowthUnbound)
                }
                _ => false,
            };
            let admitted = group.learners.get(&slot).is_some_and(|l| {
                l.store == learning.store && l.incarnation == learning.incarnation
            });
            let reached = admitted && self.links.is_up(learning.store);
            if !(same_start && (bound || reached)) {
                gone.push(*place);
            } else if !bound && learning.is_growing() {
                again.push(*place);
            }
        }
        for place in again {
            if let Some(learning) = self.catchup.learners.get_mut(&place) {
                learning.stage = Stage::Growing { proposed: None };
            }
        }
        for (place, store, incarnation) in grown {
            // What it has not answered is waited for as from any slot in sync.
            let learning = self.catchup.learners.remove(&place);
            if let Some(learning) = learning.as_ref().filter(|learning| learning.rebuilt) {
                self.catchup.rebuilt.count(learning.repaired);
            }
            let marked = learning.map(|learning| learning.marked).unwrap_or_default();
            let seat = (place.1, store);
            self.distrusted
                .retain(|(row, of)| (row.group, *of) != (place.0, seat) || marked.contains(row));
            marked.into_iter().for_each(|row| self.catchup.unrepaired.put_off(self.now, row, seat));
            self.incarnations.insert(store, incarnation);
            self.catchup.unrepaired.try_again(self.now, |group| group == place.0);
            self.decide_lost_again(Some(place.0));
            // It believes the watermark from now on only.
            self.links.tell_again(store);
            self.vet_grown(store);
        }
        self.forget_learners(&gone);
    }

    fn forget_learners(&mut self, places: &[Place]) {
        if places.is_empty() {
            return;
        }
        let removed = places
            .iter()
            .filter_map(|place| Some((*place, self.catchup.learners.remove(place)?.store)));
        let removed: Vec<(Place, StoreId)> = removed.collect();
        let of_learner = |p: &Pending| p.place.is_some_and(|at| removed.contains(&(at, p.store)));
        let lost: Vec<u64> =
            self.pending.iter().filter(|(_, p)| of_learner(p)).map(|(id, _)| *id).collect();
        self.give_up(&lost);
        self.runnable.extend(self.tasks.keys().copied());
    }

    /// Learners of a store that a growth binds may not be forgotten.
    fn unbound_places(&self, store: StoreId) -> Vec<Place> {
        let unbound = |l: &Learning| match l.stage {
            Stage::Growing { proposed } => {
                proposed != Some(self.epoch) || lives(Mutant::GrowthUnbound)
            }
            _ => true,
        };
        let of_store = self.catchup.learners.iter().filter(|(_, l)| l.store == store);
        of_store.filter(|(_, l)| unbound(l)).map(|(place, _)| *place).collect()
    }

    /// The link to a store went down: what it was sent may not have arrived.
    pub(super) fn catchup_lost(&mut self, store: StoreId) {
        let places = self.unbound_places(store);
        self.forget_learners(&places);
    }

    /// A store has been silent for too long: its learners begin anew once it answers.
    pub(super) fn catchup_silent(&mut self, store: StoreId) {
        let places = self.unbound_places(store);
        if !places.is_empty() {
            // The answer to this one tells when that is.
            self.ask_store(store, None, Ask::Nop, Purpose::Forget);
            self.forget_learners(&places);
        }
    }

    pub(super) fn catchup_tick(&mut self) {
        self.catchup_on_map();
        self.repair_again();
        self.decide_lost_again(None);
        self.vet_pump();
        let lately = |at: Time| self.now.since(at) < BACKGROUND_ENDS;
        let background = self.background_at.is_some_and(lately);
        let at_work = background || !self.catchup.learners.is_empty() || self.scrub.is_some();
        let work = Work { repairing: at_work, urgent: self.is_short(), around: self.around };
        self.governor.tick(self.now, work);
        self.scrub_pump();
        self.catchup_pump();
        self.propose_growth();
    }

    /// How much may be repaired at once, and how much background work of others may be under way.
    pub fn window(&self) -> usize {
        if self.config.govern { self.governor.window() } else { usize::MAX }
    }

    /// Moves every learner on as far as it goes.
    pub(super) fn catchup_pump(&mut self) {
        if self.catchup.learners.is_empty() {
            return;
        }
        let places: Vec<Place> = self.catchup.learners.keys().copied().collect();
        let oldest = self.inflight.keys().next().copied();
        let mut grows = false;
        let window = self.window();
        let unfinished = self.catchup.learners.values().filter(|l| !l.is_level()).count().max(1);
        // The last ones of many are not left with a small part of what may be repaired at once.
        let part = if self.config.govern { window / unfinished } else { 0 };
        let each = self.config.catchup_window.max(part);
        for place in places {
            let Some(learning) = self.catchup.learners.get(&place) else { continue };
            let away = self.is_kept_away(place.0, learning.store);
            let held = self.is_paused(place, learning.store) || learning.full_until > self.now;
            let window = if held { 0 } else { window };
            let Some(learning) = self.catchup.learners.get_mut(&place) else { continue };
            let level = learning.is_level() || lives(Mutant::GrowBehind);
            let answered = learning.outstanding == 0 || lives(Mutant::GrowUnanswered);
            match &mut learning.stage {
                Stage::Barrier { after, opened } => {
                    // What it is compared with must be right itself.
                    let right = !self.suspects.is_vetting(place.0);
                    let opened = right && (*opened || lives(Mutant::WalkUnopened));
                    let ended = oldest.is_none_or(|oldest| oldest > *after);
                    if opened && lives(Mutant::GrowUncompared) {
                        learning.stage = Stage::Repairing;
                    } else if opened && (ended || lives(Mutant::NoBarrier)) {
                        self.list_changed(place);
                    }
                    continue;
                }
                Stage::Listing(_) if window > 0 => self.resume_listing(place),
                Stage::Walking(_) if window > 0 => self.resume_walk(place),
                Stage::Repairing if level && answered && !away => {
                    learning.stage = Stage::Growing { proposed: None };
                    grows = true;
                }
                _ => {}
            }
            self.repair_learner(place, window, each);
        }
        if grows {
            self.confirm_again();
        }
    }

    /// `window`: as much as is repaired of all slots at once; `each`: of this one.
    fn repair_learner(&mut self, place: Place, window: usize, each: usize) {
        let now = self.now;
        let free = window.saturating_sub(self.catchup.repairing());
        let Some(learning) = self.catchup.learners.get_mut(&place) else { return };
        if learning.retry_at <= now && !learning.failed.is_empty() {
            // What a full disk has refused is told of by itself.
            let full = now.since(learning.full_until) < RETRY;
            if learning.behind.is_empty() && learning.repairing == 0 && !full {
                learning.vain = learning.vain.saturating_add(1).min(STUCK);
            }
            let failed = std::mem::take(&mut learning.failed);
            learning.behind.extend(failed);
        }
        let room = each.saturating_sub(learning.repairing).min(free);
        let (life, seat) = (learning.life, (place.1, learning.store));
        // Rows that are refused for want of space are not all: others may give some back.
        let rows: Vec<RowAddr> = match learning.refused.take_if(|_| room > 0) {
            Some(refused) => {
                let rest = learning.behind.range((Bound::Excluded(refused), Bound::Unbounded));
                rest.chain(learning.behind.range(..=refused)).take(room).copied().collect()
            }
            None => learning.behind.iter().take(room).copied().collect(),
        };
        for row in rows {
            if self.catchup.claim_repair(row, seat) {
                if let Some(learning) = self.catchup.learners.get_mut(&place) {
                    learning.behind.remove(&row);
                    learning.repairing += 1;
                }
                self.add_repair(row, seat, Some(life));
            }
        }
    }
}
