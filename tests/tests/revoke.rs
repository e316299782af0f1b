//! Keys that may have leaked, and keys that are due: new ones are made while clients work, and what was under the
//! ones before is sealed anew.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smalti_tests::files::walk;
use smalti_tests::fio::VerifiedLoop;
use smalti_tests::image::Image;
use smalti_tests::pattern::seed;
use smalti_tests::process::until;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Spec};

const LIMIT: Duration = Duration::from_secs(240);
const MIB: usize = 1 << 20;

#[test]
fn what_is_revoked_is_told_of_until_it_is_gone() -> Result<()> {
    let test = "what_is_revoked_is_told_of_until_it_is_gone";
    let mut cluster = Cluster::up(Spec::three(test, "256M"))?;
    let image = Image::write(&cluster, 64 * MIB, 0, seed())?;
    let error = cluster.command(&["key", "revoke", "v", "--epoch", "7"]);
    let error = format!("{:#}", error.expect_err("there is no such key epoch"));
    ensure!(error.contains("there is no key epoch k7, or it has ended"), "{error}");
    let load = VerifiedLoop::start(cluster.uri(0), "64M", "128M", LIMIT);
    load.progress(1, LIMIT)?;

    // A custodian is away: there are no new keys yet, and everybody hears of what is at risk.
    cluster.kill(2)?;
    cluster.wait_degraded()?;
    cluster.command(&["key", "revoke", "v", "--no-wait"])?;
    let began = Instant::now();
    for words in [&["why"][..], &["key", "status"]] {
        let said = cluster.command(words)?;
        ensure!(said.contains("key epochs up to 1 were revoked"), "{words:?}: {said}");
    }
    cluster.start(2)?;
    let keys = until("nothing is under revoked keys", LIMIT, || {
        let keys = keys(&cluster)?;
        Ok(keys["revoked"].is_null().then_some(keys))
    })?;
    say(test, &format!("nothing is at risk any more after {:?}: {keys}", began.elapsed()));
    ensure!(keys["current"] == 2 && keys["epochs"].as_array().map(Vec::len) == Some(1), "{keys}");
    let told = |words| -> Result<usize> { (0..3).map(|node| cluster.logged(node, words)).sum() };
    ensure!(told("nothing is under revoked keys")? == 1, "no log tells for how long it was so");
    cluster.wait_ok()?;

    // Whoever had all shares of the secret that keys come from has none that is of use.
    let before = shares_of_master(&cluster)?;
    ensure!(before.len() == 3, "every custodian has a share of the master secret: {before:?}");
    let said = cluster.command(&["key", "revoke", "--all", "--master", "--wait"])?;
    ensure!(said.contains("v: new records are under key epoch 3; it is the only one"), "{said}");
    until("shares of the master secret of before are destroyed", LIMIT, || {
        let now = shares_of_master(&cluster)?;
        Ok((now.len() == 3 && now.is_disjoint(&before)).then_some(()))
    })?;
    let said = cluster.command(&["key", "verify"])?;
    ensure!(said.contains("everything can be opened"), "{said}");
    let passes = load.finish()?;
    say(test, &format!("{passes} passes, no byte wrong"));
    cluster.command(&["volume", "create", "w", "--size", "64M"])?;
    cluster.down()?;
    cluster.run_up()?;
    cluster.wait_ok()?;
    for node in 0..3 {
        image.verify(&cluster, node)?;
    }
    cluster.finish()
}

#[test]
fn keys_are_renewed_for_what_they_sealed_and_for_their_age() -> Result<()> {
    let test = "keys_are_renewed_for_what_they_sealed_and_for_their_age";
    let mut cluster = Cluster::up(Spec::three(test, "256M"))?;
    // 64 columns: an image of 64 MiB is 256 blocks of each in the mean, and so much is sealed anew as well.
    cluster.retune("key_blocks", 400)?;
    Image::write(&cluster, 64 * MIB, 0, seed())?;
    ensure!(keys(&cluster)?["current"] == 1, "that was too few");
    let image = Image::write(&cluster, 64 * MIB, 0, seed())?;
    let current = alone_after(&cluster, 1)?;
    let due = (0..3).map(|node| cluster.logged(node, "blocks sealed")).sum::<Result<usize>>()?;
    say(test, &format!("key epoch {current} after {due} times due for blocks sealed"));
    ensure!(due >= 1, "it was made for another reason");

    cluster.retune("key_blocks", 0)?;
    let current = keys(&cluster)?["current"].as_u64().context("current")?;
    cluster.retune("key_interval_s", 20)?;
    alone_after(&cluster, current)?;
    let due = (0..3).map(|node| cluster.logged(node, "their age")).sum::<Result<usize>>()?;
    ensure!(due >= 1, "it was made for another reason");
    image.verify(&cluster, 1)?;
    cluster.finish()
}

/// Waits until one key epoch is left, newer than that.
fn alone_after(cluster: &Cluster, before: u64) -> Result<u64> {
    until("newer keys, and no older ones", LIMIT, || {
        let keys = keys(cluster)?;
        let one = keys["epochs"].as_array().is_some_and(|epochs| epochs.len() == 1);
        let current = keys["current"].as_u64().context("current")?;
        Ok((one && current > before).then_some(current))
    })
}

fn keys(cluster: &Cluster) -> Result<Value> {
    let report = cluster.facts(&["key", "status"])?;
    Ok(report["volumes"][0].clone())
}

/// The names of all shares of the master secret, with the node in front.
fn shares_of_master(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for node in cluster.nodes() {
        for file in walk(&node.dir)? {
            let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
            let name = name.filter(|name| name.starts_with("master-") && name.ends_with(".share"));
            found.extend(name.map(|name| format!("{} {name}", node.name)));
        }
    }
    Ok(found)
}
