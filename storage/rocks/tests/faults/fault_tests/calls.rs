//! Each call that changes something fails once: the store says so and stops, or needs it not.

use super::workload::{Known, Mark, batches, counted, groups, open, store_in, twin, write};
use smalti_powercut::{Said, failing_disks};
use smalti_storage::store::ShardStore;
use smalti_storage::store::suite::assert_same;
use std::path::Path;

const BATCHES: usize = 60;
const SEED: u64 = 5;

failing_disks!("store", work, check());

fn work(folder: &Path, mark: &dyn Fn(u64)) -> Result<(), String> {
    write(&store_in(folder), &batches(SEED, BATCHES), |step| mark(step.code()))
        .map_err(|error| error.to_string())
}

fn check() -> impl Fn(&Path, &Said) {
    let batches = batches(SEED, BATCHES);
    move |folder, said| {
        let known = Known::after(said.marks.iter().copied().map(Mark::of), &batches);
        if said.stopped.is_none() {
            assert_eq!(said.marks.last(), Some(&Mark::Opened(7).code()), "it did all of its work");
        }
        let store = open(&store_in(folder)).expect("opens on a disk that works again");
        let opened = store.opened();
        let count = counted(&store).expect("counted");
        assert!((known.least..=known.most).contains(&count), "{count} batches, {known:?}");
        assert!(!opened.clean || count == known.most, "clean with {count} batches, {known:?}");
        known.check_start(&opened);
        assert_same(&store, &twin(&batches[..count as usize]), &groups());
    }
}
