//! A member alone, of a cluster in which it is the only voter.

use super::{Founding, Member, MemberConfig};
use crate::shard_store::Fatal;
use smalti_map::{Applied, Command, Custody, NodeAddresses, ShareHolder, StoreStart};
use smalti_net::ClusterCa;
use smalti_rocks::{Expect, RocksOptions, RocksStore};
use smalti_storage::ids::{ClusterId, NodeId};
use smalti_storage::keys::RestKey;
use smalti_storage::store::ShardStore;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(60);
const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(0xc1));

fn addresses() -> NodeAddresses {
    let free = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    NodeAddresses { quic: free.expect("a free port"), api: at(2), nbd: at(3) }
}

fn config(dir: &Path, ca: &ClusterCa, founding: Option<Founding>) -> MemberConfig {
    let second = Duration::from_secs(1);
    MemberConfig {
        node: NodeId(1),
        cluster: CLUSTER,
        data_dir: dir.join("data"),
        shares_dir: dir.join("shares"),
        key_provider: Arc::new(RestKey::new([7; 32])),
        addresses: addresses(),
        peers: Vec::new(),
        credentials: ca.issue(NodeId(1), "n1").expect("issued"),
        founding,
        lease: second,
        suspect_after: second,
        power_patience: second,
        down_out: LONG,
        slow_out: LONG,
        scrub_every: Duration::ZERO,
        refresh_every: Duration::ZERO,
        stopping: CancellationToken::new(),
    }
}

async fn accepted(member: &Member, command: Command) -> Applied {
    let applied = member.raft().propose(command).await.expect("proposed");
    assert!(!matches!(applied, Applied::Rejected(_)), "{applied:?}");
    applied
}

fn founding(names: [&str; 2]) -> Founding {
    let share = |no: u64| ShareHolder { node: NodeId(no), share: no as u8 };
    let nodes = [1, 2].map(NodeId).into_iter().zip(names);
    Founding {
        nodes: nodes.map(|(id, name)| (id, name.to_owned(), addresses())).collect(),
        custody: Custody {
            share_epoch: 1,
            threshold: 2,
            holders: [share(1), share(2)].into(),
            commitments: vec![1],
            sealed_for_recovery: Vec::new(),
        },
        recovery: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_can_not_found_its_cluster_ends_and_says_why() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(dir.path().join("data")).expect("made");
    let ca = ClusterCa::generate(CLUSTER).expect("an authority");
    let twice = founding(["n1", "n1"]);
    let member = Member::start(config(dir.path(), &ca, Some(twice))).await.expect("started");
    let why = tokio::time::timeout(LONG, member.failed()).await.expect("it ends");
    let told = |why: &str| why.contains("can not be founded: two nodes are named n1");
    assert!(matches!(&why, Fatal::Failed(why) if told(why)), "{why:?}");
    member.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_the_store_of_another_node_ends_and_says_so() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(dir.path().join("data")).expect("made");
    let ca = ClusterCa::generate(CLUSTER).expect("an authority");
    let right = founding(["n1", "n2"]);
    let member = Member::start(config(dir.path(), &ca, Some(right))).await.expect("started");
    let mut map = member.raft().watch();
    let registered = map.wait_for(|map| !map.stores.is_empty());
    tokio::time::timeout(LONG, registered).await.expect("in time").expect("it runs");

    let theirs = dir.path().join("theirs");
    let store =
        RocksStore::open(theirs.clone(), &RocksOptions::default(), Expect { cluster: CLUSTER });
    let store = store.expect("made");
    let id = store.opened().id;
    drop(store);
    let command = Command::RegisterNode { node: NodeId(2), addresses: addresses() };
    let Applied::Registered(of) = accepted(&member, command).await else { panic!("no start") };
    accepted(&member, Command::RegisterStore(StoreStart::first(id, NodeId(2), of))).await;
    member.shutdown().await;
    drop(member);
    // Elsewhere, for within this process parts of the member may hold its own store yet.
    let after = dir.path().join("after");
    std::fs::create_dir_all(after.join("data")).expect("made");
    for (from, to) in [(dir.path().join("data/raft"), "raft"), (theirs, "store")] {
        std::fs::rename(from, after.join("data").join(to)).expect("moved");
    }

    let member = Member::start(config(&after, &ca, None)).await.expect("started");
    let why = tokio::time::timeout(LONG, member.failed()).await.expect("it ends");
    let belongs = format!("store {id} belongs to n2");
    let told = matches!(&why, Fatal::Failed(why) if why.contains(&belongs));
    assert!(told, "{why:?}");
    member.shutdown().await;
}
