//! Who is to take a share instead of a custodian that leaves or is lost.
//!
//! C1. As many are proposed as there are, and as many shares stay needed: only an operator changes that.
//! C2. Enough of those who have shares now answer to deal them on, and so do all who are to get one; else
//!     nothing would come of it.

use crate::types::{ClusterMap, Node};
use crate::voters::SILENT_AFTER;
use smalti_storage::ids::{Incarnation, NodeId};
use std::collections::BTreeMap;
use std::time::Duration;

/// The custodians there should be instead of the present ones, in order of share number; none while those
/// are as good as any. `silent`: for how long each node has not answered. `lost`: one that is silent for so
/// long does not come back.
pub fn choose(
    map: &ClusterMap,
    silent: &BTreeMap<NodeId, Duration>,
    lost: Duration,
) -> Option<Vec<NodeId>> {
    let silent_for = |node: NodeId| silent.get(&node).copied().unwrap_or(Duration::MAX);
    let answers = |node: &NodeId| silent_for(*node) < SILENT_AFTER;
    let is_lost = |node: NodeId| silent_for(node) >= lost;
    let drains = |node: NodeId| map.nodes.get(&node).is_none_or(|entry| entry.draining);
    let mut chosen: Vec<NodeId> = map.custodians.nodes().collect();
    let mut comes: Vec<NodeId> = map
        .nodes
        .iter()
        .filter(|(id, node)| is_fit(node) && answers(id) && !map.custodians.has(**id))
        .map(|(id, _)| *id)
        .collect();
    let mut changed = false;
    let places = |goes: &dyn Fn(NodeId) -> bool| {
        chosen.iter().enumerate().filter(|(_, node)| goes(**node)).map(|(at, _)| at).collect()
    };
    let lost_places: Vec<usize> = places(&is_lost);
    let drained_places: Vec<usize> = places(&|node| drains(node) && !is_lost(node));
    // One that does not answer keeps everything from being dealt on; one that is drained can wait.
    for at in lost_places.into_iter().chain(drained_places) {
        if comes.is_empty() {
            break;
        }
        // Apart from those that stay, where that can be.
        let taken = |other: &NodeId| {
            let domain = map.domain_of(*other);
            let stays = |(no, node): (usize, &NodeId)| no != at && map.domain_of(*node) == domain;
            chosen.iter().enumerate().any(stays)
        };
        let best = comes.iter().position(|node| !taken(node)).unwrap_or(0);
        chosen[at] = comes.remove(best);
        changed = true;
    }
    let dealers = map.custody.holders.iter().filter(|holder| answers(&holder.node)).count();
    let able = dealers >= usize::from(map.custody.threshold) && chosen.iter().all(answers);
    (changed && able).then_some(chosen)
}

fn is_fit(node: &Node) -> bool {
    !node.draining && node.incarnation > Incarnation(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::types::{Custodians, Custody, NodeAddresses, ShareHolder};

    const LOST: Duration = Duration::from_secs(60);

    fn nodes(numbers: &[u64]) -> Vec<NodeId> {
        numbers.iter().copied().map(NodeId).collect()
    }

    /// So many nodes, each in a domain of its own, the first three of which are custodians.
    fn map(count: u64) -> ClusterMap {
        let at = ([127, 0, 0, 1], 1).into();
        let addresses = NodeAddresses { quic: at, api: at, nbd: at };
        let node = |no: u64| {
            let mut node = Node::new(format!("n{no}"), addresses.clone());
            node.incarnation = Incarnation(1);
            (NodeId(no), node)
        };
        let holder = |no: u8| ShareHolder { node: NodeId(no.into()), share: no };
        let holders: Vec<ShareHolder> = (1..=3).map(holder).collect();
        ClusterMap {
            nodes: (1..=count).map(node).collect(),
            custodians: Custodians {
                share_epoch: 1,
                since: 0,
                threshold: 2,
                holders: holders.clone(),
                new_master: false,
            },
            custody: Custody {
                share_epoch: 1,
                threshold: 2,
                holders,
                commitments: Vec::new(),
                sealed_for_recovery: Vec::new(),
            },
            ..ClusterMap::default()
        }
    }

    fn choice(map: &ClusterMap, away: &[(u64, u64)]) -> Option<Vec<NodeId>> {
        let mut silent: BTreeMap<NodeId, Duration> =
            map.nodes.keys().map(|node| (*node, Duration::ZERO)).collect();
        for (no, seconds) in away {
            silent.insert(NodeId(*no), Duration::from_secs(*seconds));
        }
        choose(map, &silent, LOST)
    }

    #[test]
    fn custodians_stay_while_they_can() {
        let map = map(5);
        assert_eq!(choice(&map, &[]), None);
        assert_eq!(choice(&map, &[(2, 59)]), None, "it may come back");
        assert_eq!(choice(&map, &[(4, 99), (5, 99)]), None, "they have no shares");
    }

    #[test]
    fn who_is_lost_or_to_leave_is_replaced_in_its_place() {
        let mut map = map(5);
        assert_eq!(choice(&map, &[(2, 60)]), Some(nodes(&[1, 4, 3])));
        assert_eq!(choice(&map, &[(2, 60), (4, 2)]), Some(nodes(&[1, 5, 3])), "4 is silent");
        map.nodes.get_mut(&NodeId(3)).unwrap().draining = true;
        assert_eq!(choice(&map, &[]), Some(nodes(&[1, 2, 4])));
        map.nodes.get_mut(&NodeId(4)).unwrap().draining = true;
        assert_eq!(choice(&map, &[]), Some(nodes(&[1, 2, 5])));
        map.nodes.get_mut(&NodeId(5)).unwrap().incarnation = Incarnation(0);
        assert_eq!(choice(&map, &[]), None, "nobody is left to take it");
    }

    #[test]
    fn nothing_is_proposed_that_could_not_be_done() {
        let mut map = map(5);
        map.nodes.get_mut(&NodeId(3)).unwrap().draining = true;
        assert_eq!(choice(&map, &[(2, 5)]), None, "2 has to take its new share");
        // Two are lost, and one share is not enough to deal on.
        assert_eq!(choice(&map, &[(1, 60), (2, 60)]), None);
        map.custody.threshold = 1;
        assert_eq!(choice(&map, &[(1, 60), (2, 60)]), Some(nodes(&[4, 5, 3])));
    }

    #[test]
    fn another_failure_domain_is_preferred() {
        let mut map = map(5);
        for (no, domain) in [(1, "a"), (2, "b"), (3, "c"), (4, "a"), (5, "c")] {
            map.nodes.get_mut(&NodeId(no)).unwrap().domain = domain.into();
        }
        assert_eq!(choice(&map, &[(3, 60)]), Some(nodes(&[1, 2, 5])));
        assert_eq!(choice(&map, &[(1, 60)]), Some(nodes(&[4, 2, 3])));
        assert_eq!(choice(&map, &[(2, 60)]), Some(nodes(&[1, 4, 3])), "none is apart from both");
    }
}
