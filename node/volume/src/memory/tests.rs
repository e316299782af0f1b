use super::*;
use crate::{KeysError, VolumeShape, read_data, reconstruct_volume, shard_volume};
use smalti_map::placement::PlacementError;
use smalti_storage::geometry::GeometryError;

const SIZE: u64 = 16 << 20;

fn id(no: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(no))
}

async fn volume(nodes: u8, data: u8, parity: u8) -> (MemoryCluster, ShardMetadata) {
    let cluster = MemoryCluster::new(nodes);
    let shape = VolumeShape::of_size(SIZE);
    let metadata = shard_volume(&cluster, id(1), shape, data, parity).await.expect("cut");
    cluster.add_volume("v", &metadata).expect("added");
    (cluster, metadata)
}

/// Bytes that name their place.
fn pattern(offset: u64, length: usize) -> Vec<u8> {
    let word = |at: u64| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1;
    (offset..).take(length).map(word).collect()
}

async fn image(cluster: &MemoryCluster, metadata: &ShardMetadata) -> Vec<u8> {
    let mut image = Vec::new();
    let size = reconstruct_volume(cluster, metadata.volume, metadata, &mut image).await;
    assert_eq!(size.expect("reconstructed"), SIZE);
    image
}

#[tokio::test]
async fn what_was_written_comes_back_with_any_node_gone_and_after_it_healed() {
    for (nodes, data, parity) in [(3, 2, 1), (4, 2, 2), (5, 3, 2)] {
        let (cluster, metadata) = volume(nodes, data, parity).await;
        let mut expected = vec![0; SIZE as usize];
        let mut gone = None;
        for node in (1..=u64::from(nodes)).map(NodeId) {
            // Whole rows, parts of blocks and everything between, over what was there before.
            let device = cluster.device(id(1)).await.expect("attached");
            for (at, length) in [(node.0 * 100_001, 300_000), (9 << 20, 5000), (SIZE - 3, 3)] {
                let bytes = pattern(at ^ node.0, length);
                expected[at as usize..][..length].copy_from_slice(&bytes);
                device.write(at, bytes.into()).await.expect("written");
            }
            drop(device);
            if let Some(gone) = gone {
                cluster.start_node(gone);
                cluster.heal(id(1)).expect("healed");
            }
            assert_eq!(image(&cluster, &metadata).await, expected, "{node} still there");
            cluster.stop_node(node);
            assert_eq!(image(&cluster, &metadata).await, expected, "without {node}");
            gone = Some(node);
        }
    }
}

#[tokio::test]
async fn impossible_volumes_are_refused() {
    let cluster = MemoryCluster::new(3);
    let cut = async |size, shard_size, data, parity| {
        let shape = VolumeShape { size, shard_size };
        shard_volume(&cluster, id(1), shape, data, parity).await.expect_err("impossible")
    };
    assert!(matches!(cut(0, 1 << 20, 2, 1).await, VolumeError::Size(0)));
    assert!(matches!(cut(1000, 1 << 20, 2, 1).await, VolumeError::Size(1000)));
    let error = cut(SIZE, 5000, 2, 1).await;
    assert!(matches!(error, VolumeError::Geometry(GeometryError::ShardSize(5000))), "{error}");
    let error = cut(SIZE, 1 << 20, 0, 1).await;
    assert!(matches!(error, VolumeError::Geometry(GeometryError::NoData)), "{error}");
    let error = cut(SIZE, 1 << 20, 2, 2).await;
    let few = PlacementError::TooFewNodes { data: 2, parity: 2, found: 3 };
    assert!(matches!(&error, VolumeError::Placement(found) if *found == few), "{error}");
}

#[tokio::test]
async fn a_volume_is_cut_only_if_every_custodian_keeps_its_share() {
    let cluster = MemoryCluster::new(3);
    let shape = VolumeShape::of_size(SIZE);
    cluster.stop_node(NodeId(2));
    let error = shard_volume(&cluster, id(1), shape, 2, 1).await.expect_err("one is away");
    let not_kept = matches!(
        &error,
        VolumeError::Keys(KeysError::NotKept { node: NodeId(2), reason }) if reason == "stopped"
    );
    assert!(not_kept, "{error}");
    cluster.stop_node(NodeId(3));
    let error = shard_volume(&cluster, id(1), shape, 2, 1).await.expect_err("two are away");
    let sealed = matches!(&error, VolumeError::Keys(KeysError::Sealed { have: 1, need: 2, .. }));
    assert!(sealed, "{error}");
}

#[tokio::test]
async fn a_false_share_is_named_and_not_used() {
    let (cluster, metadata) = volume(3, 2, 1).await;
    let name = SecretName::Wrapping { volume: id(1), key_epoch: metadata.key_epoch };
    let put = |node, part| cluster.lock().shares.insert((NodeId(node), name), part);
    let share = |node| cluster.lock().shares[&(NodeId(node), name)].clone();
    // Another custodian's share, and one of another secret.
    let mut rng = rand::rng();
    let other = get_key_parts(&Secret::random(&mut rng), 2, 3, &mut rng).expect("split");
    for (wrong, problem) in
        [(share(1), "n2: gave share 1 for share 2"), (other.parts[1].clone(), "does not match")]
    {
        let right = put(2, wrong).expect("there was one");
        cluster.stop_node(NodeId(3));
        let error = unshard_volume(&cluster, id(1), &metadata).await.expect_err("one good share");
        let VolumeError::Keys(KeysError::Sealed { have: 1, need: 2, problems }) = &error else {
            panic!("{error}")
        };
        assert!(problems.iter().any(|text| text.contains(problem)), "{problems:?}");
        cluster.start_node(NodeId(3));
        unshard_volume(&cluster, id(1), &metadata).await.expect("two good shares are enough");
        put(2, right);
    }
}

#[tokio::test]
async fn altered_metadata_does_not_open() {
    let (cluster, metadata) = volume(3, 2, 1).await;
    let other = unshard_volume(&cluster, id(2), &metadata).await.expect_err("another volume");
    assert!(matches!(other, VolumeError::OtherVolume { .. }), "{other}");
    let damaged = async |change: &dyn Fn(&mut smalti_map::KeyEpoch)| {
        let mut metadata = metadata.clone();
        metadata.key_epochs.values_mut().for_each(change);
        let error = unshard_volume(&cluster, id(1), &metadata).await.expect_err("altered");
        assert!(matches!(error, VolumeError::Keys(_)), "{error}");
    };
    damaged(&|epoch| epoch.shard_keys.swap(0, 1)).await;
    damaged(&|epoch| epoch.shard_keys[5][20] ^= 1).await;
    damaged(&|epoch| drop(epoch.shard_keys.pop())).await;
    damaged(&|epoch| epoch.place_key[20] ^= 1).await;
    damaged(&|epoch| epoch.place_key.clear()).await;
    damaged(&|epoch| epoch.custody.commitments[10] ^= 1).await;
    damaged(&|epoch| epoch.custody.threshold = 3).await;
}

#[tokio::test]
async fn an_old_gateway_is_fenced_by_the_next() {
    let (cluster, metadata) = volume(3, 2, 1).await;
    let old = unshard_volume(&cluster, id(1), &metadata).await.expect("opened");
    old.write(0, Bytes::from_static(b"old")).await.expect("written");
    let new = unshard_volume(&cluster, id(1), &metadata).await.expect("opened");
    new.write(0, Bytes::from_static(b"new")).await.expect("written");
    old.write(0, Bytes::from_static(b"bad")).await.expect_err("fenced");
    assert_eq!(read_data(&cluster, id(1), 0, 3).await.expect("read"), b"new"[..]);
}

#[tokio::test]
async fn reads_stay_within_the_volume() {
    let (cluster, _) = volume(3, 2, 1).await;
    assert_eq!(read_data(&cluster, id(1), SIZE, 0).await.expect("nothing"), b""[..]);
    assert_eq!(read_data(&cluster, id(1), SIZE - 1, 1).await.expect("a byte"), b"\0"[..]);
    for (offset, size) in [(SIZE, 1), (0, SIZE + 1), (u64::MAX, 2), (0, u64::MAX), (SIZE + 1, 0)] {
        read_data(&cluster, id(1), offset, size).await.expect_err("beyond the end");
    }
    let none = read_data(&cluster, id(9), 0, 1).await.expect_err("no such volume");
    assert!(matches!(none, VolumeError::NoVolume(_)), "{none}");
}
