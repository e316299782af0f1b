//! Every mutant of the protocol that dies soon does so; `make mutants` hunts the others too.

use smalti_jepsen::mutants::{hunt, mutants};

/// Seeds a mutant may survive here.
const SEEDS: std::ops::Range<u64> = 1..401;

#[test]
fn the_code_as_it_is_passes() {
    let death = hunt(None, 1..41);
    assert!(death.is_none(), "{death:?}");
}

#[test]
fn mutants_that_die_soon_die() {
    let mutants = mutants(true);
    assert!(mutants.len() >= 20, "{} mutants are too few", mutants.len());
    let survivors: Vec<&str> = mutants
        .into_iter()
        .filter(|mutant| hunt(Some(*mutant), SEEDS).is_none())
        .map(|mutant| mutant.name())
        .collect();
    assert!(survivors.is_empty(), "no check noticed {survivors:?} in {SEEDS:?}");
}
