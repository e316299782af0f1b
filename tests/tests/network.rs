//! Nothing of what clients wrote, and no key, goes over the network in the clear.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smalti_tests::memory::Needles;
use smalti_tests::nbd::Client;
use smalti_tests::pattern::{BLOCK, PIECE, fill, piece, seed};
use smalti_tests::report::{say, skip};
use smalti_tests::thief::Thief;
use smalti_tests::wire::Wire;
use smalti_tests::{Cluster, Spec};

const LIMIT: Duration = Duration::from_secs(60);
/// What is written each time, in MiB.
const WRITTEN: u64 = 16;
/// So many blocks are looked for, in all of their pieces.
const LOOKED_FOR: u64 = 64;

/// Threat: a network attacker who reads.
#[test]
fn what_is_heard_on_the_network_has_no_plaintext_and_no_key() -> Result<()> {
    let test = "what_is_heard_on_the_network_has_no_plaintext_and_no_key";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let folder = std::env::temp_dir().join(format!("smalti-wire-{}", std::process::id()));
    let Some(wire) = Wire::listen(&folder)? else {
        return skip(test, "listening to the network is not permitted here");
    };
    // From the first dealing of the master secret on.
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    write(&cluster, seed, 0)?;
    // Two of three clients are served by a gateway on another node.
    for node in 0..3 {
        read(&cluster, seed, node, 0)?;
    }
    cluster.kill(2)?;
    cluster.wait_degraded()?;
    write(&cluster, seed, WRITTEN)?;
    cluster.start(2)?;
    cluster.wait_ok()?;
    read(&cluster, seed, 2, WRITTEN)?;
    // Keys are made, shares of them dealt and dealt on, and records sealed anew.
    cluster.command(&["key", "rotate", "v", "--wait"])?;
    cluster.command(&["key", "custodians", "--refresh"])?;
    cluster.down()?;

    let capture = wire.end()?;
    let least = 3 * WRITTEN * PIECE as u64;
    ensure!(capture.bytes > least, "only {} bytes were heard", capture.bytes);
    let mut needles = Needles::default();
    for at in 0..LOOKED_FOR {
        let no = at * 2 * WRITTEN * PIECE as u64 / BLOCK as u64 / LOOKED_FOR;
        let mut block = vec![0; BLOCK];
        fill(seed, no, 1, &mut block);
        needles.add(format!("block {no}"), &block);
    }
    let mut thief = Thief::default();
    cluster.nodes().iter().try_for_each(|node| thief.take(&node.dir))?;
    let secrets = [thief.keys()?, thief.shares()].concat();
    ensure!(thief.shares().len() >= 6, "{} shares to look for", thief.shares().len());
    for (name, secret) in &secrets {
        needles.add(name, secret);
    }
    let found = capture.search(&needles)?;
    let heard = capture.bytes >> 20;
    ensure!(found.is_empty(), "{} found in {heard} MiB: {:?}", found.len(), found.first());
    say(test, &format!("none of {} in {heard} MiB of packets", needles.len()));
    std::fs::remove_file(&capture.file).context("forget what was heard")?;
    cluster.finish()
}

fn write(cluster: &Cluster, seed: u64, from: u64) -> Result<()> {
    let mut client = Client::connect(&cluster.target(0), LIMIT)?;
    for at in from..from + WRITTEN {
        client.write(at * PIECE as u64, &piece(seed, at), 0)?;
    }
    Ok(client.flush()?)
}

fn read(cluster: &Cluster, seed: u64, node: usize, from: u64) -> Result<()> {
    let mut client = Client::connect(&cluster.target(node), LIMIT)?;
    let mut bytes = vec![0; PIECE];
    for at in from..from + WRITTEN {
        client.read(at * PIECE as u64, &mut bytes)?;
        ensure!(bytes == piece(seed, at), "MiB {at} through node {node} is another one");
    }
    Ok(())
}
