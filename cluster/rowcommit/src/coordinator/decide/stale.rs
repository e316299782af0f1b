//! Undecided versions that disks came up with again though they were undone long ago.
//!
//! For the newest state that would do no harm: whoever wrote them was told that nobody knows. But what
//! a snapshot holds is settled when it is made.

use super::{Decision, Facts};
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{Slot, SlotSet, Ver};
use smalti_storage::store::VersionMeta;
use std::collections::BTreeMap;

/// What suspects hold undecided and another slot denies: it was told, while it was in sync and above
/// suspicion, that everything up to there was decided, and it has neither this version nor anything
/// built on it. A suspect denies only what was issued since it is in sync.
pub(super) fn denied(facts: &BTreeMap<Slot, Facts>, n: u8) -> Vec<(Slot, Ver)> {
    if lives(Mutant::DenyNothing) {
        return Vec::new();
    }
    let data = SlotSet::first(n);
    let of_suspects = facts.iter().filter(|(_, f)| f.suspect && !f.unreadable);
    let denied = of_suspects.filter_map(|(slot, f)| {
        let ver = f.undecided()?;
        let (meta, _) = f.find(ver)?;
        let denies = |(other, of): (&Slot, &Facts)| {
            other != slot && meta.touched.contains(*other) && of.denies(*other, meta, data)
        };
        facts.iter().any(denies).then_some((*slot, ver))
    });
    denied.collect()
}

impl Facts {
    fn denies(&self, own: Slot, meta: &VersionMeta, data: SlotSet) -> bool {
        if self.unreadable || self.watermark < meta.ver {
            return false;
        }
        // It may have had it by a repair that its disk has forgotten.
        let repaired = self.suspect && meta.ver.epoch < self.insync_since;
        if repaired && !lives(Mutant::DenyRepaired) {
            return false;
        }
        // Not one that was prepared since: what lies beneath it is what it was built on.
        let undecided = self.undecided();
        let mut metas = self.versions.iter().map(|(meta, _)| meta);
        let newest = metas.find(|meta| Some(meta.ver) != undecided);
        if data.contains(own) {
            return newest.map_or(Ver::NONE, |newest| newest.ver) < meta.ver;
        }
        let names = |slot: Slot| newest.and_then(|newest| newest.vec.get(slot.index()));
        let before = |slot: Slot| names(slot).is_none_or(|entry| entry.ver < meta.ver);
        meta.touched.and(data).iter().any(before)
    }
}

/// A suspect that lacks what was committed of its own slot has gone back in time. What it holds
/// undecided from then was decided long ago, and which way the others know; taken for committed now
/// it would pass for what snapshots from after it hold.
pub(super) fn undo_outdated(facts: &BTreeMap<Slot, Facts>, decision: &mut Decision) {
    if lives(Mutant::KeepOutdated) {
        return;
    }
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
