//! Nothing a client wrote lies readable in any file of any node.

use std::time::Duration;

use anyhow::{Result, ensure};
use smalti_tests::files::{Search, search};
use smalti_tests::nbd::{Client, FUA};
use smalti_tests::pattern::{next_random, seed};
use smalti_tests::report::say;
use smalti_tests::{Cluster, Spec};

const LIMIT: Duration = Duration::from_secs(60);
const TEXT: &[u8] = b"It was a bright cold day in April, and the clocks were striking thirteen. ";
const MARKERS: usize = 6;
/// A piece this long by chance in a gigabyte: once in 10^29 runs.
const PIECE: usize = 16;
const WRITTEN: u64 = 24 << 20;

#[test]
fn at_rest() -> Result<()> {
    let test = "at_rest";
    let mut random = seed();
    say(test, &format!("seed {random}"));
    let markers: Vec<Vec<u8>> = (0..MARKERS)
        .map(|_| (0..8).flat_map(|_| next_random(&mut random).to_le_bytes()).collect())
        .collect();
    let mut cluster = Cluster::up(Spec::three(test, "256M"))?;
    let before = search(&[cluster.dir()], &needles(&markers))?;
    ensure!(before.hits.is_empty(), "markers before they were written: {:?}", before.hits);

    write(&cluster, 0, &markers)?;
    // Live first: what only lies in a write-ahead log or a socket file now counts too.
    judge(test, "running", &cluster, &markers, before.bytes)?;

    // A dead node, and writes it misses: they go to journals for catching up.
    cluster.kill(2)?;
    write(&cluster, 64 << 20, &markers)?;
    judge(test, "one node killed", &cluster, &markers, before.bytes)?;
    cluster.start(2)?;
    cluster.wait_ok()?;

    cluster.kill_together(&[0, 1, 2])?;
    judge(test, "all nodes killed", &cluster, &markers, before.bytes)?;
    for node in 0..3 {
        cluster.start(node)?;
    }
    cluster.wait_ok()?;
    cluster.down()?;
    judge(test, "stopped cleanly", &cluster, &markers, before.bytes)?;

    cluster.run_up()?;
    cluster.wait_ok()?;
    for (at, node) in [(0, 1), (64 << 20, 2)] {
        let mut client = Client::connect(&cluster.target(node), LIMIT)?;
        let mut found = vec![0; 4096];
        client.read(at + 4096, &mut found)?;
        ensure!(found == block(&markers, 1), "the plaintext is not on the volume");
    }
    cluster.finish()
}

/// Blocks 0, 1, 2 of every eight: full of markers and text; the others stay unwritten, so that a
/// parity over one plain block and absent ones would show that block.
fn block(markers: &[Vec<u8>], which: usize) -> Vec<u8> {
    let marker = &markers[which % markers.len()];
    let mut data: Vec<u8> = marker.iter().chain(TEXT).copied().cycle().take(4096).collect();
    data[4096 - marker.len()..].copy_from_slice(marker);
    data
}

fn write(cluster: &Cluster, at: u64, markers: &[Vec<u8>]) -> Result<()> {
    let mut client = Client::connect(&cluster.target(0), LIMIT)?;
    for i in (0..WRITTEN / 4096).filter(|i| i % 8 < 3) {
        let flags = if i % 64 == 0 { FUA } else { 0 };
        client.write(at + i * 4096, &block(markers, i as usize), flags)?;
    }
    client.flush()?;
    Ok(())
}

/// Pieces of every marker and of the text, also as hexadecimal text as a log would print them.
fn needles(markers: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut needles = Vec::new();
    for source in markers.iter().map(Vec::as_slice).chain([TEXT]) {
        for piece in source.chunks_exact(PIECE) {
            let hex: String = piece.iter().map(|b| format!("{b:02x}")).collect();
            needles.extend([piece.to_vec(), hex.clone().into_bytes()]);
            needles.push(hex.to_uppercase().into_bytes());
        }
    }
    needles
}

fn judge(test: &str, when: &str, cluster: &Cluster, markers: &[Vec<u8>], empty: u64) -> Result<()> {
    let Search { files, bytes, hits } = search(&[cluster.dir()], &needles(markers))?;
    ensure!(
        hits.is_empty(),
        "{when}: plaintext in {} places, first {:?}",
        hits.len(),
        &hits[..hits.len().min(5)]
    );
    // The search must have seen the data, sealed: 3/8 of it is written, 1.5 times with parity.
    ensure!(
        bytes > empty + WRITTEN * 3 / 8,
        "{when}: only {bytes} bytes on disk, {empty} before: where is the data?"
    );
    say(test, &format!("{when}: {files} files, {} MiB searched, nothing found", bytes >> 20));
    Ok(())
}
