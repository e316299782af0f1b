//! A node takes another one's place while clients go on: of one that lives, and of one that is lost.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use smalti_tests::cluster::{UP_LIMIT, program, smalti};
use smalti_tests::pattern::seed;
use smalti_tests::process::{self, Running, signal, until};
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

fn node(cluster: &Cluster, name: &str) -> Result<Option<Value>> {
    let nodes = cluster.facts(&["node", "list"])?;
    let nodes = nodes.as_array().context("nodes")?;
    Ok(nodes.iter().find(|node| node["name"] == name).cloned())
}

fn slots(cluster: &Cluster, name: &str) -> Result<u64> {
    let node = node(cluster, name)?.with_context(|| format!("{name} is no member"))?;
    node["slots"].as_u64().context("slots")
}

/// Joins and starts a node, and waits until it has its share.
fn add(cluster: &mut Cluster, name: &str) -> Result<usize> {
    let dir = cluster.scratch()?.join(name);
    let index = cluster.join(&dir, name)?;
    until("the new node has slots", LIMIT, || Ok((slots(cluster, name)? > 0).then_some(())))?;
    until("all have their share", LIMIT, || cluster.at_rest())?;
    Ok(index)
}

fn replace(cluster: &Cluster, old: &str, new: &str) -> Result<Running> {
    let dir = cluster.dir();
    let words = ["node", "replace", old, "--with", new, "--dir", text(&dir)?];
    process::start(Command::new(program()?).args(words))
}

/// Whether it is refused for that reason, and nothing changes.
fn refused(cluster: &Cluster, old: &str, new: &str, reason: &str) -> Result<()> {
    let before = cluster.facts(&["status"])?["map_version"].clone();
    let words = ["node", "replace", old, "--with", new];
    let error = cluster.command(&words).err().with_context(|| format!("not refused: {reason}"))?;
    ensure!(format!("{error:#}").contains(reason), "{error:#}, not {reason:?}");
    let after = cluster.facts(&["status"])?["map_version"].clone();
    ensure!(before == after, "something changed: {before} {after} ({reason})");
    Ok(())
}

#[test]
fn a_node_takes_the_place_of_one_that_lives_and_of_one_that_is_lost() -> Result<()> {
    let test = "a_node_takes_the_place_of_one_that_lives_and_of_one_that_is_lost";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let geometry = Some((2, 2));
    let mut cluster = Cluster::up(Spec { nodes: 4, geometry, ..Spec::three(test, "64M") })?;
    let fifth = add(&mut cluster, "x5")?;

    refused(&cluster, "n9", "x5", "no node n9")?;
    refused(&cluster, "n4", "n9", "no node n9")?;
    refused(&cluster, "n4", "n4", "can not replace itself")?;
    cluster.command(&["moves", "pause"])?;
    cluster.command(&["node", "drain", "x5", "--no-wait"])?;
    refused(&cluster, "n4", "x5", "x5 is being drained")?;
    cluster.command(&["node", "drain", "x5", "--undo"])?;
    cluster.command(&["moves", "resume"])?;
    cluster.stop(fifth)?;
    cluster.wait_status("x5 is down", LIMIT, |s| s.node_state("x5") == "down")?;
    refused(&cluster, "n4", "x5", "x5 does not run")?;
    cluster.start(fifth)?;
    cluster.wait_ok()?;
    // With a third one away some groups of n4 have all who are left.
    cluster.stop(2)?;
    cluster.wait_status("n3 is down", LIMIT, |s| s.node_state("n3") == "down")?;
    refused(&cluster, "n4", "x5", "would have no node to go to")?;
    cluster.start(2)?;
    cluster.wait_ok()?;
    until("all is at rest", LIMIT, || cluster.at_rest())?;

    let mut load = Load::start(LoadConfig::new(cluster.targets(), 0, seed));
    load.progress(100, LIMIT)?;
    cluster.command(&["node", "set", "n4", "--weight", "120", "--domain", "rack4"])?;

    // Cut off in the middle, and called again.
    let began = Instant::now();
    let first = replace(&cluster, "n4", "x5")?;
    until("it has begun", LIMIT, || {
        let node = node(&cluster, "n4")?.context("n4")?;
        Ok((node["state"] == "draining").then_some(()))
    })?;
    signal(first.pid(), Signal::KILL)?;
    first.wait(LIMIT)?;
    load.progress(20, LIMIT).context("a node is being replaced")?;
    let mut again = replace(&cluster, "n4", "x5")?;
    until("n4 is empty", LIMIT, || {
        ensure!(again.is_running()?, "{}{}", again.stdout_so_far()?, again.stderr_so_far()?);
        Ok(again.stdout_so_far()?.contains("n4 is empty: stop it").then_some(()))
    })?;
    ensure!(slots(&cluster, "n4")? == 0, "n4 is not empty");
    cluster.stop(3)?;
    let said = again.wait(LIMIT)?.ok()?;
    ensure!(said.contains("n4 is no member any more; x5 has its place"), "{said}");
    ensure!(node(&cluster, "n4")?.is_none(), "n4 is a member yet");
    let heir = node(&cluster, "x5")?.context("x5")?;
    ensure!(heir["weight"] == 120 && heir["domain"] == "rack4", "{heir}");
    load.progress(50, LIMIT).context("a node was replaced")?;
    until("all is at rest", LIMIT, || cluster.at_rest())?;
    let took = began.elapsed();
    say(test, &format!("a live node was replaced in {took:?}: {}", load.window().brief()));

    // The next one dies, and nothing of it is left.
    let sixth = add(&mut cluster, "x6")?;
    cluster.kill(fifth)?;
    std::fs::remove_dir_all(&cluster.nodes()[fifth].dir)?;
    load.progress(20, LIMIT).context("a node is lost")?;
    load.window();
    cluster.wait_status("x5 is down", LIMIT, |s| s.node_state("x5") == "down")?;
    let began = Instant::now();
    let said = cluster.command(&["node", "replace", "x5", "--with", "x6", "--no-wait"])?;
    ensure!(said.contains("the same command removes x5 when it is empty"), "{said}");
    let said = cluster.command(&["node", "replace", "x5", "--with", "x6"])?;
    ensure!(said.contains("x5 is no member any more; x6 has its place"), "{said}");
    let heir = node(&cluster, "x6")?.context("x6")?;
    ensure!(heir["weight"] == 120 && heir["domain"] == "rack4", "{heir}");
    until("all is at rest", LIMIT, || cluster.at_rest())?;
    load.progress(50, LIMIT).context("a lost node was replaced")?;
    let took = began.elapsed();
    say(test, &format!("a lost node was replaced in {took:?}: {}", load.window().brief()));

    let mut loaded = load.finish()?;
    ensure!(loaded.server_errors == 0, "{} requests failed", loaded.server_errors);
    for node in [0, 1, 2, sixth] {
        loaded.verify(&cluster.target(node)).with_context(|| format!("through node {node}"))?;
    }
    refused(&cluster, "x5", "x6", "no node x5")?;

    // One that was removed is not waited for when all that were made with it are started again.
    cluster.stop(sixth)?;
    cluster.down()?;
    cluster.start(sixth)?;
    let dir = cluster.dir();
    let said = smalti(&["up", "--dir", text(&dir)?, "--detach"], UP_LIMIT)?.ok()?;
    ensure!(said.contains("n4 was removed from the cluster: it is stopped"), "{said}");
    ensure!(said.contains("3 nodes up, healthy"), "{said}");
    until("n4 has ended", LIMIT, || Ok((!cluster.is_running(3)).then_some(())))?;
    cluster.stop(sixth)?;
    cluster.finish()
}
