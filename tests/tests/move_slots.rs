//! A node is gone for good: the others take its slots over while clients go on, and then the next
//! node may die.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use smalti_tests::cluster::smalti;
use smalti_tests::pattern::seed;
use smalti_tests::process::until;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);

/// The node of a slot, its state, and where it moves to.
type Slot = (String, String, Option<String>);

/// Of every group its slots.
fn slots(cluster: &Cluster) -> Result<Vec<Vec<Slot>>> {
    let dir = cluster.dir();
    let dir = dir.to_str().context("a path in UTF-8")?;
    let words = ["volume", "show", "v", "--dir", dir, "--json"];
    let shown: Value = serde_json::from_str(&smalti(&words, LIMIT)?.ok()?)?;
    let text = |slot: &Value, key: &str| slot[key].as_str().map(str::to_owned);
    let slot =
        |slot: &Value| Some((text(slot, "node")?, text(slot, "state")?, text(slot, "moves_to")));
    let groups = shown["groups"].as_array().context("groups")?;
    groups
        .iter()
        .map(|group| {
            let all = group["slots"].as_array().context("slots")?;
            all.iter().map(|one| slot(one).context("a slot")).collect()
        })
        .collect()
}

fn move_slots(cluster: &Cluster, from: &str, to: &str) -> Result<String> {
    let dir = cluster.dir();
    let dir = dir.to_str().context("a path in UTF-8")?;
    smalti(&["volume", "move", "v", "--from", from, "--to", to, "--dir", dir], LIMIT)?.ok()
}

#[test]
fn move_slots_of_a_dead_node() -> Result<()> {
    let test = "move_slots_of_a_dead_node";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let geometry = Some((2, 1));
    let mut cluster = Cluster::up(Spec { nodes: 5, geometry, ..Spec::three(test, "128M") })?;
    let mut load = Load::start(LoadConfig::new(cluster.targets(), 0, seed));
    load.progress(200, LIMIT)?;
    load.prefer(0);

    // Refused with a reason, and nothing has changed.
    for (from, to, reason) in
        [("n5", "n5", "both ends"), ("n9", "n1", "no node n9"), ("n5", "n9", "no node n9")]
    {
        let error = move_slots(&cluster, from, to).err().context("it makes no sense")?;
        ensure!(format!("{error:#}").contains(reason), "{error:#}");
    }

    cluster.kill(4)?;
    load.progress(50, LIMIT).context("a node is dead")?;
    let of_dead = slots(&cluster)?.into_iter().flatten().filter(|(node, ..)| node == "n5").count();
    // Two of the others have slots of each of its groups; the other two can take it.
    for to in ["n1", "n2", "n3", "n4"] {
        match move_slots(&cluster, "n5", to) {
            Ok(said) => say(test, said.trim()),
            Err(error) if format!("{error:#}").contains("can move") => {}
            Err(error) => bail!(error),
        }
    }
    let moved = until("all slots have moved", LIMIT, || {
        let all = slots(&cluster)?.into_iter().flatten();
        let done =
            |(node, state, moves): &Slot| node != "n5" && state == "insync" && moves.is_none();
        Ok(all.into_iter().all(|slot| done(&slot)).then_some(()))
    });
    moved.context("slots of a dead node")?;
    load.progress(100, LIMIT).context("its slots have moved")?;
    say(test, &format!("{of_dead} slots moved: {}", load.window().brief()));

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
    // Back with what it had, it deletes that.
    cluster.start(2)?;
    cluster.start(4)?;
    cluster.wait_ok().context("all are back")?;
    loaded.verify(&cluster.target(4)).context("through the one that was dead")?;
    cluster.finish()
}
