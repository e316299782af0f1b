//! Each call that changes something fails once: the store says so, or needs it not.

use super::cuts::{runtime, store_in};
use super::workload::{Known, Mark, open, read, steps, take, which};
use smalti_powercut::{Said, failing_disks, scratch};
use std::path::Path;

const STEPS: usize = 60;
const SEED: u64 = 5;

failing_disks!("raft", work, check());

fn work(folder: &Path, mark: &dyn Fn(u64)) -> Result<(), String> {
    let (path, steps) = (store_in(folder), steps(SEED, STEPS));
    match runtime().block_on(take(&path, &steps, |step| mark(step.code()))) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string().replace('\n', " ")),
    }
}

fn check() -> impl Fn(&Path, &Said) {
    let steps = steps(SEED, STEPS);
    let whole = scratch().unwrap();
    let states = runtime().block_on(take(&store_in(whole.path()), &steps, |_| {})).unwrap();
    move |folder, said| {
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
    }
}
