//! What must hold: at every frame that is sent, at every change of the map, at every
//! acknowledgement, and whenever nothing is under way.

use super::Model;
use super::clients::ROW;
use super::perform::place_of;
use super::state::{Bad, State, VOLUME, node_id, volume};
use crate::sim::client::{RECORD_LEN, value_of};
use bytes::Bytes;
use smalti_map::{Command, Coordinator as Coordinating, Volume};
use smalti_rowcommit::coordinator::Phase;
use smalti_rowcommit::msg::{Ask, Frame};
use smalti_storage::code::Code;
use smalti_storage::ids::{RowSlot, Slot, SlotSet};
use smalti_storage::store::{ShardStore, VersionMeta};

type Checked = Result<(), Bad>;

fn bad<T>(why: String) -> Result<T, Bad> {
    Err(Bad::Invariant(why))
}

impl Model {
    /// I2: a version is issued by the coordinator of its epoch, and the watermark does not cover
    /// what is being prepared.
    pub(super) fn check_frame(&self, state: &State, at: usize, frame: &Frame) -> Checked {
        let Some(side) = &state.coordinators[at] else { return Ok(()) };
        let me = Coordinating { node: node_id(at), incarnation: side.incarnation };
        for request in &frame.requests {
            let (slot, ver) = match &request.ask {
                Ask::PrepData { slot, update, .. }
                | Ask::PrepDelta { slot, update, .. }
                | Ask::PrepFull { slot, update, .. } => (*slot, update.ver),
                _ => continue,
            };
            let mut of_epoch = state.maps.iter().map(|map| volume(map));
            if !of_epoch.any(|v| v.epoch == ver.epoch && v.coordinator == Some(me)) {
                return bad(format!("I2: node {at} issued {ver}"));
            }
            // Learners may be sent again what was acknowledged without them.
            let insync = volume(&state.maps[side.map]).groups[0].insync;
            if insync.contains(slot) && frame.watermark >= ver {
                return bad(format!("I2: the watermark covers {ver}, which is sent"));
            }
        }
        Ok(())
    }

    /// I1, I4 and I13, on the newest change of the map.
    pub(super) fn check_change(&self, state: &State, command: &Command) -> Checked {
        let [.., before, after] = state.maps.as_slice() else { return Ok(()) };
        let (before, after) = (volume(before), volume(after));
        let grow = matches!(command, Command::Grow { .. });
        let (old, new) = (before.groups[0].insync, after.groups[0].insync);
        if new.len() < u32::from(after.data) || (!grow && !new.is_subset(old)) {
            return bad(format!("I1: {command:?} made {new} of {old}"));
        }
        if after.epoch < before.epoch || (grow && after.epoch == before.epoch) {
            return bad(format!("I1: epoch {} after {}", after.epoch, before.epoch));
        }
        let activated = matches!(command, Command::Activate { .. });
        if activated {
            for slot in new.iter() {
                let promised = self.disk_of(state, after, slot)?.volume(VOLUME);
                let promised = promised.map_err(|error| Bad::Invariant(error.to_string()))?;
                if promised.promised < after.epoch {
                    return bad(format!("I4: {} is active, slot {slot} did not", after.epoch));
                }
            }
        }
        if grow || activated { self.check_held(state, after, new) } else { Ok(()) }
    }

    /// I5: what was just acknowledged is durable where its coordinator believes it must be.
    pub(super) fn check_acknowledged(&self, state: &State, at: usize, op: usize) -> Checked {
        let Some(side) = state.coordinators[at].as_ref().filter(|_| Self::acknowledged(state, op))
        else {
            return Ok(());
        };
        let believed = volume(&state.maps[side.map]);
        // A slot that grew a moment ago may be out in the newest map again.
        let still = volume(state.map()).groups[0].insync;
        self.check_held(state, believed, believed.groups[0].insync.and(still))
    }

    fn check_held(&self, state: &State, volume: &Volume, insync: SlotSet) -> Checked {
        let parity = SlotSet::range(volume.data, volume.slots());
        for (data, wid) in state.clients.acknowledged(&self.bounds.ops) {
            for slot in insync.iter().filter(|slot| *slot == data || parity.contains(*slot)) {
                let head = self.head(state, volume, slot)?;
                let entry = head.vec.get(data.index()).map(|entry| entry.wid).unwrap_or_default();
                let held = if slot == data { head.wid } else { entry };
                if held < wid {
                    return Err(Bad::Lost(format!(
                        "I5: {wid:?} of slot {data} was acknowledged, slot {slot} has {held:?}"
                    )));
                }
            }
        }
        Ok(())
    }

    fn disk_of<'a>(
        &self,
        state: &'a State,
        volume: &Volume,
        slot: Slot,
    ) -> Result<&'a smalti_storage::store::memory::MemoryStore, Bad> {
        let store = volume.groups[0].slots.get(slot.index()).copied();
        match store.and_then(|store| place_of(store, self.bounds.slots())) {
            Some(at) => Ok(&state.stores[at].disk),
            None => bad(format!("slot {slot} is nobody's")),
        }
    }

    fn head(&self, state: &State, volume: &Volume, slot: Slot) -> Result<VersionMeta, Bad> {
        let at = RowSlot { volume: VOLUME, row: ROW, slot };
        match self.disk_of(state, volume, slot)?.head(at) {
            Ok(head) => Ok(head.unwrap_or_default()),
            Err(error) => bad(error.to_string()),
        }
    }

    /// Whether a coordinator serves in the newest epoch and nothing is under way anywhere.
    pub(super) fn is_quiet(&self, state: &State) -> bool {
        let newest = volume(state.map());
        let serves = (0..self.bounds.slots()).any(|at| {
            let side = state.coordinators[at].as_ref();
            side.is_some_and(|side| {
                state.believes(at, state.maps.len() - 1)
                    && side.core.phase() == Phase::Active
                    && side.core.epoch() == newest.epoch
                    && side.core.is_quiet()
            })
        });
        serves
            && newest.activated
            && !state.clients.is_busy()
            && state.sessions.iter().flatten().all(|session| session.is_empty())
            && state.stores.iter().all(|side| side.committing.is_none())
    }

    /// I7, I8, and that nothing acknowledged is lost: every n slots in sync decode to the same
    /// codeword, and its blocks are what a read now may see.
    pub(super) fn check_rest(&self, state: &State) -> Checked {
        let volume = volume(state.map());
        let code = Code::new(volume.data, volume.parity);
        let code = code.map_err(|error| Bad::Invariant(error.to_string()))?;
        let insync: Vec<Slot> = volume.groups[0].insync.iter().collect();
        let data = SlotSet::first(volume.data);
        let mut heads = Vec::new();
        for slot in &insync {
            let head = self.head(state, volume, *slot)?;
            let at = RowSlot { volume: VOLUME, row: ROW, slot: *slot };
            let record = self.disk_of(state, volume, *slot)?.record(at, head.ver);
            let record = record.map_err(|error| Bad::Lost(error.to_string()))?.unwrap_or_default();
            if !head.ver.is_none() && !head.verifies(at, &record) {
                return Err(Bad::Lost(format!("slot {slot} does not verify")));
            }
            let full = if record.is_empty() { vec![0; RECORD_LEN].into() } else { record };
            heads.push((*slot, head, full));
        }
        for (parity, head, _) in heads.iter().filter(|(slot, ..)| !data.contains(*slot)) {
            for (slot, held, _) in heads.iter().filter(|(slot, ..)| data.contains(*slot)) {
                let named = head.vec.get(slot.index()).map(|entry| entry.ver).unwrap_or_default();
                if held.ver != named {
                    return bad(format!("I7: {parity} names {named} for {slot}: {}", held.ver));
                }
            }
        }
        for subset in 0u32..1 << heads.len() {
            if subset.count_ones() != u32::from(volume.data) {
                continue;
            }
            let chosen = heads.iter().enumerate().filter(|(no, _)| subset & 1 << no != 0);
            let sources: Vec<(Slot, &[u8])> =
                chosen.map(|(_, (slot, _, record))| (*slot, record.as_ref())).collect();
            self.check_decoded(state, &code, &sources, data)?;
        }
        Ok(())
    }

    fn check_decoded(
        &self,
        state: &State,
        code: &Code,
        sources: &[(Slot, &[u8])],
        data: SlotSet,
    ) -> Checked {
        let missing: Vec<Slot> =
            data.iter().filter(|slot| sources.iter().all(|(have, _)| have != slot)).collect();
        let decoded = code.reconstruct(sources, &missing);
        let decoded = decoded.map_err(|error| Bad::Lost(error.to_string()))?;
        let mut values = Vec::new();
        for slot in data.iter() {
            let held = sources.iter().find(|(have, _)| *have == slot);
            let bytes = match held {
                Some((_, bytes)) => Bytes::copy_from_slice(bytes),
                None => {
                    let found = decoded.iter().find(|(have, _)| *have == slot);
                    found.map(|(_, bytes)| bytes.clone()).unwrap_or_default()
                }
            };
            let bytes = if bytes.iter().all(|byte| *byte == 0) { Bytes::new() } else { bytes };
            let from: Vec<Slot> = sources.iter().map(|(slot, _)| *slot).collect();
            let value = value_of(&bytes)
                .ok_or_else(|| Bad::Lost(format!("I8: {from:?} decode to no value of {slot}")))?;
            values.push(value);
        }
        state.clients.may_read(&values).map_err(Bad::Lost)
    }
}
