//! People with recovery shares open a cluster whose custodians can not: some lost their shares, some the keys that
//! those rest under. Too few people, and any bad share, open nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smalti_tests::cluster::{program, smalti};
use smalti_tests::files::walk;
use smalti_tests::image::Image;
use smalti_tests::nbd::{Client, Error};
use smalti_tests::pattern::seed;
use smalti_tests::process::{sh, until};
use smalti_tests::report::say;
use smalti_tests::{Cluster, Spec};

const LIMIT: Duration = Duration::from_secs(90);
const ANSWER: Duration = Duration::from_secs(40);
const MIB: usize = 1 << 20;

#[test]
fn people_open_what_custodians_can_not() -> Result<()> {
    let test = "people_open_what_custodians_can_not";
    let mut cluster = Cluster::up(Spec { recovery: Some((5, 3)), ..Spec::three(test, "256M") })?;
    let image = Image::write(&cluster, 16 * MIB, 0, seed())?;
    let shares = cluster.recovery_shares().to_vec();
    ensure!(shares.len() == 5, "{} shares were printed", shares.len());
    for file in walk(&cluster.dir())? {
        let bytes = fs::read(&file)?;
        let found = bytes.windows(16).any(|part| part == b"smalti-recovery-");
        ensure!(!found, "a recovery share is in {}", file.display());
    }
    let said = cluster.command(&["key", "status"])?;
    ensure!(said.contains("recovery  5 shares are with people, 3 needed"), "{said}");
    // The drill, as it is typed.
    let typed: Vec<String> =
        shares[2..].iter().map(|line| line.to_uppercase().replace('-', " ")).collect();
    let said = recover(&cluster, &typed, &["--check"])?;
    ensure!(said.contains("2 secrets can be opened with these shares"), "{said}");
    let before = report(&cluster)?;
    ensure!(before["resharing"]["share_epoch"] == 1, "the drill changed something: {before}");

    // One custodian loses its shares, another one the key that its shares rest under.
    cluster.down()?;
    let homes: Vec<_> = cluster.nodes().iter().map(|node| node.dir.clone()).collect();
    let mut lost = 0;
    for file in walk(&homes[0])?.into_iter().filter(|file| is_share(file)) {
        fs::remove_file(file)?;
        lost += 1;
    }
    ensure!(lost == 2, "{lost} shares of a custodian");
    let key = homes[1].join("custody.key");
    fs::write(&key, [7; 32])?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    for node in 0..3 {
        cluster.start(node)?;
    }
    let target = cluster.target(0);
    let refused = until("a client is told that the volume is sealed", LIMIT, || {
        match Client::connect(&target, ANSWER) {
            Ok(_) => anyhow::bail!("one of two shares that are needed opened it"),
            Err(Error::Refused(why)) => Ok(why.contains("sealed: 1 of 2").then_some(why)),
            Err(_) => Ok(None),
        }
    })?;
    say(test, &format!("refused: {refused}"));

    // Too few, mistyped, given twice, of another cluster: told by number, and nothing changes.
    let epoch = share_epoch(&cluster)?;
    let denied = |lines: &[String], why: &str| -> Result<()> {
        let error = recover(&cluster, lines, &[]).err().context("it was taken")?;
        let error = format!("{error:#}");
        ensure!(error.contains(why), "{error}");
        ensure!(lines.iter().all(|line| !error.contains(&line[20..])), "a share is told: {error}");
        Ok(())
    };
    denied(&shares[..2], "2 recovery shares are too few: 3 are needed")?;
    let wrong = if shares[1].ends_with('q') { 'p' } else { 'q' };
    let typo = format!("{}{wrong}", &shares[1][..shares[1].len() - 1]);
    denied(
        &[shares[0].clone(), typo, shares[2].clone()],
        "recovery share 2 is mistyped, most likely in group 14",
    )?;
    let twice = [&shares[..2], &shares[1..2]].concat();
    denied(&twice, "recovery share 2 is given twice")?;
    ensure!(Client::connect(&target, ANSWER).is_err(), "what was refused opened it");
    ensure!(share_epoch(&cluster)? <= epoch + 1, "refused shares changed something");

    let began = Instant::now();
    let said = recover(&cluster, &shares[..3], &[])?;
    say(test, &format!("after {:?}: {}", began.elapsed(), said.trim()));
    ensure!(said.contains("2 secrets were opened") && said.contains("n1, n2, n3"), "{said}");
    until("the volume is opened without a command", LIMIT, || {
        Ok(Client::connect(&target, ANSWER).ok().map(drop))
    })?;
    say(test, &format!("served {:?} after the shares were given", began.elapsed()));
    image.verify(&cluster, 0)?;
    cluster.wait_ok()?;
    cluster.command(&["key", "verify"])?;
    cluster.command(&["key", "verify", "--without", "n3"])?;
    let now = report(&cluster)?;
    ensure!(now["resharing"]["left"] == 0, "{now}");
    ensure!(share_epoch(&cluster)? > 1, "{now}");
    let audit = cluster.command(&["key", "audit"])?;
    ensure!(audit.contains("dealt anew for recovery"), "{audit}");
    // New keys are sealed for recovery as well, and those that nothing is under any more are gone.
    cluster.command(&["key", "rotate", "v", "--wait"])?;
    let said = recover(&cluster, &shares[1..4], &["--check"])?;
    ensure!(said.contains("2 secrets can be opened with these shares"), "{said}");
    for node in 0..3 {
        let logged = cluster.logged(node, "smalti-recovery-")?;
        ensure!(logged == 0, "a recovery share is in a log");
    }
    let used = (0..3).map(|node| cluster.logged(node, "recovery shares open the cluster"));
    ensure!(used.sum::<Result<usize>>()? >= 3, "no log says that recovery shares were used");

    let error = smalti(&["key", "recover", "--api", &cluster.nodes()[0].api], LIMIT)?.ok();
    let error = format!("{:#}", error.err().context("shares were taken over TCP")?);
    ensure!(error.contains("Unix socket only"), "{error}");
    cluster.finish()
}

fn is_share(file: &std::path::Path) -> bool {
    file.extension().is_some_and(|kind| kind == "share")
}

/// What `smalti key recover` says when it is given these lines.
fn recover(cluster: &Cluster, lines: &[String], words: &[&str]) -> Result<String> {
    let file = cluster.scratch()?.join("shares");
    fs::write(&file, lines.join("\n"))?;
    let (program, dir) = (program()?.display().to_string(), cluster.dir().display().to_string());
    let file = file.display().to_string();
    let script = "program=$1; file=$2; shift 2; exec \"$program\" key recover \"$@\" < \"$file\"";
    let all = [&["sh", "-c", script, "sh", &program, &file, "--dir", &dir][..], words].concat();
    sh(&all, LIMIT)
}

fn report(cluster: &Cluster) -> Result<Value> {
    cluster.facts(&["key", "status"])
}

fn share_epoch(cluster: &Cluster) -> Result<u64> {
    report(cluster)?["resharing"]["share_epoch"].as_u64().context("the share epoch")
}
