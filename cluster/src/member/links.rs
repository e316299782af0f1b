//! Links that are broken while the nodes at both ends are well.
//!
//! Nodes tell each other whom they hear. One that has died is dropped by each at a time of its own, and one
//! that has just started has heard nobody yet: so what they say counts only once they have disagreed for
//! a while without a break.

use smalti_map::reach::{HalfHeard, Views, half_heard};
use smalti_storage::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// For how long a node has to be heard by one and not by another. A node that dies is dropped by all within
/// one second, and one that starts hears all within one.
const LASTS: Duration = Duration::from_secs(3);

/// Who did not hear whom at the last look.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// Since when, by who does not hear and who is not heard.
    broken: BTreeMap<(NodeId, NodeId), Instant>,
}

impl Links {
    /// Takes in what nodes say now; tells the nodes that some do not hear, and have not for a while.
    pub(super) fn note(&mut self, views: &Views) -> BTreeMap<NodeId, HalfHeard> {
        let now = Instant::now();
        let mut half = half_heard(views);
        let ends = half.iter().flat_map(|(node, seen)| seen.not_by.iter().map(|by| (*by, *node)));
        let ends: BTreeSet<(NodeId, NodeId)> = ends.collect();
        self.broken.retain(|link, _| ends.contains(link));
        for link in ends {
            self.broken.entry(link).or_insert(now);
        }
        half.retain(|node, seen| {
            seen.not_by.retain(|by| now.duration_since(self.broken[&(*by, *node)]) >= LASTS);
            !seen.not_by.is_empty()
        });
        half
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three nodes of which these do not hear these.
    fn views(broken: &[(u64, u64)]) -> Views {
        let hears = |a: u64| (1..=3).filter(move |b| !broken.contains(&(a, *b))).map(NodeId);
        (1..=3).map(|a| (NodeId(a), hears(a).collect())).collect()
    }

    async fn after(millis: u64) {
        tokio::time::advance(Duration::from_millis(millis)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_has_to_be_broken_for_a_while() {
        let mut links = Links::default();
        let cut = views(&[(1, 2), (2, 1)]);
        assert!(links.note(&cut).is_empty());
        after(2_900).await;
        assert!(links.note(&cut).is_empty());
        after(100).await;
        let found = links.note(&cut);
        assert_eq!(found.keys().collect::<Vec<_>>(), [&NodeId(1), &NodeId(2)]);
        let seen = HalfHeard { by: [NodeId(3)].into(), not_by: [NodeId(1)].into() };
        assert_eq!(found[&NodeId(2)], seen);
        // It is whole at once when both are heard again, and has all its time anew.
        assert!(links.note(&views(&[])).is_empty());
        assert!(links.note(&cut).is_empty());
        after(2_999).await;
        assert!(links.note(&cut).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn each_end_has_a_time_of_its_own() {
        let mut links = Links::default();
        assert!(links.note(&views(&[(1, 2)])).is_empty());
        after(2_000).await;
        assert!(links.note(&views(&[(1, 2), (3, 1)])).is_empty());
        after(1_000).await;
        assert_eq!(
            links.note(&views(&[(1, 2), (3, 1)])).into_keys().collect::<Vec<_>>(),
            [NodeId(2)]
        );
        after(2_000).await;
        assert_eq!(links.note(&views(&[(3, 1)])).into_keys().collect::<Vec<_>>(), [NodeId(1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_dies_is_no_broken_link() {
        let mut links = Links::default();
        // One drops it sooner than the other, and nobody is told what itself hears.
        let told = |broken: &[(u64, u64)]| {
            let mut views = views(broken);
            views.remove(&NodeId(3));
            views
        };
        assert!(links.note(&told(&[(1, 3)])).is_empty());
        after(1_000).await;
        assert!(links.note(&told(&[(1, 3), (2, 3)])).is_empty());
        after(60_000).await;
        assert!(links.note(&told(&[(1, 3), (2, 3)])).is_empty());
        // It is back, and the other one hears it sooner.
        assert!(links.note(&told(&[(1, 3)])).is_empty());
        after(1_000).await;
        assert!(links.note(&views(&[])).is_empty());
    }
}
