//! Bringing a store back that was out for a while: only rows that have changed since are looked at.
//!
//! The in-sync slots keep an index of them (`store/index.rs`). One parity slot's is enough, for every
//! update touches it; else it takes all data slots' together. To it come the rows that the store
//! holds undecided itself: they may have been undone behind its back. Where any of them can not tell,
//! because the store was out before its index began, has restarted since, or took something as a
//! learner already, all rows are compared instead ([`super::walk`]).

use super::catchup::Stage;
use super::walk::{WALK_AHEAD, Walk};
use super::{Coordinator, Place, Purpose, Seat};
use crate::msg::{Answer, Ask, SCAN_LIMIT};
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::RowAddr;
use std::collections::{BTreeMap, BTreeSet};

/// A listing in progress.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    pub(super) round: u64,
    pub(super) after: Option<RowAddr>,
    /// Rows by store, and whether they were its last.
    pub(super) pages: BTreeMap<Seat, (BTreeSet<RowAddr>, bool)>,
    pub(super) due: BTreeSet<Seat>,
    /// Waits for repairs to catch up, or for a turn after an answer was lost.
    pub(super) paused: bool,
    /// The learner has told what it holds undecided.
    pub(super) told: bool,
}

impl Coordinator {
    /// Asks the learner what it holds undecided; then the indexes.
    pub(super) fn list_changed(&mut self, place: Place) {
        self.catchup.rounds += 1;
        let round = self.catchup.rounds;
        // What a slot has that could not tell what it holds is nothing to be compared with.
        let distrusted = self.distrusted.iter().map(|(row, _)| *row);
        let rows = self.lost_rows.iter().copied().chain(distrusted);
        let rows: BTreeSet<RowAddr> = rows.filter(|row| row.group == place.0).collect();
        let Some(learning) = self.catchup.learners.get_mut(&place) else { return };
        learning.behind.extend(rows);
        learning.stage = Stage::Listing(Listing { round, ..Listing::default() });
        let ((group, learner), store) = (place, learning.store);
        let purpose = Purpose::Leftovers { group, learner, round };
        self.ask_at(group, (learner, store), Ask::Undecided { group }, purpose);
    }

    fn listing(&mut self, place: Place, round: u64) -> Option<&mut Listing> {
        match &mut self.catchup.learners.get_mut(&place)?.stage {
            Stage::Listing(listing) if listing.round == round => Some(listing),
            _ => None,
        }
    }

    pub(super) fn listing_lost(&mut self, place: Place, round: u64) {
        if let Some(listing) = self.listing(place, round) {
            // At the next turn, when the map has been adopted as a whole.
            listing.paused = true;
        }
    }

    pub(super) fn resume_listing(&mut self, place: Place) {
        let Some(learning) = self.catchup.learners.get(&place) else { return };
        let Stage::Listing(listing) = &learning.stage else { return };
        if listing.paused && !listing.told {
            self.list_changed(place);
        } else if listing.paused && learning.behind.len() < WALK_AHEAD {
            self.ask_changed(place);
        }
    }

    pub(super) fn on_leftovers(&mut self, place: Place, round: u64, answer: Answer) {
        let Some(listing) = self.listing(place, round) else { return };
        let Answer::Undecided { right, rows } = answer else {
            return self.walk_instead(place);
        };
        listing.told = right;
        // Before a walk too: a mark of a slot that could not tell what it holds does not show there.
        if let Some(learning) = self.catchup.learners.get_mut(&place)
            && !lives(Mutant::LeftoversIgnored)
        {
            learning.behind.extend(rows);
        }
        if right {
            self.ask_changed(place);
        } else {
            self.walk_instead(place);
        }
    }

    /// Asks for the next rows of everybody whose index is needed.
    fn ask_changed(&mut self, place: Place) {
        let (group, learner) = place;
        let insync = self.insync(group);
        // One may have lost a row of its index, with the write.
        let parity = self.parity_slots().and(insync);
        let told_by = if parity.is_empty() { self.data_slots() } else { parity };
        let seat = |slot| Some((slot, self.store_of(group, slot)?));
        let due: BTreeSet<Seat> = told_by.and(insync).iter().filter_map(seat).collect();
        if told_by != told_by.and(insync) {
            return self.walk_instead(place);
        }
        self.catchup.rounds += 1;
        let round = self.catchup.rounds;
        let Some(learning) = self.catchup.learners.get_mut(&place) else { return };
        let of = learning.store;
        let Stage::Listing(listing) = &mut learning.stage else { return };
        let after = listing.after;
        let told = listing.told;
        *listing = Listing { round, after, due: due.clone(), told, ..Listing::default() };
        let limit = u32::try_from(SCAN_LIMIT).unwrap_or(u32::MAX);
        for seat in due {
            let purpose = Purpose::Changed { group, learner, of: seat, round };
            let ask = Ask::Changed { group, slot: learner, of, after, limit };
            self.ask_at(group, seat, ask, purpose);
        }
    }

    pub(super) fn on_changed(&mut self, place: Place, of: Seat, round: u64, answer: Answer) {
        let is_parity = self.parity_slots().contains(of.0);
        let Some(listing) = self.listing(place, round) else { return };
        match answer {
            Answer::Changed { rows, done } => {
                listing.pages.insert(of, (rows.into_iter().collect(), done));
                listing.due.remove(&of);
                if listing.due.is_empty() {
                    self.take_pages(place);
                }
            }
            // Nor was it asked for rows of before it was in sync: the others have them.
            Answer::Missing if is_parity && listing.due.len() + listing.pages.len() > 1 => {
                listing.due.remove(&of);
                if listing.due.is_empty() {
                    self.take_pages(place);
                }
            }
            Answer::Missing => self.walk_instead(place),
            _ => listing.paused = true,
        }
    }

    fn take_pages(&mut self, place: Place) {
        let Some(learning) = self.catchup.learners.get_mut(&place) else { return };
        let Stage::Listing(listing) = &mut learning.stage else { return };
        let pages = std::mem::take(&mut listing.pages);
        // Up to here everybody has told of all he has.
        let ends = pages.values().filter(|(_, done)| !done);
        let upto = ends.filter_map(|(rows, _)| rows.last().copied()).min();
        let rows = pages.into_values().flat_map(|(rows, _)| rows);
        let rows: BTreeSet<RowAddr> =
            rows.filter(|row| upto.is_none_or(|upto| *row <= upto)).collect();
        self.stats.rows_listed += rows.len() as u64;
        learning.behind.extend(rows);
        if upto.is_some() {
            listing.after = upto;
            listing.paused = true;
        } else {
            learning.stage = Stage::Repairing;
        }
        self.catchup_pump();
    }

    /// All rows are compared.
    fn walk_instead(&mut self, place: Place) {
        if let Some(learning) = self.catchup.learners.get_mut(&place) {
            learning.stage = Stage::Walking(Walk::default());
            self.next_pages(place);
        }
    }
}
