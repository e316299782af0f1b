//! How a node without a map finds out who the members are: it asks the nodes that its configuration
//! names.
//!
//! A leader that joined later than this node was configured is not among those, and would be refused; nor
//! could this node, which has to say that its store is new, ask it for anything. So each node tells members
//! whom its map has, and who has no map yet believes those that it believes anyhow. Nobody is let in for
//! his certificate alone: that of a removed node holds for years, and with a map of its own making it could
//! have this node's key share, and the rows of its store.

use crate::fabric::{AddressBook, Fabric, service};
use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use serde::{Deserialize, Serialize};
use smalti_map::view::MapView;
use smalti_net::Service;
use smalti_storage::ids::NodeId;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// Between two rounds of asking.
const EVERY: Duration = Duration::from_secs(1);

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Before an answer.
const VERSION: u8 = 1;

/// The members by a map, and how new that is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    version: u64,
    nodes: Vec<(NodeId, SocketAddr)>,
}

/// Tells members whom the map has, and where.
pub(crate) struct Introductions {
    pub(crate) map: watch::Receiver<MapView>,
}

impl Service for Introductions {
    fn call(&self, _from: NodeId, _request: Bytes) -> BoxFuture<'_, Bytes> {
        let map = self.map.borrow().clone();
        let nodes = map.nodes.iter().map(|(id, node)| (*id, node.addresses.quic)).collect();
        Box::pin(std::future::ready(encode(&Known { version: map.version, nodes })))
    }
}

/// Asks until there is a map.
pub(crate) async fn be_introduced(
    fabric: Fabric,
    book: &AddressBook,
    mut map: watch::Receiver<MapView>,
) {
    let mut configured = book.nodes();
    configured.retain(|node| *node != fabric.endpoint().identity().node);
    let mut newest = 0;
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if !map.borrow_and_update().nodes.is_empty() {
            return;
        }
        tokio::select! {
            changed = map.changed() => match changed {
                Ok(()) => continue,
                Err(_closed) => return,
            },
            _ = every.tick() => {}
        }
        let ask = |node: &NodeId| fabric.call(*node, service::MEMBERS, Bytes::new(), PATIENCE);
        // Who does not answer tells nothing, and who has an older map than another one may name somebody
        // who was removed since.
        let answers = join_all(configured.iter().map(ask)).await.into_iter().flatten();
        let best = answers.map(|known| decode(&known)).max_by_key(|known| known.version);
        if let Some(known) = best.filter(|known| known.version >= newest) {
            newest = known.version;
            book.introduce(known.nodes);
        }
    }
}

fn encode(known: &Known) -> Bytes {
    postcard::to_extend(known, vec![VERSION]).expect("a vector grows").into()
}

fn decode(answer: &[u8]) -> Known {
    match answer.split_first() {
        Some((&VERSION, known)) => postcard::from_bytes(known).unwrap_or_default(),
        _ => Known::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_map::{ClusterMap, Node, NodeAddresses};
    use smalti_net::{ClusterCa, Endpoint, NetConfig, PeerPolicy};
    use smalti_storage::ids::ClusterId;
    use std::sync::Arc;
    use uuid::Uuid;

    const LONG: Duration = Duration::from_secs(30);

    struct Echo;

    impl Service for Echo {
        fn call(&self, _from: NodeId, request: Bytes) -> BoxFuture<'_, Bytes> {
            Box::pin(std::future::ready(request))
        }
    }

    fn map(nodes: &[(u64, SocketAddr)]) -> MapView {
        let node = |(no, quic): &(u64, SocketAddr)| {
            let addresses = NodeAddresses { quic: *quic, api: *quic, nbd: *quic };
            (NodeId(*no), Node::new(format!("n{no}"), addresses))
        };
        let nodes = nodes.iter().map(node).collect();
        Arc::new(ClusterMap { nodes, ..ClusterMap::default() })
    }

    #[tokio::test]
    async fn a_node_without_a_map_lets_in_whom_its_peers_know_and_nobody_else() {
        let ca = ClusterCa::generate(ClusterId(Uuid::from_u128(3))).expect("an authority");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let books: Vec<Arc<AddressBook>> = (0..4).map(|_| Arc::default()).collect();
        let bind = |(book, no): (&Arc<AddressBook>, u64)| {
            let credentials = ca.issue(NodeId(no), "test").expect("issued");
            let policy = Arc::clone(book) as Arc<dyn PeerPolicy>;
            let endpoint = Endpoint::bind(any, &credentials, policy, NetConfig::default());
            Fabric::new(endpoint.expect("bound"), Arc::clone(book))
        };
        let fabrics: Vec<Fabric> = books.iter().zip(1..).map(bind).collect();
        let at = |no: usize| fabrics[no - 1].endpoint().local_addr();
        // 1 is known to 3, which has no map; 2 joined later; 4 has a certificate, and is no member any more.
        let members = map(&[(1, at(1)), (2, at(2)), (3, at(3))]);
        books[0].adopt(&members);
        books[1].adopt(&members);
        books[2].set(NodeId(1), Some(at(1)));
        books[3].adopt(&map(&[(3, at(3))]));
        let told = watch::Sender::new(Arc::clone(&members));
        let introductions = Introductions { map: told.subscribe() };
        fabrics[0].endpoint().serve(service::MEMBERS, Arc::new(introductions));
        fabrics[2].endpoint().serve(service::RAFT, Arc::new(Echo));
        let call = |no: usize| {
            fabrics[no - 1].call(NodeId(3), service::RAFT, Bytes::from_static(b"hi"), LONG)
        };
        call(2).await.expect_err("nobody has told of it");

        let own = watch::Sender::new(MapView::default());
        let (fabric, book) = (fabrics[2].clone(), Arc::clone(&books[2]));
        let watched = own.subscribe();
        let asks = tokio::spawn(async move { be_introduced(fabric, &book, watched).await });
        let is_in = async {
            while call(2).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LONG, is_in).await.expect("let in");
        assert_eq!(books[2].find(NodeId(2)), Some(at(2)), "it can be asked as well");
        call(4).await.expect_err("it is no member");

        // Once there is a map nobody else is believed.
        books[2].adopt(&map(&[(1, at(1)), (3, at(3))]));
        own.send_replace(members);
        tokio::time::timeout(LONG, asks).await.expect("it ends").expect("no panic");
        books[2].introduce(vec![(NodeId(2), at(2))]);
        assert_eq!(books[2].find(NodeId(2)), None);
    }

    #[test]
    fn answers_of_others_are_read_or_ignored() {
        let nodes = vec![(NodeId(7), SocketAddr::from(([192, 0, 2, 1], 9)))];
        let known = Known { version: 3, nodes };
        assert_eq!(decode(&encode(&known)), known);
        for bytes in [&[][..], &[VERSION], &[VERSION + 1, 0], &[VERSION, 9, 9]] {
            assert_eq!(decode(bytes), Known::default(), "{bytes:?}");
        }
    }
}
