//! One exhaustive run and what came of it.

use super::state::State;
use super::step::Step;
use super::{Bounds, Model};
use stateright::{Checker, DiscoveryClassification, HasDiscoveries, Model as _, Path};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// In which order states are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Search {
    /// The shortest counterexample; keeps whole layers of states in memory.
    Breadth,
    /// Little memory.
    Depth,
}

/// What a run found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Whether every state within the bounds was visited.
    pub complete: bool,
    /// States that were reached, the same one as often as it was.
    pub states: usize,
    /// Different ones.
    pub unique: usize,
    /// Steps of the longest way that was gone.
    pub depth: usize,
    /// How long it took.
    pub time: Duration,
    /// Properties that do not hold, each with the way there in words.
    pub failures: BTreeMap<&'static str, String>,
}

/// Visits every state within the bounds, until something fails or `limit` is over.
pub fn explore(bounds: &Bounds, search: Search, threads: usize, limit: Duration) -> Outcome {
    let begun = Instant::now();
    let model = Model { bounds: bounds.clone() };
    let builder = model
        .clone()
        .checker()
        .threads(threads)
        .timeout(limit)
        .finish_when(HasDiscoveries::AnyFailures);
    match search {
        Search::Breadth => outcome(&model, &builder.spawn_bfs().join(), begun, limit),
        Search::Depth => outcome(&model, &builder.spawn_dfs().join(), begun, limit),
    }
}

fn outcome(
    model: &Model,
    checker: &impl Checker<Model>,
    begun: Instant,
    limit: Duration,
) -> Outcome {
    let time = begun.elapsed();
    let mut failures = BTreeMap::new();
    let mut found = checker.discoveries();
    for property in model.properties() {
        let is_bad = checker.discovery_classification(property.name);
        match (found.remove(property.name), is_bad) {
            (Some(path), DiscoveryClassification::Counterexample) => {
                failures.insert(property.name, told(model, path));
            }
            (None, DiscoveryClassification::Example) => {
                failures.insert(property.name, "never happens".to_owned());
            }
            _ => {}
        }
    }
    let stopped = failures.values().any(|why| why != "never happens");
    Outcome {
        complete: !stopped && time < limit,
        states: checker.state_count(),
        unique: checker.unique_state_count(),
        depth: checker.max_depth(),
        time,
        failures,
    }
}

/// The way to a state, step by step.
fn told(model: &Model, path: Path<State, Step>) -> String {
    let mut text = String::new();
    let mut why = String::new();
    for (no, (state, step)) in path.into_vec().into_iter().enumerate() {
        if let Some(step) = step {
            let what = model.detail(&state, &step);
            // Writing to a string does not fail.
            let _ = writeln!(text, "{:4}. {step}{what}", no + 1);
        }
        why = state.bad.map_or(why, |bad| format!("{bad:?}"));
    }
    text + &why
}
