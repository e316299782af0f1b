//! The walk over all rows of a group: which of them a learner has wrong, by metadata alone.
//!
//! Pages of row slots are read from the learner and from whoever it is compared with: where a slot
//! moves, the store that holds it; else one parity slot in sync, whose vectors name every row and
//! version, or else all data slots. The reads are not atomic; a row that changes meanwhile may look different and is looked at again under its
//! lock, but one that looks equal *is* equal: versions are unique, and from the barrier on every
//! update either reached the learner or put the row behind. One that the learner refused for its base, of
//! rows that the walk has yet to come to, does so only where it was under way while the pages were read: any
//! other one is in the pages of those that it is compared with.

use super::catchup::Stage;
use super::{Coordinator, Place, Purpose, Seat};
use crate::msg::{Answer, Ask, SCAN_LIMIT};
use crate::snaps::{self, Snaps};
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{RowAddr, Slot, SlotSet, Ver};
use smalti_storage::store::{VecEntry, VersionMeta};
use std::collections::{BTreeMap, BTreeSet};

/// Rows behind that a walk may run ahead of the repairs: what a wholly new store lacks must not
/// all be listed at once.
pub(super) const WALK_AHEAD: usize = 4096;

/// A walk in progress.
#[derive(Clone, Debug, Default)]
pub(super) struct Walk {
    pub(super) after: Option<RowAddr>,
    pub(super) round: u64,
    pub(super) pages: BTreeMap<Seat, Page>,
    pub(super) due: BTreeSet<Seat>,
    /// Rows of which updates were on their way, or refused, while these pages are read: what they tell of
    /// them may be from before.
    pub(super) touched: BTreeSet<RowAddr>,
    /// Waits for repairs to catch up.
    pub(super) paused: bool,
}

/// What one slot has of a stretch of rows.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Page<V = VersionMeta> {
    /// `None`: there, but its metadata is damaged.
    pub(super) rows: BTreeMap<RowAddr, Option<Vec<V>>>,
    /// The last row the page tells of; `None` when it tells of all that follow.
    pub(super) upto: Option<RowAddr>,
}

impl<V> Page<V> {
    /// From the answer to a scan: a store may hold other slots of the group's rows too.
    pub(super) fn new(of: Slot, entries: Vec<(RowAddr, Slot, Option<Vec<V>>)>, done: bool) -> Self {
        let upto = if done { None } else { entries.last().map(|(row, _, _)| *row) };
        let own = entries.into_iter().filter(|(_, slot, _)| *slot == of);
        Self { rows: own.map(|(row, _, versions)| (row, versions)).collect(), upto }
    }
}

impl Walk {
    /// Whether the walk has still to come to the row.
    pub(super) fn is_ahead(&self, row: RowAddr) -> bool {
        self.after.is_none_or(|after| row > after)
    }
}

impl Coordinator {
    /// Asks for the next page of rows of everybody concerned.
    pub(super) fn next_pages(&mut self, place: Place) {
        let (group, slot) = place;
        let insync = self.insync(group);
        let parity = self.parity_slots().and(insync);
        let compared = if insync.contains(slot) {
            // The one that holds the slot, which moves.
            SlotSet::EMPTY.with(slot)
        } else if parity.is_empty() {
            self.data_slots().and(insync)
        } else {
            // One of them may have lost a write that the others know of.
            parity
        };
        let seat = |slot| Some((slot, self.store_of(group, slot)?));
        let mut due: BTreeSet<Seat> = compared.iter().filter_map(seat).collect();
        let Some(learning) = self.catchup.learners.get_mut(&place) else { return };
        let Stage::Walking(walk) = &mut learning.stage else { return };
        let ahead = |row: &&RowAddr| {
            row.group == group && walk.is_ahead(**row) && !lives(Mutant::WalkUntouched)
        };
        let touched = self.inflight.values().filter(ahead).copied().collect();
        self.catchup.rounds += 1;
        let round = self.catchup.rounds;
        let after = walk.after.map(|row| (row, Slot(u8::MAX)));
        due.insert((slot, learning.store));
        *walk = Walk { after: walk.after, round, due: due.clone(), touched, ..Walk::default() };
        let limit = u32::try_from(SCAN_LIMIT).unwrap_or(u32::MAX);
        for of in due {
            let purpose = Purpose::Scan { group, learner: slot, of, round };
            self.ask_at(group, of, Ask::Scan { group, after, limit }, purpose);
        }
    }

    /// A page will not come: whoever was asked is not in sync any more.
    pub(super) fn scan_lost(&mut self, place: Place, round: u64) {
        if let Some(learning) = self.catchup.learners.get_mut(&place)
            && let Stage::Walking(walk) = &mut learning.stage
            && walk.round == round
        {
            // At the next turn, when the map has been adopted as a whole.
            walk.paused = true;
        }
    }

    pub(super) fn resume_walk(&mut self, place: Place) {
        if let Some(learning) = self.catchup.learners.get(&place)
            && let Stage::Walking(walk) = &learning.stage
            && walk.paused
            && learning.behind.len() < WALK_AHEAD
        {
            self.next_pages(place);
        }
    }

    pub(super) fn on_scanned(&mut self, place: Place, of: Seat, round: u64, answer: Answer) {
        let Some(learning) = self.catchup.learners.get_mut(&place) else { return };
        let Stage::Walking(walk) = &mut learning.stage else { return };
        if walk.round != round {
            return;
        }
        let Answer::Scanned { entries, done } = answer else {
            walk.paused = true;
            return;
        };
        walk.pages.insert(of, Page::new(of.0, entries, done));
        walk.due.remove(&of);
        if walk.due.is_empty() {
            self.compare_pages(place);
            self.catchup_pump();
        }
    }

    fn compare_pages(&mut self, place: Place) {
        let data = self.data_slots();
        let slot = place.1;
        // A whole row is prepared on a learner whatever that held before. It looks equal then, and
        // is not any more if the update is undone.
        let undecided: BTreeSet<RowAddr> = self.inflight.values().copied().collect();
        let snaps = self.snaps();
        let Some(learning) = self.catchup.learners.get_mut(&place) else { return };
        let Stage::Walking(walk) = &mut learning.stage else { return };
        let (rows, upto) = rows_of(walk.pages.values());
        let told = |row: &RowAddr| upto.is_none_or(|upto| *row <= upto);
        learning.behind.extend(walk.touched.iter().copied().filter(told));
        let held = (slot, learning.store);
        self.stats.rows_walked += rows.len() as u64;
        for row in rows {
            let of_row = walk.pages.iter().map(|(of, page)| (*of, page.rows.get(&row)));
            let open = undecided.contains(&row) && !lives(Mutant::WalkUndecided);
            if open || !agrees(held, data, &snaps, of_row) {
                learning.behind.insert(row);
            }
        }
        walk.pages.clear();
        walk.touched.clear();
        if upto.is_some() {
            walk.after = upto;
            walk.paused = true;
        } else {
            learning.stage = Stage::Repairing;
        }
    }
}

/// The rows that pages of several stores tell of together, and the last one that all of them do;
/// `None` when they tell of all that follow.
pub(super) fn rows_of<'a, V: 'a>(
    pages: impl Iterator<Item = &'a Page<V>> + Clone,
) -> (BTreeSet<RowAddr>, Option<RowAddr>) {
    // Up to here every page has a row that its store has.
    let upto = pages.clone().filter_map(|page| page.upto).min();
    let rows = pages.flat_map(|page| page.rows.keys().copied());
    (rows.filter(|row| upto.is_none_or(|upto| *row <= upto)).collect(), upto)
}

/// Whether what a learner holds of a row is what the others say it should: now, and in every
/// snapshot.
fn agrees<'a>(
    learner: Seat,
    data: SlotSet,
    snaps: &Snaps,
    of_row: impl Iterator<Item = (Seat, Option<&'a Option<Vec<VersionMeta>>>)>,
) -> bool {
    let mut versions: BTreeMap<Seat, &[VersionMeta]> = BTreeMap::new();
    for (of, held) in of_row {
        match held {
            None => versions.insert(of, &[]),
            Some(Some(held)) => versions.insert(of, held.as_slice()),
            // Damaged: only a look under the lock can tell.
            Some(None) => return false,
        };
    }
    let Some(own) = versions.remove(&learner) else { return false };
    let agrees_by = |state: &dyn Fn(&'a [VersionMeta]) -> Option<&'a VersionMeta>| {
        let others = versions.iter().map(|(of, held)| (*of, state(held)));
        state_agrees(learner.0, data, state(own), others)
    };
    agrees_by(&|held| held.first())
        && snaps.iter().all(|snap| agrees_by(&|held| snaps::held(held, snap)))
}

/// The same of one state.
fn state_agrees<'a>(
    slot: Slot,
    data: SlotSet,
    own: Option<&VersionMeta>,
    mut others: impl Iterator<Item = (Seat, Option<&'a VersionMeta>)>,
) -> bool {
    let nothing = VersionMeta::default();
    let own = own.unwrap_or(&nothing);
    let entry = |vec: &[VecEntry], j: usize| vec.get(j).map_or(Ver::NONE, |entry| entry.ver);
    let same_entries = |other: &[VecEntry]| {
        let longest = other.len().max(own.vec.len());
        (0..longest).all(|j| entry(other, j) == entry(&own.vec, j))
    };
    others.all(|((of, _), meta)| {
        let meta = meta.unwrap_or(&nothing);
        match (data.contains(slot), data.contains(of)) {
            (true, false) => own.ver == entry(&meta.vec, slot.index()),
            (false, false) => own.ver == meta.ver && same_entries(&meta.vec),
            (false, true) => entry(&own.vec, of.index()) == meta.ver,
            // A data slot is out only where a parity slot is in sync, which is compared instead.
            (true, true) => of == slot && own.ver == meta.ver,
        }
    })
}
