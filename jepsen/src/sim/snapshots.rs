//! Snapshots: made, read and deleted beside everything else.
//!
//! What a snapshot holds is decided at one moment, when the map takes it: no update is undecided
//! then, and none is issued until everybody knows. So a read of it, whenever it comes, counts as a
//! read at that moment, of all blocks at the same.

use super::event::{At, Ev};
use super::swarm::MS;
use super::world::World;
use smalti_map::Command;
use smalti_rowcommit::Event;
use smalti_rowcommit::coordinator::{OpError, Phase};

/// More are deleted before another one is made.
const KEPT_MAX: usize = 4;

impl World {
    /// A snapshot is made, or one is deleted.
    pub(crate) fn snapshot_turn(&mut self) {
        if !self.stormy {
            return;
        }
        let next = self.now + self.rng.range(10 * MS, self.swarm.snapshot_every * 2);
        self.queue.push(next, Ev::Snapshot);
        let kept: Vec<u32> = self.kept().collect();
        if kept.len() >= KEPT_MAX || (self.rng.percent(35) && !self.map_away) {
            if let Some(snap) = self.rng.pick(&kept).filter(|_| !self.map_away) {
                self.apply(&Command::DropSnapshot { volume: self.volume, snap });
            }
            return;
        }
        let Some(at) = self.serving() else { return };
        let node = &self.nodes[at];
        if node.up && !node.paused && self.believes(at, self.volume) {
            let name = format!("at-{}", self.tock());
            let process = self.nodes[at].process_mut();
            process.next_op += 1;
            let op = process.next_op;
            self.coordinate(at, Event::Snapshot { op, name, created: 0 });
        }
    }

    fn kept(&self) -> impl Iterator<Item = u32> {
        self.volume().into_iter().flat_map(|volume| volume.snapshots.keys().copied())
    }

    pub(crate) fn is_kept(&self, snap: u32) -> bool {
        self.kept().any(|kept| kept == snap)
    }

    /// One that the node knows of.
    pub(crate) fn some_snapshot(&mut self, at: At) -> Option<u32> {
        let process = self.nodes[at].process.as_ref()?;
        let volume = process.map.volumes.get(&self.volume)?;
        let known: Vec<u32> = volume.snapshots.keys().copied().collect();
        self.rng.pick(&known)
    }

    /// The map has taken a snapshot.
    pub(crate) fn snapshot_made(&mut self) {
        let Some(volume) = self.volume().cloned() else { return };
        let moments = (self.tock(), self.tock());
        self.snapshots.insert(volume.snap_seq, moments);
        for node in &self.nodes {
            let Some(process) = &node.process else { continue };
            let core = &process.coordinator;
            let before = core.epoch().0 + 1 == volume.epoch.0;
            if before && core.phase() == Phase::Active && core.stats().in_flight > 0 {
                let at = node.at;
                return self.fail(format!("N1: updates of node {at} are undecided at a snapshot"));
            }
        }
    }

    pub(crate) fn snapshot_done(&mut self, result: Result<u32, OpError>) {
        match result {
            Ok(snap) if self.snapshots.contains_key(&snap) => {}
            Err(OpError::Fenced | OpError::Busy) => {}
            other => self.fail(format!("a snapshot ended with {other:?}")),
        }
    }
}
