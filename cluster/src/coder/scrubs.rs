//! When which group of the volume is scrubbed, and what the map is told of it.

use smalti_map::{Command, Group, GroupScrub, Volume};
use smalti_rowcommit::Time;
use smalti_rowcommit::coordinator::ScrubReport;
use smalti_storage::ids::{GroupNo, SlotSet, StoreId};
use std::collections::BTreeMap;
use std::time::Duration;

/// Unless somebody asks, nothing is scrubbed before a coordinator has served for so long, or for as long as
/// lies between two scrubs: there may be better things to do.
const SETTLED: Duration = Duration::from_secs(600);

/// Between two notes to the map while there is more to scrub.
const NOTE_EVERY: Duration = Duration::from_secs(3);

/// Between two notes of what stores had wrong, where no scrub has ended.
const FAULTS_EVERY: Duration = Duration::from_secs(60);

/// The scrubs of one volume, as its coordinator's process goes about them.
#[derive(Debug, Default)]
pub(super) struct Scrubs {
    /// Each group again after so long; zero: only when asked.
    every: Duration,
    active_since: Option<Time>,
    /// The one under way.
    begun: Option<Begun>,
    /// Those that have ended, until the map tells of them.
    ended: BTreeMap<GroupNo, GroupScrub>,
    /// Of which it was looked at whether rows can not be put right; whether there were such then, and who
    /// was in sync.
    looked: BTreeMap<GroupNo, (bool, SlotSet)>,
    /// One of them has never been told of.
    fresh: bool,
    noted: Time,
    faults: BTreeMap<StoreId, u32>,
    faults_noted: Time,
}

/// A scrub under way.
#[derive(Clone, Copy, Debug)]
struct Begun {
    group: GroupNo,
    /// How often the operator had asked when it began.
    asked: u32,
    /// Slots that were out of sync then.
    out: u32,
}

impl Scrubs {
    pub(super) fn new(every: Duration) -> Self {
        Self { every, ..Self::default() }
    }

    /// A store had something wrong.
    pub(super) fn fault(&mut self, store: StoreId) {
        *self.faults.entry(store).or_default() += 1;
    }

    /// The scrub of a group has ended, at that Unix second; `told` is the one that the map tells of. It counts
    /// as later than that one, whatever clocks say, or it would be taken for known, unless somebody has asked
    /// for it since.
    pub(super) fn ended(
        &mut self,
        group: GroupNo,
        report: &ScrubReport,
        unix: u64,
        told: Option<&GroupScrub>,
    ) {
        let Some(Begun { group: begun, asked, out }) = self.begun.take() else { return };
        if begun == group {
            let wrong = report.wrong.values().sum();
            let ScrubReport { rows, unclear, unread, .. } = *report;
            if unread > u64::from(out) {
                // A slot has left meanwhile, and may be back: that was no look at all of it.
                self.looked.remove(&group);
            }
            let before = self.ended.get(&group).into_iter().chain(told);
            let before = before.filter(|scrub| scrub.asked >= asked).map(|scrub| scrub.ended).max();
            let ended = before.map_or(unix, |before| unix.max(before.saturating_add(1)));
            let scrub = GroupScrub { ended, asked, rows, wrong, unclear, unread };
            self.ended.insert(group, scrub);
            self.fresh = true;
        }
    }

    /// What is to be done now: the group whose scrub is to begin, and what the map is to be told.
    /// `serves`: the coordinator does. `at_work`: it scrubs a group, and where one has ended that was said.
    /// `wrong`: how many rows of groups are known
    /// that can not be put right. What the map says of that outlives the coordinator, and is found out
    /// anew where the two differ.
    pub(super) fn turn(
        &mut self,
        now: Time,
        unix: u64,
        (serves, at_work): (bool, bool),
        wrong: &BTreeMap<GroupNo, u64>,
        volume: &Volume,
    ) -> (Option<GroupNo>, Vec<Command>) {
        let mut commands = Vec::new();
        self.active_since = serves.then_some(self.active_since.unwrap_or(now));
        let known = |group: &GroupNo, scrub: &GroupScrub| {
            volume
                .scrubs
                .groups
                .get(group)
                .is_some_and(|known| known.ended >= scrub.ended && known.asked >= scrub.asked)
        };
        self.ended.retain(|group, scrub| !known(group, scrub));
        if !serves {
            self.begun = None;
            self.looked.clear();
        }
        if let Some(begun) = self.begun.take_if(|_| !at_work) {
            // Broken off, by another election of this coordinator.
            self.looked.remove(&begun.group);
        }
        let mut looked = std::mem::take(&mut self.looked);
        // Where they differ again later, something has happened since.
        looked.retain(|group, _| self.differs(*group, wrong, volume));
        self.looked = looked;
        let next = if serves && !at_work { self.next(now, unix, wrong, volume) } else { None };
        if let Some(group) = next {
            let insync = volume.group(group).map_or(SlotSet::EMPTY, |group| group.insync);
            self.looked.insert(group, (wrong.contains_key(&group), insync));
            let out = volume.all_slots().minus(insync).len();
            self.begun = Some(Begun { group, asked: volume.scrubs.asked, out });
        }
        let late = now.since(self.noted) >= NOTE_EVERY;
        let noted =
            serves && !self.ended.is_empty() && (late || self.fresh && self.begun.is_none());
        if noted {
            self.fresh = false;
            self.noted = now;
            let groups = self.ended.iter().map(|(group, scrub)| {
                let mut scrub = *scrub;
                // What it did not read may be what is wrong, and what could not be judged is not right.
                let before = volume.scrubs.groups.get(group).filter(|_| scrub.unread > 0);
                let before = before.map_or(0, |before| before.unclear);
                let known = wrong.get(group).copied().unwrap_or(0);
                scrub.unclear = scrub.unclear.max(before).max(known);
                (*group, scrub)
            });
            let groups = groups.collect();
            let (volume, epoch) = (volume.no, volume.epoch);
            commands.push(Command::NoteScrubs { volume, epoch, groups });
        }
        let late = now.since(self.faults_noted) >= FAULTS_EVERY;
        if late || noted {
            let faults = self.untold_faults(unix);
            if faults.is_some() {
                self.faults_noted = now;
            }
            commands.extend(faults);
        }
        (next, commands)
    }

    /// What stores had wrong and the map was not told. Told once: rather not counted than counted twice.
    pub(super) fn untold_faults(&mut self, unix: u64) -> Option<Command> {
        let faults: Vec<_> = std::mem::take(&mut self.faults).into_iter().collect();
        (!faults.is_empty()).then_some(Command::NoteFaults { at: unix, faults })
    }

    fn next(
        &self,
        now: Time,
        unix: u64,
        wrong: &BTreeMap<GroupNo, u64>,
        volume: &Volume,
    ) -> Option<GroupNo> {
        let asked = volume.scrubs.asked;
        let done = |group: &GroupNo| self.ended.get(group).is_some_and(|s| s.asked >= asked);
        let wanted = volume.asked_scrubs().find(|group| !done(group));
        wanted.or_else(|| self.doubtful(wrong, volume)).or_else(|| {
            let settled =
                self.active_since.is_some_and(|since| now.since(since) >= SETTLED.min(self.every));
            let background = settled && !self.every.is_zero();
            let old = volume.old_scrub(unix, self.every.as_secs()).filter(|_| background)?;
            (!self.ended.contains_key(&old)).then_some(old)
        })
    }

    /// A group of which the map does not tell what is known of it, unless that was looked at already.
    fn doubtful(&self, wrong: &BTreeMap<GroupNo, u64>, volume: &Volume) -> Option<GroupNo> {
        let groups = (0..=u16::MAX).map(GroupNo).take(volume.groups.len());
        let mut served = groups.zip(&volume.groups).filter(|(_, group)| !group.offline);
        let doubtful = |(no, group): &(GroupNo, &Group)| {
            let looked = (wrong.contains_key(no), group.insync);
            self.differs(*no, wrong, volume) && self.looked.get(no) != Some(&looked)
        };
        served.find(doubtful).map(|(no, _)| no)
    }

    /// Whether the map says otherwise than what is known: that rows can not be put right, or that all can.
    fn differs(&self, no: GroupNo, wrong: &BTreeMap<GroupNo, u64>, volume: &Volume) -> bool {
        let unclear = |scrub: &GroupScrub| scrub.unclear > 0;
        let (ended, told) = (self.ended.get(&no), volume.scrubs.groups.get(&no));
        // What it did not read may be what is wrong.
        let told = told.filter(|_| ended.is_none_or(|scrub| scrub.unread > 0));
        wrong.contains_key(&no) != (ended.is_some_and(unclear) || told.is_some_and(unclear))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_map::{ClusterMap, ReadMode};
    use smalti_storage::ids::{Epoch, KeyEpochNo, VolumeId, VolumeNo};
    use std::collections::BTreeSet;
    use uuid::Uuid;

    const DAY: Duration = Duration::from_secs(86_400);
    const SERVES: (bool, bool) = (true, false);

    fn volume() -> Volume {
        let group = Group {
            slots: (1..=3).map(|no| StoreId(Uuid::from_u128(no))).collect(),
            insync: SlotSet::first(3),
            learners: BTreeMap::new(),
            targets: BTreeMap::new(),
            old_holders: BTreeSet::new(),
            insync_since: BTreeMap::new(),
            settled: Epoch::default(),
            offline: false,
        };
        Volume {
            no: VolumeNo(1),
            id: VolumeId(Uuid::from_u128(9)),
            name: "v".into(),
            size: 1 << 20,
            data: 2,
            parity: 1,
            shard_size: 1 << 20,
            min_insync: 2,
            read_mode: ReadMode::Lease,
            epoch: Epoch(7),
            coordinator: None,
            activated: true,
            writer_gen: 1,
            snap_seq: 0,
            snapshots: BTreeMap::new(),
            snapshots_deleted: 0,
            key_epoch: KeyEpochNo(1),
            key_epochs: BTreeMap::new(),
            rotate: false,
            revoked: None,
            groups: vec![group; 2],
            scrubs: smalti_map::Scrubs::default(),
        }
    }

    fn at(seconds: u64) -> Time {
        Time(1_000_000_000 + seconds * 1_000_000)
    }

    fn apply(volume: &mut Volume, commands: &[Command]) {
        let mut map = ClusterMap::default();
        map.volumes.insert(volume.no, volume.clone());
        commands.iter().for_each(|command| drop(map.apply(command)));
        *volume = map.volumes[&volume.no].clone();
    }

    #[test]
    fn what_is_asked_for_is_scrubbed_at_once_and_told_together() {
        let mut volume = volume();
        let mut scrubs = Scrubs::new(DAY);
        assert_eq!(scrubs.turn(at(0), 5000, SERVES, &BTreeMap::new(), &volume), (None, vec![]));
        volume.scrubs.asked = 1;
        assert_eq!(
            scrubs.turn(at(1), 5001, SERVES, &BTreeMap::new(), &volume),
            (Some(GroupNo(0)), vec![])
        );
        assert_eq!(
            scrubs.turn(at(1), 5001, (true, true), &BTreeMap::new(), &volume),
            (None, vec![])
        );
        let store = volume.groups[0].slots[0];
        scrubs.fault(store);
        let report = ScrubReport { rows: 9, wrong: [(store, 1)].into(), unclear: 0, unread: 0 };
        scrubs.ended(GroupNo(0), &report, 5002, None);
        let (next, told) = scrubs.turn(at(2), 5002, SERVES, &BTreeMap::new(), &volume);
        assert_eq!((next, told.len()), (Some(GroupNo(1)), 2), "{told:?}");
        scrubs.ended(GroupNo(1), &ScrubReport::default(), 5003, None);
        let (next, told) = scrubs.turn(at(3), 5003, SERVES, &BTreeMap::new(), &volume);
        let Some(Command::NoteScrubs { epoch: Epoch(7), groups, .. }) = told.first() else {
            panic!("{told:?}");
        };
        assert_eq!((next, groups.len(), told.len()), (None, 2, 1));
        assert_eq!((groups[0].1.wrong, groups[0].1.rows, groups[0].1.asked), (1, 9, 1));
        // Told again until the map knows, and not sooner than that.
        assert_eq!(scrubs.turn(at(4), 5004, SERVES, &BTreeMap::new(), &volume), (None, vec![]));
        assert_eq!(scrubs.turn(at(7), 5007, SERVES, &BTreeMap::new(), &volume).1, told);
        apply(&mut volume, &told);
        assert_eq!(scrubs.turn(at(20), 5020, SERVES, &BTreeMap::new(), &volume), (None, vec![]));
        assert_eq!(volume.asked_scrubs().count(), 0);
    }

    #[test]
    fn one_that_was_broken_off_is_begun_again() {
        let mut volume = volume();
        volume.scrubs.asked = 1;
        let mut scrubs = Scrubs::new(DAY);
        assert_eq!(scrubs.turn(at(0), 5000, SERVES, &BTreeMap::new(), &volume).0, Some(GroupNo(0)));
        assert_eq!(
            scrubs.turn(at(1), 5001, (false, false), &BTreeMap::new(), &volume),
            (None, vec![])
        );
        assert_eq!(scrubs.turn(at(2), 5002, SERVES, &BTreeMap::new(), &volume).0, Some(GroupNo(0)));
    }

    #[test]
    fn the_oldest_follows_by_itself_once_nothing_has_happened_for_a_while() {
        let mut volume = volume();
        let scrub = |ended| GroupScrub { ended, ..GroupScrub::default() };
        volume.scrubs.groups = [(GroupNo(0), scrub(900_000)), (GroupNo(1), scrub(800_000))].into();
        let mut scrubs = Scrubs::new(DAY);
        let mut never = Scrubs::new(Duration::ZERO);
        let later = 800_000 + DAY.as_secs();
        assert_eq!(scrubs.turn(at(0), later, SERVES, &BTreeMap::new(), &volume).0, None);
        assert_eq!(never.turn(at(0), later, SERVES, &BTreeMap::new(), &volume).0, None);
        assert_eq!(scrubs.turn(at(599), later, SERVES, &BTreeMap::new(), &volume).0, None);
        assert_eq!(scrubs.turn(at(600), later - 1, SERVES, &BTreeMap::new(), &volume).0, None);
        assert_eq!(never.turn(at(600), later, SERVES, &BTreeMap::new(), &volume).0, None);
        assert_eq!(
            scrubs.turn(at(601), later, SERVES, &BTreeMap::new(), &volume).0,
            Some(GroupNo(1))
        );
        scrubs.ended(GroupNo(1), &ScrubReport::default(), later, None);
        let (next, told) = scrubs.turn(at(602), later, SERVES, &BTreeMap::new(), &volume);
        assert_eq!((next, told.len()), (None, 1));
        apply(&mut volume, &told);
        assert_eq!(scrubs.turn(at(603), later, SERVES, &BTreeMap::new(), &volume), (None, vec![]));
    }

    #[test]
    fn what_can_not_be_put_right_is_known_to_the_next_coordinator_until_it_is_right() {
        let mut volume = volume();
        let (lost, none) = (BTreeMap::from([(GroupNo(1), 1)]), BTreeMap::new());
        let unclear = ScrubReport { rows: 9, unclear: 2, ..ScrubReport::default() };
        let mut scrubs = Scrubs::new(Duration::ZERO);
        assert_eq!(scrubs.turn(at(0), 5000, SERVES, &none, &volume), (None, vec![]));
        // Reads have met it: a scrub says how much there is, and the map keeps that.
        assert_eq!(scrubs.turn(at(1), 5001, SERVES, &lost, &volume).0, Some(GroupNo(1)));
        scrubs.ended(GroupNo(1), &unclear, 5002, None);
        let (next, told) = scrubs.turn(at(4), 5004, SERVES, &lost, &volume);
        assert_eq!((next, told.len()), (None, 1));
        apply(&mut volume, &told);
        assert_eq!(scrubs.turn(at(5), 5005, SERVES, &lost, &volume), (None, vec![]));
        // Another one, who knows of nothing, looks once.
        let mut next = Scrubs::new(Duration::ZERO);
        assert_eq!(next.turn(at(6), 5006, SERVES, &none, &volume).0, Some(GroupNo(1)));
        next.ended(GroupNo(1), &unclear, 5007, None);
        let (_, told) = next.turn(at(10), 5010, SERVES, &none, &volume);
        apply(&mut volume, &told);
        assert_eq!(next.turn(at(11), 5011, SERVES, &none, &volume), (None, vec![]));
        // What it found it knows from then on, and looks again once somebody wrote it anew.
        assert_eq!(next.turn(at(12), 5012, SERVES, &lost, &volume), (None, vec![]));
        assert_eq!(next.turn(at(13), 5013, SERVES, &none, &volume).0, Some(GroupNo(1)));
        // Who did not read all of it takes nothing back, and tells what is known.
        volume.groups[1].insync = SlotSet::first(2);
        let mut blind = Scrubs::new(Duration::ZERO);
        assert_eq!(blind.turn(at(12), 5012, SERVES, &none, &volume).0, Some(GroupNo(1)));
        blind.ended(GroupNo(1), &ScrubReport { unread: 1, ..ScrubReport::default() }, 5012, None);
        let (_, told) = blind.turn(at(16), 5016, SERVES, &none, &volume);
        apply(&mut volume, &told);
        assert_eq!(volume.scrubs.groups[&GroupNo(1)].unclear, 2);
        // He looks again when who was away is there.
        assert_eq!(blind.turn(at(17), 5017, SERVES, &none, &volume).0, None);
        volume.groups[1].insync = SlotSet::first(3);
        assert_eq!(blind.turn(at(18), 5018, SERVES, &none, &volume).0, Some(GroupNo(1)));
        // It was written anew.
        assert_eq!(scrubs.turn(at(13), 5013, SERVES, &none, &volume).0, Some(GroupNo(1)));
        scrubs.ended(GroupNo(1), &ScrubReport::default(), 5014, None);
        let (_, told) = scrubs.turn(at(17), 5017, SERVES, &none, &volume);
        apply(&mut volume, &told);
        assert_eq!(scrubs.turn(at(18), 5018, SERVES, &none, &volume), (None, vec![]));
        assert_eq!(volume.scrubs.groups[&GroupNo(1)].unclear, 0);
    }

    /// Unclear in the map, and right again: what a look finds takes that back.
    #[test]
    fn a_look_that_was_none_is_not_the_last_one() {
        let none = BTreeMap::new();
        let mut volume = volume();
        let unclear = GroupScrub { ended: 5000, unclear: 1, ..GroupScrub::default() };
        volume.scrubs.groups = [(GroupNo(1), unclear)].into();
        let mut scrubs = Scrubs::new(Duration::ZERO);
        let first = (Some(GroupNo(1)), vec![]);
        assert_eq!(scrubs.turn(at(0), 5000, SERVES, &none, &volume), first);
        assert_eq!(scrubs.turn(at(1), 5000, (true, true), &none, &volume), (None, vec![]));
        // The coordinator was elected anew between two turns.
        assert_eq!(scrubs.turn(at(2), 5000, SERVES, &none, &volume), first);
        // One that was in sync when it began has left, and is back.
        let report = ScrubReport { unread: 1, ..ScrubReport::default() };
        scrubs.ended(GroupNo(1), &report, 5000, Some(&unclear));
        assert_eq!(scrubs.turn(at(3), 5000, SERVES, &none, &volume).0, Some(GroupNo(1)));
        // In the same second by the clock as the one that the map tells of.
        scrubs.ended(GroupNo(1), &ScrubReport::default(), 5000, Some(&unclear));
        let (next, told) = scrubs.turn(at(7), 5000, SERVES, &none, &volume);
        assert_eq!((next, told.len()), (None, 1));
        apply(&mut volume, &told);
        assert_eq!(volume.scrubs.groups[&GroupNo(1)].unclear, 0);
        assert_eq!(scrubs.turn(at(8), 5001, SERVES, &none, &volume), (None, vec![]));
        // Whoever asks has a clock that was ahead forgotten.
        let ahead = GroupScrub { ended: 90_000, ..unclear };
        volume.scrubs.groups = [(GroupNo(0), ahead), (GroupNo(1), ahead)].into();
        volume.scrubs.asked = 1;
        assert_eq!(scrubs.turn(at(9), 5002, SERVES, &none, &volume).0, Some(GroupNo(0)));
        scrubs.ended(GroupNo(0), &ScrubReport::default(), 5002, Some(&ahead));
        let (_, told) = scrubs.turn(at(13), 5006, SERVES, &none, &volume);
        apply(&mut volume, &told);
        assert_eq!(volume.scrubs.groups[&GroupNo(0)].ended, 5002);
    }

    #[test]
    fn what_reads_find_wrong_is_told_once_a_minute() {
        let volume = volume();
        let store = volume.groups[0].slots[1];
        let mut scrubs = Scrubs::new(DAY);
        for (second, found, told) in [(0, 1, 1), (10, 2, 0), (61, 0, 1), (130, 0, 0)] {
            (0..found).for_each(|_| scrubs.fault(store));
            let (_, commands) = scrubs.turn(at(second), 5000, SERVES, &BTreeMap::new(), &volume);
            assert_eq!(commands.len(), told, "{second} {commands:?}");
        }
    }

    #[test]
    fn what_was_found_last_is_told_when_another_coordinates() {
        let store = volume().groups[0].slots[1];
        let mut scrubs = Scrubs::new(DAY);
        assert_eq!(scrubs.untold_faults(5000), None);
        (0..7).for_each(|_| scrubs.fault(store));
        let told = Command::NoteFaults { at: 5001, faults: vec![(store, 7)] };
        assert_eq!(scrubs.untold_faults(5001), Some(told));
        assert_eq!(scrubs.untold_faults(5002), None);
    }
}
