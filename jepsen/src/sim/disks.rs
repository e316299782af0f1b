//! What disks do wrong, within what the code has to bear.

use super::client::record;
use super::event::{At, Ev};
use super::swarm::{Fault, MS};
use super::world::World;
use bytes::Bytes;
use smalti_map::{Command, MoveSlot};
use smalti_storage::ids::{GroupNo, RowAddr, RowSlot, Slot, SlotSet, StoreId};
use smalti_storage::store::memory::{MemoryStore, Restart};
use smalti_storage::store::{ShardStore, VersionMeta};
use std::sync::Arc;

impl World {
    /// Makes one stored version of a row rotten that was not so before: its record or metadata.
    pub(crate) fn rot(&mut self) {
        if self.is_beyond() {
            return self.rot_beyond();
        }
        let blocks = self.all_blocks();
        let Some((row, _)) = self.rng.pick(&blocks) else { return };
        let whole = self.volume().and_then(|v| v.group(row.group)).is_some_and(|group| {
            group.insync.len() == u32::from(self.swarm.data + self.swarm.parity)
        });
        if !whole || self.rotten.contains(&row) {
            return;
        }
        if self.rng.percent(50) {
            return self.lose_writes(row);
        }
        let slots = self.swarm.data + self.swarm.parity;
        let slot = Slot(u8::try_from(self.rng.below(u64::from(slots))).unwrap_or(0));
        self.rot_slot(row, slot);
    }

    /// Slots of a row have what they had before, and nothing that does not verify: their writes since were lost
    /// without a word, or somebody put back what there was. The first time it is kept for that.
    fn lose_writes(&mut self, row: RowAddr) {
        let Some(before) = self.before.remove(&row) else {
            let now = self.slots_of(row);
            self.before.insert(row, now);
            return;
        };
        // A slot that is out is a loss too.
        let out = [Fault::Break, Fault::Slow].into_iter().any(|fault| self.swarm.has(fault));
        let most = u64::from(self.swarm.parity) - u64::from(out && self.swarm.parity > 1);
        let mut left = self.rng.range(1, most);
        let mut slots: Vec<_> = before.into_iter().collect();
        self.rng.shuffle(&mut slots);
        for (store, at, meta, record) in slots {
            let holds =
                self.volume().and_then(|v| v.group(row.group)?.slots.get(at.slot.index()).copied());
            if left == 0 || holds != Some(store) {
                continue;
            }
            let ver = meta.ver;
            let node = self.node_of(store);
            if self.nodes[node].put_back(at, meta, record) {
                self.trace(|| format!("{at} has lost what came after {ver}"));
                self.count(Fault::Rot, true);
                self.rotten.insert(row);
                self.lost_writes.insert(row);
                left -= 1;
            }
        }
    }

    /// What each slot of a row has as its newest version.
    fn slots_of(&self, row: RowAddr) -> Vec<(StoreId, RowSlot, VersionMeta, Bytes)> {
        let stores =
            self.volume().and_then(|v| v.group(row.group)).map(|group| group.slots.clone());
        let mut found = Vec::new();
        for (slot, store) in (0..).map(Slot).zip(stores.unwrap_or_default()) {
            let at = RowSlot { volume: self.volume, row, slot };
            let disk = &self.nodes[self.node_of(store)].disk;
            let Ok(head) = disk.head(at) else { continue };
            let meta = head.unwrap_or_default();
            if let (Ok(None), Ok(record)) = (disk.prepared_at(at), disk.record(at, meta.ver)) {
                found.push((store, at, meta, record.unwrap_or_default()));
            }
        }
        found
    }

    /// Makes a version of any number of slots of a row rotten, whatever was so before.
    fn rot_beyond(&mut self) {
        let blocks = self.all_blocks();
        let Some((row, _)) = self.rng.pick(&blocks) else { return };
        let share = self.rng.pick(&[30, 60, 100]).unwrap_or(60);
        for slot in SlotSet::first(self.swarm.data + self.swarm.parity).iter() {
            if self.rng.percent(share) {
                self.rot_slot(row, slot);
            }
        }
    }

    fn rot_slot(&mut self, row: RowAddr, slot: Slot) {
        let store =
            self.volume().and_then(|v| v.group(row.group)?.slots.get(slot.index()).copied());
        let Some(store) = store else { return };
        let at = RowSlot { volume: self.volume, row, slot };
        let disk = Arc::clone(&self.nodes[self.node_of(store)].disk);
        let Ok(versions) = disk.versions(at) else { return };
        let versions: Vec<_> = versions.into_iter().map(|meta| meta.ver).collect();
        let Some(ver) = self.rng.pick(&versions) else { return };
        let byte = usize::try_from(self.rng.below(64)).unwrap_or(0);
        let done = match self.rng.below(10) {
            0..4 => disk.corrupt_record(at, ver, byte),
            4..8 => disk.corrupt_meta(at, ver),
            // A write of a record was lost, or went to another one's place.
            8 => disk.replace_record(at, ver, Bytes::new()),
            _ => disk.replace_record(at, ver, record(self.moment)),
        };
        if done {
            self.trace(|| format!("{at} rots"));
            self.count(Fault::Rot, true);
            self.rotten.insert(row);
        }
    }

    /// A process dies, and its disk goes back to what it was a moment ago. Not while one store is
    /// out or about to be, or has not got back what it forgot: that would be one loss too many.
    pub(crate) fn amnesia(&mut self, at: At, until: u64) {
        if self.nothing_is_forgotten() {
            self.forgot.clear();
        }
        if self.rng.percent(50) && self.put_back(until) {
            return;
        }
        let past = self.nodes[at].past.len();
        if !self.may_lose_a_disk(at) || past == 0 {
            return;
        }
        self.count(Fault::Amnesia, true);
        self.forgot.insert(at);
        self.stop_some(at, until, false);
        let back = usize::try_from(self.rng.below(past as u64)).unwrap_or(0);
        let node = &mut self.nodes[at];
        if let Some(then) = node.past.get(back) {
            node.disk.roll_back(then);
        }
        for node in &mut self.nodes {
            node.past.clear();
        }
        self.trace(|| format!("the disk of n{at} forgets, {back} of {past}"));
    }

    /// One process ends, or several; they come back soon, or late but for the last time within less
    /// than they are waited for.
    fn stop_some(&mut self, at: At, until: u64, in_order: bool) {
        if self.rng.percent(40) {
            // The power fails, perhaps not everywhere.
            let soon = self.rng.percent(50);
            let first = if soon { self.now } else { self.lasts() };
            let apart = if soon { 150 } else { 3500 };
            let spared = self.rng.pick(&[0, 0, 40]).unwrap_or(0);
            for other in 0..self.nodes.len() {
                if other == at || !self.rng.percent(spared) {
                    self.stop(other, in_order);
                    let then = first + self.rng.range(5, apart) * MS;
                    self.queue.push(then, Ev::Start(other));
                }
            }
        } else {
            self.stop(at, in_order);
            self.queue.push(until, Ev::Start(at));
        }
    }

    /// Whoever runs the cluster puts a disk back as it was when a run before had ended in order: a
    /// backup, or an image of the machine. Where there are no such copies yet, they are made. False:
    /// there is none of an earlier run than its store's present one.
    fn put_back(&mut self, until: u64) -> bool {
        for node in &mut self.nodes {
            let vetted = node.process.as_ref().is_some_and(|process| process.core.is_vetted());
            if node.copy.is_none() && vetted {
                // As the disk would be had the run just ended: to end it would be one fault more.
                let copy = node.disk.fork();
                copy.restart(Restart { clean: true, ..Restart::default() });
                node.copy = Some(copy);
            }
        }
        let is_earlier = |at: &At| {
            let node = &self.nodes[*at];
            node.copy.as_ref().is_some_and(|copy| copy.opened().run != node.disk.opened().run)
        };
        let earlier: Vec<At> = (0..self.nodes.len()).filter(is_earlier).collect();
        let Some(at) = self.rng.pick(&earlier) else { return false };
        if !self.may_lose_a_disk(at) {
            return true;
        }
        let Some(copy) = self.nodes[at].copy.take() else { return false };
        self.count(Fault::Amnesia, true);
        self.forgot.insert(at);
        let in_order = self.rng.percent(50);
        if self.rng.percent(50) {
            self.stop_some(at, until, in_order);
        } else {
            // Everybody is away, and comes back whenever he does, if need be after he was waited for:
            // that this disk is of another run is known.
            let longest = if self.rng.percent(50) { 2 * self.swarm.power_patience } else { 0 };
            for at in 0..self.nodes.len() {
                self.stop(at, in_order);
                let until = self.lasts() + self.rng.below(longest.max(1));
                self.queue.push(until, Ev::Start(at));
            }
        }
        self.nodes[at].disk = Arc::new(copy);
        for node in &mut self.nodes {
            node.past.clear();
            node.copy = None;
        }
        self.trace(|| format!("the disk of n{at} is put back as it was long ago"));
        true
    }

    /// Whether one loss is all there would be.
    fn may_lose_a_disk(&self, at: At) -> bool {
        let full = self.volume().is_some_and(smalti_map::Volume::is_full);
        full && self.shrinks == 0 && self.forgot.is_empty() && self.nodes[at].up
    }

    /// A node gets a new disk, with a store of its own, and whoever runs the cluster has it take the
    /// place of the old one.
    pub(crate) fn wipe(&mut self, at: At, until: u64) {
        let old = self.nodes[at].store;
        let replaced = |store: &StoreId| self.is_member(*store);
        if !self.may_lose_a_disk(at) || self.gone.keys().any(replaced) {
            return;
        }
        self.count(Fault::Wipe, true);
        self.stop(at, false);
        self.gone.insert(old, at);
        let new = super::world::store_id(self.nodes.len() + self.gone.len());
        let next_run = self.fresh_run();
        let node = &mut self.nodes[at];
        node.store = new;
        node.next_run = next_run;
        node.disk = Arc::new(MemoryStore::new(new));
        node.past.clear();
        self.trace(|| format!("n{at} has a new disk, with store {new}"));
        self.queue.push(until, Ev::Start(at));
        self.queue.push(until + MS, Ev::Replace(old));
        for other in 0..self.nodes.len() {
            if other != at && self.nodes[other].up {
                let from = self.nodes[other].life();
                self.queue.push(until + MS, Ev::Connect { from, store: new });
            }
        }
    }

    /// Whether the map still has the store in a slot, or on its way into one.
    fn is_member(&self, store: StoreId) -> bool {
        self.volume().is_some_and(|v| v.groups.iter().any(|g| g.members().any(|m| m == store)))
    }

    /// Has a lost store's place taken, until it is nowhere any more.
    pub(crate) fn replace(&mut self, old: StoreId) {
        if !self.is_member(old) {
            return;
        }
        self.queue.push(self.now + 300 * MS, Ev::Replace(old));
        let Some(new) = self.gone.get(&old).map(|at| self.nodes[*at].store) else { return };
        if self.map_away || !self.map.stores.contains_key(&new) {
            return;
        }
        let groups = self.volume().map(|volume| volume.groups.clone()).unwrap_or_default();
        let mut moves = Vec::new();
        for (group, members) in (0u16..).map(GroupNo).zip(&groups) {
            let dead = members.targets.iter().filter(|(_, target)| **target == old);
            for (slot, _) in dead {
                let holder = members.slots.get(slot.index()).copied();
                moves.extend(holder.map(|store| MoveSlot { group, slot: *slot, store }));
            }
            let slot = members.slot_of(old).filter(|slot| members.targets.get(slot) != Some(&new));
            moves.extend(slot.map(|slot| MoveSlot { group, slot, store: new }));
        }
        if !moves.is_empty() {
            self.apply(&Command::Move { volume: self.volume, moves });
        }
    }

    /// Whether every store that forgot something has been compared with the others since.
    fn nothing_is_forgotten(&self) -> bool {
        let Some(volume) = self.volume() else { return false };
        let vetted = |at: &At| {
            self.nodes[*at].process.as_ref().is_some_and(|process| process.core.is_vetted())
        };
        let serves = |node: &super::node::Node| {
            node.process.as_ref().is_some_and(|process| {
                let core = &process.coordinator;
                core.epoch() == volume.epoch
                    && core.phase() == smalti_rowcommit::coordinator::Phase::Active
                    && core.stats().suspects == 0
            })
        };
        volume.is_full() && self.forgot.iter().all(vetted) && self.nodes.iter().any(serves)
    }
}
