//! Switches off one rule of the protocol after the other and runs the simulator until it notices.

use clap::Parser;
use smalti_jepsen::mutants::{Death, hunt, mutants, unseen};
use smalti_map::mutant::Mutant;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Mutates the protocol, one rule at a time; each mutant must be killed by the simulator.
#[derive(Parser)]
struct Args {
    /// Those that the gate leaves out, for they lived long enough to be set apart.
    #[arg(long)]
    unseen: bool,
    /// This mutant alone, any there is; may be given more than once.
    #[arg(long)]
    only: Vec<String>,
    /// Seeds a mutant may survive.
    #[arg(long, default_value_t = 30_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Only mutants that die within a few hundred seeds.
    #[arg(long)]
    fast: bool,
    /// Seeds that the code as it is has to pass first.
    #[arg(long, default_value_t = 200)]
    clean: u64,
    /// Mutants at a time.
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    jobs: usize,
    /// What each breaks, instead of a run.
    #[arg(long)]
    list: bool,
}

struct Outcome {
    mutant: Mutant,
    death: Option<Death>,
    seconds: f64,
}

#[expect(clippy::print_stdout, reason = "a tool's report")]
fn main() -> ExitCode {
    let args = Args::parse();
    let mut chosen = mutants(args.fast);
    if args.unseen {
        chosen = unseen().to_vec();
    }
    if !args.only.is_empty() {
        let named = |name: &String| Mutant::ALL.iter().copied().find(|m| m.name() == name);
        if let Some(name) = args.only.iter().find(|name| named(name).is_none()) {
            println!("there is no mutant {name}");
            return ExitCode::FAILURE;
        }
        chosen = args.only.iter().filter_map(named).collect();
    }
    if args.list {
        chosen.iter().for_each(|mutant| println!("{:<24} {}", mutant.name(), mutant.rule()));
        return ExitCode::SUCCESS;
    }
    // A panic is one way to die, and told as such.
    std::panic::set_hook(Box::new(|_| ()));
    let begun = Instant::now();
    if let Some(death) = hunt(None, args.from..args.from + args.clean) {
        println!("seed {} fails without any mutant: {}", death.seed, death.why);
        return ExitCode::FAILURE;
    }
    println!("{} seeds pass without a mutant, {:.1} s", args.clean, begun.elapsed().as_secs_f64());

    let outcomes = hunt_all(&args, &chosen);
    let survivors: Vec<&str> =
        outcomes.iter().filter(|o| o.death.is_none()).map(|o| o.mutant.name()).collect();
    println!(
        "{} mutants, {} killed, {} survived, {:.0} s",
        outcomes.len(),
        outcomes.len() - survivors.len(),
        survivors.len(),
        begun.elapsed().as_secs_f64()
    );
    if survivors.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("SURVIVED {} seeds: {}", args.seeds, survivors.join(", "));
    ExitCode::FAILURE
}

/// Hunts all mutants, several at a time, and tells of each as it dies.
#[expect(clippy::print_stdout, reason = "a tool's report")]
fn hunt_all(args: &Args, chosen: &[Mutant]) -> Vec<Outcome> {
    println!("{:<24} {:>6} {:>7}  {:<8} what the check said", "mutant", "seeds", "s", "check");
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                while let Some(mutant) = chosen.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
                    let begun = Instant::now();
                    let death = hunt(Some(mutant), args.from..args.from + args.seeds);
                    let outcome = Outcome { mutant, death, seconds: begun.elapsed().as_secs_f64() };
                    println!("{}", line(&outcome, args.seeds));
                    outcomes.lock().expect("nobody panics with it").push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().expect("nobody panics with it")
}

fn line(outcome: &Outcome, limit: u64) -> String {
    let (seeds, check, why) = match &outcome.death {
        Some(death) => (death.seeds.to_string(), death.check.as_str(), death.why.as_str()),
        None => (format!(">{limit}"), "-", "SURVIVED"),
    };
    let why: String = why.lines().next().unwrap_or_default().chars().take(100).collect();
    let name = outcome.mutant.name();
    format!("{name:<24} {seeds:>6} {:>7.1}  {check:<8} {why}", outcome.seconds)
}
