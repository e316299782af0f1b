//! How far slots are that are brought up to date, for people: rows that they lack, about.
//!
//! What was compared is known row by row, and what is ahead of a walk is taken to be as what lies behind it. A
//! slot that nothing is known of yet lacks what its group was given since it is out; if it is rebuilt, so much
//! as others that were rebuilt in this epoch had on the mean.

use super::catchup::{Learning, Stage};
use super::walk::Walk;
use super::{Coordinator, Place};
use smalti_map::Volume;
use smalti_storage::ids::{GroupNo, RowAddr};
use smalti_storage::record::BLOCK_LEN;
use std::collections::{BTreeMap, BTreeSet};

/// Rows that a coordinator remembers of those that were updated while a slot was out.
const MISSED_ROWS_MAX: usize = 1 << 20;

/// Rows that were updated while one of their slots was out. Catch-up does not rely on it: it compares.
#[derive(Clone, Debug, Default)]
pub(super) struct Missed {
    of: BTreeMap<GroupNo, BTreeSet<RowAddr>>,
    rows: usize,
}

impl Missed {
    pub(super) fn insert(&mut self, row: RowAddr) {
        if self.rows < MISSED_ROWS_MAX {
            self.rows += usize::from(self.of.entry(row.group).or_default().insert(row));
        }
    }

    /// Of groups that have all their slots in sync nothing is missed.
    pub(super) fn keep(&mut self, volume: &Volume) {
        let all = volume.all_slots();
        let whole = |no: &GroupNo| volume.group(*no).is_none_or(|group| group.insync == all);
        self.of.retain(|no, _| !whole(no));
        self.rows = self.of.values().map(BTreeSet::len).sum();
    }

    fn of(&self, group: GroupNo) -> u64 {
        self.of.get(&group).map_or(0, BTreeSet::len) as u64
    }
}

/// Slots that were rebuilt, and the rows that they had in the end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rebuilt {
    slots: u64,
    rows: u64,
}

impl Rebuilt {
    pub(super) fn count(&mut self, rows: u64) {
        self.slots += 1;
        self.rows += rows;
    }
}

impl Learning {
    /// Whether it is known row by row what it lacks.
    fn is_compared(&self) -> bool {
        matches!(self.stage, Stage::Repairing | Stage::Growing { .. })
    }

    /// Rows that it is known to lack.
    fn known(&self) -> u64 {
        (self.behind.len() + self.failed.len() + self.repairing) as u64
    }

    /// Rows that it lacks yet. `part`: what part of all stripes lies before one. `None`: no telling.
    fn rows_left(&self, part: impl Fn(RowAddr) -> f64) -> Option<u64> {
        match &self.stage {
            Stage::Walking(Walk { after: Some(after), .. }) => {
                let done = part(*after).clamp(0.01, 1.0);
                let ahead = (self.repaired + self.known()) as f64 * (1.0 - done) / done;
                Some(self.known() + ahead as u64)
            }
            _ if self.is_compared() => Some(self.known()),
            _ => None,
        }
    }
}

impl Coordinator {
    /// Slots that are out of sync.
    fn places_out(&self) -> BTreeSet<Place> {
        let Some(volume) = &self.volume else { return BTreeSet::new() };
        let all = volume.all_slots();
        let groups = (0u16..).map(GroupNo).zip(&volume.groups);
        groups.flat_map(|(no, g)| all.minus(g.insync).iter().map(move |slot| (no, slot))).collect()
    }

    /// Rows that slots that are out are known to lack, and those that could not be put right elsewhere.
    pub(super) fn rows_behind(&self) -> u64 {
        let out = self.places_out();
        // What was missed is a floor; once all of the group are compared, they know better.
        let mut of: BTreeMap<GroupNo, (u64, u64)> = BTreeMap::new();
        for place in &out {
            let learning = self.catchup.learners.get(place);
            let (known, missed) = of.entry(place.0).or_default();
            *known += learning.map_or(0, Learning::known);
            if !learning.is_some_and(Learning::is_compared) {
                *missed = self.missed.of(place.0);
            }
        }
        let behind: u64 = of.values().map(|(known, missed)| known.max(missed)).sum();
        let moving = self.catchup.learners.iter().filter(|(place, _)| !out.contains(place));
        behind + moving.map(|(_, learning)| learning.failed.len() as u64).sum::<u64>()
    }

    /// Rows that slots lack yet, about: those that are out, and those that are on their way elsewhere.
    pub(super) fn rows_left(&self) -> u64 {
        let Some(volume) = &self.volume else { return 0 };
        let rows = volume.size.div_ceil(BLOCK_LEN as u64).div_ceil(u64::from(volume.data));
        let in_stripe = (u64::from(volume.shard_size) / BLOCK_LEN as u64).max(1);
        let stripes = rows.div_ceil(in_stripe).max(1);
        let part = |row: RowAddr| row.stripe as f64 / stripes as f64;
        let mut places = self.places_out();
        places.extend(self.catchup.learners.keys());
        let (mut left, mut unknown) = (0, Vec::new());
        let Rebuilt { mut slots, rows: mut rebuilt } = self.catchup.rebuilt;
        for place in places {
            let learning = self.catchup.learners.get(&place);
            match learning.and_then(|learning| Some((learning, learning.rows_left(part)?))) {
                Some((learning, rows)) => {
                    left += rows;
                    if learning.rebuilt {
                        slots += 1;
                        rebuilt += learning.repaired + rows;
                    }
                }
                None => unknown.push((place, learning)),
            }
        }
        let mean = rebuilt.checked_div(slots);
        let expected = |(place, learning): (Place, Option<&Learning>)| {
            let holder = self.store_of(place.0, place.1);
            let returns = match learning {
                Some(learning) => !learning.rebuilt,
                None => holder.is_some_and(|store| self.links.is_up(store)),
            };
            let known = learning.map_or(0, Learning::known);
            let rows = mean.filter(|_| !returns).unwrap_or_else(|| self.missed.of(place.0));
            rows.saturating_sub(learning.map_or(0, |learning| learning.repaired)).max(known)
        };
        left + unknown.into_iter().map(expected).sum::<u64>()
    }
}
