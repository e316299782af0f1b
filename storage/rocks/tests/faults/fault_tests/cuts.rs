//! Power cuts: what was acknowledged is there, and a store that can not know says so.

use super::workload::{
    Clean, Known, Mark, admit, batches, counted, groups, open, record, store_in, twin, write,
};
use smalti_powercut::{Cut, Disk, Event, Mode, Record, Trial, Watch, scratch};
use smalti_rocks::RocksStore;
use smalti_storage::ids::{GroupNo, RowSlot, VolumeNo};
use smalti_storage::store::memory::MemoryStore;
use smalti_storage::store::suite::{assert_same, place, put, ver};
use smalti_storage::store::{Batch, Change, ShardStore, SlotVersions, StoreError};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BATCHES: usize = 220;
/// Of a store that was closed in its first run.
const SURELY_CLEAN: Known = Known { least: 0, most: 0, served: 1, clean: Clean::Surely };

fn recorded(seed: u64) -> Record {
    record(&batches(seed, BATCHES))
}

/// What the marks up to a cut say, and the batches they are about.
fn known(cut: &Cut<'_>) -> (Known, Vec<Batch>) {
    let batches = batches(cut.workload, BATCHES);
    (Known::at(cut.record, cut.point, &batches), batches)
}

#[test]
fn the_record_is_whole() {
    let folder = scratch().expect("a folder");
    let watch = Watch::begin(folder.path()).expect("watched");
    let batches = batches(3, BATCHES);
    write(&store_in(folder.path()), &batches, |_| {}).expect("written");
    let record = watch.record();
    let mut seen = Disk::after(&record, record.events.len()).seen();
    let mut endings = std::collections::BTreeSet::new();
    for name in files(folder.path(), folder.path()) {
        let content = seen.remove(&name).unwrap_or_else(|| panic!("{name} is not in the record"));
        assert!(std::fs::read(folder.path().join(&name)).expect("a file") == content, "{name}");
        endings.extend(name.rsplit_once('.').map(|(_, ending)| ending.to_owned()));
    }
    assert!(seen.is_empty(), "only in the record: {:?}", seen.keys());
    for kind in ["log", "sst", "blob"] {
        assert!(endings.contains(kind), "the workload is too small for a {kind}: {endings:?}");
    }
}

fn files(root: &Path, folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            names.extend(files(root, &path));
        } else {
            let name = path.strip_prefix(root).expect("below it");
            names.push(name.to_str().expect("text").to_owned());
        }
    }
    names
}

#[test]
fn what_was_acknowledged_survives_a_power_cut() {
    let tally = Trial::new("store, honest disk", Mode::Honest).run(recorded, |cut| {
        let (known, batches) = known(&cut);
        let path = store_in(cut.folder);
        let store = match open(&path) {
            Err(StoreError::Damaged(_)) if cut.has_garbage_in_manifest() => {
                return "damaged".to_owned();
            }
            store => store.expect("opens after an honest cut"),
        };
        let clean = holds(&store, known, &batches);
        lives_on(store, &path);
        if clean { "clean" } else { "not clean" }.to_owned()
    });
    assert!(["clean", "not clean"].iter().all(|how| tally[*how] > 0), "both happen: {tally:?}");
}

/// Checks an honest image; answers whether it is clean.
fn holds(store: &RocksStore, known: Known, batches: &[Batch]) -> bool {
    let opened = store.opened();
    let count = counted(store).expect("counted");
    known.check_start(&opened);
    assert!((known.least..=known.most).contains(&count), "{count} batches, {known:?}");
    match known.clean {
        Clean::Never => assert!(!opened.clean, "{known:?}"),
        Clean::Surely => assert!(opened.clean, "{known:?}"),
        Clean::Maybe => {}
    }
    assert!(!opened.clean || count == known.most, "clean with {count} batches, {known:?}");
    assert_same(store, &twin(&batches[..count as usize]), &groups());
    opened.clean
}

/// The store can be used: it writes, closes, and comes up clean with what it wrote.
fn lives_on(store: RocksStore, path: &Path) {
    let at = place(1, 0, 9, 9, 0);
    store.commit(Batch::durable(vec![put(at, ver(9, 9), 9, 4160)])).expect("commit");
    store.close().expect("close");
    drop(store);
    let store = open(path).expect("open");
    assert!(store.opened().clean);
    assert!(store.record(at, ver(9, 9)).expect("record").is_some());
}

/// A compaction that the end of a run breaks off leaves the blob file it was writing: none of the
/// newest, and no table knows it. Here they are made by hand; one is on the disk for good.
#[test]
fn what_was_left_over_does_not_count_at_a_clean_end() {
    let folder = scratch().expect("a folder");
    let watch = Watch::begin(folder.path()).expect("watched");
    let path = store_in(folder.path());
    let store = open(&path).expect("a new store");
    admit(&store).expect("its first run");
    let batches = batches(3, BATCHES);
    batches.iter().for_each(|batch| store.commit(batch.clone()).expect("commit"));
    let left_over = ["db/000001.blob", "db/000002.blob"].map(|name| path.join(name));
    let files = left_over.each_ref().map(|file| File::create(file).expect("made"));
    files.iter().for_each(|file| file.write_all_at(&[7; 5000], 0).expect("written"));
    files[0].sync_all().expect("synced");
    File::open(path.join("db")).expect("a folder").sync_all().expect("synced");
    store.close().expect("close");
    watch.mark(Mark::Closed.code());
    drop(store);
    let record = watch.record();
    drop(watch);

    let closed = |event: &Event| *event == Event::Mark(Mark::Closed.code());
    let closed = record.events.iter().position(closed).expect("marked");
    let known = Known { least: batches.len() as u32, most: batches.len() as u32, ..SURELY_CLEAN };
    for point in [closed, record.events.len()] {
        let disk = Disk::after(&record, point);
        for seed in 0..20 {
            let folder = scratch().expect("a folder");
            disk.image(seed, Mode::Honest).write(folder.path()).expect("the image is written");
            holds(&open(&store_in(folder.path())).expect("opens"), known, &batches);
        }
    }
    assert!(left_over.iter().all(|file| !file.exists()), "nobody needs them");
    holds(&open(&path).expect("opens"), known, &batches);
}

#[test]
fn a_lying_disk_is_never_believed() {
    Trial::new("store, lying disk", Mode::Lying).run(recorded, |cut| {
        let (known, batches) = known(&cut);
        let store = match open(&store_in(cut.folder)) {
            Ok(store) => store,
            Err(StoreError::Refused(why) | StoreError::Damaged(why)) => {
                assert!(!why.is_empty() && !why.contains('\n'), "{why}");
                return "refused".to_owned();
            }
            Err(StoreError::Io(why)) => {
                assert!(!why.is_empty() && !why.contains('\n'), "{why}");
                return "i/o error".to_owned();
            }
            Err(other) => panic!("{other}"),
        };
        let opened = store.opened();
        assert!(opened.incarnation.0 > u64::from(known.served), "{opened:?} {known:?}");
        if opened.clean {
            // The cut met nothing that mattered, so all of it has to be there.
            holds(&store, known, &batches);
            return "clean and whole".to_owned();
        }
        nothing_is_invented(&store, &batches[..known.most as usize]);
        "suspect".to_owned()
    });
}

#[test]
fn a_bit_that_turned_over_is_never_believed() {
    Trial::new("store, rotten disk", Mode::Rotten).run(recorded, |cut| {
        let (known, batches) = known(&cut);
        let store = match open(&store_in(cut.folder)) {
            Ok(store) => store,
            Err(StoreError::Refused(_) | StoreError::Damaged(_)) => return "refused".to_owned(),
            Err(StoreError::Io(_)) => return "i/o error".to_owned(),
            Err(other) => panic!("{other}"),
        };
        nothing_is_invented(&store, &batches[..known.most as usize]);
        if !store.opened().clean {
            return "suspect".to_owned();
        }
        nothing_is_left_out(&store, &twin(&batches[..known.most as usize]));
        "clean".to_owned()
    });
}

/// Whatever was written is there, or there is an error instead.
fn nothing_is_left_out(store: &RocksStore, twin: &MemoryStore) {
    for (volume, group) in groups() {
        if let Ok(state) = store.volume(volume) {
            assert_eq!(state, twin.volume(volume).expect("state"));
        }
        if let Ok(marks) = store.prepared(volume) {
            assert_eq!(marks, twin.prepared(volume).expect("marks"));
        }
        for (at, versions) in twin.scan(volume, group, None, usize::MAX).expect("scan") {
            if let Ok(found) = store.versions(at) {
                assert_eq!(found, versions, "{at}");
            }
            for meta in versions.iter().filter(|meta| meta.present) {
                if let Ok(record) = store.record(at, meta.ver) {
                    assert!(record.is_some(), "{at} {}", meta.ver);
                }
            }
        }
    }
}

/// Whatever can be read was written once, just so.
fn nothing_is_invented(store: &RocksStore, batches: &[Batch]) {
    let changes: Vec<&Change> = batches.iter().flat_map(|batch| &batch.changes).collect();
    for (volume, group) in groups() {
        if let Ok(state) = store.volume(volume) {
            let was = Change::SetVolume { volume, state };
            assert!(state == Default::default() || changes.contains(&&was), "{volume} {state:?}");
        }
        if let Ok(marks) = store.prepared(volume) {
            for (at, ver) in marks {
                assert!(changes.contains(&&Change::SetPrepared { at, ver }), "{at} {ver}");
            }
        }
        for (at, versions) in readable(store, volume, group) {
            for meta in versions {
                // Here a version may be put again with other bytes; what is absent is not asked for.
                let record = match store.record(at, meta.ver) {
                    Ok(_) if !meta.present => Default::default(),
                    Ok(record) => record.unwrap_or_default(),
                    Err(
                        StoreError::Corrupt { .. } | StoreError::Io(_) | StoreError::Damaged(_),
                    ) => continue,
                    Err(other) => panic!("{other}"),
                };
                // The caller verifies records, and takes one that does not for damaged.
                if meta.present && !meta.verifies(at, &record) {
                    continue;
                }
                let was = changes.iter().any(|change| {
                    matches!(change, Change::PutVersion { at: a, meta: m, record: r, .. }
                        if *a == at && *m == meta && *r == record)
                });
                assert!(was, "{at} {meta:?} was never written");
            }
        }
    }
}

/// All row slots of a group that can be read.
fn readable(store: &RocksStore, volume: VolumeNo, group: GroupNo) -> Vec<SlotVersions> {
    let mut all: Vec<SlotVersions> = Vec::new();
    let mut after: Option<RowSlot> = None;
    loop {
        match store.scan(volume, group, after, 7) {
            Ok(page) if page.is_empty() => return all,
            Ok(page) => {
                after = page.last().map(|(at, _)| *at);
                all.extend(page);
            }
            Err(StoreError::Corrupt { at, .. }) => after = Some(at),
            // A table that can not be walked.
            Err(StoreError::Io(_) | StoreError::Damaged(_)) => return all,
            Err(other) => panic!("{other}"),
        }
    }
}
