use super::*;
use crate::store::suite::{self, MemorySubject, assert_same, place, put, ver};

fn store() -> MemoryStore {
    MemoryStore::new(StoreId::default())
}

fn commit(store: &MemoryStore, changes: Vec<Change>) {
    store.commit(Batch::durable(changes)).expect("commit");
}

#[test]
fn conforms() {
    suite::run_all(|| Box::new(MemorySubject::default()));
}

#[test]
fn a_crash_loses_relaxed_batches_from_the_end_only() {
    let at = place(1, 0, 0, 0, 0);
    let group = (VolumeNo(1), GroupNo(0));
    let store = store();
    commit(&store, vec![put(at, ver(1, 1), 1, 64), Change::SetPrepared { at, ver: ver(1, 1) }]);
    let mut states = vec![store.fork()];
    let drop_all = Change::DropVolume { volume: VolumeNo(1) };
    let value = VolumeState { watermark: ver(1, 2), ..VolumeState::default() };
    for changes in [
        vec![Change::DeleteVersion { at, ver: ver(1, 1) }, Change::ClearPrepared { at }],
        vec![put(at, ver(1, 2), 2, 64), put(at, ver(1, 2), 3, 64)],
        vec![Change::SetVolume { volume: VolumeNo(1), state: value }, Change::DropSlot { at }],
        vec![put(at, ver(1, 3), 2, 64), drop_all],
    ] {
        store.commit(Batch::relaxed(changes)).expect("relaxed commit");
        states.push(store.fork());
    }
    for lost in 0..=5 {
        let crashed = store.fork();
        let opened = crashed.restart(Restart { lost, ..Restart::default() });
        assert_eq!((opened.incarnation, opened.clean), (Incarnation(2), false));
        let expected = &states[4usize.saturating_sub(lost)];
        assert_eq!(crashed.fingerprint(), expected.fingerprint());
        assert_same(&crashed, expected, &[group]);
        assert_eq!(crashed.space().expect("space"), expected.space().expect("space"));
    }
    // A durable batch makes all earlier ones durable too.
    commit(&store, vec![put(at, ver(1, 9), 1, 64)]);
    let before = store.fingerprint();
    store.restart(Restart { lost: 9, ..Restart::default() });
    assert_eq!(store.fingerprint(), before);
}

#[test]
fn a_full_store_changes_nothing_and_stays_failed_until_restarted() {
    let at = place(1, 0, 0, 0, 0);
    let store = store().with_capacity(2 * VERSION_COST + 150);
    commit(&store, vec![put(at, ver(1, 1), 1, 100)]);
    assert_eq!(store.space().expect("space").free, VERSION_COST + 50);
    let before = store.fingerprint();
    let too_much = vec![Change::SetPrepared { at, ver: ver(1, 2) }, put(at, ver(1, 2), 1, 51)];
    let error = store.commit(Batch::durable(too_much)).expect_err("it does not fit");
    assert!(error.to_string().contains("no space"), "{error}");
    assert_eq!(store.fingerprint(), before);
    let fits = Batch::durable(vec![put(at, ver(1, 2), 1, 50)]);
    store.commit(fits.clone()).expect_err("a failed store takes nothing");
    store.close().expect_err("a failed store leaves no clean marker");
    store.restart(Restart::default());
    store.commit(fits).expect("it fits");
    // What frees space is taken even when full.
    store.set_capacity(0);
    commit(&store, vec![Change::DeleteVersion { at, ver: ver(1, 1) }]);
}

#[test]
fn faults_are_seen() {
    let at = place(1, 0, 0, 0, 0);
    let store = store();
    commit(&store, vec![put(at, ver(1, 1), 1, 100), put(at, ver(1, 2), 0, 0)]);
    let clean = store.fork();
    assert!(store.corrupt_record(at, ver(1, 1), 250));
    assert!(!store.corrupt_record(at, ver(1, 2), 0), "absent versions have no bytes");
    let meta = store.meta(at, ver(1, 1)).expect("meta").expect("there");
    let record = store.record(at, ver(1, 1)).expect("record").expect("there");
    assert_eq!(record[50], 0xfe);
    assert!(!meta.verifies(at, &record));
    assert_ne!(store.fingerprint(), clean.fingerprint());
    assert!(store.corrupt_record(at, ver(1, 1), 50), "twice is back again");
    assert_eq!(store.fingerprint(), clean.fingerprint());
    assert!(store.forget(at, ver(1, 2)));
    assert!(!store.forget(at, ver(1, 2)));
    assert_eq!(store.head(at).expect("head").map(|meta| meta.ver), Some(ver(1, 1)));
    assert_eq!(clean.head(at).expect("head").map(|meta| meta.ver), Some(ver(1, 2)));
}

#[test]
fn a_scan_stops_before_corrupt_metadata_and_can_go_on_behind_it() {
    let store = store();
    let rows: Vec<_> = (0..5).map(|i| place(1, 0, i, 0, 0)).collect();
    commit(&store, rows.iter().map(|at| put(*at, ver(1, 1), 1, 10)).collect());
    assert!(store.corrupt_meta(rows[2], ver(1, 1)));
    let scan = |after| store.scan(VolumeNo(1), GroupNo(0), after, 10);
    assert_eq!(scan(None).expect("the part before").len(), 2);
    let Err(StoreError::Corrupt { at, .. }) = scan(Some(rows[1])) else {
        panic!("the page begins with a corrupt row slot")
    };
    assert_eq!(at, rows[2]);
    assert_eq!(scan(Some(at)).expect("the part behind").len(), 2);
    assert!(store.versions(at).is_err() && store.head(at).is_err());
    commit(&store, vec![Change::DropSlot { at }, put(at, ver(1, 1), 1, 10)]);
    assert_eq!(scan(None).expect("repaired").len(), 5);
}
