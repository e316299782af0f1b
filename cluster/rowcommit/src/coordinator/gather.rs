//! Gathering records of one row at one version vector: directly where a slot has them, decoded
//! from n others where it has not.
//!
//! A data record is usable when it verifies and its version is the one the vector names; a parity
//! record when it verifies and carries that very vector. Nothing else is ever an input.
//!
//! G1. The vector is what all parity slots in sync say alike. With a block's own slot that makes k + 1 who tell
//!     its version, so that of k stores that have silently lost a write, or put back an old record, none is believed.
//! G2. Where slots in sync contradict each other all of them are asked, and the newest version that one names
//!     counts: nobody is taken for wrong, and put right, on another one's word alone.

use super::cache::RowVec;
use super::evidence;
use super::rows::{Kind, TaskId};
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
    /// All slots are asked for the vector: decided when the first one is, or begun anew with that.
    pub(super) by_all: bool,
    /// What it was to avoid when it began.
    shunned_first: SlotSet,
    /// Records are asked for with the vector, before that tells whether they will do: one round instead of
    /// two, where it is most likely that all will.
    pub(super) eager: bool,
    pub(super) asked: SlotSet,
    pub(super) asked_vec: SlotSet,
    /// Those of them that give their records with it.
    pub(super) bringing: SlotSet,
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
        let (shunned_first, round) = (avoid, self.round + 1);
        *self = Self { need, avoid, shunned_first, round, ..Self::default() };
    }

    /// Begins anew, believing no slot alone.
    fn doubt(&mut self) {
        let (snap, dumb, eager) = (self.snap, self.dumb, self.eager);
        self.reset(self.need, self.shunned_first);
        (self.snap, self.dumb, self.eager, self.by_all) = (snap, dumb, eager, true);
    }

    /// Whether what it finds may show that somebody else was wrong: not in a takeover, which has decided.
    fn may_doubt(&self) -> bool {
        !self.by_all && self.parity_ver.is_none() && !lives(Mutant::BelieveOne)
    }

    /// The same, with everything asked for at once.
    pub(super) fn reset_eager(&mut self, need: SlotSet, avoid: SlotSet) {
        self.reset(need, avoid);
        self.eager = true;
    }

    /// Asks a slot for its part of the vector, and for its record if that is to come along.
    fn want_vec(&mut self, slot: Slot, record: bool) -> Want {
        self.asked_vec = self.asked_vec.with(slot);
        match self.snap {
            Some(snap) => Want::HeldMeta(snap),
            None if record && self.takes_records() => {
                self.asked = self.asked.with(slot);
                self.bringing = self.bringing.with(slot);
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

    /// Judges records once the vector is known, and answers which slots were found wanting. `own`: slots that can
    /// be asked for what they have themselves.
    fn check(&mut self, data: SlotSet, own: SlotSet) -> SlotSet {
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
        // Never written: all zeroes, known without asking where all were asked. Else the block's own slot is one of
        // those who have to say so.
        let own = if self.by_all || self.parity_ver.is_some() { SlotSet::EMPTY } else { own };
        let own = own.and(self.need).minus(self.avoid).minus(self.dumb);
        let never = |slot: &Slot| vec.get(slot.index()).is_none_or(|entry| entry.ver.is_none());
        let nowhere = data.iter().all(|slot| never(&slot));
        let absent = data.iter().filter(never).collect::<SlotSet>();
        let known = if nowhere { absent.or(self.need) } else { absent };
        for slot in known.minus(own).iter() {
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
        if !self.distrusted.is_empty() {
            g.dumb = g.dumb.or(self.distrusted(row));
        }
        // What one slot said may have got there again since this was begun anew.
        if g.vec.is_none() && g.snap.is_none() && !g.by_all && !self.is_doubtful(id) {
            g.vec = self.cache.find(row);
        }
        if g.vec.is_none() && !self.gather_vec(id, row, g, insync) {
            return Progress::Failed;
        }
        if self.weigh(id, row, g) {
            return self.gather_step(id, row, g);
        }
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
            g.by_all |= self.suspects.in_group(row.group) || self.is_doubtful(id);
        }
        if g.by_all {
            return self.gather_vec_of_all(id, row, g, insync);
        }
        let able = if lives(Mutant::VectorOutOfSync) { self.up_slots(row) } else { insync };
        let silent = g.shunned(insync).or(g.dumb);
        let parity = self.parity_slots().and(able).minus(silent);
        if let Some(nearest) = self.nearest(row, parity) {
            return self.gather_vec_of_parity(id, row, g, (nearest, parity));
        }
        // No parity slot to ask: then hash, place and membership vouch for the data slots, which
        // must all be there.
        let data = self.data_slots();
        if !data.is_subset(insync.minus(silent)) {
            return false;
        }
        self.ask_heads(id, row, g, data);
        let heads: Vec<_> = data.iter().filter_map(|slot| g.heads.get(&slot)).collect();
        if heads.len() == usize::from(self.n()) {
            g.vec = Some(heads.into_iter().map(evidence::entry_of).collect());
            self.remember(row, g);
        }
        true
    }

    /// G1. One of them gives its record too, if records are to come along.
    fn gather_vec_of_parity(
        &mut self,
        id: TaskId,
        row: RowAddr,
        g: &mut Gather,
        (nearest, parity): (Slot, SlotSet),
    ) -> bool {
        let all = if lives(Mutant::OneParityTells) { SlotSet::EMPTY.with(nearest) } else { parity };
        let first = g.asked_vec.and(all).is_empty();
        for slot in all.minus(g.asked_vec).iter().collect::<Vec<_>>() {
            let want = g.want_vec(slot, first && slot == nearest);
            let purpose = Purpose::Vec { task: id, slot, round: g.round };
            self.ask(row.group, slot, Ask::Fetch { row, slot, want }, purpose);
        }
        let told: Vec<_> = all.iter().filter_map(|slot| g.heads.get(&slot)).collect();
        let Some(meta) = g.heads.get(&nearest).filter(|_| told.len() == all.len() as usize) else {
            return true;
        };
        let mut vec = meta.vec.clone();
        vec.resize(usize::from(self.n()), VecEntry::default());
        if g.may_doubt() && !told.iter().all(|other| same_vector(&other.vec, &vec)) {
            g.doubt();
            let insync = self.insync(row.group);
            return self.gather_vec_of_all(id, row, g, insync);
        }
        // Of a row that nobody wrote there is none.
        g.parity_meta = Some(meta.clone()).filter(|meta| !meta.ver.is_none());
        g.vec = Some(vec.into());
        self.remember(row, g);
        true
    }

    /// Judges what has come, and answers whether it is begun anew: G2.
    fn weigh(&mut self, id: TaskId, row: RowAddr, g: &mut Gather) -> bool {
        // Of an update the slot itself refuses what it is not to be built on.
        let updates = self.tasks.get(&id).is_some_and(|task| matches!(task.kind, Kind::Update(_)));
        let own = if updates { SlotSet::EMPTY } else { self.insync(row.group) };
        let bad = g.check(self.data_slots(), own);
        // Those that could not tell what they hold contradict nobody.
        let against = bad.and(self.insync(row.group)).minus(g.dumb);
        if against.is_empty() || !g.may_doubt() {
            self.found_stale(id, row, bad, g);
            return false;
        }
        self.cache.forget(row);
        g.doubt();
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
        let told = insync.minus(g.dumb);
        g.heads.retain(|slot, _| told.contains(*slot));
        let vec = evidence::vector(g.heads.iter().map(|(slot, meta)| (*slot, meta)), self.n());
        let vec = match self.suspects.in_group(row.group) {
            true => vec,
            false => evidence::borne(&g.heads, vec, self.data_slots()),
        };
        let wrong = evidence::dissenting(&g.heads, &vec, self.data_slots());
        let parity = self.parity_slots().minus(wrong);
        g.parity_meta =
            g.heads.iter().find(|(slot, _)| parity.contains(**slot)).map(|(_, meta)| meta.clone());
        g.vec = Some(vec.into());
        g.avoid = g.avoid.or(wrong);
        self.found_stale(id, row, wrong, g);
        self.remember(row, g);
        true
    }

    fn ask_heads(&mut self, id: TaskId, row: RowAddr, g: &mut Gather, of: SlotSet) {
        for slot in of.minus(g.asked_vec).iter().collect::<Vec<_>>() {
            let purpose = Purpose::Vec { task: id, slot, round: g.round };
            let want = g.want_vec(slot, true);
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
        // Whatever it has, where it should have nothing.
        let named = named.filter(|ver| !ver.is_none());
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
        let Some((row, mut g)) = self.take_gather(id, round) else { return };
        match answer {
            Answer::Version { meta, record } => {
                if g.bringing.contains(slot) {
                    g.unchecked.insert(slot, (meta.clone(), record));
                }
                g.heads.insert(slot, meta);
            }
            Answer::Missing => {
                g.heads.insert(slot, VersionMeta::default());
            }
            answer => {
                g.dumb = g.dumb.with(slot);
                self.is_wrong(id, row, &mut g, (slot, &answer));
            }
        }
        self.put_gather(id, g);
    }

    pub(super) fn on_gathered(&mut self, id: TaskId, slot: Slot, round: u32, answer: Answer) {
        let Some((row, mut g)) = self.take_gather(id, round) else { return };
        // The vector may have come a moment ago, in the same reply. A record that it made superfluous proves
        // nothing by missing; one that was asked for before it is begun anew neither.
        if !self.weigh(id, row, &mut g) && !g.usable(slot) {
            let has = match answer {
                Answer::Version { meta, record } => Some((meta, record)),
                // As it should be in a row nobody wrote, and the vector tells whether this is one.
                Answer::Missing => Some(Default::default()),
                answer => {
                    self.is_wrong(id, row, &mut g, (slot, &answer));
                    None
                }
            };
            if let Some(has) = has {
                g.unchecked.insert(slot, has);
                self.weigh(id, row, &mut g);
            }
        }
        self.put_gather(id, g);
    }

    fn take_gather(&mut self, id: TaskId, round: u32) -> Option<(RowAddr, Gather)> {
        let task = self.tasks.get_mut(&id).filter(|task| task.gather.round == round)?;
        Some((task.row, std::mem::take(&mut task.gather)))
    }

    fn put_gather(&mut self, id: TaskId, gather: Gather) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.gather = gather;
        }
        self.runnable.push_back(id);
    }

    /// What a slot has can not be used, whatever that is.
    fn is_wrong(
        &mut self,
        id: TaskId,
        row: RowAddr,
        g: &mut Gather,
        (slot, told): (Slot, &Answer),
    ) {
        g.avoid = g.avoid.with(slot);
        if *told == Answer::Corrupt {
            self.note_fault(id, row, slot);
        }
        self.found_wanting(row, SlotSet::EMPTY.with(slot), g);
    }

    /// The store of a slot has left: its answer will not come.
    pub(super) fn slot_is_gone(&mut self, id: TaskId, slot: Slot, round: u32) {
        if let Some(task) = self.tasks.get_mut(&id).filter(|task| task.gather.round == round) {
            task.gather.asked = task.gather.asked.without(slot);
            task.gather.asked_vec = task.gather.asked_vec.without(slot);
            task.gather.bringing = task.gather.bringing.without(slot);
            task.gather.gone = task.gather.gone.with(slot);
            self.runnable.push_back(id);
        }
    }

    /// What does not verify, or is not what it should be, is its store's fault, wherever that is in sync. It counts
    /// once: not again for everybody who comes upon it before it is repaired, or who finds that it can not be, nor for
    /// the repairs of a scrub, which has counted it.
    fn note_fault(&mut self, id: TaskId, row: RowAddr, slot: Slot) {
        let Some(store) = self.store_of(row.group, slot) else { return };
        let counts = self.insync(row.group).contains(slot) && !self.is_of_scrub(id);
        if counts && !self.catchup.knows_wrong(row, (slot, store)) {
            self.actions.push(Action::Fault { store });
        }
    }

    /// Slots in sync that do not hold what all of them together say. What suspects have forgotten in a crash is looked
    /// for, and no news.
    fn found_stale(&mut self, id: TaskId, row: RowAddr, slots: SlotSet, g: &Gather) {
        // Who has let go of a deleted snapshot is not wrong.
        let told = self.is_kept(g.snap) && g.parity_ver.is_none();
        if told && !self.suspects.in_group(row.group) {
            slots.iter().for_each(|slot| self.note_fault(id, row, slot));
        }
        self.found_wanting(row, slots, g);
    }

    /// In-sync slots that should hold a record and do not: told, and repaired once the row is
    /// free. Others are not expected to.
    fn found_wanting(&mut self, row: RowAddr, slots: SlotSet, g: &Gather) {
        if !self.is_kept(g.snap) {
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
