//! Which slots are to be held elsewhere: repair of what is lost, drains, balance.
//!
//! A pure function of the map and of what the leader sees of the stores; the leader proposes what comes
//! out of it, again and again, so nothing here has to be remembered. Moves are wishes in the map
//! ([`Command::Move`](crate::Command::Move)): they outlive leaders and coordinators.
//!
//! P1. A slot is *lost* when its store is out of sync and away for the down-out time; or for a moment,
//!     where its group has no parity to spare left, or where its node runs with another store.
//! P2. Groups with the least to spare come first, then drains, then balance. Few slots of a volume
//!     move at once, so that the first are done soon.
//! P3. Nothing moves to a store without room for it, and nothing for balance while anything is lost, is
//!     moving, or has not been cleaned up behind.
//! P4. A store that is back takes its slots up again: to catch up on what it missed is less than all.
//! P5. Balance takes from the one that has most above its share and gives to the one that has least,
//!     while that makes both better: no slot moves twice, and no more of them than a new node takes.
//!     A group never gets fewer failure domains by it.

mod balance;
#[cfg(test)]
mod tests;

use crate::command::MoveSlot;
use crate::mutant::{Mutant, lives};
use crate::types::{ClusterMap, FailureDomain, Group, Node, Volume};
use smalti_storage::ids::{GroupNo, NodeId, Slot, SlotSet, StoreId, VolumeNo};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What is seen of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// For how long it has not been running on a node that answers; none: it is.
    pub away: Option<Duration>,
    /// Bytes that it can take without coming near to being full; none: not known.
    pub room: Option<u64>,
    /// Bytes that it holds.
    pub used: u64,
}

/// How patient, and how busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A store that is away for so long does not come back.
    pub down_out: Duration,
    /// The same where nothing is left to spare, or another store runs in its place.
    pub urgent: Duration,
    /// Slots of a volume that move at once.
    pub at_once: usize,
}

impl Default for Policy {
    fn default() -> Self {
        let (down_out, urgent) = (Duration::from_secs(600), Duration::from_secs(5));
        Self { down_out, urgent, at_once: 8 }
    }
}

/// Why a slot is to leave its store. The order is that of urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Its store is gone.
    Lost,
    /// Its node is to be emptied.
    Drain,
    /// Another node has less than its share, or another failure domain has none of the group.
    Balance,
}

/// A slot that should be elsewhere, and nobody can take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The volume.
    pub volume: VolumeNo,
    /// The group.
    pub group: GroupNo,
    /// The slot.
    pub slot: Slot,
    /// Why it should.
    pub cause: Cause,
    /// There would be a node, but no room on it.
    pub full: bool,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Wishes to propose, by volume; naming the holder takes a wish back.
    pub moves: BTreeMap<VolumeNo, Vec<MoveSlot>>,
    /// Slots that stay where they should not.
    pub stuck: Vec<Stuck>,
    /// Slots that move, with those that begin to.
    pub moving: usize,
    /// Slots that have yet to begin, for lost stores and drains, or can not get on, for too little of their
    /// group is there.
    pub waiting: usize,
    /// Slots that have moved, and that their old stores keep as well until their groups are whole.
    pub kept: usize,
    /// Stores that are gone, and that nothing needs any more.
    pub forget: Vec<StoreId>,
}

/// Slots of volumes that are on their way and do not get on, as their coordinators say.
pub type InVain = BTreeMap<VolumeNo, BTreeSet<(GroupNo, Slot)>>;

/// Makes the plan. What moves in vain is in nobody's way.
pub fn plan(
    map: &ClusterMap,
    sights: &BTreeMap<StoreId, Sight>,
    in_vain: &InVain,
    policy: &Policy,
) -> Plan {
    let mut planner = Planner::new(map, sights, in_vain, policy);
    for volume in map.volumes.values() {
        planner.settle_wishes(volume);
    }
    let mut leaving = planner.leaving();
    leaving.sort_by_key(|leaving| (leaving.cause, leaving.spare < 0, leaving.spare, leaving.place));
    let calm = leaving.is_empty();
    for leaving in leaving {
        planner.find_place(leaving);
    }
    if calm && planner.is_at_rest() {
        planner.balance();
    }
    planner.plan.forget = planner.gone_for_good();
    planner.plan
}

/// A slot that is to leave its store.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    place: (VolumeNo, GroupNo, Slot),
    cause: Cause,
    /// Slots that its group can lose yet.
    spare: i32,
}

struct Planner<'a> {
    map: &'a ClusterMap,
    sights: &'a BTreeMap<StoreId, Sight>,
    in_vain: &'a InVain,
    policy: &'a Policy,
    /// Slots that each store has or is to have, by volume.
    load: BTreeMap<(VolumeNo, StoreId), u32>,
    /// Bytes that stores are to take yet.
    coming: BTreeMap<StoreId, u64>,
    /// Groups of which a slot begins to move for balance: one at a time.
    begun: BTreeSet<(VolumeNo, GroupNo)>,
    slot_bytes: u64,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(
        map: &'a ClusterMap,
        sights: &'a BTreeMap<StoreId, Sight>,
        in_vain: &'a InVain,
        policy: &'a Policy,
    ) -> Self {
        let mut load = BTreeMap::new();
        let mut slots = 0u64;
        for volume in map.volumes.values() {
            for group in &volume.groups {
                for slot in volume.all_slots().iter() {
                    if let Some(store) = destination(group, slot) {
                        *load.entry((volume.no, store)).or_default() += 1;
                        slots += 1;
                    }
                }
            }
        }
        let used: u64 = sights.values().map(|sight| sight.used).fold(0, u64::saturating_add);
        let slot_bytes = used / slots.max(1);
        let (coming, begun, plan) = (BTreeMap::new(), BTreeSet::new(), Plan::default());
        Self { map, sights, in_vain, policy, load, coming, begun, slot_bytes, plan }
    }

    fn away(&self, store: StoreId) -> Option<Duration> {
        self.sights.get(&store).map_or(Some(Duration::ZERO), |sight| sight.away)
    }

    fn node(&self, store: StoreId) -> Option<(NodeId, &'a Node)> {
        let id = self.map.node_of(store)?;
        Some((id, self.map.nodes.get(&id)?))
    }

    /// Whether the operator wants nothing on its node.
    fn is_unwanted(&self, store: StoreId) -> bool {
        self.node(store).is_none_or(|(_, node)| node.draining || node.weight == 0)
    }

    /// Whether its node runs, with another store.
    fn is_replaced(&self, store: StoreId) -> bool {
        let node = self.map.node_of(store);
        let mut others = node.into_iter().flat_map(|node| self.map.stores_of(node));
        others.any(|other| other != store && self.away(other).is_none())
    }

    /// Slots in sync whose stores are there, beyond those that the data needs.
    fn spare(&self, volume: &Volume, group: &Group) -> i32 {
        let live = group.insync_stores().filter(|store| self.away(*store).is_none()).count();
        i32::try_from(live).unwrap_or(i32::MAX) - i32::from(volume.data)
    }

    /// Why a slot should leave its store, if it should.
    fn cause(&self, volume: &Volume, group: &Group, slot: Slot) -> Option<Cause> {
        let holder = *group.slots.get(slot.index())?;
        let out = !group.insync.contains(slot);
        let lost = self.away(holder).filter(|_| out).is_some_and(|away| {
            let urgent = self.spare(volume, group) <= 0 || self.is_replaced(holder);
            away >= if urgent { self.policy.urgent } else { self.policy.down_out }
        });
        match (lost, self.is_unwanted(holder)) {
            (true, _) => Some(Cause::Lost),
            (false, true) => Some(Cause::Drain),
            (false, false) => None,
        }
    }

    /// Takes back wishes that make no sense any more, and counts the others.
    fn settle_wishes(&mut self, volume: &Volume) {
        for (no, group) in (0u16..).map(GroupNo).zip(&volume.groups) {
            self.plan.kept += group.old_holders.len();
            for (slot, target) in &group.targets {
                let Some(holder) = group.slots.get(slot.index()).copied() else { continue };
                let out = !group.insync.contains(*slot);
                let back = out && self.away(holder).is_none() && !self.is_unwanted(holder);
                let hopeless = self.is_unwanted(*target)
                    || self.away(*target).is_some_and(|away| away >= self.policy.urgent);
                if back || hopeless {
                    self.wish(volume.no, MoveSlot { group: no, slot: *slot, store: holder });
                    self.change_load(volume.no, *target, holder);
                } else {
                    match self.spare(volume, group) < 0 {
                        true => self.plan.waiting += 1,
                        false => self.plan.moving += 1,
                    }
                    // What moves in vain has come but for a few rows.
                    if !self.is_in_vain(volume, (no, *slot)) {
                        *self.coming.entry(*target).or_default() += self.slot_bytes;
                    }
                }
            }
        }
    }

    fn is_in_vain(&self, volume: &Volume, place: (GroupNo, Slot)) -> bool {
        self.in_vain.get(&volume.no).is_some_and(|places| places.contains(&place))
    }

    fn wish(&mut self, volume: VolumeNo, wish: MoveSlot) {
        self.plan.moves.entry(volume).or_default().push(wish);
    }

    fn change_load(&mut self, volume: VolumeNo, from: StoreId, to: StoreId) {
        let before = self.load.entry((volume, from)).or_default();
        *before = before.saturating_sub(1);
        *self.load.entry((volume, to)).or_default() += 1;
    }

    fn is_dismissed(&self, (volume, group, slot): (VolumeNo, GroupNo, Slot)) -> bool {
        let mut wishes = self.plan.moves.get(&volume).into_iter().flatten();
        wishes.any(|wish| (wish.group, wish.slot) == (group, slot))
    }

    /// Slots that should leave and have no wish. What was dismissed just now is looked at again when
    /// the map says so.
    fn leaving(&self) -> Vec<Leaving> {
        let mut leaving = Vec::new();
        for volume in self.map.volumes.values() {
            for (no, group) in (0u16..).map(GroupNo).zip(&volume.groups) {
                for slot in volume.all_slots().iter() {
                    let place = (volume.no, no, slot);
                    let settled = group.targets.contains_key(&slot) || self.is_dismissed(place);
                    if let Some(cause) = self.cause(volume, group, slot).filter(|_| !settled) {
                        leaving.push(Leaving { place, cause, spare: self.spare(volume, group) });
                    }
                }
            }
        }
        leaving
    }

    /// Slots of the volume that move or are about to; without those that can not get on, for too little
    /// of their group is there, or rows of it can not be made.
    fn moving_of(&self, volume: &Volume) -> usize {
        let wished = self.plan.moves.get(&volume.no).map_or(0, Vec::len);
        let groups = (0u16..).map(GroupNo).zip(&volume.groups);
        let groups = groups.filter(|(_, group)| self.spare(volume, group) >= 0);
        let moving =
            groups.flat_map(|(no, group)| group.targets.keys().map(move |slot| (no, *slot)));
        moving.filter(|place| !self.is_in_vain(volume, *place)).count() + wished
    }

    fn find_place(&mut self, leaving: Leaving) {
        let (no, group_no, slot) = leaving.place;
        let Some(volume) = self.map.volumes.get(&no) else { return };
        let Some(group) = volume.group(group_no) else { return };
        let Some(holder) = group.slots.get(slot.index()).copied() else { return };
        // Nothing could be rebuilt from what is left of its group.
        let hopeless = leaving.spare < 0;
        let choice = self.choose(volume, group, (group_no, slot));
        let (paused, busy) = (self.map.moves_paused, self.moving_of(volume) >= self.policy.at_once);
        match choice {
            Ok(_) if paused || busy || hopeless => self.plan.waiting += 1,
            Ok(store) => {
                self.wish(no, MoveSlot { group: group_no, slot, store });
                self.change_load(no, holder, store);
                *self.coming.entry(store).or_default() += self.slot_bytes;
                self.plan.moving += 1;
            }
            Err(full) => {
                let Leaving { cause, .. } = leaving;
                let stuck = Stuck { volume: no, group: group_no, slot, cause, full };
                self.plan.stuck.push(stuck);
            }
        }
    }

    /// The best store for a slot; else whether there would be one but for its room.
    fn choose(
        &self,
        volume: &Volume,
        group: &Group,
        (no, slot): (GroupNo, Slot),
    ) -> Result<StoreId, bool> {
        let taken = self.taken(volume, group, (no, slot));
        let nodes = taken.iter().map(|(node, _)| *node);
        let nodes: BTreeSet<NodeId> = nodes.filter(|_| !lives(Mutant::PlanTwoOnANode)).collect();
        let domains: BTreeSet<_> = taken.into_iter().map(|(_, domain)| domain).collect();
        let candidates = self.map.stores.keys().copied().filter(|store| {
            let node = self.map.node_of(*store);
            let wanted = !self.is_unwanted(*store) || lives(Mutant::PlanToDraining);
            self.away(*store).is_none() && wanted && node.is_some_and(|node| !nodes.contains(&node))
        });
        let candidates: Vec<StoreId> = candidates.collect();
        let with_room = candidates.iter().copied().filter(|store| self.has_room(*store));
        let best = with_room.min_by(|a, b| {
            let crowded = |store: StoreId| domains.contains(&self.domain(store));
            let load = |store: StoreId| self.filling(volume.no, store);
            crowded(*a)
                .cmp(&crowded(*b))
                .then(load(*a).total_cmp(&load(*b)))
                .then(self.filling_of_all(*a).total_cmp(&self.filling_of_all(*b)))
                .then(a.cmp(b))
        });
        best.ok_or(!candidates.is_empty())
    }

    /// Nodes and domains of the other slots of the group, as they are and as they are to be.
    fn taken(
        &self,
        volume: &Volume,
        group: &Group,
        (no, slot): (GroupNo, Slot),
    ) -> Vec<(NodeId, Option<FailureDomain>)> {
        let wishes = self.plan.moves.get(&volume.no).into_iter().flatten();
        let wished = wishes.filter(|wish| wish.group == no && wish.slot != slot);
        let targets = group.targets.iter().filter(|(other, _)| **other != slot);
        let others = (0u8..).map(Slot).zip(&group.slots).filter(|(other, _)| *other != slot);
        let stores = others
            .map(|(_, store)| *store)
            .chain(targets.map(|(_, store)| *store))
            .chain(wished.map(|wish| wish.store));
        let nodes = stores.filter_map(|store| Some((self.map.node_of(store)?, self.domain(store))));
        nodes.collect()
    }

    /// The failure domain of a store.
    fn domain(&self, store: StoreId) -> Option<FailureDomain> {
        Some(self.map.domain_of(self.map.node_of(store)?))
    }

    fn has_room(&self, store: StoreId) -> bool {
        let coming = self.coming.get(&store).copied().unwrap_or(0);
        let need = coming.saturating_add(self.slot_bytes);
        self.sights.get(&store).and_then(|sight| sight.room).is_none_or(|room| room >= need)
    }

    fn weight(&self, store: StoreId) -> f64 {
        self.node(store).map_or(0.0, |(_, node)| f64::from(node.weight))
    }

    /// Slots of the volume that it has, relative to its weight.
    fn filling(&self, volume: VolumeNo, store: StoreId) -> f64 {
        let slots = self.load.get(&(volume, store)).copied().unwrap_or(0);
        f64::from(slots) / self.weight(store).max(1.0)
    }

    fn filling_of_all(&self, store: StoreId) -> f64 {
        self.map.volumes.keys().map(|volume| self.filling(*volume, store)).sum()
    }

    /// Stores in whose place another one runs, and that no group keeps anything on.
    fn gone_for_good(&self) -> Vec<StoreId> {
        let kept: BTreeSet<StoreId> = self
            .map
            .volumes
            .values()
            .flat_map(|volume| &volume.groups)
            .flat_map(|group| group.members().chain(group.old_holders.iter().copied()))
            .collect();
        let gone = |store: &StoreId| {
            let away = self.away(*store).is_some_and(|away| away >= self.policy.urgent);
            away && !kept.contains(store) && self.is_replaced(*store)
        };
        self.map.stores.keys().copied().filter(gone).collect()
    }
}

/// The store that is to have the slot in the end.
fn destination(group: &Group, slot: Slot) -> Option<StoreId> {
    let holder = group.slots.get(slot.index());
    group.targets.get(&slot).or(holder).copied()
}

/// All slots of a volume's groups are in sync where they are to be, and nothing is left behind.
fn is_settled(volume: &Volume) -> bool {
    let all: SlotSet = volume.all_slots();
    volume.groups.iter().all(|group| {
        group.insync == all && group.targets.is_empty() && group.old_holders.is_empty()
    })
}
