//! New keys for a volume in use: records are sealed anew while clients work and nodes die, and what the older
//! keys needed is gone from all nodes in the end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smalti_tests::files::walk;
use smalti_tests::fio::VerifiedLoop;
use smalti_tests::image::Image;
use smalti_tests::pattern::seed;
use smalti_tests::process::until;
use smalti_tests::report::say;
use smalti_tests::settings::number;
use smalti_tests::{Cluster, Spec};

const LIMIT: Duration = Duration::from_secs(240);
const MIB: usize = 1 << 20;

#[test]
fn keys_are_rotated_under_load_while_each_node_dies() -> Result<()> {
    let test = "keys_are_rotated_under_load_while_each_node_dies";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    // Before a release the image is as large as a volume usually is at least.
    let mib = usize::try_from(number("IMAGE_MIB", 192)?)?;
    let size: &'static str = format!("{}M", mib + 832).leak();
    let mut cluster = Cluster::up(Spec::three(test, size))?;
    let image = Image::write(&cluster, mib * MIB, 0, seed)?;
    let beyond: &'static str = format!("{}M", mib + 320).leak();
    ensure!(shares(&cluster, 1)? == 3, "every custodian has a share of the first secret");

    for (attached, victims) in [(0, vec![1, 2]), (1, vec![0])] {
        let load = VerifiedLoop::start(cluster.uri(attached), "64M", beyond, LIMIT);
        load.progress(1, LIMIT)?;
        for victim in victims {
            rotate(test, &cluster)?;
            cluster.kill(victim)?;
            load.progress(1, LIMIT).with_context(|| format!("with node {victim} dead"))?;
            cluster.wait_degraded()?;
            cluster.start(victim)?;
            cluster.wait_ok().with_context(|| format!("node {victim} back"))?;
            say(test, &format!("node {victim} was killed: {}", keys(&cluster)?));
        }
        let passes = load.finish()?;
        say(test, &format!("attached to node {attached}: {passes} passes, no byte wrong"));
    }
    let current = until_alone(test, &cluster)?;
    for no in 1..current {
        until("shares of older secrets are destroyed", LIMIT, || {
            Ok((shares(&cluster, no)? == 0).then_some(()))
        })?;
    }
    ensure!(shares(&cluster, current)? == 3, "every custodian has a share of the last secret");
    for node in 0..3 {
        image.verify(&cluster, node)?;
    }
    // Nothing but the new keys is needed by those who start anew either.
    cluster.down()?;
    cluster.run_up()?;
    cluster.wait_ok()?;
    image.verify(&cluster, 2)?;
    cluster.finish()
}

#[test]
fn new_keys_are_made_as_soon_as_every_custodian_is_there() -> Result<()> {
    let test = "new_keys_are_made_as_soon_as_every_custodian_is_there";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "256M"))?;
    let image = Image::write(&cluster, 32 * MIB, 0, seed)?;
    let error = cluster.command(&["key", "rotate", "w"]).expect_err("there is no such volume");
    ensure!(format!("{error:#}").contains("no volume w"), "{error:#}");
    let error = cluster.command(&["key", "rotate"]).expect_err("nothing is named");
    ensure!(format!("{error:#}").contains("<NAME|--all>"), "{error:#}");

    cluster.kill(2)?;
    cluster.wait_degraded()?;
    let said = cluster.command(&["key", "rotate", "v", "--no-wait"])?;
    ensure!(said.contains("new keys are wanted"), "{said}");
    until("it says which custodian is missing", LIMIT, || {
        let status = cluster.command(&["key", "status"])?;
        let name = &cluster.nodes()[2].name;
        let told = status.contains("new keys are wanted and not there yet")
            && status.contains(&format!("{name} is away"));
        ensure!(!status.contains("old records"), "no key epoch may begin without {name}: {status}");
        Ok(told.then_some(()))
    })?;
    // The two who are there may have been asked once, before anybody knew that the third one is away.
    let kept = shares(&cluster, 2)?;
    ensure!(kept <= 2, "{kept} shares of keys that can not be made");
    // The wish outlives whoever was to fulfil it.
    let coordinator = cluster.coordinator()?;
    cluster.kill(coordinator)?;
    cluster.start(coordinator)?;
    cluster.start(2)?;
    cluster.wait_ok()?;
    // Nobody is attached.
    let current = until_alone(test, &cluster)?;
    ensure!(current == 2, "one wish, one key epoch: {current}");
    until("shares of the older secret are destroyed", LIMIT, || {
        Ok((shares(&cluster, 1)? == 0).then_some(()))
    })?;
    image.verify(&cluster, 1)?;

    let said = cluster.command(&["key", "rotate", "--all", "--wait"])?;
    ensure!(said.contains("v: new records are under key epoch 3; it is the only one"), "{said}");
    image.verify(&cluster, 0)?;
    cluster.finish()
}

/// What is known of the volume's keys.
fn keys(cluster: &Cluster) -> Result<Value> {
    let report = cluster.facts(&["key", "status"])?;
    Ok(report["volumes"][0].clone())
}

fn rotate(test: &str, cluster: &Cluster) -> Result<()> {
    let began = Instant::now();
    let said = cluster.command(&["key", "rotate", "v"])?;
    say(test, &format!("{} after {:?}", said.trim(), began.elapsed()));
    Ok(())
}

/// Waits until there is one key epoch, and answers its number.
fn until_alone(test: &str, cluster: &Cluster) -> Result<u64> {
    let began = Instant::now();
    let alone = until("one key epoch is left", LIMIT, || {
        let keys = keys(cluster)?;
        let one = keys["epochs"].as_array().is_some_and(|epochs| epochs.len() == 1);
        Ok((one && keys["wanted"] == false && keys["current"] != 1).then_some(keys))
    });
    let keys = alone.with_context(|| match keys(cluster) {
        Ok(keys) => format!("{keys}"),
        Err(error) => format!("{error:#}"),
    })?;
    say(test, &format!("alone after {:?}: {keys}", began.elapsed()));
    keys["current"].as_u64().context("current")
}

/// How many share files there are of the secret of a key epoch, at all nodes.
fn shares(cluster: &Cluster, key_epoch: u64) -> Result<usize> {
    let mut found = 0;
    for node in cluster.nodes() {
        for file in walk(&node.dir)? {
            let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
            // uuid-epoch-dealing.share
            let name = name.filter(|name| name.ends_with(".share") && name.len() > 37);
            found += usize::from(
                name.is_some_and(|name| name[36..].starts_with(&format!("-{key_epoch}-"))),
            );
        }
    }
    Ok(found)
}
