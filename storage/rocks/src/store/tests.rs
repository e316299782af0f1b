use super::*;
use rocksdb::properties::{NUM_DELETES_ACTIVE_MEM_TABLE, NUM_ENTRIES_ACTIVE_MEM_TABLE};
use rocksdb::{BottommostLevelCompaction, CompactOptions};
use smalti_powercut::{Watch, scratch};
use smalti_storage::ids::ClusterId;
use smalti_storage::store::suite::{place, put, ver};
use std::sync::Barrier;
use std::thread::sleep;
use std::time::Duration;

/// R2 under concurrency. What breaks it shows only once compactions meet the puts in an unlucky
/// order, so the deletions between the puts are counted instead.
#[test]
fn every_put_of_a_stored_version_is_behind_a_deletion() {
    const WRITERS: u8 = 4;
    const ROWS: u64 = 40;
    const OTHERS: u32 = 200;
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let expect = Expect { cluster: ClusterId::default() };
    let store =
        RocksStore::open(directory.path(), &RocksOptions::default(), expect).expect("a new store");
    let barrier = Barrier::new(usize::from(WRITERS));
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (store, barrier) = (&store, &barrier);
            scope.spawn(move || {
                for i in 0..ROWS {
                    // The others make the way from looking for the first to writing it long.
                    let own = |n| place(2, u16::from(writer), i, n, 0);
                    let mut changes = vec![put(place(1, 0, i, 0, 0), ver(1, 1), writer, 9)];
                    changes.extend((0..OTHERS).map(|n| put(own(n), ver(1, 1), writer, 9)));
                    let batch = Batch::relaxed(changes);
                    barrier.wait();
                    store.commit(batch).expect("commit");
                }
            });
        }
    });
    let Database { db, .. } = &*store.database;
    let count = |name| db.property_int_value_cf(store.database.meta(), name).expect("a property");
    let puts = u64::from(WRITERS) * ROWS * u64::from(1 + OTHERS);
    let deletions = u64::from(WRITERS - 1) * ROWS;
    // All is still in one buffer, or the counts would say nothing.
    assert_eq!(count(NUM_ENTRIES_ACTIVE_MEM_TABLE), Some(puts + deletions));
    assert_eq!(count(NUM_DELETES_ACTIVE_MEM_TABLE), Some(deletions));
}

/// A machine that was started anew may have lost what its disk had not written, and a crash later on
/// does not bring it back; only a run that ended in order shows that all is there.
#[test]
fn a_power_cut_is_told_until_a_run_ends_in_order() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let expect = Expect { cluster: ClusterId::default() };
    let open = || {
        let store = RocksStore::open(directory.path(), &RocksOptions::default(), expect);
        let store = store.expect("it opens");
        let Opened { incarnation, clean, went_back, .. } = store.opened();
        let run = RunId(Uuid::from_u128(u128::from(incarnation.0)));
        store.admit(Admission { run, incarnation, clean }).expect("admitted");
        assert_eq!(store.opened().went_back, went_back, "it stays after the admission");
        (store, clean, went_back)
    };
    let reboot = || {
        let (directory, label) =
            Directory::open(directory.path(), expect, false).expect("a store directory");
        let boot = Uuid::from_u128(u128::from(label.incarnation.0));
        directory.write(&Label { boot, ..label }).expect("written");
    };
    let (store, clean, went_back) = open();
    assert_eq!((clean, went_back), (true, false), "new");
    drop(store);
    let (store, clean, went_back) = open();
    assert_eq!((clean, went_back), (false, false), "the process died");
    drop(store);
    reboot();
    for _ in 0..2 {
        let (store, clean, went_back) = open();
        assert_eq!((clean, went_back), (false, true));
        drop(store);
    }
    let (store, ..) = open();
    store.close().expect("closed");
    drop(store);
    reboot();
    let (store, clean, went_back) = open();
    assert_eq!((clean, went_back), (true, false), "it had ended in order before");
    drop(store);
    let (store, clean, went_back) = open();
    assert_eq!((clean, went_back), (false, false), "and since then only the process died");
    store.close().expect("closed");
    drop(store);
    // The cluster knows of a later run than the one that ended in order.
    let store = RocksStore::open(directory.path(), &RocksOptions::default(), expect);
    let store = store.expect("it opens");
    let Opened { incarnation, clean, .. } = store.opened();
    let run = RunId(Uuid::from_u128(1000));
    store.admit(Admission { run, incarnation, clean: false }).expect("admitted");
    assert_eq!((clean, store.opened().went_back), (true, true));
    drop(store);
    let (_, clean, went_back) = open();
    assert_eq!((clean, went_back), (false, true));
}

/// Lets the sync of the manifest fail that is to name what a compaction has written, and calls
/// `meanwhile` while it takes half a second for that. Then the store is opened again.
fn with_a_failing_compaction(meanwhile: impl FnOnce(&RocksStore)) {
    let folder = scratch().expect("a folder");
    let watch = Watch::begin(folder.path()).expect("watched");
    let open = || {
        let expect = Expect { cluster: ClusterId::default() };
        RocksStore::open(folder.path().join("store"), &RocksOptions::default(), expect)
    };
    let (at, version) = (place(1, 0, 0, 0, 0), ver(1, 1));
    let store = open().expect("a new store");
    store.commit(Batch::durable(vec![put(at, version, 7, 4160)])).expect("commit");
    let Database { db, .. } = &*store.database;
    let compact = || {
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        let all = None::<&[u8]>;
        db.compact_range_cf_opt(store.database.data(), all, all, &options);
    };
    // This one only moves the table to the last level; the next writes it anew.
    compact();
    for family in [store.database.meta(), store.database.prep(), store.database.state()] {
        db.flush_cf(family).expect("written out");
    }
    watch.fail_after(&["fdatasync store/db/MANIFEST-"], Duration::from_millis(500));
    std::thread::scope(|scope| {
        let compaction = scope.spawn(compact);
        while watch.hit().is_none() {
            assert!(!compaction.is_finished(), "it wrote nothing");
            sleep(Duration::from_millis(1));
        }
        store.database.check_background().expect("nothing has failed yet");
        meanwhile(&store);
    });
    // RocksDB waits for a second before it deletes what a failed job has left.
    sleep(Duration::from_millis(2500));
    drop(store);
    let store = open().expect("opens on a disk that works again");
    assert!(!store.opened().clean);
    assert!(store.record(at, version).expect("readable").is_some());
}

#[test]
fn an_option_changed_behind_a_failing_write_of_the_manifest_costs_no_file() {
    with_a_failing_compaction(|store| {
        let data = store.database.data();
        let set = store.database.set_option(data, "blob_garbage_collection_age_cutoff", "0.5");
        assert!(set.is_err(), "known now");
    });
}

#[test]
fn an_end_during_a_failing_write_of_the_manifest_is_no_clean_one() {
    with_a_failing_compaction(|store| assert!(store.close().is_err(), "known now"));
}

#[test]
fn what_was_stored_of_a_volume_before_there_were_snapshots_stays_readable() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let expect = Expect { cluster: ClusterId::default() };
    let store =
        RocksStore::open(directory.path(), &RocksOptions::default(), expect).expect("a new store");
    let (promised, watermark) = (Epoch(3), ver(2, 9));
    let key = volume::encode(VolumeNo(1));
    let old = value::encode(&key, &StateBeforeSnapshots { promised, watermark });
    store.database.db.put_cf(store.database.state(), key, old).expect("put");
    let state = store.volume(VolumeNo(1)).expect("readable");
    assert_eq!(state, VolumeState { promised, watermark, ..VolumeState::default() });
}

/// A compaction meets a block that does not verify: the store ends, and as what it is, for its disk works.
#[test]
fn damage_that_a_compaction_meets_is_told_from_a_disk_that_fails() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let expect = Expect { cluster: ClusterId::default() };
    let store =
        RocksStore::open(directory.path(), &RocksOptions::default(), expect).expect("a new store");
    let rows = || (0..2_000).map(|row| put(place(1, 0, row, 0, 0), ver(1, 1), 7, 4160));
    store.commit(Batch::durable(rows().collect())).expect("commit");
    store.database.db.flush_cf(store.database.meta()).expect("written out");
    for file in std::fs::read_dir(directory.path().join("db")).expect("readable") {
        let path = file.expect("readable").path();
        if path.extension().is_some_and(|extension| extension == "sst") {
            let mut bytes = std::fs::read(&path).expect("readable");
            bytes[500] ^= 4;
            std::fs::write(&path, bytes).expect("written");
        }
    }
    let mut options = CompactOptions::default();
    options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
    let all = None::<&[u8]>;
    for _ in 0..2 {
        // The first one may only move the table.
        store.database.db.compact_range_cf_opt(store.database.meta(), all, all, &options);
    }
    let why = store.commit(Batch::durable(rows().take(1).collect())).expect_err("it has ended");
    assert!(matches!(why, StoreError::Damaged(_)), "{why}");
}
