//! Slots that can not tell what they hold, and records that nobody can construct.

use super::*;

#[test]
fn a_slot_that_could_not_tell_is_repaired_by_whoever_serves_next() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    rig.settle();
    rig.deafen(3, true);
    rig.write(2, 0, 2);
    rig.settle();
    rig.deafen(3, false);
    assert!(disk(&rig, 1).corrupt_meta(at(0), ver(1)));
    // A takeover undoes what was under way, and its coordinator ends before it serves.
    support::elect(&mut rig.map, 1);
    rig.adopt();
    rig.link_up(3);
    let activate = rig.settle();
    assert!(matches!(activate[..], [Command::Activate { .. }]), "{activate:?}");
    let mut config = CoordinatorConfig::new(ME, VOLUME);
    config.record_len = RECORD_LEN;
    rig.coordinator = Coordinator::new(config);
    (1..=3).for_each(|no| rig.link_up(no));
    support::elect(&mut rig.map, 1);
    rig.adopt();
    rig.pass(5);
    assert_eq!(rig.coordinator.phase(), Phase::Active);
    assert!(rig.coordinator.is_quiet(), "{:?}", rig.coordinator);
    assert_eq!(rig.head(1).ver, ver(1));
    assert_eq!(disk(&rig, 1).prepared(VOLUME).expect("memory does not fail"), []);
    let record = disk(&rig, 1).record(at(0), ver(1)).expect("memory does not fail");
    assert_eq!(record, Some(bytes(1)));
}

#[test]
fn a_repair_of_a_slot_in_sync_that_fails_is_tried_again() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    rig.settle();
    for no in [0, 2] {
        assert!(disk(&rig, u64::from(no) + 1).corrupt_record(at(no), ver(1), 3));
    }
    rig.done.clear();
    rig.read(2, 0);
    rig.settle();
    let unreadable = Action::ReadDone { op: 2, result: Err(OpError::Unreadable) };
    assert!(rig.done.contains(&unreadable), "{:?}", rig.done);
    // The same byte once more: parity can be read again, and nobody asks for the row.
    assert!(disk(&rig, 3).corrupt_record(at(2), ver(1), 3));
    rig.pass(6);
    let record = disk(&rig, 1).record(at(0), ver(1)).expect("memory does not fail");
    assert_eq!(record, Some(bytes(1)));
    assert!(rig.coordinator.is_quiet(), "{:?}", rig.coordinator);
}

#[test]
fn a_repair_that_failed_often_is_tried_at_once_when_a_store_is_back() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    rig.settle();
    for no in [0, 2] {
        assert!(disk(&rig, u64::from(no) + 1).corrupt_record(at(no), ver(1), 3));
    }
    rig.read(2, 0);
    // Five, ten, twenty and forty seconds: it is tried again in a minute at the earliest.
    rig.pass(80);
    assert_eq!(rig.coordinator.stats().rows_lost, 1);
    assert!(disk(&rig, 3).corrupt_record(at(2), ver(1), 3));
    rig.pass(5);
    assert_eq!(rig.coordinator.stats().rows_lost, 1);
    rig.link_down(3);
    rig.link_up(3);
    rig.pass(2);
    assert_eq!(rig.coordinator.stats().rows_lost, 0);
    let record = disk(&rig, 1).record(at(0), ver(1)).expect("memory does not fail");
    assert_eq!(record, Some(bytes(1)));
}

#[test]
fn what_can_not_be_constructed_keeps_nothing_else_from_being_right() {
    let mut rig = Rig::active(2, 1);
    for (op, slot, seq) in [(1, 0, 1), (2, 1, 2)] {
        rig.write(op, slot, seq);
        rig.settle();
    }
    rig.feed(Event::Snapshot { op: 3, name: "s".into(), created: 7 });
    let add = rig.settle();
    rig.accept(add);
    rig.settle();
    rig.write(4, 0, 3);
    rig.settle();
    // Slot 0 of the snapshot is lost: it rots while the parity slot has a new disk.
    rig.link_down(3);
    support::shrink(&mut rig.map, 3);
    rig.adopt();
    rig.settle();
    assert!(disk(&rig, 1).corrupt_record(at(0), ver(1), 3));
    rig.start_store(3, Arc::new(MemoryStore::new(store(3))));
    rig.link_up(3);
    rig.adopt();
    rig.done.clear();
    listing::until_whole(&mut rig);
    let lost = Alarm::RecordLost { row: row(0), slot: Slot(2), snap: Some(1) };
    assert!(rig.done.contains(&Action::Alarm(lost)), "{:?}", rig.done);
    // The newest state is whole, without the store that held it all along; of the snapshot every
    // block that can be read is right, and no other is made up.
    rig.link_down(1);
    support::shrink(&mut rig.map, 1);
    rig.adopt();
    rig.settle();
    rig.done.clear();
    for (op, slot, snap) in [(5, 0, None), (6, 1, Some(1)), (7, 0, Some(1))] {
        rig.read_at(op, (row(0), Slot(slot)), snap);
        rig.settle();
    }
    let done = |op, result| Action::ReadDone { op, result };
    for wanted in [
        done(5, Ok(vec![bytes(3)])),
        done(6, Ok(vec![bytes(2)])),
        done(7, Err(OpError::Unreadable)),
    ] {
        assert!(rig.done.contains(&wanted), "{wanted:?} of {:?}", rig.done);
    }
}

#[test]
fn what_nobody_can_read_was_not_never_written() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    rig.settle();
    rig.tick(60);
    rig.settle();
    // All crash, so that all are asked for the row, and none can tell.
    for no in 1..=3 {
        assert!(disk(&rig, no).corrupt_meta(at(no as u8 - 1), ver(1)) || no == 2);
        rig.crash_store(no, None);
        rig.link_up(no);
    }
    rig.elect_later();
    rig.pass(10);
    assert_eq!(rig.coordinator.phase(), Phase::Active);
    rig.done.clear();
    rig.read(2, 0);
    rig.settle();
    let unreadable = Action::ReadDone { op: 2, result: Err(OpError::Unreadable) };
    assert!(rig.done.contains(&unreadable), "{:?}", rig.done);
    for no in [0, 2] {
        // What is there stays there, for it may be readable again.
        let versions = disk(&rig, u64::from(no) + 1).versions(at(no));
        assert!(versions.is_err(), "{versions:?}");
    }
}

#[test]
fn what_is_left_of_a_lost_row_stays_though_its_store_comes_back() {
    let mut rig = Rig::active(2, 1);
    for (op, slot, seq) in [(1, 0, 1), (2, 1, 2)] {
        rig.write(op, slot, seq);
        rig.settle();
    }
    let last = rig.head(3).ver;
    // An update that reaches slot 1 alone; slot 0 rots, and the parity slot is out.
    rig.deafen(3, true);
    rig.write(3, 1, 3);
    rig.settle();
    assert!(disk(&rig, 1).corrupt_record(at(0), rig.head(1).ver, 3));
    rig.link_down(3);
    support::shrink(&mut rig.map, 3);
    support::elect(&mut rig.map, 1);
    rig.adopt();
    let activate = rig.settle();
    let lost = Action::Alarm(Alarm::RowLost { row: row(0) });
    assert!(rig.done.contains(&lost), "{:?}", rig.done);
    rig.accept(activate);
    rig.deafen(3, false);
    rig.link_up(3);
    listing::until_whole(&mut rig);
    // It grew back for the other rows. What it has of this one is marked, and there still.
    let epoch = support::epoch(&rig.map);
    rig.pass(10);
    assert_eq!(rig.head(3).ver, last);
    let marks = disk(&rig, 3).prepared(VOLUME).expect("memory does not fail");
    assert_eq!(marks, [(at(2), UNREADABLE)]);
    let versions = disk(&rig, 2).versions(at(1)).expect("memory does not fail");
    assert_eq!(versions.len(), 2, "{versions:?}");
    // With a slot more it was looked at once again, in vain.
    assert!(support::epoch(&rig.map) > epoch);
    assert_eq!(rig.coordinator.phase(), Phase::Active);
    rig.done.clear();
    rig.read(4, 0);
    let wid = Wid { generation: rig.map.volumes[&VOLUME].writer_gen, seq: 1 };
    let other = BlockWrite { row: row(1), slot: Slot(0), wid, record: bytes(9) };
    rig.feed(Event::Write { op: 5, blocks: vec![other] });
    rig.pass(1);
    let refused = Action::ReadDone { op: 4, result: Err(OpError::Unreadable) };
    assert!(rig.done.contains(&refused) && rig.done.contains(&written(5)), "{:?}", rig.done);
}
