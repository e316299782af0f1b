//! Bringing one slot of one row to the committed state, under the row's lock.

use super::gather::{Progress, same_vector};
use super::rows::{Kind, TaskId};
use super::{Coordinator, Phase, Purpose, Seat};
use crate::msg::{Answer, Ask, Reject};
use smalti_storage::ids::{RowAddr, Slot, SlotSet, Ver};
use smalti_storage::store::{VecEntry, VersionMeta};

/// A repair of its own; an update that needs one first carries one inside.
#[derive(Clone, Debug)]
pub(super) struct Repair {
    pub(super) seat: Seat,
    /// The admission of the learner it is for; none when the slot is in sync.
    pub(super) life: Option<u64>,
}

/// How far a repair is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum RepairState {
    #[default]
    Begin,
    /// Asked what the slot has.
    Looking,
    /// Knows what it has (and whether it verifies); gathers what it should have.
    Gathering {
        have: Ver,
        meta: Option<VersionMeta>,
    },
    /// Sent.
    Installing,
    Done,
    Failed,
}

impl Coordinator {
    /// Queues a repair unless one waits already.
    pub(super) fn repair_later(&mut self, row: RowAddr, slot: Slot) {
        let Some(store) = self.store_of(row.group, slot) else { return };
        if self.phase == Phase::Active && self.catchup.claim_repair(row, (slot, store)) {
            self.add_repair(row, (slot, store), None);
        }
    }

    pub(super) fn add_repair(&mut self, row: RowAddr, seat: Seat, life: Option<u64>) {
        self.add_task(row, Kind::Repair(Repair { seat, life }));
    }

    pub(super) fn run_repair(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        let Kind::Repair(Repair { seat, life }) = task.kind else { return };
        let row = task.row;
        if !self.repairs.contains_key(&id) {
            self.begin_repair(id, seat);
        }
        let progress = self.repair_step(id);
        if progress != Progress::Waiting {
            self.repairs.remove(&id);
            self.end_task(id);
            self.catchup.repaired(self.now, row, seat, life, progress == Progress::Done);
            self.suspects.repaired(self.now, row, seat, progress == Progress::Done);
            self.stats.rows_repaired += u64::from(progress == Progress::Done);
            if progress == Progress::Done {
                self.catchup_pump();
            }
        }
    }

    /// Makes `id`, which holds the row, repair a slot at a store.
    pub(super) fn begin_repair(&mut self, id: TaskId, seat: Seat) {
        self.repairs.insert(id, (seat, RepairState::Begin));
    }

    pub(super) fn repair_step(&mut self, id: TaskId) -> Progress {
        loop {
            let Some(row) = self.tasks.get(&id).map(|task| task.row) else {
                return Progress::Failed;
            };
            let Some((seat, state)) = self.repairs.get(&id).cloned() else {
                return Progress::Done;
            };
            let slot = seat.0;
            if state != RepairState::Done && !self.members(row.group).contains(&seat) {
                // It left while this waited: nobody would answer for it.
                self.repairs.remove(&id);
                return Progress::Failed;
            }
            match state {
                RepairState::Begin => {
                    self.set_repair(id, RepairState::Looking);
                    let ask = Ask::Versions { row, slot };
                    self.ask_at(row.group, seat, ask, Purpose::Look { task: id });
                }
                RepairState::Looking | RepairState::Installing => return Progress::Waiting,
                RepairState::Gathering { have, meta } => match self.gather(id) {
                    Progress::Done => self.install_repair(id, row, seat, have, meta.as_ref()),
                    other => return other,
                },
                RepairState::Done => {
                    self.repairs.remove(&id);
                    return Progress::Done;
                }
                RepairState::Failed => {
                    self.repairs.remove(&id);
                    return Progress::Failed;
                }
            }
        }
    }

    fn set_repair(&mut self, id: TaskId, state: RepairState) {
        if let Some((_, at)) = self.repairs.get_mut(&id) {
            *at = state;
        }
    }

    pub(super) fn on_looked(&mut self, id: TaskId, answer: Answer) {
        let Some(((slot, store), _)) = self.repairs.get(&id).cloned() else { return };
        let (have, meta) = match answer {
            Answer::Versions { versions, .. } => match versions.into_iter().next() {
                Some((meta, good)) => (meta.ver, good.then_some(meta)),
                None => (Ver::NONE, None),
            },
            _ => (Ver::NONE, None),
        };
        let group = self.tasks.get(&id).map(|task| task.row.group);
        let own = group.and_then(|group| self.store_of(group, slot)) == Some(store);
        if let Some(task) = self.tasks.get_mut(&id) {
            let slot = SlotSet::EMPTY.with(slot);
            // One that is to hold the slot may have it from the one that does.
            task.gather.reset(slot, if own { slot } else { SlotSet::EMPTY });
        }
        self.set_repair(id, RepairState::Gathering { have, meta });
        self.runnable.push_back(id);
    }

    /// The record the slot should have is at hand: puts it there unless it is there already.
    fn install_repair(
        &mut self,
        id: TaskId,
        row: RowAddr,
        seat: Seat,
        have: Ver,
        held: Option<&VersionMeta>,
    ) {
        let slot = seat.0;
        let is_data = self.data_slots().contains(slot);
        let parity = self.parity_slots();
        let Some(task) = self.tasks.get(&id) else { return };
        let Some(vec) = task.gather.vec.clone() else { return };
        let record = task.gather.records.get(&slot).cloned().unwrap_or_default();
        let newest = vec.iter().max_by_key(|entry| entry.ver).copied().unwrap_or_default();
        let sibling = task.gather.parity_meta.clone();
        let should = if is_data {
            vec.get(slot.index()).copied().unwrap_or_default()
        } else {
            sibling.as_ref().map_or(newest, |meta| VecEntry {
                ver: meta.ver,
                wid: meta.wid,
                snap: meta.snap,
            })
        };
        let right = match held {
            Some(meta) if is_data => meta.ver == should.ver,
            Some(meta) => meta.ver == should.ver && same_vector(&meta.vec, &vec),
            None => have.is_none() && should.ver.is_none(),
        };
        if right {
            self.set_repair(id, RepairState::Done);
            return;
        }
        let ask = if should.ver.is_none() {
            Ask::Purge { row, slot, expect: have }
        } else {
            // What a takeover needs to know of a version it finds: which slots hold it.
            let same = |slot: &Slot| vec.get(slot.index()).is_some_and(|e| e.ver == should.ver);
            let touched = self.data_slots().iter().filter(same).collect::<SlotSet>().or(parity);
            let meta = VersionMeta {
                ver: should.ver,
                base: Ver::NONE,
                touched,
                snap: should.snap,
                wid: should.wid,
                vec: if is_data { Vec::new() } else { vec.to_vec() },
                present: !record.is_empty(),
                hash: smalti_storage::store::RecordHash::default(),
            };
            let (prepared, expect) = (false, have);
            Ask::Install { row, slot, meta, record, prepared, expect }
        };
        if let Some(task) = self.tasks.get_mut(&id) {
            task.gather.close();
        }
        self.set_repair(id, RepairState::Installing);
        self.ask_at(row.group, seat, ask, Purpose::Repaired { task: id });
    }

    pub(super) fn on_repaired(&mut self, id: TaskId, answer: &Answer) {
        let Some((seat, _)) = self.repairs.get(&id).cloned() else { return };
        match answer {
            Answer::Ok => self.set_repair(id, RepairState::Done),
            // What the slot really has was not readable before: replace that.
            Answer::Rejected(Reject::Base { have }) => {
                self.set_repair(id, RepairState::Gathering { have: *have, meta: None });
            }
            _ => {
                // This store can not be repaired row by row; it is taken out where that leaves
                // enough others, and catches up as a whole.
                self.set_repair(id, RepairState::Failed);
                let group = self.tasks.get(&id).map(|task| task.row.group);
                let counts = group.is_some_and(|group| {
                    self.is_insync((group, seat.0)) && self.store_of(group, seat.0) == Some(seat.1)
                });
                if counts && self.may_shrink(seat.1) {
                    self.shrink(vec![seat.1]);
                }
            }
        }
        self.runnable.push_back(id);
    }

    /// The slot under repair is out of reach.
    pub(super) fn repair_lost(&mut self, id: TaskId) {
        self.set_repair(id, RepairState::Failed);
        self.runnable.push_back(id);
    }
}
