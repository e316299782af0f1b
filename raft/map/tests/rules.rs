//! The rules of each command, one test per rule.

mod support;

use smalti_map::{
    Applied, ClusterMap, Command, Custody, GrowSlot, NewVolume, Rejection, StoreStart,
};
use smalti_storage::ids::{
    ClusterId, Epoch, GroupNo, Incarnation, KeyEpochNo, NodeId, RunId, Slot, SlotSet, VolumeId,
    VolumeNo,
};
use support::*;
use uuid::Uuid;

fn shrink(epoch: u32, stores: &[u64]) -> Command {
    let stores = stores.iter().map(|no| store(*no)).collect();
    Command::Shrink { volume: VOLUME, epoch: Epoch(epoch), stores, to_data: false }
}

fn slot(group: u16, slot: u8, no: u64, incarnation: u64) -> GrowSlot {
    GrowSlot {
        group: GroupNo(group),
        slot: Slot(slot),
        store: store(no),
        incarnation: Incarnation(incarnation),
    }
}

fn learn(epoch: u32, slots: Vec<GrowSlot>) -> Command {
    Command::AddLearners { volume: VOLUME, epoch: Epoch(epoch), slots }
}

fn grow(epoch: u32, slots: Vec<GrowSlot>) -> Command {
    Command::Grow { volume: VOLUME, epoch: Epoch(epoch), slots }
}

fn epoch(no: u32) -> Applied {
    Applied::Epoch { epoch: Epoch(no), refused: vec![] }
}

/// [`active`] after store 3 was taken out everywhere: epoch 3, slots 2 and 1 behind.
fn shrunk() -> ClusterMap {
    let mut map = active();
    assert_eq!(accept(&mut map, &shrink(2, &[3])), epoch(3));
    map
}

fn behind() -> Vec<GrowSlot> {
    vec![slot(0, 2, 3, 1), slot(1, 1, 3, 1)]
}

#[test]
fn a_cluster_is_founded_once() {
    let mut map = ClusterMap::default();
    assert_eq!(map.check(), Ok(()));
    accept(&mut map, &init(3));
    assert!(matches!(refuse(&mut map, &init(3)), Rejection::Invalid(_)));
}

#[test]
fn founding_is_validated() {
    let Command::InitCluster { cluster, nodes, custody, .. } = init(3) else { unreachable!() };
    let twice = vec![nodes[0].clone(), nodes[0].clone()];
    let same_name = vec![nodes[0].clone(), (NodeId(9), nodes[0].1.clone(), addresses(1))];
    let foreign = Custody { holders: support::custody(4).holders, ..custody.clone() };
    let unreachable = Custody { threshold: 4, ..custody.clone() };
    for (cluster, nodes, custody) in [
        (ClusterId::default(), nodes.clone(), custody.clone()),
        (cluster, vec![], custody.clone()),
        (cluster, twice, custody.clone()),
        (cluster, nodes.clone(), foreign),
        (cluster, nodes.clone(), unreachable),
        (cluster, same_name, custody),
        (cluster, nodes, Custody::default()),
    ] {
        let command = Command::InitCluster { cluster, nodes, custody, recovery: None };
        assert!(matches!(refuse(&mut ClusterMap::default(), &command), Rejection::Invalid(_)));
    }
}

#[test]
fn each_start_of_a_node_gets_the_next_incarnation() {
    let mut map = ClusterMap::default();
    accept(&mut map, &init(3));
    for incarnation in 1..4 {
        let command = Command::RegisterNode { node: NodeId(2), addresses: addresses(77) };
        assert_eq!(accept(&mut map, &command), Applied::Registered(Incarnation(incarnation)));
    }
    assert_eq!(map.nodes[&NodeId(2)].addresses, addresses(77));
    refuse(&mut map, &Command::RegisterNode { node: NodeId(9), addresses: addresses(77) });
}

#[test]
fn a_store_registers_only_with_the_newest_start_of_its_node() {
    let mut map = cluster(3);
    let late = Command::RegisterStore(StoreStart { of: Incarnation(1), ..start(1, 2, true) });
    let elsewhere = StoreStart { node: NodeId(2), ..start(1, 2, true) };
    let nameless = StoreStart { run: RunId::default(), ..start(1, 2, true) };
    for bad in [elsewhere, nameless, start(8, 8, true)] {
        let refused = register_store(&mut map, bad);
        assert!(matches!(refused, Applied::Rejected(Rejection::Invalid(_))), "{bad:?}");
    }

    let again = Command::RegisterNode { node: NodeId(1), addresses: addresses(77) };
    accept(&mut map, &again);
    assert_eq!(refuse(&mut map, &late), Rejection::Incarnation);
    let second = Applied::RegisteredStore { incarnation: Incarnation(2), clean: true };
    for _ in 0..2 {
        assert_eq!(register_store(&mut map, start(1, 2, true)), second);
    }
    // The store may count starts that never came to be registered.
    let seventh = StoreStart { last: start(1, 2, true).run, ..start(1, 7, true) };
    let applied = register_store(&mut map, seventh);
    assert_eq!(applied, Applied::RegisteredStore { incarnation: Incarnation(7), clean: true });
    let crashed = register_store(&mut map, start(1, 8, false));
    assert_eq!(crashed, Applied::RegisteredStore { incarnation: Incarnation(8), clean: false });
}

/// A store's folder is put back from a copy that was made while it stood in order.
#[test]
fn a_disk_that_another_run_left_behind_is_not_believed() {
    let mut map = cluster(3);
    register_store(&mut map, start(1, 2, true));
    register_store(&mut map, start(1, 3, true));
    let another =
        |no: u128, start: StoreStart| StoreStart { run: RunId(Uuid::from_u128(no)), ..start };
    // It counts as the run before did, and later as one long ago.
    for (no, count) in [(70, 3), (71, 2), (72, 3)] {
        let back = another(no, start(1, count, true));
        let number = map.stores[&store(1)].incarnation.0 + 1;
        let applied = register_store(&mut map, back);
        let expected = Applied::RegisteredStore { incarnation: Incarnation(number), clean: false };
        assert_eq!(applied, expected, "a copy that has count {count}");
    }
    // What the last run left is believed again.
    let last = StoreStart { last: RunId(Uuid::from_u128(72)), ..another(73, start(1, 7, true)) };
    let applied = register_store(&mut map, last);
    assert_eq!(applied, Applied::RegisteredStore { incarnation: Incarnation(7), clean: true });
}

#[test]
fn a_volume_starts_in_sync_without_a_coordinator() {
    let mut map = cluster(3);
    let groups = vec![vec![store(3), store(1), store(2)]];
    let new = Command::CreateVolume(Box::new(new_volume("a", 1, 2, 1, groups)));
    assert_eq!(accept(&mut map, &new), Applied::Created(VolumeNo(1)));
    let made = volume(&map);
    assert_eq!((made.epoch, made.coordinator, made.activated), (Epoch(1), None, false));
    assert!(made.is_full());
    assert_eq!(made.group(GroupNo(0)).map(|group| group.insync), Some(SlotSet::first(3)));

    // Numbers and identities are never reused.
    let gone = Command::DeleteVolume { volume: VOLUME, id: made.id };
    refuse(&mut map, &Command::DeleteVolume { volume: VOLUME, id: VolumeId::default() });
    accept(&mut map, &gone);
    assert_eq!(refuse(&mut map, &gone), Rejection::NoVolume(VOLUME));
    assert!(matches!(refuse(&mut map, &new), Rejection::Invalid(_)));
    let groups = vec![vec![store(3), store(1), store(2)]];
    let other = Command::CreateVolume(Box::new(new_volume("a", 2, 2, 1, groups)));
    assert_eq!(accept(&mut map, &other), Applied::Created(VolumeNo(2)));
}

#[test]
fn a_new_volume_is_validated() {
    let mut map = cluster(4);
    let groups = vec![vec![store(1), store(2), store(3)]; 2];
    let good = new_volume("vol-1.a_B", 7, 2, 1, groups);
    type Spoil = fn(&mut NewVolume);
    let bad: Vec<(&str, Spoil)> = vec![
        ("no name", |v| v.name.clear()),
        ("long name", |v| v.name = "x".repeat(65)),
        ("hidden name", |v| v.name = ".x".into()),
        ("option name", |v| v.name = "-x".into()),
        ("path name", |v| v.name = "a/b".into()),
        ("nil id", |v| v.id = VolumeId::default()),
        ("no size", |v| v.size = 0),
        ("odd size", |v| v.size = 513),
        ("huge size", |v| v.size = 1 << 63),
        ("no data", |v| v.data = 0),
        ("no parity", |v| v.parity = 0),
        ("overflow", |v| (v.data, v.parity) = (255, 255)),
        ("33 slots", |v| (v.data, v.parity) = (30, 3)),
        ("shard size", |v| v.shard_size = 4096),
        ("shard alignment", |v| v.shard_size = (64 << 10) + 512),
        ("min_insync below n", |v| v.min_insync = 1),
        ("min_insync above n+k", |v| v.min_insync = 4),
        ("no groups", |v| v.groups.clear()),
        ("short table", |v| _ = v.groups[1].pop()),
        ("long table", |v| v.groups[1].push(store(4))),
        ("store twice", |v| v.groups[1][2] = store(1)),
        ("unknown store", |v| v.groups[1][2] = store(9)),
        ("missing key", |v| _ = v.key_epoch.shard_keys.pop()),
        ("empty key", |v| v.key_epoch.shard_keys[0].clear()),
        ("huge key", |v| v.key_epoch.place_key = vec![0; 257]),
        ("key epoch 0", |v| v.key_epoch.no = KeyEpochNo(0)),
        ("no threshold", |v| v.key_epoch.custody.threshold = 0),
        ("high threshold", |v| v.key_epoch.custody.threshold = 4),
        ("foreign custodian", |v| v.key_epoch.custody.holders[0].node = NodeId(9)),
        ("share twice", |v| v.key_epoch.custody.holders[1].share = 1),
    ];
    for (what, spoil) in bad {
        let mut new = good.clone();
        spoil(&mut new);
        let rejection = refuse(&mut map, &Command::CreateVolume(Box::new(new)));
        assert!(matches!(rejection, Rejection::Invalid(_)), "{what}: {rejection}");
    }
    accept(&mut map, &Command::CreateVolume(Box::new(good.clone())));
    let other_id = NewVolume { id: new_volume("", 8, 1, 1, vec![]).id, ..good.clone() };
    refuse(&mut map, &Command::CreateVolume(Box::new(other_id)));
    let other_name = NewVolume { name: "other".into(), ..good };
    refuse(&mut map, &Command::CreateVolume(Box::new(other_name)));
}

#[test]
fn two_slots_of_a_group_are_never_on_one_node() {
    let mut map = cluster(3);
    let second = StoreStart { node: NodeId(3), ..start(33, 1, true) };
    register_store(&mut map, second);
    let groups = vec![vec![store(1), store(3), store(33)]];
    refuse(&mut map, &Command::CreateVolume(Box::new(new_volume("a", 1, 2, 1, groups))));
}

#[test]
fn every_volume_command_is_a_compare_and_set() {
    let mut map = shrunk();
    let node = NodeId(1);
    let incarnation = Incarnation(1);
    for stale in [0, 2, 4] {
        let epoch = Epoch(stale);
        for command in [
            shrink(stale, &[1]),
            Command::Elect { volume: VOLUME, epoch, node, incarnation },
            Command::Activate { volume: VOLUME, epoch, online: Vec::new() },
            learn(stale, behind()),
            grow(stale, behind()),
        ] {
            let expected = Rejection::StaleEpoch { planned: epoch, current: Epoch(3) };
            assert_eq!(refuse(&mut map, &command), expected);
        }
    }
    let absent = VolumeNo(9);
    let command = Command::Activate { volume: absent, epoch: Epoch(1), online: Vec::new() };
    assert_eq!(refuse(&mut map, &command), Rejection::NoVolume(absent));
}

#[test]
fn shrink_takes_a_store_out_of_every_group() {
    let map = shrunk();
    let made = volume(&map);
    assert_eq!(made.groups[0].insync, SlotSet::first(2));
    assert_eq!(made.groups[1].insync, [Slot(0), Slot(2)].into_iter().collect());
    assert!(made.activated, "the same coordinator goes on");
    assert_eq!(made.coordinator.map(|coordinator| coordinator.node), Some(NodeId(1)));
    assert_eq!(made.writer_gen, 2, "only an election fences writers");
}

#[test]
fn shrink_never_goes_below_min_insync() {
    let mut map = shrunk();
    assert_eq!(refuse(&mut map, &shrink(3, &[1])), Rejection::MinInsync);
    assert!(matches!(refuse(&mut map, &shrink(3, &[3])), Rejection::Invalid(_)));
    assert!(matches!(refuse(&mut map, &shrink(3, &[])), Rejection::Invalid(_)));
    // From full, one of two named stores could go. That would help nobody who waits for the other.
    assert_eq!(refuse(&mut active(), &shrink(2, &[2, 3])), Rejection::MinInsync);
}

#[test]
fn to_bring_others_up_to_date_as_many_as_data_slots_are_enough() {
    let to_data = |epoch, no| {
        let stores = vec![store(no)];
        Command::Shrink { volume: VOLUME, epoch: Epoch(epoch), stores, to_data: true }
    };
    let mut map = active();
    map.volumes.get_mut(&VOLUME).expect("made").min_insync = 3;
    assert_eq!(refuse(&mut map, &shrink(2, &[3])), Rejection::MinInsync);
    accept(&mut map, &to_data(2, 3));
    assert_eq!(volume(&map).groups, volume(&shrunk()).groups);
    map.check().expect("a map like any other");
    assert_eq!(refuse(&mut map, &to_data(3, 1)), Rejection::MinInsync);
}

fn another_start(no: u64, run: u128, last: RunId, announced: &[u128]) -> StoreStart {
    let mut next = StoreStart { run: RunId(Uuid::from_u128(run)), last, ..start(no, 2, true) };
    for (place, name) in next.announced.iter_mut().zip(announced) {
        *place = RunId(Uuid::from_u128(*name));
    }
    next
}

#[test]
fn a_store_whose_disk_another_run_left_behind_is_taken_out() {
    let again = |map: &mut ClusterMap, store, last: Option<RunId>| {
        let next = start(store, 2, true);
        register_store(map, StoreStart { last: last.unwrap_or(next.last), ..next })
    };
    let other = Some(RunId(Uuid::from_u128(99)));
    let mut map = active();
    again(&mut map, 3, None);
    assert_eq!(volume(&map), volume(&active()), "it is what its last run left behind");
    let mut map = active();
    again(&mut map, 3, other);
    let made = volume(&map).clone();
    assert_eq!(made.epoch, Epoch(3));
    assert_eq!(made.groups, volume(&shrunk()).groups);
    // A start that was broken off is no other run.
    let broken = another_start(1, 70, RunId(Uuid::from_u128(1)), &[]);
    let mut after = active();
    register_store(&mut after, broken);
    for announced in [&[70][..], &[9, 70], &[71, 70, 9]] {
        let mut map = after.clone();
        let next = another_start(1, 72, RunId(Uuid::from_u128(1)), announced);
        let applied = register_store(&mut map, next);
        assert!(matches!(applied, Applied::RegisteredStore { clean: false, .. }), "{applied:?}");
        assert_eq!(volume(&map), volume(&active()), "announced {announced:?}");
    }
    // Another one would be too many to go, so it is compared with the rest.
    again(&mut map, 2, other);
    assert_eq!(volume(&map), &made);
    assert!(!map.stores[&store(2)].clean);
}

#[test]
fn shrink_names_only_the_groups_that_could_not() {
    let mut map = active();
    // Group 0 full, group 1 at its minimum.
    accept(&mut map, &shrink(2, &[3]));
    accept(&mut map, &learn(3, vec![slot(0, 2, 3, 1)]));
    accept(&mut map, &grow(3, vec![slot(0, 2, 3, 1)]));
    let applied = accept(&mut map, &shrink(4, &[1]));
    assert_eq!(applied, Applied::Epoch { epoch: Epoch(5), refused: vec![GroupNo(1)] });
}

#[test]
fn shrink_drops_a_learner() {
    let mut map = shrunk();
    accept(&mut map, &learn(3, behind()));
    assert_eq!(accept(&mut map, &shrink(3, &[3])), epoch(4));
    assert!(volume(&map).groups.iter().all(|group| group.learners.is_empty()));
}

#[test]
fn only_the_registered_start_of_a_node_is_elected() {
    let mut map = active();
    let elect = |node, incarnation| Command::Elect {
        volume: VOLUME,
        epoch: Epoch(2),
        node: NodeId(node),
        incarnation: Incarnation(incarnation),
    };
    assert_eq!(refuse(&mut map, &elect(2, 2)), Rejection::Incarnation);
    assert_eq!(refuse(&mut map, &elect(2, 0)), Rejection::Incarnation);
    assert!(matches!(refuse(&mut map, &elect(9, 1)), Rejection::Invalid(_)));
    assert_eq!(accept(&mut map, &elect(2, 1)), epoch(3));
    let made = volume(&map);
    assert_eq!(made.coordinator.map(|coordinator| coordinator.node), Some(NodeId(2)));
    assert_eq!((made.activated, made.writer_gen), (false, 3));
}

#[test]
fn a_member_that_never_started_is_not_elected() {
    let mut map = active();
    map.nodes.get_mut(&NodeId(3)).expect("member").incarnation = Incarnation(0);
    let command = Command::Elect {
        volume: VOLUME,
        epoch: Epoch(2),
        node: NodeId(3),
        incarnation: Incarnation(0),
    };
    assert_eq!(refuse(&mut map, &command), Rejection::Incarnation);
}

#[test]
fn an_election_clears_learners_and_activation() {
    let mut map = shrunk();
    accept(&mut map, &learn(3, behind()));
    elect(&mut map, 2);
    let made = volume(&map);
    assert!(made.groups.iter().all(|group| group.learners.is_empty()) && !made.activated);
    refuse(&mut map, &learn(4, behind()));
    refuse(&mut map, &grow(4, behind()));
}

#[test]
fn a_coordinator_is_activated_once() {
    let mut map = active();
    refuse(&mut map, &Command::Activate { volume: VOLUME, epoch: Epoch(2), online: Vec::new() });
    elect(&mut map, 3);
    let activate = Command::Activate { volume: VOLUME, epoch: Epoch(3), online: Vec::new() };
    assert_eq!(accept(&mut map, &activate), epoch(3));

    let mut map = cluster(3);
    let groups = vec![vec![store(1), store(2), store(3)]];
    accept(&mut map, &Command::CreateVolume(Box::new(new_volume("a", 1, 2, 1, groups))));
    refuse(&mut map, &Command::Activate { volume: VOLUME, epoch: Epoch(1), online: Vec::new() });
}

#[test]
fn a_learner_is_a_registered_store_of_the_table_out_of_sync() {
    let mut map = shrunk();
    for wrong in [
        slot(2, 2, 3, 1), // no such group
        slot(0, 3, 3, 1), // no such slot
        slot(0, 1, 3, 1), // another store's slot
        slot(0, 0, 1, 1), // in sync
    ] {
        let rejection = refuse(&mut map, &learn(3, vec![slot(1, 1, 3, 1), wrong]));
        assert!(matches!(rejection, Rejection::Invalid(_)), "{rejection}");
    }
    refuse(&mut map, &learn(3, vec![]));
    refuse(&mut map, &learn(3, vec![slot(0, 2, 3, 1), slot(0, 2, 3, 1)]));
    assert_eq!(refuse(&mut map, &learn(3, vec![slot(0, 2, 3, 2)])), Rejection::Incarnation);
    assert_eq!(accept(&mut map, &learn(3, behind())), epoch(3));
}

#[test]
fn grow_needs_the_learner_it_names() {
    let mut map = shrunk();
    assert!(matches!(refuse(&mut map, &grow(3, behind())), Rejection::Invalid(_)));
    accept(&mut map, &learn(3, vec![slot(0, 2, 3, 1)]));
    refuse(&mut map, &grow(3, behind()));
    assert_eq!(accept(&mut map, &grow(3, vec![slot(0, 2, 3, 1)])), epoch(4));
    assert_eq!(volume(&map).groups[0].insync, SlotSet::first(3));
    assert!(!volume(&map).is_full());
    accept(&mut map, &learn(4, vec![slot(1, 1, 3, 1)]));
    accept(&mut map, &grow(4, vec![slot(1, 1, 3, 1)]));
    assert!(volume(&map).is_full());
}

#[test]
fn a_store_that_restarts_while_it_catches_up_does_not_grow_in() {
    let mut map = shrunk();
    accept(&mut map, &learn(3, behind()));
    register_store(&mut map, start(3, 2, true));
    assert!(volume(&map).groups.iter().all(|group| group.learners.is_empty()));
    assert_eq!(refuse(&mut map, &grow(3, behind())), Rejection::Incarnation);
    let now: Vec<_> =
        behind().into_iter().map(|s| GrowSlot { incarnation: Incarnation(2), ..s }).collect();
    assert!(matches!(refuse(&mut map, &grow(3, now.clone())), Rejection::Invalid(_)));
    accept(&mut map, &learn(3, now.clone()));
    accept(&mut map, &grow(3, now));
    assert!(volume(&map).is_full());
}

#[test]
fn used_up_epochs_stop_the_volume_and_not_the_process() {
    let mut map = active();
    map.volumes.get_mut(&VOLUME).expect("volume").epoch = Epoch(u32::MAX);
    refuse(&mut map, &shrink(u32::MAX, &[1]));
}
