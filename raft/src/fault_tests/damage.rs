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

/// A length that reaches past the end makes RocksDB pass over a record and all behind it: here the
/// one that made the family with the vote.
#[test]
fn a_bit_of_a_header_in_the_manifest_hides_nothing() {
    let (folder, state) = worked();
    let name = fs::read_to_string(folder.path().join("CURRENT")).unwrap();
    let path = folder.path().join(name.trim_end());
    let good = fs::read(&path).unwrap();
    let mut hidden = 0;
    let mut at = 0;
    while at < good.len() {
        let header: [u8; 7] = good[at..at + 7].try_into().unwrap();
        for bit in 0..header.len() * 8 {
            let bad_folder = tempfile::tempdir().unwrap();
            for file in fs::read_dir(folder.path()).unwrap() {
                let file = file.unwrap();
                fs::copy(file.path(), bad_folder.path().join(file.file_name())).unwrap();
            }
            let mut bad = good.clone();
            bad[at + bit / 8] ^= 1 << (bit % 8);
            fs::write(bad_folder.path().join(name.trim_end()), bad).unwrap();
            runtime().block_on(async {
                match open(bad_folder.path()).await {
                    Ok(mut opened) => assert!(read(&mut opened).await.unwrap() == state),
                    Err(DbError::Forgotten(why)) if why.contains("whole up to") => hidden += 1,
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            });
        }
        at += 7 + usize::from(u16::from_le_bytes([header[4], header[5]]));
    }
    assert!(hidden > 0, "no length reached past the end");
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
