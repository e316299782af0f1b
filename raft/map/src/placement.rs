//! Choosing stores for the groups of a volume.
//!
//! Weighted rendezvous hashing decides which nodes a group is on: adding a node moves only what it
//! takes over. Which of them holds which slot is dealt out evenly instead, because parity slots
//! see a write for every write of their row, and data slots only their own.
//!
//! The proposer of `CreateVolume` computes the tables and the command carries them, so replicas
//! need not agree on the arithmetic here.

use crate::apply::limits;
use crate::types::FailureDomain;
use smalti_storage::ids::{NodeId, StoreId, VolumeId};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;
use twox_hash::XxHash3_128;

/// Why groups can not be placed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// A group's slots have to be on distinct nodes.
    #[error("geometry {data}+{parity} needs {} nodes with a store, found {found}", data + parity)]
    TooFewNodes {
        /// n.
        data: u8,
        /// k.
        parity: u8,
        /// Nodes with a store of some weight.
        found: usize,
    },
    /// Not a geometry.
    #[error("{data}+{parity} is not a geometry: each at least 1, together at most 32")]
    Geometry {
        /// n.
        data: u8,
        /// k.
        parity: u8,
    },
    /// A volume has at least one group.
    #[error("a volume needs at least one group")]
    NoGroups,
}

/// A store that can be given slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The store.
    pub store: StoreId,
    /// Its node: a group has at most one slot there.
    pub node: NodeId,
    /// Its failure domain: a group is in as many of them as it can be.
    pub domain: FailureDomain,
    /// Its share of the groups, relative to the others (say, GiB of room). 0: takes nothing.
    pub weight: u32,
}

/// The slot -> store tables of `groups` groups with `data` + `parity` slots each, every group on
/// distinct nodes, and as evenly over failure domains as those allow. The same arguments give the same tables; the order of candidates is no matter.
///
/// # Errors
/// [`PlacementError`] when there are too few nodes or the numbers make no sense.
pub fn place_groups(
    volume: VolumeId,
    groups: u16,
    data: u8,
    parity: u8,
    candidates: &[Candidate],
) -> Result<Vec<Vec<StoreId>>, PlacementError> {
    if groups == 0 {
        return Err(PlacementError::NoGroups);
    }
    let slots = data.checked_add(parity).filter(|slots| *slots <= limits::SLOTS);
    let slots = match slots {
        Some(slots) if data >= 1 && parity >= 1 => slots,
        Some(_) | None => return Err(PlacementError::Geometry { data, parity }),
    };
    let nodes: BTreeSet<NodeId> =
        candidates.iter().filter(|entry| entry.weight > 0).map(|entry| entry.node).collect();
    if nodes.len() < usize::from(slots) {
        return Err(PlacementError::TooFewNodes { data, parity, found: nodes.len() });
    }
    let mut dealer = Dealer { data, slots, dealt: BTreeMap::new() };
    let table = |group| dealer.deal(members(volume, group, slots, candidates));
    Ok((0..groups).map(table).collect())
}

/// The stores of one group, best score first.
fn members(volume: VolumeId, group: u16, slots: u8, candidates: &[Candidate]) -> Vec<StoreId> {
    let mut ranked: Vec<(f64, &Candidate)> = candidates
        .iter()
        .filter(|entry| entry.weight > 0)
        .map(|entry| (score(volume, group, entry), entry))
        .collect();
    ranked.sort_by(|(a, x), (b, y)| b.total_cmp(a).then(x.store.cmp(&y.store)));
    let mut used = BTreeSet::new();
    ranked.retain(|(_, entry)| used.insert(entry.node));
    // In rounds, each of which takes the best of every domain.
    let mut rounds: BTreeMap<&FailureDomain, usize> = BTreeMap::new();
    let mut in_rounds: Vec<(usize, StoreId)> = ranked
        .iter()
        .map(|(_, entry)| {
            let round = rounds.entry(&entry.domain).or_default();
            *round += 1;
            (*round, entry.store)
        })
        .collect();
    in_rounds.sort_by_key(|(round, _)| *round);
    in_rounds.into_iter().take(usize::from(slots)).map(|(_, store)| store).collect()
}

/// Weighted rendezvous: `-weight / ln(u)` with u uniform in (0, 1) makes a store win in proportion
/// to its weight.
fn score(volume: VolumeId, group: u16, entry: &Candidate) -> f64 {
    let mut input = [0u8; 34];
    input[..16].copy_from_slice(volume.0.as_bytes());
    input[16..18].copy_from_slice(&group.to_be_bytes());
    input[18..].copy_from_slice(entry.store.0.as_bytes());
    // 52 bits and the half step keep u strictly between 0 and 1.
    let draw = (XxHash3_128::oneshot(&input) >> 76) as u64;
    let uniform = (draw as f64 + 0.5) / (1u64 << 52) as f64;
    -f64::from(entry.weight) / uniform.ln()
}

/// Deals slots so that every store gets its fair part of each kind.
struct Dealer {
    data: u8,
    slots: u8,
    dealt: BTreeMap<StoreId, Hand>,
}

/// What a store has been dealt so far.
#[derive(Default)]
struct Hand {
    groups: u64,
    parity: u64,
    slots: [u64; limits::SLOTS as usize],
}

impl Dealer {
    fn deal(&mut self, mut members: Vec<StoreId>) -> Vec<StoreId> {
        for store in &members {
            self.dealt.entry(*store).or_default().groups += 1;
        }
        let mut table = vec![StoreId::default(); usize::from(self.slots)];
        // Parity slots first, while there is the most choice: they are the ones that cost.
        for slot in (0..usize::from(self.slots)).rev() {
            let is_parity = slot >= usize::from(self.data);
            let neediest = (0..members.len())
                .min_by(|a, b| self.compare(members[*a], members[*b], slot, is_parity))
                .expect("a group has as many members as slots");
            // The order of the others is the hash order of the group and decides ties.
            let store = members.remove(neediest);
            let hand = self.dealt.entry(store).or_default();
            hand.slots[slot] += 1;
            hand.parity += u64::from(is_parity);
            table[slot] = store;
        }
        table
    }

    /// Who has had less of this kind, relative to the groups they are in.
    fn compare(&self, a: StoreId, b: StoreId, slot: usize, is_parity: bool) -> Ordering {
        let (Some(a), Some(b)) = (self.dealt.get(&a), self.dealt.get(&b)) else {
            return Ordering::Equal;
        };
        let by_slot = (a.slots[slot] * b.groups).cmp(&(b.slots[slot] * a.groups));
        if is_parity {
            (a.parity * b.groups).cmp(&(b.parity * a.groups)).then(by_slot)
        } else {
            by_slot
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn candidate(no: u128, weight: u32) -> Candidate {
        let node = NodeId(no as u64);
        Candidate {
            store: StoreId(Uuid::from_u128(no)),
            node,
            domain: FailureDomain::Own(node),
            weight,
        }
    }

    fn volume() -> VolumeId {
        VolumeId(Uuid::from_u128(0x5eed))
    }

    fn count(tables: &[Vec<StoreId>], store: StoreId, slots: std::ops::Range<usize>) -> usize {
        tables.iter().flat_map(|table| &table[slots.clone()]).filter(|s| **s == store).count()
    }

    #[test]
    fn three_stores_share_every_slot_evenly() {
        let candidates: Vec<_> = (1..=3).map(|no| candidate(no, 100)).collect();
        let tables = place_groups(volume(), 48, 2, 1, &candidates).expect("three nodes");
        for entry in &candidates {
            assert_eq!(count(&tables, entry.store, 2..3), 16, "parity of {}", entry.store);
            for slot in 0..2 {
                let held = count(&tables, entry.store, slot..slot + 1);
                assert!((14..=18).contains(&held), "slot {slot} of {}: {held}", entry.store);
            }
        }
    }

    #[test]
    fn parity_is_even_where_stores_are_chosen_too() {
        let candidates: Vec<_> = (1..=7).map(|no| candidate(no, 10)).collect();
        let tables = place_groups(volume(), 700, 4, 2, &candidates).expect("seven nodes");
        for entry in &candidates {
            let held = count(&tables, entry.store, 0..6);
            let parity = count(&tables, entry.store, 4..6);
            assert!((560..=640).contains(&held), "{held} groups");
            assert!((parity * 3).abs_diff(held) <= 9, "{parity} parity of {held}");
        }
    }

    #[test]
    fn weight_attracts_groups_and_zero_takes_none() {
        let mut candidates: Vec<_> = (1..=6).map(|no| candidate(no, 10)).collect();
        candidates[0].weight = 20;
        candidates[5].weight = 0;
        let tables = place_groups(volume(), 1000, 1, 1, &candidates).expect("six nodes");
        let held = |no: usize| count(&tables, candidates[no].store, 0..2);
        assert!(held(0) > held(1) * 3 / 2, "{} against {}", held(0), held(1));
        assert_eq!(held(5), 0);
    }

    #[test]
    fn groups_are_on_distinct_nodes_and_do_not_depend_on_the_order() {
        let mut candidates: Vec<_> = (1..=9)
            .map(|no| Candidate { node: NodeId(no as u64 % 3), ..candidate(no, 5) })
            .collect();
        let tables = place_groups(volume(), 100, 2, 1, &candidates).expect("three nodes");
        for table in &tables {
            let nodes: BTreeSet<u128> = table.iter().map(|store| store.0.as_u128() % 3).collect();
            assert_eq!(nodes.len(), 3);
        }
        candidates.reverse();
        assert_eq!(place_groups(volume(), 100, 2, 1, &candidates), Ok(tables));
    }

    #[test]
    fn a_group_is_in_as_many_domains_as_there_are() {
        let named = |no: u128, domain: &str| Candidate {
            domain: FailureDomain::Named(domain.into()),
            ..candidate(no, 10)
        };
        let racks = ["a", "a", "a", "a", "b", "b", "c"];
        let candidates: Vec<_> = (1..).zip(racks).map(|(no, rack)| named(no, rack)).collect();
        let rack = |store: &StoreId| racks[store.0.as_u128() as usize - 1];
        for (data, parity, each_at_most) in [(2, 1, 1), (3, 2, 2)] {
            let tables = place_groups(volume(), 100, data, parity, &candidates).expect("seven");
            for table in &tables {
                for domain in ["a", "b", "c"] {
                    let held = table.iter().filter(|store| rack(store) == domain).count();
                    assert!((1..=each_at_most).contains(&held), "{table:?} has {held} in {domain}");
                }
            }
            // Within a domain its nodes share what it has.
            let first = count(&tables, candidates[0].store, 0..usize::from(data + parity));
            let fourth = count(&tables, candidates[3].store, 0..usize::from(data + parity));
            assert!(first.abs_diff(fourth) < 25, "{first} and {fourth}");
        }
    }

    #[test]
    fn a_new_node_moves_only_what_it_takes() {
        let mut candidates: Vec<_> = (1..=6).map(|no| candidate(no, 10)).collect();
        let before: Vec<_> = (0..500).map(|g| members(volume(), g, 3, &candidates)).collect();
        candidates.push(candidate(7, 10));
        for (group, old) in (0..500).zip(before) {
            let new = members(volume(), group, 3, &candidates);
            let joined = new.contains(&candidates[6].store);
            let kept = new.iter().filter(|store| old.contains(store)).count();
            assert_eq!(kept, if joined { 2 } else { 3 });
        }
    }

    #[test]
    fn too_few_nodes_are_told_plainly() {
        let error = place_groups(volume(), 4, 2, 1, &[candidate(1, 1), candidate(2, 1)]);
        let text = error.expect_err("two nodes").to_string();
        assert_eq!(text, "geometry 2+1 needs 3 nodes with a store, found 2");
        let error = place_groups(volume(), 4, 30, 3, &[]);
        assert_eq!(error, Err(PlacementError::Geometry { data: 30, parity: 3 }));
        assert_eq!(place_groups(volume(), 0, 2, 1, &[]), Err(PlacementError::NoGroups));
    }
}
