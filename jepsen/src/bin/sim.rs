//! Runs the simulator over many seeds, or over one with a trace of everything that happens.

use clap::Parser;
use smalti_jepsen::sim::{Fault, Mode, Report, known_seeds, parse_row, run, timeline};
use smalti_storage::ids::RowAddr;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

/// Simulates a cluster under faults, one run per seed.
#[derive(Parser)]
struct Args {
    /// How many seeds to run, besides those that found a bug once: they run first.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// This seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Write everything that happens to the standard error; with --seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Write what concerns one row to the standard error, a line each; with --seed.
    #[arg(long, value_name = "GROUP/STRIPE/INDEX", value_parser = parse_row)]
    #[arg(requires = "seed", conflicts_with = "trace")]
    row: Option<RowAddr>,
    /// More rots than the code can bear: reads may end in errors, and none may be wrong.
    #[arg(long)]
    beyond: bool,
    /// Go on after a failure, and list all of them.
    #[arg(long)]
    keep_going: bool,
    /// Seeds at once; as many as there are processors if not given.
    #[arg(long)]
    jobs: Option<usize>,
}

impl Args {
    fn mode(&self) -> Mode {
        if self.beyond { Mode::Beyond } else { Mode::Within }
    }
}

#[derive(Default)]
struct Totals {
    seeds: u64,
    failed: u64,
    ops: usize,
    acknowledged: u64,
    planned: u64,
    offline: u64,
    online: u64,
    time: u64,
    epochs: u64,
    whole: u64,
    unreadable: u64,
    faults: BTreeMap<Fault, u64>,
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.failed += u64::from(report.failure.is_some());
        self.ops += report.ops;
        self.whole += u64::from(report.whole);
        self.unreadable += report.unreadable;
        self.acknowledged += report.acknowledged;
        self.planned += report.planned;
        self.offline += report.offline;
        self.online += report.online;
        self.time += report.time;
        self.epochs += u64::from(report.epochs);
        for (fault, count) in &report.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Those that found a bug did so within the bounds.
    let known = if args.beyond { Vec::new() } else { known_seeds() };
    let seeds: Vec<u64> = match args.seed {
        Some(seed) => vec![seed],
        None => known.into_iter().chain(args.from..args.from + args.seeds).collect(),
    };
    let begun = Instant::now();
    let mut totals = Totals::default();
    run_all(&seeds, &args, |seed, report| {
        totals.add(&report);
        tell(seed, &report, args.seed.is_some());
    });
    summarise(&totals, begun.elapsed().as_secs_f64());
    if totals.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the seeds on several threads; each run is a thread's own.
fn run_all(seeds: &[u64], args: &Args, mut done: impl FnMut(u64, Report)) {
    let jobs = args.jobs.or_else(|| thread::available_parallelism().ok().map(Into::into));
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, reports) = mpsc::sync_channel(16);
    thread::scope(|scope| {
        for _ in 0..jobs.unwrap_or(1).clamp(1, seeds.len().max(1)) {
            let (sender, next, stop) = (sender.clone(), &next, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed)
                    && let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let report = match args.row {
                        Some(row) => timeline(*seed, args.mode(), row, |line| eprintln!("{line}")),
                        None => run(*seed, args.mode(), args.trace),
                    };
                    if report.failure.is_some() && !args.keep_going {
                        stop.store(true, Ordering::Relaxed);
                    }
                    if sender.send((*seed, report)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        reports.into_iter().for_each(|(seed, report)| done(seed, report));
    });
}

#[expect(clippy::print_stdout, reason = "a tool's report")]
fn tell(seed: u64, report: &Report, alone: bool) {
    if let Some(why) = &report.failure {
        println!("seed {seed} FAILED: {why}");
        println!("{}", report.replay(seed));
    }
    if alone {
        println!("hash {:016x}, {} events", report.hash, report.steps);
    }
}

#[expect(clippy::print_stdout, reason = "a tool's report")]
fn summarise(totals: &Totals, elapsed: f64) {
    let Totals { seeds, failed, ops, acknowledged, epochs, .. } = totals;
    println!(
        "{seeds} seeds in {elapsed:.1} s ({:.1} per s), {failed} failed; {:.1} h simulated, \
         {epochs} epochs, {ops} operations checked, {acknowledged} writes acknowledged",
        *seeds as f64 / elapsed,
        totals.time as f64 / 3.6e9,
    );
    println!(
        "{} whole in the end; {} operations found something unreadable; {} slots moved by plan",
        totals.whole, totals.unreadable, totals.planned
    );
    println!("{} groups gone on without, {} of them served again", totals.offline, totals.online);
    let faults = totals.faults.iter().map(|(fault, count)| format!("{fault:?} {count}"));
    println!("faults: {}", faults.collect::<Vec<_>>().join(", "));
}
