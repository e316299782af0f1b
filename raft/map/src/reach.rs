//! Whether another node reaches more of a volume's stores than its coordinator does.
//!
//! A node that is down is heard by nobody, and no other seat helps. One that others hear and the
//! coordinator does not is cut off from the coordinator alone: there a seat elsewhere gets back what
//! the volume would have to do without.

use crate::types::{ClusterMap, Volume};
use smalti_storage::ids::{NodeId, StoreId};
use std::collections::{BTreeMap, BTreeSet};

/// Whom each node hears, as it says itself. A node hears itself.
pub type Views = BTreeMap<NodeId, BTreeSet<NodeId>>;

/// A seat that reaches more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Better {
    /// Whose it would be.
    pub node: NodeId,
    /// How many slots more it reaches, of the group that lacks most.
    pub gain: usize,
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
