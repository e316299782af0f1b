//! A full disk: clients are told so, nothing that was acknowledged is lost, no node falls.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use smalti_tests::mount::{self, Mounted, SmallDisk};
use smalti_tests::nbd::{Client, Error};
use smalti_tests::pattern::{BLOCK, PIECE, piece, seed};
use smalti_tests::process::{sh, until};
use smalti_tests::report::{say, skip};
use smalti_tests::{Cluster, Spec};

const LIMIT: Duration = Duration::from_secs(120);
/// Pieces that a client has for itself: far more than fit on the disk.
const PIECES: u64 = 1024;
/// Writes of a client after it was first refused.
const TRIES_ON: u64 = 100;
/// To start a cluster that has all it needs but room.
const UP_LIMIT: Duration = Duration::from_secs(40);
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
    let disk = SmallDisk::mount(1500)?;
    let mut cluster = Cluster::up_in(disk.path(), Spec::three(test, "3G"))?;
    let written = fill_through_all(&cluster, seed).with_context(|| ended(&cluster))?;
    let all: u64 = written.iter().sum();
    say(test, &format!("ENOSPC after {all} MiB: {written:?}"));
    read_all(&cluster, seed, &written)?;
    say(test, &format!("{all} MiB right through every node"));
    // Who wants to make room has to be able to start it.
    cluster.down()?;
    let begun = Instant::now();
    cluster.run_up()?;
    let took = begun.elapsed();
    ensure!(took < UP_LIMIT, "`up` waited {took:?} for room");
    read_all(&cluster, seed, &written)?;
    say(test, &format!("{} after `up`, in {took:?}", cluster.status()?.brief()));
    cluster.finish()
}

/// The disk of one node is full, and those of the others are not: it is no reason to do without it, for what
/// only two of three hold is lost with the next disk.
#[test]
fn one_full_disk() -> Result<()> {
    let test = "one_full_disk";
    if let Some(reason) = mount::missing() {
        return skip(test, &reason);
    }
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "3G"))?;
    let disk = SmallDisk::mount(1000)?;
    cluster.stop(1)?;
    cluster.wait_degraded()?;
    let (data, small) = (cluster.data_dir(1)?, disk.path().join("data"));
    sh(&["mv", &data.display().to_string(), &small.display().to_string()], LIMIT)?;
    std::fs::create_dir(&data)?;
    let mounted = Mounted::bind(&small, &data)?;
    cluster.start(1)?;
    cluster.wait_ok()?;
    let written = fill_through_all(&cluster, seed).with_context(|| ended(&cluster))?;
    let all: u64 = written.iter().sum();
    say(test, &format!("ENOSPC after {all} MiB: {written:?}"));
    read_all(&cluster, seed, &written)?;
    let why = cluster.command(&["why"])?;
    ensure!(why.contains("node n2") && why.contains("full"), "{why}");
    // What it refused nobody has in part, and what it took is there.
    cluster.kill(2)?;
    read_all(&cluster, seed, &written)?;
    cluster.start(2)?;
    cluster.wait_status("it is in sync again", LIMIT, |status| {
        status.node_state("n3") == "up" && status.volumes[0].rows_behind == Some(0)
    })?;
    disk.resize(4000)?;
    until("there is room again", LIMIT, || {
        let mut client = Client::connect(&cluster.target(0), LIMIT)?;
        match client.write(written[0] * PIECE as u64, &piece(seed, written[0]), 0) {
            Ok(()) => Ok(Some(())),
            Err(Error::Server(NO_SPACE)) => Ok(None),
            Err(error) => bail!("refused with {error}, not ENOSPC"),
        }
    })?;
    cluster.wait_ok()?;
    read_all(&cluster, seed, &written)?;
    cluster.down()?;
    drop(mounted);
    cluster.finish()
}

/// One client through each node, each with a part of the volume, until they are refused; how much each has
/// written.
fn fill_through_all(cluster: &Cluster, seed: u64) -> Result<Vec<u64>> {
    let written: Result<Vec<u64>> = thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|node| {
                let target = cluster.target(node);
                scope.spawn(move || {
                    let mut client = Client::connect(&target, LIMIT)?;
                    fill_up(&mut client, seed, node as u64 * PIECES)
                })
            })
            .collect();
        let joined = clients.into_iter().map(|client| client.join().expect("no panic"));
        joined.enumerate().map(|(node, done)| done.context(format!("node {node}"))).collect()
    });
    let written = written?;
    let all: u64 = written.iter().sum();
    ensure!(all > 100, "full after {all} MiB");
    for node in 0..3 {
        ensure!(cluster.is_running(node), "node {node} ended");
    }
    Ok(written)
}

/// What was written is there, through every node that runs.
fn read_all(cluster: &Cluster, seed: u64, written: &[u64]) -> Result<()> {
    for node in (0..3).filter(|node| cluster.is_running(*node)) {
        let mut client = Client::connect(&cluster.target(node), LIMIT)?;
        let mut buf = vec![0; PIECE];
        for (part, written) in (0..).zip(written) {
            for at in (part * PIECES..).take(usize::try_from(*written)?) {
                client.read(at * PIECE as u64, &mut buf).with_context(|| format!("MiB {at}"))?;
                ensure!(buf == piece(seed, at), "MiB {at} differs through node {node}");
            }
        }
    }
    Ok(())
}

/// Writes piece after piece until it is refused for lack of space, and goes on trying: in large
/// and small pieces, what is written and what is not. Returns how many pieces were written.
fn fill_up(client: &mut Client, seed: u64, first: u64) -> Result<u64> {
    let mut written = 0;
    let refused = loop {
        ensure!(written < PIECES, "the disk does not get full");
        let at = first + written;
        match client.write(at * PIECE as u64, &piece(seed, at), 0) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    let Error::Server(NO_SPACE) = refused else { bail!("refused with {refused}, not ENOSPC") };
    for turn in 0..TRIES_ON {
        let at = first + (turn * 7) % (written + 1);
        let bytes = piece(seed, at);
        let length = if turn % 3 == 0 { PIECE } else { BLOCK };
        // Some room may come back: the same bytes again harm nothing.
        match client.write(at * PIECE as u64, &bytes[..length], 0) {
            Ok(()) | Err(Error::Server(NO_SPACE)) => {}
            Err(error) => bail!("refused with {error}, not ENOSPC"),
        }
    }
    Ok(written)
}

fn ended(cluster: &Cluster) -> String {
    let ended: Vec<_> = (0..3).filter(|node| !cluster.is_running(*node)).collect();
    format!("ended nodes: {ended:?}")
}
