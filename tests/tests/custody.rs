//! Custodians on real nodes: too few of them open nothing and one more is enough, shares go where they are wanted
//! while clients work and nodes die, and every custodian can tell what it did.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smalti_tests::files::walk;
use smalti_tests::fio::VerifiedLoop;
use smalti_tests::image::Image;
use smalti_tests::nbd::{Client, Error};
use smalti_tests::pattern::seed;
use smalti_tests::process::until;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Spec};

const LIMIT: Duration = Duration::from_secs(240);
/// A client that is told nothing for longer than this would call it hung.
const ANSWER: Duration = Duration::from_secs(40);
/// How long a volume may stay sealed once enough custodians answer; the node has to start before that.
const OPENS_WITHIN: Duration = Duration::from_secs(10);
const MIB: usize = 1 << 20;

#[test]
fn too_few_custodians_open_nothing_and_one_more_is_enough() -> Result<()> {
    let test = "too_few_custodians_open_nothing_and_one_more_is_enough";
    let mut cluster = Cluster::up(Spec { nodes: 4, ..Spec::three(test, "256M") })?;
    let image = Image::write(&cluster, 32 * MIB, 0, seed())?;
    let said = cluster.command(&["key", "custodians", "--threshold", "3"])?;
    ensure!(said.contains("3 of 3 custodians answer, 3 needed; share epoch 2"), "{said}");
    ensure!(said.contains("every custodian is needed"), "{said}");

    cluster.kill(1)?;
    cluster.wait_degraded()?;
    let target = cluster.target(3);
    let began = Instant::now();
    let sealed = "sealed: 2 of 3 custodians reachable";
    let refused = until("a client is told that the volume is sealed", LIMIT, || {
        let asked = Instant::now();
        let answer = Client::connect(&target, ANSWER);
        ensure!(asked.elapsed() < ANSWER, "it hung");
        match answer {
            Ok(_) => anyhow::bail!("two of three shares that are needed opened it"),
            Err(Error::Refused(why)) => Ok(why.contains(sealed).then_some(why)),
            // The seat may have been at the node that died.
            Err(_) => Ok(None),
        }
    })?;
    say(test, &format!("told after {:?}: {refused}", began.elapsed()));
    let away = &cluster.nodes()[1].name;
    ensure!(refused.contains(away), "{refused}");
    for words in [&["status"][..], &["why"], &["key", "status"]] {
        let said = cluster.command(words)?;
        ensure!(said.contains(sealed), "{words:?}: {said}");
    }
    let logged = (0..4).map(|node| cluster.logged(node, sealed)).collect::<Result<Vec<_>>>()?;
    ensure!(logged.iter().any(|count| *count > 0), "no log says so: {logged:?}");
    let error = cluster.command(&["key", "verify"]).expect_err("a share is missing");
    ensure!(format!("{error:#}").contains("not everything could be opened"), "{error:#}");

    let started = Instant::now();
    cluster.start(1)?;
    let up = started.elapsed();
    until("the volume is opened without a command", LIMIT, || {
        Ok(Client::connect(&target, ANSWER).ok().map(drop))
    })?;
    say(
        test,
        &format!("served {:?} after the third was started, which took {up:?}", started.elapsed()),
    );
    ensure!(started.elapsed() < OPENS_WITHIN, "{:?}", started.elapsed());
    image.verify(&cluster, 3)?;
    cluster.wait_ok()?;
    cluster.command(&["key", "verify"])?;
    cluster.finish()
}

#[test]
fn shares_go_where_they_are_wanted_while_clients_work_and_nodes_die() -> Result<()> {
    let test = "shares_go_where_they_are_wanted_while_clients_work_and_nodes_die";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let spec = Spec { nodes: 4, geometry: Some((2, 1)), ..Spec::three(test, "512M") };
    let mut cluster = Cluster::up(spec)?;
    let names: Vec<String> = cluster.nodes().iter().map(|node| node.name.clone()).collect();
    let [n1, n2, n3, n4] = [0, 1, 2, 3].map(|node| names[node].as_str());
    let image = Image::write(&cluster, 64 * MIB, 0, seed)?;
    let load = VerifiedLoop::start(cluster.uri(0), "32M", "256M", LIMIT);
    load.progress(1, LIMIT)?;

    let error = cluster.command(&["key", "custodians", n1, "--threshold", "1"]);
    let error = error.expect_err("one share would be the secret");
    ensure!(format!("{error:#}").contains("less than 2"), "{error:#}");
    let began = Instant::now();
    let said = cluster.command(&["key", "custodians", n2, n3, n4])?;
    say(test, &format!("other custodians after {:?}", began.elapsed()));
    ensure!(said.contains("share epoch 2") && !said.contains(n1), "{said}");
    until("the first one has no share any more", LIMIT, || {
        Ok((shares(&cluster, 0)? == 0).then_some(()))
    })?;
    cluster.command(&["key", "rotate", "v", "--wait"])?;
    load.progress(1, LIMIT)?;

    // Each of them dies while all shares become new ones.
    for victim in 1..4 {
        cluster.command(&["key", "custodians", "--refresh", "--no-wait"])?;
        cluster.kill(victim)?;
        cluster.wait_degraded()?;
        if victim == 1 {
            let error = cluster.command(&["key", "custodians", n1, n2, n4]);
            let error = error.expect_err("a node that is away can not take its share");
            ensure!(format!("{error:#}").contains(&format!("{n2} does not answer")), "{error:#}");
        }
        cluster.start(victim)?;
        cluster.wait_ok().with_context(|| format!("node {victim} back"))?;
        until_proven(&cluster, 2)?;
    }
    let passes = load.finish()?;
    say(test, &format!("{passes} passes, no byte wrong"));
    image.verify(&cluster, 2)?;

    // One loses its shares, and gets new ones by itself.
    let before = share_epoch(&cluster)?;
    cluster.stop(1)?;
    for file in walk(&cluster.nodes()[1].dir)? {
        if file.extension().is_some_and(|extension| extension == "share") {
            fs::remove_file(file)?;
        }
    }
    cluster.start(1)?;
    until(
        "all shares are new ones",
        LIMIT,
        || Ok((share_epoch(&cluster)? > before).then_some(())),
    )?;
    cluster.wait_ok()?;
    until_proven(&cluster, 2)?;
    cluster.command(&["key", "verify", "--without", n2])?;
    let error = cluster.command(&["key", "verify", "--without", &format!("{n2},{n4}")]);
    ensure!(error.is_err(), "one custodian is too few");

    // One is emptied, another one takes its share, and it leaves the cluster.
    let said = cluster.command(&["node", "drain", n3])?;
    ensure!(said.contains("is empty") && !said.contains("key shares"), "{said}");
    let holders = custodians(&cluster)?;
    ensure!(holders == [n2, n1, n4], "{holders:?}");
    cluster.stop(2)?;
    cluster.command(&["node", "remove", n3])?;
    cluster.wait_ok()?;
    image.verify(&cluster, 0)?;
    until_proven(&cluster, 2)?;

    // Every custodian has noted what it did, and a log that was touched is told.
    let said = cluster.command(&["key", "audit"])?;
    for word in ["whole, to", "dealt-on", "combined", "destroyed", "released"] {
        ensure!(said.contains(word), "{word}: {said}");
    }
    cluster.stop(1)?;
    let log = walk(&cluster.nodes()[1].dir)?.into_iter().find(|file| file.ends_with("audit.log"));
    let log = log.context("a log")?;
    let text = fs::read_to_string(&log)?;
    fs::write(&log, text.replacen("released", "refused", 1))?;
    cluster.start(1)?;
    cluster.wait_ok()?;
    let said = cluster.command(&["key", "audit", "--node", n2])?;
    ensure!(said.contains("the log before does not hold together"), "{said}");
    cluster.finish()
}

fn report(cluster: &Cluster) -> Result<Value> {
    cluster.facts(&["key", "status"])
}

fn share_epoch(cluster: &Cluster) -> Result<u64> {
    report(cluster)?["resharing"]["share_epoch"].as_u64().context("the share epoch")
}

fn custodians(cluster: &Cluster) -> Result<Vec<String>> {
    let report = report(cluster)?;
    let holders = report["holders"].as_array().context("holders")?;
    holders.iter().map(|holder| Ok(holder["node"].as_str().context("a name")?.to_owned())).collect()
}

/// Waits until every secret, so many at least, is with those who are to hold it, and all of them prove that.
fn until_proven(cluster: &Cluster, secrets: usize) -> Result<()> {
    let mut last = Value::Null;
    let proven = until("all shares are proven", LIMIT, || {
        last = report(cluster)?;
        if last["resharing"]["left"] != 0 {
            return Ok(None);
        }
        last = cluster.facts(&["key", "verify"])?;
        let all = last["custodians"].as_array().context("custodians")?;
        let secrets = last["secrets"].as_array().is_some_and(|found| found.len() >= secrets);
        let whole = |custodian: &Value| custodian["proven"] == custodian["total"];
        Ok((secrets && all.len() == 3 && all.iter().all(whole)).then_some(()))
    });
    proven.with_context(|| format!("{last}"))
}

/// Share files of a node.
fn shares(cluster: &Cluster, node: usize) -> Result<usize> {
    let files = walk(&cluster.nodes()[node].dir)?;
    let share = |file: &&std::path::PathBuf| file.extension().is_some_and(|kind| kind == "share");
    Ok(files.iter().filter(share).count())
}
