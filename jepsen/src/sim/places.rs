//! What lies where: the plan that the Raft leader carries out, and nodes that are to be emptied.
//!
//! Without it slots only move by [`Fault::Move`], to anywhere. With it stores that are away for too
//! long lose their slots to others, nodes are drained, and what is uneven is levelled, all of it while
//! everything else goes on; and when the faults are over, it comes to rest.

use super::event::{At, Ev};
use super::node::Node;
use super::swarm::{Fault, MS};
use super::world::{World, node_id};
use smalti_map::plan::{InVain, Policy, Sight, plan};
use smalti_map::{Applied, Command, NodeSetting};
use smalti_storage::ids::StoreId;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often the leader looks.
const LOOK_EVERY: u64 = 250 * MS;

impl World {
    /// The leader proposes what the plan says.
    pub(crate) fn places_turn(&mut self) {
        self.queue.push(self.now + LOOK_EVERY, Ev::Places);
        if self.map_away {
            return;
        }
        let sights = self.sights();
        let micros = |time| Duration::from_micros(time);
        let (down_out, urgent) = (micros(self.swarm.down_out), micros(self.swarm.urgent));
        let policy = Policy { down_out, urgent, at_once: self.swarm.at_once };
        for (volume, moves) in plan(&self.map, &sights, &self.in_vain(), &policy).moves {
            self.planned += moves.len() as u64;
            let command = Command::Move { volume, moves };
            // It follows from this very map.
            if let Applied::Rejected(why) = self.apply(&command) {
                self.fail(format!("{command:?} was planned, and refused: {why}"));
            }
        }
    }

    /// Moves that coordinators say do not get on.
    fn in_vain(&self) -> InVain {
        let up = self.nodes.iter().filter_map(|node| node.process.as_ref());
        let places = up.flat_map(|process| process.coordinator.moves_in_vain());
        [(self.volume, places.collect())].into()
    }

    /// What is seen of the stores; one that is paused does not answer either.
    fn sights(&self) -> BTreeMap<StoreId, Sight> {
        let sight = |node: &Node| {
            let since = (!node.up || node.paused).then_some(node.changed);
            let away = since.map(|since| Duration::from_micros(self.now.saturating_sub(since)));
            (node.store, Sight { away, ..Sight::default() })
        };
        self.nodes.iter().map(sight).collect()
    }

    /// A node is to be emptied, if the others are enough for all slots of a group.
    pub(super) fn drain(&mut self, at: At, until: u64) {
        let slots = usize::from(self.swarm.data + self.swarm.parity);
        let stays = |at: &At| !self.is_draining(*at);
        let staying: Vec<At> = (0..self.nodes.len()).filter(stays).collect();
        if self.map_away || !staying.contains(&at) || staying.len() <= slots {
            return;
        }
        self.set_draining(at, true);
        self.count(Fault::Drain, true);
        if self.rng.percent(60) {
            self.queue.push(until, Ev::Over(Fault::Drain, at, 0));
        }
    }

    pub(super) fn set_draining(&mut self, at: At, draining: bool) {
        let setting = NodeSetting::Draining(draining);
        self.apply(&Command::SetNode { node: node_id(at), setting });
    }

    fn is_draining(&self, at: At) -> bool {
        self.map.nodes.get(&node_id(at)).is_some_and(|node| node.draining)
    }

    /// A node that is to be emptied and is not.
    pub(super) fn not_drained(&self) -> Option<At> {
        let volume = self.volume()?;
        let keeps = |at: &At| volume.groups.iter().any(|group| group.keeps(self.nodes[*at].store));
        (0..self.nodes.len()).filter(|at| self.is_draining(*at)).find(keeps)
    }
}
