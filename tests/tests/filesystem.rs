//! A journalled filesystem on the volume survives the death of a node and checks clean.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smalti_tests::files;
use smalti_tests::mount::{self, Disk};
use smalti_tests::process::sh;
use smalti_tests::report::{say, skip};
use smalti_tests::{Cluster, Spec};

const LIMIT: Duration = Duration::from_secs(120);
const FILES: u64 = 24;
const BYTES: usize = 3_000_017;

#[test]
fn filesystem() -> Result<()> {
    let test = "filesystem";
    if let Some(reason) = mount::missing() {
        return skip(test, &reason);
    }
    let mut cluster = Cluster::up(Spec::three(test, "512M"))?;
    let scratch = cluster.scratch()?;
    let plain = scratch.join("plain");
    std::fs::create_dir(&plain)?;
    for i in 0..FILES {
        files::random_file(&plain.join(i.to_string()), BYTES, i)?;
    }

    let mut disk = Disk::attach(&cluster.uri(0), &scratch)?;
    sh(&["mkfs.ext4", "-q", "-F", disk.device()?], LIMIT)?;
    disk.mount()?;
    for victim in [1, 2] {
        let before = disk.path().join(format!("before{victim}"));
        copy(&plain, &before, 0..FILES / 2)?;
        cluster.kill(victim)?;
        copy(&plain, &before, FILES / 2..FILES)?;
        sh(&["sync", "-f", &disk.path().display().to_string()], LIMIT)?;
        cluster.wait_degraded()?;
        cluster.start(victim)?;
        cluster.wait_ok().with_context(|| format!("after node {victim} came back"))?;
        say(test, &format!("ext4 went on while node {victim} was dead"));
    }
    disk.unmount()?;
    let report = sh(&["e2fsck", "-fn", disk.device()?], LIMIT)?;
    say(test, report.lines().last().unwrap_or("e2fsck said nothing"));
    drop(disk);

    // A fresh look through another node, so that nothing comes from a cache.
    let mut disk = Disk::attach(&cluster.uri(1), &scratch)?;
    sh(&["e2fsck", "-fn", disk.device()?], LIMIT)?;
    disk.mount()?;
    for victim in [1, 2] {
        let folder = disk.path().join(format!("before{victim}"));
        ensure!(files::walk(&folder)?.len() as u64 == FILES, "files are missing");
        for i in 0..FILES {
            files::same(&plain.join(i.to_string()), &folder.join(i.to_string()), None)?;
        }
    }
    disk.unmount()?;
    drop(disk);
    say(test, "every file is the same through another node");
    cluster.finish()
}

fn copy(from: &Path, to: &PathBuf, which: std::ops::Range<u64>) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for i in which {
        let name = i.to_string();
        std::fs::copy(from.join(&name), to.join(&name)).with_context(|| format!("copy {name}"))?;
    }
    Ok(())
}
