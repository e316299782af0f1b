use super::*;
use crate::apply::prepare;
use crate::label::Directory;
use crate::{Expect, RocksStore};
use smalti_storage::ids::{ClusterId, VolumeNo};
use smalti_storage::store::suite::{place, put, ver};
use smalti_storage::store::{Batch, Change, ShardStore};
use std::thread::sleep;
use std::time::Instant;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// More than are read at once.
const VOLUMES: u32 = 80;
const ROWS: u32 = 32;
/// How many of them are deleted one by one.
const DELETED: u32 = 24;
const EXPECT: Expect = Expect { cluster: ClusterId(uuid::Uuid::from_u128(7)) };

fn filled() -> TempDir {
    let directory = TempDir::new().expect("a temporary directory");
    let store = open(&directory);
    for volume in 1..=VOLUMES {
        let rows = (0..ROWS).map(|i| put(place(volume, 0, 0, i, 0), ver(1, 1), 1, 4160));
        store.commit(Batch::durable(rows.collect())).expect("commit");
    }
    // Which writes the buffers out.
    store.close().expect("closed");
    directory
}

fn open(directory: &TempDir) -> RocksStore {
    RocksStore::open(directory.path(), &RocksOptions::default(), EXPECT).expect("it opens")
}

/// The database of a store, with nobody who reclaims anything.
fn database(directory: &TempDir) -> Arc<Database> {
    let (directory, label) = Directory::open(directory.path(), EXPECT, false).expect("a label");
    let started = Database::start(&directory, &label, &RocksOptions::default());
    Arc::new(started.expect("it opens").database)
}

fn commit(database: &Database, changes: impl Iterator<Item = Change>) {
    let prepared = prepare(database, &Batch::durable(changes.collect())).expect("prepared");
    database.db.write(prepared.write).expect("written");
}

fn drop_all(database: &Database) {
    commit(database, (1..=VOLUMES).map(|no| Change::DropVolume { volume: VolumeNo(no) }));
}

/// On a disk of 10 GiB with so much free.
fn collector(database: &Arc<Database>, free: u64) -> Collector {
    let space = move || Ok(Space { total: 10 << 30, free, ..Space::default() });
    Collector {
        database: Arc::clone(database),
        garbage_bytes_min: 256 * MIB,
        space: Box::new(space),
    }
}

fn all(database: &Database) -> u64 {
    Sizes::of(database).expect("sizes").all
}

fn noted(database: &Database) -> usize {
    database.drops(1000).expect("readable").len()
}

#[test]
fn the_space_of_what_was_dropped_before_a_start_comes_back() {
    let directory = filled();
    let database = database(&directory);
    drop_all(&database);
    let before = all(&database);
    assert!(before > u64::from(VOLUMES * ROWS) * 4160, "{before}");
    drop(database);
    let store = open(&directory);
    let deadline = Instant::now() + Duration::from_secs(30);
    let database = &store.database;
    while all(database) > 0 || noted(database) > 0 {
        let left = (all(database), noted(database));
        assert!(Instant::now() < deadline, "the space does not come back: {left:?}");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_drop_is_noted_until_its_space_is_taken_back() {
    let directory = filled();
    let database = database(&directory);
    drop_all(&database);
    drop_all(&database);
    assert_eq!(noted(&database), 2 * VOLUMES as usize);
    let (collector, stop) = (collector(&database, 9 << 30), Stop::default());
    stop.set();
    // What it would compact now would be cancelled.
    collector.take_back(&stop);
    assert_eq!(noted(&database), 2 * VOLUMES as usize);
    collector.take_back(&Stop::default());
    assert_eq!((noted(&database), all(&database)), (0, 0));
}

/// Most of each volume's records, one by one.
fn delete_most(database: &Database) {
    let rows = (1..=VOLUMES).flat_map(|no| (0..DELETED).map(move |i| place(no, 0, 0, i, 0)));
    commit(database, rows.map(|at| Change::DeleteVersion { at, ver: ver(1, 1) }));
}

/// What it takes to begin.
fn needed(database: &Database) -> u64 {
    database.unwritten().expect("known") + SPARE
}

fn deletions_in_buffers(database: &Database) -> u64 {
    let name = rocksdb::properties::NUM_DELETES_ACTIVE_MEM_TABLE;
    database.db.property_int_value_cf(database.data(), name).expect("known").unwrap_or(0)
}

#[test]
fn deletions_wait_while_the_buffers_may_not_fit_on_the_disk() {
    let directory = filled();
    let database = database(&directory);
    delete_most(&database);
    let unmet = u64::from(VOLUMES * DELETED);
    assert_eq!(deletions_in_buffers(&database), unmet);
    let (needed, stop) = (needed(&database), Stop::default());
    assert!(needed < 40 * MIB, "{needed}");
    // There are enough of them for a disk that is full.
    for free in [0, MIB, needed - 1] {
        let collector = Collector { garbage_bytes_min: MIB, ..collector(&database, free) };
        collector.settle(&stop);
        collector.collect(0, &stop);
        assert_eq!(deletions_in_buffers(&database), unmet, "written out with {free} free");
        assert_eq!(database.unmet.load(Ordering::Relaxed), unmet, "still known with {free} free");
    }
    let collector = Collector { garbage_bytes_min: MIB, ..collector(&database, needed) };
    collector.settle(&stop);
    assert_eq!(deletions_in_buffers(&database), 0);
    assert!(Sizes::of(&database).expect("sizes").garbage >= unmet * 4160);
}

#[test]
fn drops_wait_while_the_buffers_may_not_fit_on_the_disk() {
    let directory = filled();
    let database = database(&directory);
    drop_all(&database);
    let (before, stop) = (all(&database), Stop::default());
    collector(&database, needed(&database) - 1).take_back(&stop);
    assert_eq!((noted(&database), all(&database)), (VOLUMES as usize, before));
    collector(&database, needed(&database)).take_back(&stop);
    assert_eq!((noted(&database), all(&database)), (0, 0));
}

#[test]
fn full_buffers_need_their_room() {
    const RECORDS: u64 = 6 * MIB / 4160;
    let directory = filled();
    let database = database(&directory);
    let before = needed(&database);
    let rows = (0..RECORDS as u32).map(|i| put(place(1, 0, 1, i, 0), ver(1, 1), 1, 4160));
    commit(&database, rows);
    let more = needed(&database) - before;
    assert!((RECORDS * 4160..12 * MIB).contains(&more), "{more}");
    database.flush().expect("written out");
    assert!(needed(&database) < before + MIB, "{} after {before}", needed(&database));
}

#[test]
fn a_drop_goes_before_the_next_round_of_a_collection() {
    let directory = filled();
    let database = database(&directory);
    delete_most(&database);
    let (collector, stop) = (collector(&database, 9 << 30), Stop::default());
    let collector = Collector { garbage_bytes_min: MIB, ..collector };
    collector.settle(&stop);
    let garbage = || Sizes::of(&database).expect("sizes").garbage;
    let found = garbage();
    assert!(found > 0);
    commit(&database, [Change::DropVolume { volume: VolumeNo(1) }].into_iter());
    collector.collect(0, &stop);
    assert_eq!(garbage(), found, "it rewrites records of what was dropped");
    // Then what is dead is collected as well.
    collector.take_back(&stop);
    assert_eq!(noted(&database), 0);
    assert!(garbage() < found / 2, "{} of {found}", garbage());
}
