//! Three data and two parity shards on five nodes: two die at once, and nothing is lost; and where
//! the volume may do without a slot to spare, work goes on meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use smalti_tests::image::Image;
use smalti_tests::pattern::{BLOCK, seed};
use smalti_tests::report::say;
use smalti_tests::status::points_at;
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

/// One dies, and then the coordinator: the other three have all there is, and the first one to be back is
/// the fourth that acknowledgements take. The second one is not missed.
#[test]
fn four_of_five_nodes_are_enough() -> Result<()> {
    let test = "four_of_five_nodes_are_enough";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let spec = Spec { nodes: 5, geometry: Some((3, 2)), ..Spec::three(test, "64M") };
    let mut cluster = Cluster::up(spec)?;
    let image = Image::write(&cluster, 32 << 20, 0, seed)?;
    let mut config = LoadConfig::new(cluster.targets()[..3].to_vec(), 0, seed);
    config.base = (32 << 20) / BLOCK as u64;
    let mut load = Load::start(config);
    load.progress(100, LIMIT)?;
    let status = cluster.status()?;
    let holder = cluster.nodes().iter().position(|n| points_at(&status.volumes[0].coordinator, n));
    let holder = holder.context("a coordinator")?;
    ensure!(holder < 3, "the clients' node has the seat");
    cluster.kill(4)?;
    load.progress(200, LIMIT).context("without one")?;

    let next = (holder + 1) % 3;
    load.prefer(next);
    load.window();
    let died = Instant::now();
    cluster.kill(holder)?;
    image.verify(&cluster, next).context("by three of five")?;
    say(test, &format!("read by three of five {:?} after the second one died", died.elapsed()));
    ensure!(cluster.status()?.health == "stalled", "writes wait");
    let back = Instant::now();
    cluster.start(4)?;
    load.progress(100, LIMIT).context("four of five")?;
    say(
        test,
        &format!("writes go on, 100 at each client {:?} after it was started", back.elapsed()),
    );
    say(test, &format!("clients: {}", load.window().brief()));
    cluster.start(holder)?;
    cluster.wait_ok().context("all are back")?;
    let errors = load.server_errors();
    let mut loaded = load.finish()?;
    ensure!(errors == 0, "{errors} requests were answered with an error");
    for node in 0..5 {
        loaded.verify(&cluster.target(node)).with_context(|| format!("through node {node}"))?;
    }
    image.verify(&cluster, 4)?;
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
