//! Seats that reach more of a volume's stores.

mod support;

use smalti_map::reach::{
    Better, Views, best_seats, better_leader, better_seat, half_heard, reaches_less,
};
use smalti_storage::ids::NodeId;
use support::*;

/// Five nodes that hear each other, but for these pairs.
fn views(cuts: &[(u64, u64)]) -> Views {
    let hears = |a: u64, b: u64| !cuts.contains(&(a, b)) && !cuts.contains(&(b, a));
    let seen = |a: u64| (1..=5).filter(|b| hears(a, *b)).map(NodeId).collect();
    (1..=5).map(|a| (NodeId(a), seen(a))).collect()
}

/// What is found for the volume on nodes 1, 2, 3 with its seat at node 1.
fn found(views: &Views, candidates: &[u64]) -> Option<(u64, usize)> {
    let map = active();
    let candidates: Vec<NodeId> = candidates.iter().copied().map(NodeId).collect();
    let better = better_seat(&map, volume(&map), views, &candidates);
    better.map(|Better { node, gain }| (node.0, gain))
}

#[test]
fn a_seat_that_reaches_all_stays() {
    assert_eq!(found(&views(&[]), &[1, 2, 3, 4, 5]), None);
    // Node 1 does not hear two that have nothing of the volume.
    assert_eq!(found(&views(&[(1, 4), (1, 5)]), &[1, 2, 3, 4, 5]), None);
}

#[test]
fn what_others_hear_counts_and_who_is_down_does_not() {
    let down = [(1, 2), (3, 2), (4, 2), (5, 2), (1, 3), (4, 3), (5, 3)];
    assert_eq!(found(&views(&down), &[1, 4, 5]), None);
    // Nodes 2 and 3 are heard by all but node 1, and 4 and 5 hear it.
    assert_eq!(found(&views(&[(1, 2), (1, 3)]), &[1, 2, 3, 4, 5]), Some((4, 2)));
    assert_eq!(found(&views(&[(1, 2), (1, 3)]), &[1, 2, 3, 5]), Some((5, 2)));
    // One of the two is heard by nobody.
    let one = [(1, 2), (1, 3), (4, 2), (5, 2), (3, 2)];
    assert_eq!(found(&views(&one), &[1, 3, 4, 5]), Some((4, 1)));
}

#[test]
fn the_one_between_two_that_are_cut_is_better() {
    assert_eq!(found(&views(&[(1, 2)]), &[1, 2, 3]), Some((3, 1)));
    // It reaches no less by itself than the others do: the seat stays where it is.
    assert_eq!(found(&views(&[(1, 2), (2, 3), (1, 3)]), &[1, 2, 3]), None);
}

#[test]
fn a_seat_is_not_handed_to_who_reaches_less() {
    let map = active();
    let less =
        |views: &Views, to: u64| reaches_less(&map, volume(&map), views, NodeId(to), NodeId(1));
    assert!(!less(&views(&[]), 2));
    assert!(!less(&views(&[(4, 5)]), 4));
    assert!(less(&views(&[(2, 3)]), 2));
    // Both lack one.
    assert!(!less(&views(&[(1, 2)]), 2));
    let mut some = views(&[(2, 3)]);
    some.remove(&NodeId(2));
    assert!(!less(&some, 2), "it has told nothing");
}

#[test]
fn the_voter_that_hears_most_is_the_better_leader() {
    let map = active();
    let found = |cuts: &[(u64, u64)], voters: &[u64]| {
        let voters = voters.iter().copied().map(NodeId).collect();
        let better = better_leader(&map, &views(cuts), NodeId(1), &voters);
        better.map(|Better { node, gain }| (node.0, gain))
    };
    assert_eq!(found(&[], &[1, 2, 3, 4, 5]), None);
    assert_eq!(found(&[(1, 2), (1, 3)], &[1, 2, 3, 4, 5]), Some((4, 2)));
    assert_eq!(found(&[(1, 2), (1, 3)], &[1, 2, 3, 5]), Some((5, 2)));
    // Of those that it hears none hears more than it does, and the others can not be told.
    assert_eq!(found(&[(1, 2), (2, 3)], &[1, 2, 3]), None);
    // Who is down is heard by nobody.
    assert_eq!(found(&[(1, 2), (3, 2), (4, 2), (5, 2)], &[1, 3, 4]), None);
    // It would hear four of five nodes, and of the voters only the leader and itself.
    let cuts = [(1, 2), (1, 4), (5, 3)];
    assert_eq!(found(&cuts, &[1, 5]), Some((5, 1)));
    assert_eq!(found(&[(1, 2), (1, 4), (1, 3), (5, 3)], &[1, 3, 5]), Some((5, 2)));
    let cuts = [(1, 2), (1, 3), (1, 4), (5, 3), (5, 4)];
    assert_eq!(found(&cuts, &[1, 3, 4, 5]), None);
}

#[test]
fn a_vacant_seat_goes_to_who_reaches_most() {
    let map = active();
    let found = |cuts: &[(u64, u64)], candidates: &[u64]| {
        let candidates: Vec<NodeId> = candidates.iter().copied().map(NodeId).collect();
        let best = best_seats(&map, volume(&map), &views(cuts), &candidates);
        best.into_iter().map(|node| node.0).collect::<Vec<_>>()
    };
    assert_eq!(found(&[], &[2, 3, 4]), [2, 3, 4]);
    assert_eq!(found(&[(4, 3)], &[2, 3, 4]), [2, 3]);
    assert_eq!(found(&[(2, 3)], &[2, 3]), [2, 3]);
    assert_eq!(found(&[], &[]), [] as [u64; 0]);
}

#[test]
fn its_clients_have_to_get_there() {
    let cuts = [(1, 2), (1, 3), (1, 4), (1, 5)];
    assert_eq!(found(&views(&cuts), &[1, 2, 3, 4, 5]), None);
}

#[test]
fn who_tells_nothing_is_not_judged() {
    let mut some = views(&[(1, 2), (1, 3)]);
    some.remove(&NodeId(4));
    assert_eq!(found(&some, &[1, 4, 5]), Some((5, 2)));
    some.remove(&NodeId(1));
    assert_eq!(found(&some, &[1, 4, 5]), None);
}

/// Nodes that some hear and others do not, with both, by what node 3 is told: it knows the views of those
/// that it hears.
fn half(cuts: &[(u64, u64)]) -> Vec<(u64, Vec<u64>, Vec<u64>)> {
    let mut views = views(cuts);
    let own = views[&NodeId(3)].clone();
    views.retain(|node, _| own.contains(node));
    let numbers = |nodes: &std::collections::BTreeSet<NodeId>| nodes.iter().map(|n| n.0).collect();
    let half = half_heard(&views);
    half.iter().map(|(node, seen)| (node.0, numbers(&seen.by), numbers(&seen.not_by))).collect()
}

#[test]
fn a_broken_link_is_told_from_a_dead_node() {
    assert_eq!(half(&[]), []);
    // Dead: heard by nobody.
    assert_eq!(half(&[(1, 2), (3, 2), (4, 2), (5, 2)]), []);
    // Node 3 itself does not hear node 2, and what that hears it is not told.
    assert_eq!(half(&[(3, 2)]), [(2, vec![1, 4, 5], vec![3])]);
    assert_eq!(half(&[(3, 2), (4, 2), (5, 2)]), [(2, vec![1], vec![3, 4, 5])]);
    // A link between two others: either does not hear the other.
    let both = [(1, vec![3, 4, 5], vec![2]), (2, vec![3, 4, 5], vec![1])];
    assert_eq!(half(&[(1, 2)]), both);
    // Node 3 alone hears one of them.
    let star = [
        (1, vec![3, 4, 5], vec![2]),
        (2, vec![3], vec![1, 4, 5]),
        (4, vec![1, 3, 5], vec![2]),
        (5, vec![1, 3, 4], vec![2]),
    ];
    assert_eq!(half(&[(1, 2), (4, 2), (5, 2)]), star);
    // Cut off from everybody it is told nothing.
    assert_eq!(half(&[(3, 1), (3, 2), (3, 4), (3, 5)]), []);
}

#[test]
fn one_that_hears_others_and_is_heard_by_none_is_well_all_the_same() {
    let mut some = views(&[]);
    for node in [2, 3, 4, 5] {
        some.get_mut(&NodeId(node)).expect("its view").remove(&NodeId(1));
    }
    let half = half_heard(&some);
    assert_eq!(half.keys().collect::<Vec<_>>(), [&NodeId(1)]);
    assert!(half[&NodeId(1)].by.is_empty());
    // One whose view is not known is not judged by it.
    some.remove(&NodeId(2));
    assert_eq!(half_heard(&some)[&NodeId(1)].not_by, [3, 4, 5].map(NodeId).into());
}
