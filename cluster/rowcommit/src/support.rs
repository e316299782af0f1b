//! What tests of both sides share: a small map with one volume.

use smalti_map::{
    Applied, ClusterMap, Command, Custody, KeyEpoch, NewVolume, NodeAddresses, ReadMode,
    ShareHolder, StoreStart,
};
use smalti_storage::ids::{
    ClusterId, Epoch, GroupNo, Incarnation, KeyEpochNo, NodeId, RowAddr, RunId, Slot, StoreId,
    VolumeId, VolumeNo,
};
use smalti_storage::store::Announced;
use uuid::Uuid;

pub(crate) const VOLUME: VolumeNo = VolumeNo(1);
pub(crate) const RECORD_LEN: usize = 64;

/// The only store of node `no`, which fills slot `no - 1` of every group.
pub(crate) fn store(no: u64) -> StoreId {
    StoreId(Uuid::from_u128(u128::from(no)))
}

pub(crate) fn row(index: u32) -> RowAddr {
    RowAddr { group: GroupNo(0), stripe: 0, index }
}

pub(crate) fn accept(map: &mut ClusterMap, command: &Command) {
    let applied = map.apply(command);
    assert!(!matches!(applied, Applied::Rejected(_)), "{command:?}: {applied:?}");
}

pub(crate) fn epoch(map: &ClusterMap) -> Epoch {
    map.volumes[&VOLUME].epoch
}

/// As many nodes as slots, one group; nobody is elected: epoch 1.
pub(crate) fn map(data: u8, parity: u8) -> ClusterMap {
    map_of(u64::from(data + parity), data, parity)
}

/// With so many nodes; the first ones have the slots.
pub(crate) fn map_of(nodes: u64, data: u8, parity: u8) -> ClusterMap {
    let mut map = ClusterMap::default();
    let slots = u64::from(data + parity);
    let all = nodes;
    let at = ([127, 0, 0, 1], 1).into();
    let addresses = NodeAddresses { quic: at, api: at, nbd: at };
    let holders = vec![ShareHolder { node: NodeId(1), share: 1 }];
    let custody = Custody {
        share_epoch: 1,
        threshold: 1,
        holders,
        commitments: Vec::new(),
        sealed_for_recovery: Vec::new(),
    };
    let nodes = (1..=all).map(|no| (NodeId(no), format!("n{no}"), addresses.clone())).collect();
    let cluster = ClusterId(Uuid::from_u128(1));
    accept(
        &mut map,
        &Command::InitCluster { cluster, nodes, custody: custody.clone(), recovery: None },
    );
    for no in 1..=all {
        let node = NodeId(no);
        accept(&mut map, &Command::RegisterNode { node, addresses: addresses.clone() });
        start_store(&mut map, no, 1, true);
    }
    let key_epoch = KeyEpoch {
        no: KeyEpochNo(1),
        timestamp: 1,
        since: 0,
        sealed: 0,
        shard_keys: vec![vec![1]; usize::from(data)],
        place_key: vec![1],
        custody,
    };
    accept(
        &mut map,
        &Command::CreateVolume(Box::new(NewVolume {
            id: VolumeId(Uuid::from_u128(2)),
            name: "vol".into(),
            size: 1 << 30,
            data,
            parity,
            shard_size: 1 << 20,
            min_insync: data,
            read_mode: ReadMode::Lease,
            groups: vec![(1..=slots).map(store).collect()],
            key_epoch,
        })),
    );
    map
}

pub(crate) fn start_store(map: &mut ClusterMap, no: u64, incarnation: u64, clean: bool) {
    let (store, node) = (store(no), NodeId(no));
    let of = map.nodes[&node].incarnation;
    // The disk is what the last run left behind, and each has another name.
    let last = map.stores.get(&store).map_or(RunId::default(), |known| known.run);
    let run = RunId(Uuid::from_u128(last.0.as_u128() + 1));
    let (incarnation, announced) = (Incarnation(incarnation), Announced::default());
    let start = StoreStart { store, node, of, incarnation, run, last, clean, announced };
    accept(map, &Command::RegisterStore(start));
}

pub(crate) fn elect(map: &mut ClusterMap, no: u64) {
    let (epoch, node, incarnation) = (epoch(map), NodeId(no), Incarnation(1));
    accept(map, &Command::Elect { volume: VOLUME, epoch, node, incarnation });
}

pub(crate) fn activate(map: &mut ClusterMap) {
    let epoch = epoch(map);
    accept(map, &Command::Activate { volume: VOLUME, epoch, online: Vec::new() });
}

pub(crate) fn shrink(map: &mut ClusterMap, no: u64) {
    let (epoch, stores) = (epoch(map), vec![store(no)]);
    accept(map, &Command::Shrink { volume: VOLUME, epoch, stores, to_data: false });
}

pub(crate) fn slot(no: u64) -> Slot {
    Slot(u8::try_from(no - 1).expect("a few slots"))
}
