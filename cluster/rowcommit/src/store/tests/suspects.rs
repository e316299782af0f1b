//! What a store says of itself, and believes, between a crash and its comparison with others.

use super::*;

fn crash(rig: &mut Rig, at: u64) {
    rig.restart(Time(at));
    // Leases of before have run out.
    rig.now = Time(at + 10_000_000);
}

/// What it tells a coordinator: the watermark, and whether it is in doubt.
fn promised(rig: &mut Rig) -> (Ver, bool) {
    match rig.ask(Ask::Promise) {
        Answer::Promised { watermark, suspect, .. } => (watermark, suspect),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_it_came_up_with_waits_for_the_comparison() {
    let mut rig = Rig::new(1);
    rig.ask(prep(1, Ver::NONE));
    rig.watermark(ver(1));
    rig.ask(prep(2, ver(1)));
    let other = |seq, base| match prep(seq, base) {
        Ask::PrepData { slot, update, base, wid, record, .. } => {
            Ask::PrepData { row: row(1), slot, update, base, wid, record }
        }
        other => other,
    };
    crash(&mut rig, 20_000_000);
    assert_eq!(promised(&mut rig), (ver(1), true));
    // 2 may have been undone on all others. What it takes now is decided as ever.
    assert_eq!(rig.ask(other(3, Ver::NONE)), Answer::Ok);
    rig.watermark(ver(5));
    assert_eq!((rig.marks(), rig.versions(0)), (vec![2], vec![2, 1]));
    assert_eq!(promised(&mut rig), (ver(1), true));
    // Of several crashes it is the first one that counts.
    crash(&mut rig, 40_000_000);
    assert_eq!(promised(&mut rig), (ver(1), true));
    // What is built on is committed, and not in doubt any more.
    assert_eq!(rig.ask(prep(6, ver(2))), Answer::Ok);
    rig.watermark(ver(7));
    assert_eq!((rig.marks(), rig.versions(0)), (vec![], vec![6]));
    let incarnation = rig.disk.opened().incarnation;
    rig.ask(Ask::Vetted { incarnation });
    assert_eq!(promised(&mut rig), (ver(7), false));
}

#[test]
fn once_compared_it_commits_what_the_frame_tells_it() {
    let mut rig = Rig::new(1);
    rig.ask(prep(1, Ver::NONE));
    crash(&mut rig, 20_000_000);
    let incarnation = rig.disk.opened().incarnation;
    let frame = rig.frame(ver(4), vec![Ask::Vetted { incarnation }]);
    assert_eq!(rig.send(1, frame), Some(vec![Answer::Ok]));
    assert_eq!((rig.marks(), rig.versions(0)), (vec![], vec![1]));
}

#[test]
fn one_that_never_heard_of_its_volumes_was_not_compared() {
    let mut rig = Rig::new(1);
    rig.ask(prep(1, Ver::NONE));
    rig.disk.restart(Restart::default());
    let core = StoreCore::new(Arc::clone(&rig.disk) as _, StoreConfig::default(), Time(0));
    assert!(!core.is_vetted());
    rig.disk.restart(Restart { clean: true, ..Restart::default() });
    let core = StoreCore::new(Arc::clone(&rig.disk) as _, StoreConfig::default(), Time(0));
    assert!(core.is_vetted(), "it ended in order before");
}

#[test]
fn before_it_promises_a_store_that_crashed_takes_no_update() {
    let mut rig = Rig::new(3);
    rig.ask(delta(1, Ver::NONE, 5));
    rig.watermark(ver(1));
    rig.ask(delta(2, ver(1), 6));
    crash(&mut rig, 20_000_000);
    // 2 may be what the others have undone: nothing may cover it, or it would pass for committed.
    let stale = Answer::Rejected(Reject::StaleEpoch { known: Epoch(2) });
    let other = || match delta(3, Ver::NONE, 7) {
        Ask::PrepDelta { row, slot, update, delta, fingerprint, .. } => {
            let changed = vec![Changed { slot: Slot(1), base: Ver::NONE, wid: wid(3) }];
            Ask::PrepDelta { row, slot, update, changed, delta, fingerprint }
        }
        other => other,
    };
    assert_eq!(rig.ask(other()), stale);
    assert_eq!((rig.marks(), rig.versions(0)), (vec![2], vec![2, 1]));
    promised(&mut rig);
    assert_eq!(rig.ask(other()), Answer::Ok);
    // One that is out of sync is compared as a whole before anybody counts on it.
    crash(&mut rig, 40_000_000);
    assert_eq!(rig.ask(delta(4, ver(2), 1)), stale);
    support::shrink(&mut rig.map, 3);
    rig.adopt();
    assert_eq!(rig.ask(delta(4, ver(2), 1)), Answer::Ok);
}

#[test]
fn a_volume_of_which_it_holds_nothing_needs_no_comparison() {
    // Volume 1 is on the stores 1 to 3.
    let mut rig = Rig::of(support::map_of(4, 2, 1), 4);
    crash(&mut rig, 20_000_000);
    assert!(rig.core.is_vetted());
    let mut rig = Rig::of(support::map_of(4, 2, 1), 1);
    crash(&mut rig, 20_000_000);
    assert!(!rig.core.is_vetted());
}

#[test]
fn what_is_undecided_of_a_lost_row_is_out_of_reach_of_watermarks() {
    let mut rig = Rig::new(1);
    let freeze = |frozen| Ask::Freeze { row: row(0), slot: Slot(0), frozen };
    // Nothing is undecided: nothing to hold on to.
    assert_eq!(rig.ask(freeze(true)), Answer::Ok);
    assert_eq!(rig.marks(), []);
    rig.ask(prep(1, Ver::NONE));
    rig.watermark(ver(1));
    rig.ask(prep(2, ver(1)));
    assert_eq!(rig.ask(freeze(true)), Answer::Ok);
    rig.watermark(ver(5));
    assert_eq!((rig.versions(0), rig.marks()), (vec![2, 1], vec![FROZEN.seq]));
    crash(&mut rig, 20_000_000);
    promised(&mut rig);
    rig.watermark(ver(6));
    assert_eq!((rig.versions(0), rig.marks()), (vec![2, 1], vec![FROZEN.seq]));
    // A takeover that can decide it undoes the version, or leaves it to the next watermark.
    let back = rig.disk.fork();
    let abort = Ask::Abort { row: row(0), slot: Slot(0), ver: ver(2) };
    assert_eq!(rig.ask(abort), Answer::Ok);
    assert_eq!((rig.versions(0), rig.marks()), (vec![1], vec![]));
    rig.disk.roll_back(&back);
    crash(&mut rig, 40_000_000);
    promised(&mut rig);
    assert_eq!(rig.ask(freeze(false)), Answer::Ok);
    assert_eq!((rig.versions(0), rig.marks()), (vec![2, 1], vec![2]));
    let incarnation = rig.disk.opened().incarnation;
    rig.ask(Ask::Vetted { incarnation });
    rig.watermark(ver(7));
    assert_eq!((rig.versions(0), rig.marks()), (vec![2], vec![]));
}
