//! Whether another node reaches more of a volume's stores than its coordinator does, and which links are
//! broken.
//!
//! A node that is down is heard by nobody, and no other seat helps. One that others hear and the
//! coordinator does not is cut off from the coordinator alone: there a seat elsewhere gets back what
//! the volume would have to do without.

use crate::types::{ClusterMap, Volume};
use smalti_storage::ids::{NodeId, StoreId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Whom each node hears, as it says itself. A node hears itself.
pub type Views = BTreeMap<NodeId, BTreeSet<NodeId>>;

/// A node that reaches more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Better {
    /// Which.
    pub node: NodeId,
    /// How many slots more it reaches, of the group that lacks most; how many nodes, where it is to lead.
    pub gain: usize,
}

/// A node that is well, and that some hear and others do not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HalfHeard {
    /// Others that hear it. None of them: then it hears who does not hear it.
    pub by: BTreeSet<NodeId>,
    /// Others that do not.
    pub not_by: BTreeSet<NodeId>,
}

/// The nodes that one hears and another one does not. One that is down is heard by nobody.
pub fn half_heard(views: &Views) -> BTreeMap<NodeId, HalfHeard> {
    let heard: BTreeSet<NodeId> = views.values().flatten().copied().collect();
    let half = heard.into_iter().map(|node| {
        let others = views.iter().filter(|(other, _)| **other != node);
        let (by, not_by): (Vec<_>, Vec<_>) = others.partition(|(_, hears)| hears.contains(&node));
        let names = |of: Vec<(&NodeId, _)>| of.into_iter().map(|(node, _)| *node).collect();
        (node, HalfHeard { by: names(by), not_by: names(not_by) })
    });
    half.filter(|(_, seen)| !seen.not_by.is_empty()).collect()
}

/// The candidates that reach most of the volume's stores. Of who tells nothing, nothing is known to be
/// out of reach.
pub fn best_seats(
    map: &ClusterMap,
    volume: &Volume,
    views: &Views,
    candidates: &[NodeId],
) -> Vec<NodeId> {
    let lacks = |node: &NodeId| views.get(node).map_or((0, 0), |seen| lacks(map, volume, seen));
    let least = candidates.iter().map(lacks).min();
    candidates.iter().copied().filter(|node| Some(lacks(node)) == least).collect()
}

/// The voter that hears most of the members, if that is more than the leader does. Who does not hear the
/// leader gets no maps. Only a voter that the leader hears can be told, and only one that hears a majority of
/// them can be elected.
pub fn better_leader(
    map: &ClusterMap,
    views: &Views,
    leader: NodeId,
    voters: &BTreeSet<NodeId>,
) -> Option<Better> {
    let own = views.get(&leader)?;
    let hears = |seen: &BTreeSet<NodeId>| map.nodes.keys().filter(|id| seen.contains(id)).count();
    let stays = |node: &NodeId| map.nodes.get(node).is_some_and(|node| !node.draining);
    let wins = |seen: &BTreeSet<NodeId>| seen.intersection(voters).count() > voters.len() / 2;
    let others = voters.iter().filter(|node| **node != leader && own.contains(node) && stays(node));
    let others = others.filter_map(|node| {
        let seen = views.get(node).filter(|seen| wins(seen))?;
        Some((hears(seen), Reverse(*node)))
    });
    let (best, Reverse(node)) = others.max()?;
    let gain = best.checked_sub(hears(own)).filter(|gain| *gain > 0)?;
    Some(Better { node, gain })
}

/// Whether `to` would do without more of the volume's slots than `holder` does, as far as both tell.
pub fn reaches_less(
    map: &ClusterMap,
    volume: &Volume,
    views: &Views,
    to: NodeId,
    holder: NodeId,
) -> bool {
    let lacks = |node: &NodeId| views.get(node).map(|seen| lacks(map, volume, seen));
    lacks(&to).zip(lacks(&holder)).is_some_and(|(theirs, ours)| theirs > ours)
}

/// How many slots a node does without: in the group that lacks most, and in all.
type Lacks = (usize, usize);

/// The candidate that reaches most of the volume's stores, if that is more than the holder of its seat
/// does. Only one that the holder hears counts: its clients have to get there.
pub fn better_seat(
    map: &ClusterMap,
    volume: &Volume,
    views: &Views,
    candidates: &[NodeId],
) -> Option<Better> {
    let holder = volume.coordinator?.node;
    let seen = views.get(&holder)?;
    let now = lacks(map, volume, seen);
    let reach = candidates.iter().filter(|node| **node != holder && seen.contains(node));
    let reach = reach.filter_map(|node| Some((lacks(map, volume, views.get(node)?), *node)));
    let (best, node) = reach.min()?;
    let gain = now.0.checked_sub(best.0).filter(|gain| *gain > 0)?;
    Some(Better { node, gain })
}

fn lacks(map: &ClusterMap, volume: &Volume, seen: &BTreeSet<NodeId>) -> Lacks {
    let unseen = |store: &&StoreId| map.node_of(**store).is_some_and(|node| !seen.contains(&node));
    let by_group = volume.groups.iter().map(|group| group.slots.iter().filter(unseen).count());
    by_group.fold((0, 0), |(most, all), here| (most.max(here), all + here))
}
