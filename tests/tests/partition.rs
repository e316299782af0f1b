//! Links that break while both machines are well.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smalti_tests::cluster::smalti;
use smalti_tests::lan::{self, Lan};
use smalti_tests::pattern::seed;
use smalti_tests::process::until;
use smalti_tests::report::{say, skip};
use smalti_tests::status::Status;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);
/// With several stores out of its reach a coordinator is replaced within this.
const REPLACED: Duration = Duration::from_secs(5);
/// And within this where another leader has to be elected first.
const REPLACED_WITH_LEADER: Duration = Duration::from_secs(20);

/// Nodes on machines of their own, with a volume `v`.
fn dealt(spec: Spec, lan: &Lan) -> Result<Cluster> {
    let (nodes, geometry) = (spec.nodes, spec.geometry);
    let mut cluster = Cluster::bare(spec)?;
    let dir = cluster.scratch()?.join("dealt");
    let dir_text = dir.to_str().context("a path in UTF-8")?;
    let names: Vec<String> = (0..nodes).map(|no| format!("n{no}")).collect();
    let at = |no: usize| format!("{}={}:7000", names[no], Lan::ip(no));
    let addresses: Vec<String> = (0..nodes).map(at).collect();
    let mut words = vec!["init", "--dir", dir_text];
    words.extend(addresses.iter().flat_map(|address| ["--node", address]));
    smalti(&words, LIMIT)?.ok()?;
    for (no, name) in names.iter().enumerate() {
        cluster.adopt(&dir.join(name))?;
        cluster.enter(no, lan.enter(no));
        cluster.start(no)?;
    }
    cluster.wait_well(0, 0)?;
    let mut words = vec!["volume", "create", "v", "--size", "64M"];
    let numbers;
    if let Some((data, parity)) = geometry {
        numbers = (data.to_string(), parity.to_string());
        words.extend(["--data", &numbers.0, "--parity", &numbers.1]);
    }
    cluster.ask(0, &words)?;
    Ok(cluster)
}

/// The node that has the volume's seat, as another one knows.
fn holder(cluster: &Cluster, asked: usize) -> Result<Option<usize>> {
    let volume = cluster.ask_facts(asked, &["volume", "show", "v"])?;
    let name = volume["coordinator"].as_str();
    Ok(name.and_then(|name| cluster.nodes().iter().position(|node| node.name == name)))
}

/// Waits until the seat is at another node than that; says which.
fn wait_elsewhere(cluster: &Cluster, asked: usize, than: usize, limit: Duration) -> Result<usize> {
    until("another node has the seat", limit, || {
        Ok(holder(cluster, asked)?.filter(|node| *node != than))
    })
}

fn leader(cluster: &Cluster, asked: usize) -> Result<usize> {
    let status = cluster.ask_facts(asked, &["status"])?;
    let name = status["raft"]["leader"].as_str().context("a leader")?;
    cluster.nodes().iter().position(|node| node.name == name).context("the leader's name")
}

/// Waits until by what one node says a link is broken and nothing else is the matter: nodes at both ends are
/// well, and nobody is told to start one.
fn wait_told(cluster: &Cluster, asked: usize, (one, other): (usize, usize)) -> Result<()> {
    let name = |node: usize| cluster.nodes()[node].name.as_str();
    let mut last = String::new();
    let told = until("the broken link is told of", LIMIT, || {
        let why = cluster.ask_facts(asked, &["why"])?;
        last = why.to_string();
        let of = |reason: &Value, key: &str| reason[key].as_str().unwrap_or_default().to_owned();
        let reasons = why["reasons"].as_array().context("reasons")?;
        let named = |reason: &&Value| {
            let (subject, problem) = (of(reason, "subject"), of(reason, "problem"));
            let deaf = |node: usize, unheard: usize| {
                let (before, _) = problem.split_once("not hear it").unwrap_or_default();
                subject == format!("node {}", name(unheard)) && before.contains(name(node))
            };
            let remedy = of(reason, "remedy");
            let names = remedy.contains(name(one)) && remedy.contains(name(other));
            remedy.starts_with("check the network between")
                && names
                && match asked {
                    // Who is at an end tells of the other one.
                    _ if asked == one => deaf(one, other),
                    _ if asked == other => deaf(other, one),
                    _ => deaf(one, other) || deaf(other, one),
                }
        };
        let start = reasons.iter().any(|reason| of(reason, "remedy").contains("start"));
        Ok((!start && reasons.iter().any(|reason| named(&reason))).then_some(()))
    });
    told.with_context(|| format!("node {asked} says {last}"))
}

/// Waits until by what one node says all is whole but for links between others, which it tells of.
fn wait_whole_but_links(cluster: &Cluster, asked: usize) -> Result<()> {
    let mut last = String::new();
    let whole = until("all is whole but for links", LIMIT, || {
        let why = cluster.ask_facts(asked, &["why"])?;
        let status = cluster.ask_facts(asked, &["status"])?;
        last = format!("{status}, {why}");
        let status: Status = serde_json::from_value(status).context("a status")?;
        let up = status.nodes.iter().all(|node| node.state == "up");
        let ok = status.volumes.iter().all(|volume| volume.health == "ok");
        let reasons = why["reasons"].as_array().context("reasons")?;
        let link = |reason: &Value| {
            reason["remedy"].as_str().is_some_and(|remedy| remedy.starts_with("check the network"))
        };
        let links = !reasons.is_empty() && reasons.iter().all(link);
        Ok((up && ok && links && status.health == "degraded").then_some(()))
    });
    whole.with_context(|| format!("node {asked} says {last}"))
}

fn end(cluster: Cluster, load: Load, errors: u64) -> Result<()> {
    ensure!(errors == 0, "{errors} requests were answered with an error");
    let mut cluster = cluster;
    let mut loaded = load.finish()?;
    for node in 0..cluster.nodes().len() {
        loaded.verify(&cluster.target(node)).with_context(|| format!("through node {node}"))?;
    }
    for node in 0..cluster.nodes().len() {
        cluster.stop(node)?;
    }
    cluster.finish()
}

/// The coordinator of a 3+2 volume is cut off from two stores, and leads the metadata group as well or
/// does not.
fn cut_from_two(test: &'static str, leads_too: bool) -> Result<()> {
    if let Some(reason) = lan::missing() {
        return skip(test, &reason);
    }
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let lan = Lan::make(5)?;
    let spec = Spec { nodes: 5, geometry: Some((3, 2)), ..Spec::three(test, "64M") };
    let cluster = dealt(spec, &lan)?;
    let leads = leader(&cluster, 0)?;
    let others: Vec<usize> = (0..5).filter(|node| *node != leads).collect();
    // Where the coordinator does not lead, the leader's links stay whole: who it does not hear is dead
    // for it, which is another matter.
    let own = if leads_too { leads } else { others[0] };
    let (lost, sees) = (&others[1..3], others[3]);
    let mut load = Load::start(LoadConfig::new(vec![cluster.target(own)], 0, seed));
    load.progress(100, LIMIT)?;
    until("the clients' node has the seat", LIMIT, || {
        Ok(holder(&cluster, sees)?.filter(|node| *node == own))
    })?;
    load.window();
    let begun = Instant::now();
    for node in lost {
        lan.cut(own, *node)?;
    }
    // Four slots have to be in sync for writes, and it reaches three: nothing is served meanwhile.
    let limit = if leads_too { REPLACED_WITH_LEADER } else { REPLACED };
    let seat = wait_elsewhere(&cluster, sees, own, limit)?;
    let took = begun.elapsed();
    say(test, &format!("leader {leads}, {lost:?} cut from {own}: node {seat} after {took:?}"));
    load.progress(100, LIMIT).context("while the links are cut")?;
    let window = load.window();
    say(test, &format!("clients of the node that is cut off: {}", window.brief()));
    // All are in sync, for who has the seat reaches everybody.
    wait_whole_but_links(&cluster, seat).context("while the links are cut")?;
    for node in lost {
        for asked in [own, *node, sees] {
            wait_told(&cluster, asked, (own, *node))?;
        }
    }
    for node in lost {
        lan.mend(own, *node)?;
    }
    load.progress(100, LIMIT)?;
    cluster.wait_well(own, 1).context("with all links")?;
    let errors = load.server_errors();
    end(cluster, load, errors)
}

#[test]
fn a_coordinator_that_loses_two_stores_others_reach_is_replaced() -> Result<()> {
    cut_from_two("a_coordinator_that_loses_two_stores_others_reach_is_replaced", false)
}

#[test]
fn a_leader_that_hears_less_than_others_gives_way() -> Result<()> {
    cut_from_two("a_leader_that_hears_less_than_others_gives_way", true)
}

/// Of three nodes two do not reach each other, for what one of them sends to the other is lost: what the
/// coordinator sends, or what its store answers.
fn cut_of_three(test: &'static str, answers: bool) -> Result<()> {
    if let Some(reason) = lan::missing() {
        return skip(test, &reason);
    }
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let lan = Lan::make(3)?;
    let cluster = dealt(Spec::three(test, "64M"), &lan)?;
    let between = leader(&cluster, 0)?;
    let (own, other) = ((between + 1) % 3, (between + 2) % 3);
    let mut load = Load::start(LoadConfig::new(vec![cluster.target(own)], 0, seed));
    load.progress(100, LIMIT)?;
    until("the clients' node has the seat", LIMIT, || {
        Ok(holder(&cluster, between)?.filter(|node| *node == own))
    })?;
    load.window();
    let begun = Instant::now();
    let (from, to) = if answers { (other, own) } else { (own, other) };
    lan.cut_one_way(from, to)?;
    load.progress(100, LIMIT).context("without one store")?;
    let window = load.window();
    say(test, &format!("what {from} sends to {to} is lost: {}", window.brief()));
    let seat = wait_elsewhere(&cluster, between, own, LIMIT)?;
    say(test, &format!("node {seat} has the seat after {:?}", begun.elapsed()));
    ensure!(seat == between, "node {seat} reaches no more than node {own}");
    wait_whole_but_links(&cluster, between).context("while the link is cut")?;
    for asked in 0..3 {
        wait_told(&cluster, asked, (own, other))?;
    }
    load.progress(100, LIMIT)?;
    lan.mend(own, other)?;
    cluster.wait_well(own, 1).context("with all links")?;
    let errors = load.server_errors();
    end(cluster, load, errors)
}

#[test]
fn of_three_the_one_between_two_that_are_cut_gets_the_seat() -> Result<()> {
    cut_of_three("of_three_the_one_between_two_that_are_cut_gets_the_seat", false)
}

#[test]
fn of_three_the_one_between_gets_the_seat_where_only_answers_are_lost() -> Result<()> {
    cut_of_three("of_three_the_one_between_gets_the_seat_where_only_answers_are_lost", true)
}
