//! What must come to an end: sessions that break, repairs of what nobody knows, takeovers.

use super::*;
use std::collections::VecDeque;

/// A node whose folder was emptied takes sessions with the store that it had, and drops them.
#[test]
fn a_store_whose_sessions_are_only_dropped_is_silent() {
    let mut rig = Rig::active(2, 1);
    rig.parties.get_mut(&store(3)).expect("it is there").deaf = true;
    rig.write(1, 0, 1);
    let mut proposed = Vec::new();
    for _ in 0..40 {
        rig.link_down(3);
        rig.link_up(3);
        rig.tick(20);
        proposed = rig.settle();
        if !proposed.is_empty() {
            break;
        }
    }
    let stores = vec![store(3)];
    assert_eq!(
        proposed,
        vec![Command::Shrink { volume: VOLUME, epoch: Epoch(2), stores, to_data: false }]
    );
}

#[test]
fn it_is_told_how_many_rows_slots_lack_that_are_out() {
    let mut rig = Rig::of(support::map_of(4, 2, 1)).activated();
    let all_of = |op: u64, index: u32| {
        let blocks = (0..2).map(|slot| BlockWrite { row: row(index), ..block(slot, op) }).collect();
        Event::Write { op, blocks }
    };
    let told = |rig: &Rig| (rig.coordinator.stats().rows_behind, rig.coordinator.stats().rows_left);
    (0..4).for_each(|index| rig.feed(all_of(u64::from(index) + 1, index)));
    rig.settle();
    assert_eq!(told(&rig), (0, 0));
    rig.link_down(3);
    support::shrink(&mut rig.map, 3);
    rig.adopt();
    // Of one of them twice.
    [(5, 0), (6, 1), (7, 1)].into_iter().for_each(|(op, index)| rig.feed(all_of(op, index)));
    rig.settle();
    assert_eq!(told(&rig), (2, 2));
    rig.adopt();
    rig.link_up(3);
    rig.pass(5);
    assert!(rig.map.volumes[&VOLUME].is_full(), "{}", rig.coordinator.describe());
    assert_eq!(told(&rig), (0, 0));
    // What was missed before is there: only what is written from now on counts.
    rig.link_down(3);
    support::shrink(&mut rig.map, 3);
    rig.adopt();
    rig.feed(all_of(8, 2));
    rig.settle();
    assert_eq!(told(&rig), (1, 1));
}

/// The update itself may be what ends every session, while others are answered.
#[test]
fn an_update_that_is_sent_in_one_session_after_another_is_overdue_at_last() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    rig.settle();
    rig.parties.get_mut(&store(3)).expect("it is there").deaf = true;
    rig.write(2, 0, 2);
    let mut proposed = Vec::new();
    for _ in 0..100 {
        proposed.extend(rig.settle());
        rig.link_down(3);
        rig.link_up(3);
        rig.coordinator.links.heard(store(3), rig.sessions, rig.now);
        rig.tick(100);
    }
    let taken_out =
        |c: &Command| matches!(c, Command::Shrink { stores, .. } if *stores == [store(3)]);
    assert!(proposed.iter().any(taken_out), "{proposed:?}");
}

#[test]
fn a_row_that_nobody_can_tell_of_keeps_no_store_out() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    rig.settle();
    rig.tick(100);
    rig.settle();
    rig.link_down(3);
    support::shrink(&mut rig.map, 3);
    rig.adopt();
    rig.settle();
    let whole = disk(&rig, 1).fork();
    assert!(disk(&rig, 1).corrupt_meta(at(0), rig.head(1).ver));
    rig.coordinator.cache.clear();
    rig.crash_store(3, None);
    rig.adopt();
    rig.link_up(3);
    rig.pass(20);
    assert!(rig.map.volumes[&VOLUME].is_full(), "{}", rig.coordinator.describe());
    // It is in sync, and not believed about that row.
    rig.done.clear();
    rig.read(9, 0);
    rig.pass(1);
    assert!(matches!(rig.done.last(), Some(Action::ReadDone { op: 9, result: Err(_) })));
    // When the other one can be read again, the row is right, and so is the slot.
    disk(&rig, 1).roll_back(&whole);
    rig.pass(400);
    rig.done.clear();
    rig.read(10, 0);
    rig.pass(1);
    assert_eq!(rig.done, [Action::ReadDone { op: 10, result: Ok(vec![bytes(1)]) }]);
    assert_eq!(disk(&rig, 3).prepared(VOLUME).expect("memory"), []);
}

#[test]
fn a_takeover_ends_though_a_slot_could_not_be_read_for_a_moment() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    rig.settle();
    rig.tick(100);
    rig.settle();
    // Prepared on slot 0 alone: a takeover undoes it, for slots 1 and 2 have what was before.
    (2..=3).for_each(|no| rig.deafen(no, true));
    rig.feed(Event::Write { op: 2, blocks: vec![block(0, 2), block(1, 2)] });
    rig.settle();
    (2..=3).for_each(|no| rig.deafen(no, false));
    rig.link_down(1);
    rig.restart_store(1);
    rig.link_up(1);
    rig.elect_later();
    // Only the look for the abort meets the damage; the one before did not.
    let good = disk(&rig, 1).fork();
    let (mut met, mut activated) = (false, false);
    for _ in 0..100 {
        rig.tick(100);
        let mut actions = VecDeque::from(rig.coordinator.drain());
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Send { store: to, frame } => {
                    let aborts = frame.requests.iter().any(|r| matches!(r.ask, Ask::Abort { .. }));
                    let now = aborts && !met;
                    if now {
                        met = true;
                        assert!(disk(&rig, 1).corrupt_meta(at(0), ver(1)));
                    }
                    if let Some(reply) = rig.deliver(to, frame) {
                        rig.feed(Event::Reply { store: to, reply });
                    }
                    if now {
                        disk(&rig, 1).roll_back(&good);
                    }
                }
                Action::Propose(Command::Activate { .. }) => activated = true,
                _ => {}
            }
            actions.extend(rig.coordinator.drain());
        }
    }
    assert!(met && activated, "{}", rig.coordinator.describe());
}

/// A lost row whose only good shard is slot 1's; slot 1 is to move, or not; then parity can be read
/// again.
#[test]
fn a_lost_row_is_decided_again_though_a_slot_of_it_is_to_move() {
    for moving in [false, true] {
        let mut rig = Rig::of(support::map_of(4, 2, 1)).activated();
        for (op, slot, seq) in [(1, 0, 1), (2, 1, 2)] {
            rig.write(op, slot, seq);
            rig.settle();
        }
        rig.tick(100);
        rig.settle();
        rig.deafen(3, true);
        rig.write(3, 1, 3);
        rig.settle();
        assert!(disk(&rig, 1).corrupt_record(at(0), ver(1), 3));
        assert!(disk(&rig, 3).corrupt_record(at(2), ver(2), 3));
        rig.deafen(3, false);
        rig.elect_later();
        rig.pass(3);
        assert!(
            rig.done.contains(&Action::Alarm(Alarm::RowLost { row: row(0) })),
            "{:?}",
            rig.done
        );
        let holder = |rig: &Rig| rig.map.volumes[&VOLUME].groups[0].slots[1];
        if moving {
            let moves =
                vec![smalti_map::MoveSlot { group: GroupNo(0), slot: Slot(1), store: store(4) }];
            rig.accept(vec![Command::Move { volume: VOLUME, moves }]);
            rig.pass(10);
            assert_eq!(holder(&rig), store(2), "it waits");
        }
        // The same byte once more.
        assert!(disk(&rig, 3).corrupt_record(at(2), ver(2), 3));
        rig.pass(2 * 3600);
        rig.done.clear();
        rig.read(9, 0);
        rig.pass(1);
        let read = Action::ReadDone { op: 9, result: Ok(vec![bytes(1)]) };
        assert!(rig.done.contains(&read), "moving {moving}: {:?}", rig.done);
        assert_eq!(holder(&rig), store(if moving { 4 } else { 2 }));
    }
}

/// Slot 0 is to move from store 1 to store 4. The one that catches up on it dies for good: the other
/// one of the two may have it.
#[test]
fn a_learner_that_died_is_in_nobodys_way() {
    for (dies, comes) in [(4, 1), (1, 4)] {
        let mut rig = Rig::of(support::map_of(4, 2, 1)).activated();
        rig.write(1, 0, 1);
        rig.settle();
        rig.tick(100);
        rig.settle();
        rig.link_down(1);
        support::shrink(&mut rig.map, 1);
        rig.adopt();
        let moves =
            vec![smalti_map::MoveSlot { group: GroupNo(0), slot: Slot(0), store: store(4) }];
        // Whoever is not there yet answers nothing.
        rig.deafen(comes, true);
        if dies == 1 {
            rig.link_up(1);
        } else {
            rig.accept(vec![Command::Move { volume: VOLUME, moves: moves.clone() }]);
        }
        let learner =
            |rig: &Rig| rig.map.volumes[&VOLUME].groups[0].learners.get(&Slot(0)).copied();
        for _ in 0..50 {
            rig.tick(20);
            let commands = rig.settle();
            rig.accept(commands);
            if learner(&rig).is_some() {
                break;
            }
        }
        assert_eq!(learner(&rig).map(|l| l.store), Some(store(dies)));
        rig.deafen(dies, true);
        rig.link_down(dies);
        if dies == 1 {
            rig.accept(vec![Command::Move { volume: VOLUME, moves }]);
        }
        rig.deafen(comes, false);
        rig.link_down(comes);
        rig.link_up(comes);
        rig.pass(20);
        let group = &rig.map.volumes[&VOLUME].groups[0];
        assert_eq!(group.slots[0], store(comes), "{}", rig.coordinator.describe());
        assert!(rig.map.volumes[&VOLUME].is_full(), "{}", rig.coordinator.describe());
    }
}

/// Reads go on with a store away, and a takeover could not do without it.
#[test]
fn a_lost_row_costs_nobody_what_is_served() {
    let mut rig = Rig::of(support::map_of(3, 2, 1)).activated();
    for (op, slot, seq) in [(1, 0, 1), (2, 1, 2)] {
        rig.write(op, slot, seq);
        rig.settle();
    }
    rig.tick(100);
    rig.settle();
    rig.link_down(3);
    support::shrink(&mut rig.map, 3);
    rig.adopt();
    rig.settle();
    assert!(disk(&rig, 1).corrupt_record(at(0), ver(1), 3));
    rig.elect_later();
    let epochs = |rig: &mut Rig, seconds| {
        let before = rig.map.volumes[&VOLUME].epoch.0;
        rig.pass(seconds);
        rig.map.volumes[&VOLUME].epoch.0 - before
    };
    epochs(&mut rig, 3);
    rig.coordinator.lost_rows.insert(row(0));
    rig.coordinator.plan_next_decision();
    assert!(epochs(&mut rig, 200) > 0, "it is decided again");
    rig.link_down(2);
    rig.coordinator.lost_rows.insert(row(0));
    rig.coordinator.plan_next_decision();
    assert_eq!(epochs(&mut rig, 200), 0, "{}", rig.coordinator.describe());
}

/// Store 1 is silent, and store 3 has just come up: perhaps with a disk that lacks everything.
#[test]
fn nobody_is_taken_out_before_the_others_were_heard() {
    for alive in [true, false] {
        let mut rig = Rig::active(2, 1);
        rig.write(1, 0, 1);
        rig.settle();
        rig.deafen(1, true);
        rig.deafen(3, true);
        rig.link_down(1);
        rig.link_down(3);
        let mut proposed = Vec::new();
        for round in 0..100 {
            if round == 15 {
                rig.link_up(3);
            }
            if round == 40 && alive {
                rig.deafen(3, false);
                rig.link_down(3);
                rig.link_up(3);
            }
            rig.tick(20);
            proposed.extend(rig.settle());
            if !proposed.is_empty() {
                break;
            }
        }
        let stores = vec![store(1)];
        let shrink = Command::Shrink { volume: VOLUME, epoch: Epoch(2), stores, to_data: false };
        assert_eq!(proposed, if alive { vec![shrink] } else { vec![] });
    }
}

/// Store 3 is gone when store 1 comes back from a crash: to take out store 1 would leave the one that
/// is gone in its place.
#[test]
fn who_came_back_is_not_taken_out_for_one_that_is_gone() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    rig.settle();
    rig.deafen(3, true);
    rig.link_down(3);
    rig.crash_store(1, None);
    rig.adopt();
    rig.link_up(1);
    for _ in 0..100 {
        rig.tick(100);
        // Of two that are proposed at once the second one comes too late.
        let first = rig.settle().into_iter().take(1);
        rig.accept(first.collect());
    }
    let group = &rig.map.volumes[&VOLUME].groups[0];
    assert_eq!(group.insync, SlotSet::first(2), "{}", rig.coordinator.describe());
    rig.done.clear();
    rig.read(9, 0);
    rig.pass(2);
    assert_eq!(rig.done, [Action::ReadDone { op: 9, result: Ok(vec![bytes(1)]) }]);
}
