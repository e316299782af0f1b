//! Gathering records of one row at one version vector: directly where a slot has them, decoded
//! from n others where it has not.
//!
//! A data record is usable when it verifies and its version is the one the vector names; a parity
//! record when it verifies and carries that very vector. Nothing else is ever an input.

use super::cache::RowVec;
use super::evidence;
use super::rows::TaskId;
use super::{Action, Alarm, Coordinator, Purpose};
use crate::msg::{Answer, Ask, Want};
use bytes::Bytes;
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{RowAddr, Slot, SlotSet, StoreId, Ver};
use smalti_storage::store::{VecEntry, VersionMeta};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a gather has found so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Gather {
    /// Slots whose records are wanted.
    pub(super) need: SlotSet,
    /// Slots never to use: they are being repaired, or have been found wanting.
    pub(super) avoid: SlotSet,
    /// The snapshot to gather at; the newest committed state when not given.
    pub(super) snap: Option<u32>,
    /// The vector to gather at; found out when not given.
    pub(super) vec: Option<RowVec>,
    /// Given in a takeover: the version parity slots must be at.
    pub(super) parity_ver: Option<Ver>,
    /// Metadata of a parity slot at the vector.
    pub(super) parity_meta: Option<VersionMeta>,
    /// Usable records; empty bytes are the absent record.
    pub(super) records: BTreeMap<Slot, Bytes>,
    pub(super) unchecked: BTreeMap<Slot, (VersionMeta, Bytes)>,
    /// What slots said of the vector, when one alone can not tell.
    pub(super) heads: BTreeMap<Slot, VersionMeta>,
    /// Slots whose metadata can not be had.
    pub(super) dumb: SlotSet,
    /// All slots are asked for the vector: decided when the first one is.
    pub(super) by_all: bool,
    /// Records are asked for with the vector, before that tells whether they will do: one round instead of
    /// two, where it is most likely that all will.
    pub(super) eager: bool,
    pub(super) asked: SlotSet,
    pub(super) asked_vec: SlotSet,
    /// Slots that were asked and left. One that has grown back in meanwhile may be asked again.
    pub(super) gone: SlotSet,
    /// Tells answers to this gather from those to an earlier one of the same task.
    pub(super) round: u32,
}

/// How far a gather is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Waiting,
    Done,
    Failed,
}

impl Gather {
    pub(super) fn reset(&mut self, need: SlotSet, avoid: SlotSet) {
        *self = Self { need, avoid, round: self.round + 1, ..Self::default() };
    }

    /// The same, with everything asked for at once.
    pub(super) fn reset_eager(&mut self, need: SlotSet, avoid: SlotSet) {
        self.reset(need, avoid);
        self.eager = true;
    }

    /// Asks a slot for its part of the vector, and for its record if that is to come along.
    fn want_vec(&mut self, slot: Slot) -> Want {
        self.asked_vec = self.asked_vec.with(slot);
        match self.snap {
            Some(snap) => Want::HeldMeta(snap),
            None if self.takes_records() => {
                self.asked = self.asked.with(slot);
                Want::Head
            }
            None => Want::HeadMeta,
        }
    }

    /// Whether slots that are asked for the vector answer with their records.
    fn takes_records(&self) -> bool {
        self.eager && !self.by_all && self.snap.is_none()
    }

    /// What is needed is at hand: answers that are still on their way mean nothing any more.
    pub(super) fn close(&mut self) {
        self.round += 1;
    }

    fn shunned(&self, insync: SlotSet) -> SlotSet {
        self.avoid.or(self.gone.minus(insync))
    }

    /// Whether fewer than `n` records were found usable, though all of `slots` have answered.
    pub(super) fn is_short(&self, n: u8, slots: SlotSet) -> bool {
        let answered = |slot: Slot| self.usable(slot) || self.avoid.contains(slot);
        self.records.len() < usize::from(n) && self.gone.is_empty() && slots.iter().all(answered)
    }

    /// Whether somebody was asked for a record and has not answered.
    pub(super) fn is_waiting(&self) -> bool {
        let answered = |slot: &Slot| self.usable(*slot) || self.avoid.or(self.gone).contains(*slot);
        !self.asked.iter().all(|slot| answered(&slot))
    }

    fn usable(&self, slot: Slot) -> bool {
        self.records.contains_key(&slot)
    }

    /// Judges records once the vector is known, and answers which slots were found wanting.
    fn check(&mut self, data: SlotSet) -> SlotSet {
        let Some(vec) = self.vec.clone() else { return SlotSet::EMPTY };
        let mut bad = SlotSet::EMPTY;
        for (slot, (meta, record)) in std::mem::take(&mut self.unchecked) {
            let good = if data.contains(slot) {
                vec.get(slot.index()).is_some_and(|entry| entry.ver == meta.ver)
            } else {
                same_vector(&meta.vec, &vec) && self.parity_ver.is_none_or(|ver| ver == meta.ver)
            };
            if good {
                self.records.insert(slot, record);
                if !data.contains(slot) {
                    self.parity_meta = Some(meta);
                }
            } else {
                bad = bad.with(slot);
            }
        }
        self.avoid = self.avoid.or(bad);
        // Never written: all zeroes, known without asking.
        let never = |slot: &Slot| vec.get(slot.index()).is_none_or(|entry| entry.ver.is_none());
        let nowhere = data.iter().all(|slot| never(&slot));
        let absent = data.iter().filter(never).collect::<SlotSet>();
        for slot in if nowhere { absent.or(self.need) } else { absent }.iter() {
            self.records.insert(slot, Bytes::new());
        }
        bad
    }
}

/// Whether a stored vector (shorter when its tail was never written) equals a full one.
pub(super) fn same_vector(stored: &[VecEntry], full: &[VecEntry]) -> bool {
    stored.len() <= full.len()
        && full
            .iter()
            .enumerate()
            .all(|(j, entry)| stored.get(j).copied().unwrap_or_default().ver == entry.ver)
}

impl Coordinator {
    /// Moves a task's gather on: asks for what is missing, decodes what can be decoded.
    pub(super) fn gather(&mut self, id: TaskId) -> Progress {
        let Some(task) = self.tasks.get_mut(&id) else { return Progress::Failed };
        let row = task.row;
        let mut gather = std::mem::take(&mut task.gather);
        let progress = self.gather_step(id, row, &mut gather);
        if let Some(task) = self.tasks.get_mut(&id) {
            task.gather = gather;
        }
        progress
    }

    fn gather_step(&mut self, id: TaskId, row: RowAddr, g: &mut Gather) -> Progress {
        let insync = self.insync(row.group);
        let data = self.data_slots();
        if !self.distrusted.is_empty() {
            g.dumb = g.dumb.or(self.distrusted(row));
        }
        if g.vec.is_none() && g.snap.is_none() && !self.is_doubtful(id) {
            g.vec = self.cache.find(row);
        }
        if g.vec.is_none() && !self.gather_vec(id, row, g, insync) {
            return Progress::Failed;
        }
        let bad = g.check(data);
        self.found_wanting(row, bad, g.snap);
        let direct = g.need.and(insync).minus(g.shunned(insync)).minus(g.asked);
        for slot in direct.iter().filter(|slot| !g.usable(*slot)).collect::<Vec<_>>() {
            self.ask_record(id, row, slot, g);
        }
        let missing: SlotSet = g.need.iter().filter(|slot| !g.usable(*slot)).collect();
        if g.vec.is_none() {
            if g.takes_records() && !missing.is_subset(g.asked) {
                self.ask_sources(id, row, g, insync);
            }
            return Progress::Waiting;
        }
        if missing.is_empty() {
            return Progress::Done;
        }
        if missing.and(g.asked).minus(g.shunned(insync)) == missing {
            return Progress::Waiting;
        }
        self.gather_decode(id, row, g, insync, missing)
    }

    /// Finds the row's committed vector. False: there is no way to.
    fn gather_vec(&mut self, id: TaskId, row: RowAddr, g: &mut Gather, insync: SlotSet) -> bool {
        if g.asked_vec.is_empty() {
            g.by_all = self.suspects.in_group(row.group) || self.is_doubtful(id);
        }
        if g.by_all {
            return self.gather_vec_of_all(id, row, g, insync);
        }
        let able = if lives(Mutant::VectorOutOfSync) { self.up_slots(row) } else { insync };
        let silent = g.shunned(insync).or(g.dumb);
        let parity = self.parity_slots().and(able).minus(silent);
        if let Some(slot) = self.nearest(row, parity) {
            if g.asked_vec.and(parity).is_empty() {
                let purpose = Purpose::Vec { task: id, slot, round: g.round };
                let want = g.want_vec(slot);
                self.ask(row.group, slot, Ask::Fetch { row, slot, want }, purpose);
            }
            return true;
        }
        // No parity slot to ask: then hash, place and membership vouch for the data slots, which
        // must all be there.
        let data = self.data_slots();
        if !data.is_subset(insync.minus(silent)) {
            return false;
        }
        self.ask_heads(id, row, g, data);
        if data.iter().all(|slot| g.heads.contains_key(&slot)) {
            g.vec = Some(g.heads.values().map(evidence::entry_of).collect());
            self.remember(row, g);
        }
        true
    }

    /// Any of the slots may have forgotten what it acknowledged: all are asked, also the one that
    /// is being repaired, for it may be the one that knows.
    fn gather_vec_of_all(
        &mut self,
        id: TaskId,
        row: RowAddr,
        g: &mut Gather,
        insync: SlotSet,
    ) -> bool {
        self.ask_heads(id, row, g, insync.minus(g.dumb));
        let due = insync.iter().any(|slot| !g.heads.contains_key(&slot) && !g.dumb.contains(slot));
        if due {
            return true;
        }
        let told: SlotSet = g.heads.keys().copied().filter(|slot| insync.contains(*slot)).collect();
        let known = self.data_slots().is_subset(told) || !told.and(self.parity_slots()).is_empty();
        if !known && !lives(Mutant::AbsentIfUnread) {
            // Of some data slot nobody can tell: that is not to say that it was never written.
            return false;
        }
        let heads = g.heads.iter().filter(|(slot, _)| insync.contains(**slot));
        let vec = evidence::vector(heads.map(|(slot, meta)| (*slot, meta)), self.n());
        let wrong = evidence::dissenting(&g.heads, &vec, self.data_slots());
        let parity = self.parity_slots().minus(wrong);
        g.parity_meta =
            g.heads.iter().find(|(slot, _)| parity.contains(**slot)).map(|(_, meta)| meta.clone());
        g.vec = Some(vec.into());
        g.avoid = g.avoid.or(wrong);
        self.found_wanting(row, wrong, g.snap);
        self.remember(row, g);
        true
    }

    fn ask_heads(&mut self, id: TaskId, row: RowAddr, g: &mut Gather, of: SlotSet) {
        for slot in of.minus(g.asked_vec).iter().collect::<Vec<_>>() {
            let purpose = Purpose::Vec { task: id, slot, round: g.round };
            let want = g.want_vec(slot);
            self.ask(row.group, slot, Ask::Fetch { row, slot, want }, purpose);
        }
    }

    /// Asks as many others as decoding takes, with the one that was asked for the vector.
    fn ask_sources(&mut self, id: TaskId, row: RowAddr, g: &mut Gather, insync: SlotSet) {
        let shunned = g.shunned(insync);
        let asked = g.asked.minus(shunned).len() as usize;
        let others = insync.minus(g.asked).minus(shunned).minus(g.need);
        let lacking = usize::from(self.n()).saturating_sub(asked);
        for slot in others.iter().take(lacking).collect::<Vec<_>>() {
            self.ask_record(id, row, slot, g);
        }
    }

    /// The slot of the set whose store answers soonest: one on this node, else the first.
    fn nearest(&self, row: RowAddr, slots: SlotSet) -> Option<Slot> {
        let here = |slot: &Slot| {
            self.store_of(row.group, *slot).and_then(|store| self.map.node_of(store))
                == Some(self.config.me.node)
        };
        slots.iter().find(here).or_else(|| slots.iter().next())
    }

    fn remember(&mut self, row: RowAddr, g: &Gather) {
        if g.parity_ver.is_none()
            && g.snap.is_none()
            && let Some(vec) = &g.vec
        {
            self.cache.put(row, Arc::clone(vec));
        }
    }

    fn ask_record(&mut self, id: TaskId, row: RowAddr, slot: Slot, g: &mut Gather) {
        g.asked = g.asked.with(slot);
        let named = if self.data_slots().contains(slot) {
            g.vec.as_ref().and_then(|vec| vec.get(slot.index())).map(|entry| entry.ver)
        } else {
            g.parity_ver
        };
        let newest = g.snap.map_or(Want::Head, Want::Held);
        let want = named.map_or(newest, Want::Version);
        let purpose = Purpose::Task { task: id, slot, round: g.round };
        self.ask(row.group, slot, Ask::Fetch { row, slot, want }, purpose);
    }

    /// Collects any n usable shards, then computes what is missing.
    fn gather_decode(
        &mut self,
        id: TaskId,
        row: RowAddr,
        g: &mut Gather,
        insync: SlotSet,
        missing: SlotSet,
    ) -> Progress {
        let n = u32::from(self.n());
        let all = self.data_slots().or(self.parity_slots());
        let usable: SlotSet = all.iter().filter(|slot| g.usable(*slot)).collect();
        if usable.len() >= n {
            return self.decode(g, usable, missing);
        }
        let shunned = g.shunned(insync);
        let on_the_way = g.asked.minus(shunned).minus(usable);
        let mut short = n.saturating_sub(usable.len() + on_the_way.len());
        // Slots that are out of sync may be read too: what agrees with the vector is good.
        let outside = self.up_slots(row).minus(insync);
        let candidates = insync.or(outside).minus(g.asked).minus(shunned).minus(usable);
        let inside_first = candidates.and(insync).iter().chain(candidates.minus(insync).iter());
        for slot in inside_first.collect::<Vec<_>>() {
            if short == 0 {
                break;
            }
            short -= 1;
            self.ask_record(id, row, slot, g);
        }
        if short > 0 { Progress::Failed } else { Progress::Waiting }
    }

    /// Slots that could not tell what they hold when the row was settled: what they have now may lack
    /// what was decided, until they are repaired.
    pub(super) fn distrusted(&self, row: RowAddr) -> SlotSet {
        let any = (Slot(0), StoreId::default());
        let of_row = self.distrusted.range((row, any)..).take_while(|(of, _)| *of == row);
        let still =
            of_row.filter(|(_, (slot, store))| self.store_of(row.group, *slot) == Some(*store));
        still.map(|(_, (slot, _))| *slot).collect()
    }

    /// Slots whose stores are connected, in sync or not.
    fn up_slots(&self, row: RowAddr) -> SlotSet {
        let up = |slot: &Slot| {
            self.store_of(row.group, *slot).is_some_and(|store| self.links.is_up(store))
        };
        self.data_slots().or(self.parity_slots()).iter().filter(up).collect()
    }

    fn decode(&self, g: &mut Gather, usable: SlotSet, missing: SlotSet) -> Progress {
        let Some(code) = &self.code else { return Progress::Failed };
        let zeroes = Arc::clone(&self.zeroes);
        let sources: Vec<(Slot, &[u8])> = usable
            .iter()
            .filter_map(|slot| {
                let record = g.records.get(&slot)?;
                Some((slot, if record.is_empty() { &*zeroes } else { record.as_ref() }))
            })
            .take(usize::from(self.n()))
            .collect();
        let want: Vec<Slot> = missing.iter().collect();
        let Ok(decoded) = code.reconstruct(&sources, &want) else { return Progress::Failed };
        for (slot, record) in decoded {
            g.records.insert(slot, compact(record));
        }
        Progress::Done
    }

    pub(super) fn on_vec(&mut self, id: TaskId, slot: Slot, round: u32, answer: Answer) {
        let data = self.data_slots();
        let n = usize::from(self.n());
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if task.gather.round != round {
            return;
        }
        let (row, snap) = (task.row, task.gather.snap);
        let meta = match answer {
            Answer::Version { meta, record } => {
                if task.gather.takes_records() {
                    task.gather.unchecked.insert(slot, (meta.clone(), record));
                }
                Some(meta)
            }
            Answer::Missing => None,
            answer => {
                task.gather.dumb = task.gather.dumb.with(slot);
                task.gather.avoid = task.gather.avoid.with(slot);
                self.note_fault(id, row, slot, &answer);
                self.found_wanting(row, SlotSet::EMPTY.with(slot), snap);
                self.runnable.push_back(id);
                return;
            }
        };
        if task.gather.by_all || data.contains(slot) {
            task.gather.heads.insert(slot, meta.unwrap_or_default());
        } else if task.gather.vec.is_none() {
            let mut vec = meta.as_ref().map(|meta| meta.vec.clone()).unwrap_or_default();
            vec.resize(n, VecEntry::default());
            task.gather.parity_meta = meta;
            task.gather.vec = Some(vec.into());
            let newest = task.gather.snap.is_none();
            if let Some(vec) = task.gather.vec.clone().filter(|_| newest) {
                self.cache.put(row, vec);
            }
        }
        self.runnable.push_back(id);
    }

    pub(super) fn on_gathered(&mut self, id: TaskId, slot: Slot, round: u32, answer: Answer) {
        let data = self.data_slots();
        let Some(task) = self.tasks.get_mut(&id).filter(|task| task.gather.round == round) else {
            return;
        };
        let (row, snap) = (task.row, task.gather.snap);
        // The vector may have come a moment ago, in the same reply.
        let bad = task.gather.check(data);
        self.found_wanting(row, bad, snap);
        // A record that the vector made superfluous proves nothing by missing.
        let Some(task) = self.tasks.get_mut(&id).filter(|task| !task.gather.usable(slot)) else {
            self.runnable.push_back(id);
            return;
        };
        let has = match answer {
            Answer::Version { meta, record } => (meta, record),
            // As it should be in a row nobody wrote, and the vector tells whether this is one.
            Answer::Missing => Default::default(),
            answer => {
                task.gather.avoid = task.gather.avoid.with(slot);
                self.note_fault(id, row, slot, &answer);
                self.found_wanting(row, SlotSet::EMPTY.with(slot), snap);
                self.runnable.push_back(id);
                return;
            }
        };
        task.gather.unchecked.insert(slot, has);
        let bad = task.gather.check(data);
        self.found_wanting(row, bad, snap);
        self.runnable.push_back(id);
    }

    /// The store of a slot has left: its answer will not come.
    pub(super) fn slot_is_gone(&mut self, id: TaskId, slot: Slot, round: u32) {
        if let Some(task) = self.tasks.get_mut(&id).filter(|task| task.gather.round == round) {
            task.gather.asked = task.gather.asked.without(slot);
            task.gather.asked_vec = task.gather.asked_vec.without(slot);
            task.gather.gone = task.gather.gone.with(slot);
            self.runnable.push_back(id);
        }
    }

    /// What does not verify is its store's fault, wherever that is in sync. It counts once: not again for
    /// everybody who comes upon it before it is repaired, or who finds that it can not be, nor for the
    /// repairs of a scrub, which has counted it.
    fn note_fault(&mut self, id: TaskId, row: RowAddr, slot: Slot, answer: &Answer) {
        let Some(store) = self.store_of(row.group, slot) else { return };
        let rotten = *answer == Answer::Corrupt && self.insync(row.group).contains(slot);
        if rotten && !self.is_doubtful(id) && !self.catchup.knows_wrong(row, (slot, store)) {
            self.actions.push(Action::Fault { store });
        }
    }

    /// In-sync slots that should hold a record and do not: told, and repaired once the row is
    /// free. Others are not expected to.
    fn found_wanting(&mut self, row: RowAddr, slots: SlotSet, snap: Option<u32>) {
        if !self.is_kept(snap) {
            // Deleted meanwhile, and stores let go of it.
            return;
        }
        for slot in slots.and(self.insync(row.group)).iter() {
            self.stats.corrupt_records += 1;
            self.actions.push(Action::Alarm(Alarm::Corrupt { row, slot }));
            self.repair_later(row, slot);
        }
    }
}

/// All zeroes is the absent record, which is kept without bytes.
pub(super) fn compact(record: Bytes) -> Bytes {
    if record.iter().all(|byte| *byte == 0) { Bytes::new() } else { record }
}
