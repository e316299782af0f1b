use super::*;
use crate::command::{Command, NewVolume, NodeSetting, StoreStart};
use crate::placement::{Candidate, place_groups};
use crate::types::{Custody, KeyEpoch, NodeAddresses, ShareHolder};
use crate::{Applied, GrowSlot};
use smalti_storage::ids::{ClusterId, Epoch, Incarnation, KeyEpochNo, VolumeId};
use uuid::Uuid;

const VOLUME: VolumeNo = VolumeNo(1);

fn store(no: u64) -> StoreId {
    StoreId(Uuid::from_u128(u128::from(no)))
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

struct Rig {
    map: ClusterMap,
    sights: BTreeMap<StoreId, Sight>,
    in_vain: InVain,
    policy: Policy,
    moved: usize,
}

impl Rig {
    /// `placed` of `nodes` nodes have the slots of a volume in sync.
    fn new(nodes: u64, placed: u64, (data, parity): (u8, u8), groups: u16) -> Self {
        let at = |port: u16| ([127, 0, 0, 1], port).into();
        let addresses = NodeAddresses { quic: at(1), api: at(2), nbd: at(3) };
        let mut map = ClusterMap::default();
        let custody = Custody {
            share_epoch: 1,
            threshold: 1,
            holders: vec![ShareHolder { node: NodeId(1), share: 1 }],
            commitments: vec![1],
            sealed_for_recovery: Vec::new(),
        };
        let mut must = |command: &Command| {
            let applied = map.apply(command);
            assert!(!matches!(applied, Applied::Rejected(_)), "{applied:?}");
        };
        must(&Command::InitCluster {
            cluster: ClusterId(Uuid::from_u128(1)),
            nodes: (1..=nodes)
                .map(|no| (NodeId(no), format!("n{no}"), addresses.clone()))
                .collect(),
            custody: custody.clone(),
            recovery: None,
        });
        for no in 1..=nodes {
            must(&Command::RegisterNode { node: NodeId(no), addresses: addresses.clone() });
            must(&Command::RegisterStore(StoreStart::first(store(no), NodeId(no), Incarnation(1))));
        }
        let candidate = |no| Candidate {
            store: store(no),
            node: NodeId(no),
            domain: FailureDomain::Own(NodeId(no)),
            weight: 100,
        };
        let candidates: Vec<_> = (1..=placed).map(candidate).collect();
        let id = VolumeId(Uuid::from_u128(2));
        let tables = place_groups(id, groups, data, parity, &candidates).expect("enough nodes");
        must(&Command::CreateVolume(Box::new(NewVolume {
            id,
            name: "v".into(),
            size: 1 << 30,
            data,
            parity,
            shard_size: 1 << 20,
            min_insync: data,
            read_mode: crate::ReadMode::Lease,
            groups: tables,
            key_epoch: KeyEpoch {
                no: KeyEpochNo(1),
                timestamp: 1,
                since: 0,
                sealed: 0,
                shard_keys: vec![vec![1]; usize::from(groups) * usize::from(data)],
                place_key: vec![1],
                custody,
            },
        })));
        let node = NodeId(1);
        must(&Command::Elect {
            volume: VOLUME,
            epoch: Epoch(1),
            node,
            incarnation: Incarnation(1),
        });
        let sight = Sight { away: None, room: Some(1 << 40), used: 1 << 30 };
        let sights = (1..=nodes).map(|no| (store(no), sight)).collect();
        let (in_vain, policy) = (InVain::new(), Policy::default());
        let mut rig = Self { map, sights, in_vain, policy, moved: 0 };
        rig.must(&Command::Activate {
            volume: VOLUME,
            epoch: rig.volume().epoch,
            online: Vec::new(),
        });
        rig
    }

    fn must(&mut self, command: &Command) {
        let applied = self.map.apply(command);
        assert!(!matches!(applied, Applied::Rejected(_)), "{command:?}: {applied:?}");
        self.map.check().expect("consistent");
    }

    fn volume(&self) -> &Volume {
        &self.map.volumes[&VOLUME]
    }

    fn set(&mut self, no: u64, setting: NodeSetting) {
        self.must(&Command::SetNode { node: NodeId(no), setting });
    }

    fn away(&mut self, no: u64, since: Duration) {
        self.sights.get_mut(&store(no)).expect("known").away = Some(since);
    }

    fn shrink(&mut self, no: u64) {
        let epoch = self.volume().epoch;
        self.must(&Command::Shrink {
            volume: VOLUME,
            epoch,
            stores: vec![store(no)],
            to_data: false,
        });
    }

    fn plan(&self) -> Plan {
        plan(&self.map, &self.sights, &self.in_vain, &self.policy)
    }

    /// Proposes what is planned, and lets every slot that can arrive do so, until nothing is planned.
    fn carry_out(&mut self) -> Plan {
        for _ in 0..10_000 {
            let plan = self.plan();
            for (volume, moves) in plan.moves.clone() {
                self.moved += moves.len();
                self.must(&Command::Move { volume, moves });
            }
            if !self.arrive() && plan.moves.is_empty() {
                return plan;
            }
        }
        panic!("it does not end");
    }

    fn arrive(&mut self) -> bool {
        let mut slots = Vec::new();
        for (no, group) in (0u16..).map(GroupNo).zip(&self.volume().groups) {
            for (slot, store) in &group.targets {
                let incarnation = self.map.stores[store].incarnation;
                slots.push(GrowSlot { group: no, slot: *slot, store: *store, incarnation });
            }
        }
        if !slots.is_empty() {
            let (volume, epoch) = (VOLUME, self.volume().epoch);
            self.must(&Command::AddLearners { volume, epoch, slots: slots.clone() });
            self.must(&Command::Grow { volume, epoch, slots: slots.clone() });
        }
        let clean = |group: &Group| {
            group.insync == self.volume().all_slots() && !group.old_holders.is_empty()
        };
        let numbered = (0u16..).map(GroupNo).zip(&self.volume().groups);
        let groups: Vec<GroupNo> =
            numbered.filter(|(_, group)| clean(group)).map(|(no, _)| no).collect();
        if !groups.is_empty() {
            let (volume, epoch) = (VOLUME, self.volume().epoch);
            self.must(&Command::ForgetHolders { volume, epoch, groups });
        }
        !slots.is_empty()
    }

    fn held(&self, no: u64) -> usize {
        let groups = &self.volume().groups;
        groups.iter().filter(|group| group.slot_of(store(no)).is_some()).count()
    }
}

#[test]
fn a_store_that_is_gone_is_replaced_when_its_time_is_over() {
    let mut rig = Rig::new(5, 4, (2, 2), 16);
    assert_eq!(rig.carry_out().moves, BTreeMap::new());
    let moved = rig.moved;
    rig.shrink(2);
    rig.away(2, secs(599));
    assert_eq!(rig.plan().moves, BTreeMap::new(), "it may come back");
    rig.away(2, secs(600));
    let first = &rig.plan().moves[&VOLUME];
    assert_eq!(first.len(), rig.policy.at_once, "a few at a time");
    let held = rig.held(2);
    assert!(held > 0);
    let plan = rig.carry_out();
    assert_eq!((rig.held(2), rig.moved - moved), (0, held));
    assert_eq!((plan.moving, plan.waiting, plan.stuck.len()), (0, 0, 0));
    assert_eq!(plan.forget, [], "nothing runs in its place");
}

#[test]
fn where_nothing_is_left_to_spare_nobody_waits() {
    let mut rig = Rig::new(4, 3, (2, 1), 6);
    rig.policy.at_once = 100;
    rig.set(4, NodeSetting::Weight(0));
    rig.shrink(3);
    rig.away(3, secs(5));
    let stuck = rig.plan().stuck;
    assert_eq!(stuck.len(), 6);
    assert!(stuck.iter().all(|slot| slot.cause == Cause::Lost && !slot.full), "{stuck:?}");
    rig.set(4, NodeSetting::Weight(100));
    rig.away(3, secs(4));
    assert_eq!(rig.plan().moves, BTreeMap::new());
    rig.away(3, secs(5));
    assert_eq!(rig.plan().moves[&VOLUME].len(), 6);
}

#[test]
fn the_most_endangered_groups_come_first() {
    let mut rig = Rig::new(6, 5, (2, 2), 20);
    rig.carry_out();
    rig.policy.at_once = 3;
    for no in [1, 2] {
        rig.shrink(no);
        rig.away(no, secs(1000));
    }
    let both = |rig: &Rig, group: GroupNo| {
        let group = &rig.volume().groups[usize::from(group.0)];
        group.slot_of(store(1)).is_some() && group.slot_of(store(2)).is_some()
    };
    let moves = &rig.plan().moves[&VOLUME];
    assert_eq!(moves.len(), 3);
    assert!(moves.iter().all(|wish| both(&rig, wish.group)), "{moves:?}");
}

#[test]
fn a_store_that_is_back_takes_its_slots_up_again() {
    let mut rig = Rig::new(4, 3, (2, 1), 4);
    rig.shrink(3);
    rig.away(3, secs(10));
    let Plan { moves, .. } = rig.plan();
    for (volume, moves) in moves {
        rig.must(&Command::Move { volume, moves });
    }
    rig.sights.get_mut(&store(3)).expect("known").away = None;
    let back = rig.plan();
    assert_eq!(back.moves[&VOLUME].len(), 4);
    assert!(back.moves[&VOLUME].iter().all(|wish| wish.store == store(3)));
    // A wish for a store that is gone itself is taken back too, and made anew.
    rig.away(3, secs(10));
    rig.away(4, secs(10));
    assert_eq!(rig.plan().moves[&VOLUME].len(), 4);
}

#[test]
fn a_replaced_disk_gets_what_the_old_one_had_and_the_old_one_is_forgotten() {
    let mut rig = Rig::new(3, 3, (2, 1), 12);
    rig.must(&Command::RegisterStore(StoreStart::first(store(9), NodeId(3), Incarnation(1))));
    rig.sights.insert(store(9), Sight { room: Some(1 << 40), ..Sight::default() });
    rig.shrink(3);
    rig.away(3, secs(5));
    let plan = rig.carry_out();
    assert_eq!((rig.held(9), rig.held(3)), (12, 0));
    assert_eq!(plan.forget, [store(3)]);
    rig.must(&Command::ForgetStore { store: store(3) });
    assert_eq!(rig.plan(), Plan::default());
}

#[test]
fn nothing_moves_where_there_is_no_room() {
    let mut rig = Rig::new(4, 3, (2, 1), 4);
    rig.shrink(3);
    rig.away(3, secs(10));
    rig.sights.get_mut(&store(4)).expect("known").room = Some(1 << 28);
    let plan = rig.plan();
    assert_eq!(plan.moves.values().flatten().count(), 0);
    assert_eq!(plan.stuck.len(), 4);
    assert!(plan.stuck.iter().all(|slot| slot.full));
    // A quarter of 4 GiB of 12 slots each.
    rig.sights.get_mut(&store(4)).expect("known").room = Some(800 << 20);
    let plan = rig.plan();
    assert_eq!(plan.moves[&VOLUME].len(), 2, "what is coming counts");
    assert_eq!(plan.stuck.len(), 2);
}

#[test]
fn a_drained_node_is_empty_in_the_end_and_can_be_removed() {
    let mut rig = Rig::new(5, 5, (2, 1), 20);
    rig.carry_out();
    rig.set(5, NodeSetting::Draining(true));
    let (moved, held) = (rig.moved, rig.held(5));
    let plan = rig.carry_out();
    assert_eq!((rig.held(5), plan.waiting), (0, 0));
    assert!(rig.moved - moved <= held + 2, "{} moves for {held} slots", rig.moved - moved);
    rig.must(&Command::RemoveNode { node: NodeId(5) });
    assert!(!rig.map.stores.contains_key(&store(5)));
    // Of three nodes none can be emptied.
    let mut rig = Rig::new(3, 3, (2, 1), 4);
    rig.set(3, NodeSetting::Draining(true));
    let plan = rig.plan();
    assert_eq!(plan.stuck.len(), 4);
    assert!(plan.stuck.iter().all(|slot| slot.cause == Cause::Drain && !slot.full));
    let applied = rig.map.apply(&Command::RemoveNode { node: NodeId(3) });
    assert!(matches!(applied, Applied::Rejected(_)));
}

#[test]
fn new_nodes_take_their_share_and_no_more_moves_than_that() {
    for (nodes, placed, geometry, groups) in
        [(4, 3, (2, 1), 48), (6, 3, (2, 1), 64), (8, 7, (4, 2), 128), (12, 6, (4, 2), 60)]
    {
        let mut rig = Rig::new(nodes, placed, geometry, groups);
        // What the hash left uneven among the first ones is not of the new ones' making.
        for no in placed + 1..=nodes {
            rig.set(no, NodeSetting::Weight(0));
        }
        rig.carry_out();
        rig.moved = 0;
        for no in placed + 1..=nodes {
            rig.set(no, NodeSetting::Weight(100));
        }
        rig.carry_out();
        let held: Vec<usize> = (1..=nodes).map(|no| rig.held(no)).collect();
        let taken: usize = held[usize::try_from(placed).expect("few")..].iter().sum();
        assert_eq!(rig.moved, taken, "{held:?}");
        let (least, most) = (held.iter().min(), held.iter().max());
        assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 2), "{held:?}");
        assert_eq!(rig.plan(), Plan::default(), "it comes to rest");
    }
}

#[test]
fn weights_are_shares() {
    let mut rig = Rig::new(6, 6, (2, 1), 100);
    rig.set(1, NodeSetting::Weight(200));
    rig.set(2, NodeSetting::Weight(50));
    rig.carry_out();
    let held: Vec<usize> = (1..=6).map(|no| rig.held(no)).collect();
    assert!(held[0].abs_diff(92) <= 2 && held[1].abs_diff(23) <= 2, "{held:?}");
    // No node has two slots of a group, however heavy.
    rig.set(1, NodeSetting::Weight(10_000));
    rig.carry_out();
    assert!(rig.held(1) >= 99);
    assert_eq!(rig.plan(), Plan::default());
}

#[test]
fn slots_are_spread_over_failure_domains() {
    let mut rig = Rig::new(6, 6, (2, 1), 30);
    for (no, domain) in [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "b"), (6, "c")] {
        rig.set(no, NodeSetting::Domain(domain.into()));
    }
    rig.carry_out();
    for group in &rig.volume().groups {
        let domain = |store: &StoreId| rig.map.nodes[&rig.map.stores[store].node].domain.clone();
        let domains: BTreeSet<String> = group.slots.iter().map(domain).collect();
        assert_eq!(domains.len(), 3, "{group:?}");
    }
    assert_eq!(rig.plan(), Plan::default());
}

#[test]
fn with_fewer_domains_than_slots_it_comes_to_rest() {
    for weights in [[100; 6], [100, 50, 100, 200, 100, 100]] {
        let mut rig = Rig::new(6, 6, (2, 2), 32);
        for (no, domain) in [(1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "c"), (6, "c")] {
            rig.set(no, NodeSetting::Domain(domain.into()));
            rig.set(no, NodeSetting::Weight(weights[usize::try_from(no - 1).expect("few")]));
        }
        rig.carry_out();
        for group in &rig.volume().groups {
            let domain =
                |store: &StoreId| rig.map.nodes[&rig.map.stores[store].node].domain.clone();
            let domains: BTreeSet<String> = group.slots.iter().map(domain).collect();
            assert_eq!(domains.len(), 3, "{group:?}");
        }
        assert_eq!(rig.plan(), Plan::default());
    }
}

#[test]
fn what_can_not_be_rebuilt_is_in_nobody_s_way() {
    let mut rig = Rig::new(6, 5, (2, 1), 40);
    rig.carry_out();
    rig.policy.at_once = 2;
    rig.shrink(1);
    for no in [1, 2] {
        rig.away(no, secs(1000));
    }
    let both = |rig: &Rig, group: GroupNo| {
        let group = &rig.volume().groups[usize::from(group.0)];
        group.slot_of(store(1)).is_some() && group.slot_of(store(2)).is_some()
    };
    let moves = &rig.plan().moves[&VOLUME];
    assert_eq!(moves.len(), 2);
    assert!(moves.iter().all(|wish| !both(&rig, wish.group)), "{moves:?}");
}

#[test]
fn what_does_not_get_on_is_in_nobody_s_way() {
    let mut rig = Rig::new(4, 3, (2, 1), 8);
    rig.policy.at_once = 2;
    rig.shrink(3);
    rig.away(3, secs(1000));
    let Plan { moves, .. } = rig.plan();
    assert_eq!(moves[&VOLUME].len(), 2);
    rig.must(&Command::Move { volume: VOLUME, moves: moves[&VOLUME].clone() });
    // They move, and none of them comes to an end.
    assert_eq!((rig.plan().moves.len(), rig.plan().moving), (0, 2));
    let places: Vec<_> = moves[&VOLUME].iter().map(|wish| (wish.group, wish.slot)).collect();
    rig.in_vain = [(VOLUME, [places[0]].into())].into();
    assert_eq!(rig.plan().moves[&VOLUME].len(), 1);
    rig.in_vain = [(VOLUME, places.iter().copied().collect())].into();
    let plan = rig.plan();
    assert_eq!((plan.moves[&VOLUME].len(), plan.moving, plan.waiting), (2, 4, 4));
    // What they took is taken already: there is room for two and a half of 24 slots.
    let used: u64 = rig.sights.values().map(|sight| sight.used).sum();
    rig.sights.get_mut(&store(4)).expect("known").room = Some(used / 24 * 5 / 2);
    assert_eq!(rig.plan().moves[&VOLUME].len(), 2);
    rig.sights.get_mut(&store(4)).expect("known").room = Some(1 << 40);
    // Those of another volume say nothing of this one, nor those that do not move any more.
    let gone = moves[&VOLUME].iter().map(|wish| (GroupNo(wish.group.0 + 4), wish.slot));
    for in_vain in
        [(VolumeNo(VOLUME.0 + 1), places.into_iter().collect()), (VOLUME, gone.collect())]
    {
        rig.in_vain = [in_vain].into();
        assert_eq!(rig.plan().moves.len(), 0);
    }
}

#[test]
fn nothing_begins_while_moves_are_paused() {
    let mut rig = Rig::new(4, 3, (2, 1), 4);
    rig.must(&Command::PauseMoves(true));
    assert_eq!(rig.plan().moves, BTreeMap::new());
    rig.shrink(3);
    rig.away(3, secs(10));
    let plan = rig.plan();
    assert_eq!((plan.moves.len(), plan.waiting), (0, 4));
    rig.must(&Command::PauseMoves(false));
    assert_eq!(rig.plan().moves[&VOLUME].len(), 4);
}

#[test]
fn what_moved_is_kept_until_the_others_of_its_group_are_back() {
    let mut rig = Rig::new(6, 6, (2, 2), 16);
    rig.shrink(2);
    rig.away(2, secs(30));
    rig.set(6, NodeSetting::Draining(true));
    let plan = rig.carry_out();
    let kept = rig.volume().groups.iter().filter(|g| g.old_holders.contains(&store(6))).count();
    assert!(kept > 0, "no group has both");
    assert_eq!((rig.held(6), plan.moving, plan.waiting, plan.kept), (0, 0, 0, kept));
    assert_eq!(plan.stuck, []);
    rig.away(2, secs(600));
    let plan = rig.carry_out();
    assert_eq!((plan.moving, plan.waiting, plan.kept), (0, 0, 0), "rebuilt, and so let go of");
}
