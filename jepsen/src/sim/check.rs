//! The invariants of the protocol, looked at from outside: on what is sent, on what is on disk.

use super::client::{Block, value_of};
use super::event::{At, Life};
use super::failure::Failure;
use super::swarm::Fault;
use super::world::World;
use bytes::Bytes;
use smalti_map::{Command, Group, Volume};
use smalti_rowcommit::coordinator::{Alarm, Phase};
use smalti_rowcommit::msg::{Ask, Frame};
use smalti_storage::code::Code;
use smalti_storage::ids::{GroupNo, RowAddr, RowSlot, Slot, SlotSet, StoreId, Wid};
use smalti_storage::store::{ShardStore, VersionMeta};
use std::collections::{BTreeMap, BTreeSet};

type Checked = Result<(), String>;

impl World {
    /// I2: a version is issued once, by the coordinator of its epoch.
    pub(crate) fn check_frame(&mut self, life: Life, store: StoreId, frame: &Frame) {
        for request in &frame.requests {
            let (row, slot, update) = match &request.ask {
                Ask::PrepData { row, slot, update, .. }
                | Ask::PrepDelta { row, slot, update, .. }
                | Ask::PrepFull { row, slot, update, .. } => (*row, *slot, *update),
                _ => continue,
            };
            let issued = *self.issued.entry(update.ver).or_insert((life, row));
            if issued != (life, row) {
                let why =
                    format!("I2: {} was issued for {issued:?} and {life:?} {row}", update.ver);
                self.fail(Failure::at(row, why));
            }
            // Learners may be sent again what was acknowledged without them.
            let process = self.nodes[life.at].process();
            let volume = process.map.volumes.get(&self.volume);
            let counts = volume.and_then(|v| v.group(row.group)).is_some_and(|group| {
                group.insync.contains(slot) && group.slot_of(store) == Some(slot)
            });
            if counts && frame.watermark >= update.ver {
                let why = format!("I2: the watermark covers {}, which is sent", update.ver);
                self.fail(Failure::at(row, why));
            }
        }
    }

    /// I1, I4 and I13, on every change of the map.
    pub(crate) fn check_change(&mut self, before: Option<&Volume>, command: &Command) {
        let (Some(before), Some(after)) = (before, self.volume().cloned()) else { return };
        for (old, new) in before.groups.iter().zip(&after.groups) {
            self.offline += u64::from(new.offline && !old.offline);
            self.online += u64::from(old.offline && !new.offline);
        }
        let grow = matches!(command, Command::Grow { .. });
        for (old, new) in before.groups.iter().zip(&after.groups) {
            if new.insync.len() < u32::from(after.data) {
                self.fail(format!("I1: {} in sync is too few", new.insync));
            }
            if !new.insync.is_subset(old.insync) && !grow {
                self.fail(format!("I1: {command:?} grew {} to {}", old.insync, new.insync));
            }
        }
        if after.epoch < before.epoch || (after.epoch == before.epoch && grow) {
            self.fail(format!("I1: epoch {} after {}", after.epoch, before.epoch));
        }
        if let Command::Activate { .. } = command
            && after.activated != before.activated
        {
            // Whichever epoch was meant, it is this one that is served from now on.
            let epoch = before.epoch;
            let served = after.groups.iter().filter(|group| !group.offline);
            for store in served.flat_map(Group::insync_stores) {
                let at = self.node_of(store);
                let lost = self.gone.contains_key(&store) || self.forgot.contains(&at);
                if self.promised(at) < epoch.0 && !lost {
                    self.fail(format!("I4: {epoch} is active and node {at} did not promise it"));
                }
            }
        }
        let deletes = matches!(command, Command::ForgetHolders { .. });
        if grow || deletes || matches!(command, Command::Activate { .. }) {
            self.check_shadow();
        }
    }

    /// I5, I13: whatever was acknowledged stands on every in-sync slot it touches.
    fn check_shadow(&mut self) {
        let Some(volume) = self.volume().cloned() else { return };
        let acked: Vec<(Block, Wid)> = self.acked.iter().map(|(b, w)| (*b, *w)).collect();
        for (block, wid) in acked {
            let Some(group) = volume.group(block.0.group) else { continue };
            self.check_held(&volume, block, wid, group.insync);
        }
    }

    /// I5: what was just acknowledged is durable where its coordinator believes it must be.
    pub(crate) fn check_acked(&mut self, at: At, block: Block, wid: Wid) {
        let Some(process) = &self.nodes[at].process else { return };
        let Some(volume) = process.map.volumes.get(&self.volume).cloned() else { return };
        if volume.epoch != process.coordinator.epoch() {
            // Its replica is ahead of what it acts on; the sets it counted are not known here.
            return;
        }
        let Some(insync) = volume.group(block.0.group).map(|group| group.insync) else { return };
        if insync.len() < u32::from(volume.min_insync) {
            let why = format!("I5: {wid:?} was acknowledged with {insync} in sync");
            return self.fail(Failure::at(block.0, why));
        }
        // A slot that grew a moment ago may be out in the newest map again, or have moved: who held
        // it, and may have deleted it since, is asked by a coordinator from before.
        let now = self.volume().and_then(|v| v.group(block.0.group)).cloned();
        let before = volume.group(block.0.group).map(|group| group.slots.clone());
        let same = |slot: &Slot| {
            let (Some(now), Some(before)) = (&now, &before) else { return true };
            now.insync.contains(*slot) && now.slots.get(slot.index()) == before.get(slot.index())
        };
        let insync = insync.iter().filter(same).collect();
        self.check_held(&volume, block, wid, insync);
    }

    fn check_held(&mut self, volume: &Volume, (row, data): Block, wid: Wid, insync: SlotSet) {
        if self.rotten.contains(&row) {
            return;
        }
        let parity = SlotSet::range(volume.data, volume.slots());
        for slot in insync.iter().filter(|slot| *slot == data || parity.contains(*slot)) {
            let store = volume.group(row.group).and_then(|g| g.slots.get(slot.index()));
            let lost = |store: &StoreId| {
                self.gone.contains_key(store) || self.forgot.contains(&self.node_of(*store))
            };
            if store.is_some_and(lost) {
                continue;
            }
            let Some(head) = self.head(volume, row, slot) else { return };
            let held = if slot == data {
                head.wid
            } else {
                head.vec.get(data.index()).map_or(Wid::default(), |entry| entry.wid)
            };
            if held < wid {
                let why = format!(
                    "I5: {wid:?} of {row}/{data} was acknowledged, slot {slot} in sync has {held:?}"
                );
                self.fail(Failure::at(row, why));
            }
        }
    }

    fn head(&mut self, volume: &Volume, row: RowAddr, slot: Slot) -> Option<VersionMeta> {
        let store = volume.group(row.group)?.slots.get(slot.index()).copied()?;
        let at = RowSlot { volume: volume.no, row, slot };
        match self.nodes[self.node_of(store)].disk.head(at) {
            Ok(head) => Some(head.unwrap_or_default()),
            Err(error) => {
                self.fail(Failure::at(row, format!("{at} can not be read: {error}")));
                None
            }
        }
    }

    pub(crate) fn alarm(&mut self, at: At, alarm: Alarm) {
        match alarm {
            Alarm::Corrupt { row, .. } if !self.rotten.contains(&row) && self.forgot.is_empty() => {
                let why = format!("node {at} finds {alarm:?}, and nothing was made so");
                self.fail(Failure::at(row, why));
            }
            Alarm::Unclear { row } if !self.is_beyond() => {
                self.fail(Failure::at(row, format!("node {at} finds {row} to be no codeword")));
            }
            Alarm::Miscomputed { row, .. } if !self.swarm.has(Fault::Flip) => {
                let why = format!("node {at} finds {alarm:?}, and nothing was made so");
                self.fail(Failure::at(row, why));
            }
            Alarm::RecordLost { row, .. } if !self.may_be_lost(row) => {
                self.fail(Failure::at(row, format!("node {at} finds {alarm:?}")));
            }
            Alarm::RowLost { row } if !self.may_be_lost(row) => {
                self.fail(Failure::at(row, format!("node {at} finds {row} lost")));
            }
            _ => {}
        }
    }

    /// Whether there may be something wrong with a row that nobody can tell: not if only writes were lost.
    fn may_be_lost(&self, row: RowAddr) -> bool {
        self.rotten.contains(&row) && !self.lost_writes.contains(&row)
    }

    /// Whether everything is in sync, served, and at rest.
    pub(crate) fn is_whole(&self) -> Checked {
        let volume = self.volume().ok_or("no volume")?;
        let coordinator = volume.coordinator.ok_or("no coordinator")?;
        if !volume.activated {
            return Err(format!("{} is not activated: {}", volume.epoch, self.describe()));
        }
        if !volume.is_full() {
            return Err(format!("slots are out of sync: {}", self.describe()));
        }
        let moving = |group: &Group| {
            !group.targets.is_empty() || !group.learners.is_empty() || !group.old_holders.is_empty()
        };
        if volume.groups.iter().any(moving) {
            return Err(format!("slots have not moved: {}", self.describe()));
        }
        if let Some(at) = self.not_drained() {
            return Err(format!("node {at} is to be emptied: {}", self.describe()));
        }
        for node in &self.nodes {
            let process = node.process.as_ref().ok_or("a node is down")?;
            let core = &process.coordinator;
            let serves = super::world::node_id(node.at) == coordinator.node;
            if serves && (core.phase() != Phase::Active || core.epoch() != volume.epoch) {
                return Err(format!("node {} does not serve: {core:?}", node.at));
            }
            if !serves && core.phase() != Phase::Idle {
                return Err(format!("node {} serves too: {core:?}", node.at));
            }
            if !core.is_quiet() {
                return Err(format!("node {} is busy: {core:?}", node.at));
            }
            let state = node.disk.volume(volume.no).map_err(|error| error.to_string())?;
            if state.collected != volume.snapshots_deleted {
                return Err(format!("node {} has not let go of deleted snapshots", node.at));
            }
            if !process.ops.is_empty() {
                return Err(format!("operations of node {} have not ended", node.at));
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let mut text = format!("{:?}", self.volume().map(|v| (v.epoch, v.coordinator, &v.groups)));
        for node in &self.nodes {
            if let Some(process) = &node.process {
                text += &format!("\n  node {}: {:?}", node.at, process.coordinator);
            }
        }
        text
    }

    /// I7, I8 and what follows from rest: nothing undecided, one version each, every n shards of
    /// a row decode to the same.
    pub(crate) fn check_rest(&self) -> Result<(), Failure> {
        let volume = self.volume().ok_or("no volume")?;
        let code = Code::new(volume.data, volume.parity).map_err(|error| error.to_string())?;
        for node in &self.nodes {
            let mut marks = node.disk.prepared(volume.no).map_err(|error| error.to_string())?;
            // One whose metadata can not be read keeps its mark until somebody finds that out.
            marks.retain(|(at, _)| !self.rotten.contains(&at.row));
            if let Some((first, _)) = marks.first() {
                let why = format!("still undecided on node {}: {marks:?}", node.at);
                return Err(Failure::at(first.row, why));
            }
        }
        for node in &self.nodes {
            // Nothing is left where nothing is to be.
            for (no, group) in (0u16..).map(GroupNo).zip(&volume.groups) {
                // What can not be read is there.
                let scanned = node.disk.scan(volume.no, no, None, 1);
                let empty = scanned.is_ok_and(|page| page.is_empty());
                if !empty && group.slot_of(node.store).is_none() {
                    return Err(format!("row slots of {no} are left on node {}", node.at).into());
                }
            }
        }
        let rows: BTreeSet<RowAddr> = self.all_blocks().into_iter().map(|(row, _)| row).collect();
        for row in &rows {
            // What is still rotten nobody has looked at. What was mended must be right.
            if !self.rotten.contains(row) || self.is_readable(volume, *row) {
                self.check_row(volume, &code, *row)
                    .map_err(|why| Failure::at(*row, format!("row {row}: {why}")))?;
            }
        }
        Ok(())
    }

    /// Whether every record of every slot verifies.
    fn is_readable(&self, volume: &Volume, row: RowAddr) -> bool {
        let verifies = |slot: Slot| {
            let store = volume.group(row.group)?.slots.get(slot.index())?;
            let disk = &self.nodes[self.node_of(*store)].disk;
            let at = RowSlot { volume: volume.no, row, slot };
            let verifies = |held: VersionMeta| {
                let record =
                    if held.present { disk.record(at, held.ver).ok()?? } else { Bytes::new() };
                held.verifies(at, &record).then_some(())
            };
            disk.versions(at).ok()?.into_iter().try_for_each(verifies)
        };
        volume.all_slots().iter().all(|slot| verifies(slot).is_some())
    }

    fn check_row(&self, volume: &Volume, code: &Code, row: RowAddr) -> Checked {
        for state in std::iter::once(None).chain(volume.snapshots.keys().copied().map(Some)) {
            let checked = self.check_state(volume, code, row, state);
            checked.map_err(|why| match state {
                Some(snap) => format!("snapshot {snap}: {why}"),
                None => why,
            })?;
        }
        Ok(())
    }

    /// What a slot keeps: its newest version, and what snapshots hold.
    fn kept_versions(
        &self,
        volume: &Volume,
        row: RowAddr,
        slot: Slot,
    ) -> Result<Vec<VersionMeta>, String> {
        let group = volume.group(row.group).ok_or("no group")?;
        let store = group.slots.get(slot.index()).copied().ok_or("no store")?;
        let at = RowSlot { volume: volume.no, row, slot };
        let versions = self.nodes[self.node_of(store)].disk.versions(at);
        let versions = versions.map_err(|error| error.to_string())?;
        let held = |snap: &u32| versions.iter().find(|meta| meta.snap < *snap).map(|m| m.ver);
        let mut needed: BTreeSet<_> = volume.snapshots.keys().filter_map(held).collect();
        needed.extend(versions.first().map(|meta| meta.ver));
        if needed.len() != versions.len() {
            let list: Vec<String> = versions.iter().map(|m| m.ver.to_string()).collect();
            return Err(format!("I9: slot {slot} keeps {list:?}, needs {needed:?}"));
        }
        Ok(versions)
    }

    fn check_state(
        &self,
        volume: &Volume,
        code: &Code,
        row: RowAddr,
        state: Option<u32>,
    ) -> Checked {
        let group = volume.group(row.group).ok_or("no group")?;
        let data = SlotSet::first(volume.data);
        let mut heads: BTreeMap<Slot, VersionMeta> = BTreeMap::new();
        let mut records: BTreeMap<Slot, Bytes> = BTreeMap::new();
        for slot in volume.all_slots().iter() {
            let store = group.slots.get(slot.index()).copied().ok_or("no store")?;
            let disk = &self.nodes[self.node_of(store)].disk;
            let at = RowSlot { volume: volume.no, row, slot };
            let mut versions = self.kept_versions(volume, row, slot)?.into_iter();
            let head = match state {
                None => versions.next(),
                Some(snap) => versions.find(|meta| meta.snap < snap),
            };
            let head = head.unwrap_or_default();
            let record = disk.record(at, head.ver).map_err(|error| error.to_string())?;
            let record = record.unwrap_or_default();
            if !head.ver.is_none() && !head.verifies(at, &record) {
                return Err(format!("slot {slot} does not verify"));
            }
            if data.contains(slot) && value_of(&record).is_none() {
                return Err(format!("slot {slot} holds {record:?}"));
            }
            let full =
                if record.is_empty() { vec![0; super::client::RECORD_LEN].into() } else { record };
            heads.insert(slot, head);
            records.insert(slot, full);
        }
        for (parity, head) in heads.iter().filter(|(slot, _)| !data.contains(**slot)) {
            for slot in data.iter() {
                let named = head.vec.get(slot.index()).map(|entry| entry.ver).unwrap_or_default();
                if heads.get(&slot).map(|head| head.ver) != Some(named) {
                    return Err(format!("I7: {parity} names {named} for {slot}: {heads:?}"));
                }
            }
        }
        let all: Vec<Slot> = volume.all_slots().iter().collect();
        for subset in 0u32..1 << all.len() {
            if subset.count_ones() != u32::from(volume.data) {
                continue;
            }
            let chosen = SlotSet(subset);
            let sources: Vec<(Slot, &[u8])> = records
                .iter()
                .filter(|(s, _)| chosen.contains(**s))
                .map(|(s, r)| (*s, r.as_ref()))
                .collect();
            let want: Vec<Slot> = volume.all_slots().minus(chosen).iter().collect();
            let decoded = code.reconstruct(&sources, &want).map_err(|error| error.to_string())?;
            for (slot, bytes) in decoded {
                if records.get(&slot) != Some(&bytes) {
                    return Err(format!("I8: {chosen} decodes to another {slot}"));
                }
            }
        }
        Ok(())
    }
}
