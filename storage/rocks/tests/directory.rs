//! Directories that are not ours, not whole or in use: one clear line, and nothing written.

use smalti_rocks::{Expect, RocksOptions, RocksStore};
use smalti_storage::ids::ClusterId;
use smalti_storage::store::suite::{place, put, ver};
use smalti_storage::store::{Batch, ShardStore, StoreError};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const EXPECT: Expect = Expect { cluster: ClusterId(uuid::Uuid::from_u128(7)) };

fn open(path: &Path) -> Result<RocksStore, StoreError> {
    RocksStore::open(path, &RocksOptions::default(), EXPECT)
}

/// A closed store of a few rows.
fn closed() -> TempDir {
    let directory = TempDir::new().expect("a temporary directory");
    let store = open(directory.path()).expect("a new store");
    fill(&store);
    store.close().expect("close");
    directory
}

/// A store that ended without being closed.
fn killed() -> TempDir {
    let directory = closed();
    drop(open(directory.path()).expect("open"));
    directory
}

fn fill(store: &RocksStore) {
    let rows = (0..10).map(|i| put(place(1, 0, i, 0, 0), ver(1, 1), 1, 4160)).collect();
    store.commit(Batch::durable(rows)).expect("commit");
}

fn is_whole(store: &RocksStore) -> bool {
    (0..10).all(|i| {
        let at = place(1, 0, i, 0, 0);
        let meta = store.head(at).expect("head").expect("the row is there");
        let record = store.record(at, meta.ver).expect("record").expect("it has bytes");
        meta.verifies(at, &record)
    })
}

fn content(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(path).expect("a directory") {
        let entry = entry.expect("an entry").path();
        if entry.is_dir() {
            all.extend(content(&entry));
            all.insert(entry, Vec::new());
        } else {
            let bytes = fs::read(&entry).expect("a file");
            all.insert(entry, bytes);
        }
    }
    all
}

/// Opens what must be refused, and answers the one line.
fn refused(path: &Path, expect: Expect, options: &RocksOptions) -> String {
    let before = content(path);
    let line = match RocksStore::open(path, options, expect) {
        Err(error @ (StoreError::Refused(_) | StoreError::Damaged(_))) => error.to_string(),
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(content(path), before, "something was written");
    assert!(!line.contains('\n'), "{line}");
    assert!(line.contains(&path.display().to_string()), "{line}");
    line
}

fn refused_line(path: &Path) -> String {
    refused(path, EXPECT, &RocksOptions::default())
}

fn edit(path: &Path, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(path).expect("a text file");
    fs::write(path, change(text)).expect("write");
}

fn manifest(directory: &TempDir) -> PathBuf {
    let database = directory.path().join("db");
    let name = fs::read_to_string(database.join("CURRENT")).expect("CURRENT");
    database.join(name.trim_end())
}

fn truncate(path: &Path, len: u64) {
    let file = fs::OpenOptions::new().write(true).open(path).expect("a file");
    file.set_len(len).expect("truncate");
}

fn logs(directory: &TempDir) -> Vec<PathBuf> {
    of_kind(directory, "log")
}

fn blobs(directory: &TempDir) -> Vec<PathBuf> {
    of_kind(directory, "blob")
}

fn of_kind(directory: &TempDir, kind: &str) -> Vec<PathBuf> {
    let database = directory.path().join("db");
    let files = fs::read_dir(database).expect("a directory");
    let mut found: Vec<_> = files
        .map(|file| file.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == kind))
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn a_directory_in_use_is_refused() {
    let directory = TempDir::new().expect("a temporary directory");
    let store = open(directory.path()).expect("a new store");
    let Err(StoreError::Refused(line)) = open(directory.path()) else { panic!("opened twice") };
    assert!(line.ends_with("is in use"), "{line}");
    fill(&store);
    drop(store);
    assert!(is_whole(&open(directory.path()).expect("free again")));
}

#[test]
fn other_directories_are_refused() {
    let directory = TempDir::new().expect("a temporary directory");
    fs::write(directory.path().join("thesis.txt"), "do not lose").expect("write");
    assert!(refused_line(directory.path()).contains("is not a store, and not empty"));

    let file = directory.path().join("thesis.txt");
    let Err(StoreError::Refused(line)) = open(&file) else { panic!("opened a file") };
    assert!(line.ends_with("is not a directory"), "{line}");

    let empty = TempDir::new().expect("a temporary directory");
    let options = RocksOptions { create: false, ..RocksOptions::default() };
    assert!(refused(empty.path(), EXPECT, &options).contains("is the disk mounted?"));
}

#[test]
fn a_store_of_another_cluster_is_refused() {
    let directory = closed();
    let other = Expect { cluster: ClusterId(uuid::Uuid::from_u128(8)) };
    let line = refused(directory.path(), other, &RocksOptions::default());
    assert!(line.contains("belongs to another cluster (00000000-"), "{line}");
    assert!(open(directory.path()).expect("still ours").opened().clean);
}

#[test]
fn a_newer_format_is_refused_and_a_damaged_label_is_told() {
    let directory = closed();
    let label = directory.path().join("STORE");
    let good = fs::read_to_string(&label).expect("the label");
    let (content, _) = good.split_once("check ").expect("it has one");
    fs::write(&label, content.replace("format 8", "format 9")).expect("write");
    assert!(refused_line(directory.path()).contains("newer format 9"));
    // No other program has written that: a bit is another one.
    fs::write(&label, good.replace("format 8", "format 9")).expect("write");
    assert!(refused_line(directory.path()).contains("its label does not verify"));
    edit(&label, |text| {
        text.replace("format 9", "format 8").replace("incarnation 1", "incarnation 9")
    });
    assert!(refused_line(directory.path()).contains("its label does not verify"));
    truncate(&label, 20);
    assert!(refused_line(directory.path()).contains("its label does not verify"));
    truncate(&label, 0);
    assert!(refused_line(directory.path()).contains("its label does not verify"));
    fs::remove_file(&label).expect("remove");
    assert!(refused_line(directory.path()).contains("its label is gone"));
    // What has no database is none of ours.
    fs::remove_dir_all(directory.path().join("db")).expect("remove");
    fs::write(directory.path().join("notes"), "mine").expect("write");
    assert!(refused_line(directory.path()).contains("is not a store, and not empty"));
}

#[test]
fn a_damaged_current_or_manifest_is_refused() {
    for directory in [closed(), killed()] {
        let current = directory.path().join("db/CURRENT");
        let good = fs::read(&current).expect("CURRENT");
        truncate(&current, good.len() as u64 - 1);
        assert!(refused_line(directory.path()).contains("CURRENT is damaged"));
        truncate(&current, 0);
        assert!(refused_line(directory.path()).contains("CURRENT is damaged"));
        fs::write(&current, "MANIFEST-999999\n").expect("write");
        assert!(refused_line(directory.path()).contains("MANIFEST-999999 can not be read"));
        fs::remove_file(&current).expect("remove");
        assert!(refused_line(directory.path()).contains("CURRENT can not be read"));
        fs::write(&current, good).expect("write");

        let manifest = manifest(&directory);
        let good = fs::read(&manifest).expect("the manifest");
        for len in [0, 1, 20, good.len() / 8] {
            truncate(&manifest, len as u64);
            assert!(refused_line(directory.path()).contains("is damaged"), "cut to {len}");
            fs::write(&manifest, &good).expect("write");
        }
        assert!(is_whole(&open(directory.path()).expect("as good as before")));
    }
}

/// What was replayed when the store was opened is not in the log any more.
#[test]
fn a_manifest_cut_after_a_crash_to_less_than_at_the_start_is_told() {
    let directory = closed();
    drop(open(directory.path()).expect("open"));
    let label = fs::read_to_string(directory.path().join("STORE")).expect("the label");
    let begun = label.lines().find_map(|line| line.strip_prefix("state open ")).expect("open");
    let (name, len) = begun.split_once(' ').expect("name and length");
    let manifest = manifest(&directory);
    assert_eq!(manifest.file_name().expect("a name"), name);
    let len: u64 = len.parse().expect("a length");
    let good = fs::read(&manifest).expect("the manifest");
    assert!(len > 100 && len <= good.len() as u64, "{len} of {}", good.len());
    for cut in (20..len).step_by(7).chain([len - 1]) {
        truncate(&manifest, cut);
        let line = refused_line(directory.path());
        assert!(line.contains(&format!("{name} of {len} bytes was there")), "cut to {cut}: {line}");
        fs::write(&manifest, &good).expect("write");
    }
    truncate(&manifest, len);
    assert!(!open(directory.path()).expect("nothing is missing").opened().clean);
}

#[test]
fn a_manifest_cut_anywhere_after_a_clean_end_is_refused() {
    let directory = closed();
    let manifest = manifest(&directory);
    let good = fs::read(&manifest).expect("the manifest");
    for len in (0..good.len()).step_by(7).chain([good.len() - 1]) {
        truncate(&manifest, len as u64);
        assert!(refused_line(directory.path()).contains("is damaged"), "cut to {len}");
        fs::write(&manifest, &good).expect("write");
    }
    let store = open(directory.path()).expect("as good as before");
    assert!(store.opened().clean && is_whole(&store));
}

#[test]
fn the_data_of_another_store_is_refused() {
    let (ours, other) = (killed(), killed());
    fs::remove_dir_all(ours.path().join("db")).expect("remove");
    fs::rename(other.path().join("db"), ours.path().join("db")).expect("rename");
    let Err(StoreError::Refused(line)) = open(ours.path()) else { panic!("taken for ours") };
    assert!(line.contains("holds the data of another store"), "{line}");
}

#[test]
fn a_start_that_was_cut_short_does_no_harm() {
    // Between the database's start and the label's.
    let directory = killed();
    let label = directory.path().join("STORE");
    let before = fs::read(&label).expect("the label");
    let opened = open(directory.path()).expect("open").opened();
    fs::write(&label, before).expect("write");
    let next = open(directory.path()).expect("open");
    assert!(next.opened().incarnation > opened.incarnation, "no incarnation comes twice");
    assert!(!next.opened().clean && is_whole(&next));
}

#[test]
fn the_clean_marker_goes_before_the_database_changes() {
    let directory = closed();
    let table = of_kind(&directory, "sst").pop().expect("a table");
    let away = directory.path().join("db/away");
    fs::rename(&table, &away).expect("rename");
    let Err(StoreError::Damaged(line)) = open(directory.path()) else { panic!("a table is gone") };
    assert!(line.contains("No such file") && !line.contains('\n'), "{line}");
    // Whatever RocksDB did to its manifest meanwhile, the store is not refused for it later.
    fs::rename(&away, &table).expect("rename");
    let store = open(directory.path()).expect("the table is back");
    assert!(!store.opened().clean && is_whole(&store));
}

#[test]
fn no_bit_of_a_length_hides_the_end_of_a_manifest() {
    let directory = closed();
    let manifest = manifest(&directory);
    let good = fs::read(&manifest).expect("a manifest");
    let mut at = 0;
    while at < good.len() {
        let mut bad = good.clone();
        bad[at + 5] ^= 0x80;
        fs::write(&manifest, bad).expect("write");
        let line = refused_line(directory.path());
        assert!(line.contains(&format!("only {at} of {} bytes can be read", good.len())), "{line}");
        at += 7 + usize::from(u16::from_le_bytes([good[at + 4], good[at + 5]]));
    }
    fs::write(&manifest, good).expect("write");
    assert!(open(directory.path()).expect("all is as it was").opened().clean);
}

#[test]
fn records_that_were_lost_after_a_clean_end_are_noticed() {
    type Harm = fn(&Path);
    let harms: [Harm; 3] = [
        |blob| truncate(blob, 0),
        |blob| truncate(blob, fs::metadata(blob).expect("a blob file").len() - 1),
        |blob| fs::remove_file(blob).expect("remove"),
    ];
    for harm in harms {
        let directory = closed();
        let blob = blobs(&directory).pop().expect("a blob file");
        harm(&blob);
        let harmed = fs::read(&blob).ok();
        let store = open(directory.path()).expect("suspect, but its peers have the records");
        assert!(!store.opened().clean);
        // Without its end it looks like one that was never finished.
        assert!(fs::read(&blob).ok() == harmed, "it is left as it is");
    }
}

#[test]
fn a_blob_file_that_was_never_finished_does_not_stay() {
    let directory = killed();
    let needed = blobs(&directory);
    // As a process leaves one that dies while it writes out, and an empty one.
    for (name, len) in [("db/000001.blob", 0), ("db/000002.blob", 9000)] {
        fs::write(directory.path().join(name), vec![7; len]).expect("write");
    }
    let store = open(directory.path()).expect("open");
    assert_eq!(blobs(&directory), needed);
    assert!(is_whole(&store));
}

#[test]
fn after_a_clean_end_the_log_holds_nothing() {
    let directory = closed();
    for log in logs(&directory) {
        fs::remove_file(log).expect("remove");
    }
    assert!(is_whole(&open(directory.path()).expect("nothing of it is needed")));
}

#[test]
fn a_shortened_log_is_never_clean_and_leaves_a_prefix() {
    let directory = killed();
    let store = open(directory.path()).expect("open");
    fill(&store);
    for i in 0..20 {
        let row = vec![put(place(2, 0, i, 0, 0), ver(1, 1), 2, 4160)];
        store.commit(Batch::durable(row)).expect("commit");
    }
    drop(store);
    let log = logs(&directory).pop().expect("a log");
    let len = fs::metadata(&log).expect("a log").len();
    truncate(&log, len - 3 * 4160 - 100);
    let store = open(directory.path()).expect("a shortened log is no reason to give up");
    assert!(!store.opened().clean);
    assert!(is_whole(&store));
    let there = |i| store.head(place(2, 0, i, 0, 0)).expect("head").is_some();
    let kept = (0..20).take_while(|i| there(*i)).count() as u64;
    assert!((10..20).contains(&kept), "{kept}");
    assert!((kept..20).all(|i| !there(i)), "no hole");
}

/// What was replayed at a start that was broken off may be there in part, and the log is what would tell.
#[test]
fn a_log_that_is_gone_after_a_start_that_was_broken_off_is_damage() {
    let directory = TempDir::new().expect("a temporary directory");
    let options = RocksOptions { data_buffer_bytes: 256 << 10, ..RocksOptions::default() };
    let open = || RocksStore::open(directory.path(), &options, EXPECT);
    drop(open().expect("a new store"));
    let label = directory.path().join("STORE");
    let opening = fs::read_to_string(&label).expect("the label").replace("open ", "opening ");
    let (content, _) = opening.split_at(opening.rfind("check ").expect("a checksum"));
    let store = open().expect("open");
    for i in 0..300 {
        let row = vec![put(place(2, 0, i, 0, 0), ver(1, 1), 2, 4160)];
        store.commit(Batch::durable(row)).expect("commit");
    }
    drop(store);
    // As if this start had ended before it wrote its label.
    #[expect(clippy::cast_possible_truncation, reason = "as labels have it")]
    let sum = twox_hash::XxHash3_128::oneshot(content.as_bytes()) as u64;
    fs::write(&label, format!("{content}check {sum:016x}\n")).expect("write");
    fs::remove_file(&logs(&directory)[1]).expect("remove");
    let Err(StoreError::Damaged(line)) = open() else { panic!("taken for whole") };
    assert!(line.contains("WAL"), "{line}");
}

#[test]
fn a_log_that_lost_what_was_synced_is_noticed() {
    let directory = TempDir::new().expect("a temporary directory");
    // Small buffers of records fill fast and begin new logs; the metadata keeps the old ones.
    let options = RocksOptions { data_buffer_bytes: 256 << 10, ..RocksOptions::default() };
    let open = || RocksStore::open(directory.path(), &options, EXPECT);
    let store = open().expect("a new store");
    fill(&store);
    for i in 0..300 {
        let row = vec![put(place(2, 0, i, 0, 0), ver(1, 1), 2, 4160)];
        store.commit(Batch::durable(row)).expect("commit");
    }
    let incarnation = store.opened().incarnation;
    drop(store);
    let logs = logs(&directory);
    assert!(logs.len() > 2, "{logs:?}");
    fs::remove_file(&logs[1]).expect("remove");
    let store = open().expect("suspect, but its peers can do with it what is right");
    assert!(!store.opened().clean);
    assert!(store.opened().incarnation > incarnation);
    assert!(is_whole(&store), "what stood before the hole is there");
    fill(&store);
    store.close().expect("close");
    drop(store);
    assert!(open().expect("open").opened().clean);
}

/// Where each record of a log begins, as RocksDB lays them out.
fn records(log: &[u8]) -> Vec<usize> {
    const BLOCK: usize = 32 * 1024;
    const HEADER: usize = 7;
    let mut at = 0;
    let mut found = Vec::new();
    while at + HEADER < log.len() {
        if BLOCK - at % BLOCK < HEADER {
            at += BLOCK - at % BLOCK;
            continue;
        }
        found.push(at);
        at += HEADER + usize::from(u16::from_le_bytes([log[at + 4], log[at + 5]]));
    }
    found
}

#[test]
fn a_record_of_another_type_does_not_end_in_endless_reading() {
    let directory = killed();
    let store = open(directory.path()).expect("open");
    for i in 0..20 {
        let row = vec![put(place(2, 0, i, 0, 0), ver(1, 1), 2, 4160)];
        store.commit(Batch::durable(row)).expect("commit");
    }
    drop(store);
    let log = logs(&directory).pop().expect("a log");
    let manifest = manifest(&directory);
    let (good_log, good_manifest) =
        (fs::read(&log).expect("the log"), fs::read(&manifest).expect("the manifest"));
    // A whole record, a first and a middle piece become, by one bit, those of a log used again.
    let may_turn = |log: &[u8], at: usize| matches!(log[at + 6], 1..=3);
    for at in records(&good_manifest).into_iter().skip(1) {
        assert!(may_turn(&good_manifest, at));
        let mut bad = good_manifest.clone();
        bad[at + 6] ^= 4;
        fs::write(&manifest, bad).expect("write");
        assert!(refused_line(directory.path()).contains(": MANIFEST-"), "byte {at}");
    }
    fs::write(&manifest, &good_manifest).expect("write");
    let mut bad = good_log.clone();
    let turned = records(&good_log).into_iter().skip(1).filter(|at| may_turn(&good_log, *at));
    let turned = turned.inspect(|at| bad[at + 6] ^= 4).count();
    assert!(turned >= 20, "{turned}");
    fs::write(&log, bad).expect("write");
    let store = open(directory.path()).expect("nothing else was wrong with them");
    assert!(!store.opened().clean && is_whole(&store));
    assert!((0..20).all(|i| store.head(place(2, 0, i, 0, 0)).expect("head").is_some()));
}
