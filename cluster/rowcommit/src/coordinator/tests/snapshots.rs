//! Making snapshots, reading them, and keeping them over losses.

use super::*;
use smalti_map::{Applied, Rejection};
use smalti_storage::store::{Batch, Change};

fn snapshot(rig: &mut Rig, op: u64, name: &str) {
    rig.feed(Event::Snapshot { op, name: name.into(), created: 7 });
}

fn made(op: u64, snap: u32) -> Action {
    Action::SnapshotDone { op, result: Ok(snap) }
}

fn refused(op: u64, why: OpError) -> Action {
    Action::SnapshotDone { op, result: Err(why) }
}

/// Made, with the map's consent.
fn make(rig: &mut Rig, op: u64, name: &str) {
    snapshot(rig, op, name);
    let commands = rig.settle();
    rig.accept(commands);
    rig.settle();
}

fn read_at(rig: &mut Rig, op: u64, slot: u8, snap: u32) {
    rig.read_at(op, (row(0), Slot(slot)), Some(snap));
    rig.settle();
}

fn was(op: u64, seq: u64) -> Action {
    let record = if seq == 0 { Bytes::new() } else { bytes(seq) };
    Action::ReadDone { op, result: Ok(vec![record]) }
}

fn write(rig: &mut Rig, op: u64, slot: u8, seq: u64) {
    rig.write(op, slot, seq);
    rig.settle();
    assert_eq!(rig.done.pop(), Some(written(op)));
}

#[test]
fn a_snapshot_holds_what_was_acknowledged_and_nothing_later() {
    let mut rig = Rig::active(2, 1);
    make(&mut rig, 1, "first");
    write(&mut rig, 2, 0, 1);
    make(&mut rig, 3, "second");
    write(&mut rig, 4, 0, 2);
    write(&mut rig, 5, 1, 3);
    write(&mut rig, 6, 0, 4);
    assert_eq!(rig.done, vec![made(1, 1), made(3, 2)]);
    rig.done.clear();
    for (op, slot, snap) in [(10, 0, 1), (11, 1, 1), (12, 0, 2), (13, 1, 2)] {
        read_at(&mut rig, op, slot, snap);
    }
    assert_eq!(rig.done, vec![was(10, 0), was(11, 0), was(12, 1), was(13, 0)]);
}

#[test]
fn nothing_is_issued_while_a_snapshot_is_made() {
    let mut rig = Rig::active(2, 1);
    // One update is under way: its data slot has not answered.
    rig.parties.get_mut(&store(1)).expect("there").hangs = true;
    rig.write(1, 0, 1);
    rig.settle();
    snapshot(&mut rig, 2, "s");
    assert_eq!(rig.settle(), vec![]);
    let later = BlockWrite { row: row(1), ..block(0, 2) };
    rig.feed(Event::Write { op: 3, blocks: vec![later] });
    assert!(rig.settle().is_empty() && rig.done.is_empty());
    // It is out: the update is acknowledged without it, and the snapshot proposed.
    rig.link_down(1);
    support::shrink(&mut rig.map, 1);
    rig.adopt();
    let proposed = rig.settle();
    assert_eq!(rig.done, vec![written(1)]);
    let is_snapshot = |command: &Command| matches!(command, Command::AddSnapshot { .. });
    assert!(proposed.iter().any(is_snapshot), "{proposed:?}");
    // Not before the epoch is over, whoever ended it: this one may still be accepted.
    rig.tick(100);
    rig.settle();
    assert_eq!(rig.done, vec![written(1)]);
    rig.accept(proposed.into_iter().filter(is_snapshot).collect());
    rig.settle();
    assert_eq!(rig.done, vec![written(1), made(2, 1), written(3)]);
    let at = RowSlot { volume: VOLUME, row: row(1), slot: Slot(2) };
    let head = rig.parties[&store(3)].disk.head(at).expect("memory").expect("written");
    assert_eq!(head.snap, 1);
}

#[test]
fn an_epoch_that_ends_otherwise_has_the_snapshot_proposed_anew() {
    let mut rig = Rig::active(2, 2);
    snapshot(&mut rig, 1, "s");
    let stale = rig.settle();
    rig.link_down(4);
    support::shrink(&mut rig.map, 4);
    rig.adopt();
    for command in stale {
        assert!(matches!(rig.map.apply(&command), Applied::Rejected(_)));
    }
    rig.tick(20);
    let commands = rig.settle();
    rig.accept(commands);
    rig.settle();
    assert_eq!(rig.done, vec![made(1, 1)]);
}

#[test]
fn a_name_is_used_once_and_what_can_not_be_made_is_given_up() {
    let mut rig = Rig::active(2, 1);
    make(&mut rig, 1, "s");
    snapshot(&mut rig, 2, "s");
    snapshot(&mut rig, 3, "t");
    snapshot(&mut rig, 4, "t");
    rig.settle();
    let twice = OpError::SnapshotRefused;
    assert_eq!(rig.done, vec![made(1, 1), refused(2, twice), refused(4, twice)]);
    rig.done.clear();
    // The map may know better.
    let epoch = support::epoch(&rig.map);
    let (name, created) = ("t".to_owned(), 7);
    let command = Command::AddSnapshot { volume: VOLUME, epoch, name, created };
    rig.feed(Event::Refused { command, why: Rejection::Invalid("no".into()) });
    rig.settle();
    assert_eq!(rig.done, vec![refused(3, twice)]);
    rig.done.clear();
    // An update that does not end, for the map does not hear that a store is to be taken out.
    rig.parties.get_mut(&store(1)).expect("there").hangs = true;
    rig.write(5, 0, 1);
    rig.settle();
    snapshot(&mut rig, 6, "u");
    rig.settle();
    for _ in 0..20 {
        rig.tick(100);
        rig.settle();
    }
    assert!(rig.done.contains(&refused(6, OpError::Busy)), "{:?}", rig.done);
}

#[test]
fn a_read_waits_for_the_map_and_ends_when_the_snapshot_is_deleted() {
    let mut rig = Rig::active(2, 1);
    write(&mut rig, 1, 0, 1);
    read_at(&mut rig, 2, 0, 1);
    assert!(rig.done.is_empty(), "its map does not tell of the snapshot yet");
    make(&mut rig, 3, "s");
    assert_eq!(rig.done, vec![made(3, 1), was(2, 1)]);
    rig.done.clear();
    support::accept(&mut rig.map, &Command::DropSnapshot { volume: VOLUME, snap: 1 });
    rig.adopt();
    read_at(&mut rig, 4, 0, 1);
    let none = Action::ReadDone { op: 4, result: Err(OpError::NoSnapshot) };
    assert_eq!(rig.done, vec![none]);
}

#[test]
fn a_store_that_comes_back_and_a_new_one_hold_all_snapshots() {
    for no in [1, 3] {
        let mut rig = Rig::active(2, 1);
        write(&mut rig, 1, 0, 1);
        rig.link_down(no);
        support::shrink(&mut rig.map, no);
        rig.adopt();
        rig.settle();
        make(&mut rig, 2, "s");
        write(&mut rig, 3, 0, 2);
        make(&mut rig, 4, "t");
        write(&mut rig, 5, 0, 3);
        if no == 3 {
            // With nothing on its disk.
            let disk = Arc::clone(&rig.parties[&store(no)].disk);
            let versions = |slot: Slot| RowSlot { volume: VOLUME, row: row(0), slot };
            let change = Change::DropSlot { at: versions(support::slot(no)) };
            disk.commit(Batch::durable(vec![change])).expect("memory does not fail");
            rig.crash_store(no, None);
            rig.adopt();
        }
        rig.link_up(no);
        listing::until_whole(&mut rig);
        let at = RowSlot { volume: VOLUME, row: row(0), slot: support::slot(no) };
        let held = rig.parties[&store(no)].disk.versions(at).expect("memory does not fail");
        assert_eq!(held.iter().map(|meta| meta.snap).collect::<Vec<_>>(), [2, 1, 0], "{no}");
        // Slot 0 of both snapshots, without the one store that held it all along.
        let other = if no == 1 { 3 } else { 1 };
        rig.link_down(other);
        support::shrink(&mut rig.map, other);
        rig.adopt();
        rig.done.clear();
        read_at(&mut rig, 6, 0, 1);
        read_at(&mut rig, 7, 0, 2);
        assert_eq!(rig.done, vec![was(6, 1), was(7, 2)], "{no}");
    }
}

#[test]
fn a_rotten_version_of_a_snapshot_is_decoded_told_and_mended() {
    let mut rig = Rig::active(2, 1);
    write(&mut rig, 1, 0, 1);
    make(&mut rig, 2, "s");
    write(&mut rig, 3, 0, 2);
    rig.done.clear();
    let at = RowSlot { volume: VOLUME, row: row(0), slot: Slot(0) };
    let disk = Arc::clone(&rig.parties[&store(1)].disk);
    let old = disk.versions(at).expect("memory does not fail")[1].clone();
    assert!(disk.corrupt_record(at, old.ver, 5));
    read_at(&mut rig, 4, 0, 1);
    let alarm = Action::Alarm(Alarm::Corrupt { row: row(0), slot: Slot(0) });
    assert_eq!(rig.done, vec![Action::Fault { store: store(1) }, alarm, was(4, 1)]);
    let record = disk.record(at, old.ver).expect("memory").expect("there");
    assert!(disk.meta(at, old.ver).expect("memory").expect("there").verifies(at, &record));
    assert_eq!(disk.versions(at).expect("memory does not fail").len(), 2);
}

#[test]
fn a_read_of_a_snapshot_that_nobody_made_ends() {
    let mut rig = Rig::active(2, 1);
    read_at(&mut rig, 1, 0, 9);
    rig.tick(100);
    rig.settle();
    assert!(rig.done.is_empty(), "the map may be on its way: {:?}", rig.done);
    for _ in 0..100 {
        rig.tick(100);
        rig.settle();
    }
    let none = Action::ReadDone { op: 1, result: Err(OpError::NoSnapshot) };
    assert_eq!(rig.done, vec![none]);
    assert!(rig.coordinator.is_quiet(), "{:?}", rig.coordinator);
}
