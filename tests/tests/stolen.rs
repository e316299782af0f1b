//! Attacks on keys: what somebody makes of stolen folders, and what he finds in the memory of nodes.
//!
//! Every test has its positive control: the same thief gets everything where he should.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use smalti_tests::cluster::HEAL_LIMIT;
use smalti_tests::files::walk;
use smalti_tests::memory::{Found, Needles, scan};
use smalti_tests::nbd::{Client, FUA};
use smalti_tests::pattern::{BLOCK, PIECE, Seen, look, piece, seed};
use smalti_tests::process::{sh, until};
use smalti_tests::report::{say, skip};
use smalti_tests::thief::{Loot, Thief};
use smalti_tests::{Cluster, Spec};

const LIMIT: Duration = Duration::from_secs(60);
/// What is written, in MiB.
const WRITTEN: u64 = 16;
const BLOCKS: usize = WRITTEN as usize * PIECE / BLOCK;
/// Nothing is left in memory so long after the last client has gone.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(30);
/// A user that owns nothing.
const NOBODY: u32 = 65534;

/// Threat: stolen disks, and decrypting offline with fewer than the threshold's nodes.
#[test]
fn one_stolen_node_opens_nothing_and_two_open_everything() -> Result<()> {
    let test = "one_stolen_node_opens_nothing_and_two_open_everything";
    let seed = told_seed(test);
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    write(&cluster, 0, seed)?;
    cluster.down()?;

    let mut all = 0;
    for node in 0..3 {
        let mut thief = Thief::default();
        thief.take(&folder(&cluster, node))?;
        let secrets = thief.secrets()?;
        ensure!(secrets.is_empty(), "node {node} alone opens {:?}", secrets.keys());
        ensure!(thief.keys()?.is_empty(), "node {node} alone gives keys");
        let loot = thief.open_records(&folder(&cluster, node))?;
        let (seen, opened) = loot.count();
        ensure!(opened == 0, "node {node} alone opens {opened} of {seen} records");
        all += seen;
        say(test, &format!("node {node} alone: {seen} records, none opens"));
    }
    ensure!(all >= BLOCKS as u64, "{all} records of {BLOCKS} blocks");
    for (a, b) in [(0, 1), (1, 2), (2, 0)] {
        let mut thief = Thief::default();
        thief.take(&folder(&cluster, a))?;
        thief.take(&folder(&cluster, b))?;
        ensure!(thief.secrets()?.len() == 2, "two of three open {:?}", thief.secrets()?.keys());
        let mut found = Clear::default();
        for node in [a, b] {
            let loot = thief.open_records(&folder(&cluster, node))?;
            let (seen, opened) = loot.count();
            ensure!(seen == opened, "{opened} of {seen} records open");
            found.take(&loot, seed)?;
        }
        say(test, &format!("nodes {a} and {b}: {} of {BLOCKS} blocks", found.0.len()));
        // The other blocks follow from their parity, or lie in the third node's store, which is opened by what
        // these two gave.
        ensure!(!found.0.is_empty(), "no block is in the clear");
        let loot = thief.open_records(&folder(&cluster, 3 - a - b))?;
        found.take(&loot, seed)?;
        ensure!(found.0.len() == BLOCKS, "{} of {BLOCKS} blocks", found.0.len());
    }
    cluster.finish()
}

/// Threat: a share or a key of an ended key epoch, and an old copy of a store.
#[test]
fn an_old_copy_does_not_open_with_what_is_left_after_a_rotation() -> Result<()> {
    let test = "an_old_copy_does_not_open_with_what_is_left_after_a_rotation";
    let seed = told_seed(test);
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    write(&cluster, 0, seed)?;
    cluster.down()?;
    let old = copy(&cluster, 0, "old")?;
    {
        let mut thief = Thief::default();
        thief.take_maps(&old)?;
        take_all(&mut thief, &cluster)?;
        let (seen, opened) = thief.open_records(&old)?.of(1);
        ensure!(seen > 0 && seen == opened, "before: {opened} of {seen} records open");
        say(test, &format!("before the rotation: all {seen} records of the copy open"));
    }

    cluster.run_up()?;
    wait_whole(&cluster)?;
    let volume = volume_id(&cluster)?;
    cluster.command(&["key", "rotate", "v", "--wait"])?;
    until_no_shares(&cluster, &format!("{volume}-1-"))?;
    cluster.down()?;

    let mut thief = Thief::default();
    // With the log that the old wrapped keys are in, and without the shares and the key of then.
    thief.take_maps(&old)?;
    take_all(&mut thief, &cluster)?;
    ensure!(
        thief.secrets()?.len() == 2,
        "the master secret and the new one: {:?}",
        thief.secrets()?
    );
    let mut found = Clear::default();
    let mut left = 0;
    for node in 0..3 {
        let loot = thief.open_records(&folder(&cluster, node))?;
        let ((seen, opened), (seen_old, opened_old)) = (loot.of(2), loot.of(1));
        ensure!(seen > 0 && seen == opened, "{opened} of {seen} current records open");
        ensure!(opened_old == 0, "node {node}: {opened_old} old records of {seen_old} open");
        left += seen_old;
        found.take(&loot, seed)?;
    }
    ensure!(found.0.len() == BLOCKS, "{} of {BLOCKS} blocks in current records", found.0.len());
    let (seen, opened) = thief.open_records(&old)?.of(1);
    ensure!(seen > 0 && opened == 0, "{opened} of {seen} records of the old copy open");
    say(
        test,
        &format!(
            "none of {seen} records of the copy opens, nor of {left} that nobody took out yet"
        ),
    );
    cluster.finish()
}

/// Threat: the volume deleted.
#[test]
fn nothing_opens_a_volume_that_was_deleted() -> Result<()> {
    let test = "nothing_opens_a_volume_that_was_deleted";
    let seed = told_seed(test);
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    write(&cluster, 0, seed)?;
    cluster.down()?;
    let copies = (0..3).map(|node| copy(&cluster, node, "old")).collect::<Result<Vec<_>>>()?;
    {
        let mut thief = Thief::default();
        take_all(&mut thief, &cluster)?;
        let mut found = Clear::default();
        for copy in &copies {
            found.take(&thief.open_records(copy)?, seed)?;
        }
        ensure!(found.0.len() == BLOCKS, "before: {} of {BLOCKS} blocks", found.0.len());
    }

    cluster.run_up()?;
    wait_whole(&cluster)?;
    let volume = volume_id(&cluster)?;
    cluster.command(&["volume", "delete", "v", "--yes"])?;
    until_no_shares(&cluster, &format!("{volume}-"))?;
    cluster.down()?;

    let mut thief = Thief::default();
    take_all(&mut thief, &cluster)?;
    ensure!(thief.secrets()?.len() == 1, "only the master secret: {:?}", thief.secrets()?);
    for (node, copy) in copies.iter().enumerate() {
        thief.take_maps(copy)?;
        let (seen, opened) = thief.open_records(copy)?.count();
        ensure!(seen > 0 && opened == 0, "node {node}: {opened} of {seen} records open");
        say(test, &format!("none of {seen} records of node {node}'s copy opens"));
        let (left, opened) = thief.open_records(&folder(&cluster, node))?.count();
        ensure!(opened == 0, "node {node}: {opened} of {left} records that are left open");
    }
    cluster.finish()
}

/// Threat: keys in memory after the last client has gone. Plaintext as well.
#[test]
fn keys_and_plaintext_are_in_memory_only_while_a_client_is_attached() -> Result<()> {
    let test = "keys_and_plaintext_are_in_memory_only_while_a_client_is_attached";
    let seed = told_seed(test);
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    write(&cluster, 0, seed)?;
    let mut needles = Needles::default();
    for at in (0..WRITTEN * (PIECE / BLOCK) as u64).step_by(97) {
        needles.add(format!("plaintext of block {at}"), &block(seed, at)[64..]);
    }
    if scan(cluster.pid(0), &needles)?.is_none() {
        skip(test, "looking into the memory of other processes is not permitted here")?;
        return cluster.finish();
    }
    let none = "the client that wrote has gone";
    until_forgotten(test, none, &cluster, &needles)?;
    add_keys(&mut needles, &frozen(&cluster, "first")?)?;
    until_forgotten(test, "the volume was made, and written", &cluster, &needles)?;
    // The keys of the next epoch are made by the processes that are looked at.
    cluster.command(&["key", "rotate", "v", "--wait"])?;
    add_keys(&mut needles, &frozen(&cluster, "second")?)?;
    until_forgotten(test, "keys were made, and all records sealed with them", &cluster, &needles)?;

    // Keys of sessions are known of records, which lie in files once nodes have stopped.
    cluster.down()?;
    let mut thief = Thief::default();
    take_all(&mut thief, &cluster)?;
    let volumes = thief.volumes()?;
    let mut sessions = 0;
    for node in 0..3 {
        for session in thief.open_records(&folder(&cluster, node))?.sessions {
            needles.add("session key", &session.key(&volumes)?);
            sessions += 1;
        }
    }
    ensure!(sessions > 0, "no session keys");
    cluster.run_up()?;
    wait_whole(&cluster)?;
    until_forgotten(test, "nobody has come yet", &cluster, &needles)?;

    let mut client = Client::connect(&cluster.target(0), LIMIT)?;
    for at in 0..WRITTEN {
        let mut bytes = vec![0; PIECE];
        client.read(at * PIECE as u64, &mut bytes)?;
        ensure!(bytes == piece(seed, at), "piece {at} is another one");
        client.write(at * PIECE as u64, &bytes, FUA)?;
    }
    let gateway = cluster.coordinator()?;
    for node in 0..3 {
        let found = memory(&cluster, node, &needles)?;
        say(test, &format!("attached, node {node}: {}", brief(&found)));
        let has = |what: &str| found.iter().any(|hit| hit.name.contains(what));
        if node == gateway {
            // The control: keys are seen where they are.
            let mut keys: Vec<&str> = found.iter().map(|hit| hit.name.as_str()).collect();
            keys.retain(|name| name.starts_with("shard key") && name.ends_with("epoch k2"));
            keys.sort_unstable();
            keys.dedup();
            ensure!(keys.len() >= 64, "{} of 64 shard keys are found", keys.len());
            ensure!(has("session key") && has("place key"), "{}", brief(&found));
        } else {
            ensure!(!has("key"), "node {node} has keys: {}", brief(&found));
        }
        ensure!(!has("secret"), "node {node} has secrets: {}", brief(&found));
    }
    until_plaintext_is_seen(&cluster, gateway, client, &needles)?;
    until_forgotten(test, "the client has gone", &cluster, &needles)?;

    // Through a node that only passes on what the gateway's says.
    let other = (gateway + 1) % 3;
    let mut first = Client::connect(&cluster.target(gateway), LIMIT)?;
    let mut second = Client::connect(&cluster.target(other), LIMIT)?;
    let mut bytes = vec![0; PIECE];
    first.read(0, &mut bytes)?;
    second.read(PIECE as u64, &mut bytes)?;
    drop((first, second));
    until_forgotten(test, "two clients have gone", &cluster, &needles)?;
    cluster.finish()
}

/// Threat: keys in core dumps, or read by a debugger of the same user.
#[test]
fn nobody_but_root_looks_into_a_node_and_it_leaves_no_core() -> Result<()> {
    let test = "nobody_but_root_looks_into_a_node_and_it_leaves_no_core";
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    for node in 0..3 {
        let limits = fs::read_to_string(format!("/proc/{}/limits", cluster.pid(node)))?;
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        let core: Vec<&str> = core.context("a limit of cores")?.split_whitespace().collect();
        ensure!(core[4..6] == ["0", "0"], "node {node}: {core:?}");
        if cluster.logged(node, "memory is not locked")? == 0 {
            let status = fs::read_to_string(format!("/proc/{}/status", cluster.pid(node)))?;
            let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
            let locked = locked.and_then(|line| line.split_whitespace().next()).context("VmLck")?;
            ensure!(
                locked.parse::<u64>()? > 0,
                "node {node} does not say that memory is not locked"
            );
        }
    }
    if !rustix::process::geteuid().is_root() || sh(&["setpriv", "--version"], LIMIT).is_err() {
        // Everything of this user's own belongs to it, but what it may not look into.
        let owner = fs::metadata(format!("/proc/{}/environ", cluster.pid(0)))?.uid();
        ensure!(owner == 0, "the node's files in /proc belong to user {owner}");
        skip(test, "becoming another user needs root and setpriv")?;
        return cluster.finish();
    }
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    cluster.stop(2)?;
    let program = cluster.scratch()?.join("smalti");
    fs::copy(smalti_tests::cluster::program()?, &program)?;
    let home = cluster.dir().parent().context("a folder")?.to_owned();
    for path in [&home, &cluster.dir(), &cluster.scratch()?, &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    // All of it: a node keeps `cluster.json` current.
    sh(&["chown", "-R", "65534:65534", &cluster.dir().display().to_string()], LIMIT)?;
    let become_it =
        format!("shift; exec setpriv {} {} \"$@\"", nobody.join(" "), program.display());
    cluster.enter(2, ["sh", "-c", &become_it, "sh"].map(Into::into).to_vec());
    cluster.start(2)?;
    wait_whole(&cluster)?;

    let look = |pid: u32| {
        let path = format!("/proc/{pid}/environ");
        let words = [&["setpriv"], &nobody[..], &["cat", &path]].concat();
        sh(&words, LIMIT)
    };
    let pid = cluster.pid(2);
    let mut sleep = Sleep(
        Command::new("setpriv").args(nobody).args(["sleep", "60"]).stdin(Stdio::null()).spawn()?,
    );
    let other = sleep.0.id();
    until("the control is somebody else", LIMIT, || {
        Ok((fs::metadata(format!("/proc/{other}"))?.uid() == NOBODY).then_some(()))
    })?;
    ensure!(look(other).is_ok(), "the control: what is one's own can be looked into");
    sleep.end()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(status.contains("Uid:\t65534\t65534"), "the node runs as somebody else: {status}");
    let owner = fs::metadata(format!("/proc/{pid}/environ"))?.uid();
    ensure!(owner == 0, "the node's files in /proc belong to user {owner}");
    let error = look(pid).expect_err("its own user can look into the node");
    ensure!(format!("{error:#}").contains("Permission denied"), "{error:#}");
    say(test, "a node of another user is closed to that user");
    cluster.finish()
}

struct Sleep(Child);

impl Sleep {
    fn end(&mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

/// Blocks that were found in the clear.
#[derive(Default)]
struct Clear(BTreeSet<u64>);

impl Clear {
    fn take(&mut self, loot: &Loot, seed: u64) -> Result<()> {
        for (block, plaintext) in &loot.blocks {
            let seen = look(seed, *block, plaintext);
            ensure!(seen == Seen::Write(1), "block {block}: {seen:?}");
            self.0.insert(*block);
        }
        Ok(())
    }
}

/// Waits until every node is up and nothing lacks anything. Little room on this machine's disk is no matter.
fn wait_whole(cluster: &Cluster) -> Result<()> {
    let whole = cluster.wait_status("the cluster is whole", HEAL_LIMIT, |status| {
        let up = status.nodes.iter().all(|node| node.state == "up");
        up && status.volumes.iter().all(|it| it.health == "ok" && it.rows_behind == Some(0))
    });
    whole.map(drop)
}

fn told_seed(test: &str) -> u64 {
    let seed = seed();
    say(test, &format!("seed {seed}"));
    seed
}

fn write(cluster: &Cluster, node: usize, seed: u64) -> Result<()> {
    let mut client = Client::connect(&cluster.target(node), LIMIT)?;
    for at in 0..WRITTEN {
        client.write(at * PIECE as u64, &piece(seed, at), 0)?;
    }
    Ok(client.flush()?)
}

fn block(seed: u64, at: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    smalti_tests::pattern::fill(seed, at, 1, &mut bytes);
    bytes
}

fn folder(cluster: &Cluster, node: usize) -> PathBuf {
    cluster.nodes()[node].dir.clone()
}

/// A copy of a node's folder, which is not the node's any more.
fn copy(cluster: &Cluster, node: usize, name: &str) -> Result<PathBuf> {
    let to = cluster.scratch()?.join(format!("{name}{node}"));
    let from = folder(cluster, node).display().to_string();
    sh(&["cp", "-a", &from, &to.display().to_string()], LIMIT)?;
    Ok(to)
}

fn take_all(thief: &mut Thief, cluster: &Cluster) -> Result<()> {
    (0..3).try_for_each(|node| thief.take(&folder(cluster, node)))
}

/// Copies of all nodes that run, as they were at one moment.
fn frozen(cluster: &Cluster, name: &str) -> Result<Vec<PathBuf>> {
    use rustix::process::Signal;
    (0..3).try_for_each(|node| cluster.signal(node, Signal::STOP))?;
    let copies = (0..3).map(|node| copy(cluster, node, name)).collect();
    (0..3).try_for_each(|node| cluster.signal(node, Signal::CONT))?;
    copies
}

fn add_keys(needles: &mut Needles, folders: &[PathBuf]) -> Result<()> {
    let mut thief = Thief::default();
    folders.iter().try_for_each(|folder| thief.take(folder))?;
    let keys = thief.keys()?;
    for what in ["master secret", "wrapping secret", "master key", "wrapping key", "place key"] {
        ensure!(keys.iter().any(|(name, _)| name.starts_with(what)), "no {what} to look for");
    }
    for (name, key) in keys {
        needles.add(name, &key);
    }
    Ok(())
}

fn volume_id(cluster: &Cluster) -> Result<String> {
    let shown = cluster.facts(&["volume", "show", "v"])?;
    Ok(shown["id"].as_str().context("the volume has an id")?.to_owned())
}

/// Waits until no node has a share file whose name begins so.
fn until_no_shares(cluster: &Cluster, begin: &str) -> Result<()> {
    until("shares are destroyed", LIMIT, || {
        let mut left = 0;
        for node in cluster.nodes() {
            let is_share = |file: &Path| {
                let name = file.file_name().map(|name| name.to_string_lossy());
                name.is_some_and(|name| name.starts_with(begin) && name.ends_with(".share"))
            };
            left += walk(&node.dir)?.iter().filter(|file| is_share(file)).count();
        }
        Ok((left == 0).then_some(()))
    })
}

fn memory(cluster: &Cluster, node: usize, needles: &Needles) -> Result<Vec<Found>> {
    scan(cluster.pid(node), needles)?.context("memory that could be read can be no more")
}

/// Waits until no node has any of it in memory.
fn until_forgotten(test: &str, when: &str, cluster: &Cluster, needles: &Needles) -> Result<()> {
    let began = Instant::now();
    let mut last = Vec::new();
    let forgotten = until("nothing of it is in memory", FORGOTTEN_WITHIN, || {
        last.clear();
        for node in 0..3 {
            let found = memory(cluster, node, needles)?;
            if !found.is_empty() {
                last.push(format!("node {node}: {}", brief(&found)));
            }
        }
        Ok(last.is_empty().then_some(()))
    });
    forgotten.with_context(|| format!("{when}: {last:#?}"))?;
    let count = needles.len();
    say(test, &format!("{when}: none of {count} in any memory after {:?}", began.elapsed()));
    Ok(())
}

/// Reads until plaintext is seen in the gateway's memory, where it is for a moment only: the control for when it
/// is not.
fn until_plaintext_is_seen(
    cluster: &Cluster,
    gateway: usize,
    mut client: Client,
    needles: &Needles,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<()> {
            let mut bytes = vec![0; PIECE];
            for at in (0..WRITTEN).cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                client.read(at * PIECE as u64, &mut bytes)?;
            }
            drop(client);
            Ok(())
        });
        let seen = until("plaintext is seen while it is read", LIMIT, || {
            let found = memory(cluster, gateway, needles)?;
            Ok(found.iter().any(|hit| hit.name.starts_with("plaintext")).then_some(()))
        });
        stop.store(true, Ordering::Relaxed);
        reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        seen
    })
}

/// What was found, by kind and place.
fn brief(found: &[Found]) -> String {
    let mut kinds: BTreeMap<String, usize> = Default::default();
    for hit in found {
        let kind: String = hit.name.chars().filter(|c| !c.is_ascii_digit()).take(60).collect();
        let region = if hit.region.is_empty() { "memory" } else { &hit.region };
        *kinds.entry(format!("{kind} in {region}")).or_default() += 1;
    }
    format!("{kinds:?}")
}
