//! What is known of scrubs and of what disks had wrong: when each group was scrubbed last, which is due,
//! and which stores had wrong records, day by day.

use crate::types::Volume;
use serde::{Deserialize, Serialize};
use smalti_storage::ids::GroupNo;
use std::collections::BTreeMap;

const DAY: u64 = 24 * 60 * 60;

/// Faults are remembered for so many days.
const DAYS: u32 = 30;

/// A store with faults on so many days of those is not to be relied on.
const DAYS_BAD: usize = 3;

/// Nor is one with so many on a single day: that is no byte that turned over.
const FAULTS_BAD: u32 = 1000;

/// Scrubs of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrubs {
    /// How often the operator asked for one.
    pub asked: u32,
    /// The last one of each group that had one.
    pub groups: BTreeMap<GroupNo, GroupScrub>,
}

/// The last scrub of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupScrub {
    /// When it ended, in Unix seconds by the clock of its coordinator.
    pub ended: u64,
    /// How often the operator had asked when it began.
    pub asked: u32,
    /// Rows that were looked at.
    pub rows: u64,
    /// Row slots that were wrong; they were repaired, where that could be.
    pub wrong: u64,
    /// Rows that could not be put right: too much of them was wrong, or their records do not fit together
    /// and nobody can tell which of them is wrong.
    pub unclear: u64,
    /// Slots that were not read, or not all of what they have, for they were out of sync.
    pub unread: u64,
}

impl Volume {
    /// Groups that the operator asked to be scrubbed, and were not since.
    pub fn asked_scrubs(&self) -> impl Iterator<Item = GroupNo> {
        self.asked().filter(|group| self.group(*group).is_some_and(|group| !group.offline))
    }

    /// The same of those that are offline: they are not waited for.
    pub fn put_off_scrubs(&self) -> impl Iterator<Item = GroupNo> {
        self.asked().filter(|group| self.group(*group).is_some_and(|group| group.offline))
    }

    fn asked(&self) -> impl Iterator<Item = GroupNo> {
        let scrubs = &self.scrubs;
        let asked = |group: &GroupNo| scrubs.groups.get(group).map_or(0, |scrub| scrub.asked);
        self.group_numbers().filter(move |group| asked(group) < scrubs.asked)
    }

    /// The group whose last scrub was longest ago, if that is `every` seconds or more. One of which slots were
    /// not read is due as soon as all of them can be.
    pub fn old_scrub(&self, now: u64, every: u64) -> Option<GroupNo> {
        let can_be =
            |no: GroupNo| self.group(no).is_some_and(|group| group.insync == self.all_slots());
        let ended = |group: &GroupNo| {
            let last = self.scrubs.groups.get(group);
            last.filter(|scrub| scrub.unread == 0 || !can_be(*group)).map_or(0, |scrub| scrub.ended)
        };
        let served = |no: &GroupNo| self.group(*no).is_some_and(|group| !group.offline);
        let oldest = self.group_numbers().filter(served).min_by_key(ended)?;
        (ended(&oldest).saturating_add(every) <= now).then_some(oldest)
    }

    fn group_numbers(&self) -> impl Iterator<Item = GroupNo> {
        (0u16..=u16::MAX).take(self.groups.len()).map(GroupNo)
    }
}

/// What a store had wrong while it was in sync.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// All that were ever found.
    pub total: u64,
    /// Those of the last days on which there were any, by Unix day.
    pub days: BTreeMap<u32, u32>,
}

impl Faults {
    /// Some more were found at that Unix second.
    pub(crate) fn add(&mut self, at: u64, faults: u32) {
        self.total = self.total.saturating_add(u64::from(faults));
        let today = day(at);
        let of_today = self.days.entry(today).or_default();
        *of_today = of_today.saturating_add(faults);
        self.days.retain(|day, _| *day > today.saturating_sub(DAYS) && *day <= today);
    }

    /// Whether there were so many of late that the disk is better replaced.
    pub fn are_repeated(&self, now: u64) -> bool {
        let lately = self.days.range(day(now).saturating_sub(DAYS - 1)..);
        let of_day: Vec<u32> = lately.map(|(_, faults)| *faults).collect();
        of_day.len() >= DAYS_BAD || of_day.iter().any(|faults| *faults >= FAULTS_BAD)
    }
}

fn day(at: u64) -> u32 {
    u32::try_from(at / DAY).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_three_days_in_thirty_or_a_thousand_on_one_are_repeated() {
        let mut faults = Faults::default();
        for day in [100, 100, 110] {
            faults.add(day * DAY + 5, 7);
            assert!(!faults.are_repeated(day * DAY + 6));
        }
        faults.add(120 * DAY, 1);
        assert_eq!((faults.total, faults.days.len()), (22, 3));
        assert!(faults.are_repeated(120 * DAY));
        assert!(faults.are_repeated(129 * DAY) && !faults.are_repeated(130 * DAY));
        // Of an older day nothing is remembered.
        faults.add(140 * DAY, 999);
        assert_eq!(faults.days.keys().copied().collect::<Vec<_>>(), [120, 140]);
        assert!(!faults.are_repeated(140 * DAY));
        faults.add(140 * DAY, 1);
        assert!(faults.are_repeated(140 * DAY) && !faults.are_repeated(170 * DAY));
    }

    #[test]
    fn a_clock_that_goes_back_forgets_what_is_yet_to_come() {
        let mut faults = Faults::default();
        faults.add(200 * DAY, 1);
        faults.add(10 * DAY, 2);
        assert_eq!((faults.total, faults.days), (3, [(10, 2)].into()));
    }
}
