//! Custodians whose shares are sealed under a passphrase: after a start they are locked and say so, nobody takes their
//! shares for lost, and once enough are unlocked all goes on by itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use smalti_tests::cluster::{COMMAND_LIMIT, smalti};
use smalti_tests::image::Image;
use smalti_tests::nbd::{Client, Error};
use smalti_tests::pattern::seed;
use smalti_tests::process::until;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Spec};

const LIMIT: Duration = Duration::from_secs(30);
/// How long a volume may stay sealed once enough custodians are unlocked.
const OPENS_WITHIN: Duration = Duration::from_secs(2);
/// Longer than custodians may lack shares before all get new ones.
const REFRESH_AFTER: Duration = Duration::from_secs(6);
const MIB: usize = 1 << 20;
const PASSPHRASE: &str = "correct horse battery staple";
const LOCKED: &str = "locked: `smalti key unlock` there";

#[test]
fn locked_custodians_say_so_and_all_goes_on_once_one_is_unlocked() -> Result<()> {
    let test = "locked_custodians_say_so_and_all_goes_on_once_one_is_unlocked";
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    let image = Image::write(&cluster, 8 * MIB, 0, seed())?;
    let [right, wrong] = [("right", PASSPHRASE), ("wrong", "correct horse battery stable")]
        .map(|(name, text)| secret_file(&cluster, name, text));
    let (right, wrong) = (text(&right?)?, text(&wrong?)?);
    let before = share_epoch(&cluster)?;
    cluster.down()?;
    for node in [1, 2] {
        let dir = cluster.nodes()[node].dir.clone();
        let folder = text(&dir)?;
        let words = ["key", "provider", "--passphrase", "--passphrase-file", &right];
        let said = smalti(&[&words[..], &["--dir", &folder]].concat(), COMMAND_LIMIT)?.ok()?;
        ensure!(said.contains("2 shares are sealed anew, under a passphrase"), "{said}");
        ensure!(!dir.join("custody.key").exists(), "the old key is there yet");
    }
    for node in 0..3 {
        cluster.start(node)?;
    }
    let started = Instant::now();

    let target = cluster.target(0);
    let n2 = cluster.nodes()[1].name.clone();
    let sealed = "sealed: 1 of 2 custodians reachable";
    let refused =
        until("a client is told who is locked", LIMIT, || match Client::connect(&target, LIMIT) {
            Ok(_) => anyhow::bail!("one of two shares that are needed opened it"),
            // A node that has only just started has not heard of all others.
            Err(Error::Refused(why)) => {
                let told = why.contains(sealed) && why.contains(&format!("{n2} ({LOCKED})"));
                Ok(told.then_some(why))
            }
            Err(_) => Ok(None),
        })?;
    say(test, &format!("told {:?} after the start: {refused}", started.elapsed()));
    let told = format!("the custodian of {n2} is {LOCKED}");
    for (words, told) in [
        (&["status"][..], told.as_str()),
        (&["why"], &told),
        (&["key", "status"], LOCKED),
        (&["key", "custodians"], LOCKED),
    ] {
        let said = cluster.command(words)?;
        ensure!(said.contains(sealed) && said.contains(told), "{words:?}: {said}");
    }
    let error = cluster.command(&["key", "custodians", "--refresh"]).expect_err("two are locked");
    ensure!(format!("{error:#}").contains(&told), "{error:#}");

    // Nobody else is told a passphrase than the node itself.
    let tcp = ["key", "unlock", "--passphrase-file", &right, "--api", &cluster.nodes()[1].api];
    let error = smalti(&tcp, COMMAND_LIMIT)?.ok().expect_err("over TCP");
    ensure!(format!("{error:#}").contains("is a TCP port"), "{error:#}");
    let words = ["key", "unlock", "--passphrase-file", &wrong];
    let error = cluster.ask(1, &words).expect_err("another passphrase");
    ensure!(format!("{error:#}").contains("the passphrase is wrong"), "{error:#}");
    let error = cluster.ask(0, &words).expect_err("a key file");
    ensure!(format!("{error:#}").contains("not sealed under a passphrase"), "{error:#}");
    std::thread::sleep(REFRESH_AFTER.saturating_sub(started.elapsed()));
    ensure!(share_epoch(&cluster)? == before, "all got new shares, and none was lost");

    let unlocking = Instant::now();
    let said = cluster.command(&["key", "unlock", "--node", &n2, "--passphrase-file", &right])?;
    ensure!(said == format!("{n2} is unlocked\n"), "{said}");
    let unlocked = Instant::now();
    until("the volume is opened without a command", LIMIT, || {
        Ok(Client::connect(&target, LIMIT).ok().map(drop))
    })?;
    let took = unlocked.elapsed();
    say(test, &format!("unlocked in {:?}, served {took:?} later", unlocked - unlocking));
    ensure!(took < OPENS_WITHIN, "{took:?}");
    image.verify(&cluster, 2)?;

    // All that there are in the folder, the one that is open among them.
    let said = cluster.command(&["key", "unlock", "--passphrase-file", &right])?;
    let n3 = &cluster.nodes()[2].name;
    ensure!(said == format!("{n2} was not locked\n{n3} is unlocked\n"), "{said}");
    cluster.wait_ok()?;
    cluster.command(&["key", "verify"])?;
    ensure!(share_epoch(&cluster)? == before, "all got new shares, and none was lost");
    for node in 0..3 {
        ensure!(cluster.logged(node, "correct horse")? == 0, "a log has the passphrase");
    }
    cluster.finish()
}

fn secret_file(cluster: &Cluster, name: &str, text: &str) -> Result<PathBuf> {
    let path = cluster.scratch()?.join(name);
    fs::write(&path, format!("{text}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(path)
}

fn text(path: &std::path::Path) -> Result<String> {
    Ok(path.to_str().context("a path in UTF-8")?.to_owned())
}

fn share_epoch(cluster: &Cluster) -> Result<u64> {
    let report = cluster.facts(&["key", "status"])?;
    report["resharing"]["share_epoch"].as_u64().context("the share epoch")
}
