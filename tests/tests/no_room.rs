//! A rebuild for which there is no room: it takes what there is and no more, says so, and goes on by itself
//! once there is, whatever happens meanwhile.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use smalti_tests::image::Image;
use smalti_tests::mount::{self, SmallDisk};
use smalti_tests::pattern::{BLOCK, seed};
use smalti_tests::process::until;
use smalti_tests::report::{say, skip};
use smalti_tests::status::Status;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
/// MiB of the disk of the only node that could take what is lost.
const DISK: u32 = 2000;
/// MiB of it that are free when it is nearly full and far from full.
const NEARLY_FULL: u64 = 650;
/// MiB more with which there is room for a part of what is lost.
const SOME: u64 = 230;
/// Half of it lies on each of the three stores, which is what is lost.
const SIZE: usize = 512 << 20;
/// A node that is away for so long votes no more, if another one can; the default is ten minutes.
const DOWN_OUT: Duration = Duration::from_secs(20);
/// A rebuild has taken what it takes when nothing has changed for so long.
const STILL: Duration = Duration::from_secs(5);

/// A file that leaves so much of a disk free.
struct Ballast {
    file: PathBuf,
}

impl Ballast {
    fn on(disk: &Path) -> Self {
        Self { file: disk.join("ballast") }
    }

    /// Leaves so many MiB free, and never more in between.
    fn leave(&self, mib: u64) -> Result<()> {
        let folder = self.file.parent().context("a folder")?;
        let file = OpenOptions::new().create(true).append(true).open(&self.file)?;
        let stat = statvfs(folder)?;
        let all = stat.f_bavail * stat.f_frsize + file.metadata()?.len();
        let bytes = all.checked_sub(mib * MIB).context("more than there is")?;
        file.set_len(bytes)?;
        Ok(fallocate(&file, FallocateFlags::empty(), 0, bytes)?)
    }

    fn remove(&self) -> Result<()> {
        Ok(fs::remove_file(&self.file)?)
    }
}

/// How full a node's disk is; none while it was not heard for a moment.
fn level(cluster: &Cluster, node: usize) -> Result<Option<String>> {
    let nodes = cluster.facts(&["node", "list"])?;
    Ok(nodes[node]["stores"][0]["disk"]["state"].as_str().map(str::to_owned))
}

/// Waits until nothing has moved for a while though something should; tells how many slots the node has.
fn settled(cluster: &Cluster, node: usize) -> Result<u64> {
    let mut last = u64::MAX;
    let mut since = Instant::now();
    let what = "what has room has moved, and the rest is stuck";
    until(what, LIMIT, || {
        let status = cluster.status()?;
        let slots = cluster.slots()?[node];
        let level = level(cluster, node)?;
        ensure!(level.as_deref() != Some("full"), "a rebuild filled the disk");
        let rests = status.moves.moving == 0 && status.moves.stuck > 0;
        if slots != last || !rests || level.is_none() {
            (last, since) = (slots, Instant::now());
        }
        Ok((since.elapsed() > STILL).then_some(slots))
    })
}

#[test]
fn a_rebuild_takes_no_more_than_there_is_room_for() -> Result<()> {
    let test = "a_rebuild_takes_no_more_than_there_is_room_for";
    if let Some(reason) = mount::missing() {
        return skip(test, &reason);
    }
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let geometry = Some((2, 1));
    let mut cluster = Cluster::up(Spec { geometry, ..Spec::three(test, "576M") })?;
    cluster.retune("down_out_ms", DOWN_OUT.as_millis().try_into()?)?;
    let image = Image::write(&cluster, SIZE, 0, seed)?;
    let disk = SmallDisk::mount(DISK)?;
    let ballast = Ballast::on(disk.path());
    // Nearly full from the beginning, so it takes no share.
    ballast.leave(NEARLY_FULL)?;
    let spare = cluster.join(&disk.path().join("x4"), "x4")?;
    cluster.wait_status("the new node is up", LIMIT, |status| status.node_state("x4") == "up")?;
    let mut config = LoadConfig::new(cluster.targets()[..2].to_vec(), 0, seed);
    config.base = (SIZE / BLOCK) as u64;
    let load = Load::start(config);
    load.progress(100, LIMIT)?;

    let lost = 2;
    cluster.kill(lost)?;
    load.progress(50, LIMIT).context("a node is dead")?;
    // What a node makes for itself is there by now.
    ballast.leave(NEARLY_FULL)?;
    let is_near = || Ok((level(&cluster, spare)?.as_deref() == Some("near_full")).then_some(()));
    until("the disk is nearly full", LIMIT, is_near)?;
    ensure!(settled(&cluster, spare)? == 0, "slots moved to a disk that is nearly full");
    let why = cluster.command(&["why"])?;
    ensure!(why.contains("no other store has room") && why.contains("free space"), "{why}");

    // Room for a part of it: 256 MiB are lost.
    ballast.leave(NEARLY_FULL + SOME)?;
    let some = settled(&cluster, spare)?;
    let left = cluster.slots()?[lost];
    say(test, &format!("{some} slots have room, {left} have not"));
    ensure!(some > 0, "nothing has moved though there is room for a part");
    ensure!(left > 0, "all has moved: there was room for it");
    let why = cluster.command(&["why"])?;
    ensure!(why.contains("no other store has room"), "{why}");
    load.progress(50, LIMIT).context("a part is rebuilt")?;

    // Room for all, and in the middle of it every node dies.
    ballast.remove()?;
    let moves = |status: &Status| status.moves.moving > 0;
    // Eight slots at a time: more than that many are left, so some are when it begins.
    ensure!(left > 8, "{left} slots are rebuilt too soon");
    cluster.wait_status("the rest is being rebuilt", LIMIT, moves)?;
    load.let_go();
    let errors = load.server_errors();
    cluster.kill_together(&[0, 1, spare])?;
    ensure!(errors == 0, "{errors} requests were answered with an error");
    let mut loaded = load.finish()?;
    for node in [spare, 1, 0] {
        cluster.start(node)?;
    }
    until("its slots are elsewhere", LIMIT, || {
        // No answer before a majority is back.
        let slots = cluster.slots().ok();
        Ok(slots.and_then(|slots| (slots[lost] == 0).then_some(())))
    })?;
    say(test, &format!("all died with up to {left} slots left, rebuilt once they were back"));
    let voters = || -> Result<Option<()>> {
        let nodes = cluster.facts(&["node", "list"])?;
        let votes = |node: usize| nodes[node]["voter"] == true;
        Ok((votes(spare) && !votes(lost)).then_some(()))
    };
    until("another one votes instead", LIMIT, voters)?;
    // What was rebuilt is enough without one of the others. The dead one is back for its key share alone.
    cluster.command(&["node", "set", "n3", "--weight", "0"])?;
    cluster.start(lost)?;
    cluster.wait_ok()?;
    ensure!(cluster.slots()?[lost] == 0, "it took slots");
    cluster.kill(1)?;
    image.verify(&cluster, spare).context("through the one that was too full")?;
    loaded.verify(&cluster.target(0))?;
    cluster.start(1)?;
    cluster.wait_ok()?;
    image.verify(&cluster, lost)?;
    // It is none of those that `smalti down` stops.
    cluster.stop(spare)?;
    cluster.finish()
}
