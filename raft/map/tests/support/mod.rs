//! A small cluster to apply commands to.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use rand::SeedableRng;
use rand::rngs::StdRng;
use smalti_map::{
    Applied, ClusterMap, Command, Custody, KeyEpoch, NewVolume, NodeAddresses, ReadMode,
    ShareHolder, StoreStart, Volume,
};
use smalti_storage::ids::{
    ClusterId, Epoch, Incarnation, KeyEpochNo, NodeId, RunId, StoreId, VolumeId, VolumeNo,
};
use smalti_storage::keys::{Secret, SecretName, get_key_parts};
use smalti_storage::store::Announced;
use uuid::Uuid;

pub(crate) const VOLUME: VolumeNo = VolumeNo(1);

pub(crate) fn addresses(port: u16) -> NodeAddresses {
    let at = |offset| ([127, 0, 0, 1], port + offset).into();
    NodeAddresses { quic: at(0), api: at(1), nbd: at(2) }
}

/// Commitments to a dealing of a secret: both are small numbers here.
pub(crate) fn commitments(secret: u8, dealing: u8, threshold: u8) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(secret.into());
    let secret = Secret::random(&mut rng);
    let mut rng = StdRng::seed_from_u64(dealing.into());
    get_key_parts(&secret, threshold, threshold, &mut rng).expect("a split").commitments.to_bytes()
}

/// What a command is called here.
pub(crate) fn kind(command: &Command) -> &'static str {
    match command {
        Command::InitCluster { .. } => "init",
        Command::RegisterNode { .. } => "node",
        Command::RegisterStore { .. } => "store",
        Command::CreateVolume(_) => "create",
        Command::DeleteVolume { .. } => "delete",
        Command::Shrink { .. } => "shrink",
        Command::Elect { .. } => "elect",
        Command::Activate { .. } => "activate",
        Command::SetOffline { .. } => "offline",
        Command::AddLearners { .. } => "learn",
        Command::Grow { .. } => "grow",
        Command::Move { .. } => "move",
        Command::ForgetHolders { .. } => "forget",
        Command::AddSnapshot { .. } => "snapshot",
        Command::DropSnapshot { .. } => "drop",
        Command::RegisterRaftStore { .. } => "raft",
        Command::AdmitRecruit { .. } => "admit",
        Command::SetNode { .. } => "set",
        Command::RemoveNode { .. } => "remove",
        Command::ForgetStore { .. } => "forget store",
        Command::PauseMoves(_) => "pause",
        Command::AskScrub { .. } => "ask scrub",
        Command::NoteScrubs { .. } => "note scrub",
        Command::NoteFaults { .. } => "note faults",
        Command::AskRotation { .. } => "ask rotation",
        Command::AddKeyEpoch { .. } => "add keys",
        Command::RetireKeyEpochs { .. } => "retire keys",
        Command::SetCustodians { .. } => "custodians",
        Command::Reshare { .. } => "reshare",
        Command::ReplaceMaster { .. } => "replace master",
        Command::RevokeKeys { .. } => "revoke keys",
        Command::NoteSealed { .. } => "note sealed",
        Command::CreateToken { .. } => "token",
        Command::Join { .. } => "join",
    }
}

/// The only store of node `no`.
pub(crate) fn store(no: u64) -> StoreId {
    StoreId(Uuid::from_u128(0x5_0000 + u128::from(no)))
}

pub(crate) fn custody(nodes: u64) -> Custody {
    let holder = |no: u64| ShareHolder { node: NodeId(no), share: no as u8 };
    Custody {
        share_epoch: 1,
        threshold: 1 + (nodes / 2) as u8,
        holders: (1..=nodes).map(holder).collect(),
        commitments: commitments(1, 1, 2),
        sealed_for_recovery: Vec::new(),
    }
}

pub(crate) fn init(nodes: u64) -> Command {
    let member = |no: u64| (NodeId(no), format!("node-{no}"), addresses(1000 + 10 * no as u16));
    Command::InitCluster {
        cluster: ClusterId(Uuid::from_u128(0xc1)),
        nodes: (1..=nodes).map(member).collect(),
        custody: custody(nodes.min(3)),
        recovery: None,
    }
}

/// A run is called by the number that its store gives it. A disk knows the run before.
pub(crate) fn start(no: u64, incarnation: u64, clean: bool) -> StoreStart {
    let run = |no: u64| RunId(Uuid::from_u128(no.into()));
    StoreStart {
        store: store(no),
        node: NodeId(no),
        of: Incarnation(0),
        incarnation: Incarnation(incarnation),
        run: run(incarnation),
        last: run(incarnation - 1),
        announced: Announced::default(),
        clean,
    }
}

/// Registers it with the newest start of its node.
pub(crate) fn register_store(map: &mut ClusterMap, start: StoreStart) -> Applied {
    let of = map.nodes.get(&start.node).map_or(Incarnation(0), |node| node.incarnation);
    map.apply(&Command::RegisterStore(StoreStart { of, ..start }))
}

pub(crate) fn new_volume(
    name: &str,
    id: u128,
    data: u8,
    parity: u8,
    groups: Vec<Vec<StoreId>>,
) -> NewVolume {
    NewVolume {
        id: VolumeId(Uuid::from_u128(id)),
        name: name.into(),
        size: 64 << 20,
        data,
        parity,
        shard_size: 1 << 20,
        min_insync: data,
        read_mode: ReadMode::Lease,
        key_epoch: new_keys(1, groups.len() * usize::from(data)),
        groups,
    }
}

/// The key epoch of that number, for so many columns.
pub(crate) fn new_keys(no: u32, columns: usize) -> KeyEpoch {
    KeyEpoch {
        no: KeyEpochNo(no),
        timestamp: 1_700_000_000 + u64::from(no),
        since: 0,
        sealed: 0,
        shard_keys: vec![vec![1; 60]; columns],
        place_key: vec![2; 60],
        custody: custody(3),
    }
}

/// `nodes` nodes with one store each, all registered once.
pub(crate) fn cluster(nodes: u64) -> ClusterMap {
    let mut map = ClusterMap::default();
    accept(&mut map, &init(nodes));
    for no in 1..=nodes {
        let node = NodeId(no);
        accept(&mut map, &Command::RegisterNode { node, addresses: addresses(2000) });
        register_store(&mut map, start(no, 1, true));
    }
    map
}

/// Five nodes and a 2+1 volume of two groups over the first three, coordinated by node 1 and activated:
/// epoch 2.
pub(crate) fn active() -> ClusterMap {
    let mut map = cluster(5);
    let groups = vec![vec![store(1), store(2), store(3)], vec![store(2), store(3), store(1)]];
    let new = new_volume("vol", 0xf1, 2, 1, groups);
    assert_eq!(accept(&mut map, &Command::CreateVolume(Box::new(new))), Applied::Created(VOLUME));
    elect(&mut map, 1);
    let epoch = volume(&map).epoch;
    accept(&mut map, &Command::Activate { volume: VOLUME, epoch, online: Vec::new() });
    map
}

pub(crate) fn elect(map: &mut ClusterMap, no: u64) {
    let epoch = volume(map).epoch;
    let incarnation = map.nodes[&NodeId(no)].incarnation;
    accept(map, &Command::Elect { volume: VOLUME, epoch, node: NodeId(no), incarnation });
}

pub(crate) fn volume(map: &ClusterMap) -> &Volume {
    &map.volumes[&VOLUME]
}

/// Applies a command that has to be accepted.
#[track_caller]
pub(crate) fn accept(map: &mut ClusterMap, command: &Command) -> Applied {
    let applied = map.apply(command);
    assert!(!matches!(applied, Applied::Rejected(_)), "{command:?}: {applied:?}");
    assert_eq!(map.check(), Ok(()), "after {command:?}");
    applied
}

/// Applies a command that has to be refused, and leave no trace but the version.
#[track_caller]
pub(crate) fn refuse(map: &mut ClusterMap, command: &Command) -> smalti_map::Rejection {
    let before = map.clone();
    let applied = map.apply(command);
    let Applied::Rejected(rejection) = applied else { panic!("{command:?}: {applied:?}") };
    assert_eq!(map.version, before.version + 1);
    map.version = before.version;
    assert_eq!(*map, before, "{command:?} was refused and changed something");
    rejection
}

/// What an accepted command made of the keys: one begins a key epoch, with an election of whoever
/// coordinates; one ends all before one.
pub(crate) fn keys(before: &Volume, after: &Volume, command: &Command) {
    let mut expected = before.clone();
    match command {
        Command::AskRotation { volume, .. } if *volume == before.no => expected.rotate = true,
        Command::AddKeyEpoch { volume, key_epoch, .. } if *volume == before.no => {
            let since = before.epoch.0 + 1;
            assert!(before.activated && key_epoch.no.0 == before.key_epoch.0 + 1);
            let new = KeyEpoch { since, sealed: 0, ..KeyEpoch::clone(key_epoch) };
            assert_eq!(expected.key_epochs.insert(new.no, new), None);
            (expected.key_epoch, expected.rotate) = (key_epoch.no, false);
            (expected.epoch, expected.writer_gen) = (Epoch(since), since);
            expected.activated = false;
            expected.groups.iter_mut().for_each(|group| group.learners.clear());
        }
        Command::RetireKeyEpochs { volume, generation, below } if *volume == before.no => {
            assert!(*generation == before.writer_gen && *below <= before.key_epoch);
            expected.key_epochs.retain(|no, _| no >= below);
            assert_ne!(expected.key_epochs, before.key_epochs);
            expected.revoked = before.revoked.filter(|revoked| revoked.through >= *below);
        }
        Command::RevokeKeys { volume, key_epoch, .. } if *volume == before.no => {
            let revoked = after.revoked.expect("revoked");
            assert!(before.key_epochs.contains_key(key_epoch) && revoked.through >= *key_epoch);
            assert!(before.revoked.is_none_or(
                |before| revoked.through >= before.through && revoked.since <= before.since
            ));
            expected.revoked = Some(revoked);
            expected.rotate |= revoked.through == before.key_epoch;
        }
        Command::NoteSealed { volume, key_epoch, blocks } if *volume == before.no => {
            let noted = expected.key_epochs.get_mut(key_epoch).expect("a key epoch");
            noted.sealed = noted.sealed.saturating_add(*blocks);
        }
        Command::Reshare { secret: SecretName::Wrapping { volume, key_epoch }, from, custody }
            if *volume == before.id =>
        {
            let dealt = expected.key_epochs.get_mut(key_epoch).expect("a key epoch");
            assert!(
                dealt.custody.commitments == *from
                    && dealt.custody.share_epoch < custody.share_epoch
            );
            dealt.custody.clone_from(custody);
        }
        _ => {
            let of = |volume: &Volume| {
                let keys = (volume.key_epoch, volume.key_epochs.clone());
                (keys, volume.rotate, volume.revoked)
            };
            assert_eq!(of(before), of(after), "changed by {command:?}");
            return;
        }
    }
    assert_eq!(after, &expected);
}
