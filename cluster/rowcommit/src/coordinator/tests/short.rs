//! Fewer in sync than an acknowledgement takes.

use super::*;

/// Four slots, of which three are needed for an acknowledgement and two for everything else.
fn rig() -> Rig {
    let mut map = support::map(2, 2);
    map.volumes.get_mut(&VOLUME).expect("it is there").min_insync = 3;
    Rig::of(map).activated()
}

fn shrink(epoch: u32, stores: &[u64], to_data: bool) -> Command {
    let stores = stores.iter().map(|no| store(*no)).collect();
    Command::Shrink { volume: VOLUME, epoch: Epoch(epoch), stores, to_data }
}

/// Lets time pass until something is proposed.
fn proposed(rig: &mut Rig, seconds: u64) -> Vec<Command> {
    for _ in 0..seconds * 10 {
        rig.tick(100);
        let commands = rig.settle();
        if !commands.is_empty() {
            return commands;
        }
    }
    Vec::new()
}

fn hear_again(rig: &mut Rig, no: u64) {
    rig.deafen(no, false);
    rig.link_down(no);
    rig.link_up(no);
}

fn answered(rig: &Rig) -> Vec<&Action> {
    rig.done.iter().filter(|action| !matches!(action, Action::Alarm(_))).collect()
}

#[test]
fn what_is_under_way_is_undone_and_waits_for_a_third_store() {
    let mut rig = rig();
    rig.write(1, 0, 1);
    rig.settle();
    for no in [3, 4] {
        rig.deafen(no, true);
    }
    rig.write(2, 0, 2);
    assert_eq!(proposed(&mut rig, 4), vec![], "they may be back in a moment");
    let both = proposed(&mut rig, 3);
    assert_eq!(both, vec![shrink(2, &[3, 4], true)]);
    rig.accept(both);
    // The stores that are away have what was there before: it stays, and another write does not begin.
    rig.write(3, 0, 3);
    assert_eq!(proposed(&mut rig, 10), vec![]);
    assert_eq!(rig.head(1).wid, wid(1));
    assert_eq!(answered(&rig), [&written(1)]);
    rig.read(4, 0);
    rig.settle();
    let one = Action::ReadDone { op: 4, result: Ok(vec![bytes(1)]) };
    assert_eq!(answered(&rig), [&written(1), &one]);
    hear_again(&mut rig, 3);
    rig.pass(5);
    assert_eq!(answered(&rig), [&written(1), &one, &written(2), &written(3)]);
    assert_eq!(rig.head(3).wid, wid(3));
    hear_again(&mut rig, 4);
    rig.pass(5);
    assert_eq!(rig.head(4).wid, wid(3));
    assert!(rig.coordinator.is_quiet());
}

#[test]
fn a_takeover_without_two_of_four_ends() {
    let mut rig = rig();
    rig.write(1, 0, 1);
    rig.settle();
    for no in [3, 4] {
        rig.link_down(no);
        rig.deafen(no, true);
    }
    rig.elect_later();
    rig.read(2, 0);
    let wid = Wid { generation: 3, seq: 2 };
    rig.feed(Event::Write { op: 3, blocks: vec![BlockWrite { wid, ..block(0, 2) }] });
    assert_eq!(proposed(&mut rig, 4), vec![], "they may be back in a moment");
    rig.pass(10);
    let one = Action::ReadDone { op: 2, result: Ok(vec![bytes(1)]) };
    assert_eq!(answered(&rig), [&written(1), &one]);
    rig.coordinator.release();
    rig.settle();
    let fenced = Action::WriteDone { op: 3, result: Err(OpError::Fenced) };
    assert_eq!(answered(&rig), [&written(1), &one, &fenced]);
}

#[test]
fn one_of_two_that_only_just_fell_silent_keeps_both() {
    let mut rig = rig();
    rig.deafen(4, true);
    let one = proposed(&mut rig, 2);
    assert_eq!(one, vec![shrink(2, &[4], false)]);
    rig.accept(one);
    rig.deafen(3, true);
    rig.write(1, 0, 1);
    assert_eq!(proposed(&mut rig, 4), vec![]);
    // It answers once more, and has its time again.
    hear_again(&mut rig, 3);
    rig.settle();
    rig.deafen(3, true);
    rig.write(2, 0, 2);
    assert_eq!(proposed(&mut rig, 4), vec![]);
    assert_eq!(proposed(&mut rig, 3), vec![shrink(3, &[3, 4], true)]);
}

#[test]
fn as_many_as_there_are_data_slots_are_kept() {
    let mut rig = rig();
    for no in [2, 3, 4] {
        rig.deafen(no, true);
    }
    rig.write(1, 0, 1);
    assert_eq!(proposed(&mut rig, 20), vec![]);
}
