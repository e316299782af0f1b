//! The configuration service: the real map behind a linearizable log, which may be late, away, or
//! apply a proposal twice; and its leader, who replaces coordinators.

use super::event::{At, Ev, Life};
use super::swarm::{Fault, MS};
use super::world::{World, node_id};
use smalti_map::{Applied, Command};
use std::sync::Arc;

/// How often the leader looks at the coordinator.
const LOOK_EVERY: u64 = 100 * MS;

/// How long a coordinator may look dead before it is replaced.
const PATIENCE: u64 = 600 * MS;

impl World {
    /// Applies a command and lets everybody know.
    pub(crate) fn apply(&mut self, command: &Command) -> Applied {
        let mut map = (*self.map).clone();
        let before = map.volumes.get(&self.volume).cloned();
        let applied = map.apply(command);
        self.trace(|| format!("map {}: {command:?} -> {applied:?}", map.version));
        if !matches!(command, Command::CreateVolume(_))
            && map.cluster != smalti_storage::ids::ClusterId::default()
            && let Err(why) = map.check()
        {
            self.fail(format!("the map is broken after {command:?}: {why}"));
        }
        self.map = Arc::new(map);
        self.maps.push(Arc::clone(&self.map));
        if matches!(applied, Applied::Rejected(_)) {
            return applied;
        }
        self.check_change(before.as_ref(), command);
        if let Command::AddSnapshot { .. } = command {
            self.snapshot_made();
        }
        for at in 0..self.nodes.len() {
            if self.nodes[at].up {
                let to = self.nodes[at].life();
                let rare = if self.stormy && self.rng.percent(5) { 10 } else { 1 };
                let later = self.now + self.rng.below(self.swarm.map_delay * 2 * rare);
                self.queue.push(later, Ev::Map { to, map: Arc::clone(&self.map) });
            }
        }
        applied
    }

    /// A proposal comes to the leader, or is lost on the way.
    pub(crate) fn proposed(&mut self, from: Life, command: Box<Command>, again: bool) {
        let shrinks = u32::from(matches!(*command, Command::Shrink { .. }));
        self.shrinks -= shrinks;
        let cut = self.map_away || (self.is_alive(from) && self.nodes[from.at].map_cut > 0);
        if !again && (cut || self.rng.percent(3)) {
            if self.rng.percent(50) {
                // It was only stuck: the log takes it later, when nobody expects it any more.
                let later = self.now + self.rng.range(100, 2500) * MS;
                self.shrinks += shrinks;
                self.queue.push(later, Ev::Propose { from, command, again: true });
            }
            return;
        }
        let applied = self.apply(&command);
        if !again && self.rng.percent(5) {
            let later = self.now + self.rng.below(1500 * MS);
            let command = command.clone();
            self.shrinks += shrinks;
            self.queue.push(later, Ev::Propose { from, command, again: true });
        }
        if let Applied::Rejected(why) = applied
            && self.is_alive(from)
            && !self.rng.percent(10)
        {
            let later = self.now + self.rng.below(self.swarm.map_delay * 2);
            self.queue.push(later, Ev::Refused { to: from, command, why });
        }
    }

    /// The leader looks whether the coordinator lives.
    pub(crate) fn leader(&mut self) {
        self.queue.push(self.now + LOOK_EVERY, Ev::Leader);
        if self.map_away {
            return;
        }
        let Some(coordinator) = self.volume().map(|volume| volume.coordinator) else { return };
        let fine = coordinator.is_some_and(|c| {
            self.nodes.iter().any(|node| {
                let incarnation = node.process.as_ref().map(|p| p.incarnation);
                node_id(node.at) == c.node
                    && incarnation == Some(c.incarnation)
                    && !node.paused
                    && node.map_cut == 0
            })
        });
        if fine {
            self.suspected = None;
            return;
        }
        let since = *self.suspected.get_or_insert(self.now);
        if coordinator.is_none() || self.now - since > PATIENCE {
            self.elect_any();
        }
    }

    /// Elects some node that lives.
    pub(crate) fn elect_any(&mut self) {
        let able: Vec<At> = self
            .nodes
            .iter()
            .filter(|node| node.up && !node.paused && node.map_cut == 0)
            .map(|node| node.at)
            .collect();
        if let Some(at) = self.rng.pick(&able) {
            self.elect(at);
        }
    }

    /// A client attaches where nothing was heard of the map for a while: the node catches up, with
    /// one step over all that happened, and is elected.
    pub(crate) fn attach(&mut self, at: At) {
        let node = &self.nodes[at];
        if self.stormy && node.up && !node.paused && node.map_cut == 0 && !self.map_away {
            self.elect(at);
            let (to, map) = (self.nodes[at].life(), Arc::clone(&self.map));
            self.queue.push(self.now, Ev::Map { to, map });
        }
    }

    fn elect(&mut self, at: At) {
        let Some(epoch) = self.volume().map(|volume| volume.epoch) else { return };
        let incarnation = self.nodes[at].process().incarnation;
        let (volume, node) = (self.volume, node_id(at));
        self.suspected = None;
        self.apply(&Command::Elect { volume, epoch, node, incarnation });
    }

    /// The coordinator lets go, and somebody else is elected soon after, or not.
    pub(crate) fn hand_over(&mut self) {
        let holder =
            (0..self.nodes.len()).find(|at| self.nodes[*at].up && self.believes(*at, self.volume));
        let Some(at) = holder.filter(|at| !self.nodes[*at].paused) else { return };
        self.count(Fault::Handover, true);
        self.trace(|| format!("n{at} releases"));
        let now = self.nodes[at].clock(self.now);
        let process = self.nodes[at].process_mut();
        // A handover begins with whatever time it is.
        process.coordinator.handle(now, smalti_rowcommit::Event::Tick);
        process.coordinator.release();
        let life = self.nodes[at].life();
        self.flush(life);
        if self.swarm.has(Fault::Depose) && self.rng.percent(30) {
            // Its leases are back where they came from, and it is out of touch.
            let later = self.now + self.rng.below(10 * self.swarm.net_delay);
            self.queue.push(later, Ev::Depose);
        } else if self.rng.percent(80) {
            let later = self.now + self.rng.below(200 * MS);
            self.queue.push(later, Ev::Elect);
        }
    }
}
