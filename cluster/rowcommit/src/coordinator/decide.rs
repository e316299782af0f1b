//! What becomes of a row that was being updated when its coordinator went away.
//!
//! The rule is evidence or constructibility: the newest version that is known committed somewhere,
//! or of which n consistent shards exist, is completed; what is newer is undone. Counting "prepared
//! on every survivor" instead would lose an acknowledged version as soon as one disk forgot it.

mod stale;

use super::evidence;
use super::gather::same_vector;
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{Epoch, Slot, SlotSet, Ver, Wid};
use smalti_storage::store::{VecEntry, VersionMeta};
use std::collections::{BTreeMap, BTreeSet};

/// More undecided versions of one row than this are not told apart.
const SUBSETS_OF: usize = 8;

/// What one in-sync slot holds of a row.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Facts {
    /// Versions, newest first, each with whether it verifies.
    pub(super) versions: Vec<(VersionMeta, bool)>,
    /// The undecided one.
    pub(super) prepared: Option<Ver>,
    /// All versions up to here are committed, by this slot's store.
    pub(super) watermark: Ver,
    /// Its store may have forgotten what it acknowledged: what it lacks proves nothing, and what
    /// it holds for undecided may have been undone long ago.
    pub(super) suspect: bool,
    /// The epoch that began when its store came in sync. What was issued before has come to it by
    /// repairs, of which watermarks tell nothing.
    pub(super) insync_since: Epoch,
    /// What it holds can not be told: it counts for nothing, also not as absence. It may have been so
    /// when the row was settled last, and be readable again.
    pub(super) unreadable: bool,
    /// It can be read again, but may lack what was decided meanwhile: what it lacks proves nothing.
    pub(super) mended: bool,
    /// The row was lost when it was settled last.
    pub(super) frozen: bool,
}

impl Facts {
    fn find(&self, ver: Ver) -> Option<&(VersionMeta, bool)> {
        self.versions.iter().find(|(meta, _)| meta.ver == ver)
    }

    fn holds(&self, ver: Ver) -> bool {
        self.find(ver).is_some_and(|(_, good)| *good || lives(Mutant::CountUnverified))
    }

    /// Of a slot that can not tell.
    fn unheard(&self) -> Self {
        Self { versions: Vec::new(), prepared: None, ..self.clone() }
    }

    /// Of a slot that could not tell once, and can: its newest version proves nothing.
    fn as_of_a_suspect(&self) -> Self {
        let prepared = self.versions.first().map(|(meta, _)| meta.ver);
        Self {
            prepared,
            suspect: true,
            unreadable: false,
            mended: true,
            watermark: Ver::NONE,
            ..self.clone()
        }
    }

    /// The version that may have been undone or not, as far as is known here.
    fn undecided(&self) -> Option<Ver> {
        self.prepared.filter(|ver| *ver > self.watermark)
    }

    /// The newest version here that is known committed.
    fn committed(&self) -> Option<Ver> {
        let mut versions = self.versions.iter().map(|(meta, _)| meta.ver);
        versions.find(|ver| self.prepared != Some(*ver) || *ver <= self.watermark)
    }

    /// The newest version here that is not newer than `limit`.
    fn upto(&self, limit: Ver) -> Option<&VersionMeta> {
        self.versions.iter().map(|(meta, _)| meta).find(|meta| meta.ver <= limit)
    }
}

/// The version a row goes forward to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Chosen {
    pub(super) ver: Ver,
    pub(super) touched: SlotSet,
    pub(super) snap: u32,
    pub(super) vec: Vec<VecEntry>,
    /// In-sync slots that must hold it and do not, and what their newest version is once newer
    /// ones are undone. Not those that can not tell what they hold: they are put right as a whole,
    /// with what snapshots hold, once the volume is served.
    pub(super) lacking: BTreeMap<Slot, Ver>,
}

/// What becomes of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// Completed on the slots that lack it.
    pub(super) chosen: Option<Chosen>,
    /// Undone.
    pub(super) aborts: Vec<(Slot, Ver)>,
    /// The newest version that stays.
    pub(super) stands: Ver,
    /// All versions up to here that were not undone have been committed.
    committed: Ver,
    /// A version that is or may be acknowledged can not be constructed from what is readable.
    /// Nothing of it is undone: what is missing may come back.
    pub(super) lost: bool,
}

/// Decides a row from what its in-sync slots hold. `n` data slots come first, then parity.
///
/// Versions are judged from the newest on. A committed one is always among them, if the row ever
/// had one: it is not collected before its successor is committed, and it stands on at least one
/// in-sync slot. So nothing older than the newest committed version is ever looked at.
pub(super) fn decide(facts: &BTreeMap<Slot, Facts>, n: u8) -> Decision {
    let told = |f: &Facts| if f.unreadable { f.unheard() } else { f.clone() };
    let readable = facts.iter().map(|(slot, f)| (*slot, told(f))).collect();
    if !is_told(facts, n) && !lives(Mutant::AbsentIfUnread) {
        return Decision { lost: true, ..Decision::default() };
    }
    let decision = decide_readable(&readable, n);
    let mended = facts.iter().filter(|(_, f)| f.unreadable && !f.versions.is_empty());
    let mended: BTreeMap<Slot, Facts> =
        mended.map(|(slot, f)| (*slot, f.as_of_a_suspect())).collect();
    if !decision.lost || mended.is_empty() {
        return decision;
    }
    // What such a slot has now is better than nothing, though it may lack what was decided.
    let slots: SlotSet = mended.keys().copied().collect();
    let mut decision = decide_readable(&readable.into_iter().chain(mended).collect(), n);
    decision.aborts.retain(|(slot, _)| !slots.contains(*slot));
    if let Some(chosen) = &mut decision.chosen {
        chosen.lacking.retain(|slot, _| !slots.contains(*slot));
    }
    decision
}

/// Whether what can be read tells of every data slot: a version of one stands there and on every
/// parity slot in sync. What cannot be read is no evidence of absence.
fn is_told(facts: &BTreeMap<Slot, Facts>, n: u8) -> bool {
    let told: SlotSet =
        facts.iter().filter(|(_, f)| !f.unreadable).map(|(slot, _)| *slot).collect();
    let data = SlotSet::first(n);
    data.is_subset(told) || !told.minus(data).is_empty()
}

fn decide_readable(facts: &BTreeMap<Slot, Facts>, n: u8) -> Decision {
    let denied = stale::denied(facts, n);
    let facts = &without(facts, &denied);
    let mut decision = decide_newest(facts, n);
    if !decision.lost {
        decision.aborts.extend(denied);
        stale::undo_outdated(facts, &mut decision);
    }
    decision
}

/// The same without some undecided versions.
fn without(facts: &BTreeMap<Slot, Facts>, gone: &[(Slot, Ver)]) -> BTreeMap<Slot, Facts> {
    let mut rest = facts.clone();
    for (slot, ver) in gone {
        if let Some(facts) = rest.get_mut(slot) {
            facts.versions.retain(|(meta, _)| meta.ver != *ver);
            facts.prepared = None;
        }
    }
    rest
}

fn decide_newest(facts: &BTreeMap<Slot, Facts>, n: u8) -> Decision {
    let (decision, sound) = decide_by_all(facts, n);
    if sound || lives(Mutant::SuspectEvidence) {
        return decision;
    }
    // What only suspects hold, and for undecided, they may have come up with again though it was
    // undone: the row is as it is without, if that can be told. Old ones are doubted first: what
    // was issued after them was built without them.
    let doubtful = held_by_suspects_alone(facts);
    for stale in subsets(&doubtful) {
        let (mut decision, sound) = decide_by_all(&without(facts, &stale), n);
        if sound {
            decision.aborts.extend(stale);
            return decision;
        }
    }
    decision
}

/// All but the empty one, small ones first, and those of old versions before those of newer ones.
fn subsets(doubtful: &[(Slot, Ver)]) -> Vec<Vec<(Slot, Ver)>> {
    let mut sorted = doubtful.to_vec();
    sorted.sort_by_key(|(slot, ver)| (*ver, *slot));
    sorted.truncate(SUBSETS_OF);
    let mut masks: Vec<u32> = (1..1 << sorted.len()).collect();
    masks.sort_by_key(|mask| (mask.count_ones(), *mask));
    let chosen = |mask: u32| {
        let of = sorted.iter().enumerate().filter(|(i, _)| mask & (1 << i) != 0);
        of.map(|(_, held)| *held).collect()
    };
    masks.into_iter().map(chosen).collect()
}

/// Undecided versions that no slot above suspicion knows. Not those that some slot can not read, or may
/// hold and can not tell: they are not why the row can not be read, but what is left of it.
fn held_by_suspects_alone(facts: &BTreeMap<Slot, Facts>) -> Vec<(Slot, Ver)> {
    let known = |ver: Ver| {
        facts.values().any(|f| f.find(ver).is_some() && !(f.suspect && f.undecided() == Some(ver)))
    };
    let held = facts.iter().filter_map(|(slot, f)| Some((*slot, f.undecided()?)));
    let legible =
        |ver: Ver| facts.values().all(|f| !f.unreadable && (f.find(ver).is_none() || f.holds(ver)));
    held.filter(|(_, ver)| !known(*ver) && legible(*ver)).collect()
}

/// And whether the row can be read as decided.
fn decide_by_all(facts: &BTreeMap<Slot, Facts>, n: u8) -> (Decision, bool) {
    let versions: BTreeSet<Ver> =
        facts.values().flat_map(|f| f.versions.iter().map(|(meta, _)| meta.ver)).collect();
    // Known committed anywhere is committed everywhere: what one slot was built on since, another
    // may still hold for undecided. And whatever the newest version is, those before it were
    // decided when it was issued, and what was undone then is gone from every in-sync slot.
    let before_newest = versions.iter().rev().nth(1).copied();
    let before_newest = before_newest.filter(|_| !lives(Mutant::DoubtOlder));
    let watermark = facts.values().map(|f| f.watermark).max().unwrap_or(Ver::NONE);
    let covered = versions.range(..=watermark).next_back().copied();
    let committed = facts.values().filter_map(Facts::committed).chain(covered);
    let committed = committed.chain(before_newest).max().unwrap_or(Ver::NONE);
    let newer = if lives(Mutant::ForwardOldest) { versions.len().saturating_sub(1) } else { 0 };
    for ver in versions.into_iter().rev().skip(newer) {
        let Some(judged) = judge(facts, n, ver, committed) else { continue };
        let aborts = newer_than(facts, ver);
        if judged.constructible && !(lives(Mutant::UndoAll) && ver > committed) {
            let chosen = (!judged.chosen.lacking.is_empty()).then_some(judged.chosen);
            return (Decision { chosen, aborts, stands: ver, committed, lost: false }, true);
        }
        if ver <= committed || judged.everywhere {
            let lost = ver > committed || !judged.whole;
            // What was issued after it proves that it was committed.
            let aborts = if lost { Vec::new() } else { aborts };
            return (Decision { chosen: None, aborts, stands: ver, committed, lost }, false);
        }
    }
    (Decision { aborts: newer_than(facts, Ver::NONE), ..Decision::default() }, true)
}

fn newer_than(facts: &BTreeMap<Slot, Facts>, limit: Ver) -> Vec<(Slot, Ver)> {
    facts
        .iter()
        .flat_map(|(slot, facts)| facts.versions.iter().map(|(meta, _)| (*slot, meta.ver)))
        .filter(|(_, ver)| *ver > limit)
        .collect()
}

struct Judged {
    chosen: Chosen,
    constructible: bool,
    /// No slot that can be asked lacks it, so it may have been acknowledged.
    everywhere: bool,
    /// Every slot holds it.
    whole: bool,
}

fn judge(facts: &BTreeMap<Slot, Facts>, n: u8, ver: Ver, committed: Ver) -> Option<Judged> {
    let data = SlotSet::first(n);
    let found = || facts.values().filter_map(|f| f.find(ver));
    let (meta, _) = found().find(|(_, good)| *good).or_else(|| found().next())?;
    let insync: SlotSet = facts.keys().copied().collect();
    let touched = meta.touched.and(insync);
    let vec = vector_of(facts, n, meta, committed);
    let good = |(slot, f): &(&Slot, &Facts)| {
        if meta.touched.contains(**slot) {
            // A parity slot that took it onto less than the others knew is no part of it.
            let full = data.contains(**slot)
                || vec.as_ref().is_some_and(|vec| {
                    f.find(ver).is_some_and(|(held, _)| same_vector(&held.vec, vec))
                });
            return f.holds(ver) && full;
        }
        // A parity slot is touched by every update; one that is not can not be right. A data slot
        // must stand at what the vector names, once newer versions are undone.
        let entry = vec.as_ref().and_then(|vec| vec.get(slot.index()));
        let head = f.upto(ver).map_or(Ver::NONE, |meta| meta.ver);
        let named = entry.is_some_and(|entry| entry.ver == head);
        data.contains(**slot) && !f.unreadable && named && (head.is_none() || f.holds(head))
    };
    let consistent = facts.iter().filter(good).count();
    let of = |slot: Slot| facts.get(&slot);
    let lacking = touched
        .iter()
        .filter_map(|slot| Some((slot, of(slot)?)))
        .filter(|(_, f)| !f.holds(ver) && !f.unreadable)
        .map(|(slot, f)| (slot, f.upto(ver).map_or(Ver::NONE, |meta| meta.ver)))
        .collect();
    let everywhere =
        touched.iter().filter_map(of).all(|f| f.unreadable || f.mended || f.find(ver).is_some());
    let whole = touched.iter().filter_map(of).all(|f| f.holds(ver));
    let constructible = vec.is_some() && consistent >= usize::from(n);
    let chosen = Chosen {
        ver,
        touched: meta.touched,
        snap: meta.snap,
        vec: vec.unwrap_or_default(),
        lacking,
    };
    Some(Judged { chosen, constructible, everywhere, whole })
}

/// The version vector a version stands for: from a parity slot that holds it, else from what
/// the row was before, with the changed slots moved to it. `None` when that can not be told.
fn vector_of(
    facts: &BTreeMap<Slot, Facts>,
    n: u8,
    meta: &VersionMeta,
    committed: Ver,
) -> Option<Vec<VecEntry>> {
    let ver = meta.ver;
    let base = committed.min(ver);
    let data = SlotSet::first(n);
    let full = |vec: &[VecEntry]| {
        let mut vec = vec.to_vec();
        vec.resize(usize::from(n), VecEntry::default());
        vec
    };
    let parity = || facts.iter().filter(|(slot, _)| !data.contains(**slot)).map(|(_, f)| f);
    // One that could not tell what it holds may have missed something, and is only asked where no
    // other can be.
    let sure = parity().any(|f| !f.unreadable && !f.mended);
    let readable_parity = || parity().filter(move |f| !(f.unreadable || f.mended && sure));
    // What data slots know to be committed is so, whatever a parity slot has forgotten of it.
    let raised = |mut vec: Vec<VecEntry>| {
        let readable = facts.iter().filter(|(_, f)| !f.unreadable && !lives(Mutant::ParityAlone));
        for (slot, f) in readable.filter(|(slot, _)| data.minus(meta.touched).contains(**slot)) {
            if let (Some(entry), Some(head)) = (vec.get_mut(slot.index()), f.upto(base)) {
                evidence::raise(entry, evidence::entry_of(head));
            }
        }
        vec
    };
    let held = || readable_parity().filter_map(|f| f.find(ver));
    if held().next().is_some() {
        let good = held().any(|(_, good)| *good);
        let mut vec = vec![VecEntry::default(); usize::from(n)];
        for (held, _) in held().filter(|(_, verifies)| *verifies == good) {
            vec.iter_mut().zip(&held.vec).for_each(|(entry, told)| evidence::raise(entry, *told));
        }
        return Some(raised(vec));
    }
    let mut vec = if readable_parity().next().is_some() {
        let base = readable_parity().filter_map(|f| f.upto(base)).max_by_key(|meta| meta.ver);
        raised(full(base.map_or(&[], |meta| &meta.vec)))
    } else {
        // No parity slot can tell: the committed versions of all data slots are the vector.
        let upto = |slot: Slot| {
            let f = facts.get(&slot).filter(|f| !f.unreadable)?;
            let entry = |m: &VersionMeta| VecEntry { ver: m.ver, wid: m.wid, snap: m.snap };
            Some(f.upto(base).map_or_else(VecEntry::default, entry))
        };
        data.iter().map(upto).collect::<Option<Vec<_>>>()?
    };
    for slot in meta.touched.and(data).iter() {
        let held = facts.get(&slot).and_then(|f| f.find(ver));
        let wid = held.map_or(Wid::default(), |(meta, _)| meta.wid);
        if let Some(entry) = vec.get_mut(slot.index()) {
            *entry = VecEntry { ver, wid, snap: meta.snap };
        }
    }
    Some(vec)
}

#[cfg(test)]
mod tests;
