//! What lies where follows who is there: slots of a dead node are rebuilt on others, a new share is
//! taken and a drained node emptied, while clients go on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use smalti_tests::cluster::smalti;
use smalti_tests::image::Image;
use smalti_tests::pattern::{BLOCK, seed};
use smalti_tests::process::until;
use smalti_tests::report::say;
use smalti_tests::status::{Status, VolumeStatus};
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);
/// A store that is away for so long is rebuilt; the default is ten minutes.
const DOWN_OUT: Duration = Duration::from_secs(10);

#[test]
fn slots_of_a_dead_node_are_rebuilt_by_themselves() -> Result<()> {
    let test = "slots_of_a_dead_node_are_rebuilt_by_themselves";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let geometry = Some((2, 1));
    let mut cluster = Cluster::up(Spec { nodes: 5, geometry, ..Spec::three(test, "128M") })?;
    let mut load = Load::start(LoadConfig::new(cluster.targets(), 0, seed));
    load.progress(200, LIMIT)?;
    load.prefer(0);
    let had = cluster.slots()?;

    cluster.kill(4)?;
    let killed = Instant::now();
    load.progress(50, LIMIT).context("a node is dead")?;
    let rebuilt = || Ok((cluster.slots()?[4] == 0).then_some(()));
    until("its slots are elsewhere", LIMIT, rebuilt)?;
    load.progress(100, LIMIT).context("its slots have moved")?;
    say(
        test,
        &format!(
            "{} slots rebuilt {:?} after the kill: {}",
            had[4],
            killed.elapsed(),
            load.window().brief()
        ),
    );

    // What the dead node had is not needed: another one may die now.
    load.prefer(1);
    cluster.kill(2)?;
    load.progress(100, LIMIT).context("another node is dead")?;
    let errors = load.server_errors();
    let mut loaded = load.finish()?;
    ensure!(errors == 0, "{errors} requests were answered with an error");
    for node in [0, 1, 3] {
        loaded.verify(&cluster.target(node)).with_context(|| format!("through node {node}"))?;
    }
    // Back with what they had, they delete that, and take their share again.
    cluster.start(2)?;
    cluster.start(4)?;
    until("all have their share", LIMIT, || cluster.at_rest())?;
    let has = cluster.slots()?;
    say(test, &format!("slots before {had:?}, after {has:?}"));
    ensure!(has.iter().all(|slots| slots.abs_diff(has[0]) <= 2), "{has:?}");
    loaded.verify(&cluster.target(4)).context("through the one that was dead")?;
    cluster.finish()
}

#[test]
fn nodes_take_their_share_and_give_it_back_while_clients_go_on() -> Result<()> {
    let test = "nodes_take_their_share_and_give_it_back_while_clients_go_on";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let geometry = Some((2, 1));
    let mut cluster = Cluster::up(Spec { nodes: 6, geometry, ..Spec::three(test, "128M") })?;
    let mut load = Load::start(LoadConfig::new(cluster.targets(), 0, seed));
    load.progress(50, LIMIT)?;
    load.prefer(0);

    for (words, reason) in [
        (&["node", "drain", "n9"][..], "no node n9"),
        (&["node", "set", "n1", "--weight", "10001"][..], "10001"),
        (&["node", "set", "n1", "--domain", "-"][..], "is not a name"),
        (&["node", "remove", "n6"][..], "n6 runs"),
        (&["what-if", "stop", "n9"][..], "no node n9"),
    ] {
        let error = cluster.command(words).err().context("it makes no sense")?;
        ensure!(format!("{error:#}").contains(reason), "{error:#}");
    }
    // As if there were three nodes.
    for node in ["n4", "n5", "n6"] {
        cluster.command(&["node", "set", node, "--weight", "0"])?;
    }
    until("three have all", LIMIT, || cluster.at_rest())?;
    let three = cluster.slots()?;
    ensure!(three[3..].iter().all(|slots| *slots == 0), "{three:?}");
    let report = cluster.facts(&["what-if", "stop", "n1"])?;
    ensure!(report["safe"] == true && report["volumes"][0]["spare"] == 0, "{report}");
    let report = cluster.facts(&["what-if", "stop", "n1", "n2"])?;
    ensure!(report["safe"] == false && report["volumes"][0]["writes"] == false, "{report}");

    // Three more get their share; one of them is killed meanwhile, and one of the old ones.
    load.window();
    for node in ["n4", "n5", "n6"] {
        cluster.command(&["node", "set", node, "--weight", "100"])?;
    }
    until("slots move", LIMIT, || Ok(cluster.slots()?[3..].iter().any(|s| *s > 0).then_some(())))?;
    for node in [4, 1] {
        cluster.kill(node)?;
        load.progress(20, LIMIT).context("a node is dead")?;
        cluster.start(node)?;
    }
    until("six share", LIMIT, || cluster.at_rest())?;
    load.progress(50, LIMIT)?;
    let six = cluster.slots()?;
    say(test, &format!("three have {three:?}, six have {six:?}: {}", load.window().brief()));
    ensure!(six.iter().all(|slots| slots.abs_diff(six[0]) <= 2), "{six:?}");

    // Paused, nothing begins; then three leave.
    cluster.command(&["moves", "pause"])?;
    cluster.command(&["node", "drain", "n6", "--no-wait"])?;
    until("what is to move waits", LIMIT, || {
        let moves = &cluster.facts(&["status"])?["moves"];
        Ok((moves["paused"] == true && moves["waiting"] == six[5]).then_some(()))
    })?;
    ensure!(cluster.slots()? == six, "something moved");
    cluster.command(&["moves", "resume"])?;
    for (index, node) in [(5, "n6"), (4, "n5"), (3, "n4")] {
        let said = cluster.command(&["node", "drain", node])?;
        ensure!(said.contains("can be stopped"), "{said}");
        let report = cluster.facts(&["what-if", "stop", node])?;
        ensure!(report["safe"] == true, "{report}");
        cluster.stop(index)?;
        load.progress(20, LIMIT).context("an empty node is stopped")?;
        say(test, said.trim());
    }
    let removed = cluster.command(&["node", "remove", "n6"])?;
    say(test, removed.trim());
    let status = cluster.facts(&["status"])?;
    ensure!(status["nodes"].as_array().map(Vec::len) == Some(5), "{status}");
    // Two of five custodians are stopped with them, and three are needed: it is said before.
    until("n1 is known to be needed", LIMIT, || {
        let report = cluster.facts(&["what-if", "stop", "n1"])?;
        let volume = &report["volumes"][0];
        Ok((report["custody"] == false && volume["writes"] == true).then_some(()))
    })?;
    cluster.start(3)?;
    cluster.start(4)?;
    until("nothing moves back", LIMIT, || cluster.at_rest())?;
    let three = cluster.slots()?;
    ensure!(three[3..].iter().all(|slots| *slots == 0), "{three:?}");
    // Nor does a new volume get slots there.
    let wide = ["volume", "create", "w", "--size", "16M", "--data", "3", "--parity", "2"];
    let error = cluster.command(&wide).err().context("two of five are to be emptied")?;
    ensure!(format!("{error:#}").contains("to be emptied, or of weight 0: n4, n5"), "{error:#}");
    let made = cluster.facts(&["volume", "create", "w", "--size", "16M"])?;
    ensure!((made["data"] == 2) && (made["parity"] == 1), "{made}");
    let four = cluster.slots()?;
    ensure!(four[3..].iter().all(|slots| *slots == 0), "{four:?}");
    cluster.command(&["volume", "delete", "w", "--yes"])?;
    load.prefer(1);
    cluster.signal(0, Signal::KILL)?;
    load.progress(50, LIMIT).context("one of three is dead")?;
    cluster.wait_gone(0)?;
    cluster.start(0)?;
    load.progress(50, LIMIT)?;
    let errors = load.server_errors();
    let mut loaded = load.finish()?;
    ensure!(errors == 0, "{errors} requests were answered with an error");
    loaded.verify(&cluster.target(2))?;
    cluster.finish()
}

/// A drain that can not end before a dead node is back says so, and ends by itself then.
#[test]
fn a_drain_says_what_it_waits_for() -> Result<()> {
    let test = "a_drain_says_what_it_waits_for";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let geometry = Some((2, 2));
    let mut cluster = Cluster::up(Spec { nodes: 6, geometry, ..Spec::three(test, "64M") })?;
    let load = Load::start(LoadConfig::new(cluster.targets()[..1].to_vec(), 0, seed));
    load.progress(100, LIMIT)?;
    cluster.kill(2)?;
    cluster.wait_degraded()?;

    let dir = cluster.dir().display().to_string();
    let drain = smalti(&["node", "drain", "n6", "--dir", &dir], LIMIT)?;
    ensure!(!drain.status.success(), "{}", drain.stdout);
    ensure!(
        drain.stderr.contains("nothing has moved") && drain.stderr.contains("kept twice"),
        "{}",
        drain.stderr
    );
    let why = cluster.command(&["why"])?;
    ensure!(why.contains("their old stores keep them as well"), "{why}");
    let waits = cluster.slots()?;
    ensure!(waits[5] > 0, "{waits:?}");

    cluster.start(2)?;
    let said = cluster.command(&["node", "drain", "n6"])?;
    ensure!(said.contains("n6 is empty and can be stopped"), "{said}");
    // Removed as soon as it has ended: it need not count as down first.
    cluster.stop(5)?;
    let removed = cluster.ask(0, &["node", "remove", "n6"])?;
    say(test, &format!("{} slots waited; {}", waits[5], removed.trim()));
    let mut loaded = load.finish()?;
    ensure!(loaded.server_errors == 0, "{} errors", loaded.server_errors);
    loaded.verify(&cluster.target(4))?;
    cluster.finish()
}

/// Where groups have parity to spare a store may come back for a while; then what it had is rebuilt
/// elsewhere, which tells how far it is and can be paused.
#[test]
fn a_store_that_stays_away_is_rebuilt_and_tells_how_far_it_is() -> Result<()> {
    let test = "a_store_that_stays_away_is_rebuilt_and_tells_how_far_it_is";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let geometry = Some((2, 2));
    let mut cluster = Cluster::up(Spec { nodes: 5, geometry, ..Spec::three(test, "512M") })?;
    cluster.retune("down_out_ms", DOWN_OUT.as_millis().try_into()?)?;
    let image = Image::write(&cluster, 512 << 20, 0, seed)?;
    cluster.wait_ok()?;

    cluster.kill(4)?;
    let killed = Instant::now();
    let begun = |status: &Status| status.moves.moving > 0;
    let status = cluster.wait_status("a rebuild begins", LIMIT, begun)?;
    // It is away from the last time that it was heard.
    let waited = killed.elapsed() + Duration::from_secs(1);
    ensure!(waited >= DOWN_OUT, "begun after {:?}", killed.elapsed());
    ensure!(status.health == "degraded", "{}", status.brief());
    // Eight slots at a time: so soon it has by far not everything.
    cluster.command(&["moves", "pause"])?;
    let mut last = volume(&cluster)?.rows_repaired;
    let mut since = Instant::now();
    until("the rebuild stands still", LIMIT, || {
        let now = volume(&cluster)?.rows_repaired;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        Ok((since.elapsed() > Duration::from_secs(3)).then_some(()))
    })?;
    let paused = volume(&cluster)?;
    ensure!(cluster.slots()?[4] > 0, "all was rebuilt before it was paused");
    let why = cluster.command(&["why"])?;
    ensure!(why.contains("smalti moves resume"), "{why}");

    cluster.command(&["moves", "resume"])?;
    let told = until("the rebuild tells how far it is", LIMIT, || {
        let volume = volume(&cluster)?;
        let tells = volume.rows_per_second > 0 && volume.rows_left > 0;
        ensure!(tells || cluster.slots()?[4] > 0, "it told nothing: {volume:?}");
        Ok((tells && volume.seconds_left.is_some()).then_some(volume))
    })?;
    ensure!(told.bytes_left >= told.rows_left * BLOCK as u64, "{told:?}");
    say(test, &format!("paused at {paused:?}; told {told:?}"));
    until("its slots are elsewhere", LIMIT, || Ok((cluster.slots()?[4] == 0).then_some(())))?;
    ensure!(volume(&cluster)?.rows_left == 0, "{:?}", volume(&cluster)?);
    // What it had is not needed any more: any two of the others have everything.
    cluster.command(&["node", "set", "n5", "--weight", "0"])?;
    cluster.start(4)?;
    cluster.wait_ok()?;
    cluster.kill_together(&[1, 2])?;
    image.verify(&cluster, 0)?;
    for node in [1, 2] {
        cluster.start(node)?;
    }
    cluster.wait_ok()?;
    image.verify(&cluster, 4)?;
    // What only moves is in sync where it was: nothing is behind.
    cluster.command(&["node", "set", "n5", "--weight", "100"])?;
    let rows_move = |status: &Status| status.volumes[0].rows_left > 0;
    let status = cluster.wait_status("slots move back", LIMIT, rows_move)?;
    ensure!(status.volumes[0].rows_behind == Some(0), "{:?}", status.volumes[0]);
    ensure!(status.health == "ok", "{}", status.brief());
    until("all have their share", LIMIT, || cluster.at_rest())?;
    cluster.finish()
}

fn volume(cluster: &Cluster) -> Result<VolumeStatus> {
    cluster.status()?.volumes.into_iter().next().context("a volume")
}
