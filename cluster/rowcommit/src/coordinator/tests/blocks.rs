//! Lists of blocks, and of how old their contents are.

use super::*;

fn list(rig: &mut Rig) -> Result<Vec<(u8, Contents)>, OpError> {
    rig.done.clear();
    rig.feed(Event::List { op: BACKGROUND | 9, group: GroupNo(0), after: None });
    rig.settle();
    listed(rig).expect("it ends")
}

fn listed(rig: &Rig) -> Option<Result<Vec<(u8, Contents)>, OpError>> {
    rig.done.iter().find_map(|action| match action {
        Action::Listed { op, result } if *op == BACKGROUND | 9 => {
            Some(result.clone().map(|list| {
                assert_eq!(list.next, None);
                list.blocks.into_iter().map(|block| (block.slot.0, block.contents)).collect()
            }))
        }
        _ => None,
    })
}

fn write_as(rig: &mut Rig, op: u64, slot: u8, seq: u64) {
    let generation = rig.map.volumes[&VOLUME].writer_gen;
    let wid = Wid { generation, seq };
    rig.feed(Event::Write { op, blocks: vec![BlockWrite { wid, ..block(slot, seq) }] });
    rig.settle();
}

#[test]
fn blocks_are_listed_with_the_generation_that_wrote_them() {
    let mut rig = Rig::active(2, 1);
    assert_eq!(list(&mut rig), Ok(vec![]));
    write_as(&mut rig, 1, 0, 1);
    write_as(&mut rig, 2, 1, 2);
    assert_eq!(list(&mut rig), Ok(vec![(0, Contents::Since(2)), (1, Contents::Since(2))]));
    // Elected anew; then one block is written again, and the other one trimmed.
    rig.elect_later();
    let mut rig = rig.activated();
    let now = rig.map.volumes[&VOLUME].writer_gen;
    write_as(&mut rig, 3, 0, 3);
    assert_eq!(list(&mut rig), Ok(vec![(0, Contents::Since(now)), (1, Contents::Since(2))]));
    let wid = Wid { generation: now, seq: 4 };
    let trim = BlockWrite { wid, record: Bytes::new(), ..block(1, 4) };
    rig.feed(Event::Write { op: 4, blocks: vec![trim] });
    rig.settle();
    assert_eq!(list(&mut rig), Ok(vec![(0, Contents::Since(now))]));
}

#[test]
fn what_is_not_decided_is_as_old_as_what_it_would_replace() {
    let mut rig = Rig::active(2, 1);
    write_as(&mut rig, 1, 0, 1);
    rig.elect_later();
    let mut rig = rig.activated();
    // The data slot has it, and the parity slot does not get to it.
    rig.parties.get_mut(&store(3)).expect("it is there").hangs = true;
    write_as(&mut rig, 2, 0, 2);
    assert!(!rig.done.contains(&Action::WriteDone { op: 2, result: Ok(()) }));
    assert_eq!(list(&mut rig), Ok(vec![(0, Contents::Since(2))]));
}

#[test]
fn of_a_slot_that_is_out_of_sync_parity_tells() {
    let mut rig = Rig::active(2, 1);
    write_as(&mut rig, 1, 0, 1);
    write_as(&mut rig, 2, 1, 2);
    // Asked while it is still thought to be there, and does not answer: the others are asked then.
    rig.link_down(1);
    rig.feed(Event::List { op: BACKGROUND | 9, group: GroupNo(0), after: None });
    rig.settle();
    assert_eq!(listed(&rig), None);
    support::shrink(&mut rig.map, 1);
    rig.adopt();
    rig.settle();
    let expected = Ok(vec![(0, Contents::Since(2)), (1, Contents::Since(2))]);
    assert_eq!(listed(&rig), Some(expected.clone()));
    assert_eq!(list(&mut rig), expected);
    // Written anew without it.
    support::elect(&mut rig.map, 1);
    rig.adopt();
    let mut rig = rig.activated();
    let now = rig.map.volumes[&VOLUME].writer_gen;
    write_as(&mut rig, 3, 0, 3);
    assert_eq!(list(&mut rig), Ok(vec![(0, Contents::Since(now)), (1, Contents::Since(2))]));
}

#[test]
fn what_a_store_has_forgotten_is_listed_all_the_same() {
    let mut rig = Rig::active(2, 1);
    write_as(&mut rig, 1, 0, 1);
    write_as(&mut rig, 2, 1, 2);
    // Its row slot is gone, and nobody suspects it.
    let at = RowSlot { volume: VOLUME, row: row(0), slot: Slot(0) };
    assert!(rig.parties[&store(1)].disk.forget(at, ver(1)));
    assert_eq!(list(&mut rig), Ok(vec![(0, Contents::Since(2)), (1, Contents::Since(2))]));
    // Of a parity slot the data slots do as much.
    let mut rig = Rig::active(2, 1);
    write_as(&mut rig, 1, 0, 1);
    assert!(rig.parties[&store(3)].disk.corrupt_meta(RowSlot { slot: Slot(2), ..at }, ver(1)));
    assert_eq!(list(&mut rig), Ok(vec![(0, Contents::Unknown), (1, Contents::Unknown)]));
}

#[test]
fn what_was_under_way_when_the_list_was_asked_for_was_not_decided() {
    let mut rig = Rig::active(2, 1);
    write_as(&mut rig, 1, 0, 1);
    rig.elect_later();
    let mut rig = rig.activated();
    // Prepared on the data slot only, while the pages are read.
    rig.deafen(3, true);
    write_as(&mut rig, 2, 0, 2);
    rig.feed(Event::List { op: BACKGROUND | 9, group: GroupNo(0), after: None });
    rig.settle();
    assert_eq!(listed(&rig), None, "the parity slot does not hear");
    rig.link_down(3);
    support::shrink(&mut rig.map, 3);
    rig.adopt();
    rig.settle();
    // Without that slot the update went forward; it might as well have been undone.
    assert_eq!(listed(&rig), Some(Ok(vec![(0, Contents::Since(2))])));
    let now = rig.map.volumes[&VOLUME].writer_gen;
    assert_eq!(list(&mut rig), Ok(vec![(0, Contents::Since(now))]));
}

#[test]
fn a_group_with_suspects_is_listed_once_they_were_compared() {
    let mut rig = Rig::active(2, 1);
    write_as(&mut rig, 1, 0, 1);
    rig.crash_store(1, None);
    rig.link_up(1);
    rig.elect_later();
    let activate = rig.settle();
    rig.accept(activate);
    rig.feed(Event::List { op: BACKGROUND | 9, group: GroupNo(0), after: None });
    assert!(rig.coordinator.stats().suspects > 0, "it was compared before anybody asked");
    rig.settle();
    assert_eq!(listed(&rig), Some(Err(OpError::Unreadable)));
    rig.pass(6);
    assert_eq!(rig.coordinator.stats().suspects, 0);
    assert_eq!(list(&mut rig), Ok(vec![(0, Contents::Since(2))]));
}

#[test]
fn a_row_that_is_known_to_be_wrong_is_listed_though_no_page_names_it() {
    let mut rig = Rig::active(2, 1);
    rig.coordinator.lost_rows.insert(row(3));
    assert_eq!(list(&mut rig), Ok(vec![(0, Contents::Unknown), (1, Contents::Unknown)]));
    rig.coordinator.lost_rows.clear();
    rig.coordinator.distrusted.insert((row(3), (Slot(1), store(2))));
    assert_eq!(list(&mut rig), Ok(vec![(1, Contents::Unknown)]));
}

fn snapshot(rig: &mut Rig) {
    rig.feed(Event::Snapshot { op: 7, name: "s".into(), created: 1 });
    let commands = rig.settle();
    rig.accept(commands);
    rig.settle();
}

/// The list as it is.
fn blocks(rig: &mut Rig) -> Vec<ListedBlock> {
    rig.done.clear();
    rig.feed(Event::List { op: BACKGROUND, group: GroupNo(0), after: None });
    rig.settle();
    let listed = rig.done.iter().find_map(|action| match action {
        Action::Listed { result: Ok(list), .. } => Some(list.blocks.clone()),
        _ => None,
    });
    listed.expect("it is listed")
}

#[test]
fn contents_that_a_snapshot_holds_are_listed_beside() {
    let mut rig = Rig::active(2, 1);
    write_as(&mut rig, 1, 0, 1);
    snapshot(&mut rig);
    let (row, slot) = (row(0), Slot(0));
    let contents = Contents::Since(2);
    let alone = ListedBlock { row, slot, contents, held: vec![] };
    assert_eq!(blocks(&mut rig), vec![alone], "what it has now is what the snapshot holds");
    write_as(&mut rig, 2, 0, 2);
    let beside = ListedBlock { row, slot, contents, held: vec![2] };
    assert_eq!(blocks(&mut rig), vec![beside]);
}

#[test]
fn what_a_store_forgot_of_a_snapshot_is_listed_all_the_same() {
    let mut rig = Rig::active(2, 1);
    write_as(&mut rig, 1, 0, 1);
    snapshot(&mut rig);
    write_as(&mut rig, 2, 0, 2);
    let at = RowSlot { volume: VOLUME, row: row(0), slot: Slot(0) };
    assert!(rig.parties[&store(1)].disk.forget(at, ver(1)));
    assert_eq!(blocks(&mut rig)[0].held, [2]);
}

#[test]
fn of_a_slot_that_is_out_of_sync_every_parity_slot_tells() {
    for forgetful in [3, 4] {
        let mut rig = Rig::active(2, 2);
        write_as(&mut rig, 1, 0, 1);
        rig.link_down(1);
        support::shrink(&mut rig.map, 1);
        rig.adopt();
        rig.settle();
        let slot = support::slot(forgetful);
        let at = RowSlot { volume: VOLUME, row: row(0), slot };
        assert!(rig.parties[&store(forgetful)].disk.forget(at, ver(1)));
        assert_eq!(list(&mut rig), Ok(vec![(0, Contents::Since(2))]), "store {forgetful}");
    }
}

#[test]
fn a_list_of_a_group_that_has_become_short_has_ended() {
    let mut rig = Rig::of(support::map(2, 2));
    rig.map.volumes.get_mut(&VOLUME).expect("it is there").min_insync = 3;
    let mut rig = rig.activated();
    for no in [1, 2] {
        rig.link_down(no);
    }
    rig.feed(Event::List { op: BACKGROUND | 9, group: GroupNo(0), after: None });
    rig.settle();
    let (epoch, stores) = (rig.map.volumes[&VOLUME].epoch, vec![store(1), store(2)]);
    support::accept(
        &mut rig.map,
        &Command::Shrink { volume: VOLUME, epoch, stores, to_data: true },
    );
    rig.adopt();
    rig.settle();
    assert_eq!(listed(&rig), Some(Err(OpError::Unreadable)));
    assert!(rig.coordinator.lists.is_empty(), "{:?}", rig.coordinator);
}

#[test]
fn a_list_waits_for_the_takeover_and_ends_with_the_seat() {
    let mut rig = Rig::new(2, 1);
    rig.feed(Event::List { op: BACKGROUND | 9, group: GroupNo(0), after: None });
    assert_eq!(listed(&rig), None);
    let mut rig = rig.activated();
    assert_eq!(listed(&rig), Some(Ok(vec![])));
    rig.done.clear();
    rig.feed(Event::List { op: BACKGROUND | 9, group: GroupNo(0), after: None });
    support::elect(&mut rig.map, 2);
    rig.adopt();
    rig.settle();
    assert_eq!(listed(&rig), Some(Err(OpError::Fenced)));
}

#[test]
fn background_work_is_not_taken_for_clients() {
    let mut rig = Rig::active(2, 1);
    let blocks = || vec![block(0, 1)];
    rig.feed(Event::Write { op: BACKGROUND | 1, blocks: blocks() });
    rig.settle();
    rig.tick(20);
    let burden = rig.coordinator.burden();
    assert!(burden.at_work && !burden.busy, "{burden:?}");
    let wid = Wid { seq: 2, ..wid(2) };
    rig.feed(Event::Write { op: 2, blocks: vec![BlockWrite { wid, ..block(0, 2) }] });
    rig.settle();
    rig.tick(20);
    assert!(rig.coordinator.burden().busy);
    rig.tick(2000);
    assert!(!rig.coordinator.burden().at_work, "it has ended");
}
