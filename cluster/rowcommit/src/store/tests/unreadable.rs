//! Row slots whose metadata can not be read, and records that are lost.

use super::*;

#[test]
fn a_slot_that_can_not_tell_what_it_holds_undoes_what_is_newer() {
    for restarted in [false, true] {
        let mut rig = Rig::new(1);
        rig.ask(prep(1, Ver::NONE));
        rig.watermark(ver(1));
        rig.ask(prep(2, ver(1)));
        let undo = |than| Ask::AbortNewer { row: row(0), slot: Slot(0), than: ver(than) };
        // The pre-image rots, and nobody can be told what the slot holds.
        assert!(rig.disk.corrupt_meta(rig.at(0), ver(1)));
        if restarted {
            rig.restart(Time(20_000_000));
        }
        assert_eq!(rig.ask(undo(1)), Answer::Ok);
        assert_eq!(rig.marks(), [UNREADABLE.seq]);
        rig.watermark(ver(9));
        // Neither was 2 taken for committed, nor did 1 make room for it.
        assert!(rig.disk.versions(rig.at(0)).is_err());
        assert_eq!(rig.disk.meta(rig.at(0), ver(2)).expect("memory does not fail"), None);
        // Nothing is built on it, and whoever takes over is told, until it was restored.
        let Answer::Promised { prepared, .. } = rig.promise() else { panic!("no promise") };
        assert_eq!(prepared, [(row(0), Slot(0))]);
        assert_eq!(rig.ask(full(3)), Answer::Corrupt);
        assert_eq!(rig.ask(restore(4, Ver::NONE)), Answer::Ok);
        assert_eq!((rig.versions(0), rig.marks()), (vec![4], vec![]));
    }
}

#[test]
fn the_mark_of_a_slot_that_could_not_tell_stays_when_it_can_be_read_again() {
    let mut rig = Rig::new(1);
    rig.ask(prep(1, Ver::NONE));
    rig.watermark(ver(1));
    rig.ask(prep(2, ver(1)));
    // What was unreadable is what is undone: what is left may lack what the others have.
    assert!(rig.disk.corrupt_meta(rig.at(0), ver(2)));
    let undo = Ask::AbortNewer { row: row(0), slot: Slot(0), than: ver(1) };
    assert_eq!(rig.ask(undo.clone()), Answer::Ok);
    assert_eq!(rig.ask(undo), Answer::Ok);
    rig.watermark(ver(9));
    assert_eq!((rig.versions(0), rig.marks()), (vec![1], vec![UNREADABLE.seq]));
    assert_eq!(rig.ask(prep(10, ver(1))), Answer::Corrupt);
    let (versions, keep, expect) = (Vec::new(), vec![ver(1)], ver(1));
    let as_it_is = Ask::Restore { row: row(0), slot: Slot(0), versions, keep, expect };
    assert_eq!(rig.ask(as_it_is), Answer::Ok);
    assert_eq!((rig.versions(0), rig.marks()), (vec![1], vec![]));
    assert_eq!(rig.ask(prep(10, ver(1))), Answer::Ok);
}

#[test]
fn a_lost_record_never_verifies() {
    let mut rig = Rig::new(1);
    let (meta, _) = whole(3);
    let (versions, keep, expect) = (vec![(meta, Bytes::new())], Vec::new(), Ver::NONE);
    let lost = Ask::Restore { row: row(0), slot: Slot(0), versions, keep, expect };
    assert_eq!(rig.ask(lost), Answer::Ok);
    let fetch = |want| Ask::Fetch { row: row(0), slot: Slot(0), want };
    assert_eq!(rig.ask(fetch(Want::Head)), Answer::Corrupt);
    let Answer::Version { meta, .. } = rig.ask(fetch(Want::HeadMeta)) else { panic!("no meta") };
    assert_eq!(meta.ver, ver(3));
    // The next write is of the row as it is, and there again.
    assert_eq!(rig.ask(prep(4, ver(3))), Answer::Ok);
    assert!(matches!(rig.ask(fetch(Want::Head)), Answer::Version { .. }));
}

#[test]
fn what_can_not_be_read_is_undone_all_the_same() {
    let mut rig = Rig::new(1);
    rig.ask(prep(1, Ver::NONE));
    rig.watermark(ver(1));
    rig.ask(prep(2, ver(1)));
    // Taken from memory a moment ago; then that is gone, and the disk can not tell.
    assert!(rig.disk.corrupt_meta(rig.at(0), ver(1)));
    rig.core.rows.reload(rig.at(0));
    let abort = Ask::Abort { row: row(0), slot: Slot(0), ver: ver(2) };
    assert_eq!(rig.ask(abort.clone()), Answer::Ok);
    assert_eq!(rig.ask(abort), Answer::Ok);
    assert_eq!(rig.marks(), [UNREADABLE.seq]);
    rig.watermark(ver(9));
    assert_eq!(rig.disk.meta(rig.at(0), ver(2)).expect("memory does not fail"), None);
    // Of a version that it never took there is nothing to undo, and no mark.
    let mut rig = Rig::new(1);
    rig.ask(prep(1, Ver::NONE));
    rig.watermark(ver(1));
    assert!(rig.disk.corrupt_meta(rig.at(0), ver(1)));
    rig.core.rows.reload(rig.at(0));
    let abort = Ask::Abort { row: row(0), slot: Slot(0), ver: ver(2) };
    assert_eq!(rig.ask(abort), Answer::Ok);
    assert_eq!(rig.marks(), Vec::<u64>::new());
}
