//! Who votes in the metadata group.
//!
//! Three voters up to four nodes, five from there on, spread over failure domains; all other members
//! learn. Whoever votes goes on voting, unless it is to leave or is lost and another one can take its
//! place: every change of the voters is a moment in which fewer failures are tolerated.

use crate::types::{ClusterMap, Node};
use smalti_storage::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How many of so many nodes vote.
pub fn wanted(nodes: usize) -> usize {
    match nodes {
        0..=2 => nodes.min(1),
        3..=4 => 3,
        _ => 5,
    }
}

/// The voters there should be. `silent`: for how long each node has not answered. `lost`: one that is
/// silent for so long does not come back.
pub fn choose(
    map: &ClusterMap,
    voters: &BTreeSet<NodeId>,
    silent: &BTreeMap<NodeId, Duration>,
    lost: Duration,
) -> BTreeSet<NodeId> {
    let silent_for = |node: &NodeId| silent.get(node).copied().unwrap_or(Duration::MAX);
    let up = |node: &NodeId| silent_for(node) < Duration::from_secs(1);
    let staying = map.nodes.values().filter(|node| !node.draining).count();
    // Draining nodes vote on where too few others can: of two voters none may fail.
    let size = wanted(staying.max(map.nodes.len().min(3)));
    // Best first: who votes already, and is not lost; then who is there; then the rest of the voters.
    let rank = |id: &NodeId, node: &Node| {
        let (votes, recruit) = (voters.contains(id), node.recruit.is_some());
        match (votes && silent_for(id) < lost, up(id) && !recruit) {
            _ if node.draining => 3,
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 2,
        }
    };
    let mut ranked: Vec<(u8, &NodeId)> =
        map.nodes.iter().map(|(id, node)| (rank(id, node), id)).collect();
    ranked.sort();
    let mut chosen = BTreeSet::new();
    let mut domains = BTreeSet::new();
    let eligible = |rank: u8, id: &NodeId| rank < 2 || voters.contains(id);
    for apart in [true, false] {
        for (rank, id) in &ranked {
            let fresh = *rank < 2 && !domains.contains(&map.domain_of(**id));
            if chosen.len() < size
                && eligible(*rank, id)
                && (fresh || !apart)
                && !chosen.contains(*id)
            {
                domains.insert(map.domain_of(**id));
                chosen.insert(**id);
            }
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeAddresses;

    fn map(nodes: u64) -> ClusterMap {
        let at = |port: u16| ([127, 0, 0, 1], port).into();
        let node = |no| {
            let addresses = NodeAddresses { quic: at(1), api: at(2), nbd: at(3) };
            (NodeId(no), Node::new(format!("n{no}"), addresses))
        };
        ClusterMap { nodes: (1..=nodes).map(node).collect(), ..ClusterMap::default() }
    }

    fn ids(nodes: &[u64]) -> BTreeSet<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    fn chosen(map: &ClusterMap, voters: &[u64], silent: &[(u64, u64)]) -> BTreeSet<NodeId> {
        let mut seen: BTreeMap<NodeId, Duration> =
            map.nodes.keys().map(|node| (*node, Duration::ZERO)).collect();
        seen.extend(silent.iter().map(|(node, secs)| (NodeId(*node), Duration::from_secs(*secs))));
        choose(map, &ids(voters), &seen, Duration::from_secs(600))
    }

    #[test]
    fn a_growing_cluster_gets_more_voters_and_a_shrinking_one_fewer() {
        assert_eq!(chosen(&map(3), &[1, 2, 3], &[]), ids(&[1, 2, 3]));
        assert_eq!(chosen(&map(4), &[1, 2, 3], &[]), ids(&[1, 2, 3]));
        assert_eq!(chosen(&map(6), &[1, 2, 3], &[]), ids(&[1, 2, 3, 4, 5]));
        let mut leaving = map(6);
        for no in [1, 2, 3] {
            leaving.nodes.get_mut(&NodeId(no)).expect("there").draining = true;
        }
        assert_eq!(chosen(&leaving, &[1, 2, 3, 4, 5], &[]), ids(&[4, 5, 6]));
    }

    #[test]
    fn a_voter_is_replaced_when_it_is_lost_and_not_before() {
        assert_eq!(chosen(&map(4), &[1, 2, 3], &[(2, 599)]), ids(&[1, 2, 3]));
        assert_eq!(chosen(&map(4), &[1, 2, 3], &[(2, 600)]), ids(&[1, 3, 4]));
        // Nobody can take its place: it may still come back.
        assert_eq!(chosen(&map(3), &[1, 2, 3], &[(2, 9999)]), ids(&[1, 2, 3]));
        assert_eq!(chosen(&map(4), &[1, 2, 3], &[(2, 9999), (4, 2)]), ids(&[1, 2, 3]));
    }

    #[test]
    fn three_vote_as_long_as_there_are_three() {
        let mut leaving = map(3);
        leaving.nodes.get_mut(&NodeId(3)).expect("there").draining = true;
        assert_eq!(chosen(&leaving, &[1, 2, 3], &[]), ids(&[1, 2, 3]));
        let mut leaving = map(5);
        for no in [1, 2, 3] {
            leaving.nodes.get_mut(&NodeId(no)).expect("there").draining = true;
        }
        let chosen = chosen(&leaving, &[1, 2, 3, 4, 5], &[]);
        assert_eq!(chosen.len(), 3);
        assert!(chosen.is_superset(&ids(&[4, 5])), "{chosen:?}");
    }

    #[test]
    fn a_voter_alone_in_its_domain_is_replaced_too() {
        let mut map = map(4);
        for (no, domain) in [(1, "a"), (2, "a"), (3, "b"), (4, "c")] {
            map.nodes.get_mut(&NodeId(no)).expect("there").domain = domain.into();
        }
        assert_eq!(chosen(&map, &[1, 3, 4], &[]), ids(&[1, 3, 4]));
        assert_eq!(chosen(&map, &[1, 3, 4], &[(4, 600)]), ids(&[1, 2, 3]));
    }

    #[test]
    fn who_has_forgotten_what_it_voted_for_is_admitted_first() {
        let mut map = map(4);
        map.nodes.get_mut(&NodeId(4)).expect("there").recruit = Some(Default::default());
        assert_eq!(chosen(&map, &[1, 2, 3], &[(2, 600)]), ids(&[1, 2, 3]));
    }

    #[test]
    fn voters_are_spread_over_domains() {
        let mut map = map(6);
        for (no, domain) in [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "b"), (6, "c")] {
            map.nodes.get_mut(&NodeId(no)).expect("there").domain = domain.into();
        }
        assert_eq!(chosen(&map, &[1, 2, 3], &[]), ids(&[1, 2, 3, 4, 6]));
    }
}
