//! A fixed batch of seeds, those that found something first.

use smalti_jepsen::sim::{Mode, Report, known_seeds, run, timeline};
use smalti_storage::ids::RowAddr;
use std::cell::Cell;
use std::rc::Rc;

/// Seeds of the batch.
const BATCH: std::ops::Range<u64> = 1..201;

fn must_pass(seed: u64) -> Report {
    let report = run(seed, Mode::Within, false);
    if let Some(why) = &report.failure {
        panic!("seed {seed}: {why}\n{}", report.replay(seed));
    }
    report
}

#[test]
fn seeds_that_found_a_bug_pass() {
    let seeds = known_seeds();
    assert!(!seeds.is_empty());
    for seed in seeds {
        must_pass(seed);
    }
}

#[test]
fn a_batch_of_seeds_passes() {
    let (mut ops, mut acknowledged, mut faults) = (0, 0, 0);
    for seed in BATCH {
        let report = must_pass(seed);
        ops += report.ops;
        acknowledged += report.acknowledged;
        faults += report.faults.values().sum::<u64>();
    }
    // A simulator in which nothing happens finds nothing.
    assert!(ops > 50_000 && acknowledged > 20_000, "{ops} operations, {acknowledged} writes");
    assert!(faults > 2_000, "{faults} faults");
}

#[test]
fn whatever_rots_no_read_is_wrong() {
    let (mut whole, mut unreadable) = (0, 0);
    for seed in BATCH {
        let report = run(seed, Mode::Beyond, false);
        if let Some(why) = &report.failure {
            panic!("seed {seed}: {why}\n{}", report.replay(seed));
        }
        whole += u64::from(report.whole);
        unreadable += report.unreadable;
    }
    // Some runs lose rows, and some do not.
    assert!(whole > 20 && unreadable > 1000, "{whole} whole, {unreadable} unreadable");
}

#[test]
fn a_seed_is_everything() {
    for seed in 1..=20 {
        let (first, second) = (run(seed, Mode::Within, false), run(seed, Mode::Within, false));
        assert_eq!((first.hash, first.steps), (second.hash, second.steps), "seed {seed}");
        // Whoever looks changes nothing.
        let lines = Rc::new(Cell::new(0));
        let counted = Rc::clone(&lines);
        let watched = timeline(seed, Mode::Within, RowAddr::default(), move |_| {
            counted.set(counted.get() + 1)
        });
        assert_eq!((first.hash, first.steps), (watched.hash, watched.steps), "seed {seed}");
        assert!(lines.get() > 50, "seed {seed}: {} lines", lines.get());
    }
}
