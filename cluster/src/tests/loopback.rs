//! The same contract over QUIC: endpoints of three nodes on loopback, writers on threads of their
//! own, and connections that are closed under them.

use super::clients::Client;
use super::cluster::{Cluster, HEALING, Setup};
use super::rng::Rng;
use crate::fabric::{AddressBook, Fabric, service};
use smalti_net::{ClusterCa, Endpoint, NetConfig, PeerPolicy};
use smalti_storage::ids::{ClusterId, NodeId};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long connections are closed again and again.
const STORM: Duration = Duration::from_secs(3);

/// A node's end of the network.
struct Place {
    book: Arc<AddressBook>,
    fabric: Fabric,
    addr: SocketAddr,
}

fn places(nodes: u64) -> BTreeMap<NodeId, Place> {
    let ca = ClusterCa::generate(ClusterId(Uuid::from_u128(1))).expect("an authority");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let place = |node| {
        let credentials = ca.issue(node, "test").expect("issued");
        let book = Arc::new(AddressBook::default());
        let policy = Arc::clone(&book) as Arc<dyn PeerPolicy>;
        let endpoint =
            Endpoint::bind(any, &credentials, policy, NetConfig::default()).expect("bound");
        let addr = endpoint.local_addr();
        (node, Place { fabric: Fabric::new(endpoint, Arc::clone(&book)), book, addr })
    };
    let places: BTreeMap<NodeId, Place> = (1..=nodes).map(NodeId).map(place).collect();
    for place in places.values() {
        for (node, other) in &places {
            place.book.set(*node, Some(other.addr));
        }
    }
    places
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_over_quic_keep_the_contract() {
    let given = std::env::var("SMALTI_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = given.unwrap_or_else(rand::random);
    // Faults and load come from it; threads and sockets have a will of their own.
    eprintln!("SMALTI_SEED={seed}");
    let mut rng = Rng::new(seed);
    let setup = Setup { volumes: 2, record_len: 4160, ..Setup::plain(2, 1) };
    let places = places(setup.nodes());
    let cluster = Cluster::start(
        setup,
        &mut rng,
        |node| places[&node].fabric.clone(),
        |node, sessions| {
            let endpoint = places[&node].fabric.endpoint();
            endpoint.accept_sessions(service::ROWS, Arc::new(sessions));
        },
        |_, disk| disk,
    )
    .await;
    let stop = CancellationToken::new();
    let mut clients = Vec::new();
    for coder in &cluster.coders {
        for no in 0..4 {
            let client = Client::new(&cluster, coder, rng.fork(), (no, 4), 8);
            clients.push(tokio::spawn(client.run(stop.clone(), Duration::from_millis(2))));
        }
    }
    let end = Instant::now() + STORM;
    let mut cuts = 0;
    while Instant::now() < end {
        sleep(Duration::from_millis(rng.below(200))).await;
        let (at, of) = (NodeId(rng.range(1, 3)), NodeId(rng.range(1, 3)));
        if at == of {
            continue;
        }
        // Not known any more, a node loses its connections, also those that it made.
        places[&at].book.set(of, None);
        places[&at].fabric.forget_strangers();
        sleep(Duration::from_millis(rng.below(100))).await;
        places[&at].book.set(of, Some(places[&of].addr));
        cuts += 1;
    }
    stop.cancel();
    let mut ops = 0;
    let mut done = Vec::new();
    for client in clients {
        let ended = timeout(HEALING, client).await.expect("every operation ends");
        done.push(ended.expect("no panic").expect("reads are right"));
    }
    cluster.whole().await.expect("whole again");
    for client in &done {
        client.check(&cluster).await.expect("what was acknowledged is there");
        ops += client.ops;
    }
    let found = cluster.stop().await.expect("the contract");
    eprintln!("{cuts} cuts, {ops} operations, {found:?}");
    assert!(cuts > 0 && ops > 100 && found.sessions > 8, "{cuts}, {ops}, {found:?}");
    for place in places.values() {
        place.fabric.endpoint().close().await;
    }
}
