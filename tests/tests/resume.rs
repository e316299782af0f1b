//! Stopping, resuming, and what the status says meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smalti_tests::cluster::{COMMAND_LIMIT, smalti};
use smalti_tests::pattern::seed;
use smalti_tests::process::until;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn resume_brings_everything_back() -> Result<()> {
    let test = "resume_brings_everything_back";
    let mut cluster = Cluster::up(Spec::three(test, "256M"))?;
    let load = Load::start(LoadConfig::new(cluster.targets(), 0, seed()));
    load.progress(300, LIMIT)?;
    let mut loaded = load.finish()?;
    let before = cluster.file()?;
    cluster.down()?;
    ensure!(
        smalti(&["status", "--dir", &cluster.dir().display().to_string()], COMMAND_LIMIT)?.code()
            != 0,
        "status of a stopped cluster must fail"
    );
    for round in 0..2 {
        cluster.run_up().with_context(|| format!("round {round}"))?;
        let after = cluster.file()?;
        for (old, new) in before.nodes.iter().zip(&after.nodes) {
            ensure!((&old.name, &old.id) == (&new.name, &new.id), "a node changed its identity");
        }
        cluster.wait_ok()?;
        for node in 0..3 {
            loaded.verify(&cluster.target(node)).with_context(|| format!("node {node}"))?;
        }
        // `up` on a running cluster starts nothing twice, whether it refuses or just returns.
        let pids = |c: &Cluster| -> Result<Vec<u32>> {
            Ok(c.file()?.nodes.iter().map(|n| n.pid).collect())
        };
        let before = pids(&cluster)?;
        if let Err(refused) = cluster.run_up() {
            say(test, &format!("up on a running cluster: {refused:#}"));
        }
        ensure!(pids(&cluster)? == before, "nodes were started again");
        ensure!((0..3).all(|n| cluster.is_running(n)), "a node was stopped");
        cluster.down()?;
    }
    cluster.finish()
}

#[test]
fn status_tells_the_truth_about_a_dead_node() -> Result<()> {
    let test = "status_tells_the_truth_about_a_dead_node";
    let mut cluster = Cluster::up(Spec::three(test, "256M"))?;
    let load = Load::start(LoadConfig::new(cluster.targets(), 0, seed()));
    load.progress(100, LIMIT)?;
    let healthy = cluster.wait_ok()?;
    ensure!(healthy.nodes.iter().all(|n| n.state == "up"));

    cluster.kill(2)?;
    load.progress(200, LIMIT)?;
    let name = cluster.nodes()[2].name.clone();
    let status = cluster.wait_status("the dead node shows", COMMAND_LIMIT, |s| {
        s.health == "degraded"
            && s.node_state(&name) == "down"
            && s.volumes[0].rows_behind > Some(0)
            && s.custody.reachable == s.custody.total - 1
    })?;
    say(test, &format!("dead: {}", status.brief()));
    ensure!(status.volumes[0].epoch > healthy.volumes[0].epoch, "the epoch did not move");
    let why = smalti(&["why", "--dir", &cluster.dir().display().to_string()], COMMAND_LIMIT)?;
    ensure!(why.stdout.contains(&name), "`why` does not name {name}: {}", why.stdout);

    cluster.start(2)?;
    let status = cluster.wait_ok()?;
    say(test, &format!("back: {}", status.brief()));
    // The file is kept current by the node itself: the process this test started is in it.
    let pid = cluster.pid(2);
    until("cluster.json names the new process", COMMAND_LIMIT, || {
        Ok((cluster.file()?.nodes[2].pid == pid).then_some(()))
    })?;
    let mut loaded = load.finish()?;
    loaded.verify(&cluster.target(2))?;
    cluster.finish()
}
