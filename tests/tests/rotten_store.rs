//! Flipped bytes in the files of a stopped store: never returned, rebuilt from the others, mended.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smalti_tests::cluster::{COMMAND_LIMIT, smalti};
use smalti_tests::files;
use smalti_tests::image::Image;
use smalti_tests::pattern::{BLOCK, seed};
use smalti_tests::process::until;
use smalti_tests::report::say;
use smalti_tests::status::VolumeStatus;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(240);
/// One byte in so many is flipped: in about every third record.
const EVERY: u64 = 12_000;
/// A few of all records.
const SELDOM: u64 = 1 << 20;
/// Of a part of the groups.
const RARELY: u64 = 1 << 21;
/// Slots of a volume that move at once.
const AT_ONCE: u64 = 8;
/// The same in tables.
const TABLES_EVERY: u64 = 50_000;

#[test]
fn rotten_store() -> Result<()> {
    let test = "rotten_store";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "128M"))?;
    let image = Image::write(&cluster, 128 << 20, 0, seed)?;
    // Stopped in order, the store leaves everything in its tables and blob files.
    cluster.down()?;
    let mut random = seed;
    let flipped = rot(&cluster, 1, &mut random, EVERY)?;
    ensure!(flipped > 1000, "only {flipped} bytes flipped");
    say(test, &format!("{flipped} bytes flipped in the records of node 1"));
    cluster.run_up()?;
    for node in 0..3 {
        image.verify(&cluster, node)?;
    }
    let status = cluster.wait_status("all is repaired", LIMIT, |status| {
        let volume = &status.volumes[0];
        volume.health == "ok" && volume.rows_behind == Some(0)
    })?;
    say(test, &format!("read right through every node; {}", status.brief()));
    // A disk with a third of its records wrong is better replaced, and health is not `ok` before.
    let words = ["why", "--dir", &cluster.dir().display().to_string()];
    until("`why` tells of the disk", COMMAND_LIMIT, || {
        let why = smalti(&words, COMMAND_LIMIT)?;
        Ok(why.stdout.contains("wrong records, and lately again").then_some(()))
    })?;
    cluster.finish()
}

/// More than the parity can bear: errors and never other bytes, and the status tells.
#[test]
fn what_rots_on_two_stores_is_an_error_until_it_is_written_again() -> Result<()> {
    let test = "what_rots_on_two_stores_is_an_error_until_it_is_written_again";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "32M"))?;
    let image = Image::write(&cluster, 32 << 20, 0, seed)?;
    // Meanwhile the stores hear that all of it is decided: what a takeover finds lost stays so.
    image.verify(&cluster, 0)?;
    cluster.down()?;
    let mut random = seed;
    for node in [1, 2] {
        rot(&cluster, node, &mut random, EVERY)?;
    }
    cluster.run_up()?;
    for node in 0..3 {
        ensure!(image.read(&cluster, node).is_err(), "all was read through node {node}");
    }
    let status = cluster.wait_status("lost rows are told", LIMIT, |status| {
        status.health == "degraded" && status.volumes[0].rows_lost > 0
    })?;
    say(test, &status.brief());
    let why = smalti(&["why", "--dir", &cluster.dir().display().to_string()], COMMAND_LIMIT)?;
    ensure!(why.stdout.contains("lost or rotten"), "`why` says {}", why.stdout);
    // Whoever has a backup writes it back.
    image.write_again(&cluster, 0)?;
    for node in 0..3 {
        image.verify(&cluster, node)?;
    }
    let status = cluster.wait_ok()?;
    say(test, &format!("written again: {}", status.brief()));
    cluster.finish()
}

/// A table that can not be walked can not be put right row by row: once the others do without the store,
/// an empty one takes its place, and the same process goes on with it.
#[test]
fn a_store_with_damaged_tables_is_made_anew() -> Result<()> {
    let test = "a_store_with_damaged_tables_is_made_anew";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "128M"))?;
    let image = Image::write(&cluster, 64 << 20, 0, seed)?;
    // Stopped in order, the store leaves everything in its tables and blob files.
    cluster.down()?;
    cluster.run_up()?;
    let base = (64 << 20) / BLOCK as u64;
    let load = Load::start(LoadConfig { base, ..LoadConfig::new(cluster.targets(), 0, seed) });
    load.progress(100, LIMIT)?;
    let pid = cluster.pid(1);
    let store = cluster.nodes()[1].dir.join("data/store");
    let mut random = seed;
    let mut flipped = 0;
    for file in files::walk(&store)? {
        if file.extension().is_some_and(|extension| extension == "sst") {
            flipped += files::flip(&file, &mut random, TABLES_EVERY)?;
        }
    }
    ensure!(flipped > 10, "only {flipped} bytes flipped");
    scrub_until_aside(&cluster, 1)?;
    let status = cluster.wait_status("it is rebuilt", LIMIT, |status| status.health == "ok")?;
    say(test, &format!("{flipped} bytes flipped in the tables of node 1; {}", status.brief()));
    let runs = Path::new("/proc").join(pid.to_string()).is_dir();
    ensure!(runs && store.is_dir(), "process {pid} does not run node 1 any more");
    load.progress(100, LIMIT)?;
    load.finish()?.verify(&cluster.target(2))?;
    // With one of the others gone the new store is needed for every row.
    cluster.kill(2)?;
    for node in 0..2 {
        image.verify(&cluster, node)?;
    }
    cluster.start(2)?;
    cluster.wait_ok()?;
    cluster.finish()
}

/// A file of records that is gone can not be put right row by row either.
#[test]
fn a_store_that_lacks_a_file_is_made_anew() -> Result<()> {
    let test = "a_store_that_lacks_a_file_is_made_anew";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    let image = Image::write(&cluster, 32 << 20, 0, seed)?;
    cluster.down()?;
    let store = cluster.nodes()[1].dir.join("data/store");
    let blobs = files::walk(&store)?;
    let blob = blobs.iter().find(|file| file.extension().is_some_and(|ext| ext == "blob"));
    let blob = blob.context("a file of records")?;
    std::fs::remove_file(blob)?;
    cluster.run_up()?;
    scrub_until_aside(&cluster, 1)?;
    cluster.wait_status("it is rebuilt", LIMIT, |status| status.health == "ok")?;
    cluster.kill(2)?;
    for node in 0..2 {
        image.verify(&cluster, node)?;
    }
    // While a store is out of sync a scrub says that it was not read.
    cluster.wait_degraded()?;
    let words = ["scrub", "v", "--dir", &cluster.dir().display().to_string()];
    let scrub = smalti(&words, LIMIT)?;
    ensure!(
        scrub.ok().is_err_and(|e| format!("{e:#}").contains("slots of groups were not read")),
        "it says"
    );
    cluster.start(2)?;
    cluster.wait_ok()?;
    smalti(&words, LIMIT)?.ok().context("all was read")?;
    cluster.finish()
}

/// A rebuild that meets bad records of the others gives back all but those: they are told of, and are there
/// again once they are written.
#[test]
fn a_lost_disk_is_rebuilt_though_another_one_has_bad_records() -> Result<()> {
    let test = "a_lost_disk_is_rebuilt_though_another_one_has_bad_records";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "128M"))?;
    let image = Image::write(&cluster, 128 << 20, 0, seed)?;
    let mut random = seed;
    let flipped = rots_while_stopped(&mut cluster, 1, &mut random, SELDOM)?;
    cluster.kill(2)?;
    std::fs::remove_dir_all(cluster.data_dir(2)?.join("store"))?;
    cluster.start(2)?;
    let status = cluster.wait_status("all groups are whole", LIMIT, |status| {
        let full = |v: &VolumeStatus| v.groups_full == v.groups && v.rows_lost > 0;
        status.node_state("n3") == "up" && status.volumes.iter().all(full)
    })?;
    say(test, &format!("{flipped} bytes flipped; {}", status.brief()));
    let lost = status.volumes[0].rows_lost;
    ensure!(lost <= flipped, "{lost} rows are lost of {flipped} bytes");
    let why = cluster.command(&["why"])?;
    ensure!(why.contains("are lost or rotten"), "{why}");
    // Nothing else is: it is written anew, and the health is back though nobody has read it.
    image.write_again(&cluster, 0)?;
    cluster.wait_ok()?;
    reads_right_without(&mut cluster, 1, &image)?;
    cluster.finish()
}

/// A node that may come back has what can not be made without it. That keeps no other group from being
/// rebuilt elsewhere, however many such groups there are, and is there again when the node is.
#[test]
fn what_waits_for_a_node_that_is_away_holds_nothing_else_up() -> Result<()> {
    let test = "what_waits_for_a_node_that_is_away_holds_nothing_else_up";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "128M"))?;
    let image = Image::write(&cluster, 128 << 20, 0, seed)?;
    let mut random = seed;
    let flipped = rots_while_stopped(&mut cluster, 1, &mut random, RARELY)?;
    // It has no slots before one is lost.
    cluster.command(&["moves", "pause"])?;
    let spare = cluster.join(&cluster.scratch()?.join("x4"), "x4")?;
    cluster.command(&["node", "set", "x4", "--weight", "0"])?;
    cluster.command(&["moves", "resume"])?;
    cluster.wait_ok()?;
    cluster.kill(2)?;
    cluster.command(&["node", "set", "x4", "--weight", "100"])?;
    let mut left = 0;
    let status = cluster.wait_status("all that can be rebuilt is", LIMIT, |status| {
        let moves = &status.moves;
        let slots = cluster.slots().unwrap_or_default();
        left = slots.get(2).copied().unwrap_or_default();
        let moved = slots.get(spare).is_some_and(|slots| *slots > 0);
        let why = cluster.command(&["why"]).unwrap_or_default();
        let wait = why.contains(&format!("{left} slots lack rows that can not be made"));
        moved && wait && moves.waiting == 0 && moves.moving == left
    })?;
    say(test, &format!("{flipped} bytes flipped, {left} slots wait; {}", status.brief()));
    ensure!(left > AT_ONCE, "only {left} slots wait: nothing would be held up");
    cluster.start(2)?;
    cluster.wait_ok()?;
    reads_right_without(&mut cluster, 1, &image)?;
    cluster.stop(spare)?;
    cluster.finish()
}

/// What can not even be opened is made anew as well: the node starts without it, until the others do.
#[test]
fn a_store_that_is_damaged_at_its_start_is_made_anew() -> Result<()> {
    let test = "a_store_that_is_damaged_at_its_start_is_made_anew";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    let image = Image::write(&cluster, 32 << 20, 0, seed)?;
    let dir = |cluster: &Cluster, node: usize| cluster.nodes()[node].dir.join("data");
    // While the others serve, ...
    cluster.stop(1)?;
    std::fs::write(dir(&cluster, 1).join("store/STORE"), "smalti store\nformat 8\n")?;
    cluster.start(1)?;
    let is_aside = |cluster: &Cluster, node| dir(cluster, node).join("store.damaged").is_dir();
    until("the store is put aside", LIMIT, || Ok(is_aside(&cluster, 1).then_some(())))?;
    let status = cluster.wait_status("it is rebuilt", LIMIT, |status| status.health == "ok")?;
    say(test, &format!("label of node 1 cut; {}", status.brief()));
    // ... and while none has started yet.
    cluster.down()?;
    let tables = files::walk(&dir(&cluster, 2).join("store"))?;
    let table = tables.iter().find(|file| file.extension().is_some_and(|ext| ext == "sst"));
    std::fs::remove_file(table.context("a table")?)?;
    cluster.run_up()?;
    until("the store is put aside", LIMIT, || Ok(is_aside(&cluster, 2).then_some(())))?;
    cluster.wait_status("it is rebuilt", LIMIT, |status| status.health == "ok")?;
    // A disk that was hurt all over: what it agreed on with the others is gone as well.
    cluster.stop(0)?;
    std::fs::write(dir(&cluster, 0).join("store/STORE"), "")?;
    std::fs::remove_dir_all(dir(&cluster, 0).join("raft"))?;
    cluster.start(0)?;
    until("the store is put aside", LIMIT, || Ok(is_aside(&cluster, 0).then_some(())))?;
    cluster.wait_status("it is rebuilt", LIMIT, |status| status.health == "ok")?;
    reads_right_without(&mut cluster, 1, &image)?;
    cluster.finish()
}

/// Of what a store replayed when it was started only its list of files knows where it is. When that was cut
/// short after a crash, as by a disk that lied, metadata alone would be there, and be taken for all.
#[test]
fn a_store_whose_list_of_files_was_cut_short_after_a_crash_lacks_nothing() -> Result<()> {
    let test = "a_store_whose_list_of_files_was_cut_short_after_a_crash_lacks_nothing";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "128M"))?;
    let image = Image::write(&cluster, 96 << 20, 0, seed)?;
    for cut in [8, 300] {
        let store = cluster.nodes()[1].dir.join("data/store");
        let label = || std::fs::read_to_string(store.join("STORE"));
        let before = label()?;
        cluster.kill(1)?;
        cluster.start(1)?;
        until("the store was opened", LIMIT, || {
            let now = label()?;
            Ok((now != before && now.contains("state open ")).then_some(()))
        })?;
        cluster.wait_ok()?;
        cluster.kill(1)?;
        // What there was of it when the store was opened.
        let label = label()?;
        let begun = label.lines().find_map(|line| line.strip_prefix("state open "));
        let (name, len) = begun.and_then(|begun| begun.split_once(' ')).context("a manifest")?;
        let len: u64 = len.parse()?;
        let manifest = store.join("db").join(name);
        let manifest = std::fs::OpenOptions::new().write(true).open(manifest)?;
        manifest.set_len(len.checked_sub(cut).context("a longer manifest")?)?;
        cluster.start(1)?;
        // The second one is kept beside the first.
        let name = if cut == 8 { "data/store.damaged" } else { "data/store.damaged-2" };
        let aside = cluster.nodes()[1].dir.join(name);
        until("the store is put aside", LIMIT, || Ok(aside.is_dir().then_some(())))?;
        let status = cluster.wait_status("all is well", LIMIT, |status| status.health == "ok")?;
        say(test, &format!("{cut} of {len} bytes cut off; {}", status.brief()));
        reads_right_without(&mut cluster, 2, &image)?;
    }
    cluster.finish()
}

/// Has all of the volume read until a node has put its store aside.
fn scrub_until_aside(cluster: &Cluster, node: usize) -> Result<()> {
    let aside = cluster.nodes()[node].dir.join("data/store.damaged");
    let words = ["scrub", "v", "--dir", &cluster.dir().display().to_string()];
    until("the store is put aside", LIMIT, || {
        // It may be of the node that coordinates, and end then.
        let _ = smalti(&words, LIMIT)?;
        Ok(aside.is_dir().then_some(()))
    })
}

/// What the others have is all there is while one is away, which comes back then.
fn reads_right_without(cluster: &mut Cluster, away: usize, image: &Image) -> Result<()> {
    cluster.kill(away)?;
    for node in (0..3).filter(|node| *node != away) {
        image.verify(cluster, node)?;
    }
    cluster.start(away)?;
    cluster.wait_ok().map(drop)
}

/// Stops a node, flips bytes in its records, and has it in sync again: how many.
fn rots_while_stopped(
    cluster: &mut Cluster,
    node: usize,
    random: &mut u64,
    every: u64,
) -> Result<u64> {
    // What was stopped in order has nothing left to tell of its log.
    cluster.stop(node)?;
    let flipped = rot(cluster, node, random, every)?;
    // Else it may be found to have been away only when another one is lost.
    cluster.wait_degraded()?;
    cluster.start(node)?;
    cluster.wait_ok()?;
    Ok(flipped)
}

/// Flips bytes in all records of a stopped node, and answers how many.
fn rot(cluster: &Cluster, node: usize, random: &mut u64, every: u64) -> Result<u64> {
    let mut flipped = 0;
    for file in files::walk(&cluster.nodes()[node].dir.join("data/store"))? {
        if file.extension().is_some_and(|extension| extension == "blob") {
            flipped += files::flip(&file, random, every)?;
        }
    }
    Ok(flipped)
}
