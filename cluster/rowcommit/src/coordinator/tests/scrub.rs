//! What a scrub finds, what it makes of it, and what it leaves alone.

use super::*;
use crate::coordinator::scrub::ScrubReport;
use smalti_storage::store::{Batch, Change};

/// Scrubs the group to its end; what it found.
fn scrub(rig: &mut Rig) -> ScrubReport {
    rig.feed(Event::Scrub { group: GroupNo(0) });
    for _ in 0..50 {
        rig.settle();
        let ended = rig.done.iter().position(|action| matches!(action, Action::Scrubbed { .. }));
        if let Some(ended) = ended
            && let Action::Scrubbed { group: GroupNo(0), report } = rig.done.remove(ended)
        {
            return report;
        }
        rig.tick(20);
    }
    panic!("no end: {:?} {}", rig.coordinator.scrub, rig.coordinator.describe());
}

fn written_twice(data: u8, parity: u8) -> Rig {
    let mut rig = Rig::active(data, parity);
    for seq in 1..=2 {
        rig.feed(Event::Write { op: seq, blocks: vec![block(0, seq), block(1, seq + 10)] });
        rig.settle();
    }
    rig.done.clear();
    rig
}

fn found(wrong: &[u64]) -> ScrubReport {
    ScrubReport {
        rows: 1,
        wrong: wrong.iter().map(|no| (store(*no), 1)).collect(),
        ..ScrubReport::default()
    }
}

/// What is on each slot, newest versions only: it verifies, and its vector is one that could be.
fn heads(rig: &Rig, slots: u64) -> Vec<(Ver, Option<Bytes>)> {
    let of = |no| {
        let (disk, slot) = (disk(rig, no), at(support::slot(no).0));
        let meta = disk.head(slot).expect("memory").expect("it is there");
        let record = disk.record(slot, meta.ver).expect("memory");
        assert!(meta.verifies(slot, record.as_deref().unwrap_or_default()), "{meta:?}");
        (meta.ver, record)
    };
    (1..=slots).map(of).collect()
}

/// Puts bytes into a record that verify and were never written.
fn miscode(rig: &Rig, no: u64) {
    let (disk, slot) = (disk(rig, no), at(support::slot(no).0));
    let meta = disk.head(slot).expect("memory").expect("it is there");
    let mut record = disk.record(slot, meta.ver).expect("memory").unwrap_or_default().to_vec();
    record.resize(RECORD_LEN, 0);
    record[5] ^= 64;
    let record = Bytes::from(record);
    let meta = VersionMeta { present: true, ..meta }.sealed_for(slot, &record);
    let change = Change::PutVersion { at: slot, meta, record, fresh: false };
    disk.commit(Batch::durable(vec![change])).expect("memory");
}

/// The store's process has nothing in memory of what it holds.
fn forget_memory(rig: &mut Rig, no: u64) {
    let disk = disk(rig, no);
    rig.start_store(no, disk);
    rig.adopt();
}

#[test]
fn what_is_right_is_left_alone() {
    let mut rig = written_twice(2, 1);
    let before = heads(&rig, 3);
    assert_eq!(scrub(&mut rig), found(&[]));
    assert_eq!((heads(&rig, 3), rig.coordinator.is_quiet()), (before, true));
    assert_eq!(rig.done, []);
}

#[test]
fn a_record_that_rots_is_made_anew_and_its_store_named() {
    for no in 1..=3 {
        let mut rig = written_twice(2, 1);
        let before = heads(&rig, 3);
        let (ver, _) = before[no as usize - 1];
        assert!(disk(&rig, no).corrupt_record(at(support::slot(no).0), ver, 7));
        assert_eq!(scrub(&mut rig), found(&[no]));
        assert!(rig.done.contains(&Action::Fault { store: store(no) }));
        assert_eq!(heads(&rig, 3), before);
        assert_eq!(scrub(&mut rig), found(&[]));
    }
}

#[test]
fn a_row_of_which_too_little_is_right_is_told_of_as_long_as_it_is_so() {
    let mut rig = written_twice(2, 1);
    let before = heads(&rig, 3);
    for no in [1, 3] {
        let (ver, _) = before[no as usize - 1];
        assert!(disk(&rig, no).corrupt_record(at(support::slot(no).0), ver, 7));
    }
    let known = |rig: &Rig| rig.coordinator.groups_beyond_repair().values().sum::<u64>();
    for _ in 0..2 {
        assert_eq!(scrub(&mut rig).unclear, 1);
        // What the scrub told of is known from then on, so that it is seen when it is right again.
        assert_eq!(known(&rig), 1);
    }
    // Whoever has a backup writes it back.
    rig.feed(Event::Write { op: 9, blocks: vec![block(0, 9), block(1, 19)] });
    rig.pass(400);
    assert_eq!(known(&rig), 0);
    assert_eq!((scrub(&mut rig).unclear, scrub(&mut rig)), (0, found(&[])));
}

#[test]
fn metadata_that_rots_are_made_anew() {
    for no in 1..=3 {
        let mut rig = written_twice(2, 1);
        let before = heads(&rig, 3);
        let (ver, _) = before[no as usize - 1];
        assert!(disk(&rig, no).corrupt_meta(at(support::slot(no).0), ver));
        assert_eq!(scrub(&mut rig), found(&[no]));
        assert_eq!(heads(&rig, 3), before);
        assert_eq!(scrub(&mut rig), found(&[]));
    }
}

/// Two of four slots lost the second write: neither the parity slot that is asked first nor what is
/// remembered of it is believed.
#[test]
fn a_write_that_disks_have_lost_comes_back() {
    for lost in [[1, 3], [2, 4], [3, 4], [1, 2]] {
        let mut rig = Rig::active(2, 2);
        rig.write(1, 0, 1);
        rig.feed(Event::Write { op: 2, blocks: vec![block(0, 2), block(1, 12)] });
        rig.settle();
        let before: Vec<_> = lost.iter().map(|no| disk(&rig, *no).fork()).collect();
        rig.feed(Event::Write { op: 3, blocks: vec![block(0, 3), block(1, 13)] });
        rig.settle();
        let right = heads(&rig, 4);
        rig.coordinator.cache.clear();
        for (no, before) in lost.iter().zip(&before) {
            disk(&rig, *no).roll_back(before);
            forget_memory(&mut rig, *no);
        }
        let report = scrub(&mut rig);
        assert_eq!(report.wrong, found(&lost).wrong, "{lost:?}");
        assert_eq!(heads(&rig, 4), right, "{lost:?}");
        assert_eq!(scrub(&mut rig), found(&[]), "{lost:?}");
    }
}

#[test]
fn bytes_that_verify_and_fit_no_other_are_found_where_two_parity_records_are() {
    for no in 1..=4 {
        let mut rig = written_twice(2, 2);
        let before = heads(&rig, 4);
        miscode(&rig, no);
        assert_eq!(scrub(&mut rig), found(&[no]));
        assert_eq!(heads(&rig, 4), before, "slot of store {no}");
        assert_eq!(scrub(&mut rig), found(&[]));
    }
}

#[test]
fn where_nobody_can_tell_which_record_is_wrong_none_is_touched() {
    for no in 1..=3 {
        let mut rig = written_twice(2, 1);
        miscode(&rig, no);
        let before = heads(&rig, 3);
        let report = scrub(&mut rig);
        assert_eq!(report, ScrubReport { rows: 1, unclear: 1, ..ScrubReport::default() });
        assert!(rig.done.contains(&Action::Alarm(Alarm::Unclear { row: row(0) })));
        assert_eq!(heads(&rig, 3), before);
    }
}

#[test]
fn a_row_that_changes_meanwhile_is_not_taken_for_wrong() {
    let mut rig = written_twice(2, 1);
    rig.parties.get_mut(&store(3)).expect("it is there").hangs = true;
    rig.write(5, 0, 5);
    // Its data slot has the new version, its parity slot has not.
    let asked = rig.coordinator.drain();
    assert!(!asked.is_empty());
    for action in asked {
        let Action::Send { store, frame } = action else { continue };
        if let Some(reply) = rig.deliver(store, frame) {
            rig.feed(Event::Reply { store, reply });
        }
    }
    rig.settle();
    assert!(rig.head(1).ver > rig.head(3).ver, "one has it and the other has not");
    rig.feed(Event::Scrub { group: GroupNo(0) });
    rig.settle();
    assert!(rig.coordinator.scrub.is_some(), "the row is to be looked at again");
    // A new session carries again what was not answered.
    rig.parties.get_mut(&store(3)).expect("it is there").hangs = false;
    rig.link_down(3);
    rig.link_up(3);
    rig.settle();
    let ended = rig.done.iter().find_map(|action| match action {
        Action::Scrubbed { report, .. } => Some(report.clone()),
        _ => None,
    });
    assert_eq!(ended, Some(found(&[])));
    assert_eq!(rig.head(1).ver, rig.head(3).ver);
}

#[test]
fn what_a_snapshot_holds_is_read_too() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    rig.settle();
    rig.feed(Event::Snapshot { op: 2, name: "s".into(), created: 0 });
    rig.pass(1);
    rig.write(3, 0, 3);
    rig.settle();
    rig.tick(100);
    rig.settle();
    let versions = disk(&rig, 3).versions(at(2)).expect("memory");
    assert_eq!(versions.len(), 2, "{versions:?}");
    assert!(disk(&rig, 3).corrupt_record(at(2), versions[1].ver, 9));
    assert_eq!(scrub(&mut rig), found(&[3]));
    assert_eq!(scrub(&mut rig), found(&[]));
}

#[test]
fn a_store_that_leaves_meanwhile_does_not_hold_it_up() {
    let mut rig = written_twice(2, 1);
    rig.deafen(3, true);
    rig.feed(Event::Scrub { group: GroupNo(0) });
    rig.settle();
    rig.link_down(3);
    support::shrink(&mut rig.map, 3);
    rig.adopt();
    let (ver, _) = heads(&rig, 1)[0];
    assert!(disk(&rig, 1).corrupt_record(at(0), ver, 3));
    let report = loop {
        rig.settle();
        let ended = rig.done.iter().find_map(|action| match action {
            Action::Scrubbed { report, .. } => Some(report.clone()),
            _ => None,
        });
        if let Some(report) = ended {
            break report;
        }
        rig.tick(20);
        assert!(rig.now < Time(60_000_000), "{}", rig.coordinator.describe());
    };
    // Nothing can be made of it: that is counted, and the record is left.
    assert_eq!(report.wrong, found(&[1]).wrong);
    assert_eq!(rig.coordinator.stats().corrupt_records, 1);
}

/// However often it is read.
#[test]
fn a_record_that_can_not_be_repaired_is_one_fault() {
    let mut rig = written_twice(2, 1);
    let before = heads(&rig, 3);
    for no in [1, 3] {
        let (ver, _) = before[no as usize - 1];
        assert!(disk(&rig, no).corrupt_record(at(support::slot(no).0), ver, 7));
    }
    for op in 10..15 {
        rig.read(op, 0);
        rig.pass(1);
        assert!(rig.done.iter().any(|action| {
            matches!(action, Action::ReadDone { op: of, result: Err(_) } if *of == op)
        }));
    }
    let faults = |no| {
        let of = Action::Fault { store: store(no) };
        rig.done.iter().filter(|action| **action == of).count()
    };
    assert_eq!((faults(1), faults(2), faults(3)), (1, 0, 1), "{:?}", rig.done);
}
