//! Row slots of stores in sync that could not be repaired, because others lack something too: when
//! they are tried again.

use super::{Coordinator, Seat};
use crate::time::Time;
use smalti_map::Group;
use smalti_storage::ids::{GroupNo, RowAddr, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::time::Duration;

/// One is tried again after this long at first, for it is the others that lack something. Twice as long
/// each time, up to 64 times.
const RETRY_INSYNC: Duration = Duration::from_secs(5);

/// Such repairs that begin with one tick.
const RETRY_AT_ONCE: usize = 16;

/// In-sync row slots that are tried again; more are found again when they are read.
const UNREPAIRED_MAX: usize = 4096;

/// One row slot that could not be put right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wrong {
    /// When it is tried again.
    at: Time,
    /// How often it was.
    tried: u32,
    /// The repair under way has found that something of it can not be made. It puts right what is left of
    /// it, and is in vain all the same.
    lost: bool,
    /// Something that it may have lacked has come since the repair under way began.
    again: bool,
    /// A scrub has told that its row is beyond repair.
    told: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Unrepaired {
    /// While one is tried it stays here.
    rows: BTreeMap<(RowAddr, Seat), Wrong>,
    /// Though there are too many of them, another one may be tried.
    one_more: bool,
}

impl Unrepaired {
    /// A row slot of a store in sync could not be put right; not to be tried again before its time.
    pub(super) fn put_off(&mut self, now: Time, row: RowAddr, seat: Seat) {
        let known = self.rows.get(&(row, seat)).copied();
        if known.is_none() && self.rows.len() >= UNREPAIRED_MAX {
            // It is found again when it is read.
            return;
        }
        let tried = known.map_or(0, |wrong| wrong.tried);
        let pause = match known.is_some_and(|wrong| wrong.again) {
            true => Duration::ZERO,
            false => RETRY_INSYNC * (1 << tried.min(6)),
        };
        let told = known.is_some_and(|wrong| wrong.told);
        let at = now.after(pause);
        let wrong = Wrong { at, tried: tried + 1, lost: false, again: false, told };
        self.rows.insert((row, seat), wrong);
    }

    /// The repair under way can not make all that the slot is to hold.
    pub(super) fn lost(&mut self, now: Time, row: RowAddr, seat: Seat) {
        if self.knows(row, seat) || self.rows.len() < UNREPAIRED_MAX {
            let new = Wrong { at: now, tried: 0, lost: true, again: false, told: false };
            self.rows.entry((row, seat)).or_insert(new).lost = true;
        }
    }

    /// A repair of a slot in sync has ended.
    pub(super) fn repaired(&mut self, now: Time, row: RowAddr, seat: Seat, good: bool) {
        let lost = self.rows.get(&(row, seat)).is_some_and(|wrong| wrong.lost);
        match good && !lost {
            true => drop(self.rows.remove(&(row, seat))),
            false => self.put_off(now, row, seat),
        }
    }

    /// A scrub tells that these rows are beyond repair: those of them that are. What was put right meanwhile
    /// is not, and what is not leaves a mark until it is.
    pub(super) fn tell(&mut self, lost: &BTreeSet<RowAddr>) -> BTreeSet<RowAddr> {
        let mut told = BTreeSet::new();
        for ((row, _), wrong) in self.rows.iter_mut().filter(|((row, _), _)| lost.contains(row)) {
            wrong.told = true;
            told.insert(*row);
        }
        told
    }

    /// Whether a repair of a slot in sync is not to begin now. Two that can not do without each
    /// other would begin each other for ever; so where there are too many to remember, one new one
    /// begins at each tick.
    pub(super) fn puts_off(&mut self, row: RowAddr, seat: Seat) -> bool {
        if self.rows.contains_key(&(row, seat)) {
            return true;
        }
        self.rows.len() >= UNREPAIRED_MAX && !std::mem::take(&mut self.one_more)
    }

    /// Something of these groups is there again: what could not be put right may be now.
    pub(super) fn try_again(&mut self, now: Time, groups: impl Fn(GroupNo) -> bool) {
        for (_, wrong) in self.rows.iter_mut().filter(|((row, _), _)| groups(row.group)) {
            wrong.at = now.min(wrong.at);
            wrong.again = true;
        }
    }

    /// Whether the row slot is one of them.
    pub(super) fn knows(&self, row: RowAddr, seat: Seat) -> bool {
        self.rows.contains_key(&(row, seat))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// What tells one state from another, with times from now on.
    pub(super) fn digest(&self, now: Time, hasher: &mut impl Hasher) {
        let each = |(which, wrong): (&(RowAddr, Seat), &Wrong)| {
            (*which, wrong.at.since(now), wrong.tried, wrong.lost, wrong.again, wrong.told)
        };
        self.rows.iter().map(each).collect::<Vec<_>>().hash(hasher);
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(RowAddr, Seat)> {
        self.rows.keys()
    }

    /// Those that are to be tried now; what comes for them from now on comes too late for that.
    fn take_due(
        &mut self,
        now: Time,
        claimed: impl Fn(&(RowAddr, Seat)) -> bool,
    ) -> Vec<(RowAddr, Seat)> {
        let due = |which: &(RowAddr, Seat), wrong: &Wrong| wrong.at <= now && !claimed(which);
        let rows = self.rows.iter_mut().filter(|(which, wrong)| due(which, wrong));
        let begin = |(which, wrong): (&(RowAddr, Seat), &mut Wrong)| {
            wrong.again = false;
            *which
        };
        rows.take(RETRY_AT_ONCE).map(begin).collect()
    }

    /// Rows of which a slot in sync could not be repaired more than once, or a scrub tells so: until a
    /// repair puts them right.
    pub(super) fn beyond_repair(&self) -> BTreeSet<RowAddr> {
        let beyond = self.rows.iter().filter(|(_, wrong)| wrong.tried > 1 || wrong.told);
        beyond.map(|((row, _), _)| *row).collect()
    }
}

impl Coordinator {
    /// Groups that have rows which could not be put right, for too much of them is wrong, and how many.
    pub fn groups_beyond_repair(&self) -> BTreeMap<GroupNo, u64> {
        let mut groups = BTreeMap::new();
        for row in self.catchup.unrepaired.beyond_repair() {
            *groups.entry(row.group).or_default() += 1;
        }
        groups
    }

    /// A store is heard from again: what could not be put right without it is tried at once.
    pub(super) fn repair_again_with(&mut self, store: StoreId) {
        let groups = self.volume.iter().flat_map(|volume| &volume.groups);
        let holds = |(_, group): &(GroupNo, &Group)| group.slots.contains(&store);
        let held: BTreeSet<GroupNo> =
            (0u16..).map(GroupNo).zip(groups).filter(holds).map(|(no, _)| no).collect();
        self.catchup.unrepaired.try_again(self.now, |group| held.contains(&group));
    }

    /// Tries repairs of slots in sync that failed again.
    pub(super) fn repair_again(&mut self) {
        let now = self.now;
        self.catchup.unrepaired.one_more = true;
        let claimed = &self.catchup.claimed;
        let due = self.catchup.unrepaired.take_due(now, |which| claimed.contains(which));
        for (row, seat) in due {
            if !self.counts(row, seat) {
                // Who is out of sync is compared as a whole when it comes back.
                self.catchup.unrepaired.rows.remove(&(row, seat));
            } else if self.catchup.claim_repair(row, seat) {
                self.add_repair(row, seat, None);
            }
        }
    }
}
