//! Bits turned over below our own checksums, through RocksDB itself, which finds nothing wrong:
//! an error for what they belong to, never other data, and no harm to what lies beside it.

use super::*;
use crate::options::{DATA, META, PREP, STATE, WalCheck};
use rocksdb::DB;
use smalti_storage::ids::{ClusterId, Epoch};
use smalti_storage::store::Change;
use smalti_storage::store::suite::{place, put, ver};
use tempfile::TempDir;

const EXPECT: Expect = Expect { cluster: ClusterId(Uuid::from_u128(7)) };

fn open(path: &Path) -> Result<RocksStore, StoreError> {
    RocksStore::open(path, &RocksOptions::default(), EXPECT)
}

/// Two neighbours, the second of which is a parity slot with a vector.
fn slots() -> [RowSlot; 2] {
    [place(1, 0, 5, 1, 0), place(1, 0, 5, 1, 1)]
}

fn filled() -> (TempDir, RocksStore) {
    let directory = TempDir::new().expect("a temporary directory");
    let store = open(directory.path()).expect("a new store");
    let state =
        VolumeState { promised: Epoch(3), watermark: ver(2, 9), collected: 4, doubted: None };
    let mut changes = vec![Change::SetVolume { volume: VolumeNo(1), state }];
    for at in slots() {
        changes.push(put(at, ver(2, 7), 1, 4160));
        changes.push(put(at, ver(3, 8), 2, 4160));
        changes.push(Change::SetPrepared { at, ver: ver(3, 8) });
    }
    store.commit(Batch::durable(changes)).expect("commit");
    (directory, store)
}

/// Turns over each of a value's bits by itself, or every `step`-th, and has each looked at.
fn each_bit(store: &RocksStore, family: &str, key: &[u8], step: usize, check: impl Fn(usize)) {
    let db = &store.database.db;
    let family = db.cf_handle(family).expect("a family");
    let good = db.get_cf(family, key).expect("readable").expect("there");
    for bit in (0..good.len() * 8).step_by(step) {
        db.put_cf(family, key, turned(&good, bit)).expect("written");
        check(bit);
    }
    db.put_cf(family, key, good).expect("written");
}

fn turned(good: &[u8], bit: usize) -> Vec<u8> {
    let mut bad = good.to_vec();
    bad[bit / 8] ^= 1 << (bit % 8);
    bad
}

fn is_corrupt<T>(found: &Result<T, StoreError>, slot: RowSlot) -> bool {
    matches!(found, Err(StoreError::Corrupt { at, .. }) if *at == slot)
}

#[test]
fn no_bit_of_metadata_is_taken() {
    let (_directory, store) = filled();
    for (mine, other) in [(0, 1), (1, 0)] {
        let (at, beside) = (slots()[mine], slots()[other]);
        let whole = store.versions(beside).expect("versions");
        each_bit(&store, META, &version::encode(at, ver(3, 8)), 1, |bit| {
            assert!(is_corrupt(&store.versions(at), at), "bit {bit}");
            assert!(is_corrupt(&store.head(at), at), "bit {bit}");
            assert!(is_corrupt(&store.meta(at, ver(3, 8)), at), "bit {bit}");
            assert!(is_corrupt(&store.metas(&[(at, ver(3, 8))])[0], at), "bit {bit}");
            let both = store.newest(&[at, beside], 1);
            assert!(is_corrupt(&both[0], at), "bit {bit}");
            assert_eq!(both[1].as_ref().expect("whole"), &whole[..1]);
            // The older version is another value.
            assert!(store.meta(at, ver(2, 7)).expect("whole").is_some());
            let page = |after| store.scan(VolumeNo(1), GroupNo(0), after, 9);
            if mine == 0 {
                assert!(is_corrupt(&page(None), at), "bit {bit}");
                assert_eq!(page(Some(at)).expect("behind it"), [(beside, whole.clone())]);
            } else {
                assert_eq!(page(None).expect("before it"), [(beside, whole.clone())]);
                assert!(is_corrupt(&page(Some(beside)), at), "bit {bit}");
            }
        });
        assert_eq!(store.versions(at).expect("as before").len(), 2);
    }
}

#[test]
fn no_bit_of_a_record_verifies() {
    let (_directory, store) = filled();
    for at in slots() {
        let meta = store.head(at).expect("head").expect("there");
        // The store does not verify records, see R4: this is what its callers do.
        each_bit(&store, DATA, &version::encode(at, meta.ver), 7, |bit| {
            let record = store.record(at, meta.ver).expect("readable").expect("there");
            assert!(!meta.verifies(at, &record), "bit {bit}");
            let records = store.records(&[(at, meta.ver)]);
            let record = records[0].as_ref().expect("readable").as_ref().expect("there");
            assert!(!meta.verifies(at, record), "bit {bit}");
        });
        let record = store.record(at, meta.ver).expect("readable").expect("there");
        assert!(meta.verifies(at, &record));
    }
}

#[test]
fn no_bit_of_a_mark_or_a_state_is_taken() {
    let (_directory, store) = filled();
    let [at, beside] = slots();
    each_bit(&store, PREP, &slot::encode(at), 1, |bit| {
        assert!(is_corrupt(&store.prepared_at(at), at), "bit {bit}");
        assert!(is_corrupt(&store.prepared(VolumeNo(1)), at), "bit {bit}");
        assert_eq!(store.prepared_at(beside).expect("whole"), Some(ver(3, 8)));
    });
    each_bit(&store, STATE, &volume::encode(VolumeNo(1)), 1, |bit| {
        assert!(matches!(store.volume(VolumeNo(1)), Err(StoreError::Io(_))), "bit {bit}");
    });
}

#[test]
fn no_bit_of_the_stores_own_record_is_taken() {
    let (directory, store) = filled();
    // Not closed: after a clean end a manifest that is not as it was would be reason enough.
    drop(store);
    let options = RocksOptions::default();
    let database = || {
        let settings = options.database(false, WalCheck::On);
        let families = options.families().expect("known options");
        DB::open_cf_descriptors(&settings, directory.path().join("db"), families)
            .expect("the database")
    };
    let read = |db: &DB| {
        let state = db.cf_handle(STATE).expect("a family");
        db.get_cf(state, b"run").expect("readable").expect("there")
    };
    let good = read(&database());
    // Each start takes a while; all bits are turned over where values are, see `value`.
    for bit in (0..good.len() * 8).step_by(7) {
        let db = database();
        let state = db.cf_handle(STATE).expect("a family");
        db.put_cf(state, b"run", turned(&good, bit)).expect("written");
        drop(db);
        match open(directory.path()) {
            Err(StoreError::Damaged(line)) => {
                assert!(line.contains("state does not verify"), "bit {bit}: {line}");
            }
            other => panic!("bit {bit}: {other:?}"),
        }
    }
}

#[test]
fn no_bit_of_the_label_is_taken() {
    let (directory, store) = filled();
    store.close().expect("close");
    drop(store);
    let label = directory.path().join("STORE");
    let good = std::fs::read(&label).expect("the label");
    for bit in 0..good.len() * 8 {
        std::fs::write(&label, turned(&good, bit)).expect("written");
        match open(directory.path()) {
            Err(StoreError::Refused(_) | StoreError::Damaged(_)) => {}
            other => panic!("bit {bit}: {other:?}"),
        }
    }
    std::fs::write(&label, good).expect("written");
    assert!(open(directory.path()).expect("as before").opened().clean);
}
