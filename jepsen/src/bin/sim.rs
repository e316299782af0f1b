//! Runs the simulator over many seeds, or over one with a trace of everything that happens.

use clap::Parser;
use smalti_jepsen::sim::{Fault, run};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

/// Simulates a cluster under faults, one run per seed.
#[derive(Parser)]
struct Args {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// This seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Write everything that happens to the standard error.
    #[arg(long)]
    trace: bool,
    /// Go on after a failure, and list all of them.
    #[arg(long)]
    keep_going: bool,
}

#[expect(clippy::print_stdout, reason = "a tool's report")]
fn main() -> ExitCode {
    let args = Args::parse();
    let (from, count) = args.seed.map_or((args.from, args.seeds), |seed| (seed, 1));
    let begun = Instant::now();
    let mut faults: BTreeMap<Fault, u64> = BTreeMap::new();
    let (mut ops, mut acknowledged, mut time, mut failed, mut done, mut epochs) =
        (0, 0, 0, 0u64, 0u64, 0u64);
    for seed in from..from + count {
        let report = run(seed, args.trace);
        done += 1;
        ops += report.ops;
        acknowledged += report.acknowledged;
        time += report.time;
        epochs += u64::from(report.epochs);
        for (fault, count) in &report.faults {
            *faults.entry(*fault).or_default() += count;
        }
        if let Some(why) = &report.failure {
            failed += 1;
            println!("seed {seed} FAILED: {why}");
            println!(
                "replay: cargo run --release -p smalti-jepsen --bin sim -- --seed {seed} --trace"
            );
            if !args.keep_going {
                break;
            }
        }
        if args.seed.is_some() {
            println!("hash {:016x}, {} events", report.hash, report.steps);
        }
    }
    let elapsed = begun.elapsed().as_secs_f64();
    println!(
        "{done} seeds in {elapsed:.1} s ({:.1} per s), {failed} failed; {:.1} h simulated, {epochs} \
         epochs, {ops} operations checked, {acknowledged} writes acknowledged",
        done as f64 / elapsed,
        time as f64 / 3.6e9,
    );
    let classes: Vec<String> =
        faults.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
    println!("faults: {}", classes.join(", "));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
