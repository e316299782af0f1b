//! What a store deletes of slots that are not its own.

use super::*;
use smalti_map::{Command, MoveSlot};

fn move_to(rig: &mut Rig, no: u64) {
    let moves = vec![MoveSlot { group: GroupNo(0), slot: Slot(0), store: store(no) }];
    support::accept(&mut rig.map, &Command::Move { volume: VOLUME, moves });
}

#[test]
fn what_came_before_the_map_told_of_a_move_goes_with_the_next_epoch() {
    // Slot 0 is store 1's, and is to be store 4's, whose map does not tell: it is of the same epoch.
    let mut rig = Rig::of(support::map_of(4, 2, 1), 4);
    let at = RowSlot { volume: VOLUME, row: row(0), slot: Slot(0) };
    let versions = |rig: &Rig| rig.disk.versions(at).expect("memory does not fail").len();
    assert_eq!(rig.ask(full(1)), Answer::Ok);
    assert_eq!(versions(&rig), 1);
    // A newer map of the same epoch tells that it is not: it may be from before the move.
    support::start_store(&mut rig.map, 2, 2, true);
    rig.adopt();
    rig.watermark(Ver::NONE);
    assert_eq!(versions(&rig), 1);
    // By the next one that it adopts the move has been taken back.
    move_to(&mut rig, 4);
    move_to(&mut rig, 1);
    rig.adopt();
    rig.watermark(Ver::NONE);
    assert_eq!((versions(&rig), rig.marks()), (0, vec![]));
}
