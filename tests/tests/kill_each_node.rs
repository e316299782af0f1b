//! Any node may die at any time: no wrong byte, no lost write, a short pause.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smalti_tests::fio::VerifiedLoop;
use smalti_tests::nbd::Client;
use smalti_tests::pattern::seed;
use smalti_tests::process::until;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);
/// No operation may take longer than this over the death of a node; figures are printed.
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// fio does not reconnect: the node it is attached to lives, the others die in turn under it.
#[test]
fn fio_verifies_while_each_other_node_dies() -> Result<()> {
    let test = "fio_verifies_while_each_other_node_dies";
    let mut cluster = Cluster::up(Spec::three(test, "512M"))?;
    for attached in 0..3 {
        let load = VerifiedLoop::start(cluster.uri(attached), "64M", "0", LIMIT);
        load.progress(1, LIMIT).context("before any fault")?;
        for victim in (0..3).filter(|n| *n != attached) {
            cluster.kill(victim)?;
            load.progress(1, LIMIT).with_context(|| format!("with node {victim} dead"))?;
            cluster.wait_degraded()?;
            cluster.start(victim)?;
            cluster.wait_ok().with_context(|| format!("after node {victim} came back"))?;
        }
        let passes = load.finish()?;
        say(test, &format!("attached to node {attached}: {passes} passes, no byte wrong"));
    }
    cluster.finish()
}

/// fio on one node, the coordinator held on another one by a second client: the coordinator's node
/// dies, each in turn, under a connection that lives on.
#[test]
fn fio_verifies_while_the_coordinator_dies_elsewhere() -> Result<()> {
    let test = "fio_verifies_while_the_coordinator_dies_elsewhere";
    let mut cluster = Cluster::up(Spec::three(test, "512M"))?;
    for victim in 0..3 {
        let holder = Client::connect(&cluster.target(victim), LIMIT)?;
        until("the held node coordinates", LIMIT, || {
            Ok((cluster.coordinator()? == victim).then_some(()))
        })?;
        let attached = (victim + 1) % 3;
        let load = VerifiedLoop::start(cluster.uri(attached), "64M", "0", LIMIT);
        load.progress(1, LIMIT).context("before any fault")?;
        ensure!(cluster.coordinator()? == victim, "the coordinator has moved");
        let leads = cluster.leader()? == victim;
        cluster.kill(victim)?;
        drop(holder);
        load.progress(2, LIMIT).with_context(|| format!("coordinator {victim} dead"))?;
        cluster.wait_degraded()?;
        cluster.start(victim)?;
        cluster.wait_ok().with_context(|| format!("node {victim} back"))?;
        let passes = load.finish()?;
        let also = if leads { " and raft leader" } else { "" };
        say(test, &format!("coordinator{also} {victim} died: {passes} passes, no byte wrong"));
    }
    cluster.finish()
}

/// Our own client goes to another node when its own dies: coordinator and Raft leader included.
#[test]
fn clients_move_on_when_their_node_dies() -> Result<()> {
    let test = "clients_move_on_when_their_node_dies";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "256M"))?;
    let mut load = Load::start(LoadConfig::new(cluster.targets(), 0, seed));
    load.progress(200, LIMIT)?;
    say(test, &format!("undisturbed: {}", load.window().brief()));

    // The node the client is attached to dies each time, then the Raft leader whoever it is.
    for attached in 0..3 {
        let reconnects = load.reconnects();
        kill_one(test, &mut cluster, &mut load, attached, "attached, coordinator")?;
        ensure!(load.reconnects() >= reconnects + 4, "the clients were not attached there");
        // The threads went on to the next node by themselves.
    }
    let leader = cluster.leader()?;
    kill_one(test, &mut cluster, &mut load, leader, "raft leader")?;
    let bystander = (cluster.coordinator()? + 1) % 3;
    kill_one(test, &mut cluster, &mut load, bystander, "bystander")?;

    let errors = load.server_errors();
    let mut loaded = load.finish()?;
    say(test, &format!("all: {}", loaded.times.brief()));
    eprintln!("{}", loaded.times.drawing());
    ensure!(errors == 0, "{errors} requests were answered with an error");
    for node in 0..3 {
        let blocks = loaded.verify(&cluster.target(node))?;
        say(test, &format!("{blocks} blocks right through node {node}"));
    }
    cluster.finish()
}

fn kill_one(
    test: &str,
    cluster: &mut Cluster,
    load: &mut Load,
    victim: usize,
    what: &str,
) -> Result<()> {
    // The next node in the list: where the clients go, and where the next turn finds them.
    load.prefer((victim + 1) % 3);
    load.window();
    cluster.kill(victim)?;
    load.progress(50, LIMIT).with_context(|| format!("node {victim} ({what}) dead"))?;
    let window = load.window();
    say(test, &format!("node {victim} ({what}) killed: {}", window.brief()));
    ensure!(window.longest() < PAUSE_MAX, "paused for {:?}", window.longest());
    cluster.wait_degraded()?;
    cluster.start(victim)?;
    cluster.wait_ok().with_context(|| format!("node {victim} back"))?;
    load.progress(50, LIMIT)?;
    say(test, &format!("node {victim} back in sync: {}", load.window().brief()));
    Ok(())
}
