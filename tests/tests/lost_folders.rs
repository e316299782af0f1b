//! Folders of one node that are not what the node left: put back as they were, or emptied. Nothing
//! of that may cost data, or keep the other nodes from serving.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use smalti_tests::cluster::smalti;
use smalti_tests::image::Image;
use smalti_tests::nbd::Client;
use smalti_tests::pattern::seed;
use smalti_tests::process::{sh, until};
use smalti_tests::report::say;
use smalti_tests::{Cluster, Spec};

const LIMIT: Duration = Duration::from_secs(240);
const SIZE: usize = 32 << 20;

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    sh(&["cp", "-a", &text(from), &text(to)], LIMIT)?;
    Ok(())
}

/// A backup of a store is put back, of a run that had ended in order: it says so of itself, and
/// counts its starts as if it were the newest.
#[test]
fn a_store_that_is_put_back_as_it_was_is_not_believed() -> Result<()> {
    let test = "a_store_that_is_put_back_as_it_was_is_not_believed";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "32M"))?;
    let store = cluster.nodes()[2].dir.join("data/store");
    let backup = cluster.scratch()?.join("backup");
    Image::write(&cluster, SIZE, 0, seed)?;
    cluster.down()?;
    copy(&store, &backup)?;

    // All nodes were stopped when it is put back, and then this one alone.
    for (round, all) in [true, false].into_iter().enumerate() {
        cluster.run_up()?;
        cluster.wait_ok()?;
        let image = Image::write(&cluster, SIZE, 0, seed + 1 + round as u64)?;
        if all {
            // Nodes with clients take longer to end than the other one, who is missed by nobody.
            let attached = (1..3).map(|node| Client::connect(&cluster.target(node), LIMIT));
            let attached = attached.collect::<Result<Vec<_>, _>>()?;
            cluster.down()?;
            drop(attached);
            copy(&backup, &store)?;
            cluster.run_up()?;
        } else {
            cluster.stop(2)?;
            copy(&backup, &store)?;
            cluster.start(2)?;
        }
        for node in 0..3 {
            image.verify(&cluster, node)?;
        }
        let status = cluster.wait_ok()?;
        say(test, &format!("all stopped {all}: read right through every node; {}", status.brief()));
        // Alone with another one it has to have everything.
        cluster.kill(1)?;
        image.verify(&cluster, 0)?;
        cluster.start(1)?;
        cluster.wait_ok()?;
        cluster.down()?;
    }
    cluster.run_up()?;
    cluster.finish()
}

/// Its disk lacks what the others acknowledged since, and one of those is away for a while: it is
/// waited for, and not replaced by the disk that lacks it.
#[test]
fn a_store_that_is_put_back_costs_nobody_his_place() -> Result<()> {
    let test = "a_store_that_is_put_back_costs_nobody_his_place";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "32M"))?;
    let store = cluster.nodes()[2].dir.join("data/store");
    let backup = cluster.scratch()?.join("backup");
    cluster.stop(2)?;
    copy(&store, &backup)?;
    cluster.start(2)?;
    cluster.wait_ok()?;
    let image = Image::write(&cluster, SIZE, 0, seed)?;
    cluster.kill_together(&[0, 1, 2])?;
    copy(&backup, &store)?;
    cluster.start(1)?;
    cluster.start(2)?;
    let log = cluster.nodes()[2].dir.join("node.log");
    until("the disk is seen to be another one", LIMIT, || {
        let said = fs::read_to_string(&log)?.contains("is not what its last run left behind");
        Ok(said.then_some(()))
    })?;
    // Long enough for whoever would go on without the one that is away to do so.
    let watched = Instant::now();
    while watched.elapsed() < Duration::from_secs(5) {
        ensure!(cluster.status()?.health == "stalled", "{}", cluster.status()?.brief());
    }
    cluster.start(0)?;
    for node in 0..3 {
        image.verify(&cluster, node)?;
    }
    cluster.wait_ok()?;
    say(test, "all is there when the one that was away is back");
    cluster.finish()
}

#[test]
fn a_node_with_an_emptied_store_holds_nobody_up() -> Result<()> {
    let test = "a_node_with_an_emptied_store_holds_nobody_up";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "32M"))?;
    let image = Image::write(&cluster, SIZE, 0, seed)?;
    let store = cluster.nodes()[2].dir.join("data/store");
    for all in [false, true] {
        if all {
            cluster.kill_together(&[0, 1, 2])?;
        } else {
            cluster.kill(2)?;
        }
        fs::remove_dir_all(&store)?;
        fs::create_dir(&store)?;
        for node in if all { 0..3 } else { 2..3 } {
            cluster.start(node)?;
        }
        for node in 0..3 {
            image.verify(&cluster, node)?;
        }
        say(test, &format!("all killed {all}: read right through every node"));
    }
    let image = Image::write(&cluster, SIZE, 1, seed + 1)?;
    image.verify(&cluster, 2)?;
    let dir = text(&cluster.dir());
    until("it is said which node lacks its store", LIMIT, || {
        let why = smalti(&["why", "--dir", &dir], LIMIT)?;
        let line = why.stdout.lines().find(|line| line.contains("node n3: it runs without store"));
        Ok(line.map(|line| say(test, line)))
    })?;
    cluster.finish()
}

/// It voted once, and no longer knows for whom.
#[test]
fn a_node_with_an_emptied_raft_folder_does_not_start() -> Result<()> {
    let test = "a_node_with_an_emptied_raft_folder_does_not_start";
    let seed = seed();
    let mut cluster = Cluster::up(Spec::three(test, "32M"))?;
    let image = Image::write(&cluster, SIZE, 0, seed)?;
    cluster.kill(2)?;
    let raft = cluster.nodes()[2].dir.join("data/raft");
    let aside = raft.with_extension("aside");
    fs::rename(&raft, &aside)?;
    // It may end before or after it was seen to run.
    let _ = cluster.start(2);
    until("the node ends", LIMIT, || Ok((!cluster.is_running(2)).then_some(())))?;
    let log = fs::read_to_string(cluster.nodes()[2].dir.join("node.log"))?;
    let said = log.lines().rfind(|line| line.contains("may not vote again"));
    say(test, said.context("the log does not say why")?);
    image.verify(&cluster, 0)?;
    // With its folder it is one of them again.
    if raft.exists() {
        fs::remove_dir_all(&raft)?;
    }
    fs::rename(&aside, &raft)?;
    cluster.start(2)?;
    cluster.wait_ok()?;
    image.verify(&cluster, 2)?;
    cluster.finish()
}
