//! A full disk: clients are told so, nothing that was acknowledged is lost, no node falls.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use smalti_tests::mount::{self, SmallDisk};
use smalti_tests::nbd::{Client, Error};
use smalti_tests::pattern::{BLOCK, fill, seed};
use smalti_tests::report::{say, skip};
use smalti_tests::{Cluster, Spec};

const LIMIT: Duration = Duration::from_secs(120);
const PIECE: usize = 1 << 20;
/// ENOSPC, as NBD numbers it.
const NO_SPACE: u32 = 28;

#[test]
fn full_disk() -> Result<()> {
    let test = "full_disk";
    if let Some(reason) = mount::missing() {
        return skip(test, &reason);
    }
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let disk = SmallDisk::mount(900)?;
    // Far more than fits on the disk that all three stores share.
    let cluster = Cluster::up_in(disk.path(), Spec::three(test, "2G"))?;
    let mut client = Client::connect(&cluster.target(0), LIMIT)?;
    let mut written = 0;
    let refused = loop {
        ensure!(written < 2048, "the disk does not get full");
        match client.write(written * PIECE as u64, &piece(seed, written), 0) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    let Error::Server(NO_SPACE) = refused else { bail!("refused with {refused}, not ENOSPC") };
    ensure!(written > 16, "full after {written} MiB");
    say(test, &format!("ENOSPC after {written} MiB"));
    // It stays so, however often a client tries, and the connection serves on.
    for at in [0, written, written + 1] {
        match client.write(at * PIECE as u64, &piece(seed, at), 0) {
            // Some room may be left: the same bytes again harm nothing.
            Ok(()) | Err(Error::Server(NO_SPACE)) => {}
            Err(error) => bail!("refused with {error}, not ENOSPC"),
        }
    }
    for node in 0..3 {
        ensure!(cluster.is_running(node), "node {node} ended");
        let mut client = Client::connect(&cluster.target(node), LIMIT)?;
        let mut buf = vec![0; PIECE];
        for at in 0..written {
            client.read(at * PIECE as u64, &mut buf).with_context(|| format!("MiB {at}"))?;
            ensure!(buf == piece(seed, at), "MiB {at} differs through node {node}");
        }
    }
    say(test, &format!("{written} MiB right through every node"));
    cluster.finish()
}

/// The contents of a MiB of the volume.
fn piece(seed: u64, at: u64) -> Vec<u8> {
    let mut bytes = vec![0; PIECE];
    let first = at * (PIECE / BLOCK) as u64;
    for (block, buf) in (first..).zip(bytes.chunks_mut(BLOCK)) {
        fill(seed, block, 1, buf);
    }
    bytes
}
