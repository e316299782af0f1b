//! More is unanswered when a session breaks than a link would let wait: all of it goes again, and
//! is answered.

use super::clients::{row, wid};
use super::cluster::{Cluster, HEALING, Setup};
use super::net::{MemoryNet, Weather};
use super::pressure::simulate;
use super::rng::Rng;
use bytes::Bytes;
use smalti_rowcommit::coordinator::BlockWrite;
use smalti_storage::ids::{NodeId, Slot};
use std::time::Duration;
use tokio::time::{sleep, timeout};

#[test]
fn a_backlog_larger_than_the_queue_goes_again() {
    simulate(async {
        let mut setup = Setup::plain(1, 1);
        // Nobody may be taken out: every write waits for both stores.
        (setup.min_insync, setup.record_len) = (2, 1 << 20);
        let mut rng = Rng::new(3);
        let weather = Weather { delay: Duration::from_millis(1), window: 8 << 20, refused: 0 };
        let net = MemoryNet::new(rng.fork(), weather);
        let cluster = Cluster::over(&net, setup, &mut rng).await;
        cluster.whole().await.expect("a new cluster");
        net.set_hole(NodeId(1), NodeId(2), true);
        net.set_hole(NodeId(2), NodeId(1), true);
        let record = Bytes::from(vec![7; 1 << 20]);
        let mut writes = Vec::new();
        for seq in 1..=200 {
            let coder = cluster.coders[0].clone();
            let (row, wid, record) = (row(seq), wid(seq), record.clone());
            let write = BlockWrite { row, slot: Slot(0), wid, record };
            writes.push(tokio::spawn(async move { coder.write(vec![write]).await }));
            // Each in a flush of its own.
            sleep(Duration::from_millis(3)).await;
        }
        net.cut(NodeId(1), NodeId(2));
        net.heal();
        for write in writes {
            let ended = timeout(HEALING, write).await.expect("it ends").expect("no panic");
            assert_eq!(ended, Ok(()));
        }
        cluster.whole().await.expect("whole again");
        let found = cluster.stop().await.expect("the contract");
        // The one that was cut, perhaps one that was too full, and no endless number.
        assert!(found.sessions <= 8, "{found:?}");
    });
}
