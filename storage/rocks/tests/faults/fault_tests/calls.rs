//! Each call that changes something fails once: the store says so and stops, or needs it not.

use super::workload::{Known, Mark, batches, counted, groups, open, store_in, twin, write};
use smalti_powercut::{Failing, child, each};
use smalti_storage::store::ShardStore;
use smalti_storage::store::suite::assert_same;

const BATCHES: usize = 60;
const SEED: u64 = 5;

#[test]
fn process_with_a_failing_disk() {
    child(|folder, mark| {
        write(&store_in(folder), &batches(SEED, BATCHES), |step| mark(step.code()))
            .map_err(|error| error.to_string())
    });
}

fn all(failing: Failing) {
    let batches = batches(SEED, BATCHES);
    each("store", "fault_tests::calls::process_with_a_failing_disk", failing, |folder, said| {
        let known = Known::after(said.marks.iter().copied().map(Mark::of), &batches);
        if said.stopped.is_none() {
            assert_eq!(said.marks.last(), Some(&Mark::Opened(5).code()), "it did all of its work");
        }
        let store = open(&store_in(folder)).expect("opens on a disk that works again");
        let opened = store.opened();
        let count = counted(&store).expect("counted");
        assert!((known.least..=known.most).contains(&count), "{count} batches, {known:?}");
        assert!(!opened.clean || count == known.most, "clean with {count} batches, {known:?}");
        assert!(opened.incarnation.0 > u64::from(known.served), "{opened:?}, {known:?}");
        assert_same(&store, &twin(&batches[..count as usize]), &groups());
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
