//! Visits every state of a small world, or of a list of them.

use clap::Parser;
use smalti_jepsen::model::{Bounds, Broken, Outcome, Plan, Search, explore};
use std::process::ExitCode;
use std::time::Duration;

/// Runs the exhaustive model. Without a geometry, all bounds of the list, one after the other.
#[derive(Parser)]
struct Args {
    /// n+k.
    #[arg(long)]
    geometry: Option<String>,
    /// What clients do: w0 writes slot 0, w01 both, r0 reads.
    #[arg(long, value_delimiter = ',')]
    ops: Vec<Plan>,
    /// The row was never written before.
    #[arg(long)]
    fresh: bool,
    /// Processes that die.
    #[arg(long, default_value_t = 0)]
    crashes: u8,
    /// Elections without a reason.
    #[arg(long, default_value_t = 0)]
    elections: u8,
    /// A node that they may choose; without, any.
    #[arg(long = "elect")]
    elected: Vec<u8>,
    /// Sessions that break.
    #[arg(long, default_value_t = 0)]
    drops: u8,
    /// Steps of time; two are longer than a lease.
    #[arg(long, default_value_t = 0)]
    passes: u8,
    /// Coordinators sleep while time passes.
    #[arg(long)]
    asleep: bool,
    /// Stores that were taken out may grow in again.
    #[arg(long)]
    catchup: bool,
    /// A store syncs in the same step in which it takes a frame.
    #[arg(long)]
    whole_sync: bool,
    /// Break a rule.
    #[arg(long)]
    broken: Option<Broken>,
    /// The order of the search.
    #[arg(long, value_enum, default_value_t = Search::Depth)]
    search: Search,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Seconds after which a run ends without being complete.
    #[arg(long, default_value_t = 3600)]
    limit: u64,
}

/// What `make model` runs: as much as is visited within minutes on two cores.
const LIST: &[&str] = &[
    "--geometry 1+1 --ops w0,w0,r0 --drops 1",
    "--geometry 1+1 --ops w0,w0,r0 --elections 1",
    "--geometry 1+1 --ops w0,w0 --crashes 1",
    "--geometry 1+1 --ops w0 --crashes 2 --whole-sync",
    "--geometry 1+1 --ops w0 --crashes 1 --elections 1 --elect 1 --whole-sync",
    "--geometry 1+1 --ops w0 --crashes 1 --catchup --whole-sync",
    "--geometry 1+1 --ops w0,r0 --passes 2 --asleep --whole-sync",
    "--geometry 2+1 --ops w0,w1,r01",
    "--geometry 2+1 --ops w01 --elections 1 --elect 2 --whole-sync",
    "--geometry 1+2 --ops w0,w0,r0",
    "--geometry 1+2 --ops w0 --elections 1 --elect 1 --whole-sync",
];

fn bounds_of(args: &Args, geometry: &str) -> Result<Bounds, String> {
    let (data, parity) = geometry.split_once('+').ok_or("a geometry is n+k")?;
    let number = |text: &str| text.parse::<u8>().map_err(|error| format!("{text}: {error}"));
    let mut bounds = Bounds::new(number(data)?, number(parity)?);
    if !args.ops.is_empty() {
        bounds.ops.clone_from(&args.ops);
    }
    if bounds.ops.iter().flat_map(|plan| &plan.slots).any(|slot| *slot >= bounds.data) {
        return Err("an operation names a slot that is no data slot".to_owned());
    }
    bounds.fresh = args.fresh;
    bounds.crashes = args.crashes;
    bounds.elections = args.elections;
    bounds.elected.clone_from(&args.elected);
    bounds.drops = args.drops;
    bounds.passes = args.passes;
    bounds.asleep = args.asleep;
    bounds.catchup = args.catchup;
    bounds.split_sync = !args.whole_sync;
    bounds.broken = args.broken;
    Ok(bounds)
}

#[expect(clippy::print_stdout, reason = "a tool's report")]
fn run(args: &Args, bounds: &Bounds) -> bool {
    println!("{bounds}");
    let limit = Duration::from_secs(args.limit);
    let Outcome { complete, states, unique, depth, time, failures } =
        explore(bounds, args.search, args.threads, limit);
    let how = if complete { "complete" } else { "NOT COMPLETE" };
    let seconds = time.as_secs_f64();
    println!("  {how}: {states} states, {unique} unique, depth {depth}, {seconds:.1} s");
    for (property, why) in &failures {
        println!("  FAILED: {property}\n{why}");
    }
    complete && failures.is_empty()
}

#[expect(clippy::print_stderr, reason = "a tool's report")]
fn main() -> ExitCode {
    let args = Args::parse();
    let listed = || LIST.iter().map(|line| line.split_whitespace());
    let all: Result<Vec<Bounds>, String> = match &args.geometry {
        Some(geometry) => bounds_of(&args, geometry).map(|bounds| vec![bounds]),
        None => listed()
            .map(|words| {
                let one = Args::parse_from(["model"].into_iter().chain(words));
                bounds_of(&one, one.geometry.as_deref().unwrap_or_default())
            })
            .collect(),
    };
    match all {
        Ok(all) => {
            let failed = all.iter().filter(|bounds| !run(&args, bounds)).count();
            if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
