//! A node that is asked to stop gives the seats it has back, whoever works through them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use smalti_tests::cluster::smalti;
use smalti_tests::nbd::Client;
use smalti_tests::pattern::{BLOCK, seed};
use smalti_tests::process::until;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_coordinator_stops_in_order_under_clients_of_other_nodes() -> Result<()> {
    let test = "a_coordinator_stops_in_order_under_clients_of_other_nodes";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    let mut holder = Some(Client::connect(&cluster.target(0), LIMIT)?);
    for node in [0, 1] {
        let idle_at = (node + 1) % 3;
        until("the held node coordinates", LIMIT, || {
            Ok((cluster.coordinator()? == node).then_some(()))
        })?;
        let mut idle = Client::connect(&cluster.target(idle_at), LIMIT)?;
        let block = vec![0x5a; BLOCK];
        idle.write(0, &block, 0).context("through another node")?;
        let mut config = LoadConfig::new(cluster.targets(), idle_at, seed);
        config.base = 1 + node as u64 * config.threads * config.blocks;
        let load = Load::start(config);
        load.progress(50, LIMIT)?;
        ensure!(cluster.coordinator()? == node, "the coordinator has moved");

        cluster.stop(node)?;
        load.progress(50, LIMIT).context("after the coordinator has stopped")?;
        let mut read = vec![0; BLOCK];
        idle.read(0, &mut read).context("through a connection that lives on")?;
        ensure!(read == block, "another block");
        // Taken anew while nobody else has it, the seat is at the next node to stop.
        holder = Some(Client::connect(&cluster.target(idle_at), LIMIT)?);
        cluster.start(node)?;
        cluster.wait_ok()?;
        let reconnects = load.reconnects();
        let mut loaded = load.finish()?;
        ensure!(loaded.server_errors == 0, "{} errors", loaded.server_errors);
        ensure!(reconnects == 0, "clients of a node that went on were cut off");
        let blocks = loaded.verify(&cluster.target(node))?;
        say(test, &format!("node {node} stopped in order, {blocks} blocks right"));
    }
    drop(holder);
    cluster.finish()
}

#[test]
fn a_coordinator_stops_in_order_though_its_writes_wait_for_a_store_that_is_gone() -> Result<()> {
    let test = "a_coordinator_stops_in_order_though_its_writes_wait_for_a_store_that_is_gone";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    let holder = Client::connect(&cluster.target(0), LIMIT)?;
    until("the held node coordinates", LIMIT, || Ok((cluster.coordinator()? == 0).then_some(())))?;
    let load = Load::start(LoadConfig::new(cluster.targets(), 1, seed));
    load.progress(50, LIMIT)?;
    ensure!(cluster.coordinator()? == 0, "the coordinator has moved");

    cluster.signal(2, Signal::KILL)?;
    cluster.stop(0)?;
    drop(holder);
    cluster.wait_gone(2)?;
    cluster.start(2)?;
    load.progress(50, LIMIT).context("two of three nodes are up")?;
    cluster.start(0)?;
    cluster.wait_ok()?;
    let mut loaded = load.finish()?;
    ensure!(loaded.server_errors == 0, "{} errors", loaded.server_errors);
    let blocks = loaded.verify(&cluster.target(0))?;
    say(test, &format!("{blocks} blocks right"));
    cluster.finish()
}

/// With two of three nodes dead, writes wait. They are no reason for the third not to stop.
#[test]
fn a_node_stops_in_order_while_its_clients_wait() -> Result<()> {
    let test = "a_node_stops_in_order_while_its_clients_wait";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    let load = Load::start(LoadConfig::new(cluster.targets()[..1].to_vec(), 0, seed));
    load.progress(50, LIMIT)?;
    cluster.kill_together(&[1, 2])?;
    cluster.wait_status("clients wait", LIMIT, |status| status.health == "stalled")?;
    let began = Instant::now();
    cluster.stop(0)?;
    let took = began.elapsed();
    say(test, &format!("stopped in {took:?}"));
    // Less than what a stop may take at all: it has waited for nobody.
    ensure!(took < Duration::from_secs(8), "it took {took:?}");
    for node in 0..3 {
        cluster.start(node)?;
    }
    load.progress(50, LIMIT).context("all nodes are up")?;
    cluster.wait_ok()?;
    let mut loaded = load.finish()?;
    ensure!(loaded.server_errors == 0, "{} errors", loaded.server_errors);
    loaded.verify(&cluster.target(1))?;
    cluster.finish()
}

/// A client that asks for nothing is attached all the same, also when whoever served it is gone: its volume
/// is not deleted by mistake.
#[test]
fn an_idle_client_stays_attached_when_its_coordinator_is_gone() -> Result<()> {
    let test = "an_idle_client_stays_attached_when_its_coordinator_is_gone";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    let holder = Client::connect(&cluster.target(0), LIMIT)?;
    until("the held node coordinates", LIMIT, || Ok((cluster.coordinator()? == 0).then_some(())))?;
    let mut idle = Client::connect(&cluster.target(1), LIMIT)?;
    let block = vec![0x5a; BLOCK];
    idle.write(0, &block, 0).context("through another node")?;
    drop(holder);
    if seed.is_multiple_of(2) {
        cluster.kill(0)?;
    } else {
        cluster.stop(0)?;
    }
    let coordinator = until("another one coordinates", LIMIT, || {
        Ok(cluster.coordinator().ok().filter(|node| *node != 0))
    })?;
    say(test, &format!("killed {}, node {coordinator} coordinates", seed.is_multiple_of(2)));
    let dir = cluster.dir().display().to_string();
    let delete = || smalti(&["volume", "delete", "v", "--yes", "--dir", &dir], LIMIT);
    for _ in 0..2 {
        let refused = delete()?;
        ensure!(refused.code() == 1 && refused.stderr.contains("attached"), "{}", refused.stderr);
    }
    cluster.start(0)?;
    cluster.wait_ok()?;
    let mut read = vec![0; BLOCK];
    idle.read(0, &mut read).context("through a connection that lives on")?;
    ensure!(read == block, "another block");
    drop(idle);
    delete()?.ok().context("nobody is attached any more")?;
    cluster.finish()
}
