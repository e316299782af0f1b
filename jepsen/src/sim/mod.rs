//! The seeded simulator: a whole cluster on one thread, running the code that serves volumes.
//!
//! A seed draws a cluster, a load and a mix of faults (`swarm`), and then every delay and every
//! fault. After a storm all faults end, and within a bound everything must be whole again. What
//! clients saw must be explained by one register per block, and the invariants of the protocol
//! hold all along (`check`).

mod check;
pub(crate) mod client;
mod config;
mod disks;
mod event;
mod failure;
pub mod history;
mod link;
mod lists;
mod nemesis;
mod node;
mod places;
mod rng;
mod scrubs;
mod snapshots;
mod swarm;
mod timeline;
mod world;

pub use swarm::{Fault, Mode};
pub use timeline::{parse_row, timeline};
pub use world::{Report, run};

/// Seeds that found a bug once, with what it was; run before all others.
const SEEDS: &str = include_str!("seeds.txt");

/// The seeds in the list of those that found a bug.
pub fn known_seeds() -> Vec<u64> {
    let lines = SEEDS.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}
