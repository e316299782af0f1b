//! The store against openraft's own suite, and what the suite does not ask.
#![allow(clippy::unwrap_used, reason = "tests")]

use crate::codec;
use crate::db::{Batch, Db, DbError, key};
use crate::log_store::LogStore;
use crate::state_machine::{Published, REMEMBERED_ANSWERS, SnapshotBody, StateMachine};
use crate::types::{Entry, LogId, MapRaft, Proposal, ProposalId, SnapshotMeta, StorageError};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{
    CommittedLeaderId, EmptyNode, EntryPayload, Membership, RaftLogReader, RaftSnapshotBuilder,
    StorageIOError, StoredMembership, Vote,
};
use smalti_map::{Applied, ClusterMap, Command, Custody, NodeAddresses, ShareHolder, StoreStart};
use smalti_storage::ids::{ClusterId, Incarnation, NodeId};
use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use uuid::Uuid;

struct Builder;

impl StoreBuilder<MapRaft, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let (log, machine) = open(dir.path()).await.map_err(|error| {
            StorageError::from(StorageIOError::read(openraft::AnyError::new(&error)))
        })?;
        Ok((dir, log, machine))
    }
}

async fn open(dir: &Path) -> Result<(LogStore, StateMachine), DbError> {
    let db = Arc::new(Db::open(dir, 1)?);
    let machine = StateMachine::load(Arc::clone(&db), Published::default()).await?;
    Ok((LogStore::new(db), machine))
}

#[test]
fn openraft_suite_passes() {
    Suite::test_all(Builder).unwrap();
}

fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(3, 1), index)
}

fn addresses() -> NodeAddresses {
    let at = |port: u16| ([127, 0, 0, 1], port).into();
    NodeAddresses { quic: at(1), api: at(2), nbd: at(3) }
}

fn init() -> Command {
    let node = NodeId(1);
    Command::InitCluster {
        cluster: ClusterId(Uuid::from_u128(0xc1)),
        nodes: vec![(node, "a".into(), addresses())],
        custody: Custody {
            share_epoch: 1,
            threshold: 1,
            holders: vec![ShareHolder { node, share: 1 }],
            commitments: vec![9],
            sealed_for_recovery: Vec::new(),
        },
        recovery: None,
    }
}

fn register() -> Command {
    Command::RegisterNode { node: NodeId(1), addresses: addresses() }
}

fn entry(index: u64, command: Command) -> Entry {
    let id = ProposalId { node: 1, session: 5, seq: index };
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(Proposal { id, command }) }
}

#[tokio::test]
async fn everything_survives_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let vote = Vote::new_committed(3, 1);
    {
        let (mut log, _machine) = open(dir.path()).await.unwrap();
        log.save_vote(&vote).await.unwrap();
        log.blocking_append((1..=9).map(|index| entry(index, register()))).await.unwrap();
        log.truncate(log_id(8)).await.unwrap();
        log.purge(log_id(3)).await.unwrap();
        log.save_committed(Some(log_id(5))).await.unwrap();
    }
    let (mut log, _machine) = open(dir.path()).await.unwrap();
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(5)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(log_id(3)));
    assert_eq!(state.last_log_id, Some(log_id(7)));
    let entries = log.try_get_log_entries(..).await.unwrap();
    let expected: Vec<Entry> = (4..=7).map(|index| entry(index, register())).collect();
    assert_eq!(entries, expected);
}

#[tokio::test]
async fn appends_are_read_in_pieces_of_a_bounded_size() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _machine) = open(dir.path()).await.unwrap();
    let large = |index| {
        let Command::InitCluster { cluster, nodes, mut custody, recovery } = init() else {
            unreachable!()
        };
        custody.commitments = vec![1; 300 << 10];
        entry(index, Command::InitCluster { cluster, nodes, custody, recovery })
    };
    log.blocking_append((0..8).map(large)).await.unwrap();
    assert_eq!(log.limited_get_log_entries(0, 8).await.unwrap().len(), 4);
    assert_eq!(log.limited_get_log_entries(7, 8).await.unwrap().len(), 1);
    assert_eq!(log.try_get_log_entries(0..8).await.unwrap().len(), 8);
}

#[tokio::test]
async fn a_hole_or_a_misplaced_entry_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let db = Arc::new(Db::open(dir.path(), 1).unwrap());
    let mut batch = Batch::new(&db);
    for index in [1, 2, 4] {
        batch.put_log(index, &entry(index, register())).unwrap();
    }
    batch.put_log(6, &entry(7, register())).unwrap();
    batch.commit_synced().unwrap();
    let mut log = LogStore::new(db);
    assert_eq!(log.try_get_log_entries(1..3).await.unwrap().len(), 2);
    let hole = log.try_get_log_entries(1..5).await.unwrap_err().to_string();
    assert!(hole.contains("hole before 4"), "{hole}");
    let misplaced = log.try_get_log_entries(6..7).await.unwrap_err().to_string();
    assert!(misplaced.contains("entry 7 stands at 6"), "{misplaced}");
}

#[tokio::test]
async fn a_store_of_another_node_or_layout_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    drop(Db::open(dir.path(), 1).unwrap());
    let error = Db::open(dir.path(), 2).err().unwrap();
    assert!(matches!(error, DbError::WrongNode { found: 1, expected: 2 }));
    {
        let db = Db::open(dir.path(), 1).unwrap();
        let mut batch = Batch::new(&db);
        batch.put_meta(key::FORMAT, &3u32).unwrap();
        batch.commit_synced().unwrap();
    }
    assert!(matches!(Db::open(dir.path(), 1).err().unwrap(), DbError::Format(3)));
}

#[tokio::test]
async fn a_repeated_proposal_gets_its_answer_again() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, mut machine) = open(dir.path()).await.unwrap();
    let again = |index: u64, of: u64| Entry { log_id: log_id(index), ..entry(of, register()) };
    let answers = machine
        .apply([entry(1, init()), entry(2, register()), again(3, 2), entry(4, register())])
        .await
        .unwrap();
    let registered = |no| Applied::Registered(Incarnation(no));
    assert_eq!(answers, [Applied::Done, registered(1), registered(1), registered(2)]);

    // The memory goes with the snapshot, to this member's next start and to others.
    let snapshot = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let (_log2, mut taken_over) = open(other.path()).await.unwrap();
    taken_over.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    drop((machine, _log));
    let (_log, mut reopened) = open(dir.path()).await.unwrap();
    for machine in [&mut reopened, &mut taken_over] {
        assert_eq!(machine.apply([again(5, 2)]).await.unwrap(), [registered(1)]);
    }

    // And it ends where it is said to end.
    let many = (6..6 + REMEMBERED_ANSWERS as u64).map(|index| entry(index, register()));
    reopened.apply(many).await.unwrap();
    let next = REMEMBERED_ANSWERS as u64 + 3;
    assert_eq!(reopened.apply([again(900, 2)]).await.unwrap(), [registered(next)]);
}

#[tokio::test]
async fn readers_keep_the_map_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let db = Arc::new(Db::open(dir.path(), 1).unwrap());
    let published = Published::default();
    let watch = published.map.subscribe();
    let mut machine = StateMachine::load(db, published).await.unwrap();
    machine.apply([entry(1, init())]).await.unwrap();
    let held = Arc::clone(&watch.borrow());
    machine.apply([entry(2, register()), entry(3, register())]).await.unwrap();
    assert_eq!(held.version, 1);
    assert_eq!(watch.borrow().version, 3);
}

#[tokio::test]
async fn an_older_snapshot_does_not_replace_a_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, mut machine) = open(dir.path()).await.unwrap();
    machine.apply([entry(1, init())]).await.unwrap();
    let mut slow = machine.get_snapshot_builder().await;
    machine.apply([entry(2, register())]).await.unwrap();
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    slow.build_snapshot().await.unwrap();
    let current = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.meta.last_log_id, Some(log_id(2)));
}

#[tokio::test]
async fn an_impossible_snapshot_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, mut machine) = open(dir.path()).await.unwrap();
    machine.apply([entry(1, init())]).await.unwrap();
    let snapshot = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let good = snapshot.snapshot.into_inner();
    let mut body: SnapshotBody = codec::decode(&good).unwrap();
    Arc::make_mut(&mut body.map).nodes.clear();
    for bytes in [codec::encode(&body).unwrap(), good[..good.len() - 1].to_vec(), vec![]] {
        let data = Box::new(std::io::Cursor::new(bytes));
        machine.install_snapshot(&snapshot.meta, data).await.unwrap_err();
    }
    let current = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.snapshot.into_inner(), good);
}

/// Bytes as version 10 writes them. They never change: a new version gets new ones beside them.
mod fixtures {
    use super::*;
    use smalti_map::{
        GroupScrub, GrowSlot, JoinToken, KeyEpoch, MoveSlot, NewVolume, NodeSetting, ReadMode,
        Recovery, Rejection,
    };
    use smalti_storage::ids::{
        Epoch, GroupNo, KeyEpochNo, RaftStoreId, Slot, StoreId, TokenId, VolumeId, VolumeNo,
    };
    use smalti_storage::keys::{RECOVERY_ENVELOPE_LEN, SecretName};

    const NORMAL: &str = "0f0301ac02010105ac020101007f00000101007f00000102007f00000103";
    const BLANK: &str = "0f03010100";
    const MEMBERSHIP: &str = "0f030102020203010203030203040401020304";
    const COMMANDS: &str = "0f250010000000000000000000000000000000c101010161007f00000101007f00000102007f000001030101010101010900000101007f00000101007f00000102007f00000103021000000000000000000000000000000057010501100000000000000000000000000000005710000000000000000000000000000000000110000000000000000000000000000000001000000000000000000000000000000000100000000000000000000000000000000010000000000000000000000000000000000310000000000000000000000000000000f001768080400201808040020001031000000000000000000000000000000057100000000000000000000000000000005710000000000000000000000000000000570180e2cfaa060000020201020203040205060101010101010900040310000000000000000000000000000000f0050309011000000000000000000000000000000057000603090205070309010208030901010903090101021000000000000000000000000000000057050a03090101021000000000000000000000000000000057050b0301010210000000000000000000000000000000570c030901010d0309017380e2cfaa060e03ac020f01100000000000000000000000000000000710011000000000000000000000000000000007110100ac0211010101641101020112021310000000000000000000000000000000571503160304010380e2cfaa060190030201031780e2cfaa06011000000000000000000000000000000057ac021401181000000000000000000000000000000009aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0178ace4cfaa060080e2cfaa061910000000000000000000000000000000090178007f00000201007f00000102007f0000010381e2cfaa061a03ac021b03090280e2cfaa06ac02000202010202030402050601010101010109001c03ac02021dac020202010280e2cfaa06001e0110000000000000000000000000000000f0020109ac02010101010109001f0109ac02010101010109002003ac0280e2cfaa06210301ac020010000000000000000000000000000000c20001010101010109020809010263440102022f8bde4d1a07209355b4a7250a5c5128e88b84bddc619ab7cba8d569b240efe402f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9";
    const ANSWERS: &str = "0f0b00010402090103060408010705000102050105020305030504026e6f06040178";
    const VOTE: &str = "0f070201";
    const META: &str = "0f0103010901030102020301020303020304040102030405332d312d39";
    const BODY: &str = "0f10000000000000000000000000000000c12005010161007f00000101007f00000102007f00000103016400000000020162007f00000101007f00000102007f0000010300640000011000000000000000000000000000000007011000000000000000000000000000000008030163007f00000101007f00000102007f0000010300ac020164000000040164007f00000101007f00000102007f00000103006400010000050178007f00000201007f00000102007f000001030064000000000410000000000000000000000000000000010101001000000000000000000000000000000001000010000000000000000000000000000000020201011000000000000000000000000000000002ac0201db9901ac0210000000000000000000000000000000030301001000000000000000000000000000000003000010000000000000000000000000000000040401001000000000000000000000000000000004000001010110000000000000000000000000000000f0017680804002018080400200080101010102020102017481e2cfaa06010101010180e2cfaa0600ac020202010202030402050601010101010109520707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070701010180e2cfaa0601031000000000000000000000000000000001100000000000000000000000000000000210000000000000000000000000000000030301021000000000000000000000000000000003010101100000000000000000000000000000000400010204070001010080e2cfaa06019003020103020280e2cfaa0602020201010201010101010101095208080808080808080808080808080808080808080808080808080808080808080808080808080808080808080808080808080808080808080808080808080808080808080808080808080808080808080808000106011000000000000000000000000000000009aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0178ace4cfaa060105010263440102022f8bde4d1a07209355b4a7250a5c5128e88b84bddc619ab7cba8d569b240efe402f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9010105010104";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn unhex(text: &str) -> Vec<u8> {
        let digits = text.as_bytes().chunks(2);
        digits.map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
    }

    #[track_caller]
    fn holds<T>(value: &T, fixture: &str)
    where
        T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        assert_eq!(hex(&codec::encode(value).unwrap()), fixture);
        assert_eq!(&codec::decode::<T>(&unhex(fixture)).unwrap(), value);
    }

    fn membership() -> Membership<u64, EmptyNode> {
        let joint = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, 4])];
        Membership::new(joint, BTreeSet::from([1, 2, 3, 4]))
    }

    #[test]
    fn log_entries() {
        holds(&entry(300, register()), NORMAL);
        holds(&Entry { log_id: log_id(1), payload: EntryPayload::Blank }, BLANK);
        let payload = EntryPayload::Membership(membership());
        holds(&Entry { log_id: log_id(2), payload }, MEMBERSHIP);
    }

    fn scrub() -> GroupScrub {
        GroupScrub { ended: 1_700_000_000, asked: 1, rows: 400, wrong: 2, unclear: 1, unread: 3 }
    }

    fn raft_store(no: u128) -> RaftStoreId {
        RaftStoreId(Uuid::from_u128(no))
    }

    /// One of each, in the order of the variants.
    fn commands() -> Vec<Command> {
        let (volume, epoch, incarnation) = (VolumeNo(3), Epoch(9), Incarnation(5));
        let store = StoreId(Uuid::from_u128(0x57));
        let id = VolumeId(Uuid::from_u128(0xf0));
        let grow = GrowSlot { group: GroupNo(1), slot: Slot(2), store, incarnation };
        let Command::InitCluster { custody, .. } = init() else { unreachable!() };
        let key_epoch = KeyEpoch {
            no: KeyEpochNo(1),
            timestamp: 1_700_000_000,
            since: 0,
            sealed: 0,
            shard_keys: vec![vec![1, 2], vec![3, 4]],
            place_key: vec![5, 6],
            custody: custody.clone(),
        };
        let founded = Command::InitCluster {
            cluster: ClusterId(Uuid::from_u128(0xc2)),
            nodes: Vec::new(),
            custody: Custody { sealed_for_recovery: vec![8, 9], ..custody.clone() },
            recovery: Some(recovery()),
        };
        let dealt = Custody { share_epoch: 300, ..custody };
        vec![
            init(),
            register(),
            Command::RegisterStore(StoreStart::first(store, NodeId(1), incarnation)),
            Command::CreateVolume(Box::new(NewVolume {
                id,
                name: "v".into(),
                size: 1 << 20,
                data: 2,
                parity: 1,
                shard_size: 1 << 20,
                min_insync: 2,
                read_mode: ReadMode::Lease,
                groups: vec![vec![store; 3]],
                key_epoch: key_epoch.clone(),
            })),
            Command::DeleteVolume { volume, id },
            Command::Shrink { volume, epoch, stores: vec![store], to_data: false },
            Command::Elect { volume, epoch, node: NodeId(2), incarnation },
            Command::Activate { volume, epoch, online: vec![GroupNo(2)] },
            Command::SetOffline { volume, epoch, groups: vec![GroupNo(1)] },
            Command::AddLearners { volume, epoch, slots: vec![grow] },
            Command::Grow { volume, epoch, slots: vec![grow] },
            Command::Move {
                volume,
                moves: vec![MoveSlot { group: GroupNo(1), slot: Slot(2), store }],
            },
            Command::ForgetHolders { volume, epoch, groups: vec![GroupNo(1)] },
            Command::AddSnapshot { volume, epoch, name: "s".into(), created: 1_700_000_000 },
            Command::DropSnapshot { volume, snap: 300 },
            Command::RegisterRaftStore { node: NodeId(1), store: raft_store(7) },
            Command::AdmitRecruit { node: NodeId(1), store: raft_store(7) },
            Command::SetNode { node: NodeId(1), setting: NodeSetting::Weight(300) },
            Command::SetNode { node: NodeId(1), setting: NodeSetting::Domain("d".into()) },
            Command::SetNode { node: NodeId(1), setting: NodeSetting::Draining(true) },
            Command::RemoveNode { node: NodeId(2) },
            Command::ForgetStore { store },
            Command::AskScrub { volume },
            Command::NoteScrubs { volume, epoch: Epoch(4), groups: vec![(GroupNo(3), scrub())] },
            Command::NoteFaults { at: 1_700_000_000, faults: vec![(store, 300)] },
            Command::PauseMoves(true),
            Command::CreateToken { id: token_id(9), token: token(), now: 1_700_000_000 },
            Command::Join {
                token: token_id(9),
                name: "x".into(),
                addresses: elsewhere(),
                now: 1_700_000_001,
            },
            Command::AskRotation { volume, key_epoch: KeyEpochNo(300) },
            Command::AddKeyEpoch {
                volume,
                epoch,
                key_epoch: Box::new(KeyEpoch { no: KeyEpochNo(2), since: 300, ..key_epoch }),
            },
            Command::RetireKeyEpochs { volume, generation: 300, below: KeyEpochNo(2) },
            Command::SetCustodians {
                share_epoch: 300,
                threshold: 2,
                nodes: vec![NodeId(1), NodeId(2)],
                now: 1_700_000_000,
                new_master: false,
            },
            Command::Reshare {
                secret: SecretName::Wrapping { volume: id, key_epoch: KeyEpochNo(2) },
                from: vec![9],
                custody: dealt.clone(),
            },
            Command::ReplaceMaster { from: vec![9], custody: dealt },
            Command::RevokeKeys { volume, key_epoch: KeyEpochNo(300), now: 1_700_000_000 },
            Command::NoteSealed { volume, key_epoch: KeyEpochNo(1), blocks: 300 },
            founded,
        ]
    }

    /// Of 5 and 3: their points, from the published tables of secp256k1.
    fn recovery() -> Recovery {
        let hex = "0102\
            022f8bde4d1a07209355b4a7250a5c5128e88b84bddc619ab7cba8d569b240efe4\
            02f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9";
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let commitments = (0..hex.len()).step_by(2).map(byte).collect();
        Recovery { threshold: 2, shares: 99, commitments }
    }

    fn token_id(no: u128) -> TokenId {
        TokenId(Uuid::from_u128(no))
    }

    fn token() -> JoinToken {
        JoinToken { proof_key: [0xaa; 32], name: "x".into(), expires: 1_700_000_300, used_by: None }
    }

    fn elsewhere() -> NodeAddresses {
        NodeAddresses { quic: ([127, 0, 0, 2], 1).into(), ..addresses() }
    }

    #[test]
    fn commands_and_answers() {
        holds(&commands(), COMMANDS);
        let rejections = [
            Rejection::StaleEpoch { planned: Epoch(1), current: Epoch(2) },
            Rejection::MinInsync,
            Rejection::NoVolume(VolumeNo(3)),
            Rejection::Incarnation,
            Rejection::Invalid("no".into()),
        ];
        let mut answers = vec![
            Applied::Done,
            Applied::Registered(Incarnation(4)),
            Applied::RegisteredStore { incarnation: Incarnation(9), clean: true },
            Applied::Created(VolumeNo(6)),
            Applied::Epoch { epoch: Epoch(8), refused: vec![GroupNo(7)] },
        ];
        answers.extend(rejections.map(Applied::Rejected));
        answers.push(Applied::Joined { node: NodeId(4), name: "x".into() });
        holds(&answers, ANSWERS);
    }

    #[test]
    fn votes() {
        holds(&Vote::<u64>::new_committed(7, 2), VOTE);
    }

    /// Make a map in which no list is empty but the old holders.
    fn snapshot_commands() -> Vec<Command> {
        let node = |no: u64| NodeId(no);
        let store = |no: u64| StoreId(Uuid::from_u128(no.into()));
        let Command::InitCluster { cluster, mut nodes, mut custody, .. } = init() else {
            unreachable!()
        };
        nodes.push((node(2), "b".into(), addresses()));
        nodes.push((node(3), "c".into(), addresses()));
        nodes.push((node(4), "d".into(), addresses()));
        custody.sealed_for_recovery = vec![8; RECOVERY_ENVELOPE_LEN];
        let recovery = Some(recovery());
        let mut list = vec![Command::InitCluster { cluster, nodes, custody, recovery }];
        let (volume, incarnation) = (VolumeNo(1), Incarnation(1));
        let start = |no| {
            let first = StoreStart::first(store(no), node(no), Incarnation(0));
            Command::RegisterStore(StoreStart { clean: no == 2, ..first })
        };
        list.extend((1..=4).map(start));
        list.push(register());
        let Command::CreateVolume(mut new) = commands().swap_remove(3) else { unreachable!() };
        new.groups = vec![(1..=3).map(store).collect()];
        new.key_epoch.custody.sealed_for_recovery = vec![7; RECOVERY_ENVELOPE_LEN];
        list.push(Command::CreateVolume(new));
        let grow = GrowSlot { group: GroupNo(0), slot: Slot(2), store: store(3), incarnation };
        let (one, two, three) = (Epoch(1), Epoch(2), Epoch(3));
        let snapshot = |epoch, name: &str, created| Command::AddSnapshot {
            volume,
            epoch,
            name: name.into(),
            created,
        };
        list.extend([
            Command::Elect { volume, epoch: one, node: node(1), incarnation },
            Command::Activate { volume, epoch: two, online: Vec::new() },
            Command::Shrink { volume, epoch: two, stores: vec![store(3)], to_data: false },
            Command::AddLearners { volume, epoch: three, slots: vec![grow] },
            Command::Grow { volume, epoch: three, slots: vec![grow] },
            Command::Shrink { volume, epoch: Epoch(4), stores: vec![store(3)], to_data: false },
            Command::AddLearners { volume, epoch: Epoch(5), slots: vec![grow] },
            Command::Move {
                volume,
                moves: vec![MoveSlot { group: GroupNo(0), slot: Slot(1), store: store(4) }],
            },
            snapshot(Epoch(5), "s", 1_700_000_000),
            snapshot(Epoch(6), "t", 1_700_000_001),
            Command::DropSnapshot { volume, snap: 1 },
            Command::RegisterRaftStore { node: node(2), store: raft_store(7) },
            Command::RegisterRaftStore { node: node(2), store: raft_store(8) },
            Command::SetNode { node: node(3), setting: NodeSetting::Weight(300) },
            Command::SetNode { node: node(3), setting: NodeSetting::Domain("d".into()) },
            Command::SetNode { node: node(4), setting: NodeSetting::Draining(true) },
            Command::SetCustodians {
                share_epoch: 1,
                threshold: 2,
                nodes: vec![node(2), node(1)],
                now: 1_700_000_000,
                new_master: true,
            },
            Command::RevokeKeys { volume, key_epoch: KeyEpochNo(1), now: 1_700_000_000 },
            Command::NoteSealed { volume, key_epoch: KeyEpochNo(1), blocks: 300 },
            Command::PauseMoves(true),
            Command::AskScrub { volume },
            Command::NoteScrubs { volume, epoch: Epoch(8), groups: vec![(GroupNo(0), scrub())] },
            Command::NoteFaults { at: 1_700_000_000, faults: vec![(store(2), 300)] },
            Command::CreateToken { id: token_id(9), token: token(), now: 1_700_000_000 },
            Command::Join {
                token: token_id(9),
                name: String::new(),
                addresses: elsewhere(),
                now: 1_700_000_001,
            },
        ]);
        list
    }

    #[test]
    fn snapshots() {
        let meta = SnapshotMeta {
            last_log_id: Some(log_id(9)),
            last_membership: StoredMembership::new(Some(log_id(2)), membership()),
            snapshot_id: "3-1-9".into(),
        };
        holds(&meta, META);
        let mut map = ClusterMap::default();
        for command in snapshot_commands() {
            let applied = map.apply(&command);
            assert!(!matches!(applied, Applied::Rejected(_)), "{applied:?}");
        }
        let id = ProposalId { node: 1, session: 5, seq: 1 };
        let answers = VecDeque::from([(id, Applied::Registered(Incarnation(4)))]);
        holds(&SnapshotBody { map: Arc::new(map), answers }, BODY);
    }
}

#[tokio::test]
async fn a_stopped_store_tells_all_its_maps() {
    let dir = tempfile::tempdir().unwrap();
    let read = || {
        let mut versions = Vec::new();
        let last = crate::read_stopped(dir.path(), |map| versions.push(map.version)).unwrap();
        (last, versions)
    };
    let entries: Vec<Entry> =
        (1..=6).map(|no| entry(no, if no == 1 { init() } else { register() })).collect();
    {
        let (mut log, mut machine) = open(dir.path()).await.unwrap();
        let blank = Entry { log_id: log_id(0), payload: EntryPayload::Blank };
        log.blocking_append([vec![blank], entries.clone()].concat()).await.unwrap();
        machine.apply(entries[..4].to_vec()).await.unwrap();
        let mut builder = machine.get_snapshot_builder().await;
        builder.build_snapshot().await.unwrap();
        // Open in this process, and read nevertheless.
        assert_eq!(read().1, [1, 2, 3, 4, 5, 6]);
    }
    let (whole, versions) = read();
    assert_eq!((whole.version, versions), (6, vec![1, 2, 3, 4, 5, 6]));
    assert_eq!(whole.cluster, ClusterId(Uuid::from_u128(0xc1)));
    {
        let (mut log, _machine) = open(dir.path()).await.unwrap();
        log.purge(log_id(2)).await.unwrap();
    }
    assert_eq!(read(), (Arc::clone(&whole), vec![4, 5, 6]), "from the snapshot on");
    {
        let (mut log, _machine) = open(dir.path()).await.unwrap();
        log.purge(log_id(4)).await.unwrap();
        log.truncate(log_id(5)).await.unwrap();
    }
    assert_eq!(read().1, [4], "the snapshot alone");
    assert!(crate::read_stopped(&dir.path().join("none"), |_| {}).is_err());
    // It was only looked at.
    drop(open(dir.path()).await.unwrap());
}
