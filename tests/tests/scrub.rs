//! Flipped bytes in the files of a running node, with clients at work: a scrub finds and mends them, says
//! which node had them, and finds nothing the next time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use smalti_tests::files;
use smalti_tests::image::Image;
use smalti_tests::nbd::Client;
use smalti_tests::pattern::{BLOCK, PIECE, piece, seed};
use smalti_tests::process::until;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);
/// Pieces that nobody writes any more.
const PIECES: u64 = 48;
/// One byte in so many is flipped.
const EVERY: u64 = 200_000;
const ROTTEN: usize = 1;

#[test]
fn a_scrub_finds_and_mends_what_rots_under_load() -> Result<()> {
    let test = "a_scrub_finds_and_mends_what_rots_under_load";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "128M"))?;
    let mut client = Client::connect(&cluster.target(0), LIMIT)?;
    for at in 0..PIECES {
        client.write(at * PIECE as u64, &piece(seed, at), 0)?;
    }
    client.flush()?;
    drop(client);
    let scrub = cluster.facts(&["scrub"])?["v"].clone();
    ensure!(scrub["wrong"] == 0 && scrub["due"] == 0, "nothing has rotted: {scrub}");
    ensure!(scrub["rows"].as_u64() >= Some(PIECES * 128), "all rows were read: {scrub}");

    // Stopped in order, stores leave everything in their tables and blob files.
    cluster.down()?;
    cluster.run_up()?;
    let base = (64 << 20) / BLOCK as u64;
    let load = Load::start(LoadConfig { base, ..LoadConfig::new(cluster.targets(), 0, seed) });
    load.progress(100, LIMIT)?;
    let mut random = seed;
    let flipped = rot(&cluster, &mut random)?;
    ensure!(flipped > 50, "only {flipped} bytes flipped");
    let scrub = cluster.facts(&["scrub", "v"])?["v"].clone();
    say(test, &format!("{flipped} bytes flipped on node {ROTTEN}: {scrub}"));
    let wrong = scrub["wrong"].as_u64().context("wrong")?;
    // A byte may be of what the load has replaced, or two of one record.
    ensure!(wrong >= flipped / 2 && wrong <= flipped, "{flipped} bytes flipped: {scrub}");
    ensure!(scrub["unclear"] == 0, "{scrub}");
    load.progress(100, LIMIT)?;
    let again = cluster.facts(&["scrub", "v"])?["v"].clone();
    ensure!(again["wrong"] == 0, "scrubbed again: {again}");
    say(test, &format!("once more: {again}"));

    // Whoever reads finds some too, and mends them; parity is not read, so a scrub finds the rest.
    let flipped = rot(&cluster, &mut random)?;
    read_all(&cluster, 0, seed)?;
    let rest = cluster.facts(&["scrub", "v"])?["v"].clone();
    let left = rest["wrong"].as_u64().context("wrong")?;
    say(test, &format!("{flipped} more, of which reads left {left}"));
    // A third of all, and what the load has written, which nobody reads.
    ensure!(left > 0 && left <= flipped * 2 / 3, "{flipped} bytes flipped, read, and then: {rest}");
    load.finish()?.verify(&cluster.target(2))?;

    let nodes = cluster.facts(&["node", "list"])?;
    for (node, facts) in nodes.as_array().context("nodes")?.iter().enumerate() {
        let faults = facts["stores"][0]["faults"].as_u64().context("faults")?;
        let right = if node == ROTTEN { faults >= wrong } else { faults == 0 };
        ensure!(right, "node {node} has {faults} faults: {nodes}");
    }
    let status = cluster.command(&["status"])?;
    let told = |line: &&str| line.contains(": store ") && line.ends_with(" wrong records");
    let told: Vec<&str> = status.lines().filter(told).collect();
    let name = &cluster.nodes()[ROTTEN].name;
    ensure!(told.len() == 1 && told[0].starts_with(name.as_str()), "faults of {name}: {status}");
    for node in 0..3 {
        read_all(&cluster, node, seed)?;
    }
    cluster.wait_ok()?;
    cluster.finish()
}

/// Nobody asks: each group is scrubbed when its time has come.
#[test]
fn scrubs_begin_by_themselves() -> Result<()> {
    let test = "scrubs_begin_by_themselves";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    let image = Image::write(&cluster, 64 << 20, 0, seed)?;
    cluster.retune("scrub_interval_s", 10)?;
    let mut random = seed;
    let flipped = rot(&cluster, &mut random)?;
    ensure!(flipped > 50, "only {flipped} bytes flipped");
    // What ends so much later has begun since.
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 3;
    until("all groups are scrubbed", LIMIT, || {
        let scrub = &cluster.facts(&["status"])?["volumes"][0]["scrub"];
        Ok(scrub["oldest"].as_u64().is_some_and(|oldest| oldest > since).then_some(()))
    })?;
    let faults = until("what they found is told", LIMIT, || {
        let nodes = cluster.facts(&["node", "list"])?;
        let faults = nodes[ROTTEN]["stores"][0]["faults"].as_u64().context("faults")?;
        Ok((faults >= flipped / 2).then_some(faults))
    })?;
    say(test, &format!("{flipped} bytes flipped, {faults} found"));
    // With one store gone the parity is not doubled any more: all that was wrong has been mended.
    cluster.kill(0)?;
    image.verify(&cluster, 2)?;
    cluster.start(0)?;
    cluster.wait_status("all are back", LIMIT, |status| status.health == "ok")?;
    cluster.finish()
}

/// Flips bytes in the files of a node that runs, and answers how many.
fn rot(cluster: &Cluster, random: &mut u64) -> Result<u64> {
    let mut flipped = 0;
    for file in files::walk(&cluster.nodes()[ROTTEN].dir.join("data/store"))? {
        if file.extension().is_some_and(|extension| extension == "blob") {
            flipped += files::flip(&file, random, EVERY)?;
        }
    }
    Ok(flipped)
}

fn read_all(cluster: &Cluster, node: usize, seed: u64) -> Result<()> {
    let mut client = Client::connect(&cluster.target(node), LIMIT)?;
    let mut buf = vec![0; PIECE];
    for at in 0..PIECES {
        client.read(at * PIECE as u64, &mut buf)?;
        ensure!(buf == piece(seed, at), "MiB {at} differs through node {node}");
    }
    Ok(())
}
