//! Damage of one kind each, of which power cuts showed that it matters.

use super::cuts::{runtime, store_in};
use super::workload::{NODE, State, open, read, steps, take};
use crate::db::{Db, DbError, key};
use smalti_powercut::{Disk, Mode, Watch, scratch};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A store after some work, and what is in it.
fn worked() -> (TempDir, State) {
    let folder = scratch().unwrap();
    let state = runtime().block_on(async {
        let states = take(folder.path(), &steps(3, 120), |_| {}).await.unwrap();
        states.last().unwrap().clone()
    });
    (folder, state)
}

fn found(folder: &Path) -> State {
    runtime().block_on(async { read(&mut open(folder).await.unwrap()).await.unwrap() })
}

/// The log in use.
fn log(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|kind| kind == "log")).max().unwrap()
}

#[track_caller]
fn forgot(folder: &Path, what: &str) {
    match Db::open(folder, NODE).err().unwrap() {
        DbError::Forgotten(why) => assert!(why.contains(what), "{why}"),
        other => panic!("{other}"),
    }
}

#[test]
fn the_name_of_the_folder_is_durable() {
    let folder = scratch().unwrap();
    let watch = Watch::begin(folder.path()).unwrap();
    drop(Db::open(&store_in(folder.path()), NODE).unwrap());
    let record = watch.record();
    let disk = Disk::after(&record, record.events.len());
    for seed in 0..40 {
        let image = disk.image(seed, Mode::Honest);
        assert!(image.file("raft/CURRENT").is_some(), "seed {seed}");
    }
}

#[test]
fn what_was_never_synced_behind_the_end_is_passed_over() {
    let tails: [&[u8]; 5] =
        [&[0; 9000], &[0xff; 9000], &[5; 9000], &[1, 2, 3], &[9, 9, 9, 9, 200, 0, 1, 7, 7]];
    for tail in tails {
        let (folder, state) = worked();
        let mut log = OpenOptions::new().append(true).open(log(folder.path())).unwrap();
        log.write_all(tail).unwrap();
        assert!(found(folder.path()) == state, "{tail:02x?}");
    }
}

#[test]
fn a_log_without_what_was_synced_is_not_taken() {
    let (folder, _) = worked();
    let log = log(folder.path());
    let len = fs::metadata(&log).unwrap().len();
    assert!(len > 100, "{len}");
    OpenOptions::new().write(true).open(&log).unwrap().set_len(len - 40).unwrap();
    forgot(folder.path(), "writes were synced");
}

#[test]
fn a_manifest_that_is_gone_or_shorter_is_not_taken() {
    let (folder, state) = worked();
    let current = folder.path().join("CURRENT");
    let name = fs::read_to_string(&current).unwrap();
    let manifest = folder.path().join(name.trim_end());
    let good = fs::read(&manifest).unwrap();
    fs::write(&manifest, &good[..good.len() - 1]).unwrap();
    forgot(folder.path(), "manifest");
    fs::write(&manifest, good).unwrap();
    fs::remove_file(&current).unwrap();
    forgot(folder.path(), "its manifest can not be read");
    assert!(!current.exists(), "no new store is made in its place");
    fs::write(&current, name).unwrap();
    assert!(found(folder.path()) == state);
}

#[test]
fn a_witness_that_is_gone_or_damaged_is_noticed() {
    let (folder, state) = worked();
    let witness = folder.path().join("WITNESS");
    let good = fs::read(&witness).unwrap();
    fs::remove_file(&witness).unwrap();
    forgot(folder.path(), "is gone");
    for bad in [&good[..20], &[], &[0; 33]] {
        fs::write(&witness, bad).unwrap();
        forgot(folder.path(), "is damaged");
    }
    fs::write(&witness, good).unwrap();
    assert!(found(folder.path()) == state);
}

#[test]
fn a_store_from_before_there_were_witnesses_gets_one() {
    let (folder, state) = worked();
    let witness = folder.path().join("WITNESS");
    Db::open(folder.path(), NODE).unwrap().remove_raw("meta", key::WITNESS);
    // One that was being made when the power went.
    for unfinished in [None, Some([].as_slice()), Some(&[7; 40])] {
        fs::remove_file(&witness).unwrap();
        if let Some(bytes) = unfinished {
            fs::write(&witness, bytes).unwrap();
        }
        let db = Db::open(folder.path(), NODE).unwrap();
        assert!(db.meta::<bool>(key::WITNESS).unwrap().is_some());
        db.remove_raw("meta", key::WITNESS);
    }
    assert!(found(folder.path()) == state);
}
