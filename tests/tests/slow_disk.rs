//! A disk that answers, but far later than the others.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use smalti_tests::pattern::seed;
use smalti_tests::process::{sh, until};
use smalti_tests::report::{say, skip};
use smalti_tests::status::points_at;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);
/// A few steps at the pace of a slow disk let it in again; usually in eight seconds.
const TAKEN_BACK: Duration = Duration::from_secs(45);

/// How long a slow disk is done without in one test: far longer than what is judged meanwhile takes, also where
/// the other disks falter.
const OUT: Duration = Duration::from_secs(40);
/// In the other test it is to be back before that.
const OUT_LONGER: Duration = Duration::from_secs(TAKEN_BACK.as_secs() + 15);

/// Every sync of a process takes so much longer, as long as this lives.
struct SlowSyncs(Child);

impl SlowSyncs {
    const DELAY: Duration = Duration::from_millis(250);

    fn of(pid: u32) -> Result<Self> {
        let delay = format!("inject=fdatasync,fsync:delay_enter={}", Self::DELAY.as_micros());
        let mut command = Command::new("strace");
        command.args(["-f", "-q", "-e", "trace=fdatasync,fsync", "-e", &delay]);
        command.args(["-o", "/dev/null", "-p", &pid.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().context("strace")?))
    }
}

impl Drop for SlowSyncs {
    fn drop(&mut self) {
        let pid = self.0.id().to_string();
        // It lets go of what it watches only when asked to end.
        let asked = sh(&["kill", "-TERM", &pid], LIMIT);
        if asked.is_err() || self.0.wait().is_err() {
            // Nothing can be done about it here; the cluster's end will tell.
            eprintln!("strace {pid} does not end");
        }
    }
}

/// Whether syncs of a process can be made slow here.
fn missing() -> Option<String> {
    let program = ["-f", "-o", "/dev/null", "true"];
    let tried = Command::new("strace").args(program).stderr(Stdio::null()).status();
    match tried {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("strace can not be used: {status}")),
        Err(error) => Some(format!("no strace: {error}")),
    }
}

/// A cluster of 2+2 on four nodes under load, and a node that only stores.
fn four_under_load(test: &'static str, seed: u64, out: Duration) -> Result<(Cluster, Load, usize)> {
    let spec = Spec { nodes: 4, geometry: Some((2, 2)), ..Spec::three(test, "64M") };
    let mut cluster = Cluster::up(spec)?;
    cluster.retune("slow_out_ms", out.as_millis() as u64)?;
    let load = Load::start(LoadConfig::new(cluster.targets()[..1].to_vec(), 0, seed));
    load.progress(200, LIMIT)?;
    // Nodes 0 to 2 vote, and the load draws the seat to node 0: one of the others does not lead.
    let victim = until("one of the voters only stores", LIMIT, || {
        let status = cluster.status()?;
        let leads = |node| points_at(&status.raft.leader, node);
        let coordinates = |node| points_at(&status.volumes[0].coordinator, node);
        let only_stores = |node: &usize| {
            let node = &cluster.nodes()[*node];
            !leads(node) && !coordinates(node)
        };
        Ok((1..3).find(only_stores))
    })?;
    Ok((cluster, load, victim))
}

/// Whether a node has slots, and none of them is in sync.
fn is_out(cluster: &Cluster, node: usize) -> Result<bool> {
    let name = &cluster.nodes()[node].name;
    let volume = cluster.facts(&["volume", "show", "v"])?;
    let groups = volume["groups"].as_array().context("groups")?;
    let slots = groups.iter().flat_map(|group| group["slots"].as_array().into_iter().flatten());
    let here: Vec<_> = slots.filter(|slot| slot["node"] == *name).collect();
    Ok(!here.is_empty() && here.iter().all(|slot| slot["state"] != "insync"))
}

/// Makes the disk of a node slow, and waits until it is done without.
fn slow_and_out(
    test: &str,
    cluster: &Cluster,
    load: &mut Load,
    victim: usize,
) -> Result<SlowSyncs> {
    let name = &cluster.nodes()[victim].name;
    let pid = cluster.pid(victim);
    let began = Instant::now();
    let slow = SlowSyncs::of(pid)?;
    load.progress(5, LIMIT).context("with a slow disk")?;
    load.window();
    let out = || Ok(is_out(cluster, victim)?.then_some(()));
    until("the slow disk is done without", LIMIT, out)?;
    let held_up = load.window();
    say(test, &format!("slow for {:?} until {name} was out: {}", began.elapsed(), held_up.brief()));
    Ok(slow)
}

/// 2+2 on four nodes can spare one: it is done without, told of, and let in again.
#[test]
fn a_slow_disk_is_done_without_where_it_can_be_spared() -> Result<()> {
    let test = "a_slow_disk_is_done_without_where_it_can_be_spared";
    if let Some(reason) = missing() {
        return skip(test, &reason);
    }
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let (mut cluster, mut load, victim) = four_under_load(test, seed, OUT)?;
    let usual = load.window();
    let slow = slow_and_out(test, &cluster, &mut load, victim)?;
    let why = cluster.command(&["why"])?;
    let name = &cluster.nodes()[victim].name;
    ensure!(why.contains(name) && why.contains("the disk of its store"), "{why}");
    // What was under way when it was done without may have waited for it.
    load.progress(1, LIMIT)?;
    load.window();
    // The disk is as slow as before, and nobody notices.
    load.progress(200, LIMIT)?;
    let without = load.window();
    say(test, &format!("before: {}; without it: {}", usual.brief(), without.brief()));
    ensure!(is_out(&cluster, victim)?, "it was let in again before all was judged");
    // Not the longest one: other disks of this machine may falter. Half of the operations are writes.
    ensure!(
        without.percentile(95.0) < SlowSyncs::DELAY,
        "writes wait for the slow disk though it is out: {}",
        without.brief()
    );
    drop(slow);
    let errors = load.server_errors();
    let mut loaded = load.finish()?;
    ensure!(errors == 0, "{errors} requests were answered with an error");
    cluster.kill(victim)?;
    loaded.verify(&cluster.target(0)).context("without the slow one")?;
    cluster.start(victim)?;
    cluster.wait_status("it is let in again", LIMIT, |status| status.health == "ok")?;
    loaded.verify(&cluster.target(victim)).context("through the slow one")?;
    cluster.finish()
}

/// Another node dies while the slow one is done without: the cluster map and every write need the slow
/// one then, and both go on at its pace.
#[test]
fn a_slow_disk_is_taken_back_when_another_node_dies() -> Result<()> {
    let test = "a_slow_disk_is_taken_back_when_another_node_dies";
    if let Some(reason) = missing() {
        return skip(test, &reason);
    }
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let (mut cluster, mut load, victim) = four_under_load(test, seed, OUT_LONGER)?;
    let slow = slow_and_out(test, &cluster, &mut load, victim)?;
    // Nodes 0 to 2 vote. The one that serves clients stays.
    let other = if victim == 1 { 2 } else { 1 };
    let led = cluster.leader()? == other;
    load.window();
    let began = Instant::now();
    cluster.kill(other)?;
    load.progress(1, LIMIT).context("with one node dead and one slow")?;
    let paused = began.elapsed();
    load.progress(20, LIMIT)?;
    let after = load.window();
    say(test, &format!("leader died: {led}; first write after {paused:?}, then {}", after.brief()));
    ensure!(paused < TAKEN_BACK, "the first write took {paused:?}");
    drop(slow);
    load.progress(200, LIMIT)?;
    let errors = load.server_errors();
    let mut loaded = load.finish()?;
    ensure!(errors == 0, "{errors} requests were answered with an error");
    cluster.start(other)?;
    cluster.wait_ok()?;
    loaded.verify(&cluster.target(victim))?;
    cluster.finish()
}
