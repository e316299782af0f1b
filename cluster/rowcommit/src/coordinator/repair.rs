//! Bringing one slot of one row to the committed state, under the row's lock: its newest version,
//! and those that snapshots hold. All that is wrong is put right in one step, so that a slot is
//! never believed with a part of it.

use super::gather::{Progress, same_vector};
use super::rows::{Kind, TaskId};
use super::{Action, Alarm, Coordinator, Phase, Purpose, Seat};
use crate::msg::{Answer, Ask, FROZEN, Reject, UNREADABLE};
use crate::snaps;
use bytes::Bytes;
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{GroupNo, RowAddr, Slot, SlotSet, Ver};
use smalti_storage::store::{RecordHash, VecEntry, VersionMeta};
use std::collections::{BTreeSet, VecDeque};

/// A slot that is another one each time it comes to be written is left for later.
const TRIES: u8 = 4;

/// A repair of its own; an update that needs one first carries one inside.
#[derive(Clone, Debug)]
pub(super) struct Repair {
    pub(super) seat: Seat,
    /// The admission of the learner it is for; none when the slot is in sync.
    pub(super) life: Option<u64>,
    /// The row was found wrong by a scrub: these versions are not believed, though they verify.
    pub(super) doubt: Option<BTreeSet<Ver>>,
}

/// How far a repair is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum RepairState {
    #[default]
    Begin,
    /// Is to look once more, for the slot was another one by then; how often that was so.
    Again(u8),
    /// Asked what the slot has.
    Looking(u8),
    /// Knows what it has; finds out what it should have, state by state.
    Gathering(Plan),
    /// Sent.
    Installing(u8),
    /// Sent a mark, for nobody can tell what the slot is to hold.
    Marking,
    Marked,
    Done,
    Failed,
}

/// What a slot has, and what has been found out of what it should.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    /// What it has, newest first, each with whether it verifies.
    have: Vec<(VersionMeta, bool)>,
    /// Its newest version, whatever can be read.
    expect: Ver,
    /// It could not tell what it has, now or when the row was settled: only a step that says what
    /// it is to hold ends that.
    unsure: bool,
    /// How often the slot was another one by the time.
    tries: u8,
    /// States still to be looked at: snapshots, oldest first, then the newest.
    left: VecDeque<Option<u32>>,
    /// The versions of the states looked at.
    should: Vec<(Option<u32>, Ver)>,
    /// Right, and there.
    keep: Vec<Ver>,
    /// Lacking or wrong.
    put: Vec<(VersionMeta, Bytes)>,
}

impl Plan {
    fn has_put(&self, ver: Ver) -> bool {
        self.put.iter().any(|(meta, _)| meta.ver == ver)
    }

    /// What it has of a state, if that verifies.
    fn good(&self, state: Option<u32>) -> Option<Ver> {
        let metas: Vec<VersionMeta> = self.have.iter().map(|(meta, _)| meta.clone()).collect();
        let own = match state {
            None => metas.first(),
            Some(snap) => snaps::held(&metas, snap),
        };
        let own = own?.ver;
        self.have.iter().any(|(meta, good)| *good && meta.ver == own).then_some(own)
    }

    /// Whether the slot holds what it should in every state, and nothing else.
    fn is_met(&self) -> bool {
        let metas: Vec<VersionMeta> = self.have.iter().map(|(meta, _)| meta.clone()).collect();
        let newest = metas.first().map_or(Ver::NONE, |meta| meta.ver);
        let holds = |(snap, ver): &(Option<u32>, Ver)| match snap {
            None => newest == *ver && self.expect == *ver,
            Some(snap) => snaps::held(&metas, *snap).map_or(Ver::NONE, |meta| meta.ver) == *ver,
        };
        let none_else = metas.iter().all(|meta| self.keep.contains(&meta.ver));
        !self.unsure && self.put.is_empty() && none_else && self.should.iter().all(holds)
    }
}

impl Coordinator {
    /// Queues a repair unless one waits already, or failed a moment ago.
    pub(super) fn repair_later(&mut self, row: RowAddr, slot: Slot) {
        let Some(store) = self.store_of(row.group, slot) else { return };
        if self.catchup.unrepaired.puts_off(row, (slot, store)) {
            return;
        }
        if self.phase == Phase::Active && self.catchup.claim_repair(row, (slot, store)) {
            self.add_repair(row, (slot, store), None);
        }
    }

    pub(super) fn add_repair(&mut self, row: RowAddr, seat: Seat, life: Option<u64>) {
        self.add_task(row, Kind::Repair(Repair { seat, life, doubt: None }));
    }

    /// The same of a row whose slots do not agree.
    pub(super) fn add_doubtful_repair(
        &mut self,
        row: RowAddr,
        seat: Seat,
        miscoded: BTreeSet<Ver>,
    ) {
        self.add_task(row, Kind::Repair(Repair { seat, life: None, doubt: Some(miscoded) }));
    }

    /// Whether a task is a repair that a scrub asked for.
    pub(super) fn is_of_scrub(&self, id: TaskId) -> bool {
        let kind = self.tasks.get(&id).map(|task| &task.kind);
        matches!(kind, Some(Kind::Repair(Repair { doubt: Some(_), .. })))
    }

    /// Whether a task is to believe no slot of its row alone: it puts one right that is in sync, or moves, and may be
    /// the one that knows.
    pub(super) fn is_doubtful(&self, id: TaskId) -> bool {
        let Some(task) = self.tasks.get(&id) else { return false };
        let slot = self.repairs.get(&id).map(|((slot, _), _)| *slot);
        slot.is_some_and(|slot| self.is_insync((task.row.group, slot)))
            && (self.is_of_scrub(id) || !lives(Mutant::RepairByOne))
    }

    pub(super) fn run_repair(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        let Kind::Repair(Repair { seat, life, .. }) = task.kind else { return };
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
            self.scrub_repaired(row, seat);
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

    /// What a slot that comes back has of a row that it lacks is looked at while the others are asked
    /// what it should have.
    fn gather_ahead(&mut self, id: TaskId, row: RowAddr, seat: Seat) {
        let snapshots = self.volume.as_ref().is_some_and(|volume| !volume.snapshots.is_empty());
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if snapshots || !matches!(task.kind, Kind::Repair(Repair { life: Some(_), .. })) {
            return;
        }
        let need = SlotSet::EMPTY.with(seat.0);
        let own = self.store_of(row.group, seat.0) == Some(seat.1);
        let avoid = if own { need } else { SlotSet::EMPTY };
        if let Some(task) = self.tasks.get_mut(&id) {
            task.gather.reset_eager(need, avoid);
        }
        self.gather(id);
    }

    pub(super) fn repair_step(&mut self, id: TaskId) -> Progress {
        loop {
            let Some(row) = self.tasks.get(&id).map(|task| task.row) else {
                return Progress::Failed;
            };
            let Some((seat, state)) = self.repairs.get_mut(&id) else {
                return Progress::Done;
            };
            let (seat, state) = (*seat, std::mem::take(state));
            let slot = seat.0;
            if state != RepairState::Done && !self.members(row.group).contains(&seat) {
                // It left while this waited: nobody would answer for it.
                self.repairs.remove(&id);
                return Progress::Failed;
            }
            let lost = self.lost_rows.contains(&row);
            match state {
                // What was found lost stays as it is: what is missing may come back.
                RepairState::Begin if lost && self.counts(row, seat) => {
                    self.set_repair(id, RepairState::Failed);
                }
                // Nor is anything of it changed where it may come from. The mark keeps the slot out of
                // all that is built or decided, and in it the other rows go on.
                RepairState::Begin if lost => self.mark_slot(id, row, seat),
                RepairState::Begin | RepairState::Again(_) => {
                    let tries = if let RepairState::Again(tries) = state { tries } else { 0 };
                    self.set_repair(id, RepairState::Looking(tries));
                    let ask = Ask::Versions { row, slot };
                    self.ask_at(row.group, seat, ask, Purpose::Look { task: id });
                    self.gather_ahead(id, row, seat);
                }
                RepairState::Looking(_) | RepairState::Installing(_) | RepairState::Marking => {
                    self.set_repair(id, state);
                    return Progress::Waiting;
                }
                RepairState::Gathering(plan) => {
                    if let Some(progress) = self.plan_step(id, row, seat, plan) {
                        if progress == Progress::Failed {
                            self.repairs.remove(&id);
                        }
                        return progress;
                    }
                }
                RepairState::Marked => {
                    self.repairs.remove(&id);
                    self.catchup.mark(row, seat);
                    self.distrusted.insert((row, seat));
                    return Progress::Done;
                }
                RepairState::Done => {
                    self.repairs.remove(&id);
                    self.distrusted.remove(&(row, seat));
                    return Progress::Done;
                }
                RepairState::Failed => {
                    self.repairs.remove(&id);
                    return Progress::Failed;
                }
            }
        }
    }

    /// A slot that comes back keeps what it has of a row, out of all that is built or decided, and its
    /// other rows need not wait.
    fn mark_slot(&mut self, id: TaskId, row: RowAddr, seat: Seat) {
        self.set_repair(id, RepairState::Marking);
        let ask = Ask::AbortNewer { row, slot: seat.0, than: UNREADABLE };
        self.ask_at(row.group, seat, ask, Purpose::Repaired { task: id });
    }

    fn set_repair(&mut self, id: TaskId, state: RepairState) {
        if let Some((_, at)) = self.repairs.get_mut(&id) {
            *at = state;
        }
    }

    pub(super) fn on_looked(&mut self, id: TaskId, answer: Answer) {
        let (mut have, unsure) = match answer {
            Answer::Versions { versions, prepared } => {
                (versions, matches!(prepared, Some(UNREADABLE | FROZEN)))
            }
            _ => (Vec::new(), true),
        };
        if let Some(Kind::Repair(Repair { doubt: Some(miscoded), .. })) =
            self.tasks.get(&id).map(|task| &task.kind)
        {
            have.iter_mut().for_each(|(meta, good)| *good &= !miscoded.contains(&meta.ver));
        }
        let expect = have.first().map_or(Ver::NONE, |(meta, _)| meta.ver);
        let Some((_, RepairState::Looking(tries))) = self.repairs.get(&id) else { return };
        let tries = *tries;
        self.plan_repair(id, Plan { have, expect, unsure, tries, ..Plan::default() });
    }

    fn plan_repair(&mut self, id: TaskId, plan: Plan) {
        let kept = self.volume.iter().flat_map(|volume| volume.snapshots.keys());
        let kept = kept.filter(|_| !lives(Mutant::RepairNewestOnly));
        let left = kept.map(|snap| Some(*snap)).chain([None]).collect();
        self.plan_next(id, Plan { left, ..plan });
    }

    /// Begins to look at the next state, by its vector first.
    fn plan_next(&mut self, id: TaskId, plan: Plan) {
        let Some(((slot, store), _)) = self.repairs.get(&id) else { return };
        let (slot, store) = (*slot, *store);
        let group = self.tasks.get(&id).map(|task| task.row.group);
        let own = group.and_then(|group| self.store_of(group, slot)) == Some(store);
        if let Some(task) = self.tasks.get_mut(&id) {
            // One that is to hold the slot may have it from the one that does.
            let avoid = if own { SlotSet::EMPTY.with(slot) } else { SlotSet::EMPTY };
            let snap = plan.left.front().copied().flatten();
            // What was begun with the look goes on.
            if !task.gather.eager || snap.is_some() {
                task.gather.reset(SlotSet::EMPTY, avoid);
                task.gather.snap = snap;
            }
        }
        self.set_repair(id, RepairState::Gathering(plan));
        self.runnable.push_back(id);
    }

    /// Looks at one state of the row: which version the slot should have, and its record if it has
    /// not. `None`: goes on at once.
    fn plan_step(
        &mut self,
        id: TaskId,
        row: RowAddr,
        seat: Seat,
        mut plan: Plan,
    ) -> Option<Progress> {
        let slot = seat.0;
        let Some(state) = plan.left.front().copied() else { return Some(Progress::Failed) };
        let lost = match self.gather(id) {
            Progress::Done => false,
            // The record that was asked for ahead is not needed: nobody has to answer for it.
            Progress::Waiting if self.has_it(id, slot, &plan) => false,
            Progress::Failed if self.gave_up_eager(id) => {
                self.plan_next(id, plan);
                return None;
            }
            Progress::Failed if self.is_lost(id, row, seat, &plan) => {
                if self.counts(row, seat) {
                    self.catchup.unrepaired.lost(self.now, row, seat);
                    self.scrub_lost(row, seat);
                } else {
                    self.catchup.lost(row, seat);
                }
                true
            }
            Progress::Failed if self.is_unknown(id, row, seat) => {
                self.mark_slot(id, row, seat);
                return Some(Progress::Waiting);
            }
            Progress::Failed if !self.waits_for_more(id) => return Some(Progress::Failed),
            Progress::Waiting | Progress::Failed => {
                self.set_repair(id, RepairState::Gathering(plan));
                return Some(Progress::Waiting);
            }
        };
        let meta = self.wanted(id, slot)?;
        let mut should = meta.ver;
        let held = |(held, _): &&(VersionMeta, bool)| {
            held.ver == meta.ver && same_vector(&held.vec, &meta.vec)
        };
        let held = plan.have.iter().find(held).map(|(_, good)| *good);
        if meta.ver.is_none() || plan.keep.contains(&meta.ver) || plan.has_put(meta.ver) {
            // Nothing, or what an older state has too.
        } else if held == Some(true) || held.is_some() && lost {
            plan.keep.push(meta.ver);
        } else if let Some(own) = plan.good(state).filter(|_| lost && self.counts(row, seat)) {
            // It may be the others that are wrong: what is good stays until somebody can tell.
            plan.keep.push(own);
            should = own;
        } else if lost {
            self.actions.push(Action::Alarm(Alarm::RecordLost { row, slot, snap: state }));
            plan.put.push((VersionMeta { present: true, ..meta }, Bytes::new()));
        } else {
            let task = self.tasks.get_mut(&id)?;
            let Some(record) = task.gather.records.get(&slot).cloned() else {
                // Now with its record.
                task.gather.need = SlotSet::EMPTY.with(slot);
                self.set_repair(id, RepairState::Gathering(plan));
                return None;
            };
            plan.put.push((VersionMeta { present: !record.is_empty(), ..meta }, record));
        }
        plan.left.pop_front();
        plan.should.push((state, should));
        if plan.left.is_empty() {
            self.carry_out(id, row, seat, plan);
        } else {
            self.plan_next(id, plan);
        }
        None
    }

    /// Whether a slot that was asked ahead for has what it should, as far as the vector tells.
    fn has_it(&self, id: TaskId, slot: Slot, plan: &Plan) -> bool {
        let eager = self.tasks.get(&id).is_some_and(|task| task.gather.eager);
        let Some(meta) = self.wanted(id, slot).filter(|_| eager) else { return false };
        let same = |held: &VersionMeta| held.ver == meta.ver && same_vector(&held.vec, &meta.vec);
        plan.have.iter().any(|(held, good)| *good && same(held))
    }

    /// Whether it was asked ahead, and is to be asked step by step: it may need less than that.
    fn gave_up_eager(&mut self, id: TaskId) -> bool {
        self.tasks.get_mut(&id).is_some_and(|task| std::mem::take(&mut task.gather.eager))
    }

    /// Whether the state that was gathered at is known, and can not be constructed: every other slot
    /// has answered, also those that are out of sync; one that is out of reach may have what is
    /// missing, unless its node runs with another disk. That must not keep the slot's other states from
    /// being right. What is lost is there again as soon as somebody has it, for whoever reads it hears
    /// that it is wrong, and has it repaired. A slot that can not tell what it has keeps that instead.
    fn is_lost(&self, id: TaskId, row: RowAddr, seat: Seat, plan: &Plan) -> bool {
        let Some(task) = self.tasks.get(&id) else { return false };
        let g = &task.gather;
        let all = self.data_slots().or(self.parity_slots());
        let own = |slot: &Slot| *slot == seat.0 && self.counts(row, seat);
        let replaced = |slot: &Slot| self.is_replaced(row.group, *slot);
        let gone = all.iter().filter(|slot| own(slot) || replaced(slot)).collect::<SlotSet>();
        g.vec.is_some()
            && g.is_short(self.n(), all.minus(gone))
            && self.is_kept(g.snap)
            && !plan.unsure
            && !lives(Mutant::RepairAllOrNone)
    }

    /// Whether nobody in sync can tell the row's vector, so that nobody will. It must not keep a slot
    /// that comes back out of sync, with all its other rows. One that is to be moved is in sync where
    /// it is, and loses nothing by waiting.
    fn is_unknown(&self, id: TaskId, row: RowAddr, (slot, store): Seat) -> bool {
        let Some(task) = self.tasks.get(&id) else { return false };
        let g = &task.gather;
        let insync = self.insync(row.group);
        let holds = self.store_of(row.group, slot) == Some(store);
        let back = (holds || self.is_replaced(row.group, slot)) && !insync.contains(slot);
        back && g.vec.is_none() && g.gone.and(insync).is_empty() && !g.dumb.and(insync).is_empty()
    }

    /// Whether the node of the slot's store runs with another one: what it held is gone with its disk, as far
    /// as anybody can tell.
    fn is_replaced(&self, group: GroupNo, slot: Slot) -> bool {
        let Some(holder) = self.store_of(group, slot) else { return false };
        let node = self.map.node_of(holder);
        let mut stores = node.into_iter().flat_map(|node| self.map.stores_of(node));
        !self.is_insync((group, slot))
            && !self.is_reached(holder)
            && stores.any(|other| other != holder && self.is_reached(other))
    }

    /// Whether answers are on their way, though they will not be enough.
    fn waits_for_more(&self, id: TaskId) -> bool {
        self.tasks
            .get(&id)
            .is_some_and(|task| task.gather.vec.is_some() && task.gather.is_waiting())
    }

    /// Whether the slot is in sync with that store.
    pub(super) fn counts(&self, row: RowAddr, (slot, store): Seat) -> bool {
        self.is_insync((row.group, slot)) && self.store_of(row.group, slot) == Some(store)
    }

    /// Metadata of the slot's version at the vector that was gathered at.
    fn wanted(&self, id: TaskId, slot: Slot) -> Option<VersionMeta> {
        let gather = &self.tasks.get(&id)?.gather;
        let vec = gather.vec.clone()?;
        let is_data = self.data_slots().contains(slot);
        let newest = vec.iter().max_by_key(|entry| entry.ver).copied().unwrap_or_default();
        let should = if is_data {
            vec.get(slot.index()).copied().unwrap_or_default()
        } else {
            let entry = |m: &VersionMeta| VecEntry { ver: m.ver, wid: m.wid, snap: m.snap };
            gather.parity_meta.as_ref().map_or(newest, entry)
        };
        // What a takeover needs to know of a version it finds: which slots hold it.
        let same = |slot: &Slot| vec.get(slot.index()).is_some_and(|e| e.ver == should.ver);
        let touched = self.data_slots().iter().filter(same).collect::<SlotSet>();
        Some(VersionMeta {
            ver: should.ver,
            base: Ver::NONE,
            touched: touched.or(self.parity_slots()),
            snap: should.snap,
            wid: should.wid,
            vec: if is_data { Vec::new() } else { vec.to_vec() },
            present: false,
            hash: RecordHash::default(),
        })
    }

    fn carry_out(&mut self, id: TaskId, row: RowAddr, seat: Seat, plan: Plan) {
        if plan.is_met() {
            self.set_repair(id, RepairState::Done);
            return;
        }
        if let Some(task) = self.tasks.get_mut(&id) {
            task.gather.close();
        }
        self.set_repair(id, RepairState::Installing(plan.tries));
        let Plan { put: versions, keep, expect, .. } = plan;
        let ask = Ask::Restore { row, slot: seat.0, versions, keep, expect };
        self.ask_at(row.group, seat, ask, Purpose::Repaired { task: id });
    }

    pub(super) fn on_repaired(&mut self, id: TaskId, answer: &Answer) {
        let Some((seat, state)) = self.repairs.get(&id) else { return };
        let seat = *seat;
        let tries = match state {
            RepairState::Installing(tries) => *tries,
            RepairState::Marking => TRIES,
            _ => return,
        };
        let marking = matches!(state, RepairState::Marking);
        match answer {
            Answer::Ok if marking => self.set_repair(id, RepairState::Marked),
            Answer::Ok => self.set_repair(id, RepairState::Done),
            // The slot was another one by then: a look is served beside updates on their way to it,
            // and what the store had in memory may not be what can be read. It has to be looked at
            // again, or what it has would be thrown away with what it lacks.
            Answer::Rejected(Reject::Base { .. }) if tries < TRIES => {
                self.set_repair(id, RepairState::Again(tries + 1));
            }
            answer => {
                let row = self.tasks.get(&id).map(|task| task.row);
                if let (Answer::Rejected(Reject::NoSpace), Some(row)) = (answer, row) {
                    self.catchup.no_room(self.now, row, seat);
                }
                self.set_repair(id, RepairState::Failed);
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
