//! A store that lies: what it had before, and what it has of other blocks, with metadata and hashes that agree.
//! Clients never get any of it. And disks that are put back together, of which no store can tell.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smalti_tests::image::Image;
use smalti_tests::nbd::Client;
use smalti_tests::pattern::{BLOCK, PIECE, Seen, look, next_random, piece, seed};
use smalti_tests::process::sh;
use smalti_tests::report::say;
use smalti_tests::rogue::Rogue;
use smalti_tests::status::Status;
use smalti_tests::thief::{Nonces, Thief};
use smalti_tests::{Cluster, Spec};

const LIMIT: Duration = Duration::from_secs(240);
const SIZE: usize = 32 << 20;

/// Threat: a store replays old records, every one that it has or some of them.
#[test]
fn old_rows_of_one_store_are_not_read_and_mended() -> Result<()> {
    let test = "old_rows_of_one_store_are_not_read_and_mended";
    old_rows(test, Spec::three(test, "32M"), &[2], &[1, 3])
}

/// The same of as many stores as there are parity slots.
#[test]
fn old_rows_of_two_stores_of_five_are_not_read_and_mended() -> Result<()> {
    let test = "old_rows_of_two_stores_of_five_are_not_read_and_mended";
    let spec = Spec { nodes: 5, geometry: Some((3, 2)), ..Spec::three(test, "32M") };
    old_rows(test, spec, &[1, 4], &[2])
}

/// One in so many row slots is put back, round after round.
fn old_rows(test: &'static str, spec: Spec, liars: &[usize], rounds: &[u64]) -> Result<()> {
    let mut random = seed();
    say(test, &format!("seed {random}"));
    let mut cluster = Cluster::up(spec)?;
    let nodes = cluster.nodes().len();
    Image::write(&cluster, SIZE, 0, random)?;
    cluster.down()?;
    let old = liars.iter().map(|node| copy(&cluster, *node)).collect::<Result<Vec<_>>>()?;

    for every in rounds {
        cluster.run_up()?;
        wait_whole(&cluster)?;
        let image = Image::write(&cluster, SIZE, 0, next_random(&mut random))?;
        // Meanwhile the stores hear that all of it is decided.
        image.verify(&cluster, 0)?;
        cluster.down()?;
        let mut count = 0;
        for (node, old) in liars.iter().zip(&old) {
            let folder = &cluster.nodes()[*node].dir;
            let (now, old) = (Rogue::open(folder, &store(folder))?, Rogue::open(folder, old)?);
            count += now.put_back(&old, |_| next_random(&mut random).is_multiple_of(*every))?;
            now.close()?;
            old.close()?;
        }
        ensure!(count > 500, "only {count} row slots are as they were");
        cluster.run_up()?;
        for node in 0..nodes {
            image.verify(&cluster, node)?;
        }
        // Parity that nobody reads too.
        cluster.command(&["scrub", "v"])?;
        let status = wait_whole(&cluster)?;
        let facts = cluster.facts(&["node", "list"])?;
        for node in 0..nodes {
            let faults = facts[node]["stores"][0]["faults"].as_u64().context("faults")?;
            ensure!(
                (faults > 0) == liars.contains(&node),
                "node {node} has {faults} faults: {facts}"
            );
        }
        let scrub = cluster.facts(&["scrub", "v"])?["v"].clone();
        ensure!(scrub["wrong"] == 0 && scrub["unclear"] == 0, "scrubbed again: {scrub}");
        say(test, &format!("{count} row slots put back, read right; {}", status.brief()));
        // What the liars have now is as good as anybody's.
        let others: Vec<_> = (0..nodes).filter(|node| !liars.contains(node)).collect();
        let gone = &others[..liars.len()];
        cluster.kill_together(gone)?;
        image.verify(&cluster, liars[0]).context("from what was mended")?;
        gone.iter().try_for_each(|node| cluster.start(*node))?;
        wait_whole(&cluster)?;
        cluster.down()?;
    }
    cluster.run_up()?;
    cluster.finish()
}

/// Waits until nothing is lacking. That disks are better replaced is told all the same.
fn wait_whole(cluster: &Cluster) -> Result<Status> {
    cluster.wait_status("all is mended", LIMIT, |status| {
        let up = status.nodes.iter().all(|node| node.state == "up");
        let volume = &status.volumes[0];
        up && volume.health == "ok" && volume.rows_behind == Some(0) && volume.rows_lost == 0
    })
}

/// Threat: a store answers with records of other blocks, and has made the hashes that belong to them.
#[test]
fn swapped_blocks_are_never_read() -> Result<()> {
    let test = "swapped_blocks_are_never_read";
    let mut random = seed();
    say(test, &format!("seed {random}"));
    let content = random;
    let mut cluster = Cluster::up(Spec::three(test, "32M"))?;
    write(&cluster, content)?;
    cluster.down()?;
    let folder = cluster.nodes()[1].dir.clone();
    let rogue = Rogue::open(&folder, &store(&folder))?;
    let swapped = rogue.swap(2, |_| next_random(&mut random).is_multiple_of(16))?.len();
    rogue.close()?;
    ensure!(swapped > 20, "only {swapped} records are in each other's places");

    cluster.run_up()?;
    for node in 0..3 {
        let mut client = Client::connect(&cluster.target(node), LIMIT)?;
        let (mut refused, mut block) = (0, vec![0; BLOCK]);
        for no in 0..(SIZE / BLOCK) as u64 {
            match client.read(no * BLOCK as u64, &mut block) {
                Ok(()) => {
                    let seen = look(content, no, &block);
                    ensure!(seen == Seen::Write(1), "block {no} through node {node}: {seen:?}");
                }
                // What does not open is an error.
                Err(_) => refused += 1,
            }
        }
        ensure!(
            refused == swapped,
            "{refused} of {swapped} blocks are refused through node {node}"
        );
    }
    say(test, &format!("{swapped} records swapped: errors for all of them through every node"));
    write(&cluster, content)?;
    let mut client = Client::connect(&cluster.target(2), LIMIT)?;
    for at in 0..(SIZE / PIECE) as u64 {
        let mut bytes = vec![0; PIECE];
        client.read(at * PIECE as u64, &mut bytes)?;
        ensure!(bytes == piece(content, at), "MiB {at} after it was written again");
    }
    drop(client);
    cluster.finish()
}

/// Threat: all disks are put back as they were, by backups or images of machines, and what is written then is sealed
/// as what was written before, with the same keys and counters.
#[test]
fn no_nonce_comes_twice_when_all_nodes_are_put_back() -> Result<()> {
    let test = "no_nonce_comes_twice_when_all_nodes_are_put_back";
    let mut random = seed();
    say(test, &format!("seed {random}"));
    let mut cluster = Cluster::up(Spec::three(test, "32M"))?;
    write(&cluster, next_random(&mut random))?;
    cluster.down()?;
    let folders: Vec<_> = cluster.nodes().iter().map(|node| node.dir.clone()).collect();
    let backup = cluster.scratch()?.join("backup");
    let put = |from: &Path, to: &Path| {
        let (from, to) = (from.display().to_string(), to.display().to_string());
        sh(&["cp", "-a", &from, &to], LIMIT).map(drop)
    };
    std::fs::create_dir(&backup)?;
    for (no, folder) in folders.iter().enumerate() {
        put(folder, &backup.join(no.to_string()))?;
    }
    let mut all = nonces(&folders)?;
    let before = all.len();
    ensure!(before >= SIZE / BLOCK, "{before} records of {} blocks", SIZE / BLOCK);
    for round in 1..=2 {
        cluster.run_up()?;
        cluster.wait_ok()?;
        write(&cluster, next_random(&mut random))?;
        if round == 2 {
            // A gateway that ends in the middle of its work begins anew as well.
            let coordinator = cluster.coordinator()?;
            cluster.kill(coordinator)?;
            cluster.wait_degraded()?;
            cluster.start(coordinator)?;
            cluster.wait_ok()?;
            write(&cluster, next_random(&mut random))?;
        }
        cluster.down()?;
        let written = nonces(&folders)?;
        ensure!(written.len() >= before + SIZE / BLOCK, "{} records", written.len());
        let again = all.add(written);
        ensure!(again == 0, "{again} nonces were used again in round {round}");
        for (no, folder) in folders.iter().enumerate() {
            std::fs::remove_dir_all(folder)?;
            put(&backup.join(no.to_string()), folder)?;
        }
    }
    say(test, &format!("{} records, each with a nonce and a key of its own", all.len()));
    cluster.run_up()?;
    cluster.wait_ok()?;
    cluster.finish()
}

/// All nonces in the stores of a cluster that is stopped, with the keys that they were used under.
fn nonces(folders: &[PathBuf]) -> Result<Nonces> {
    let mut thief = Thief::default();
    folders.iter().try_for_each(|folder| thief.take(folder))?;
    let mut all = Nonces::default();
    for folder in folders {
        let loot = thief.open_records(folder)?;
        let (seen, opened) = loot.count();
        ensure!(seen == opened, "{opened} of {seen} records open");
        let again = all.add(loot.nonces);
        ensure!(again == 0, "{again} nonces were used twice");
    }
    Ok(all)
}

fn write(cluster: &Cluster, content: u64) -> Result<()> {
    let mut client = Client::connect(&cluster.target(0), LIMIT)?;
    for at in 0..(SIZE / PIECE) as u64 {
        client.write(at * PIECE as u64, &piece(content, at), 0)?;
    }
    Ok(client.flush()?)
}

fn store(folder: &Path) -> PathBuf {
    folder.join("data/store")
}

fn copy(cluster: &Cluster, node: usize) -> Result<PathBuf> {
    let to = cluster.scratch()?.join(format!("old{node}"));
    let from = store(&cluster.nodes()[node].dir).display().to_string();
    sh(&["cp", "-a", &from, &to.display().to_string()], LIMIT)?;
    Ok(to)
}
