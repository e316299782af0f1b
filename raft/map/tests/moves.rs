//! Slots that move to another store.

mod support;

use smalti_map::{Applied, ClusterMap, Command, GrowSlot, MoveSlot, Rejection};
use smalti_storage::ids::{Epoch, GroupNo, Incarnation, Slot};
use std::collections::BTreeSet;
use support::*;

const G0: GroupNo = GroupNo(0);

/// Group 0 is stores 1, 2, 3 of five; slot 2 is store 3's.
fn move_to(no: u64) -> Command {
    let slot = MoveSlot { group: G0, slot: Slot(2), store: store(no) };
    Command::Move { volume: VOLUME, moves: vec![slot] }
}

fn of(no: u64) -> Vec<GrowSlot> {
    let (slot, store, incarnation) = (Slot(2), store(no), Incarnation(1));
    vec![GrowSlot { group: G0, slot, store, incarnation }]
}

fn now(map: &ClusterMap) -> Epoch {
    volume(map).epoch
}

fn learn(map: &ClusterMap, no: u64) -> Command {
    Command::AddLearners { volume: VOLUME, epoch: now(map), slots: of(no) }
}

fn grow(map: &ClusterMap, no: u64) -> Command {
    Command::Grow { volume: VOLUME, epoch: now(map), slots: of(no) }
}

fn forget(map: &ClusterMap) -> Command {
    Command::ForgetHolders { volume: VOLUME, epoch: now(map), groups: vec![G0] }
}

fn invalid(map: &mut ClusterMap, command: &Command, text: &str) {
    let rejection = refuse(map, command);
    assert!(matches!(&rejection, Rejection::Invalid(why) if why.contains(text)), "{rejection}");
}

#[test]
fn a_move_is_a_wish_and_no_new_configuration() {
    let mut map = active();
    assert_eq!(accept(&mut map, &move_to(4)), Applied::Epoch { epoch: Epoch(2), refused: vec![] });
    let group = &volume(&map).groups[0];
    assert_eq!(group.targets.get(&Slot(2)), Some(&store(4)));
    assert_eq!(group.slots[2], store(3));
    assert!(group.keeps(store(4)) && !group.keeps(store(5)));
}

#[test]
fn it_has_to_make_sense() {
    let mut map = active();
    invalid(&mut map, &move_to(77), "no store");
    invalid(&mut map, &move_to(1), "holds another slot");
    let nowhere = MoveSlot { group: G0, slot: Slot(3), store: store(4) };
    invalid(&mut map, &Command::Move { volume: VOLUME, moves: vec![nowhere] }, "no slot");
    accept(&mut map, &move_to(4));
    // Both slots would be lost with node 4.
    let other = MoveSlot { group: G0, slot: Slot(1), store: store(4) };
    invalid(&mut map, &Command::Move { volume: VOLUME, moves: vec![other] }, "two slots");
}

#[test]
fn its_growth_replaces_the_holder_who_keeps_its_data_until_the_group_is_clean() {
    let mut map = active();
    let command = learn(&map, 4);
    invalid(&mut map, &command, "is not a slot of store");
    accept(&mut map, &move_to(4));
    let command = learn(&map, 4);
    accept(&mut map, &command);
    // The slot is in sync all the while.
    assert_eq!(volume(&map).groups[0].insync.len(), 3);
    let command = forget(&map);
    invalid(&mut map, &command, "not clean");
    let command = grow(&map, 4);
    accept(&mut map, &command);
    assert_eq!(now(&map), Epoch(3));
    let group = &volume(&map).groups[0];
    assert_eq!((group.slots[2], group.insync.len()), (store(4), 3));
    assert_eq!(group.old_holders, BTreeSet::from([store(3)]));
    assert!(group.targets.is_empty() && group.learners.is_empty() && group.keeps(store(3)));

    let shrink = Command::Shrink {
        volume: VOLUME,
        epoch: now(&map),
        stores: vec![store(1)],
        to_data: false,
    };
    let mut degraded = map.clone();
    accept(&mut degraded, &shrink);
    let command = forget(&degraded);
    invalid(&mut degraded, &command, "not clean");

    let command = forget(&map);
    accept(&mut map, &command);
    assert_eq!(now(&map), Epoch(4));
    assert!(!volume(&map).groups[0].keeps(store(3)));
}

#[test]
fn to_take_it_back_takes_an_epoch() {
    let mut map = active();
    // Nothing was wished: nothing changes.
    accept(&mut map, &move_to(3));
    assert_eq!(now(&map), Epoch(2));
    accept(&mut map, &move_to(4));
    let command = learn(&map, 4);
    accept(&mut map, &command);
    accept(&mut map, &move_to(5));
    assert_eq!(now(&map), Epoch(3));
    let group = &volume(&map).groups[0];
    assert!(group.learners.is_empty() && !group.keeps(store(4)) && group.keeps(store(5)));
    accept(&mut map, &move_to(3));
    assert_eq!(now(&map), Epoch(4));
    assert!(volume(&map).groups[0].targets.is_empty());
}

#[test]
fn a_place_has_one_learner() {
    let mut map = active();
    accept(&mut map, &move_to(4));
    let shrink = Command::Shrink {
        volume: VOLUME,
        epoch: now(&map),
        stores: vec![store(3)],
        to_data: false,
    };
    accept(&mut map, &shrink);
    let command = learn(&map, 3);
    accept(&mut map, &command);
    let command = learn(&map, 4);
    invalid(&mut map, &command, "another learner");
    // Taken out itself, it makes room.
    let shrink = Command::Shrink {
        volume: VOLUME,
        epoch: now(&map),
        stores: vec![store(3)],
        to_data: false,
    };
    accept(&mut map, &shrink);
    let command = learn(&map, 4);
    accept(&mut map, &command);
    let shrink = Command::Shrink {
        volume: VOLUME,
        epoch: now(&map),
        stores: vec![store(4)],
        to_data: false,
    };
    accept(&mut map, &shrink);
    assert!(volume(&map).groups[0].learners.is_empty());
}

#[test]
fn a_wish_outlives_the_coordinator() {
    let mut map = active();
    accept(&mut map, &move_to(4));
    let command = learn(&map, 4);
    accept(&mut map, &command);
    elect(&mut map, 2);
    let group = &volume(&map).groups[0];
    assert!(group.learners.is_empty() && group.keeps(store(4)));
}
