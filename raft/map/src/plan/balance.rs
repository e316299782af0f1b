//! The part of the plan that nothing but an uneven spread asks for.

use super::{Planner, destination, is_settled};
use crate::command::MoveSlot;
use crate::mutant::{Mutant, lives};
use crate::types::{FailureDomain, Group, Volume};
use smalti_storage::ids::{GroupNo, NodeId, Slot, StoreId};
use std::collections::{BTreeMap, BTreeSet};

/// Shares are compared with this much patience: a slot is not divided.
const ENOUGH: f64 = 1.0 + 1e-6;

impl Planner<'_> {
    /// Nothing is lost, moving, or left to clean up, and every store that counts is there.
    pub(super) fn is_at_rest(&self) -> bool {
        let groups = || self.map.volumes.values().flat_map(|volume| &volume.groups);
        let needed = |store: &StoreId| groups().any(|group| group.keeps(*store));
        let here = |store: &StoreId| self.is_unwanted(*store) || self.away(*store).is_none();
        self.plan.moves.is_empty()
            && self.map.volumes.values().all(is_settled)
            && self.map.stores.keys().all(|store| here(store) || !needed(store))
    }

    pub(super) fn balance(&mut self) {
        for volume in self.map.volumes.values() {
            let mut begun = self.spread(volume);
            while begun < self.policy.at_once {
                let Some((from, wish)) = self.levelling(volume) else { break };
                self.begin(volume, from, wish);
                begun += 1;
            }
        }
    }

    fn begin(&mut self, volume: &Volume, from: StoreId, wish: MoveSlot) {
        if self.map.moves_paused {
            self.plan.waiting += 1;
        } else {
            self.plan.moving += 1;
            self.wish(volume.no, wish);
        }
        // Counted all the same, or the search would find it again.
        self.change_load(volume.no, from, wish.store);
        *self.coming.entry(wish.store).or_default() += self.slot_bytes;
        self.begun.insert((volume.no, wish.group));
    }

    /// Groups with two slots in a failure domain, where another domain has none of theirs.
    fn spread(&mut self, volume: &Volume) -> usize {
        let mut begun = 0;
        for (no, group) in (0u16..).map(GroupNo).zip(&volume.groups) {
            let domain = |slot: Slot| self.domain(destination(group, slot)?);
            let others = |but: Slot| -> BTreeSet<Option<FailureDomain>> {
                volume.all_slots().iter().filter(|slot| *slot != but).map(domain).collect()
            };
            let doubled =
                volume.all_slots().iter().find(|slot| others(*slot).contains(&domain(*slot)));
            let Some(slot) = doubled.filter(|_| begun < self.policy.at_once) else { continue };
            let Some(from) = destination(group, slot) else { continue };
            let Ok(store) = self.choose(volume, group, (no, slot)) else { continue };
            if !others(slot).contains(&self.domain(store)) {
                self.begin(volume, from, MoveSlot { group: no, slot, store });
                begun += 1;
            }
        }
        begun
    }

    /// The move that helps most, from the store that has most above its share.
    fn levelling(&self, volume: &Volume) -> Option<(StoreId, MoveSlot)> {
        let shares = self.shares(volume);
        let excess = |store: &StoreId| {
            let has = self.load.get(&(volume.no, *store)).copied().unwrap_or(0);
            f64::from(has) - shares.get(store).copied().unwrap_or(0.0)
        };
        let mut stores: Vec<StoreId> = shares.keys().copied().collect();
        stores.sort_by(|a, b| excess(b).total_cmp(&excess(a)).then(a.cmp(b)));
        for from in &stores {
            for to in stores.iter().rev() {
                let enough = if lives(Mutant::PlanForNothing) { 0.0 } else { ENOUGH };
                if excess(from) - excess(to) <= enough {
                    break;
                }
                if let Some(wish) = self.slot_for(volume, *from, *to) {
                    return Some((*from, wish));
                }
            }
        }
        None
    }

    /// A slot of `from` that `to` can take; of the kind that it has less of.
    fn slot_for(&self, volume: &Volume, from: StoreId, to: StoreId) -> Option<MoveSlot> {
        if !self.has_room(to) {
            return None;
        }
        let (mut parity, mut all) = (0u32, 0u32);
        for group in &volume.groups {
            if let Some(slot) =
                volume.all_slots().iter().find(|s| destination(group, *s) == Some(to))
            {
                all += 1;
                parity += u32::from(slot.0 >= volume.data);
            }
        }
        let wants_parity = parity * u32::from(volume.slots()) <= all * u32::from(volume.parity);
        let slots = (0u16..).map(GroupNo).zip(&volume.groups).filter_map(|(no, group)| {
            let slot = volume.all_slots().iter().find(|s| destination(group, *s) == Some(from))?;
            let free = !self.begun.contains(&(volume.no, no));
            (free && self.may_take(group, slot, from, to)).then_some((no, slot))
        });
        let fits = |slot: Slot| (slot.0 >= volume.data) == wants_parity;
        let (group, slot) = slots.min_by_key(|(no, slot)| (!fits(*slot), *no))?;
        Some(MoveSlot { group, slot, store: to })
    }

    /// Whether the group would still be on as many nodes and in as many domains.
    fn may_take(&self, group: &Group, slot: Slot, from: StoreId, to: StoreId) -> bool {
        let node = self.map.node_of(to);
        let others = (0u8..).map(Slot).zip(&group.slots).filter(|(other, _)| *other != slot);
        let others: Vec<StoreId> = others.map(|(_, store)| *store).collect();
        let domains: BTreeSet<_> = others.iter().map(|store| self.domain(*store)).collect();
        let fresh = |store| !domains.contains(&self.domain(store));
        others.iter().all(|store| self.map.node_of(*store) != node) && (fresh(to) || !fresh(from))
    }

    /// How many slots of the volume each store should have: by weight, and no node more than one of a
    /// group.
    fn shares(&self, volume: &Volume) -> BTreeMap<StoreId, f64> {
        let usable = |store: &StoreId| !self.is_unwanted(*store) && self.away(*store).is_none();
        let mut open: Vec<StoreId> = self.map.stores.keys().copied().filter(usable).collect();
        let mut stores_of: BTreeMap<NodeId, f64> = BTreeMap::new();
        for node in open.iter().filter_map(|store| self.map.node_of(*store)) {
            *stores_of.entry(node).or_default() += 1.0;
        }
        // The stores of a node share its weight and its bound.
        let part = |store: &StoreId| {
            let node = self.map.node_of(*store).and_then(|node| stores_of.get(&node));
            1.0 / node.copied().unwrap_or(1.0)
        };
        let most = |store: &StoreId| volume.groups.len() as f64 * part(store);
        let mut left = volume.groups.len() as f64 * f64::from(volume.slots());
        let mut shares = BTreeMap::new();
        loop {
            let weight = |store: &StoreId| self.weight(*store) * part(store);
            let all: f64 = open.iter().map(weight).sum();
            let share = |store: &StoreId| left * weight(store) / all.max(f64::MIN_POSITIVE);
            let (over, under): (Vec<_>, Vec<_>) =
                open.iter().copied().partition(|store| share(store) > most(store));
            if over.is_empty() {
                shares.extend(under.into_iter().map(|store| (store, share(&store))));
                return shares;
            }
            for store in over {
                left -= most(&store);
                shares.insert(store, most(&store));
            }
            open = under;
        }
    }
}
