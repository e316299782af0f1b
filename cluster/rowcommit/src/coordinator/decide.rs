//! What becomes of a row that was being updated when its coordinator went away.
//!
//! The rule is evidence or constructibility: the newest version that is known committed somewhere,
//! or of which n consistent shards exist, is completed; what is newer is undone. Counting "prepared
//! on every survivor" instead would lose an acknowledged version as soon as one disk forgot it.

use super::evidence;
use super::gather::same_vector;
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{Slot, SlotSet, Ver, Wid};
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
    /// What it holds can not be told: it counts for nothing, also not as absence.
    pub(super) unreadable: bool,
}

impl Facts {
    fn find(&self, ver: Ver) -> Option<&(VersionMeta, bool)> {
        self.versions.iter().find(|(meta, _)| meta.ver == ver)
    }

    fn holds(&self, ver: Ver) -> bool {
        self.find(ver).is_some_and(|(_, good)| *good || lives(Mutant::CountUnverified))
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
    let mut decision = decide_newest(facts, n);
    if !decision.lost && !lives(Mutant::KeepOutdated) {
        undo_outdated(facts, &mut decision);
    }
    decision
}

/// A suspect that lacks what was committed of its own slot has gone back in time. What it holds
/// undecided from then was decided long ago, and which way the others know; taken for committed now
/// it would pass for what snapshots from after it hold.
fn undo_outdated(facts: &BTreeMap<Slot, Facts>, decision: &mut Decision) {
    let stands = decision.stands;
    let known = stands.min(decision.committed);
    for (slot, f) in facts.iter().filter(|(_, f)| f.suspect && !f.unreadable) {
        let Some(old) = f.undecided().filter(|ver| *ver < known) else { continue };
        let has_newer = |meta: &VersionMeta| {
            let named = meta.vec.get(slot.index()).is_some_and(|entry| entry.ver > old);
            meta.ver > old && meta.ver <= known && (meta.touched.contains(*slot) || named)
        };
        let knows_newer = |(other, of): (&Slot, &Facts)| {
            let decided = |meta: &VersionMeta| {
                meta.ver == stands || !of.suspect || of.undecided() != Some(meta.ver)
            };
            let mut known = of.versions.iter().filter(|(meta, good)| *good && decided(meta));
            other != slot && known.any(|(meta, _)| has_newer(meta))
        };
        if !facts.iter().any(knows_newer) {
            continue;
        }
        if !decision.aborts.contains(&(*slot, old)) {
            decision.aborts.push((*slot, old));
        }
        let lacking = decision.chosen.as_mut().and_then(|chosen| chosen.lacking.get_mut(slot));
        if let Some(newest) = lacking.filter(|newest| **newest == old) {
            let beneath = f.versions.iter().map(|(meta, _)| meta.ver).find(|ver| *ver < old);
            *newest = beneath.unwrap_or(Ver::NONE);
        }
    }
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
        let mut rest = facts.clone();
        for (slot, ver) in &stale {
            if let Some(facts) = rest.get_mut(slot) {
                facts.versions.retain(|(meta, _)| meta.ver != *ver);
                facts.prepared = None;
            }
        }
        let (mut without, sound) = decide_by_all(&rest, n);
        if sound {
            without.aborts.extend(stale);
            return without;
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

/// Undecided versions that no slot above suspicion knows.
fn held_by_suspects_alone(facts: &BTreeMap<Slot, Facts>) -> Vec<(Slot, Ver)> {
    let known = |ver: Ver| {
        facts.values().any(|f| f.find(ver).is_some() && !(f.suspect && f.undecided() == Some(ver)))
    };
    let held = facts.iter().filter_map(|(slot, f)| Some((*slot, f.undecided()?)));
    held.filter(|(_, ver)| !known(*ver)).collect()
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
    let everywhere = touched.iter().filter_map(of).all(|f| f.unreadable || f.find(ver).is_some());
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
    let readable_parity =
        || facts.iter().filter(|(slot, f)| !data.contains(**slot) && !f.unreadable).map(|(_, f)| f);
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
mod tests {
    use super::*;
    use smalti_storage::ids::Epoch;

    fn ver(seq: u64) -> Ver {
        Ver { epoch: Epoch(1), seq }
    }

    fn entry(seq: u64) -> VecEntry {
        if seq == 0 {
            VecEntry::default()
        } else {
            VecEntry { ver: ver(seq), ..VecEntry::default() }
        }
    }

    fn held(seq: u64, touched: &[u8], vec: &[u64]) -> (VersionMeta, bool) {
        let meta = VersionMeta {
            ver: ver(seq),
            touched: touched.iter().map(|slot| Slot(*slot)).collect(),
            vec: vec.iter().map(|seq| entry(*seq)).collect(),
            ..VersionMeta::default()
        };
        (meta, true)
    }

    fn facts(prepared: u64, versions: Vec<(VersionMeta, bool)>) -> Facts {
        let prepared = (prepared > 0).then(|| ver(prepared));
        Facts { versions, prepared, ..Facts::default() }
    }

    fn row(slots: Vec<Facts>) -> BTreeMap<Slot, Facts> {
        slots.into_iter().enumerate().map(|(i, f)| (Slot(i as u8), f)).collect()
    }

    // 2+1; version 1 wrote the whole row, version 2 changes slot 0.
    const BASE: u64 = 1;

    #[test]
    fn an_update_on_one_data_slot_is_constructible_with_the_other_one() {
        let all = &[0, 1, 2];
        let decision = decide(
            &row(vec![
                facts(2, vec![held(2, &[0, 2], &[]), held(BASE, all, &[])]),
                facts(0, vec![held(BASE, all, &[])]),
                facts(0, vec![held(BASE, all, &[1, 1])]),
            ]),
            2,
        );
        let chosen = decision.chosen.expect("two consistent shards exist");
        assert_eq!(chosen.ver, ver(2));
        assert_eq!(chosen.vec, vec![entry(2), entry(1)]);
        assert_eq!(chosen.lacking, [(Slot(2), ver(1))].into());
        assert!(decision.aborts.is_empty());
    }

    #[test]
    fn a_whole_row_on_one_slot_only_is_undone() {
        let all = &[0, 1, 2];
        let decision = decide(
            &row(vec![
                facts(2, vec![held(2, all, &[]), held(BASE, all, &[])]),
                facts(0, vec![held(BASE, all, &[])]),
                facts(0, vec![held(BASE, all, &[1, 1])]),
            ]),
            2,
        );
        assert_eq!(decision.chosen, None);
        assert_eq!(decision.aborts, vec![(Slot(0), ver(2))]);
    }

    #[test]
    fn a_committed_version_is_completed_even_when_a_disk_forgot_it() {
        let all = &[0, 1, 2];
        let decision = decide(
            &row(vec![
                facts(0, vec![held(2, all, &[])]),
                facts(0, vec![held(BASE, all, &[])]),
                facts(2, vec![held(2, all, &[2, 2]), held(BASE, all, &[1, 1])]),
            ]),
            2,
        );
        let chosen = decision.chosen.expect("committed on slot 0");
        assert_eq!(chosen.lacking, [(Slot(1), ver(1))].into());
    }

    #[test]
    fn without_parity_in_sync_a_prepared_data_slot_goes_forward() {
        let decision = decide(
            &row(vec![
                facts(2, vec![held(2, &[0, 2], &[]), held(BASE, &[0, 1, 2], &[])]),
                facts(0, vec![held(BASE, &[0, 1, 2], &[])]),
            ]),
            2,
        );
        assert_eq!((decision.stands, decision.lost), (ver(2), false), "its only slot holds it");
        assert_eq!((decision.chosen, decision.aborts), (None, vec![]));
    }

    #[test]
    fn a_first_write_that_nobody_completed_is_undone() {
        let decision = decide(
            &row(vec![
                facts(1, vec![held(1, &[0, 1, 2], &[])]),
                facts(0, vec![]),
                facts(0, vec![]),
            ]),
            2,
        );
        assert_eq!(decision.aborts, vec![(Slot(0), ver(1))]);
        assert_eq!(decision.chosen, None);
    }

    #[test]
    fn what_is_beneath_an_undone_version_stays() {
        // 2+1 without parity: slot 0 was at 5 when a write of both blocks reached it alone.
        let decision = decide(
            &row(vec![
                facts(6, vec![held(6, &[0, 1, 2], &[]), held(5, &[0, 2], &[])]),
                facts(0, vec![held(3, &[0, 1, 2], &[])]),
            ]),
            2,
        );
        assert_eq!(decision.aborts, vec![(Slot(0), ver(6))]);
        assert_eq!((decision.chosen, decision.lost), (None, false));
    }

    #[test]
    fn a_row_that_every_parity_slot_holds_undecided_goes_back_to_the_newest_committed() {
        // 4+2: 6 changes all data slots and stands on slot 0 and both parity slots only.
        let all = &[0, 1, 2, 3, 4, 5];
        let parity = || vec![held(6, all, &[6, 6, 6, 6]), held(5, &[0, 4, 5], &[5, 3, 2, 4])];
        let decision = decide(
            &row(vec![
                facts(6, vec![held(6, all, &[]), held(5, &[0, 4, 5], &[])]),
                facts(0, vec![held(3, &[1, 4, 5], &[])]),
                facts(0, vec![held(2, &[2, 4, 5], &[])]),
                facts(0, vec![held(4, &[3, 4, 5], &[])]),
                facts(6, parity()),
                facts(6, parity()),
            ]),
            4,
        );
        let undone = vec![(Slot(0), ver(6)), (Slot(4), ver(6)), (Slot(5), ver(6))];
        assert_eq!(decision.aborts, undone);
        assert_eq!((decision.chosen, decision.lost), (None, false));
    }

    #[test]
    fn what_one_slot_was_built_on_is_committed_for_all() {
        // Slot 1 has taken 3 onto 2, so 2 is committed, though slots 0 and 2 were not told yet.
        let all = &[0, 1, 2];
        let decision = decide(
            &row(vec![
                facts(2, vec![held(2, all, &[]), held(1, all, &[])]),
                facts(3, vec![held(3, &[1, 2], &[]), held(2, all, &[])]),
                facts(2, vec![held(2, all, &[2, 2]), held(1, all, &[1, 1])]),
            ]),
            2,
        );
        let chosen = decision.chosen.expect("slots 0 and 1 agree on 3");
        assert_eq!(chosen.vec, vec![entry(2), entry(3)]);
        assert_eq!(chosen.lacking, [(Slot(2), ver(2))].into());
    }

    #[test]
    fn unreadable_parity_is_no_proof_that_a_row_was_never_written() {
        let unreadable = Facts { unreadable: true, ..Facts::default() };
        let decision = decide(
            &row(vec![
                facts(2, vec![held(2, &[0, 2], &[]), held(1, &[0, 1, 2], &[])]),
                facts(0, vec![held(1, &[0, 1, 2], &[])]),
                unreadable.clone(),
            ]),
            2,
        );
        assert_eq!((decision.stands, decision.lost), (ver(2), false), "both data slots tell");
        assert_eq!((decision.chosen, decision.aborts), (None, vec![]));
        // With a data slot gone as well it may have been acknowledged, and must not be undone.
        let decision = decide(
            &row(vec![
                facts(2, vec![held(2, &[0, 2], &[]), held(1, &[0, 1, 2], &[])]),
                unreadable.clone(),
                unreadable,
            ]),
            2,
        );
        assert_eq!((decision.chosen, decision.aborts, decision.lost), (None, vec![], true));
    }

    fn suspect(prepared: u64, versions: Vec<(VersionMeta, bool)>) -> Facts {
        Facts { suspect: true, ..facts(prepared, versions) }
    }

    #[test]
    fn a_parity_slot_that_took_a_version_onto_less_than_others_know_is_no_shard_of_it() {
        // 2+1: the parity slot forgot 5 on slot 0 and took 6 on slot 1 nevertheless.
        let decision = decide(
            &row(vec![
                facts(0, vec![held(5, &[0, 2], &[])]),
                facts(6, vec![held(6, &[1, 2], &[]), held(3, &[1, 2], &[])]),
                suspect(6, vec![held(6, &[1, 2], &[2, 6]), held(3, &[1, 2], &[2, 3])]),
            ]),
            2,
        );
        assert_eq!((decision.lost, decision.aborts), (false, vec![]));
        assert!(decision.chosen.is_none(), "all touched slots hold it; the rest is a repair");
    }

    #[test]
    fn what_a_suspect_alone_came_up_with_again_does_not_lose_a_row() {
        // 2+2 without slot 1. Slot 0 came up with 3, which was undone before 4 was issued; both
        // parity slots know that it is at 2, and its pre-image is there.
        let parity = || vec![held(4, &[1, 2, 3], &[2, 4])];
        let slots = vec![
            (Slot(0), suspect(3, vec![held(3, &[0, 2, 3], &[]), held(2, &[0, 2, 3], &[])])),
            (Slot(2), facts(0, parity())),
            (Slot(3), facts(0, parity())),
        ];
        let decision = decide(&slots.into_iter().collect(), 2);
        assert_eq!(decision.aborts, vec![(Slot(0), ver(3))]);
        assert_eq!((decision.chosen, decision.lost), (None, false));
    }

    #[test]
    fn of_two_undecided_versions_of_suspects_the_older_one_is_doubted() {
        // 2+1 after a power failure. The parity slot went back to when 3 was undecided, which was
        // undone; 5 and then 6 were written to slot 0 since, and 6 was acknowledged.
        let all = &[0, 1, 2];
        let decision = decide(
            &row(vec![
                suspect(6, vec![held(6, &[0, 2], &[]), held(5, &[0, 2], &[])]),
                suspect(0, vec![held(2, &[1, 2], &[])]),
                suspect(3, vec![held(3, &[1, 2], &[1, 3]), held(2, all, &[1, 2])]),
            ]),
            2,
        );
        let chosen = decision.chosen.expect("both data slots have what it takes");
        assert_eq!(chosen.vec, vec![entry(6), entry(2)]);
        assert_eq!(chosen.lacking, [(Slot(2), ver(2))].into());
        assert_eq!(decision.aborts, vec![(Slot(2), ver(3))]);
    }

    #[test]
    fn a_suspect_that_went_back_in_time_drops_what_it_held_undecided_then() {
        // 2+1. The parity slot went back to when 3 was undecided, which was undone; 2 is in a
        // snapshot, and 5 is the newest.
        let all = &[0, 1, 2];
        let back = suspect(3, vec![held(3, &[0, 2], &[3, 2]), held(2, all, &[2, 2])]);
        let slots = vec![
            facts(0, vec![held(5, all, &[]), held(2, all, &[])]),
            facts(0, vec![held(5, all, &[]), held(2, all, &[])]),
            back,
        ];
        let decision = decide(&row(slots), 2);
        assert_eq!(decision.aborts, vec![(Slot(2), ver(3))]);
        let chosen = decision.chosen.expect("the data slots hold 5");
        assert_eq!(chosen.lacking, [(Slot(2), ver(2))].into(), "once 3 is undone");
        // What is only on its way forward nobody has forgotten.
        let forward = vec![
            suspect(2, vec![held(2, all, &[]), held(1, all, &[])]),
            suspect(3, vec![held(3, all, &[]), held(2, all, &[])]),
            suspect(3, vec![held(3, all, &[3, 3]), held(2, all, &[2, 2])]),
        ];
        let decision = decide(&row(forward), 2);
        assert_eq!(decision.aborts, vec![]);
        assert_eq!(decision.chosen.map(|chosen| chosen.ver), Some(ver(3)));
        // One that is not behind may hold the newest of its own slot undecided.
        let current = vec![
            suspect(2, vec![held(2, &[0, 2], &[]), held(1, all, &[])]),
            suspect(3, vec![held(3, &[1, 2], &[]), held(1, all, &[])]),
            suspect(3, vec![held(3, &[1, 2], &[2, 3]), held(2, &[0, 2], &[2, 1])]),
        ];
        assert!(decide(&row(current), 2).aborts.is_empty());
    }

    #[test]
    fn what_was_issued_before_the_newest_version_is_committed() {
        // 2 changed slot 0 and was acknowledged; 3 changes slot 1, which never heard of 2.
        let all = &[0, 1, 2];
        let decision = decide(
            &row(vec![
                facts(2, vec![held(2, &[0, 2], &[]), held(1, all, &[])]),
                facts(3, vec![held(3, &[1, 2], &[]), held(1, all, &[])]),
                facts(2, vec![held(2, &[0, 2], &[2, 1]), held(1, all, &[1, 1])]),
            ]),
            2,
        );
        let chosen = decision.chosen.expect("slots 0 and 1 agree on 3");
        assert_eq!(chosen.vec, vec![entry(2), entry(3)]);
        assert_eq!(chosen.lacking, [(Slot(2), ver(2))].into());
        assert!(decision.aborts.is_empty());
    }
}
