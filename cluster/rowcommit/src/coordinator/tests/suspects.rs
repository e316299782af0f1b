//! Stores that come up after a crash and may have forgotten what they acknowledged.

use super::*;

impl Rig {
    /// The store's process dies; or its power, and its disk goes back to `to`, if that is given.
    pub(super) fn crash_store(&mut self, no: u64, to: Option<&MemoryStore>) {
        let disk = Arc::clone(&self.parties[&store(no)].disk);
        if let Some(to) = to {
            disk.roll_back(to);
        }
        self.restarted(no, Restart { went_back: to.is_some(), ..Restart::default() });
    }

    /// The store's process ends in order and starts again.
    pub(super) fn restart_store(&mut self, no: u64) {
        self.restarted(no, Restart { clean: true, ..Restart::default() });
        self.adopt();
    }

    fn restarted(&mut self, no: u64, how: Restart) {
        let disk = Arc::clone(&self.parties[&store(no)].disk);
        let opened = disk.restart(how);
        self.start_store(no, disk);
        support::start_store(&mut self.map, no, opened.incarnation.0, opened.clean);
    }

    fn disk(&self, no: u64) -> MemoryStore {
        self.parties[&store(no)].disk.fork()
    }

    /// Lets time pass until nothing is proposed any more; every proposal is accepted.
    fn rest(&mut self) {
        self.pass(6);
        self.settle();
    }

    fn vetted(&self) -> bool {
        self.parties.values().all(|party| party.core.is_vetted())
    }
}

/// 2+1 with one row: slot 0 was written twice, slot 1 once, and every store was told of it.
fn written_twice() -> (Rig, [MemoryStore; 3]) {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    rig.settle();
    rig.write(2, 1, 2);
    rig.settle();
    rig.tick(60);
    rig.settle();
    let then = [rig.disk(1), rig.disk(2), rig.disk(3)];
    rig.write(3, 0, 3);
    rig.settle();
    rig.tick(60);
    rig.settle();
    rig.done.clear();
    (rig, then)
}

#[test]
fn after_a_power_failure_no_single_store_is_believed() {
    for forgetful in [1, 3] {
        let (mut rig, then) = written_twice();
        for no in 1..=3 {
            let to = (no == forgetful).then(|| &then[no as usize - 1]);
            rig.crash_store(no, to);
            rig.link_up(no);
        }
        rig.elect_later();
        let activate = rig.settle();
        rig.accept(activate);
        rig.tick(20);
        rig.settle();
        assert_eq!(rig.coordinator.phase(), Phase::Active);
        rig.read(4, 0);
        rig.settle();
        let read = Action::ReadDone { op: 4, result: Ok(vec![bytes(3)]) };
        assert!(rig.done.contains(&read), "store {forgetful}: {:?}", rig.done);
        rig.rest();
        assert_eq!(rig.coordinator.stats().suspects, 0);
        assert!(rig.coordinator.is_quiet(), "{:?}", rig.coordinator);
        assert!(rig.vetted());
        assert_eq!((rig.head(1).wid, rig.head(3).wid), (wid(3), wid(3)));
    }
}

/// All three crash, the third one forgets `to`, and the second one, which alone knows what was last
/// written to it then, is away.
fn crashed_with_one_away(to: impl Fn(&Rig, &MemoryStore) -> Option<MemoryStore>) -> Rig {
    let (mut rig, [_, _, before]) = written_twice();
    rig.write(4, 1, 4);
    rig.settle();
    let to = to(&rig, &before);
    for no in 1..=3 {
        rig.crash_store(no, to.as_ref().filter(|_| no == 3));
    }
    rig.link_up(1);
    rig.link_up(3);
    rig.link_down(2);
    rig.deafen(2, true);
    rig.elect_later();
    rig
}

#[test]
fn after_a_power_failure_who_is_late_is_waited_for() {
    let mut rig = crashed_with_one_away(|_, before| Some(before.fork()));
    rig.pass(29);
    assert!(rig.map.volumes[&VOLUME].is_full(), "it may be the one who remembers");
    assert_eq!(rig.coordinator.phase(), Phase::TakingOver);
    rig.deafen(2, false);
    rig.link_up(2);
    rig.rest();
    assert!(rig.map.volumes[&VOLUME].is_full() && rig.vetted());
    rig.read(5, 1);
    rig.settle();
    let read = Action::ReadDone { op: 5, result: Ok(vec![bytes(4)]) };
    assert!(rig.done.contains(&read), "{:?}", rig.done);
    assert_eq!(rig.head(3).vec[1].wid, wid(4), "the one who had forgotten");
}

#[test]
fn after_a_power_failure_nobody_is_waited_for_for_ever() {
    let mut rig = crashed_with_one_away(|rig, _| Some(rig.disk(3)));
    rig.pass(40);
    assert_eq!(rig.map.volumes[&VOLUME].groups[0].insync.len(), 2);
    assert_eq!(rig.coordinator.phase(), Phase::Active);
}

#[test]
fn where_only_processes_died_nobody_waits_for_long() {
    let mut rig = crashed_with_one_away(|_, _| None);
    rig.pass(4);
    assert_eq!(rig.map.volumes[&VOLUME].groups[0].insync.len(), 2);
    assert_eq!(rig.coordinator.phase(), Phase::Active);
}

#[test]
fn they_are_waited_for_from_when_the_suspect_is_there() {
    let mut rig = crashed_with_one_away(|_, before| Some(before.fork()));
    rig.link_down(3);
    rig.deafen(3, true);
    // Neither can be spared.
    rig.pass(60);
    assert!(rig.map.volumes[&VOLUME].is_full());
    rig.deafen(3, false);
    rig.link_up(3);
    rig.pass(29);
    assert!(rig.map.volumes[&VOLUME].is_full());
    rig.pass(2);
    assert_eq!(rig.map.volumes[&VOLUME].groups[0].insync.len(), 2);
}

#[test]
fn an_election_does_not_begin_the_waiting_anew() {
    let mut rig = crashed_with_one_away(|_, before| Some(before.fork()));
    for _ in 0..3 {
        rig.pass(8);
        assert!(rig.map.volumes[&VOLUME].is_full());
        support::elect(&mut rig.map, 1);
        rig.adopt();
    }
    rig.pass(10);
    assert_eq!(rig.map.volumes[&VOLUME].groups[0].insync.len(), 2);
    assert_eq!(rig.coordinator.phase(), Phase::Active);
}

#[test]
fn a_store_that_is_put_off_again_and_again_has_not_come() {
    let mut rig = crashed_with_one_away(|_, before| Some(before.fork()));
    for _ in 0..8 {
        rig.link_up(2);
        let session = rig.sessions;
        let answers = vec![(0, Answer::PromiseLater(1_500_000))];
        let reply = Reply { volume: VOLUME, session, incarnation: Incarnation(2), answers };
        rig.feed(Event::Reply { store: store(2), reply });
        rig.pass(1);
        rig.link_down(2);
        rig.pass(4);
    }
    assert_eq!(rig.map.volumes[&VOLUME].groups[0].insync.len(), 2);
    assert_eq!(rig.coordinator.phase(), Phase::Active);
}

#[test]
fn a_disk_that_hangs_after_a_power_cut_is_waited_for_no_longer_than_a_machine() {
    let (mut rig, [_, _, before]) = written_twice();
    let first = rig.disk(1);
    for no in 1..=3 {
        rig.crash_store(no, [Some(&first), None, Some(&before)][no as usize - 1]);
        rig.link_up(no);
    }
    rig.elect_later();
    let activate = rig.settle();
    // It is not repaired, so the comparison does not end.
    rig.parties.get_mut(&store(3)).expect("a known store").hangs = true;
    rig.accept(activate);
    rig.pass(28);
    assert!(rig.map.volumes[&VOLUME].is_full());
    rig.pass(8);
    assert_eq!(rig.map.volumes[&VOLUME].groups[0].insync.len(), 2);
}

#[test]
fn who_is_not_believed_is_not_there_to_remain() {
    let (mut rig, then) = written_twice();
    let known = rig.map.clone();
    rig.crash_store(3, Some(&then[2]));
    let newer = std::mem::replace(&mut rig.map, known);
    rig.link_up(3);
    rig.link_down(2);
    rig.deafen(2, true);
    rig.write(4, 1, 4);
    for _ in 0..20 {
        rig.tick(100);
        let commands = rig.settle();
        assert!(commands.is_empty(), "{commands:?}");
    }
    rig.map = newer;
    rig.adopt();
    rig.pass(20);
    assert!(rig.map.volumes[&VOLUME].is_full(), "nor when it is a suspect of a power cut");
}

#[test]
fn who_goes_while_a_suspect_of_a_power_failure_is_compared_is_waited_for() {
    let (mut rig, [_, _, before]) = written_twice();
    for no in 1..=3 {
        rig.crash_store(no, (no == 3).then_some(&before));
        rig.link_up(no);
    }
    rig.elect_later();
    let activate = rig.settle();
    // Before it can be asked for the rows it has.
    rig.deafen(2, true);
    rig.accept(activate);
    rig.pass(20);
    assert_eq!(rig.coordinator.phase(), Phase::Active);
    assert!(rig.map.volumes[&VOLUME].is_full());
    assert_eq!(rig.coordinator.stats().suspects, 3);
    rig.pass(20);
    assert_eq!(rig.map.volumes[&VOLUME].groups[0].insync.len(), 2);
}

#[test]
fn a_store_that_restarted_is_not_heard_before_the_map_tells_of_it() {
    let (mut rig, then) = written_twice();
    let known = rig.map.clone();
    rig.crash_store(3, Some(&then[2]));
    let newer = std::mem::replace(&mut rig.map, known);
    rig.adopt();
    rig.link_up(3);
    rig.coordinator.cache.clear();
    rig.read(4, 0);
    rig.settle();
    let answered = |rig: &Rig| rig.done.iter().any(|a| matches!(a, Action::ReadDone { .. }));
    assert!(!answered(&rig), "{:?}", rig.done);
    // It is taken out, compared and grown back; meanwhile the data slots tell.
    rig.map = newer;
    rig.adopt();
    rig.rest();
    let read = Action::ReadDone { op: 4, result: Ok(vec![bytes(3)]) };
    assert!(rig.done.contains(&read), "{:?}", rig.done);
    assert!(rig.map.volumes[&VOLUME].is_full());
    assert_eq!(rig.head(3).wid, wid(3));
    assert!(rig.vetted());
}

#[test]
fn where_nobody_may_leave_the_epoch_begins_anew() {
    let (mut rig, then) = written_twice();
    support::shrink(&mut rig.map, 2);
    rig.adopt();
    rig.parties.get_mut(&store(2)).expect("a known store").deaf = true;
    rig.link_down(2);
    rig.settle();
    let epoch = support::epoch(&rig.map);
    rig.crash_store(3, Some(&then[2]));
    rig.link_up(3);
    rig.adopt();
    rig.tick(20);
    let commands = rig.settle();
    assert!(matches!(commands[..], [Command::Elect { .. }]), "{commands:?}");
    rig.accept(commands);
    rig.rest();
    assert!(support::epoch(&rig.map) > epoch);
    assert_eq!(rig.coordinator.phase(), Phase::Active);
    // One of the two that are left forgot a version, which is one loss too many: no stale data.
    rig.read(4, 0);
    rig.settle();
    let stale = Action::ReadDone { op: 4, result: Ok(vec![bytes(1)]) };
    assert!(!rig.done.contains(&stale), "{:?}", rig.done);
}

/// A row that nobody can put right is never compared to the end; that holds no scrub up.
#[test]
fn what_can_not_be_compared_keeps_no_scrub_from_ending() {
    let (mut rig, _) = written_twice();
    for no in [1, 3] {
        let meta = rig.head(no);
        assert!(disk(&rig, no).corrupt_meta(at(support::slot(no).0), meta.ver));
    }
    for no in 1..=3 {
        rig.crash_store(no, None);
        rig.link_up(no);
    }
    rig.elect_later();
    rig.rest();
    rig.rest();
    assert_eq!(rig.coordinator.phase(), Phase::Active);
    assert!(rig.coordinator.stats().suspects > 0, "{}", rig.coordinator.describe());
    rig.done.clear();
    rig.feed(Event::Scrub { group: GroupNo(0) });
    rig.rest();
    assert!(rig.done.iter().any(|d| matches!(d, Action::Scrubbed { .. })), "{:?}", rig.done);
}
