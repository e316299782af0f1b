//! All nodes lose power at once, under load: what was acknowledged is there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smalti_tests::pattern::{next_random, seed};
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);
const CYCLES: u64 = 3;

#[test]
fn power_cycle() -> Result<()> {
    let test = "power_cycle";
    let mut random = seed();
    say(test, &format!("seed {random}"));
    let mut cluster = Cluster::up(Spec::three(test, "256M"))?;
    let mut kept = Vec::new();
    for cycle in 0..CYCLES {
        let mut config = LoadConfig::new(cluster.targets(), cycle as usize % 3, random);
        config.base = cycle * config.threads * config.blocks;
        let load = Load::start(config);
        load.progress(100 + next_random(&mut random) % 400, LIMIT)?;
        cluster.kill_together(&[0, 1, 2])?;
        load.let_go();
        let loaded = load.finish()?;
        ensure!(loaded.server_errors == 0, "{} requests failed", loaded.server_errors);
        kept.push(loaded);
        for node in 0..3 {
            cluster.start(node)?;
        }
        cluster.wait_ok().with_context(|| format!("after power cycle {cycle}"))?;
        for (age, loaded) in kept.iter_mut().enumerate() {
            let node = (cycle as usize + age) % 3;
            let unanswered = loaded.model.unanswered();
            let blocks = loaded
                .verify(&cluster.target(node))
                .with_context(|| format!("cycle {cycle}, load {age}, node {node}"))?;
            let text = format!(
                "cycle {cycle}: {blocks} blocks of load {age} right ({unanswered} unanswered)"
            );
            say(test, &text);
        }
    }
    cluster.finish()
}
