//! What the Raft leader does about seats: fills those that are vacant, moves those whose holders are
//! to be emptied or cut off, and gives way itself to a member that hears more.

use super::Member;
use super::outlook::Outlook;
use super::seats::{Answer, Ask, GIVE_WAY};
use futures::future::join_all;
use smalti_map::reach::{Views, best_seats, better_leader, better_seat};
use smalti_map::view::MapView;
use smalti_map::{ClusterMap, Volume};
use smalti_storage::ids::{Incarnation, NodeId};

impl Member {
    /// The leader's part: every volume has a living coordinator, clients or not, because healing
    /// needs one.
    pub(super) async fn govern(&self, outlook: &mut Outlook) {
        if self.raft().metrics().leader != Some(self.node()) {
            outlook.lost_lead();
            return;
        }
        let map = self.map();
        outlook.keep(|volume| map.volumes.contains_key(&volume));
        let views = self.beats().views();
        if self.gives_way(&map, &views, outlook).await {
            return;
        }
        let views = within(self.node(), views);
        let alive = |node: &NodeId| {
            self.beats().ever_heard(*node)
                && !self.beats().is_outside(*node)
                && self.beats().silent_for(*node) < self.inner.seat_suspect_after
        };
        for volume in map.volumes.values() {
            let before = volume.coordinator.map(|seat| seat.node);
            let up = map
                .nodes
                .iter()
                .filter(|(id, node)| node.incarnation > Incarnation(0) && alive(id));
            // A node that is to be emptied gets no seat while another one can have it.
            let (leaving, staying): (Vec<_>, Vec<_>) = up.partition(|(_, node)| node.draining);
            let candidates = if staying.is_empty() { leaving } else { staying };
            let candidates: Vec<NodeId> = candidates.into_iter().map(|(id, _)| *id).collect();
            let best = best_seats(&map, volume, &views, &candidates);
            if !self.is_vacant(&map, volume) {
                let better = better_seat(&map, volume, &views, &candidates);
                let patience = self.inner.suspect_after;
                let cut_off = volume
                    .coordinator
                    .and_then(|seat| outlook.note(volume.no, seat, better, patience));
                match cut_off {
                    Some(node) => {
                        tracing::warn!(volume = %volume.no, %node, "the coordinator does not reach \
                            stores that others do: another node takes its seat");
                        self.seat_at(&map, volume, node).await;
                    }
                    None => self.move_seat(&map, volume, &candidates, &best).await,
                }
                continue;
            }
            // The same node where it is back already, else spread by volume.
            let spread = best.get(volume.no.0 as usize % best.len().max(1));
            let chosen = before.filter(|node| best.contains(node)).or(spread.copied());
            if let Some(node) = chosen {
                self.seat_at(&map, volume, node).await;
            }
        }
    }

    async fn seat_at(&self, map: &MapView, volume: &Volume, node: NodeId) {
        if let Some(entry) = map.nodes.get(&node) {
            self.elect(volume.no, volume.epoch, node, entry.incarnation).await;
        }
    }

    /// Asks a node that is to be emptied for a seat that nobody uses there.
    async fn move_seat(
        &self,
        map: &MapView,
        volume: &Volume,
        candidates: &[NodeId],
        best: &[NodeId],
    ) {
        let Some(seat) = volume.coordinator.filter(|seat| !candidates.contains(&seat.node)) else {
            return;
        };
        let draining = map.nodes.get(&seat.node).is_some_and(|node| node.draining);
        let to = best.get(volume.no.0 as usize % best.len().max(1));
        let to = to.and_then(|to| Some((*to, map.nodes.get(to)?.incarnation)));
        let Some((to, incarnation)) = to.filter(|_| draining) else { return };
        let ask = Ask::Handover { volume: volume.no, to, incarnation };
        let answer = if seat.node == self.node() {
            Ok(self.answer_seat(ask).await)
        } else {
            self.ask_seat(seat.node, &ask).await
        };
        tracing::debug!(volume = %volume.no, ?answer, "a seat is to leave its node");
    }

    /// Whether this leader gives way to another voter, as it does when that hears more of the members: who
    /// does not hear the leader gets no maps. Nothing is proposed meanwhile, for that would be heard as
    /// well as a heartbeat.
    async fn gives_way(&self, map: &ClusterMap, views: &Views, outlook: &mut Outlook) -> bool {
        if outlook.is_silent() {
            return true;
        }
        let voters = self.raft().metrics().voters;
        // A recruit asks for no votes, whatever it hears.
        let may_lead = |node: &NodeId| *node == self.node() || self.beats().is_voter(*node);
        let views = views.iter().filter(|(node, _)| may_lead(node));
        let views: Views = views.map(|(node, hears)| (*node, hears.clone())).collect();
        let better = better_leader(map, &views, self.node(), &voters);
        let Some(node) = outlook.note_lead(better, self.inner.seat_suspect_after) else {
            return false;
        };
        tracing::warn!(%node, "another voter hears more of the members: the leader gives way");
        let ask = Ask::Lead { than: self.node(), next: node };
        // Those that it does not hear are not told, and are fewer than half.
        let hears = |voter: &NodeId| views.get(&self.node()).is_some_and(|own| own.contains(voter));
        let others = |voter: &&NodeId| ![node, self.node()].contains(voter);
        let told = voters.iter().filter(others).filter(|voter| hears(voter));
        join_all(told.map(|voter| self.ask_seat(*voter, &ask))).await;
        if !matches!(self.ask_seat(node, &ask).await, Ok(Answer::Granted)) {
            return false;
        }
        self.raft().favour(node, GIVE_WAY);
        outlook.be_silent(GIVE_WAY);
        let raft = self.raft().clone();
        self.inner.tasks.spawn(async move {
            if !raft.give_way(GIVE_WAY).await {
                tracing::warn!(%node, "nobody campaigned in time: the leader goes on");
            }
        });
        true
    }
}

/// Only what the leader hears itself counts: a store that gets no maps from it serves no new seat.
pub(super) fn within(leader: NodeId, mut views: Views) -> Views {
    if let Some(own) = views.get(&leader).cloned() {
        for (node, hears) in &mut views {
            hears.retain(|other| other == node || own.contains(other));
        }
    }
    views
}
