//! When a seat moves because its holder is cut off from stores that others reach.

use smalti_map::Coordinator;
use smalti_map::reach::Better;
use smalti_storage::ids::{NodeId, VolumeNo};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// For how long another seat has to reach one slot more. The volume is served without that one, so
/// this is about being whole again, and links that come and go are not worth an election.
const ONE_MORE: Duration = Duration::from_secs(10);

/// What the leader sees of seats that would reach more, for as long as it leads.
#[derive(Debug, Default)]
pub(super) struct Outlook {
    seen: BTreeMap<VolumeNo, Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    holder: Coordinator,
    one: Instant,
    several: Option<Instant>,
}

impl Outlook {
    /// Notes what was found for a volume, and tells the node that is to have its seat. `patience` is
    /// for how long several slots have to be out of the holder's reach.
    pub(super) fn note(
        &mut self,
        volume: VolumeNo,
        holder: Coordinator,
        better: Option<Better>,
        patience: Duration,
    ) -> Option<NodeId> {
        let Some(Better { node, gain }) = better else {
            self.seen.remove(&volume);
            return None;
        };
        let now = Instant::now();
        let fresh = Seen { holder, one: now, several: None };
        let seen = self.seen.entry(volume).or_insert(fresh);
        if seen.holder != holder {
            *seen = fresh;
        }
        seen.several = (gain > 1).then(|| seen.several.unwrap_or(now));
        let due = now.duration_since(seen.one) >= ONE_MORE
            || seen.several.is_some_and(|since| now.duration_since(since) >= patience);
        if due {
            // If it comes back at once, it has its time again.
            self.seen.remove(&volume);
        }
        due.then_some(node)
    }

    /// Volumes that are no more.
    pub(super) fn keep(&mut self, there: impl Fn(VolumeNo) -> bool) {
        self.seen.retain(|volume, _| there(*volume));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_storage::ids::Incarnation;

    const PATIENCE: Duration = Duration::from_millis(500);
    const VOLUME: VolumeNo = VolumeNo(1);

    fn holder(node: u64) -> Coordinator {
        Coordinator { node: NodeId(node), incarnation: Incarnation(1) }
    }

    fn better(gain: usize) -> Option<Better> {
        Some(Better { node: NodeId(2), gain })
    }

    async fn after(millis: u64) {
        tokio::time::advance(Duration::from_millis(millis)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn several_are_waited_for_briefly_and_one_for_longer() {
        let mut outlook = Outlook::default();
        let mut note = |better| outlook.note(VOLUME, holder(1), better, PATIENCE);
        assert_eq!(note(better(2)), None);
        after(499).await;
        assert_eq!(note(better(2)), None);
        after(1).await;
        assert_eq!(note(better(2)), Some(NodeId(2)));
        // Whoever has the seat then has its time again.
        assert_eq!(note(better(2)), None);
        after(400).await;
        // Of two that were out of reach one is back.
        assert_eq!(note(better(1)), None);
        after(9_599).await;
        assert_eq!(note(better(1)), None);
        after(1).await;
        assert_eq!(note(better(1)), Some(NodeId(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_comes_and_goes_begins_anew_and_so_does_a_new_holder() {
        let mut outlook = Outlook::default();
        assert_eq!(outlook.note(VOLUME, holder(1), better(2), PATIENCE), None);
        after(400).await;
        assert_eq!(outlook.note(VOLUME, holder(1), None, PATIENCE), None);
        assert_eq!(outlook.note(VOLUME, holder(1), better(2), PATIENCE), None);
        after(400).await;
        assert_eq!(outlook.note(VOLUME, holder(3), better(2), PATIENCE), None);
        after(400).await;
        assert_eq!(outlook.note(VOLUME, holder(3), better(2), PATIENCE), None);
        after(100).await;
        assert_eq!(outlook.note(VOLUME, holder(3), better(2), PATIENCE), Some(NodeId(2)));
        outlook.keep(|volume| volume != VOLUME);
        assert_eq!(outlook.note(VOLUME, holder(3), better(2), PATIENCE), None);
    }
}
