//! What is being rebuilt is not whole yet when another node dies.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smalti_tests::image::Image;
use smalti_tests::pattern::{BLOCK, seed};
use smalti_tests::process::until;
use smalti_tests::report::say;
use smalti_tests::status::points_at;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(240);
const SIZE: usize = 192 << 20;

/// Whether all slots that the node has, or is to have, are in sync.
fn is_whole(cluster: &Cluster, node: usize) -> Result<bool> {
    let volume = cluster.facts(&["volume", "show", "v"])?;
    let groups = volume["groups"].as_array().context("groups")?;
    let slots = groups.iter().flat_map(|group| group["slots"].as_array().into_iter().flatten());
    let name = &cluster.nodes()[node].name;
    let here = |slot: &&Value| slot["node"] == **name || slot["moves_to"] == **name;
    let here: Vec<&Value> = slots.filter(here).collect();
    let whole = |slot: &&Value| slot["state"] == "insync" && slot["moves_to"].is_null();
    Ok(!here.is_empty() && here.iter().all(whole))
}

/// Whatever three have is enough to go on with.
#[test]
fn a_second_node_dies_while_the_first_is_rebuilt() -> Result<()> {
    lose_two("a_second_node_dies_while_the_first_is_rebuilt", Some(3))
}

/// Nothing is written to three of five, so writes wait until the first one's store is whole: it is what
/// lets the second one's go.
#[test]
fn writes_wait_for_the_first_of_two_to_be_rebuilt() -> Result<()> {
    lose_two("writes_wait_for_the_first_of_two_to_be_rebuilt", None)
}

/// A store of a 3+2 volume is lost, and while it is rebuilt the coordinator's node dies for good: five
/// shards become three and a part, and the part becomes whole from the three.
fn lose_two(test: &'static str, min_insync: Option<u32>) -> Result<()> {
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let spec = Spec { nodes: 5, geometry: Some((3, 2)), min_insync, ..Spec::three(test, "256M") };
    let mut cluster = Cluster::up(spec)?;
    let image = Image::write(&cluster, SIZE, 0, seed)?;
    let mut config = LoadConfig::new(cluster.targets()[..3].to_vec(), 0, seed);
    config.base = SIZE as u64 / BLOCK as u64;
    let mut load = Load::start(config);
    load.progress(50, LIMIT)?;

    let lost = 4;
    cluster.kill(lost)?;
    fs::remove_dir_all(cluster.nodes()[lost].dir.join("data/store"))?;
    cluster.start(lost)?;
    let begun = Instant::now();
    let seen = cluster.wait_status("a part of it is rebuilt", LIMIT, |status| {
        let volume = &status.volumes[0];
        volume.rows_repaired > 0 && volume.rows_behind.is_some_and(|rows| rows > 0)
    })?;
    let volume = &seen.volumes[0];
    let (done, left) = (volume.rows_repaired, volume.rows_behind.unwrap_or(0));
    let holder = cluster.nodes().iter().position(|node| points_at(&volume.coordinator, node));
    let holder = holder.context("a coordinator")?;
    ensure!(holder != lost, "the seat is at the node that was lost");
    say(test, &format!("{done} rows rebuilt, {left} left: node {holder} dies, which had the seat"));
    let next = (0..3).find(|node| *node != holder).context("another node")?;
    load.prefer(next);
    load.window();
    cluster.kill(holder)?;
    load.progress(50, LIMIT).context("two are gone")?;
    say(test, &format!("clients: {}", load.window().brief()));
    image.verify(&cluster, next).context("from three shards and a part")?;

    until("the lost store is rebuilt", LIMIT, || Ok(is_whole(&cluster, lost)?.then_some(())))?;
    say(test, &format!("rebuilt {:?} after it was lost", begun.elapsed()));
    let errors = load.server_errors();
    let mut loaded = load.finish()?;
    ensure!(errors == 0, "{errors} requests were answered with an error");
    // Without it there would be two shards.
    let third = (0..4).find(|node| *node != holder && *node != next).context("a third node")?;
    cluster.kill(third)?;
    image.verify(&cluster, lost).context("with what was rebuilt")?;
    loaded.verify(&cluster.target(lost)).context("with what was rebuilt")?;
    cluster.start(holder)?;
    cluster.start(third)?;
    until("all is in sync", LIMIT, || Ok(cluster.wait_ok().is_ok().then_some(())))?;
    image.verify(&cluster, holder)?;
    cluster.finish()
}
