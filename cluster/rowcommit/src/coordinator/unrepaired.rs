//! Row slots of stores in sync that could not be repaired, because others lack something too: when
//! they are tried again.

use super::{Coordinator, Seat};
use crate::time::Time;
use smalti_map::Group;
use smalti_storage::ids::{GroupNo, RowAddr, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One is tried again after this long at first, for it is the others that lack something. Twice as long
/// each time, up to 64 times.
const RETRY_INSYNC: Duration = Duration::from_secs(5);

/// Such repairs that begin with one tick.
const RETRY_AT_ONCE: usize = 16;

/// In-sync row slots that are tried again; more are found again when they are read.
const UNREPAIRED_MAX: usize = 4096;

#[derive(Clone, Debug, Default)]
pub(super) struct Unrepaired {
    /// When each is tried again, and how often it was. While one is tried it stays here.
    rows: BTreeMap<(RowAddr, Seat), (Time, u32)>,
    /// Though there are too many of them, another one may be tried.
    one_more: bool,
}

impl Unrepaired {
    /// A row slot of a store in sync could not be put right; not to be tried again before its time.
    pub(super) fn put_off(&mut self, now: Time, row: RowAddr, seat: Seat) {
        let tried = self.rows.get(&(row, seat)).map_or(0, |(_, tried)| *tried);
        if tried == 0 && self.rows.len() >= UNREPAIRED_MAX {
            // It is found again when it is read.
            return;
        }
        let pause = RETRY_INSYNC * (1 << tried.min(6));
        self.rows.insert((row, seat), (now.after(pause), tried + 1));
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
        let of_them = self.rows.iter_mut().filter(|((row, _), _)| groups(row.group));
        of_them.for_each(|(_, (at, _))| *at = now.min(*at));
    }

    /// A repair that was due has succeeded.
    pub(super) fn repaired(&mut self, now: Time, row: RowAddr, seat: Seat) {
        if self.rows.get(&(row, seat)).is_some_and(|(at, _)| *at <= now) {
            self.rows.remove(&(row, seat));
        }
    }

    /// Whether the row slot is one of them.
    pub(super) fn knows(&self, row: RowAddr, seat: Seat) -> bool {
        self.rows.contains_key(&(row, seat))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All of them, with when they are tried again and how often they were.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&(RowAddr, Seat), &(Time, u32))> {
        self.rows.iter()
    }

    /// Rows of which a slot in sync could not be repaired more than once.
    pub(super) fn beyond_repair(&self) -> impl Iterator<Item = RowAddr> {
        self.rows.iter().filter(|(_, (_, tried))| *tried > 1).map(|((row, _), _)| *row)
    }
}

impl Coordinator {
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
        let claimed = |which| self.catchup.claimed.contains(which);
        let due =
            self.catchup.unrepaired.iter().filter(|(which, (at, _))| *at <= now && !claimed(which));
        let due: Vec<(RowAddr, Seat)> = due.map(|(which, _)| *which).take(RETRY_AT_ONCE).collect();
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
