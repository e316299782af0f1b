use super::*;
use rocksdb::properties::{NUM_DELETES_ACTIVE_MEM_TABLE, NUM_ENTRIES_ACTIVE_MEM_TABLE};
use smalti_storage::ids::ClusterId;
use smalti_storage::store::suite::{place, put, ver};
use std::sync::Barrier;

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
