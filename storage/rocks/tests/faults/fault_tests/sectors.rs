//! A disk that does not give back a part of what was written to it.

use super::workload::{open, store_in};
use smalti_powercut::{Watch, scratch};
use smalti_rocks::RocksStore;
use smalti_storage::ids::{GroupNo, RowSlot, VolumeNo};
use smalti_storage::store::suite::{place, put, ver};
use smalti_storage::store::{Batch, Change, ShardStore, StoreError};
use std::thread::sleep;
use std::time::{Duration, Instant};

const ROWS: u32 = 200;
const LEN: usize = 4160;
const LIMIT: Duration = Duration::from_secs(20);

fn at(index: u32) -> RowSlot {
    place(1, 0, 0, index, 0)
}

fn written() -> Batch {
    let rows = (0..ROWS).map(|index| put(at(index), ver(1, 1), 7, LEN));
    // Behind them, and not looked at, some of another group.
    let others = (0..ROWS / 8).map(|index| put(place(1, 1, 0, index, 0), ver(1, 1), 7, LEN));
    Batch::durable(rows.chain(others).collect())
}

/// A store with rows that have been written out, opened anew so that none is in memory.
fn with_rows(check: impl FnOnce(&Watch, RocksStore)) {
    let folder = scratch().expect("a folder");
    let path = store_in(folder.path());
    let watch = Watch::begin(folder.path()).expect("watched");
    {
        let store = open(&path).expect("a new store");
        store.commit(written()).expect("written");
        store.close().expect("closed");
    }
    check(&watch, open(&path).expect("opens"));
}

/// How many rows can not be read; all others must be right.
fn lost<T>(read: impl Fn(RowSlot) -> Result<T, StoreError>) -> u32 {
    let lost = |index: &u32| match read(at(*index)) {
        Ok(_) => false,
        Err(StoreError::Corrupt { at: found, .. }) => found == at(*index),
        Err(other) => panic!("row {index}: {other}"),
    };
    (0..ROWS).filter(lost).count() as u32
}

#[test]
fn a_record_in_a_bad_sector_is_lost_alone_and_can_be_replaced() {
    with_rows(|watch, store| {
        watch.unreadable(".blob", 100_000);
        let record = |at| store.record(at, ver(1, 1)).map(|found| found.expect("it was written"));
        assert_eq!(lost(record), 1, "{:?}", watch.hit());
        let bad = (0..ROWS).find(|index| record(at(*index)).is_err()).expect("one is lost");
        store.commit(Batch::durable(vec![put(at(bad), ver(1, 2), 9, LEN)])).expect("written");
        let found = store.record(at(bad), ver(1, 2)).expect("readable").expect("there");
        assert_eq!(found.len(), LEN);
    });
}

#[test]
fn metadata_in_a_bad_sector_is_lost_for_the_rows_of_its_block() {
    with_rows(|watch, store| {
        watch.unreadable(".sst", 300);
        let lost = lost(|at| store.versions(at));
        assert!(0 < lost && lost <= ROWS, "{lost} rows, {:?}", watch.hit());
        store.commit(Batch::durable(vec![put(at(ROWS), ver(1, 1), 7, LEN)])).expect("written");
    });
}

/// Dead records can not be taken out of such a file: the store is to be made anew from the others.
#[test]
fn a_file_that_can_not_be_rewritten_damages_the_store() {
    with_rows(|watch, store| {
        watch.unreadable(".blob", (u64::from(ROWS) + 10) * LEN as u64);
        // Most of the file is dead then, and the rest of it is rewritten.
        let drop = Change::DropGroup { volume: VolumeNo(1), group: GroupNo(0) };
        store.commit(Batch::durable(vec![drop])).expect("written");
        let start = Instant::now();
        let mut wid = 1;
        let why = loop {
            assert!(start.elapsed() < LIMIT, "nothing was rewritten: {:?}", watch.hit());
            wid += 1;
            let more = put(at(0), ver(2, wid), 8, LEN);
            if let Err(why) = store.commit(Batch::durable(vec![more])) {
                break why;
            }
            sleep(Duration::from_millis(5));
        };
        assert!(matches!(why, StoreError::Damaged(_)), "{why}");
    });
}
