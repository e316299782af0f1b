//! A snapshot through the shell: made under load, read, and let go of by stores that have nothing
//! else to do.

use super::clients::{GENERATION, row, wid};
use super::cluster::{Cluster, Setup};
use super::net::{MemoryNet, Weather};
use super::pressure::simulate;
use super::rig::until;
use super::rng::Rng;
use crate::coder::Propose;
use bytes::Bytes;
use smalti_map::Command;
use smalti_rowcommit::coordinator::{BlockWrite, OpError};
use smalti_storage::ids::{GroupNo, Slot};
use smalti_storage::store::ShardStore;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const ROWS: u64 = 200;

fn write(index: u64, seq: u64) -> BlockWrite {
    let record = Bytes::from(vec![u8::try_from(seq % 251).unwrap_or(0) + 1; 64]);
    BlockWrite { row: row(index), slot: Slot(0), wid: wid(seq), record }
}

#[test]
fn a_snapshot_is_of_one_moment_and_its_space_comes_back() {
    simulate(async {
        let mut rng = Rng::new(11);
        let weather = Weather { delay: Duration::from_millis(1), window: 8 << 20, refused: 0 };
        let net = MemoryNet::new(rng.fork(), weather);
        let cluster = Cluster::over(&net, Setup::plain(2, 1), &mut rng).await;
        cluster.whole().await.expect("a new cluster");
        let coder = &cluster.coders[0];
        let first = (0..ROWS).map(|index| write(index, index + 1)).collect();
        coder.write(first).await.expect("written");
        // All rows again, one after the other, while the snapshot is made.
        let rewritten = Arc::new(AtomicU64::new(0));
        let again = {
            let (coder, rewritten) = (coder.clone(), Arc::clone(&rewritten));
            tokio::spawn(async move {
                for index in 0..ROWS {
                    coder.write(vec![write(index, ROWS + index + 1)]).await.expect("written");
                    rewritten.store(index + 1, Ordering::Relaxed);
                }
            })
        };
        until("some rows are rewritten", || rewritten.load(Ordering::Relaxed) > 5).await;
        let snap = coder.snapshot("s".into(), 1).await.expect("made");
        again.await.expect("no panic");
        let blocks: Vec<_> = (0..ROWS).map(|index| (row(index), Slot(0))).collect();
        let held = coder.read_at(GENERATION, blocks.clone(), Some(snap)).await.expect("read");
        let newer = |index: u64| held[index as usize] == write(index, ROWS + index + 1).record;
        let cut = (0..ROWS).take_while(|index| newer(*index)).count() as u64;
        assert!(0 < cut && cut < ROWS, "made while rows were written: {cut}");
        for index in cut..ROWS {
            assert_eq!(held[index as usize], write(index, index + 1).record, "row {index}");
        }
        let volume = coder.volume();
        let versions = || -> usize {
            let scan = |disk: &dyn ShardStore| {
                disk.scan(volume, GroupNo(0), None, 10_000).expect("memory does not fail")
            };
            let slots = cluster.nodes.iter().flat_map(|node| scan(node.disk.as_ref()));
            slots.map(|(_, versions)| versions.len()).sum()
        };
        let kept = versions();
        let dropped = cluster.machine.propose(Command::DropSnapshot { volume, snap }).await;
        dropped.expect("the map takes it");
        until("the stores let go of what only the snapshot held", || {
            versions() + 2 * (ROWS - cut) as usize <= kept
        })
        .await;
        let gone = coder.read_at(GENERATION, blocks, Some(snap)).await;
        assert_eq!(gone, Err(OpError::NoSnapshot));
        cluster.whole().await.expect("whole");
        cluster.stop().await.expect("the contract");
    });
}
