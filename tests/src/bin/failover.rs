//! How long clients wait when a node dies or freezes, as a table and histograms.
//!
//! `smalti-failover [WORD...]` runs the cases whose name holds every word, on a fresh cluster of
//! three nodes under a verified load. Environment: `KILLS` (20) a case, at most 60, `SIZE` (512M, or
//! what that many losses need), `STRICT=1` exits 1 when a pause is longer than its case allows, or
//! longer than [`BACK`] while the node comes back.
#![allow(clippy::print_stdout, reason = "printing the figures is what it is for")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use smalti_tests::histogram::Histogram;
use smalti_tests::pattern::seed;
use smalti_tests::process::until;
use smalti_tests::settings::number;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

/// Anything that has to come about does so within this.
const LIMIT: Duration = Duration::from_secs(120);
/// How long the load goes on without the node: a second pause may follow the first one.
const AWAY: Duration = Duration::from_secs(4);
/// What a client allows a silent server before it tries another one.
const PATIENCE: Duration = Duration::from_secs(1);

/// Each loss has its load on 8 MiB of the volume of its own.
const KILLS_MAX: u64 = 60;

/// So often the roles of nodes may change just before a loss, which then begins anew.
const MOVED_MAX: u64 = 8;

/// No operation may take longer while a node comes back.
const BACK: Duration = Duration::from_millis(1500);

/// What became of a loss that was to be.
enum Turn {
    /// The longest wait without the node, and while it came back.
    Lost(Duration, Duration),
    /// The roles had changed hands meanwhile: another node would have been lost than the case is about.
    RolesMoved,
}

/// Which node is lost. The clients are attached to the coordinator's node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// A node that only stores.
    Storage,
    /// The Raft leader, which stores too.
    Leader,
    /// The clients' own node, which is not the Raft leader.
    Own,
    /// The clients' own node, which is the Raft leader too.
    OwnLeader,
}

/// How it is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// SIGKILL: its sockets say at once that it is gone.
    Killed,
    /// SIGSTOP: as a machine without power, it just says nothing any more.
    Frozen,
}

/// One row of the table.
struct Case {
    name: &'static str,
    victim: Victim,
    loss: Loss,
    /// No operation may take longer, reconnecting included.
    longest: Duration,
}

const fn case(name: &'static str, victim: Victim, loss: Loss, longest_ms: u64) -> Case {
    Case { name, victim, loss, longest: Duration::from_millis(longest_ms) }
}

const CASES: [Case; 8] = [
    case("storage node killed", Victim::Storage, Loss::Killed, 800),
    case("storage node frozen", Victim::Storage, Loss::Frozen, 800),
    case("Raft leader killed", Victim::Leader, Loss::Killed, 1500),
    case("Raft leader frozen", Victim::Leader, Loss::Frozen, 1500),
    case("own node killed", Victim::Own, Loss::Killed, 2500),
    case("own node frozen", Victim::Own, Loss::Frozen, 2500),
    case("own node, Raft leader, killed", Victim::OwnLeader, Loss::Killed, 2500),
    case("own node, Raft leader, frozen", Victim::OwnLeader, Loss::Frozen, 2500),
];

/// What a case showed.
struct Outcome {
    /// The longest wait of each loss.
    pauses: Vec<Duration>,
    /// The longest wait of any return.
    back: Duration,
    seed: u64,
}

/// Loses a node once under load, and takes it back.
fn lose_one(case: &Case, cluster: &mut Cluster, seed: u64, turn: u64) -> Result<Turn> {
    let leader = cluster.leader()?;
    let (next, last) = ((leader + 1) % 3, (leader + 2) % 3);
    let (attached, victim) = match case.victim {
        Victim::Storage => (next, last),
        Victim::Leader => (next, leader),
        Victim::Own => (next, next),
        Victim::OwnLeader => (leader, leader),
    };
    let mut config = LoadConfig::new(cluster.targets(), attached, seed);
    config.io_limit = PATIENCE;
    // Blocks that no load before this one has written.
    config.base = turn * config.threads * config.blocks;
    let mut load = Load::start(config);
    load.prefer(if victim == attached { (attached + 1) % 3 } else { attached });
    until("the clients' node coordinates", LIMIT, || {
        Ok((cluster.coordinator()? == attached).then_some(()))
    })?;
    load.progress(50, LIMIT)?;
    if cluster.leader()? != leader || cluster.coordinator()? != attached {
        load.finish()?;
        return Ok(Turn::RolesMoved);
    }
    load.window();
    match case.loss {
        Loss::Killed => cluster.signal(victim, Signal::KILL)?,
        Loss::Frozen => cluster.signal(victim, Signal::STOP)?,
    }
    let lost = Instant::now();
    while lost.elapsed() < AWAY {
        load.progress(10, LIMIT).with_context(|| format!("node {victim} is lost"))?;
    }
    let pause = load.window().longest();
    match case.loss {
        Loss::Killed => {
            cluster.wait_gone(victim)?;
            cluster.start(victim)?;
        }
        Loss::Frozen => cluster.signal(victim, Signal::CONT)?,
    }
    cluster.wait_ok().with_context(|| format!("node {victim} is back"))?;
    load.progress(50, LIMIT)?;
    let back = load.window().longest();
    let mut loaded = load.finish()?;
    ensure!(loaded.server_errors == 0, "{} requests ended in an error", loaded.server_errors);
    loaded.verify(&cluster.target(victim))?;
    Ok(Turn::Lost(pause, back))
}

fn run(case: &Case, kills: u64) -> Result<Outcome> {
    let size = std::env::var("SIZE")
        .unwrap_or_else(|_| format!("{}M", ((kills + MOVED_MAX) * 8).max(512)));
    let size: &'static str = size.leak();
    let mut cluster =
        Cluster::up(Spec { geometry: Some((2, 1)), ..Spec::three("failover", size) })?;
    let mut outcome = Outcome { pauses: Vec::new(), back: Duration::ZERO, seed: seed() };
    let (mut turn, mut moved) = (0, 0);
    while turn < kills {
        let lost = lose_one(case, &mut cluster, outcome.seed, turn + moved)
            .with_context(|| format!("{}, turn {turn}, seed {}", case.name, outcome.seed))?;
        match lost {
            Turn::Lost(pause, back) => {
                outcome.pauses.push(pause);
                outcome.back = outcome.back.max(back);
                turn += 1;
            }
            Turn::RolesMoved => {
                moved += 1;
                ensure!(moved <= MOVED_MAX, "the roles do not stay where they are");
            }
        }
    }
    cluster.finish()?;
    outcome.pauses.sort();
    Ok(outcome)
}

fn print_row(case: &Case, outcome: &Outcome) -> bool {
    let at = |index: usize| outcome.pauses.get(index).copied().unwrap_or_default();
    let (median, longest) =
        (at(outcome.pauses.len() / 2), at(outcome.pauses.len().saturating_sub(1)));
    let good = longest <= case.longest && outcome.back <= BACK;
    println!(
        "| {:<29} | {:>5} | {:>6} ms | {:>7} ms | {:>7} ms | {} | {:>5} ms |",
        case.name,
        outcome.pauses.len(),
        median.as_millis(),
        longest.as_millis(),
        case.longest.as_millis(),
        if good { "ok  " } else { "over" },
        outcome.back.as_millis(),
    );
    good
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has_all = |case: &&Case| words.iter().all(|word| case.name.contains(word.as_str()));
    let cases: Vec<&Case> = CASES.iter().filter(has_all).collect();
    let names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
    ensure!(!cases.is_empty(), "no case has all of {words:?} in its name: {names:?}");
    let kills = number("KILLS", 20)?;
    ensure!((1..=KILLS_MAX).contains(&kills), "KILLS is 1 to {KILLS_MAX}, not {kills}");
    println!(
        "{} cores, 2+1 on three nodes, 4 clients with one request each, patience {PATIENCE:?}; \
         longest wait of a client per loss, reconnecting included\n",
        std::thread::available_parallelism()?
    );
    println!("| case | times | median | longest | allowed | | while it comes back |");
    println!("|---|---|---|---|---|---|---|");
    let mut good = true;
    let mut drawings = Vec::new();
    for case in cases {
        let outcome = run(case, kills)?;
        good &= print_row(case, &outcome);
        let mut pauses = Histogram::default();
        outcome.pauses.iter().for_each(|pause| pauses.add(*pause));
        drawings.push(format!("{} (seed {}):\n{}", case.name, outcome.seed, pauses.drawing()));
    }
    println!("\n{}", drawings.join("\n"));
    ensure!(good || number("STRICT", 0)? == 0, "a pause is longer than its case allows");
    Ok(())
}
