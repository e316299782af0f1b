//! Who votes in the metadata group.
//!
//! Three voters up to four nodes, five from there on, spread over failure domains; all other members
//! learn. Whoever votes goes on voting, unless it is to leave or is lost and another one can take its
//! place: every change of the voters is a moment in which fewer failures are tolerated.
//!
//! V1. A majority of the voters that are proposed answers. Else the change could not be agreed on, and
//!     nothing after it.
//! V2. A change leaves no fewer failures tolerated than before, as far as its number of voters allows.
//! V3. The number of voters is odd: one more than that tolerates nothing more.

use crate::types::{ClusterMap, Node};
use smalti_storage::ids::{Incarnation, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Who has been silent for so long does not answer.
pub const SILENT_AFTER: Duration = Duration::from_secs(1);

/// How many of so many nodes vote.
pub fn wanted(nodes: usize) -> usize {
    match nodes {
        0..=2 => nodes.min(1),
        3..=4 => 3,
        _ => 5,
    }
}

/// What goes before what when voters have to be found. The first that leaves enough who answer is taken.
#[derive(Clone, Copy)]
enum Order {
    /// Whoever votes already and is not lost, silent for a moment or not.
    Calm,
    /// Whoever answers.
    Answering,
    /// Likewise, and those that are to leave before those that are silent.
    Leaving,
}

/// The voters there should be; none while no others than the present ones would do. `silent`: for how long
/// each node has not answered. `lost`: one that is silent for so long does not come back.
pub fn choose(
    map: &ClusterMap,
    voters: &BTreeSet<NodeId>,
    silent: &BTreeMap<NodeId, Duration>,
    lost: Duration,
) -> Option<BTreeSet<NodeId>> {
    let choice = Choice { map, voters, silent, lost };
    // One that never started may never do, and would keep five from becoming three.
    let counts = |(id, node): &(&NodeId, &Node)| {
        !node.draining && (node.incarnation > Incarnation(0) || voters.contains(id))
    };
    let staying = map.nodes.iter().filter(counts).count();
    // Draining nodes vote on where too few others can: of two voters none may fail.
    let most = wanted(staying.max(map.nodes.len().min(3)));
    // Nodes that have never answered are no voters yet. Less than three is for clusters of two.
    let sizes = (most.min(3)..=most).rev().step_by(2);
    for size in sizes {
        for order in [Order::Calm, Order::Answering, Order::Leaving] {
            let Some(chosen) = choice.pick(size, order) else { break };
            // Nothing but that some are silent asks for others.
            if chosen == *voters {
                return choice.is_agreed_on(&chosen).then_some(chosen);
            }
            if choice.is_no_worse(&chosen) {
                return Some(chosen);
            }
        }
    }
    None
}

struct Choice<'a> {
    map: &'a ClusterMap,
    voters: &'a BTreeSet<NodeId>,
    silent: &'a BTreeMap<NodeId, Duration>,
    lost: Duration,
}

impl Choice<'_> {
    fn silent_for(&self, node: NodeId) -> Duration {
        self.silent.get(&node).copied().unwrap_or(Duration::MAX)
    }

    fn answers(&self, node: NodeId) -> bool {
        self.silent_for(node) < SILENT_AFTER
    }

    /// The lower the better; none for those that can not be voters.
    fn rank(&self, id: NodeId, node: &Node, order: Order) -> Option<u8> {
        let (votes, answers) = (self.voters.contains(&id), self.answers(id));
        let comes = !votes && answers && node.recruit.is_none() && !node.draining;
        if !votes && !comes {
            return None;
        }
        let lost = self.silent_for(id) >= self.lost;
        Some(match (order, node.draining) {
            (Order::Calm, false) if comes => 2,
            (Order::Calm, false) if lost => 3,
            (Order::Calm, false) => u8::from(!answers),
            (_, false) if comes => 1,
            (_, false) if answers => 0,
            (_, false) => 4 + u8::from(lost),
            (Order::Leaving, true) if answers => 3,
            (_, true) => 6 + u8::from(!answers),
        })
    }

    /// The best ones, apart from each other where that can be; none where there are too few.
    fn pick(&self, size: usize, order: Order) -> Option<BTreeSet<NodeId>> {
        let rank = |(id, node): (&NodeId, &Node)| Some((self.rank(*id, node, order)?, *id));
        let mut ranked: Vec<(u8, NodeId)> = self.map.nodes.iter().filter_map(rank).collect();
        ranked.sort_unstable();
        let mut chosen = BTreeSet::new();
        let mut domains = BTreeSet::new();
        for apart in [true, false] {
            for (rank, id) in &ranked {
                // For the sake of its domain nobody is taken who is not as good as one that answers.
                let fresh = *rank < 3 && !domains.contains(&self.map.domain_of(*id));
                if chosen.len() < size && (fresh || !apart) && !chosen.contains(id) {
                    domains.insert(self.map.domain_of(*id));
                    chosen.insert(*id);
                }
            }
        }
        (chosen.len() == size).then_some(chosen)
    }

    /// How many more failures a set stands; below zero when no majority of it answers.
    fn stands(&self, voters: &BTreeSet<NodeId>) -> isize {
        let answer = voters.iter().filter(|voter| self.answers(**voter)).count();
        answer as isize - majority(voters.len())
    }

    fn is_agreed_on(&self, voters: &BTreeSet<NodeId>) -> bool {
        self.stands(voters) >= 0
    }

    fn is_no_worse(&self, chosen: &BTreeSet<NodeId>) -> bool {
        let whole = chosen.len() as isize - majority(chosen.len());
        self.is_agreed_on(chosen) && self.stands(chosen) >= self.stands(self.voters).min(whole)
    }
}

fn majority(voters: usize) -> isize {
    voters as isize / 2 + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeAddresses;

    fn map(nodes: u64) -> ClusterMap {
        let at = |port: u16| ([127, 0, 0, 1], port).into();
        let node = |no| {
            let addresses = NodeAddresses { quic: at(1), api: at(2), nbd: at(3) };
            let node = Node::new(format!("n{no}"), addresses);
            (NodeId(no), Node { incarnation: Incarnation(1), ..node })
        };
        ClusterMap { nodes: (1..=nodes).map(node).collect(), ..ClusterMap::default() }
    }

    fn ids(nodes: &[u64]) -> BTreeSet<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    fn chosen(map: &ClusterMap, voters: &[u64], silent: &[(u64, u64)]) -> BTreeSet<NodeId> {
        choice(map, voters, silent).expect("a choice")
    }

    fn choice(map: &ClusterMap, voters: &[u64], silent: &[(u64, u64)]) -> Option<BTreeSet<NodeId>> {
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
    fn a_member_that_never_started_keeps_no_vote_at_a_node_that_leaves() {
        let mut map = map(6);
        map.nodes.get_mut(&NodeId(6)).expect("there").incarnation = Incarnation(0);
        map.nodes.get_mut(&NodeId(4)).expect("there").draining = true;
        assert_eq!(chosen(&map, &[1, 2, 3, 4, 5], &[(6, 9999)]).len(), 3);
        assert!(!chosen(&map, &[1, 2, 3, 4, 5], &[(6, 9999)]).contains(&NodeId(4)));
        // Those of a cluster that is being founded vote before they have started.
        let mut founded = self::map(5);
        founded.nodes.values_mut().for_each(|node| node.incarnation = Incarnation(0));
        assert_eq!(chosen(&founded, &[1, 2, 3, 4, 5], &[]), ids(&[1, 2, 3, 4, 5]));
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

    fn drained(nodes: u64, leaving: &[u64]) -> ClusterMap {
        let mut map = map(nodes);
        for no in leaving {
            map.nodes.get_mut(&NodeId(*no)).expect("there").draining = true;
        }
        map
    }

    #[test]
    fn who_answers_goes_before_who_does_not_when_voters_have_to_change() {
        let dead = [(1, 9), (2, 9)];
        assert_eq!(chosen(&drained(5, &[5]), &[1, 2, 3, 4, 5], &dead), ids(&[1, 3, 4]));
        assert_eq!(chosen(&drained(6, &[5]), &[1, 2, 3, 4, 5], &dead), ids(&[1, 2, 3, 4, 6]));
        // Nothing but silence: they stay.
        assert_eq!(chosen(&map(7), &[1, 2, 3, 4, 5], &dead), ids(&[1, 2, 3, 4, 5]));
    }

    #[test]
    fn no_change_leaves_fewer_failures_tolerated() {
        // Of 1, 2 and 3 one more could not fail, of those that vote now it can: one that leaves votes on.
        let map = drained(5, &[4, 5]);
        assert_eq!(chosen(&map, &[1, 2, 3, 4, 5], &[(1, 9)]), ids(&[2, 3, 4]));
        assert_eq!(chosen(&map, &[2, 3, 4], &[(1, 9)]), ids(&[2, 3, 4]));
        assert_eq!(chosen(&map, &[2, 3, 4], &[]), ids(&[1, 2, 3]));
    }

    #[test]
    fn a_silent_voter_has_no_place_for_the_sake_of_its_domain() {
        let mut map = drained(5, &[5]);
        for (no, domain) in [(1, "a"), (2, "a"), (3, "b"), (4, "c"), (5, "d")] {
            map.nodes.get_mut(&NodeId(no)).expect("there").domain = domain.into();
        }
        assert_eq!(chosen(&map, &[1, 2, 3, 4, 5], &[(3, 9)]), ids(&[1, 2, 4]));
        assert_eq!(chosen(&map, &[1, 2, 3, 4, 5], &[]), ids(&[1, 3, 4]));
    }

    #[test]
    fn where_no_majority_would_answer_nothing_is_chosen() {
        let map = drained(4, &[3]);
        assert_eq!(choice(&map, &[1, 2, 3], &[(1, 9), (2, 9), (4, 9)]), None);
        // Those who are back in a moment lose nothing by it.
        assert_eq!(choice(&self::map(5), &[1, 2, 3], &[(1, 9), (2, 9), (4, 9), (5, 9)]), None);
        assert_eq!(choice(&self::map(4), &[1, 2, 3], &[(1, 9), (2, 9)]), None);
    }

    #[test]
    fn an_even_number_never_votes() {
        let never = [(5, 9999)];
        assert_eq!(chosen(&map(5), &[1, 2, 3], &never), ids(&[1, 2, 3]));
        assert_eq!(chosen(&map(5), &[1, 2, 3, 4], &never), ids(&[1, 2, 3]));
        assert_eq!(chosen(&map(5), &[1, 2, 3], &[(5, 9999), (3, 9999)]), ids(&[1, 2, 4]));
        // Of one voter there would be one copy.
        assert_eq!(choice(&map(3), &[1, 2], &[(3, 9999)]), None);
        assert_eq!(chosen(&map(3), &[1, 2], &[]), ids(&[1, 2, 3]));
    }
}
