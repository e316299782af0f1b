//! A manifest that may name a file or may not: the file has to stay.
//!
//! When a sync of the manifest fails, RocksDB can not tell whether the next start will find the
//! entry, so it keeps the files that the entry names. But it forgets that at the next change of
//! options.

use super::workload::{open, store_in, twin};
use smalti_powercut::{Event, Watch, scratch};
use smalti_rocks::RocksStore;
use smalti_storage::ids::{GroupNo, VolumeNo};
use smalti_storage::store::suite::{assert_same, place, put, ver};
use smalti_storage::store::{Batch, Change, ShardStore};
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What RocksDB does when options were changed: it writes down all of them.
const OPTIONS: &str = "store/db/OPTIONS-";
/// RocksDB waits for a second after a job that failed before it deletes what that has left.
const DELETED: Duration = Duration::from_millis(2500);
const LIMIT: Duration = Duration::from_secs(20);

/// Two groups, and what drops the larger one: more than half of all records are dead then, and the
/// files they lie in are rewritten.
fn batches() -> [Batch; 2] {
    let put = |group, index| put(place(1, group, 0, index, 0), ver(1, 1), 7, 4160);
    let puts = (0..60).map(|index| put(0, index)).chain((0..9).map(|index| put(1, index)));
    let drop = Change::DropGroup { volume: VolumeNo(1), group: GroupNo(0) };
    [Batch::durable(puts.collect()), Batch::durable(vec![drop])]
}

/// The sync of the manifest fails that is to name the rewritten files, between two changes of
/// options.
fn a_collection_fails(end: impl FnOnce(RocksStore)) {
    let folder = scratch().expect("a folder");
    let path = store_in(folder.path());
    let watch = Watch::begin(folder.path()).expect("watched");
    let batches = batches();
    {
        let store = open(&path).expect("a new store");
        store.commit(batches[0].clone()).expect("written");
        store.close().expect("closed");
    }
    let store = open(&path).expect("opens");
    watch.fail_after(&["rename store/db/OPTIONS-", "fdatasync store/db/MANIFEST-"], Duration::ZERO);
    store.commit(batches[1].clone()).expect("written");
    let start = Instant::now();
    while watch.hit().is_none() {
        assert!(start.elapsed() < LIMIT, "no dead records were taken out");
        sleep(Duration::from_millis(5));
    }
    end(store);
    drop(watch);
    let store = open(&path).expect("opens on a disk that works again");
    assert_same(&store, &twin(&batches), &[0, 1].map(|group| (VolumeNo(1), GroupNo(group))));
}

#[test]
fn a_store_that_ends_then_keeps_the_file() {
    a_collection_fails(drop);
}

#[test]
fn a_store_that_stays_open_then_keeps_the_file() {
    a_collection_fails(|store| {
        sleep(DELETED);
        assert!(store.commit(batches()[0].clone()).is_err(), "it must say so");
    });
}

/// A change at a start could meet a compaction which that start has begun.
#[test]
fn a_start_changes_no_options() {
    let folder = scratch().expect("a folder");
    let path = store_in(folder.path());
    let watch = Watch::begin(folder.path()).expect("watched");
    open(&path).expect("a new store").close().expect("closed");
    let before = watch.record().events.len();
    let _store = open(&path).expect("opens");
    let events = watch.record().events.split_off(before);
    let written = events
        .into_iter()
        .filter_map(|event| match event {
            Event::Rename { to, .. } if to.starts_with(OPTIONS) => Some(to),
            _ => None,
        })
        .collect::<Vec<_>>();
    assert_eq!(written.len(), 1, "{written:?}");
    let text = fs::read_to_string(folder.path().join(&written[0])).expect("the options");
    let flushed = text.matches("memtable_op_scan_flush_trigger=512").count();
    assert_eq!(flushed, 1, "of metadata: {text}");
}
