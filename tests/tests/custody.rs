//! Custodians on real nodes: too few of them open nothing and one more is enough, shares go where they are wanted
//! while clients work and nodes die, and every custodian can tell what it did.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smalti_storage::keys::{KeyPart, SecretName, ShareName};
use smalti_tests::files::walk;
use smalti_tests::fio::VerifiedLoop;
use smalti_tests::image::Image;
use smalti_tests::nbd::{Client, Error};
use smalti_tests::pattern::seed;
use smalti_tests::process::until;
use smalti_tests::report::say;
use smalti_tests::thief::Thief;
use smalti_tests::{Cluster, Spec, Target};

const LIMIT: Duration = Duration::from_secs(240);
/// A client that is told nothing for longer than this would call it hung.
const ANSWER: Duration = Duration::from_secs(40);
/// How long a volume may stay sealed once enough custodians answer; the node has to start before that.
const OPENS_WITHIN: Duration = Duration::from_secs(2);
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
    let served = started.elapsed().saturating_sub(up);
    ensure!(served < OPENS_WITHIN, "{served:?} after the third answered");
    image.verify(&cluster, 3)?;
    cluster.wait_ok()?;
    cluster.command(&["key", "verify"])?;
    cluster.finish()
}

/// A way to make another share of one's own, of which `other` is one.
type Lie = fn(own: &[u8], other: &[u8]) -> Vec<u8>;

/// Threat: a custodian whose shares are altered, zero, another's, or of before the last dealing.
#[test]
fn shares_that_are_altered_are_named_and_open_nothing() -> Result<()> {
    let test = "shares_that_are_altered_are_named_and_open_nothing";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "16M"))?;
    let image = Image::write(&cluster, 4 * MIB, 0, seed)?;
    // What of a part is not its value: format, threshold, index.
    let lies: [(&str, Lie); 4] = [
        ("altered", |own, _| own.iter().enumerate().map(|(i, b)| b ^ u8::from(i == 34)).collect()),
        ("zero", |own, _| [&own[..3], &[0; 32]].concat()),
        ("repeated", |_, other| other.to_vec()),
        ("renamed", |own, other| [&own[..3], &other[3..]].concat()),
    ];
    for (name, _) in &lies {
        cluster.command(&["volume", "create", name, "--size", "16M"])?;
    }
    let (honest, liar) = (cluster.nodes()[0].clone(), cluster.nodes()[2].clone());
    cluster.stop(2)?;
    cluster.wait_degraded()?;
    let before = shares_of(&liar.dir)?;
    cluster.start(2)?;
    cluster.wait_ok()?;
    cluster.command(&["key", "custodians", "--refresh"])?;

    cluster.stop(2)?;
    cluster.wait_degraded()?;
    let vault = Thief::default().vault(&liar.dir)?;
    let mut altered = 0;
    let others = shares_of(&honest.dir)?;
    for name in vault.names()? {
        let own = vault.find(&name)?.to_bytes();
        let of_same = |(other, _): &&(ShareName, KeyPart)| other.secret == name.secret;
        let old = &before.iter().find(of_same).context("the share of before")?.1;
        let other = &others.iter().find(of_same).context("another's share")?.1;
        let mut lie = old.to_bytes().to_vec();
        if let SecretName::Wrapping { volume, .. } = name.secret {
            for (of, lies) in &lies {
                let shown = cluster.facts(&["volume", "show", of])?;
                if shown["id"] == volume.to_string() {
                    lie = lies(&own, &other.to_bytes());
                }
            }
        }
        ensure!(lie != *own, "nothing is altered of {name}");
        vault.keep(&name, &KeyPart::from_bytes(&lie)?)?;
        altered += 1;
    }
    ensure!(altered == 6, "{altered} shares of six secrets are altered");
    // One that is right is not enough, and there is no other one.
    cluster.kill(1)?;
    cluster.start(2)?;
    let volumes: Vec<&str> = lies.iter().map(|(name, _)| *name).chain(["v"]).collect();
    for name in &volumes {
        let target = Target { export: (*name).to_owned(), ..cluster.target(0) };
        let why = until("a client is told of the share", LIMIT, || {
            match Client::connect(&target, ANSWER) {
                Ok(_) => anyhow::bail!("one share of two that are needed opened {name}"),
                Err(Error::Refused(why)) => Ok(why.contains(&liar.name).then_some(why)),
                Err(_) => Ok(None),
            }
        })?;
        say(test, &format!("{name}: {why}"));
        ensure!(why.contains("sealed: 1 of 2"), "{why}");
    }
    cluster.start(1)?;
    image.verify(&cluster, 0)?;
    // What it has is seen to be none of its shares, and it gets others.
    cluster.wait_ok()?;
    let verified = cluster.command(&["key", "verify", "--without", &cluster.nodes()[1].name])?;
    say(test, &verified);
    cluster.kill(1)?;
    cluster.wait_degraded()?;
    for name in &volumes {
        let target = Target { export: (*name).to_owned(), ..cluster.target(2) };
        let opens = || Ok(Client::connect(&target, ANSWER).ok().map(drop));
        until("it opens with what it was given", LIMIT, opens)
            .with_context(|| (*name).to_owned())?;
    }
    cluster.start(1)?;
    cluster.wait_ok()?;
    cluster.finish()
}

/// The shares in a node's folder, opened.
fn shares_of(folder: &Path) -> Result<Vec<(ShareName, KeyPart)>> {
    let vault = Thief::default().vault(folder)?;
    vault.names()?.into_iter().map(|name| Ok((name, vault.find(&name)?))).collect()
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
