//! One group of a volume loses more than its parity: the others are served and healed, and that one is
//! served again when what it lacks is back.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smalti_tests::nbd::Client;
use smalti_tests::pattern::{BLOCK, PIECE, piece, seed};
use smalti_tests::process::until;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);
/// MiB that are written and read, one of each stripe that may be in another group.
const PIECES: u64 = 48;
/// A read that is answered at all is answered within this.
const READ: Duration = Duration::from_secs(10);

#[test]
fn a_group_beyond_parity_leaves_the_others_alone() -> Result<()> {
    let test = "a_group_beyond_parity_leaves_the_others_alone";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let spec = Spec { nodes: 5, geometry: Some((2, 1)), ..Spec::three(test, "64M") };
    let mut cluster = Cluster::up(spec)?;
    let mut client = Client::connect(&cluster.target(0), READ)?;
    for at in 0..PIECES {
        client.write(at * PIECE as u64, &piece(seed, at), 0)?;
    }
    client.flush()?;
    drop(client);
    let mut config = LoadConfig::new(cluster.targets()[..1].to_vec(), 0, seed);
    config.base = PIECES * PIECE as u64 / BLOCK as u64;
    config.io_limit = LIMIT;
    config.give_up = LIMIT;
    let load = Load::start(config);
    load.progress(100, LIMIT)?;

    // The first one is out of sync before the second one dies: groups that both had a slot of are left
    // with one slot of three.
    let (emptied, needed) = (3, 4);
    cluster.kill(emptied)?;
    cluster.wait_status("the first one is done without", LIMIT, |status| {
        status.volumes[0].groups_full < status.volumes[0].groups
    })?;
    cluster.kill(needed)?;
    let died = Instant::now();
    let why = until("it goes on without some groups", LIMIT, || {
        let why = cluster.command(&["why"])?;
        Ok(why.contains("groups are offline").then_some(why))
    })?;
    let status = cluster.status()?;
    let (offline, groups) = (status.volumes[0].groups_offline, status.volumes[0].groups);
    say(test, &format!("{offline} of {groups} groups offline {:?} after", died.elapsed()));
    ensure!(offline < groups && status.health == "stalled", "{}", status.brief());
    let name = cluster.nodes()[needed].name.clone();
    let told = why.contains(&format!("{offline} of {groups} groups are offline"))
        && why.contains(&format!("start {name}: it goes on by itself then"));
    ensure!(told, "{why}");

    let read = until("pieces of the others are read", LIMIT, || {
        let read = readable(&cluster, seed)?;
        Ok((read > 0).then_some(read))
    })?;
    say(test, &format!("{read} of {PIECES} pieces can be read"));
    ensure!(read < PIECES, "nothing of a group with one slot of three can be told");

    // An empty store is filled with all that can be, while one of three is all that other groups have.
    fs::remove_dir_all(cluster.nodes()[emptied].dir.join("data/store"))?;
    cluster.start(emptied)?;
    until("the first one has what is served", LIMIT, || {
        Ok((served_here(&cluster, emptied)? == (true, false)).then_some(()))
    })?;
    say(test, &format!("the others are whole on it {:?} after", died.elapsed()));

    cluster.start(needed)?;
    let back = Instant::now();
    cluster.wait_ok().context("what was missing is back")?;
    say(test, &format!("all is well {:?} after it was started", back.elapsed()));
    ensure!(readable(&cluster, seed)? == PIECES, "all can be read");
    load.progress(100, LIMIT).context("writes that waited go on")?;
    let errors = load.server_errors();
    let mut loaded = load.finish()?;
    ensure!(errors == 0, "{errors} requests were answered with an error");
    // The store that was filled has to do.
    cluster.kill(needed)?;
    loaded.verify(&cluster.target(emptied)).context("with what was rebuilt")?;
    ensure!(readable(&cluster, seed)? == PIECES, "all can be read without the other one");
    cluster.finish()
}

/// How many pieces can be read now, each with a connection of its own, for those that can not wait.
fn readable(cluster: &Cluster, seed: u64) -> Result<u64> {
    let reads: Vec<_> = (0..PIECES)
        .map(|at| {
            let target = cluster.target(0);
            thread::spawn(move || -> Result<bool> {
                let mut buf = vec![0; PIECE];
                let Ok(mut client) = Client::connect(&target, READ) else { return Ok(false) };
                let read = client.read(at * PIECE as u64, &mut buf).is_ok();
                ensure!(!read || buf == piece(seed, at), "MiB {at} is read wrong");
                Ok(read)
            })
        })
        .collect();
    let mut count = 0;
    for read in reads {
        count += u64::from(read.join().ok().context("a reader panicked")??);
    }
    Ok(count)
}

/// Whether all slots of a node in groups that are served are in sync, and all in those that are offline.
fn served_here(cluster: &Cluster, node: usize) -> Result<(bool, bool)> {
    let volume = cluster.facts(&["volume", "show", "v"])?;
    let name = &cluster.nodes()[node].name;
    let here = |slot: &&Value| slot["node"] == **name || slot["moves_to"] == **name;
    let is_whole = |slot: &Value| slot["state"] == "insync" && slot["moves_to"].is_null();
    let (mut served, mut offline) = (true, true);
    for group in volume["groups"].as_array().context("groups")? {
        let slots = group["slots"].as_array().context("slots")?;
        let whole = slots.iter().filter(here).all(is_whole);
        match group["offline"].as_bool().context("whether it is offline")? {
            true => offline &= whole,
            false => served &= whole,
        }
    }
    Ok((served, offline))
}
