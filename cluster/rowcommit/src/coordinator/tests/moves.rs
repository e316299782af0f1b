//! Slots that move to another store.

use super::*;
use smalti_map::MoveSlot;
use smalti_storage::store::Change;

/// 2+1 on stores 1 to 3 of four, with two rows written. Slot 0 is to move to store 4.
fn about_to_move() -> Rig {
    let mut rig = Rig::of(support::map_of(4, 2, 1)).activated();
    rig.write(1, 0, 1);
    rig.feed(Event::Write { op: 2, blocks: vec![BlockWrite { row: row(1), ..block(1, 1) }] });
    rig.settle();
    rig.done.clear();
    let moves = vec![MoveSlot { group: GroupNo(0), slot: Slot(0), store: store(4) }];
    rig.accept(vec![Command::Move { volume: VOLUME, moves }]);
    rig
}

/// Carries frames and replies but for those that are held; those are answered.
fn settle_but(rig: &mut Rig, held: impl Fn(StoreId, &Ask) -> bool) -> Vec<(StoreId, Frame)> {
    let mut kept = Vec::new();
    loop {
        let actions = rig.coordinator.drain();
        if actions.is_empty() {
            return kept;
        }
        for action in actions {
            match action {
                Action::Send { store, frame } => {
                    if frame.requests.iter().any(|request| held(store, &request.ask)) {
                        kept.push((store, frame));
                    } else {
                        deliver(rig, (store, frame));
                    }
                }
                Action::Propose(command) => panic!("{command:?}"),
                other => rig.done.push(other),
            }
        }
    }
}

fn deliver(rig: &mut Rig, (store, frame): (StoreId, Frame)) {
    let reply = rig.deliver(store, frame).expect("it hears");
    rig.feed(Event::Reply { store, reply });
}

/// Goes on until the growth is proposed.
fn until_growth(rig: &mut Rig) -> Vec<Command> {
    for _ in 0..50 {
        rig.tick(20);
        let commands = rig.settle();
        if commands.iter().any(|command| matches!(command, Command::Grow { .. })) {
            return commands;
        }
        rig.accept(commands);
    }
    panic!("nothing grows: {}", rig.coordinator.describe());
}

fn group(rig: &Rig) -> &smalti_map::Group {
    &rig.map.volumes[&VOLUME].groups[0]
}

fn held(rig: &Rig, no: u64) -> usize {
    let disk = &rig.parties[&store(no)].disk;
    disk.scan(VOLUME, GroupNo(0), None, 100).expect("memory does not fail").len()
}

fn head_of(rig: &Rig, no: u64, slot: u8) -> VersionMeta {
    let at = RowSlot { volume: VOLUME, row: row(0), slot: Slot(slot) };
    rig.parties[&store(no)].disk.head(at).expect("memory does not fail").unwrap_or_default()
}

#[test]
fn a_slot_moves_while_all_stay_in_sync() {
    let mut rig = about_to_move();
    let grow = until_growth(&mut rig);
    assert_eq!(group(&rig).insync.len(), 3);
    assert_eq!(head_of(&rig, 4, 0), head_of(&rig, 1, 0));
    rig.accept(grow);
    assert_eq!(group(&rig).slots[0], store(4));
    assert_eq!(held(&rig, 1), 1, "kept until nothing is missing");
    rig.write(3, 0, 2);
    rig.read(4, 0);
    for _ in 0..10 {
        rig.tick(20);
        let commands = rig.settle();
        rig.accept(commands);
    }
    rig.settle();
    let read = Action::ReadDone { op: 4, result: Ok(vec![bytes(2)]) };
    assert_eq!(rig.done, vec![written(3), read]);
    assert_eq!(head_of(&rig, 4, 0).wid, wid(2));
    assert!(group(&rig).old_holders.is_empty());
    assert_eq!(held(&rig, 1), 0);
}

/// What waits to be put right may have its last good copy with who held the slot before.
#[test]
fn who_held_the_slot_keeps_it_while_something_is_wrong() {
    let mut rig = about_to_move();
    rig.deafen(3, true);
    rig.link_down(3);
    let epoch = rig.map.volumes[&VOLUME].epoch;
    let stores = vec![store(3)];
    rig.accept(vec![Command::Shrink { volume: VOLUME, epoch, stores, to_data: false }]);
    let grow = until_growth(&mut rig);
    rig.accept(grow);
    rig.pass(2);
    assert_eq!((group(&rig).slots[0], held(&rig, 1)), (store(4), 1));
    // It rots on its new store, and what it could be made from on another one.
    let of = |slot| RowSlot { volume: VOLUME, row: row(0), slot: Slot(slot) };
    assert!(disk(&rig, 4).corrupt_record(of(0), head_of(&rig, 4, 0).ver, 7));
    rig.read(4, 0);
    rig.pass(1);
    assert!(disk(&rig, 3).corrupt_record(of(2), head_of(&rig, 3, 2).ver, 7));
    rig.deafen(3, false);
    rig.link_up(3);
    rig.pass(60);
    assert_eq!((group(&rig).insync.len(), held(&rig, 1)), (3, 1));
    // A client writes it again.
    rig.feed(Event::Write { op: 5, blocks: vec![block(0, 5), block(1, 15)] });
    rig.pass(600);
    assert_eq!(held(&rig, 1), 0);
}

#[test]
fn both_stores_have_to_hold_a_write_once_the_growth_is_proposed() {
    for deaf in [1, 4] {
        let mut rig = about_to_move();
        until_growth(&mut rig);
        rig.parties.get_mut(&store(deaf)).expect("there").deaf = true;
        rig.write(3, 0, 2);
        rig.settle();
        assert_eq!(rig.done, vec![], "store {deaf} has not answered");
        rig.parties.get_mut(&store(deaf)).expect("there").deaf = false;
        rig.link_down(deaf);
        rig.link_up(deaf);
        rig.settle();
        assert_eq!(rig.done, vec![written(3)]);
    }
}

#[test]
fn a_lease_of_one_of_both_is_none() {
    let mut rig = about_to_move();
    until_growth(&mut rig);
    for no in [1, 2, 3] {
        rig.parties.get_mut(&store(no)).expect("there").deaf = no == 1;
    }
    // Slots 1 and 2 alone are two of three; with slot 0 in doubt they still are enough.
    rig.now = rig.now.after(Duration::from_secs(2));
    rig.tick(0);
    rig.settle();
    assert!(rig.coordinator.lease_ok(GroupNo(0)));
    rig.parties.get_mut(&store(2)).expect("there").deaf = true;
    rig.now = rig.now.after(Duration::from_secs(2));
    rig.tick(0);
    rig.settle();
    assert!(!rig.coordinator.lease_ok(GroupNo(0)), "store 4 has given one, store 1 has not");
}

#[test]
fn before_that_a_silent_newcomer_holds_nothing_up() {
    let mut rig = about_to_move();
    let learn = rig.settle();
    assert!(matches!(learn[..], [Command::AddLearners { .. }]), "{learn:?}");
    rig.parties.get_mut(&store(4)).expect("there").deaf = true;
    rig.accept(learn);
    rig.write(3, 0, 2);
    rig.settle();
    assert_eq!(rig.done, vec![written(3)]);
}

/// Two updates of a row that the pages of the walk do not show. The newcomer refuses the second one, for it
/// has not taken the first one yet.
#[test]
fn what_a_newcomer_refuses_while_pages_are_read_is_behind() {
    let mut rig = about_to_move();
    let learn = rig.settle();
    rig.accept(learn);
    let pages = until_page(&mut rig);
    // One that takes its time: the watermark stands still meanwhile.
    write(&mut rig, 10, 1, 1);
    let slow = settle_but(&mut rig, |of, ask| of == store(3) && !ask.is_read());
    write(&mut rig, 11, 2, 0);
    let first = settle_but(&mut rig, |of, ask| of == store(4) && !ask.is_read());
    assert_eq!((slow.len(), first.len()), (1, 1));
    write(&mut rig, 12, 2, 0);
    assert!(settle_but(&mut rig, |_, _| false).is_empty());
    assert_eq!(rig.done, vec![written(11), written(12)]);
    for frames in [pages, first, slow] {
        frames.into_iter().for_each(|frame| deliver(&mut rig, frame));
    }
    assert_grows_level(&mut rig, 12);
}

/// The same where it refuses before the pages are asked for. Both show the first update then: the other store
/// has yet to take the second one.
#[test]
fn what_is_under_way_when_pages_are_asked_for_is_behind() {
    let mut rig = about_to_move();
    let learn = rig.settle();
    let opens = |of, ask: &Ask| of == store(4) && matches!(ask, Ask::Nop);
    learn.iter().for_each(|command| support::accept(&mut rig.map, command));
    rig.adopt();
    let opened = settle_but(&mut rig, opens);
    assert_eq!(opened.len(), 1);
    write(&mut rig, 10, 1, 1);
    let slow = settle_but(&mut rig, |of, ask| of == store(3) && !ask.is_read());
    write(&mut rig, 11, 2, 0);
    let first = settle_but(&mut rig, |of, ask| of == store(4) && !ask.is_read());
    write(&mut rig, 12, 2, 0);
    let second = settle_but(&mut rig, |of, ask| of != store(4) && !ask.is_read());
    assert_eq!((first.len(), second.len()), (1, 2));
    opened.into_iter().for_each(|frame| deliver(&mut rig, frame));
    let pages = until_page(&mut rig);
    for frames in [first, second, pages, slow] {
        frames.into_iter().for_each(|frame| deliver(&mut rig, frame));
    }
    assert_grows_level(&mut rig, 12);
}

fn write(rig: &mut Rig, op: u64, no: u32, slot: u8) {
    let blocks = vec![BlockWrite { row: row(no), ..block(slot, op) }];
    rig.feed(Event::Write { op, blocks });
}

/// Goes on until the newcomer is asked for its page; the other one has answered by then.
fn until_page(rig: &mut Rig) -> Vec<(StoreId, Frame)> {
    for _ in 0..50 {
        let scan = |of, ask: &Ask| of == store(4) && matches!(ask, Ask::Scan { .. });
        let pages = settle_but(rig, scan);
        if !pages.is_empty() {
            return pages;
        }
        rig.tick(20);
    }
    panic!("no page is asked for: {}", rig.coordinator.describe());
}

/// The slot grows in, and has the row as the write of that number left it.
fn assert_grows_level(rig: &mut Rig, seq: u64) {
    let grow = until_growth(rig);
    rig.accept(grow);
    let at = RowSlot { volume: VOLUME, row: row(2), slot: Slot(0) };
    let head = |no| disk(rig, no).head(at).expect("memory does not fail").expect("there").wid;
    assert_eq!((head(4), head(1)), (wid(seq), wid(seq)));
}

#[test]
fn a_move_under_way_can_be_paused() {
    let mut rig = about_to_move();
    let learn = rig.settle();
    rig.accept(learn);
    rig.accept(vec![Command::PauseMoves(true)]);
    rig.pass(5);
    assert_eq!((head_of(&rig, 4, 0), group(&rig).slots[0]), (VersionMeta::default(), store(1)));
    // One that comes back to its own slot is no move.
    let shrink = Command::Shrink {
        volume: VOLUME,
        epoch: rig.map.volumes[&VOLUME].epoch,
        stores: vec![store(3)],
        to_data: false,
    };
    rig.accept(vec![shrink]);
    rig.write(3, 0, 2);
    rig.pass(5);
    assert_eq!((group(&rig).insync.len(), head_of(&rig, 4, 0)), (3, VersionMeta::default()));
    rig.accept(vec![Command::PauseMoves(false)]);
    let grow = until_growth(&mut rig);
    rig.accept(grow);
    assert_eq!((head_of(&rig, 4, 0).wid, group(&rig).slots[0]), (wid(2), store(4)));
}

/// The one that holds the slot dies and comes back: while the other one is a learner it can not be, so that
/// one is not held back any more.
#[test]
fn a_paused_move_keeps_nobody_from_coming_back() {
    let mut rig = about_to_move();
    let learn = rig.settle();
    rig.accept(learn);
    rig.accept(vec![Command::PauseMoves(true)]);
    rig.deafen(1, true);
    rig.link_down(1);
    let epoch = rig.map.volumes[&VOLUME].epoch;
    let stores = vec![store(1)];
    rig.accept(vec![Command::Shrink { volume: VOLUME, epoch, stores, to_data: false }]);
    rig.write(3, 0, 2);
    rig.pass(3);
    assert_eq!(rig.done, vec![written(3)]);
    assert_eq!((group(&rig).insync.len(), group(&rig).slots[0]), (2, store(1)), "paused");
    rig.deafen(1, false);
    rig.link_up(1);
    rig.pass(5);
    assert_eq!((group(&rig).insync.len(), group(&rig).slots[0]), (3, store(4)));
    assert_eq!(head_of(&rig, 4, 0).wid, wid(2));
}

#[test]
fn a_store_gives_nothing_up_by_a_map_from_before_its_start() {
    let mut rig = about_to_move();
    let before = rig.map.clone();
    let grow = until_growth(&mut rig);
    rig.accept(grow);
    assert_eq!(held(&rig, 4), 1);
    // Store 4 starts again, with a map in which it holds nothing, nor is to.
    let mut old = before;
    let back = vec![MoveSlot { group: GroupNo(0), slot: Slot(0), store: store(1) }];
    support::accept(&mut old, &Command::Move { volume: VOLUME, moves: back });
    let disk = Arc::clone(&rig.parties[&store(4)].disk);
    let opened = disk.restart(Restart::default());
    rig.start_store(4, disk);
    let party = rig.parties.get_mut(&store(4)).expect("there");
    party.core.set_map(&old).expect("memory does not fail");
    let (batch, _) = party.core.take_batch();
    // Nothing but that it is in doubt.
    let noted = |change: &Change| matches!(change, Change::SetVolume { .. });
    assert!(batch.changes.iter().all(noted), "{batch:?}");
    support::start_store(&mut rig.map, 4, opened.incarnation.0, false);
    rig.adopt();
    assert_eq!(held(&rig, 4), 1);
}

/// 2+1 on stores 1 to 3, with two rows written; the record that slot 0 has of row 0 rots, store 3 is lost and
/// its slot is to be store 4's.
fn a_record_rots_while_a_slot_is_lost(replaced: bool) -> Rig {
    let mut rig = about_to_be_lost();
    rig.link_down(3);
    support::shrink(&mut rig.map, 3);
    if replaced {
        let node = rig.map.node_of(store(3)).expect("it has one");
        rig.map.stores.get_mut(&store(4)).expect("it is registered").node = node;
    }
    rig.adopt();
    rig.settle();
    assert!(disk(&rig, 1).corrupt_record(at(0), rig.head(1).ver, 3));
    let moves = vec![MoveSlot { group: GroupNo(0), slot: Slot(2), store: store(4) }];
    rig.accept(vec![Command::Move { volume: VOLUME, moves }]);
    rig.pass(20);
    rig
}

fn about_to_be_lost() -> Rig {
    let mut rig = Rig::of(support::map_of(4, 2, 1)).activated();
    rig.write(1, 0, 1);
    rig.feed(Event::Write { op: 2, blocks: vec![BlockWrite { row: row(1), ..block(1, 1) }] });
    rig.settle();
    rig.done.clear();
    rig
}

#[test]
fn what_a_replaced_disk_alone_had_keeps_its_slot_from_nothing() {
    let mut rig = a_record_rots_while_a_slot_is_lost(true);
    let group = group(&rig);
    assert_eq!(group.slots[2], store(4), "{}", rig.coordinator.describe());
    assert_eq!(group.insync.len(), 3);
    // Whoever coordinates next knows that much, and lets nobody delete what he may have of it.
    assert_eq!(rig.map.volumes[&VOLUME].scrubs.groups[&GroupNo(0)].unclear, 1);
    // What is lost is told, and all else is there, also without another one.
    rig.read(5, 0);
    rig.pass(7);
    assert_eq!(rig.coordinator.stats().rows_lost, 1);
    let lost = Action::ReadDone { op: 5, result: Err(OpError::Unreadable) };
    assert!(rig.done.contains(&lost), "{:?}", rig.done);
    rig.link_down(2);
    support::shrink(&mut rig.map, 2);
    rig.adopt();
    rig.read_at(6, (row(1), Slot(1)), None);
    rig.pass(1);
    assert!(rig.done.contains(&Action::ReadDone { op: 6, result: Ok(vec![bytes(1)]) }));
}

/// Who is only away may have what is lost otherwise.
#[test]
fn what_a_store_that_is_away_may_have_is_waited_for_and_keeps_no_other_slot() {
    let mut rig = a_record_rots_while_a_slot_is_lost(false);
    assert_eq!(group(&rig).slots[2], store(3), "{}", rig.coordinator.describe());
    assert_eq!(rig.coordinator.stats().stuck, 1);
    rig.adopt();
    rig.link_up(3);
    rig.pass(20);
    assert_eq!(group(&rig).insync.len(), 3, "{}", rig.coordinator.describe());
    rig.read(5, 0);
    rig.pass(1);
    assert!(rig.done.contains(&Action::ReadDone { op: 5, result: Ok(vec![bytes(1)]) }));
}
