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

/// No more than 64 times the patience.
const DOUBLINGS: u32 = 6;

/// A seat that was not moved for so long is moved as readily as ever.
const CALM: Duration = Duration::from_secs(300);

/// What the leader sees of seats that would reach more, and of leaders. How often something was moved it
/// knows for a while after it has ceased to lead: where leads and seats go back and forth, each turn takes longer.
#[derive(Debug, Default)]
pub(super) struct Outlook {
    seats: BTreeMap<VolumeNo, (Coordinator, Wait)>,
    /// How often seats were moved, and when last.
    moved: BTreeMap<VolumeNo, (u32, Instant)>,
    lead: Option<Wait>,
    /// How often this node gave way as the leader, and when last.
    gave_way: Option<(u32, Instant)>,
    silent_until: Option<Instant>,
}

/// Since when another node reaches more.
#[derive(Clone, Copy, Debug)]
struct Wait {
    one: Instant,
    several: Option<Instant>,
}

impl Wait {
    fn begin() -> Self {
        Self { one: Instant::now(), several: None }
    }

    /// Whether it has been so for long enough. `patience` is for how long, if it is several; every
    /// time that it was to no avail doubles it.
    fn is_over(&mut self, gain: usize, patience: Duration, tries: u32) -> bool {
        let (now, times) = (Instant::now(), 1 << tries.min(DOUBLINGS));
        self.several = (gain > 1).then(|| self.several.unwrap_or(now));
        now.duration_since(self.one) >= ONE_MORE * times
            || self.several.is_some_and(|since| now.duration_since(since) >= patience * times)
    }
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
            self.seats.remove(&volume);
            return None;
        };
        let fresh = (holder, Wait::begin());
        let seen = self.seats.entry(volume).or_insert(fresh);
        if seen.0 != holder {
            *seen = fresh;
        }
        let now = Instant::now();
        let moved = self.moved.get(&volume).filter(|(_, at)| now.duration_since(*at) < CALM);
        let moves = moved.map_or(0, |(moves, _)| *moves);
        let over = seen.1.is_over(gain, patience, moves);
        if over {
            // If it comes back at once, it has its time again, and more of it: where all are late to
            // answer, elections would only add to that.
            self.seats.remove(&volume);
            self.moved.insert(volume, (moves + 1, now));
        }
        over.then_some(node)
    }

    /// Notes who would be the better leader, and tells the one to give way to.
    pub(super) fn note_lead(
        &mut self,
        better: Option<Better>,
        patience: Duration,
    ) -> Option<NodeId> {
        let Some(Better { node, gain }) = better else {
            self.lead = None;
            return None;
        };
        let now = Instant::now();
        let before = self.gave_way.filter(|(_, at)| now.duration_since(*at) < CALM);
        let tries = before.map_or(0, |(tries, _)| tries);
        let over = self.lead.get_or_insert_with(Wait::begin).is_over(gain, patience, tries);
        if over {
            (self.lead, self.gave_way) = (None, Some((tries + 1, now)));
        }
        over.then_some(node)
    }

    /// Another one leads: what was seen begins anew when this one does.
    pub(super) fn lost_lead(&mut self) {
        self.seats.clear();
        (self.lead, self.silent_until) = (None, None);
    }

    /// Nothing is proposed for so long.
    pub(super) fn be_silent(&mut self, time: Duration) {
        self.silent_until = Some(Instant::now() + time);
    }

    /// Whether nothing is to be proposed.
    pub(super) fn is_silent(&self) -> bool {
        self.silent_until.is_some_and(|until| Instant::now() < until)
    }

    /// Volumes that are no more.
    pub(super) fn keep(&mut self, there: impl Fn(VolumeNo) -> bool) {
        self.seats.retain(|volume, _| there(*volume));
        self.moved.retain(|volume, _| there(*volume));
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
        // Whoever has the seat then has twice the time.
        assert_eq!(note(better(2)), None);
        after(999).await;
        assert_eq!(note(better(2)), None);
        // Of two that were out of reach one is back.
        assert_eq!(note(better(1)), None);
        after(19_000).await;
        assert_eq!(note(better(1)), None);
        after(1).await;
        assert_eq!(note(better(1)), Some(NodeId(2)));
        // After a calm time it is as it was.
        after(300_000).await;
        assert_eq!(note(None), None);
        assert_eq!(note(better(2)), None);
        after(500).await;
        assert_eq!(note(better(2)), Some(NodeId(2)));
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

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_gives_way_is_silent_and_waits_again() {
        let mut outlook = Outlook::default();
        assert_eq!(outlook.note_lead(better(2), PATIENCE), None);
        after(500).await;
        assert_eq!(outlook.note_lead(better(2), PATIENCE), Some(NodeId(2)));
        assert!(!outlook.is_silent());
        outlook.be_silent(PATIENCE);
        assert!(outlook.is_silent());
        after(500).await;
        assert!(!outlook.is_silent());
        // It was to no avail.
        assert_eq!(outlook.note_lead(better(1), PATIENCE), None);
        after(19_999).await;
        assert_eq!(outlook.note_lead(better(1), PATIENCE), None);
        after(1).await;
        assert_eq!(outlook.note_lead(better(1), PATIENCE), Some(NodeId(2)));
        // Nor does it help that another one leads in between.
        outlook.lost_lead();
        assert_eq!(outlook.note_lead(better(2), PATIENCE), None);
        after(1_999).await;
        assert_eq!(outlook.note_lead(better(2), PATIENCE), None);
        after(1).await;
        assert_eq!(outlook.note_lead(better(2), PATIENCE), Some(NodeId(2)));
        // After a calm time it is as it was.
        assert_eq!(outlook.note_lead(None, PATIENCE), None);
        after(300_000).await;
        assert_eq!(outlook.note_lead(better(2), PATIENCE), None);
        after(500).await;
        assert_eq!(outlook.note_lead(better(2), PATIENCE), Some(NodeId(2)));
    }
}
