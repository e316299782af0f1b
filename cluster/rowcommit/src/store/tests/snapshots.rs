//! What a store keeps for snapshots, and when it lets go of it.

use super::*;
use crate::msg::Want;
use smalti_map::Command;

fn snapshot(rig: &mut Rig) {
    let name = format!("s{}", rig.map.volumes[&VOLUME].snap_seq);
    let epoch = support::epoch(&rig.map);
    let command = Command::AddSnapshot { volume: VOLUME, epoch, name, created: 0 };
    support::accept(&mut rig.map, &command);
    rig.adopt();
}

fn drop_snapshot(rig: &mut Rig, snap: u32) {
    support::accept(&mut rig.map, &Command::DropSnapshot { volume: VOLUME, snap });
    rig.adopt();
}

fn write(rig: &mut Rig, seq: u64) {
    let snap = rig.map.volumes[&VOLUME].snap_seq;
    let base = Ver { seq: seq - 1, ..ver(0) };
    let base = if seq == 1 { Ver::NONE } else { base };
    let update = Update { snap, ..update(seq) };
    let (wid, record) = (wid(seq), bytes(seq as u8));
    let ask = Ask::PrepData { row: row(0), slot: Slot(0), update, base, wid, record };
    assert_eq!(rig.ask(ask), Answer::Ok);
    rig.watermark(ver(seq));
}

fn held(rig: &mut Rig, snap: u32) -> Answer {
    rig.ask(Ask::Fetch { row: row(0), slot: Slot(0), want: Want::Held(snap) })
}

fn holds(rig: &mut Rig, snap: u32) -> u64 {
    match held(rig, snap) {
        Answer::Version { meta, record } => {
            assert_eq!(record, bytes(meta.ver.seq as u8));
            meta.ver.seq
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_version_stays_as_long_as_a_snapshot_holds_it() {
    let mut rig = Rig::new(1);
    snapshot(&mut rig);
    assert_eq!(held(&mut rig, 1), Answer::Missing, "nothing was written before it");
    write(&mut rig, 1);
    write(&mut rig, 2);
    assert_eq!((held(&mut rig, 1), rig.versions(0)), (Answer::Missing, vec![2]));
    snapshot(&mut rig);
    snapshot(&mut rig);
    write(&mut rig, 3);
    write(&mut rig, 4);
    assert_eq!(rig.versions(0), [4, 2]);
    assert_eq!((holds(&mut rig, 2), holds(&mut rig, 3)), (2, 2));
    snapshot(&mut rig);
    write(&mut rig, 5);
    assert_eq!(rig.versions(0), [5, 4, 2]);
    assert_eq!((holds(&mut rig, 3), holds(&mut rig, 4)), (2, 4));
    // One of the two that hold 2, then the other.
    drop_snapshot(&mut rig, 3);
    rig.watermark(ver(5));
    rig.watermark(ver(5));
    assert_eq!(rig.versions(0), [5, 4, 2]);
    drop_snapshot(&mut rig, 2);
    for _ in 0..4 {
        rig.watermark(ver(5));
    }
    assert_eq!(rig.versions(0), [5, 4]);
    assert_eq!(holds(&mut rig, 4), 4);
    assert_eq!(rig.disk.volume(VOLUME).expect("memory does not fail").collected, 2);
}

#[test]
fn a_pass_goes_on_after_a_restart_and_lets_go_of_what_was_undecided_meanwhile() {
    let mut rig = Rig::new(1);
    write(&mut rig, 1);
    snapshot(&mut rig);
    write(&mut rig, 2);
    let update = Update { snap: 1, ..update(3) };
    let (wid, record) = (wid(3), bytes(3));
    let ask = Ask::PrepData { row: row(0), slot: Slot(0), update, base: ver(2), wid, record };
    assert_eq!(rig.ask(ask), Answer::Ok);
    drop_snapshot(&mut rig, 1);
    rig.restart(Time(20_000_000));
    for _ in 0..4 {
        rig.watermark(Ver::NONE);
    }
    assert_eq!(rig.disk.volume(VOLUME).expect("memory does not fail").collected, 1);
    assert_eq!(rig.versions(0), [3, 2, 1]);
    assert_eq!(rig.ask(Ask::Abort { row: row(0), slot: Slot(0), ver: ver(3) }), Answer::Ok);
    assert_eq!(rig.versions(0), [2]);
}

#[test]
fn a_repair_puts_all_states_of_a_slot_right_in_one_step() {
    let mut rig = Rig::new(1);
    write(&mut rig, 1);
    snapshot(&mut rig);
    write(&mut rig, 2);
    snapshot(&mut rig);
    // Stamps: 1 has 0, 3 has 1, 4 has 2.
    let stamped = |(seq, snap): (u64, u32)| {
        let (meta, record) = whole(seq);
        (VersionMeta { snap, ..meta }, record)
    };
    let restore = |versions: Vec<(u64, u32)>, keep: Vec<u64>, expect| {
        let versions = versions.into_iter().map(stamped).collect();
        let keep = keep.into_iter().map(ver).collect();
        Ask::Restore { row: row(0), slot: Slot(0), versions, keep, expect: ver(expect) }
    };
    assert_eq!(rig.ask(restore(vec![(4, 2)], vec![1], 1)), base(ver(2)), "not what was looked at");
    assert_eq!(rig.ask(restore(vec![(4, 2)], vec![3], 2)), base(ver(2)), "3 is not there");
    assert_eq!(rig.versions(0), [2, 1]);
    assert_eq!(rig.ask(restore(vec![(3, 1), (4, 2)], vec![1], 2)), Answer::Ok);
    assert_eq!(rig.versions(0), [4, 3, 1]);
    // What is there and does not verify is put again.
    assert!(rig.disk.corrupt_record(rig.at(0), ver(3), 1));
    assert_eq!(rig.ask(restore(vec![(3, 1)], vec![4, 1], 4)), Answer::Ok);
    assert_eq!(rig.versions(0), [4, 3, 1]);
    assert_eq!(rig.disk.record(rig.at(0), ver(3)).expect("memory"), Some(bytes(3)));
    // One that comes late, for a snapshot that was deleted meanwhile.
    drop_snapshot(&mut rig, 1);
    assert_eq!(rig.ask(restore(vec![(1, 0)], vec![4, 3], 4)), Answer::Ok);
    assert_eq!(rig.versions(0), [4, 3]);
}

#[test]
fn readers_of_a_deleted_snapshot_are_not_answered() {
    let mut rig = Rig::new(1);
    write(&mut rig, 1);
    snapshot(&mut rig);
    write(&mut rig, 2);
    let want = Want::Held(1);
    let frame = rig.frame(Ver::NONE, vec![Ask::Fetch { row: row(0), slot: Slot(0), want }]);
    let reader = ReadSide::new(Arc::clone(&rig.disk) as _, rig.core.fence());
    let before = reader.handle(NodeId(1), &frame).expect("memory does not fail");
    assert!(matches!(before.answers[0].1, Answer::Version { .. }));
    drop_snapshot(&mut rig, 1);
    let after = reader.handle(NodeId(1), &frame).expect("memory does not fail");
    assert!(matches!(after.answers[0].1, Answer::Rejected(Reject::StaleEpoch { .. })));
}
