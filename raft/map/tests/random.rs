//! Random command sequences: the invariants hold after every one of them.

mod support;

use proptest::prelude::*;
use smalti_map::{
    Applied, ClusterMap, Command, Custodians, Custody, GroupScrub, GrowSlot, JoinToken, KeyEpoch,
    MoveSlot, NodeSetting, Snapshot, StoreStart, Volume,
};
use smalti_storage::ids::{
    Epoch, GroupNo, Incarnation, KeyEpochNo, NodeId, RaftStoreId, Slot, TokenId, VolumeNo,
};
use std::collections::BTreeMap;
use support::*;
use uuid::Uuid;

/// Numbers a little outside of what exists, so that refusals are common but not the rule.
#[derive(Clone, Debug)]
enum Step {
    Node(u64),
    Store {
        no: u64,
        ahead: u64,
        clean: bool,
    },
    Create {
        id: u128,
        rotate: usize,
        parity: u8,
        strict: bool,
    },
    Delete {
        volume: u32,
        right: bool,
    },
    Shrink {
        volume: u32,
        lag: u32,
        stores: Vec<u64>,
        to_data: bool,
    },
    Elect {
        volume: u32,
        lag: u32,
        node: u64,
        behind: u64,
    },
    Activate {
        volume: u32,
        lag: u32,
        online: Vec<u16>,
    },
    Offline {
        volume: u32,
        lag: u32,
        groups: Vec<u16>,
    },
    /// `AddLearners` or `Grow` of what is out of sync or learning, chosen by bits.
    Slots {
        volume: u32,
        lag: u32,
        grow: bool,
        pick: u32,
        behind: u64,
    },
    Move {
        volume: u32,
        group: u16,
        slot: u8,
        to: u64,
    },
    Forget {
        volume: u32,
        lag: u32,
        group: u16,
    },
    AddSnapshot {
        volume: u32,
        lag: u32,
        name: u8,
    },
    /// `back` numbers before the one that would be next.
    DropSnapshot {
        volume: u32,
        back: u32,
    },
    /// A start with a Raft store, known or new.
    Raft {
        no: u64,
        id: u128,
    },
    Admit {
        no: u64,
        id: u128,
    },
    /// A weight, a failure domain or a drain.
    Set {
        no: u64,
        what: u32,
    },
    Remove(u64),
    ForgetStore(u64),
    AskScrub(u32),
    NoteScrub {
        volume: u32,
        lag: u32,
        group: u16,
        ahead: u32,
    },
    Faults(u64),
    /// New keys are wanted instead of the present ones, or of others.
    Rotate {
        volume: u32,
        right: bool,
    },
    AddKeys {
        volume: u32,
        lag: u32,
        skip: u32,
        later: u64,
    },
    Custodians {
        right: bool,
        threshold: u8,
        first: u64,
        count: u64,
        new_master: bool,
    },
    NewMaster {
        right: bool,
        secret: u8,
        dealing: u8,
    },
    Revoke {
        volume: u32,
        older: u32,
    },
    Sealed {
        volume: u32,
        blocks: u64,
    },
    Reshare {
        of: usize,
        right: bool,
        secret: u8,
        dealing: u8,
    },
    Retire {
        volume: u32,
        right: bool,
        below: u32,
    },
    /// A token that lasts from `now` on.
    Token {
        id: u128,
        name: u8,
        now: u64,
    },
    Join {
        token: u128,
        name: u8,
        port: u16,
        now: u64,
    },
}

/// Names of nodes that join: none, and one that there is among them.
fn joiner(name: u8) -> String {
    ["", "", "x", "y", "n1", "-"][usize::from(name)].into()
}

fn lag() -> impl Strategy<Value = u32> {
    prop_oneof![9 => Just(0), 1 => 0..3u32]
}

fn behind() -> impl Strategy<Value = u64> {
    prop_oneof![9 => Just(0), 1 => 0..3u64]
}

fn step() -> impl Strategy<Value = Step> {
    let volume = || prop_oneof![2 => Just(1), 1 => 0..5u32];
    prop_oneof![
        1 => (0..7u64).prop_map(Step::Node),
        2 => (1..7u64, 0..3u64, any::<bool>())
            .prop_map(|(no, ahead, clean)| Step::Store { no, ahead, clean }),
        1 => (1..9u128, 0..5usize, 1..3u8, any::<bool>())
            .prop_map(|(id, rotate, parity, strict)| Step::Create { id, rotate, parity, strict }),
        1 => (0..8u32, prop::bool::weighted(0.5))
            .prop_map(|(volume, right)| Step::Delete { volume, right }),
        3 => (volume(), lag(), prop::collection::vec(0..7u64, 0..3), any::<bool>()).prop_map(
            |(volume, lag, stores, to_data)| Step::Shrink { volume, lag, stores, to_data }
        ),
        1 => (volume(), lag(), 0..7u64, behind())
            .prop_map(|(volume, lag, node, behind)| Step::Elect { volume, lag, node, behind }),
        4 => (volume(), lag(), prop::collection::vec(0..4u16, 0..2))
            .prop_map(|(volume, lag, online)| Step::Activate { volume, lag, online }),
        3 => (volume(), lag(), prop::collection::vec(0..2u16, 1..2))
            .prop_map(|(volume, lag, groups)| Step::Offline { volume, lag, groups }),
        12 => (volume(), lag(), any::<bool>(), any::<u32>(), behind())
            .prop_map(|(volume, lag, grow, pick, behind)| {
                Step::Slots { volume, lag, grow, pick, behind }
            }),
        3 => (volume(), 0..3u16, 0..4u8, 0..7u64)
            .prop_map(|(volume, group, slot, to)| Step::Move { volume, group, slot, to }),
        3 => (volume(), lag(), 0..3u16)
            .prop_map(|(volume, lag, group)| Step::Forget { volume, lag, group }),
        3 => (volume(), lag(), 0..9u8)
            .prop_map(|(volume, lag, name)| Step::AddSnapshot { volume, lag, name }),
        2 => (volume(), 0..5u32).prop_map(|(volume, back)| Step::DropSnapshot { volume, back }),
        4 => (0..7u64, 0..3u128).prop_map(|(no, id)| Step::Raft { no, id }),
        2 => (0..7u64, 0..3u128).prop_map(|(no, id)| Step::Admit { no, id }),
        2 => (0..7u64, 0..20_000u32).prop_map(|(no, what)| Step::Set { no, what }),
        1 => (1..8u64).prop_map(Step::Remove),
        1 => (1..8u64).prop_map(Step::ForgetStore),
        1 => volume().prop_map(Step::AskScrub),
        3 => (volume(), lag(), 0..3u16, 0..3u32)
            .prop_map(|(volume, lag, group, ahead)| Step::NoteScrub { volume, lag, group, ahead }),
        1 => (1..8u64).prop_map(Step::Faults),
        2 => (volume(), any::<bool>()).prop_map(|(volume, right)| Step::Rotate { volume, right }),
        2 => (prop::bool::weighted(0.8), 1..4u8, 1..4u64, 2..4u64, any::<bool>()).prop_map(
            |(right, threshold, first, count, new_master)| {
                Step::Custodians { right, threshold, first, count, new_master }
            }
        ),
        1 => (prop::bool::weighted(0.8), 1..4u8, 1..9u8)
            .prop_map(|(right, secret, dealing)| Step::NewMaster { right, secret, dealing }),
        2 => (volume(), 0..3u32).prop_map(|(volume, older)| Step::Revoke { volume, older }),
        1 => (volume(), 0..9u64).prop_map(|(volume, blocks)| Step::Sealed { volume, blocks }),
        4 => (0..9usize, prop::bool::weighted(0.8), 1..3u8, 1..9u8).prop_map(
            |(of, right, secret, dealing)| Step::Reshare { of, right, secret, dealing }
        ),
        4 => (volume(), lag(), prop_oneof![4 => Just(1u32), 1 => 0..3u32], 0..3u64)
            .prop_map(|(volume, lag, skip, later)| Step::AddKeys { volume, lag, skip, later }),
        2 => (volume(), any::<bool>(), 0..12u32)
            .prop_map(|(volume, right, below)| Step::Retire { volume, right, below }),
        3 => (0..20u128, 0..6u8, 0..30u64).prop_map(|(id, name, now)| Step::Token { id, name, now }),
        3 => (0..20u128, 0..6u8, 0..20u16, 0..40u64)
            .prop_map(|(token, name, port, now)| Step::Join { token, name, port, now }),
    ]
}

fn command(map: &ClusterMap, step: &Step) -> Command {
    let epoch = |no: u32, lag: u32| {
        let current = map.volumes.get(&VolumeNo(no)).map_or(1, |volume| volume.epoch.0);
        Epoch(current.saturating_sub(lag))
    };
    let incarnation = |no: u64| map.stores.get(&store(no)).map_or(0, |entry| entry.incarnation.0);
    match *step {
        Step::Node(no) => Command::RegisterNode { node: NodeId(no), addresses: addresses(4000) },
        Step::Store { no, ahead, clean } => {
            let of = map.nodes.get(&NodeId(no)).map_or(Incarnation(0), |node| node.incarnation);
            Command::RegisterStore(StoreStart {
                of,
                ..start(no, 1 + incarnation(no) + ahead, clean)
            })
        }
        Step::Create { id, rotate, parity, strict } => {
            let table = |by: usize| {
                let members = 2 + u64::from(parity);
                (0..members).map(|i| store(1 + (i + by as u64) % 5)).collect::<Vec<_>>()
            };
            let groups = (rotate..rotate + 3).map(table).collect();
            let mut new = new_volume(&format!("v{id}"), id, 2, parity, groups);
            new.min_insync += u8::from(strict);
            Command::CreateVolume(Box::new(new))
        }
        Step::Delete { volume, right } => {
            let known = map.volumes.get(&VolumeNo(volume)).map(|volume| volume.id);
            let id = known.filter(|_| right).unwrap_or_default();
            Command::DeleteVolume { volume: VolumeNo(volume), id }
        }
        Step::Shrink { volume, lag, ref stores, to_data } => Command::Shrink {
            volume: VolumeNo(volume),
            epoch: epoch(volume, lag),
            stores: stores.iter().map(|no| store(*no)).collect(),
            to_data,
        },
        Step::Elect { volume, lag, node, behind } => {
            let current = map.nodes.get(&NodeId(node)).map_or(0, |entry| entry.incarnation.0);
            Command::Elect {
                volume: VolumeNo(volume),
                epoch: epoch(volume, lag),
                node: NodeId(node),
                incarnation: Incarnation(current.saturating_sub(behind)),
            }
        }
        Step::Activate { volume, lag, ref online } => {
            let online = online.iter().copied().map(GroupNo).collect();
            Command::Activate { volume: VolumeNo(volume), epoch: epoch(volume, lag), online }
        }
        Step::Offline { volume, lag, ref groups } => {
            let groups = groups.iter().copied().map(GroupNo).collect();
            Command::SetOffline { volume: VolumeNo(volume), epoch: epoch(volume, lag), groups }
        }
        Step::Move { volume, group, slot, to } => {
            let (group, slot) = (GroupNo(group), Slot(slot));
            let moves = vec![MoveSlot { group, slot, store: store(to) }];
            Command::Move { volume: VolumeNo(volume), moves }
        }
        Step::Forget { volume, lag, group } => Command::ForgetHolders {
            volume: VolumeNo(volume),
            epoch: epoch(volume, lag),
            groups: vec![GroupNo(group)],
        },
        Step::AddSnapshot { volume, lag, name } => Command::AddSnapshot {
            volume: VolumeNo(volume),
            epoch: epoch(volume, lag),
            // The first one is no name.
            name: if name == 0 { String::new() } else { format!("s{name}") },
            created: map.version,
        },
        Step::DropSnapshot { volume, back } => {
            let newest = map.volumes.get(&VolumeNo(volume)).map_or(0, |volume| volume.snap_seq);
            let snap = (newest + 1).saturating_sub(back);
            Command::DropSnapshot { volume: VolumeNo(volume), snap }
        }
        Step::Raft { no, id } => {
            Command::RegisterRaftStore { node: NodeId(no), store: RaftStoreId(Uuid::from_u128(id)) }
        }
        Step::Admit { no, id } => {
            let recruit = map.nodes.get(&NodeId(no)).and_then(|node| node.recruit);
            let store = recruit.filter(|_| id > 0).unwrap_or(RaftStoreId(Uuid::from_u128(id)));
            Command::AdmitRecruit { node: NodeId(no), store }
        }
        Step::Set { no, what } => Command::SetNode {
            node: NodeId(no),
            setting: match what % 3 {
                0 => NodeSetting::Weight(what),
                1 => NodeSetting::Domain(["a", "b", "", "-"][what as usize / 3 % 4].into()),
                _ => NodeSetting::Draining(what.is_multiple_of(2)),
            },
        },
        Step::Remove(no) => Command::RemoveNode { node: NodeId(no) },
        Step::ForgetStore(no) => Command::ForgetStore { store: store(no) },
        Step::AskScrub(no) => Command::AskScrub { volume: VolumeNo(no) },
        Step::NoteScrub { volume, lag, group, ahead } => {
            let known = map.volumes.get(&VolumeNo(volume)).map_or(0, |v| v.scrubs.asked);
            let asked = (known + 1).saturating_sub(ahead);
            let scrub = GroupScrub { ended: map.version, asked, ..GroupScrub::default() };
            let groups = vec![(GroupNo(group), scrub)];
            Command::NoteScrubs { volume: VolumeNo(volume), epoch: epoch(volume, lag), groups }
        }
        Step::Faults(no) => {
            Command::NoteFaults { at: map.version * 86_400, faults: vec![(store(no), 1)] }
        }
        Step::Rotate { volume, right } => {
            let current = map.volumes.get(&VolumeNo(volume)).map_or(0, |v| v.key_epoch.0);
            let key_epoch = KeyEpochNo(current + u32::from(!right));
            Command::AskRotation { volume: VolumeNo(volume), key_epoch }
        }
        Step::AddKeys { volume, lag, skip, later } => {
            let known = map.volumes.get(&VolumeNo(volume));
            let current = known.and_then(|volume| volume.key_epochs.get(&volume.key_epoch));
            let current = current.cloned().unwrap_or_else(|| new_keys(1, 3));
            let no = KeyEpochNo(current.no.0 + skip);
            let timestamp = current.timestamp + later;
            let key_epoch = Box::new(KeyEpoch { no, timestamp, ..current });
            Command::AddKeyEpoch { volume: VolumeNo(volume), epoch: epoch(volume, lag), key_epoch }
        }
        Step::Retire { volume, right, below } => {
            let generation = map.volumes.get(&VolumeNo(volume)).map_or(0, |v| v.writer_gen);
            Command::RetireKeyEpochs {
                volume: VolumeNo(volume),
                generation: generation + u32::from(!right),
                below: KeyEpochNo(below),
            }
        }
        Step::Custodians { right, threshold, first, count, new_master } => Command::SetCustodians {
            share_epoch: map.custodians.share_epoch + u32::from(!right),
            threshold,
            nodes: (first..first + count).map(NodeId).collect(),
            now: map.version,
            new_master,
        },
        Step::NewMaster { right, secret, dealing } => {
            let Custodians { share_epoch, threshold, ref holders, .. } = map.custodians;
            let from = if right { map.custody.commitments.clone() } else { Vec::new() };
            let (holders, commitments) = (holders.clone(), commitments(secret, dealing, threshold));
            let sealed_for_recovery = Vec::new();
            let custody =
                Custody { share_epoch, threshold, holders, commitments, sealed_for_recovery };
            Command::ReplaceMaster { from, custody }
        }
        Step::Revoke { volume, older } => {
            let current = map.volumes.get(&VolumeNo(volume)).map_or(0, |v| v.key_epoch.0);
            let key_epoch = KeyEpochNo(current.saturating_sub(older));
            Command::RevokeKeys { volume: VolumeNo(volume), key_epoch, now: map.version }
        }
        Step::Sealed { volume, blocks } => {
            let current = map.volumes.get(&VolumeNo(volume)).map_or(0, |v| v.key_epoch.0);
            let key_epoch = KeyEpochNo(current);
            Command::NoteSealed { volume: VolumeNo(volume), key_epoch, blocks }
        }
        Step::Reshare { of, right, secret, dealing } => {
            let custodies: Vec<_> = map.custodies().collect();
            let (name, current) = custodies[of % custodies.len()];
            let Custodians { share_epoch, threshold, ref holders, .. } = map.custodians;
            let from = if right { current.commitments.clone() } else { Vec::new() };
            let (holders, commitments) = (holders.clone(), commitments(secret, dealing, threshold));
            let custody = Custody {
                share_epoch,
                threshold,
                holders,
                commitments,
                sealed_for_recovery: Vec::new(),
            };
            Command::Reshare { secret: name, from, custody }
        }
        Step::Token { id, name, now } => Command::CreateToken {
            id: TokenId(Uuid::from_u128(id)),
            token: JoinToken {
                proof_key: [7; 32],
                name: joiner(name),
                expires: now + 10,
                used_by: None,
            },
            now,
        },
        Step::Join { token, name, port, now } => Command::Join {
            token: TokenId(Uuid::from_u128(token)),
            name: joiner(name),
            addresses: addresses(5000 + 3 * port),
            now,
        },
        Step::Slots { volume, lag, grow, pick, behind } => {
            let mut slots = Vec::new();
            for (group, entry) in map.volumes.get(&VolumeNo(volume)).iter().flat_map(|v| {
                v.groups.iter().enumerate().map(|(no, group)| (GroupNo(no as u16), group))
            }) {
                for (no, member) in entry.slots.iter().enumerate() {
                    let slot = Slot(no as u8);
                    let learner = entry.learners.get(&slot).map(|learner| &learner.store);
                    let target = entry.targets.get(&slot);
                    let candidate = match grow {
                        true => learner.is_some(),
                        false => target.is_some() || !entry.insync.contains(slot),
                    };
                    let member = learner.or(target).unwrap_or(member);
                    let odd = pick.is_multiple_of(16);
                    if odd || (candidate && pick >> (no as u16 + 4 * group.0) & 1 == 0) {
                        let current = map.stores[member].incarnation.0;
                        let incarnation = Incarnation(current.saturating_sub(behind));
                        slots.push(GrowSlot { group, slot, store: *member, incarnation });
                    }
                }
            }
            let (volume, epoch) = (VolumeNo(volume), epoch(volume, lag));
            match grow {
                true => Command::Grow { volume, epoch, slots },
                false => Command::AddLearners { volume, epoch, slots },
            }
        }
    }
}

/// M1, M3 and M4 over one accepted command.
fn transition(before: &Volume, after: &Volume, map: &ClusterMap, command: &Command) {
    let insync = |volume: &Volume| volume.groups.iter().map(|g| g.insync).collect::<Vec<_>>();
    let changed = insync(before) != insync(after) || before.coordinator != after.coordinator;
    assert!(after.epoch >= before.epoch && after.epoch.0 <= before.epoch.0 + 1);
    assert!(!changed || after.epoch > before.epoch, "a new configuration in an old epoch");
    assert!(after.writer_gen >= before.writer_gen);
    for (no, (old, new)) in before.groups.iter().zip(&after.groups).enumerate() {
        let moved = (0..).map(Slot).zip(old.slots.iter().zip(&new.slots));
        for (slot, (old_store, new_store)) in moved.filter(|(_, (old, new))| old != new) {
            assert!(matches!(command, Command::Grow { .. }), "moved by {command:?}");
            assert_eq!(old.learners.get(&slot).map(|learner| learner.store), Some(*new_store));
            assert_eq!(old.targets.get(&slot), Some(new_store));
            assert!(new.insync.contains(slot) && after.epoch > before.epoch);
            assert!(new.old_holders.contains(old_store) && new.keeps(*old_store));
        }
        // What may be deleted is, at the latest, when the next epoch begins.
        for no in 0..7 {
            let gone = old.keeps(store(no)) && !new.keeps(store(no));
            let restarted = matches!(command, Command::RegisterStore { .. });
            assert!(!gone || restarted || after.epoch > before.epoch, "{command:?}");
        }
        for slot in new.insync.minus(old.insync).iter() {
            assert!(before.activated, "grown before activation");
            let Command::Grow { slots, .. } = command else { panic!("grown by {command:?}") };
            let named = slots.iter().find(|s| usize::from(s.group.0) == no && s.slot == slot);
            let named = named.expect("grown without being named");
            assert_eq!(map.stores[&named.store].incarnation, named.incarnation);
            let learner = old.learners.get(&slot).expect("grown without having learnt");
            assert_eq!((learner.store, learner.incarnation), (named.store, named.incarnation));
        }
    }
}

/// What an accepted command made of the snapshots: one command adds one, one drops one, in an epoch
/// of its own and without another change. `made` counts all there ever were.
fn snapshots(before: &Volume, after: &Volume, made: &mut u32, command: &Command) {
    let mut expected = before.clone();
    match command {
        Command::AddSnapshot { volume, epoch, name, created } if *volume == before.no => {
            assert!(before.activated && before.epoch == *epoch && !name.is_empty());
            assert_eq!(before.snapshot_named(name), None, "a second one of the name");
            *made += 1;
            let snapshot = Snapshot { name: name.clone(), created: *created };
            assert_eq!(expected.snapshots.insert(*made, snapshot), None);
            let served = expected.groups.iter_mut().filter(|group| !group.offline);
            served.for_each(|group| group.settled = Epoch(before.epoch.0 + 1));
        }
        Command::DropSnapshot { volume, snap } if *volume == before.no => {
            assert!(expected.snapshots.remove(snap).is_some(), "there was no {snap}");
            expected.snapshots_deleted += 1;
        }
        _ => {
            let of = |volume: &Volume| {
                (volume.snap_seq, volume.snapshots_deleted, volume.snapshots.clone())
            };
            assert_eq!(of(before), of(after), "changed by {command:?}");
            return;
        }
    }
    (expected.epoch, expected.snap_seq) = (Epoch(before.epoch.0 + 1), *made);
    assert_eq!(after, &expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_commands_keep_the_invariants(steps in prop::collection::vec(step(), 1..150)) {
        let mut map = active();
        let mut replica = map.clone();
        let mut made = BTreeMap::<VolumeNo, u32>::new();
        for step in &steps {
            let command = command(&map, step);
            let before = map.clone();
            let applied = map.apply(&command);
            prop_assert_eq!(&applied, &replica.apply(&command));
            prop_assert_eq!(&map, &replica);
            prop_assert_eq!(map.check(), Ok(()), "after {:?}", &command);
            prop_assert_eq!(map.version, before.version + 1);
            if matches!(applied, Applied::Rejected(_)) {
                prop_assert_eq!(&ClusterMap { version: before.version, ..map.clone() }, &before);
            }
            prop_assert!(map.next_volume >= before.next_volume);
            let grown = map.next_node - before.next_node;
            let joined = matches!(applied, Applied::Joined { .. });
            prop_assert_eq!(grown, u64::from(joined), "{:?}", &command);
            for (no, old) in &before.volumes {
                if let Some(new) = map.volumes.get(no) {
                    transition(old, new, &map, &command);
                    if !matches!(applied, Applied::Rejected(_)) {
                        snapshots(old, new, made.entry(*no).or_default(), &command);
                        keys(old, new, &command);
                    }
                } else {
                    let deleted = matches!(command, Command::DeleteVolume { .. });
                    prop_assert!(deleted, "{} is gone", no);
                }
            }
        }
    }
}

/// The property above means something only if the sequences get past the refusals.
#[test]
fn random_commands_reach_every_kind_of_change() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{RngSeed, TestRunner};
    let config = ProptestConfig { rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    let mut accepted = BTreeMap::<&str, (usize, usize)>::new();
    for _ in 0..1200 {
        let steps = prop::collection::vec(step(), 150).new_tree(&mut runner).expect("steps");
        let mut map = active();
        for step in steps.current() {
            let command = command(&map, &step);
            let kind = kind(&command);
            let count = accepted.entry(kind).or_default();
            match map.apply(&command) {
                Applied::Rejected(_) => count.1 += 1,
                _ => count.0 += 1,
            }
        }
    }
    for kind in [
        "node",
        "store",
        "create",
        "delete",
        "shrink",
        "elect",
        "activate",
        "offline",
        "learn",
        "grow",
        "move",
        "forget",
        "snapshot",
        "drop",
        "raft",
        "admit",
        "set",
        "forget store",
        "ask scrub",
        "note scrub",
        "ask rotation",
        "add keys",
        "retire keys",
        "custodians",
        "reshare",
        "token",
        "join",
    ] {
        let (yes, no) = accepted[kind];
        assert!(yes >= 50 && no >= 50, "{kind}: {yes} accepted, {no} refused");
    }
}
