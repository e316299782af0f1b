//! Three data and two parity shards on five nodes: two die at once, and nothing is lost; and where
//! the volume may do without a slot to spare, work goes on meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smalti_tests::pattern::seed;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);
/// How long both are dead together: longer than it takes to notice.
const BOTH_DEAD: Duration = Duration::from_secs(3);

#[test]
fn five_nodes() -> Result<()> {
    let test = "five_nodes";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let spec = Spec { nodes: 5, geometry: Some((3, 2)), ..Spec::three(test, "256M") };
    let mut cluster = Cluster::up(spec)?;
    let status = cluster.wait_ok()?;
    ensure!((status.volumes[0].data, status.volumes[0].parity) == (3, 2), "{}", status.brief());
    let mut load = Load::start(LoadConfig::new(cluster.targets(), 0, seed));
    load.progress(200, LIMIT)?;

    // Two bystanders at once. A group of 3+2 takes updates while four of its slots are in sync, so
    // that no acknowledged update is one failure from being lost: writes wait for the dead.
    load.prefer(0);
    load.window();
    cluster.kill_together(&[3, 4])?;
    std::thread::sleep(BOTH_DEAD);
    cluster.start(3)?;
    cluster.start(4)?;
    load.progress(100, LIMIT).context("both dead nodes are back")?;
    say(test, &format!("two killed at once, back soon: {}", load.window().brief()));
    cluster.wait_ok().context("both are back")?;
    load.progress(50, LIMIT)?;
    say(test, "healed");
    let errors = load.server_errors();
    let mut loaded = load.finish()?;
    ensure!(errors == 0, "{errors} requests were answered with an error");
    for node in 0..5 {
        loaded.verify(&cluster.target(node)).with_context(|| format!("through node {node}"))?;
    }
    cluster.finish()
}

/// No operation may take longer than this over the death of two nodes; figures are printed.
const PAUSE_MAX: Duration = Duration::from_secs(10);

#[test]
fn five_nodes_without_a_slot_to_spare() -> Result<()> {
    let test = "five_nodes_without_a_slot_to_spare";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let geometry = Some((3, 2));
    let spec = Spec { nodes: 5, geometry, min_insync: Some(3), ..Spec::three(test, "256M") };
    let mut cluster = Cluster::up(spec)?;
    let mut load = Load::start(LoadConfig::new(cluster.targets(), 0, seed));
    load.progress(200, LIMIT)?;

    // Two bystanders, then the clients' own node, which coordinates, together with another one.
    for (dead, preferred) in [([3, 4], 0), ([0, 1], 2)] {
        load.prefer(preferred);
        load.window();
        cluster.kill_together(&dead)?;
        load.progress(200, LIMIT).with_context(|| format!("nodes {dead:?} are dead"))?;
        let window = load.window();
        say(test, &format!("nodes {dead:?} dead: {}", window.brief()));
        ensure!(window.longest() < PAUSE_MAX, "paused for {:?}", window.longest());
        for node in dead {
            cluster.start(node)?;
        }
        cluster.wait_ok().with_context(|| format!("nodes {dead:?} are back"))?;
        load.progress(50, LIMIT)?;
    }
    let errors = load.server_errors();
    let mut loaded = load.finish()?;
    ensure!(errors == 0, "{errors} requests were answered with an error");
    // The other three have to say the same as all five.
    cluster.kill_together(&[2, 3])?;
    for node in [0, 1, 4] {
        loaded.verify(&cluster.target(node)).with_context(|| format!("through node {node}"))?;
    }
    cluster.finish()
}
