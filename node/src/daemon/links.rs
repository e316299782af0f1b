//! What is told of links that are broken while the nodes at both ends are well.

use smalti_map::reach::HalfHeard;
use smalti_storage::ids::NodeId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// So many nodes are called by name.
const NAMED: usize = 3;

/// Nodes that some do not hear, so that each link is told of once: as a rule neither end hears the other, and
/// it is told of the one that has more such links.
pub(super) fn once_each(half: &BTreeMap<NodeId, HalfHeard>) -> BTreeMap<NodeId, HalfHeard> {
    let rank = |node: NodeId| (half.get(&node).map_or(0, |seen| seen.not_by.len()), Reverse(node));
    let unheard = |node: NodeId, by: NodeId| {
        half.get(&node).is_some_and(|seen: &HalfHeard| seen.not_by.contains(&by))
    };
    let told = half.iter().map(|(node, seen)| {
        let here = |by: &&NodeId| !unheard(**by, *node) || rank(*node) > rank(**by);
        let not_by = seen.not_by.iter().filter(here).copied().collect();
        (*node, HalfHeard { by: seen.by.clone(), not_by })
    });
    told.filter(|(_, seen)| !seen.not_by.is_empty()).collect()
}

/// The problem of a node that some do not hear, and the remedy.
pub(super) fn problem(
    node: NodeId,
    seen: &HalfHeard,
    me: NodeId,
    name: impl Fn(NodeId) -> String,
) -> (String, String) {
    let told = |of: &BTreeSet<NodeId>| {
        let own = of.contains(&me).then(|| format!("this node ({})", name(me)));
        let others = of.iter().filter(|other| **other != me).map(|other| name(*other));
        listed(own.into_iter().chain(others).collect())
    };
    let does = |of: &BTreeSet<NodeId>| if of.len() == 1 { "does" } else { "do" };
    let but = match seen.by.is_empty() {
        true => format!("it hears {}", if seen.not_by.len() == 1 { "that one" } else { "them" }),
        false => format!("{} {}", told(&seen.by), does(&seen.by)),
    };
    let problem = format!("{} {} not hear it, and {but}", told(&seen.not_by), does(&seen.not_by));
    let ends = seen.not_by.iter().map(|by| name(*by)).collect();
    (problem, format!("check the network between {} and {}", name(node), listed(ends)))
}

fn listed(mut names: Vec<String>) -> String {
    if names.len() > NAMED + 1 {
        let more = names.split_off(NAMED).len();
        names.push(format!("{more} others"));
    }
    match names.pop() {
        Some(last) if names.is_empty() => last,
        Some(last) => format!("{} and {last}", names.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(numbers: &[u64]) -> BTreeSet<NodeId> {
        numbers.iter().copied().map(NodeId).collect()
    }

    fn seen(by: &[u64], not_by: &[u64]) -> HalfHeard {
        HalfHeard { by: nodes(by), not_by: nodes(not_by) }
    }

    #[test]
    fn each_link_is_told_of_at_one_end() {
        let told = |half: &[(u64, HalfHeard)]| {
            let half = half.iter().map(|(node, seen)| (NodeId(*node), seen.clone())).collect();
            let told = once_each(&half).into_iter();
            let numbers = |not_by: BTreeSet<NodeId>| not_by.iter().map(|by| by.0).collect();
            told.map(|(node, seen)| (node.0, numbers(seen.not_by))).collect::<Vec<(u64, Vec<_>)>>()
        };
        assert_eq!(told(&[]), []);
        // This node is cut off from another one, whose view it does not have.
        assert_eq!(told(&[(2, seen(&[3], &[1]))]), [(2, vec![1])]);
        assert_eq!(told(&[(2, seen(&[1], &[3])), (3, seen(&[1], &[2]))]), [(2, vec![3])]);
        let star = [(2, seen(&[1, 3], &[4])), (3, seen(&[1, 2], &[4])), (4, seen(&[1], &[2, 3]))];
        assert_eq!(told(&star), [(4, vec![2, 3])]);
        // Broken in one direction only, and beside it one that is broken in both.
        let mixed = [(2, seen(&[1, 4], &[3])), (3, seen(&[1], &[2, 4]))];
        assert_eq!(told(&mixed), [(3, vec![2, 4])]);
    }

    #[test]
    fn who_does_not_hear_and_who_does_is_told_by_name() {
        let problem = |by: &[u64], not_by: &[u64]| {
            problem(NodeId(9), &seen(by, not_by), NodeId(1), |node| node.to_string())
        };
        for (by, not_by, told, ends) in [
            (&[2][..], &[1][..], "this node (n1) does not hear it, and n2 does", "n1"),
            (&[1], &[2], "n2 does not hear it, and this node (n1) does", "n2"),
            (
                &[4, 1],
                &[2, 3],
                "n2 and n3 do not hear it, and this node (n1) and n4 do",
                "n2 and n3",
            ),
            (
                &[2],
                &[1, 3, 4, 5],
                "this node (n1), n3, n4 and n5 do not hear it, and n2 does",
                "n1, n3, n4 and n5",
            ),
            (
                &[1],
                &[2, 3, 4, 5, 6],
                "n2, n3, n4 and 2 others do not hear it, and this node (n1) does",
                "n2, n3, n4 and 2 others",
            ),
            (&[], &[2, 3], "n2 and n3 do not hear it, and it hears them", "n2 and n3"),
            (&[], &[2], "n2 does not hear it, and it hears that one", "n2"),
        ] {
            let remedy = format!("check the network between n9 and {ends}");
            assert_eq!(problem(by, not_by), (told.to_owned(), remedy));
        }
    }
}
