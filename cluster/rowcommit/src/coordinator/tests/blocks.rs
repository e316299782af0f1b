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
    // The data slot has it, the parity slot does not hear.
    rig.deafen(3, true);
    write_as(&mut rig, 2, 0, 2);
    assert!(!rig.done.contains(&Action::WriteDone { op: 2, result: Ok(()) }));
    assert_eq!(list(&mut rig), Ok(vec![(0, Contents::Since(2))]));
}

#[test]
fn of_a_slot_that_is_out_of_sync_nobody_can_tell() {
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
    let expected = Ok(vec![(0, Contents::Unknown), (1, Contents::Since(2))]);
    assert_eq!(listed(&rig), Some(expected.clone()));
    assert_eq!(list(&mut rig), expected);
}

#[test]
fn contents_that_a_snapshot_holds_are_listed_beside() {
    let mut rig = Rig::active(2, 1);
    write_as(&mut rig, 1, 0, 1);
    rig.feed(Event::Snapshot { op: 7, name: "s".into(), created: 1 });
    let commands = rig.settle();
    rig.accept(commands);
    rig.settle();
    let held = |rig: &mut Rig| {
        rig.done.clear();
        rig.feed(Event::List { op: BACKGROUND, group: GroupNo(0), after: None });
        rig.settle();
        rig.done.iter().find_map(|action| match action {
            Action::Listed { result: Ok(list), .. } => Some(list.blocks.clone()),
            _ => None,
        })
    };
    let (row, slot) = (row(0), Slot(0));
    let contents = Contents::Since(2);
    let alone = ListedBlock { row, slot, contents, held: vec![] };
    assert_eq!(held(&mut rig), Some(vec![alone]), "what it has now is what the snapshot holds");
    write_as(&mut rig, 2, 0, 2);
    let beside = ListedBlock { row, slot, contents, held: vec![2] };
    assert_eq!(held(&mut rig), Some(vec![beside]));
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
