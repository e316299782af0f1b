//! A frozen node is worse than a dead one: its sockets stay open and it comes back believing it
//! is still in charge.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use smalti_tests::pattern::seed;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);
const FROZEN: Duration = Duration::from_secs(6);
const PAUSE_MAX: Duration = Duration::from_secs(8);

#[test]
fn frozen_nodes_cost_a_pause_and_no_data() -> Result<()> {
    let test = "frozen_nodes_cost_a_pause_and_no_data";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let cluster = Cluster::up(Spec::three(test, "256M"))?;
    let mut config = LoadConfig::new(cluster.targets(), 0, seed);
    // What a careful client would allow a silent server before it tries another path.
    config.io_limit = Duration::from_secs(3);
    let mut load = Load::start(config);
    load.progress(200, LIMIT)?;

    let mut attached = 0;
    for turn in 0..4 {
        let own = turn % 2 == 1;
        let victim = if own { attached } else { (attached + 1 + turn / 2) % 3 };
        let next = (victim + 1) % 3;
        load.prefer(if own { next } else { attached });
        load.window();
        let reconnects = load.reconnects();
        cluster.signal(victim, Signal::STOP)?;
        let frozen = Instant::now();
        // Work has to go on while it is frozen, for as long as it is.
        while frozen.elapsed() < FROZEN {
            load.progress(20, LIMIT).with_context(|| format!("node {victim} frozen"))?;
        }
        let window = load.window();
        cluster.signal(victim, Signal::CONT)?;
        let who = if own { "the clients' own" } else { "another" };
        say(test, &format!("node {victim} ({who}) frozen: {}", window.brief()));
        ensure!(window.longest() < PAUSE_MAX, "paused for {:?}", window.longest());
        if own {
            ensure!(load.reconnects() > reconnects, "nobody left the frozen node");
            attached = next;
        } else {
            ensure!(load.reconnects() == reconnects, "clients of a living node were cut off");
        }
        load.progress(50, LIMIT)?;
        cluster.wait_ok().with_context(|| format!("node {victim} thawed"))?;
    }
    let errors = load.server_errors();
    let mut loaded = load.finish()?;
    ensure!(errors == 0, "{errors} requests were answered with an error");
    for node in 0..3 {
        loaded.verify(&cluster.target(node)).with_context(|| format!("through node {node}"))?;
    }
    cluster.finish()
}
