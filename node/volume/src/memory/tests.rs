mod crash;

use super::*;
use crate::{
    KeysError, Opened, VolumeShape, deal_anew, open_sealed, read_data, reconstruct_volume,
    rotate_keys, shard_volume,
};
use smalti_map::placement::PlacementError;
use smalti_rowcommit::coordinator::Contents;
use smalti_storage::geometry::GeometryError;
use smalti_storage::ids::RowSlot;
use smalti_storage::keys::{
    KeyBinding, MasterKey, ShardId, ShardKey, WrappedKey, combine_recovery_shares,
    decrypt_shard_key, derive_place_key, derive_shard_key, reconstruct_symmetric_key,
};
use smalti_storage::seal::{EpochKeys, SealIdentity, Sealer, VolumeKeys};

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
    let custody = cluster.lock().map.custody_of(&name).cloned().expect("in the map");
    let name = custody.share_name(name);
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
    let damaged = async |change: &dyn Fn(&mut KeyEpoch)| {
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

/// Generations of all blocks that have contents, each once.
fn generations(cluster: &MemoryCluster) -> BTreeSet<Contents> {
    let blocks = cluster.list_blocks(id(1)).expect("listed");
    blocks.into_iter().map(|block| block.contents).collect()
}

#[tokio::test]
async fn keys_are_rotated_and_records_sealed_anew() {
    for (nodes, data, parity) in [(3, 2, 1), (5, 3, 2)] {
        let (cluster, first) = volume(nodes, data, parity).await;
        let mut expected = vec![0; SIZE as usize];
        let device = cluster.device(id(1)).await.expect("attached");
        for (at, length) in [(100_001, 300_000), (9 << 20, 5000), (SIZE - 3, 3)] {
            let bytes = pattern(at, length);
            expected[at as usize..][..length].copy_from_slice(&bytes);
            device.write(at, bytes.into()).await.expect("written");
        }
        // A trimmed block has no contents to be sealed.
        device.zero(9 << 20, 4096).await.expect("trimmed");
        expected[9 << 20..][..4096].fill(0);
        drop(device);
        let key_epoch = rotate_keys(&cluster, id(1), &first).await.expect("rotated");
        let second = cluster.begin_key_epoch(id(1), key_epoch).expect("begun");
        let since = second.key_epochs[&second.key_epoch].since;
        assert!(generations(&cluster).iter().all(|of| *of < Contents::Since(since)));

        let gateway = unshard_volume(&cluster, id(1), &second).await.expect("opened");
        let (no, generation) = {
            let state = cluster.lock();
            let volume = state.volume(id(1)).expect("there");
            (volume.no, volume.writer_gen)
        };
        let rows: Arc<dyn Rows> = Arc::new(MemoryRows { cluster: cluster.clone(), no, generation });
        // One node is gone meanwhile: its records are rebuilt, sealed anew and written to the others.
        cluster.stop_node(NodeId(2));
        let listed = cluster.list_blocks(id(1)).expect("listed");
        let places: Vec<_> = listed.iter().map(|block| (block.row, block.slot)).collect();
        let count = gateway.reseal(&places, &rows).await.expect("sealed anew");
        assert_eq!((count.sealed, count.failed), (74 + 1 + 1, 0), "those that have contents");
        let again = gateway.reseal(&places, &rows).await.expect("looked at");
        assert_eq!(again, smalti_gateway::Resealed::default());
        cluster.start_node(NodeId(2));
        cluster.heal(id(1)).expect("healed");
        assert_eq!(generations(&cluster), [Contents::Since(generation)].into());

        // Without the older keys all of it can be read.
        gateway.forget_keys_before(second.key_epoch);
        for at in (0..SIZE).step_by(1 << 20) {
            let reply = gateway.read(at, 1 << 20).await.expect("read");
            let bytes: Vec<u8> = reply
                .segments()
                .flat_map(|segment| match segment {
                    smalti_nbd::Segment::Data(bytes) => bytes.to_vec(),
                    smalti_nbd::Segment::Zero(length) => vec![0; *length as usize],
                })
                .collect();
            assert!(bytes == expected[at as usize..][..1 << 20], "at {at}");
        }
    }
}

/// The secret of that name, of the shares that all custodians have now.
fn secret_of(cluster: &MemoryCluster, name: &SecretName) -> Secret {
    let state = cluster.lock();
    let custody = state.map.custody_of(name).expect("in the map");
    let name = custody.share_name(*name);
    let share = |node: &ShareHolder| state.shares[&(node.node, name)].clone();
    let shares: Vec<KeyPart> = custody.holders.iter().map(share).collect();
    let commitments = Commitments::from_bytes(&custody.commitments).expect("well formed");
    reconstruct_symmetric_key(&shares, &commitments).expect("all are there")
}

/// An old copy of a record, with everything that all custodians have once its key epoch has ended, and the
/// metadata of then, which says when its keys were derived and has them wrapped.
#[tokio::test]
async fn keys_of_an_ended_key_epoch_can_not_be_had_again() {
    let (cluster, first) = volume(3, 2, 1).await;
    let volume = unshard_volume(&cluster, id(1), &first).await.expect("opened");
    volume.write(0, pattern(0, 4096).into()).await.expect("written");
    drop(volume);
    let old = &first.key_epochs[&first.key_epoch];
    let name = |key_epoch| SecretName::Wrapping { volume: id(1), key_epoch };
    let destroyed = secret_of(&cluster, &name(old.no));
    let (block, stolen) = {
        let blocks = cluster.list_blocks(id(1)).expect("listed");
        let at = RowSlot { volume: VolumeNo(1), row: blocks[0].row, slot: blocks[0].slot };
        let state = cluster.lock();
        let mut records = state.parties.values().filter_map(|party| {
            let head = party.disk.head(at).expect("memory does not fail")?;
            party.disk.record(at, head.ver).expect("memory does not fail")
        });
        (at, records.next().expect("somewhere"))
    };

    let key_epoch = rotate_keys(&cluster, id(1), &first).await.expect("rotated");
    let second = cluster.begin_key_epoch(id(1), key_epoch).expect("begun");
    let master = secret_of(&cluster, &SecretName::Master);
    let kept = secret_of(&cluster, &name(second.key_epoch));
    let shard = ShardId { volume: id(1), group: block.row.group, slot: block.slot };
    let opens = |key: ShardKey| {
        let columns = (0..first.geometry.columns()).map(|_| ShardKey::new(*key.expose()));
        let keys = EpochKeys::new(&first.geometry, columns.collect()).expect("all columns");
        let place = derive_place_key(&master.master_key(), id(1));
        let keys = VolumeKeys::new(place, old.no, [(old.no, keys)]).expect("whole");
        let identity = SealIdentity { cluster: cluster.id(), volume: id(1) };
        let sealer = Sealer::new(identity, Arc::new(keys), [7; 16]);
        sealer.open(0, block.row, block.slot, &stolen).is_ok()
    };
    let derive =
        |master: &MasterKey, epoch: &KeyEpoch| derive_shard_key(master, &shard, epoch.timestamp);
    let new = &second.key_epochs[&second.key_epoch];
    for master in [master.master_key(), master.epoch_master_key(&kept), kept.master_key()] {
        assert!(!opens(derive(&master, old)) && !opens(derive(&master, new)));
    }
    let column = usize::from(shard.group.0) * usize::from(first.geometry.data) + shard.slot.index();
    let wrapped: WrappedKey = postcard::from_bytes(&old.shard_keys[column]).expect("wrapped");
    let binding = KeyBinding { shard, key_epoch: old.no };
    for wrong in [kept.wrapping_key(), master.wrapping_key()] {
        decrypt_shard_key(&wrong, &wrapped, &binding).expect_err("wrapped under another key");
    }
    // What was destroyed is what was missing.
    assert!(opens(derive(&master.epoch_master_key(&destroyed), old)));
    let key = decrypt_shard_key(&destroyed.wrapping_key(), &wrapped, &binding).expect("unwrapped");
    assert!(opens(key));
}

#[tokio::test]
async fn of_two_dealings_for_a_key_epoch_the_one_in_the_map_opens() {
    let (cluster, first) = volume(3, 2, 1).await;
    let taken = rotate_keys(&cluster, id(1), &first).await.expect("rotated");
    let late = rotate_keys(&cluster, id(1), &first).await.expect("rotated once more");
    assert_eq!(taken.no, late.no);
    let second = cluster.begin_key_epoch(id(1), taken).expect("begun");
    cluster.begin_key_epoch(id(1), late).expect_err("it is there");
    unshard_volume(&cluster, id(1), &second).await.expect("opened");
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

/// What two of three people bring opens every key epoch, the master secret and what was written; one alone, or with
/// a share of another cluster, opens nothing.
#[tokio::test]
async fn what_custodians_have_lost_people_can_open() {
    let (cluster, lines) = MemoryCluster::with_recovery(3, 2, 3);
    let (other, theirs) = MemoryCluster::with_recovery(3, 2, 3);
    let shape = VolumeShape::of_size(SIZE);
    let first = shard_volume(&cluster, id(1), shape, 2, 1).await.expect("cut");
    cluster.add_volume("v", &first).expect("added");
    let written = pattern(5, 300_000);
    let device = cluster.device(id(1)).await.expect("attached");
    device.write(5, written.clone().into()).await.expect("written");
    let second = rotate_keys(&cluster, id(1), &first).await.expect("new keys");
    let both = cluster.begin_key_epoch(id(1), second).expect("begun");
    assert_eq!(both.key_epochs.len(), 2);
    drop(device);
    for node in [1, 2, 3].map(NodeId) {
        cluster.lose_shares(node);
    }
    assert!(matches!(unshard_volume(&cluster, id(1), &both).await, Err(VolumeError::Keys(_))));

    let public = Commitments::from_bytes(&cluster.recovery().expect("it has").commitments);
    let public = public.expect("they read");
    let combine = |lines: &[String]| combine_recovery_shares(lines, cluster.id(), &public);
    let foreign = combine(&[lines[0].clone(), theirs[1].clone()]).expect_err("of another cluster");
    assert!(foreign[0].to_string().contains("share 2 is of another cluster"), "{foreign:?}");
    assert!(combine(&lines[..1]).is_err());
    let recovery = combine(&lines[..2]).expect("two of three");
    // What another cluster has sealed does not open, and each of its secrets is told.
    let refused = open_sealed(&other.map(), &recovery);
    assert!(refused.len() == 1 && refused[0].secret.is_err());

    cluster.new_share_epoch().expect("wanted");
    let opened = open_sealed(&cluster.map(), &recovery);
    assert_eq!(opened.len(), 3);
    for Opened { name, secret } in opened {
        let before = cluster.map().custody_of(&name).expect("known").clone();
        let custody = deal_anew(&cluster, &secret.expect("it opens"), name, &before).await;
        cluster.take_custody(name, before.commitments, custody.expect("dealt")).expect("taken");
    }
    let read = read_data(&cluster, id(1), 5, written.len() as u64).await.expect("read");
    assert_eq!(read, written);
    let now = cluster.metadata(id(1)).expect("known");
    rotate_keys(&cluster, id(1), &now).await.expect("the master secret is there too");
}
