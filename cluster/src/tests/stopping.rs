//! Processes that are about to end take nobody out of sync: all of them may be ending, and whoever
//! was faster may be needed when they start again.

use super::cluster::{Cluster, Setup};
use super::net::{MemoryNet, Weather};
use super::pressure::simulate;
use super::rig::until;
use super::rng::Rng;
use smalti_storage::ids::NodeId;
use std::time::Duration;
use tokio::time::sleep;

/// A cluster whose coordinator has lost one of the other nodes, while its process is to end or not.
async fn with_one_silent(stopping: bool) -> bool {
    let mut rng = Rng::new(5);
    let weather = Weather { delay: Duration::from_millis(1), window: 8 << 20, refused: 0 };
    let net = MemoryNet::new(rng.fork(), weather);
    let cluster = Cluster::over(&net, Setup::plain(2, 1), &mut rng).await;
    cluster.whole().await.expect("a new cluster");
    let volume = cluster.coders[0].volume();
    let seat = |cluster: &Cluster| cluster.machine.view().volumes[&volume].coordinator;
    let here = seat(&cluster).expect("elected").node;
    let other = (1..=3).map(NodeId).find(|node| *node != here).expect("there are three");
    if stopping {
        cluster.stopping.cancel();
    }
    net.set_hole(here, other, true);
    net.set_hole(other, here, true);
    sleep(Duration::from_secs(10)).await;
    let kept = cluster.machine.view().volumes[&volume].is_full();
    net.heal();
    until("all are in sync", || cluster.machine.view().volumes[&volume].is_full()).await;
    cluster.whole().await.expect("whole again");
    cluster.stop().await.expect("the contract");
    kept
}

#[test]
fn who_is_about_to_end_takes_nobody_out() {
    simulate(async {
        assert!(!with_one_silent(false).await, "it was to be silent");
        assert!(with_one_silent(true).await);
    });
}
