//! The first nodes of a cluster over several machines: dealt on one, carried to others, started there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smalti_tests::cluster::smalti;
use smalti_tests::pattern::seed;
use smalti_tests::ports::{free_address, free_run};
use smalti_tests::process::Output;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

fn init(dir: &Path, nodes: &[String], more: &[&str]) -> Result<Output> {
    let mut words = vec!["init", "--dir", text(dir)?];
    for node in nodes {
        words.extend(["--node", node]);
    }
    words.extend(more);
    smalti(&words, LIMIT)
}

#[test]
fn nodes_dealt_on_one_machine_make_a_cluster_on_others() -> Result<()> {
    let test = "nodes_dealt_on_one_machine_make_a_cluster_on_others";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::bare(Spec::three(test, "64M"))?;
    let home = cluster.scratch()?;
    let dir = home.join("dealt");

    let names = ["oslo", "bergen.no", "n-3"];
    let mut nodes = Vec::new();
    for name in names {
        nodes.push(format!("{name}={}", free_address()?));
    }
    let few = init(&dir, &nodes[..2], &[])?;
    ensure!(few.code() == 1 && few.stderr.contains("2 of at least 3 nodes"), "{}", few.stderr);
    ensure!(few.stderr.trim_end().lines().count() == 1 && !dir.exists(), "{}", few.stderr);
    let first = free_run(6)?;
    let (api, nbd) = (first.to_string(), (first + 3).to_string());
    let said = init(&dir, &nodes, &["--api-port", &api, "--nbd-port", &nbd])?.ok()?;
    for name in names {
        let start = format!("smalti serve --config {name}/node.toml\n");
        let folder = format!("{}\n", dir.join(name).display());
        ensure!(said.contains(&start) && said.contains(&folder), "{said}");
    }
    let again = init(&dir, &nodes, &[])?;
    ensure!(again.code() == 1 && again.stderr.contains("is not empty"), "{}", again.stderr);

    // Each folder goes to a machine of its own, under a name of its own.
    let places: Vec<PathBuf> = ["x", "y/data", "z/a/b"].map(|place| home.join(place)).into();
    for (name, place) in names.iter().zip(&places) {
        std::fs::create_dir_all(place.parent().context("a folder above")?)?;
        std::fs::rename(dir.join(name), place)?;
        cluster.adopt(place)?;
    }
    let authority = home.join("vault");
    std::fs::rename(dir.join("ca"), &authority)?;
    std::fs::remove_dir(&dir).context("nothing else is left")?;

    // In whatever order, the founding one last.
    for node in [2, 1, 0] {
        cluster.start(node)?;
    }
    cluster.wait_well(0, 0)?;
    cluster.ask(1, &["volume", "create", "v", "--size", "64M"])?;
    let load = Load::start(LoadConfig::new(cluster.targets(), 0, seed));
    load.progress(300, LIMIT)?;
    let mut loaded = load.finish()?;
    ensure!(loaded.server_errors == 0, "{} requests failed", loaded.server_errors);
    for node in 0..3 {
        loaded.verify(&cluster.target(node))?;
    }
    loaded.verify(&cluster.tcp_target(2)).context("at the port that was asked for")?;

    for node in 0..3 {
        cluster.stop(node)?;
    }
    for node in 0..3 {
        cluster.start(node)?;
    }
    cluster.wait_well(0, 1)?;
    loaded.verify(&cluster.target(1)).context("after all were stopped")?;

    // With the authority's key away nobody is let in; with the key beside the first node one is.
    let refused = cluster.ask(0, &["token", "create"]).err().context("there is no key")?;
    ensure!(format!("{refused:#}").contains("the authority's key can not be read"), "{refused:#}");
    std::fs::rename(&authority, home.join("ca"))?;
    let token = cluster.ask(0, &["token", "create", "--name", "fourth"])?;
    let place = home.join("w");
    let listen = free_address()?;
    let words = ["join", token.trim(), "--dir", text(&place)?, "--listen", &listen];
    smalti(&words, LIMIT)?.ok()?;
    let fourth = cluster.adopt(&place)?;
    cluster.start(fourth)?;
    cluster.wait_well(0, 1)?;
    loaded.verify(&cluster.target(fourth)).context("through the one that joined")?;

    let nodes = cluster.ask_facts(fourth, &["node", "list"])?;
    let share = |node: usize| nodes[node]["slots"].as_u64().unwrap_or(0);
    ensure!((0..4).all(|node| share(node).abs_diff(24) <= 2), "{nodes}");
    for node in 0..4 {
        cluster.stop(node)?;
    }
    cluster.finish()
}
