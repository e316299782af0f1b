//! Snapshots of a volume: made against the epoch, dropped by anybody.

mod support;

use smalti_map::{
    Applied, ClusterMap, Command, Group, GrowSlot, MoveSlot, Rejection, Snapshot, Volume, limits,
};
use smalti_storage::ids::{Epoch, GroupNo, Incarnation, Slot, VolumeNo};
use support::*;

const CREATED: u64 = 1_764_000_000;

fn epoch(no: u32) -> Applied {
    Applied::Epoch { epoch: Epoch(no), refused: vec![] }
}

fn snapshot(name: &str) -> Snapshot {
    Snapshot { name: name.into(), created: CREATED }
}

fn planned(epoch: Epoch, name: &str) -> Command {
    Command::AddSnapshot { volume: VOLUME, epoch, name: name.into(), created: CREATED }
}

/// Planned against the epoch of now.
fn add(map: &ClusterMap, name: &str) -> Command {
    planned(volume(map).epoch, name)
}

fn drop_it(snap: u32) -> Command {
    Command::DropSnapshot { volume: VOLUME, snap }
}

#[track_caller]
fn added(map: &mut ClusterMap, name: &str) -> u32 {
    let command = add(map, name);
    accept(map, &command);
    volume(map).snapshot_named(name).expect("it is there")
}

#[track_caller]
fn invalid(map: &mut ClusterMap, command: &Command, text: &str) {
    let rejection = refuse(map, command);
    assert!(matches!(&rejection, Rejection::Invalid(why) if why.contains(text)), "{rejection}");
}

fn numbers(map: &ClusterMap) -> Vec<u32> {
    volume(map).snapshots.keys().copied().collect()
}

/// [`active`] at its busiest: slot 1 of group 0 learns again, slot 2 moves to store 4, which learns
/// too. Epoch 3.
fn busy() -> ClusterMap {
    let mut map = active();
    let group = GroupNo(0);
    let moves = vec![MoveSlot { group, slot: Slot(2), store: store(4) }];
    accept(&mut map, &Command::Move { volume: VOLUME, moves });
    let stores = vec![store(2)];
    accept(&mut map, &Command::Shrink { volume: VOLUME, epoch: Epoch(2), stores, to_data: false });
    let learns = |slot, no| {
        let (slot, store, incarnation) = (Slot(slot), store(no), Incarnation(1));
        GrowSlot { group, slot, store, incarnation }
    };
    let slots = vec![learns(1, 2), learns(2, 4)];
    accept(&mut map, &Command::AddLearners { volume: VOLUME, epoch: Epoch(3), slots });
    map
}

#[test]
fn a_snapshot_begins_an_epoch() {
    let mut map = active();
    let command = add(&map, "monday");
    assert_eq!(accept(&mut map, &command), epoch(3));
    let made = volume(&map);
    assert_eq!((made.epoch, made.snap_seq, made.snapshots_deleted), (Epoch(3), 1, 0));
    assert_eq!(made.snapshots.get(&1), Some(&snapshot("monday")));
    assert_eq!(made.snapshot_named("monday"), Some(1));
    assert_eq!(made.snapshot_named("tuesday"), None);
}

#[test]
fn so_does_its_end() {
    let mut map = active();
    added(&mut map, "monday");
    assert_eq!(accept(&mut map, &drop_it(1)), epoch(4));
    let left = volume(&map);
    assert_eq!((left.epoch, left.snap_seq, left.snapshots_deleted), (Epoch(4), 1, 1));
    assert!(left.snapshots.is_empty() && left.snapshot_named("monday").is_none());
}

#[test]
fn nothing_else_of_the_volume_changes() {
    let mut map = busy();
    let before = volume(&map).clone();
    let group = &before.groups[0];
    assert_eq!((group.learners.len(), group.targets.len(), group.insync.len()), (2, 1, 2));
    added(&mut map, "monday");
    // But what is known of all that came before it.
    let settled = |group: &Group| Group { settled: Epoch(4), ..group.clone() };
    let before = Volume { groups: before.groups.iter().map(settled).collect(), ..before };
    let made = Volume {
        epoch: Epoch(4),
        snap_seq: 1,
        snapshots: [(1, snapshot("monday"))].into(),
        ..before.clone()
    };
    assert_eq!(*volume(&map), made);
    accept(&mut map, &drop_it(1));
    let left = Volume { epoch: Epoch(5), snap_seq: 1, snapshots_deleted: 1, ..before };
    assert_eq!(*volume(&map), left);

    // The learners of before are still good enough to grow.
    let learner = left.groups[0].learners[&Slot(1)];
    let (store, incarnation) = (learner.store, learner.incarnation);
    let slots = vec![GrowSlot { group: GroupNo(0), slot: Slot(1), store, incarnation }];
    accept(&mut map, &Command::Grow { volume: VOLUME, epoch: Epoch(5), slots });
}

#[test]
fn numbers_grow_and_are_never_used_again() {
    let mut map = active();
    assert_eq!([added(&mut map, "a"), added(&mut map, "b"), added(&mut map, "c")], [1, 2, 3]);
    accept(&mut map, &drop_it(3));
    assert_eq!(added(&mut map, "d"), 4);
    for snap in [1, 4, 2] {
        accept(&mut map, &drop_it(snap));
    }
    assert_eq!(added(&mut map, "e"), 5);
    assert_eq!((numbers(&map), volume(&map).snapshots_deleted), (vec![5], 4));
}

#[test]
fn a_name_is_unique_among_the_living() {
    let mut map = active();
    added(&mut map, "monday");
    let again = add(&map, "monday");
    invalid(&mut map, &again, "already");
    // Names are bytes, here as in the names of volumes.
    assert_eq!(added(&mut map, "Monday"), 2);
    accept(&mut map, &drop_it(1));
    assert_eq!(added(&mut map, "monday"), 3);
    assert_eq!(numbers(&map), [2, 3]);
}

#[test]
fn a_name_is_one() {
    let mut map = active();
    let longest = "x".repeat(limits::NAME);
    let too_long = format!("{longest}x");
    for name in ["", ".hidden", "-f", "a b", "a/b", "a@b", "naïve", "a\n", &too_long] {
        let command = add(&map, name);
        invalid(&mut map, &command, "is not a name");
    }
    for name in [longest.as_str(), "0", "_", "2025-11-26.weekly"] {
        added(&mut map, name);
    }
}

#[test]
fn a_volume_has_a_bounded_number_of_them() {
    let mut map = active();
    for no in 1..=limits::SNAPSHOTS {
        added(&mut map, &format!("s{no}"));
    }
    assert_eq!(volume(&map).snapshots.len(), 256);
    let command = add(&map, "more");
    invalid(&mut map, &command, "at most 256");
    // The living count, not those ever made.
    accept(&mut map, &drop_it(7));
    assert_eq!(added(&mut map, "more"), 257);
    let command = add(&map, "even-more");
    invalid(&mut map, &command, "at most 256");
}

#[test]
fn only_a_coordinator_in_office_makes_one() {
    let mut map = active();
    added(&mut map, "before");
    elect(&mut map, 2);
    let command = add(&map, "monday");
    invalid(&mut map, &command, "has not finished its takeover");
    let now = volume(&map).epoch;
    accept(&mut map, &Command::Activate { volume: VOLUME, epoch: now, online: Vec::new() });
    assert_eq!(added(&mut map, "monday"), 2);

    let mut map = cluster(3);
    let groups = vec![vec![store(1), store(2), store(3)]];
    let new = new_volume("vol", 0xf1, 2, 1, groups);
    accept(&mut map, &Command::CreateVolume(Box::new(new)));
    let command = add(&map, "monday");
    invalid(&mut map, &command, "has not finished its takeover");
}

#[test]
fn one_planned_against_another_epoch_is_refused() {
    let mut map = active();
    for other in [Epoch(1), Epoch(3)] {
        let stale = Rejection::StaleEpoch { planned: other, current: Epoch(2) };
        assert_eq!(refuse(&mut map, &planned(other, "monday")), stale);
    }
    // Asked for twice, it is made once; dropped meanwhile, its coordinator has to plan anew.
    let command = add(&map, "monday");
    accept(&mut map, &command);
    let stale = |current| Rejection::StaleEpoch { planned: Epoch(2), current: Epoch(current) };
    assert_eq!(refuse(&mut map, &command), stale(3));
    accept(&mut map, &drop_it(1));
    assert_eq!(refuse(&mut map, &command), stale(4));
}

#[test]
fn what_is_not_there_is_not_dropped() {
    let mut map = active();
    invalid(&mut map, &drop_it(1), "no snapshot 1");
    added(&mut map, "monday");
    for snap in [0, 2, u32::MAX] {
        invalid(&mut map, &drop_it(snap), &format!("no snapshot {snap}"));
    }
    accept(&mut map, &drop_it(1));
    invalid(&mut map, &drop_it(1), "no snapshot 1");
}

#[test]
fn anybody_drops_one_at_any_time() {
    let mut map = active();
    added(&mut map, "monday");
    elect(&mut map, 2);
    assert!(!volume(&map).activated);
    let taking_over = volume(&map).epoch;
    accept(&mut map, &drop_it(1));
    // The takeover was one of an epoch that is over; the coordinator is still the same.
    let activate = |epoch| Command::Activate { volume: VOLUME, epoch, online: Vec::new() };
    let refused = refuse(&mut map, &activate(taking_over));
    assert!(matches!(refused, Rejection::StaleEpoch { .. }), "{refused}");
    let now = volume(&map).epoch;
    accept(&mut map, &activate(now));
    assert_eq!(volume(&map).writer_gen, taking_over.0);
}

#[test]
fn they_outlive_coordinators_and_members() {
    let mut map = active();
    added(&mut map, "a");
    added(&mut map, "b");
    accept(&mut map, &drop_it(1));
    let kept = volume(&map).snapshots.clone();
    let (epoch, stores) = (volume(&map).epoch, vec![store(3)]);
    accept(&mut map, &Command::Shrink { volume: VOLUME, epoch, stores, to_data: false });
    register_store(&mut map, start(1, 2, true));
    elect(&mut map, 4);
    let after = volume(&map);
    assert_eq!((&after.snapshots, after.snap_seq, after.snapshots_deleted), (&kept, 2, 1));
}

#[test]
fn each_volume_has_its_own() {
    let mut map = active();
    let groups = vec![vec![store(1), store(2), store(3)]];
    let new = new_volume("other", 0xf2, 2, 1, groups);
    accept(&mut map, &Command::CreateVolume(Box::new(new)));
    let other = VolumeNo(2);
    let untouched = map.volumes[&other].clone();
    added(&mut map, "monday");
    assert_eq!(map.volumes[&other], untouched);
    invalid(&mut map, &Command::DropSnapshot { volume: other, snap: 1 }, "no snapshot 1");

    let nowhere = VolumeNo(3);
    let dropped = refuse(&mut map, &Command::DropSnapshot { volume: nowhere, snap: 1 });
    assert_eq!(dropped, Rejection::NoVolume(nowhere));
    let command = Command::AddSnapshot {
        volume: nowhere,
        epoch: Epoch(1),
        name: "monday".into(),
        created: CREATED,
    };
    assert_eq!(refuse(&mut map, &command), Rejection::NoVolume(nowhere));

    // With its volume it is gone, and a new volume of that name has none.
    let id = volume(&map).id;
    accept(&mut map, &Command::DeleteVolume { volume: VOLUME, id });
    assert_eq!(refuse(&mut map, &drop_it(1)), Rejection::NoVolume(VOLUME));
    let groups = vec![vec![store(1), store(2), store(3)]];
    let new = Command::CreateVolume(Box::new(new_volume("vol", 0xf3, 2, 1, groups)));
    let Applied::Created(no) = accept(&mut map, &new) else { panic!("not created") };
    assert_eq!((map.volumes[&no].snap_seq, map.volumes[&no].snapshots.len()), (0, 0));
}

#[test]
fn numbers_and_epochs_have_an_end() {
    let mut map = active();
    added(&mut map, "monday");
    let mut last = map.clone();
    let entry = last.volumes.get_mut(&VOLUME).expect("it is there");
    (entry.snap_seq, entry.snapshots_deleted) = (u32::MAX, u32::MAX - 1);
    assert_eq!(last.check(), Ok(()));
    let command = add(&last, "tuesday");
    invalid(&mut last, &command, "snapshot numbers are used up");
    accept(&mut last, &drop_it(1));

    map.volumes.get_mut(&VOLUME).expect("it is there").epoch = Epoch(u32::MAX);
    let command = add(&map, "tuesday");
    invalid(&mut map, &command, "epochs are used up");
    invalid(&mut map, &drop_it(1), "epochs are used up");
}

/// Breaks an invariant.
type Break = fn(&mut Volume);

#[test]
fn a_map_that_is_wrong_about_them_is_noticed() {
    let mut good = active();
    for name in ["a", "b", "c"] {
        added(&mut good, name);
    }
    accept(&mut good, &drop_it(2));
    let wrong: [(&str, Break); 11] = [
        ("too many", |volume| {
            let many = 1..=limits::SNAPSHOTS as u32 + 1;
            volume.snapshots = many.clone().map(|no| (no, snapshot(&format!("s{no}")))).collect();
            (volume.snap_seq, volume.snapshots_deleted) = (*many.end(), 0);
        }),
        ("3 snapshots were made, and 2", |volume| drop(volume.snapshots.remove(&3))),
        ("3 snapshots were made, and 4", |volume| {
            volume.snapshots.insert(2, snapshot("b"));
        }),
        ("3 snapshots were made, and 2", |volume| volume.snapshots_deleted = 0),
        ("2 snapshots were made, and 3", |volume| volume.snap_seq = 2),
        // A sum that comes out even in 32 bits is none.
        ("1 snapshots were made, and 4294967297", |volume| {
            (volume.snap_seq, volume.snapshots_deleted) = (1, u32::MAX);
        }),
        ("no snapshot 0 was made", |volume| file_as(volume, 0)),
        ("no snapshot 4 was made", |volume| file_as(volume, 4)),
        ("is not a name", |volume| name_it(volume, "")),
        ("is not a name", |volume| name_it(volume, "../a")),
        ("two snapshots a", |volume| name_it(volume, "a")),
    ];
    for (text, breaks) in wrong {
        let mut map = good.clone();
        breaks(map.volumes.get_mut(&VOLUME).expect("it is there"));
        let broken = map.check().expect_err(text);
        assert!(broken.contains(text), "{broken}, expected {text}");
    }
}

/// Files snapshot 3 under another number.
fn file_as(volume: &mut Volume, snap: u32) {
    let filed = volume.snapshots.remove(&3).expect("it is there");
    volume.snapshots.insert(snap, filed);
}

/// Gives snapshot 3 another name.
fn name_it(volume: &mut Volume, name: &str) {
    volume.snapshots.get_mut(&3).expect("it is there").name = name.into();
}
