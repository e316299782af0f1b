//! Failure domains: whatever fails together holds one slot of a group, so all of it may go at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smalti_tests::pattern::seed;
use smalti_tests::process::until;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);
/// By node: two machines share each rack.
const RACKS: [&str; 6] = ["r1", "r1", "r2", "r2", "r3", "r3"];

/// The names of the nodes that hold each group.
fn holders(cluster: &Cluster) -> Result<Vec<Vec<String>>> {
    let volume = cluster.facts(&["volume", "show", "v"])?;
    let groups = volume["groups"].as_array().context("groups")?;
    let name = |slot: &Value| Ok(slot["node"].as_str().context("a node")?.to_owned());
    let slots =
        |group: &Value| group["slots"].as_array().context("slots")?.iter().map(name).collect();
    groups.iter().map(slots).collect()
}

/// How many groups have two slots in one rack.
fn shared(cluster: &Cluster) -> Result<usize> {
    let nodes = cluster.nodes().iter().map(|node| &*node.name);
    let racks: BTreeMap<&str, &str> = nodes.zip(RACKS).collect();
    let holders = holders(cluster)?;
    let is_shared = |group: &&Vec<String>| {
        let used: BTreeSet<&str> = group.iter().map(|node| racks[&**node]).collect();
        used.len() < group.len()
    };
    Ok(holders.iter().filter(is_shared).count())
}

#[test]
fn a_rack_may_go_at_once() -> Result<()> {
    let test = "a_rack_may_go_at_once";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let geometry = Some((2, 1));
    let mut cluster = Cluster::up(Spec { nodes: 6, geometry, ..Spec::three(test, "128M") })?;
    let mut load = Load::start(LoadConfig::new(cluster.targets()[2..].to_vec(), 0, seed));
    load.progress(100, LIMIT)?;
    // Each node is a domain of its own, so two of a rack that is none yet hold slots of one group.
    let before = shared(&cluster)?;
    ensure!(before > 0, "no group has two slots on two nodes of a rack to be");
    let unsafe_yet = cluster.facts(&["what-if", "stop", "n1", "n2"])?;
    ensure!(unsafe_yet["volumes"][0]["writes"] == false, "{unsafe_yet}");

    let began = Instant::now();
    let names: Vec<String> = cluster.nodes().iter().map(|node| node.name.clone()).collect();
    for (name, rack) in names.iter().zip(RACKS) {
        cluster.command(&["node", "set", name, "--domain", rack])?;
    }
    until(
        "no group has two slots in a rack",
        LIMIT,
        || Ok((shared(&cluster)? == 0).then_some(())),
    )?;
    until("nothing moves", LIMIT, || cluster.at_rest())?;
    say(test, &format!("{before} groups were in one rack twice, none {:?} later", began.elapsed()));
    ensure!(shared(&cluster)? == 0, "a group has two slots in a rack again");
    let nodes = cluster.facts(&["node", "list"])?;
    let votes = |rack: &str| {
        let members = RACKS.iter().enumerate().filter(|(_, of)| **of == rack);
        members.filter(|(node, _)| nodes[*node]["voter"] == true).count()
    };
    let votes = [votes("r1"), votes("r2"), votes("r3")];
    ensure!(votes.iter().sum::<usize>() == 5, "one rack has one voter less: {votes:?}");

    load.window();
    cluster.kill_together(&[0, 1])?;
    load.progress(200, LIMIT).context("a rack is dead")?;
    say(test, &format!("a rack is dead: {}", load.window().brief()));
    // Two machines of one rack are better than nothing to spare, until there is a third rack again.
    until("its slots are rebuilt in the racks that are left", LIMIT, || {
        let slots = cluster.slots()?;
        Ok((slots[0] + slots[1] == 0).then_some(()))
    })?;
    for node in [0, 1] {
        cluster.start(node)?;
    }
    // One that has just started may tell of an older map.
    until("no group has two slots in a rack again", LIMIT, || {
        let settled = cluster.wait_ok().is_ok() && shared(&cluster)? == 0;
        Ok((settled && cluster.slots()?.iter().all(|slots| *slots > 0)).then_some(()))
    })?;
    let slots = cluster.slots()?;
    ensure!(shared(&cluster)? == 0 && slots.iter().all(|slots| *slots > 0), "{slots:?}");
    let errors = load.server_errors();
    let mut loaded = load.finish()?;
    ensure!(errors == 0, "{errors} requests were answered with an error");
    // What it missed it has: another one may go.
    cluster.kill_together(&[2, 3])?;
    loaded.verify(&cluster.target(0)).context("through the rack that came back")?;
    cluster.finish()
}
