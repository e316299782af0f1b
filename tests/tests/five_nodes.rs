//! Three data and two parity shards on five nodes: two may die at once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smalti_tests::pattern::seed;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);
const PAUSE_MAX: Duration = Duration::from_secs(12);

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

    // First two bystanders, then the clients' own node and one more.
    for (victims, next) in [([3, 4], 0), ([0, 1], 2)] {
        load.prefer(next);
        load.window();
        cluster.kill_together(&victims)?;
        load.progress(100, LIMIT).with_context(|| format!("nodes {victims:?} dead"))?;
        let window = load.window();
        say(test, &format!("nodes {victims:?} killed at once: {}", window.brief()));
        ensure!(window.longest() < PAUSE_MAX, "paused for {:?}", window.longest());
        cluster.wait_degraded()?;
        for victim in victims {
            cluster.start(victim)?;
        }
        cluster.wait_ok().with_context(|| format!("nodes {victims:?} back"))?;
        load.progress(50, LIMIT)?;
        say(test, "healed");
    }
    let errors = load.server_errors();
    let mut loaded = load.finish()?;
    ensure!(errors == 0, "{errors} requests were answered with an error");
    for node in 0..5 {
        loaded.verify(&cluster.target(node)).with_context(|| format!("through node {node}"))?;
    }

    // Rebuilt pieces are real: with two other nodes away, the reads need them.
    cluster.kill_together(&[2, 3])?;
    loaded.verify(&cluster.target(0)).context("from the pieces of nodes 0, 1 and 4")?;
    say(test, "everything right from the pieces of nodes 0, 1 and 4 alone");
    cluster.finish()
}
