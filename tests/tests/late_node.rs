//! After a power cut a node that is later than the others may be the one that remembers what their
//! disks had not written: nobody goes on without it at once. After a crash of processes they do.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use smalti_tests::cluster::{COMMAND_LIMIT, smalti};
use smalti_tests::files::walk;
use smalti_tests::pattern::seed;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};
use twox_hash::XxHash3_128;

const LIMIT: Duration = Duration::from_secs(120);

/// Longer than leases and any takeover without the wait, by far.
const STALLED_FOR: Duration = Duration::from_secs(8);

#[test]
fn a_late_node_is_waited_for_after_a_power_cut() -> Result<()> {
    let test = "a_late_node_is_waited_for_after_a_power_cut";
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    let load = Load::start(LoadConfig::new(cluster.targets(), 0, seed()));
    load.progress(100, LIMIT)?;
    let mut data = load.finish()?;

    let served = |cluster: &Cluster, what: &str| {
        cluster.wait_status(what, LIMIT, |s| s.volumes.iter().all(|v| v.health == "degraded"))
    };
    cluster.kill_together(&[0, 1, 2])?;
    cluster.start(0)?;
    cluster.start(1)?;
    served(&cluster, "two nodes go on alone after a crash")?;
    data.verify(&cluster.target(0))?;
    cluster.start(2)?;
    cluster.wait_ok()?;

    cluster.kill_together(&[0, 1, 2])?;
    for node in 0..3 {
        another_boot(&cluster.data_dir(node)?)?;
        let config = cluster.config(node)?;
        let text = fs::read_to_string(&config)?;
        // An hour: who waits does not stop to.
        let text = text.replace("power_timeout_ms = 30000", "power_timeout_ms = 3600000");
        ensure!(text.contains("power_timeout_ms = 3600000"), "no such line in {text}");
        fs::write(&config, text)?;
    }
    cluster.start(0)?;
    cluster.start(1)?;
    cluster.wait_status("two nodes are up", LIMIT, |s| {
        s.nodes.iter().filter(|node| node.state == "up").count() == 2 && s.raft.leader.is_string()
    })?;
    let end = Instant::now() + STALLED_FOR;
    while Instant::now() < end {
        let status = cluster.status()?;
        ensure!(status.health == "stalled", "served without the third: {}", status.brief());
    }
    let dir = cluster.dir();
    let why = smalti(&["why", "--dir", &dir.to_string_lossy()], COMMAND_LIMIT)?;
    ensure!(why.stdout.contains("power_timeout_ms"), "why says {}", why.stdout);
    say(test, &format!("waited for {STALLED_FOR:?}"));
    cluster.start(2)?;
    cluster.wait_ok()?;
    for node in 0..3 {
        data.verify(&cluster.target(node))?;
    }
    cluster.finish()
}

/// Makes the labels of all stores in a folder say that the machine was started anew since.
fn another_boot(folder: &Path) -> Result<()> {
    let labels = walk(folder)?.into_iter().filter(|path| path.ends_with("STORE"));
    let mut found = 0;
    for path in labels {
        let text = fs::read_to_string(&path)?;
        let (content, _) = text.rsplit_once("check ").context("a label ends in a checksum")?;
        let boot = content.lines().find(|line| line.starts_with("boot "));
        let boot = boot.with_context(|| format!("{} names no boot", path.display()))?;
        let content = content.replace(boot, "boot 00000000-0000-0000-0000-000000000001");
        let check = XxHash3_128::oneshot(content.as_bytes()) & u128::from(u64::MAX);
        fs::write(&path, format!("{content}check {check:016x}\n"))?;
        found += 1;
    }
    ensure!(found > 0, "{} has no store", folder.display());
    Ok(())
}
