//! Folders of one node that are not what the node left: put back as they were, or emptied. Nothing
//! of that may cost data, or keep the other nodes from serving.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use smalti_tests::cluster::smalti;
use smalti_tests::image::Image;
use smalti_tests::mount::{self, Mounted, SmallDisk};
use smalti_tests::nbd::Client;
use smalti_tests::pattern::seed;
use smalti_tests::process::{sh, until};
use smalti_tests::report::{say, skip};
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
        serves(&cluster, 2)?;
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
    serves(&cluster, 0)?;
    for node in 0..3 {
        image.verify(&cluster, node)?;
    }
    cluster.wait_ok()?;
    say(test, "all is there when the one that was away is back");
    cluster.finish()
}

/// Waits until clients of a node that was just started are served.
fn serves(cluster: &Cluster, node: usize) -> Result<()> {
    let attach = || Ok(Client::connect(&cluster.target(node), LIMIT).ok().map(drop));
    until("its clients are served", LIMIT, attach)
}

/// Which start of its process a node has joined under.
fn start_of(cluster: &Cluster, node: usize) -> Result<u64> {
    let nodes = cluster.facts(&["node", "list"])?;
    nodes[node]["incarnation"].as_u64().context("a start")
}

/// Rows of the volume that have lost a slot are rebuilt on what the node starts with instead, and nobody
/// has to say so. What was not there any more when the other nodes died is there again.
fn emptied(test: &'static str, what: &str) -> Result<()> {
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "32M"))?;
    // Whichever it is, and in whatever order they start.
    let victim = usize::try_from(seed % 3)?;
    let others = [(victim + 1) % 3, (victim + 2) % 3];
    let mut order = [victim, others[0], others[1]];
    order.rotate_left(usize::try_from(seed / 3 % 3)?);
    say(test, &format!("node {victim}, all in the order {order:?}"));
    let folder = cluster.nodes()[victim].dir.join(what);
    for (round, all) in [false, true].into_iter().enumerate() {
        let image = Image::write(&cluster, SIZE, 0, seed + round as u64)?;
        let start = start_of(&cluster, victim)?;
        if all {
            cluster.kill_together(&[0, 1, 2])?;
        } else {
            cluster.kill(victim)?;
        }
        fs::remove_dir_all(&folder)?;
        let emptied = Instant::now();
        for node in order {
            if all || node == victim {
                cluster.start(node)?;
            }
        }
        // Before it has joined nobody knows that anything is missing.
        until("it has joined", LIMIT, || {
            // While all start nobody answers.
            let now = start_of(&cluster, victim).unwrap_or(start);
            Ok((now > start).then_some(()))
        })?;
        cluster.wait_ok().context("nobody did anything")?;
        say(test, &format!("all killed {all}: ok after {:?}", emptied.elapsed()));
        for gone in others {
            cluster.kill(gone)?;
            image.verify(&cluster, victim).context("from what was rebuilt")?;
            cluster.start(gone)?;
            cluster.wait_ok()?;
        }
    }
    cluster.finish()
}

#[test]
fn an_emptied_store_is_rebuilt() -> Result<()> {
    emptied("an_emptied_store_is_rebuilt", "data/store")
}

/// It voted once, and no longer knows for whom: it votes again when the others have taken it out and in.
#[test]
fn a_node_with_an_emptied_raft_folder_is_admitted_anew() -> Result<()> {
    emptied("a_node_with_an_emptied_raft_folder_is_admitted_anew", "data/raft")
}

#[test]
fn a_node_that_has_lost_all_its_data_gets_it_back() -> Result<()> {
    emptied("a_node_that_has_lost_all_its_data_gets_it_back", "data")
}

/// A folder on which no disk is mounted is not one that was emptied: what would be made there anew would
/// be on the disk of the system, and the one that has all of it would be forgotten.
#[test]
fn a_disk_that_is_not_mounted_is_waited_for() -> Result<()> {
    let test = "a_disk_that_is_not_mounted_is_waited_for";
    if let Some(reason) = mount::missing() {
        return skip(test, &reason);
    }
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "32M"))?;
    let image = Image::write(&cluster, SIZE, 0, seed)?;
    let disk = SmallDisk::mount(1500)?;
    let (data, moved) = (cluster.data_dir(1)?, disk.path().join("data"));
    cluster.stop(1)?;
    cluster.wait_degraded()?;
    copy(&data, &moved)?;
    fs::remove_dir_all(&data)?;
    fs::create_dir(&data)?;
    let mounted = Mounted::bind(&moved, &data)?;
    cluster.start(1)?;
    cluster.wait_ok()?;

    cluster.stop(1)?;
    cluster.wait_degraded()?;
    drop(mounted);
    let said = cluster.refusal(1)?;
    ensure!(said.contains("was on a disk of its own") && said.contains("mount it"), "{said}");
    say(test, &said);
    let store = data.join("store");
    ensure!(!store.exists(), "{} was made", store.display());
    image.verify(&cluster, 0).context("what the others have")?;
    // As it was left, it needs nothing but what it missed.
    let mounted = Mounted::bind(&moved, &data)?;
    let label = || fs::read_to_string(store.join("STORE"));
    let id = |label: &str| label.lines().find(|line| line.starts_with("store ")).map(str::to_owned);
    let before = id(&label()?);
    cluster.start(1)?;
    cluster.wait_ok()?;
    ensure!(before.is_some() && id(&label()?) == before, "it is another store");
    cluster.kill(2)?;
    image.verify(&cluster, 1)?;
    cluster.start(2)?;
    cluster.wait_ok()?;
    cluster.down()?;
    drop(mounted);
    cluster.finish()
}

/// The node that founded the cluster does not found it again.
#[test]
fn the_first_node_founds_nothing_twice() -> Result<()> {
    let test = "the_first_node_founds_nothing_twice";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "32M"))?;
    Image::write(&cluster, SIZE, 1, seed)?;
    cluster.kill_together(&[0, 1, 2])?;
    for node in [0, 2] {
        fs::remove_dir_all(cluster.nodes()[node].dir.join("data"))?;
    }
    // Neither knows of anything: they must not agree on a cluster of their own.
    cluster.start(0)?;
    cluster.start(2)?;
    let watched = Instant::now();
    while watched.elapsed() < Duration::from_secs(5) {
        let health = cluster.status().map_or_else(|_| "none".to_owned(), |status| status.health);
        ensure!(health != "ok", "a new cluster was founded over the old one");
    }
    let dir = text(&cluster.dir());
    let listed = smalti(&["volume", "list", "--dir", &dir], LIMIT)?;
    ensure!(!listed.stdout.contains("no volumes"), "the old cluster is forgotten");
    // That was two losses of one that is borne. What is left is left alone.
    cluster.start(1)?;
    until("the one that remembers is heard", LIMIT, || {
        let listed = smalti(&["volume", "list", "--dir", &dir], LIMIT)?;
        let known = listed.stdout.lines().any(|line| line.starts_with("v "));
        Ok(known.then_some(()))
    })?;
    cluster.finish()
}
