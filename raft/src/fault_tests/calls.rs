//! Each call that changes something fails once: the store says so, or needs it not.

use super::cuts::{runtime, store_in};
use super::workload::{Known, Mark, open, read, steps, take, which};
use smalti_powercut::{Failing, child, each, scratch};

const STEPS: usize = 60;
const SEED: u64 = 5;

#[test]
fn process_with_a_failing_disk() {
    child(|folder, mark| {
        let (path, steps) = (store_in(folder), steps(SEED, STEPS));
        let work = take(&path, &steps, |step| mark(step.code()));
        match runtime().block_on(work) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string().replace('\n', " ")),
        }
    });
}

fn all(failing: Failing) {
    let steps = steps(SEED, STEPS);
    let whole = scratch().unwrap();
    let states = runtime().block_on(take(&store_in(whole.path()), &steps, |_| {})).unwrap();
    let name = "fault_tests::calls::process_with_a_failing_disk";
    each("raft", name, failing, |folder, said| {
        let known = Known::after(said.marks.iter().copied().map(Mark::of), &steps);
        if said.stopped.is_none() {
            assert_eq!(known.most, steps.len(), "it did all of its work");
        }
        runtime().block_on(async {
            let opened = open(&store_in(folder)).await;
            let mut opened = opened.expect("opens on a disk that works again");
            let found = read(&mut opened).await.expect("can be read");
            let at = which(&found, &states, known.most).expect("a state it once had");
            assert!(at >= known.least, "back at {at}, {known:?}");
        });
    });
}

#[test]
fn a_call_that_fails_once_loses_nothing() {
    all(Failing::Once);
}

#[test]
fn a_disk_that_goes_away_loses_nothing() {
    all(Failing::Gone);
}

#[test]
fn a_disk_that_fills_up_loses_nothing() {
    all(Failing::Full);
}

#[test]
fn a_short_write_loses_nothing() {
    all(Failing::Short);
}
