//! Client writes: one update of one row at a time, prepared on every slot it touches.
//!
//! A row all of whose data slots change needs nothing but the new records. Any other update is a
//! delta: the old records of the changed slots are gathered, and each parity slot is sent the
//! coded difference, which it adds to what it has (the code is linear).

use super::gather::{Progress, compact};
use super::rows::{Kind, TaskId};
use super::{Action, Alarm, BlockWrite, Coordinator, Event, OpError, Phase, Purpose, Seat};
use crate::invariant::invariant;
use crate::msg::{self, Answer, Ask, Changed, Reject};
use bytes::Bytes;
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::code::{Code, Fingerprint};
use smalti_storage::ids::{GroupNo, RowAddr, Slot, SlotSet, Ver, Wid};
use smalti_storage::store::VecEntry;
use std::collections::{BTreeMap, BTreeSet};

/// Times an update is begun anew after a store refused its base, before it fails.
const ATTEMPTS_MAX: u32 = 8;

/// A write in progress.
#[derive(Clone, Debug, Hash)]
pub(super) struct WriteOp {
    pub(super) rows_left: usize,
    pub(super) groups: BTreeSet<GroupNo>,
    pub(super) result: Result<(), OpError>,
}

/// One update of one row, for one or more client writes.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Update {
    writes: BTreeMap<Slot, (Wid, Bytes)>,
    ops: Vec<u64>,
    attempts: u32,
    /// A store knew a newer client write of some block: looks at the vector first from now on.
    careful: bool,
    phase: UpdatePhase,
}

#[derive(Clone, Debug, Default, Hash)]
enum UpdatePhase {
    #[default]
    Begin,
    Gathering,
    Preparing {
        ver: Ver,
        touched: SlotSet,
        acked: BTreeSet<Seat>,
        vec: Vec<VecEntry>,
        known: bool,
    },
    /// Undone on every slot that may hold it; then begun anew, or failed.
    Aborting {
        ver: Ver,
        waiting: BTreeSet<Seat>,
        then: Then,
    },
    /// Waiting for a slot to be repaired under this row lock.
    Repairing,
}

/// What becomes of an update that has been undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Then {
    /// It is begun anew, after the seat's slot was repaired.
    Again(Option<Seat>),
    Fail(OpError),
    /// It waits until its group has grown.
    Park,
}

impl Coordinator {
    pub(super) fn start_write(&mut self, op: u64, blocks: Vec<BlockWrite>) {
        let data = self.data_slots();
        let fits = |write: &BlockWrite| {
            data.contains(write.slot)
                && self.store_of(write.row.group, write.slot).is_some()
                && (write.record.is_empty() || write.record.len() == self.config.record_len)
        };
        let writer_gen = self.writer_gen();
        // Another coordinator has been elected, perhaps this one anew. Taken before its time it would
        // pass for newer than what the gateway of this epoch is still writing.
        let newer = |write: &BlockWrite| write.wid.generation > writer_gen;
        if blocks.iter().any(newer) && !lives(Mutant::TakeNewer) {
            self.waiting_ops.push_back((self.now, Event::Write { op, blocks }));
            return;
        }
        // It would be acknowledged no sooner, and have a row locked.
        let waits = |no: GroupNo| !self.may_acknowledge(no) || !self.is_served(no);
        let short = blocks.iter().any(|write| waits(write.row.group));
        let refused = if !blocks.iter().all(fits) {
            Some(OpError::Invalid)
        } else if blocks.iter().any(|write| write.wid.generation < writer_gen) {
            Some(OpError::Fenced)
        } else if blocks.iter().any(|write| self.lost_rows.contains(&write.row)) {
            Some(OpError::Unreadable)
        } else {
            None
        };
        if let Some(error) = refused {
            self.actions.push(Action::WriteDone { op, result: Err(error) });
            return;
        }
        if short {
            self.waiting_ops.push_back((self.now, Event::Write { op, blocks }));
            return;
        }
        let mut rows: BTreeMap<RowAddr, Vec<BlockWrite>> = BTreeMap::new();
        for write in blocks {
            rows.entry(write.row).or_default().push(write);
        }
        let groups = rows.keys().map(|row| row.group).collect();
        self.writes.insert(op, WriteOp { rows_left: rows.len(), groups, result: Ok(()) });
        if rows.is_empty() {
            self.writes.remove(&op);
            self.actions.push(Action::WriteDone { op, result: Ok(()) });
        }
        for (row, writes) in rows {
            if let Some(queued) = self.queued_update(row) {
                queued.merge(op, writes);
            } else {
                let mut update = Update::default();
                update.merge(op, writes);
                self.add_task(row, Kind::Update(update));
            }
        }
    }

    pub(super) fn run_update(&mut self, id: TaskId) {
        loop {
            let Some(Kind::Update(update)) = self.tasks.get_mut(&id).map(|task| &mut task.kind)
            else {
                return;
            };
            match &mut update.phase {
                UpdatePhase::Begin => {
                    let changed: SlotSet = update.writes.keys().copied().collect();
                    update.phase = UpdatePhase::Gathering;
                    self.begin_gather(id, changed);
                }
                UpdatePhase::Gathering => match self.gather_for_update(id) {
                    Progress::Waiting => return,
                    Progress::Done => return self.prepare(id),
                    Progress::Failed => return self.end_update(id, Err(OpError::Unreadable)),
                },
                UpdatePhase::Preparing { .. } => return self.check_committed(id),
                UpdatePhase::Aborting { .. } => return self.check_aborted(id),
                UpdatePhase::Repairing => match self.repair_step(id) {
                    Progress::Waiting => return,
                    // Also when it came to nothing: the store may have been taken out meanwhile. If
                    // it is there and can not be repaired, the attempts come to their end.
                    Progress::Done | Progress::Failed => {
                        if let Some(Kind::Update(update)) =
                            self.tasks.get_mut(&id).map(|task| &mut task.kind)
                        {
                            update.phase = UpdatePhase::Begin;
                        }
                    }
                },
            }
        }
    }

    fn begin_gather(&mut self, id: TaskId, changed: SlotSet) {
        let whole = changed == self.data_slots();
        let Some(task) = self.tasks.get(&id) else { return };
        let addressed = slots_of(&self.members(task.row.group));
        let has_parity = !self.parity_slots().and(addressed).is_empty();
        // Without a parity slot to send one to, no delta is needed.
        let need = if whole || !has_parity { SlotSet::EMPTY } else { changed };
        if let Some(task) = self.tasks.get_mut(&id) {
            task.gather.reset(need, SlotSet::EMPTY);
            // A slot knows what others do not.
            task.gather.by_all = matches!(&task.kind, Kind::Update(update) if update.careful);
        }
    }

    fn gather_for_update(&mut self, id: TaskId) -> Progress {
        let Some(task) = self.tasks.get(&id) else { return Progress::Failed };
        if let Kind::Update(update) = &task.kind
            && update.writes.len() == usize::from(self.n())
            && !update.careful
        {
            let known = self.cache.find(task.row);
            if let Some(task) = self.tasks.get_mut(&id) {
                task.gather.vec = known;
            }
            return Progress::Done;
        }
        // The in-sync parity may have gone while this gathered, or come.
        self.gather(id)
    }

    /// Issues a version and sends the prepares.
    fn prepare(&mut self, id: TaskId) {
        let n = usize::from(self.n());
        let parity = self.parity_slots();
        let snap = self.newest_snap();
        if self.is_frozen() {
            self.frozen.insert(id);
            return;
        }
        let Some(code) = self.code.clone() else { return };
        let Some(row) = self.tasks.get(&id).map(|task| task.row) else { return };
        if !self.may_acknowledge(row.group) {
            return self.park(id);
        }
        let members = self.members(row.group);
        let addressed = slots_of(&members);
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Kind::Update(update) = &mut task.kind else { return };
        // A late duplicate of a write that a newer one has replaced since is done already.
        if let Some(vec) = &task.gather.vec {
            let before = update.writes.len();
            update.writes.retain(|slot, (wid, _)| {
                let newer = vec.get(slot.index()).is_none_or(|entry| *wid > entry.wid);
                newer || lives(Mutant::OldWriteApplied)
            });
            if update.writes.is_empty() {
                return self.end_update(id, Ok(()));
            }
            if before == n && update.writes.len() < n {
                // Not a whole row any more: the old records are needed after all.
                update.phase = UpdatePhase::Begin;
                self.runnable.push_back(id);
                return;
            }
        }
        let changed: SlotSet = update.writes.keys().copied().collect();
        let whole = changed.len() as usize == n;
        let old_at_hand = changed.iter().all(|slot| task.gather.records.contains_key(&slot));
        if !whole && !old_at_hand && !parity.and(addressed).is_empty() {
            // Writes were merged in, or a parity slot came, while this gathered.
            update.phase = UpdatePhase::Begin;
            self.runnable.push_back(id);
            return;
        }
        let Some(coded) = code_update(&code, update, &task.gather.records, whole, &self.zeroes)
        else {
            return self.end_update(id, Err(OpError::Invalid));
        };
        task.gather.close();
        let ver = Ver { epoch: self.epoch, seq: self.next_seq };
        self.next_seq += 1;
        invariant!(
            "I2",
            self.phase == Phase::Active && ver > self.last_issued,
            "{ver} is issued after {} in phase {:?}",
            self.last_issued,
            self.phase
        );
        let holder = self.rows.get(&row).and_then(|row| row.holder);
        let holds = holder == Some(id) || lives(Mutant::UpdatesTogether);
        invariant!("I6", holds, "{row} is updated by {id:?} and held by {holder:?}");
        self.last_issued = ver;
        self.inflight.insert(ver, row);
        let touched = changed.or(parity);
        let before = task.gather.vec.clone();
        let mut vec =
            before.as_ref().map_or_else(|| vec![VecEntry::default(); n], |vec| vec.to_vec());
        let mut asks: Vec<(Slot, Ask)> = Vec::new();
        let about = msg::Update { ver, touched, snap };
        let mut changes = Vec::new();
        for (slot, (wid, record)) in &update.writes {
            let Some(entry) = vec.get_mut(slot.index()) else { continue };
            let base = entry.ver;
            *entry = VecEntry { ver, wid: *wid, snap };
            changes.push(Changed { slot: *slot, base, wid: *wid });
            let (slot, wid, record) = (*slot, *wid, record.clone());
            if whole {
                let vec = Vec::new();
                asks.push((slot, Ask::PrepFull { row, slot, update: about, wid, vec, record }));
            } else {
                asks.push((slot, Ask::PrepData { row, slot, update: about, base, wid, record }));
            }
        }
        let wid = vec.iter().map(|entry| entry.wid).max().unwrap_or_default();
        for (slot, coded) in parity.iter().zip(coded) {
            asks.push((
                slot,
                if whole {
                    let (vec, record) = (vec.clone(), coded.0);
                    Ask::PrepFull { row, slot, update: about, wid, vec, record }
                } else {
                    let changed = changes.clone();
                    let (delta, fingerprint) = coded;
                    Ask::PrepDelta { row, slot, update: about, changed, delta, fingerprint }
                },
            ));
        }
        let known = before.is_some() || whole;
        let acked = BTreeSet::new();
        update.phase = UpdatePhase::Preparing { ver, touched, acked, vec, known };
        for (slot, ask) in asks {
            for seat in members.iter().filter(|(of, _)| *of == slot) {
                let purpose = Purpose::Prep { task: id, row, slot };
                self.ask_at(row.group, *seat, ask.clone(), purpose);
            }
        }
    }

    /// Who is sent every update: in sync, or catching up.
    pub(super) fn members(&self, group: GroupNo) -> Vec<Seat> {
        let mut seats = self.insync_seats(group);
        if !lives(Mutant::LearnerUnsent) {
            seats.extend(self.catchup.seats(group));
        }
        seats
    }

    fn insync_seats(&self, group: GroupNo) -> Vec<Seat> {
        let seat = |slot| Some((slot, self.store_of(group, slot)?));
        self.insync(group).iter().filter_map(seat).collect()
    }

    /// Whose answers count: in sync, or with a proposed growth that may have come about already.
    pub(super) fn counted(&self, group: GroupNo) -> Vec<Seat> {
        let mut seats = self.insync_seats(group);
        seats.extend(self.catchup.growing_seats(group));
        seats
    }

    /// Whose answer an acknowledgement waits for.
    fn required(&self, group: GroupNo) -> Vec<Seat> {
        if lives(Mutant::AckWithoutGrowing) {
            return self.insync_seats(group);
        }
        let mut seats = self.counted(group);
        if lives(Mutant::AckWithoutParity) {
            let last = self.parity_slots().iter().last();
            seats.retain(|(slot, _)| Some(*slot) != last);
        }
        if lives(Mutant::AckWithoutSilent) {
            seats.retain(|(_, store)| self.links.is_up(*store));
        }
        seats
    }

    pub(super) fn on_prepared(&mut self, id: TaskId, row: RowAddr, seat: Seat, answer: &Answer) {
        let slot = seat.0;
        let required = self.required(row.group).contains(&seat);
        let update = match self.tasks.get_mut(&id).map(|task| &mut task.kind) {
            Some(Kind::Update(update)) => Some(update),
            _ => None,
        };
        let good = *answer == Answer::Ok;
        if !good && !required && !lives(Mutant::LearnerUnheard) {
            let outdated = matches!(answer, Answer::Rejected(Reject::Base { .. }));
            self.catchup.behind(row, seat, outdated);
        }
        let Some(update) = update else { return };
        let UpdatePhase::Preparing { ver, acked, .. } = &mut update.phase else { return };
        if good {
            acked.insert(seat);
        } else if required {
            let ver = *ver;
            let then = match answer {
                Answer::Rejected(Reject::Base { .. } | Reject::Corrupt) | Answer::Corrupt => {
                    Then::Again(Some(seat))
                }
                Answer::Rejected(Reject::NoSpace) => Then::Fail(OpError::NoSpace),
                Answer::Rejected(Reject::OldWid) => {
                    update.careful = true;
                    Then::Again(None)
                }
                // Somebody's memory: what is computed anew may be right.
                Answer::Rejected(Reject::Fingerprint) => {
                    self.actions.push(Action::Alarm(Alarm::Miscomputed { row, slot }));
                    Then::Again(None)
                }
                _ => Then::Fail(OpError::Invalid),
            };
            self.abort_update(id, ver, then);
        }
        self.runnable.push_back(id);
    }

    fn check_committed(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        let row = task.row;
        let Kind::Update(update) = &task.kind else { return };
        let UpdatePhase::Preparing { ver, touched, acked, vec, known } = &update.phase else {
            return;
        };
        if !self.may_acknowledge(row.group) && !lives(Mutant::CommitBelowMin) {
            // Those that were taken out have what was there before, and may be needed for it: it is not
            // let go of for what nobody is told of.
            let ver = *ver;
            self.abort_update(id, ver, Then::Park);
            self.runnable.push_back(id);
            return;
        }
        let mut needed = self.required(row.group).into_iter();
        if needed.any(|seat| touched.contains(seat.0) && !acked.contains(&seat)) {
            return;
        }
        let (ver, touched, vec, known) = (*ver, *touched, vec.clone(), *known);
        self.inflight.remove(&ver);
        if !touched.is_subset(self.insync(row.group)) {
            self.missed.insert(row);
        }
        if known {
            self.cache.put(row, vec.into());
        }
        self.end_update(id, Ok(()));
    }

    fn abort_update(&mut self, id: TaskId, ver: Ver, then: Then) {
        let Some(task) = self.tasks.get(&id) else { return };
        let row = task.row;
        let Kind::Update(update) = &task.kind else { return };
        let UpdatePhase::Preparing { touched, .. } = update.phase else { return };
        let mut waiting: BTreeSet<Seat> = self.members(row.group).into_iter().collect();
        waiting.retain(|(slot, _)| touched.contains(*slot));
        let seats = waiting.clone();
        if let Some(Kind::Update(update)) = self.tasks.get_mut(&id).map(|task| &mut task.kind) {
            update.phase = UpdatePhase::Aborting { ver, waiting, then };
        }
        // A whole row may have stood on a learner whatever it held before, and what it held comes
        // to light again.
        let required = self.required(row.group);
        for seat in seats.iter().filter(|seat| !required.contains(seat)) {
            if !lives(Mutant::LearnerAbortForgotten) {
                self.catchup.behind(row, *seat, false);
            }
        }
        self.vet_beneath(row, touched);
        // A prepare that was refused for want of a map must not be sent again after its abort.
        let preps: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, p)| matches!(p.purpose, Purpose::Prep { task, .. } if task == id))
            .map(|(id, _)| *id)
            .collect();
        if !lives(Mutant::PrepareAfterAbort) {
            self.withdraw(&preps);
        }
        for seat in seats {
            let slot = seat.0;
            let ask = Ask::Abort { row, slot, ver };
            self.ask_at(row.group, seat, ask, Purpose::Abort { task: id, slot });
        }
    }

    pub(super) fn on_aborted(&mut self, id: TaskId, seat: Seat) {
        if let Some(Kind::Update(update)) = self.tasks.get_mut(&id).map(|task| &mut task.kind)
            && let UpdatePhase::Aborting { waiting, .. } = &mut update.phase
        {
            waiting.remove(&seat);
            self.runnable.push_back(id);
        }
    }

    fn check_aborted(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        let row = task.row;
        let Kind::Update(update) = &task.kind else { return };
        let UpdatePhase::Aborting { ver, waiting, then } = &update.phase else { return };
        // A slot that left the in-sync set will not answer and need not.
        let awaited = self.required(row.group).iter().any(|seat| waiting.contains(seat));
        if awaited && !lives(Mutant::AbortUnawaited) {
            return;
        }
        let (ver, then) = (*ver, *then);
        self.inflight.remove(&ver);
        let attempts = update.attempts;
        match then {
            Then::Fail(error) => self.end_update(id, Err(error)),
            Then::Park => self.park(id),
            Then::Again(_) if attempts >= ATTEMPTS_MAX => {
                self.end_update(id, Err(OpError::Unreadable));
            }
            Then::Again(seat) => {
                if let Some(Kind::Update(update)) =
                    self.tasks.get_mut(&id).map(|task| &mut task.kind)
                {
                    update.attempts += 1;
                    update.phase = UpdatePhase::Repairing;
                }
                // The cached vector may be what was wrong.
                self.cache.forget(row);
                if let Some(seat) = seat {
                    self.begin_repair(id, seat);
                }
                self.runnable.push_back(id);
            }
        }
    }

    fn end_update(&mut self, id: TaskId, result: Result<(), OpError>) {
        let Some(task) = self.end_task(id) else { return };
        let Kind::Update(update) = task.kind else { return };
        for op in update.ops {
            let Some(write) = self.writes.get_mut(&op) else { continue };
            write.rows_left -= 1;
            write.result = write.result.and(result);
            self.finish_write(op);
        }
    }
}

impl Update {
    fn merge(&mut self, op: u64, writes: Vec<BlockWrite>) {
        for write in writes {
            self.put(write.slot, write.wid, write.record);
        }
        self.ops.push(op);
    }

    /// Of a slot the newest client write counts.
    fn put(&mut self, slot: Slot, wid: Wid, record: Bytes) {
        let entry = self.writes.entry(slot).or_default();
        if wid >= entry.0 {
            *entry = (wid, record);
        }
    }

    /// As it was before anything was asked or sent.
    pub(super) fn begin_anew(&mut self) {
        self.phase = UpdatePhase::Begin;
    }

    /// Takes in an update of the same row that came later.
    pub(super) fn absorb(&mut self, later: Self) {
        for (slot, (wid, record)) in later.writes {
            self.put(slot, wid, record);
        }
        self.ops.extend(later.ops);
        self.careful |= later.careful;
    }
}

fn slots_of(seats: &[Seat]) -> SlotSet {
    seats.iter().map(|(slot, _)| *slot).collect()
}

/// `old + new` over GF(2), where empty stands for zeroes; empty when equal.
fn difference(old: &Bytes, new: &Bytes) -> Bytes {
    match (old.is_empty(), new.is_empty()) {
        (true, _) => new.clone(),
        (_, true) => old.clone(),
        _ => old.iter().zip(new.iter()).map(|(a, b)| a ^ b).collect(),
    }
}

/// What each parity slot is sent: its record for a whole row, else what to add to its record, and
/// the fingerprint of that.
/// `None` when a record's length does not fit the code.
fn code_update(
    code: &Code,
    update: &Update,
    old: &BTreeMap<Slot, Bytes>,
    whole: bool,
    zeroes: &[u8],
) -> Option<Vec<(Bytes, Fingerprint)>> {
    if whole {
        let full: Vec<&[u8]> = update
            .writes
            .values()
            .map(|(_, record)| if record.is_empty() { zeroes } else { record.as_ref() })
            .collect();
        let parity = code.encode(&full).ok()?.into_iter().map(compact);
        return Some(parity.map(|record| (record, Fingerprint::default())).collect());
    }
    let mut sums: Vec<Bytes> = Vec::new();
    let mut prints = Vec::new();
    for (slot, (_, record)) in &update.writes {
        let delta = old.get(slot).map_or_else(Bytes::new, |old| difference(old, record));
        prints.push((*slot, Fingerprint::of(&delta).ok()?));
        let parts = code.delta(*slot, if delta.is_empty() { zeroes } else { &delta }).ok()?;
        if sums.is_empty() {
            sums = parts;
        } else {
            for (sum, part) in sums.iter_mut().zip(parts) {
                *sum = difference(sum, &part);
            }
        }
    }
    let prints = code.coded_fingerprints(prints).ok()?;
    Some(sums.into_iter().zip(prints).collect())
}
