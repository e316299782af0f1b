//! Measures the store on the disk below the given directory (or the temporary one).
//!
//! ```text
//! cargo run --release -p smalti-rocks --example bench_store [DIRECTORY]
//! ```
#![allow(clippy::print_stdout, reason = "this program prints figures")]

use smalti_rocks::{Expect, RocksOptions, RocksStore};
use smalti_storage::ids::{ClusterId, GroupNo, RowSlot, VolumeNo};
use smalti_storage::store::suite::{place, put, ver};
use smalti_storage::store::{Batch, Change, ShardStore};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A sealed block: 4096 bytes and 64 of header.
const RECORD: usize = 4160;
const SPAN: Duration = Duration::from_secs(4);

fn main() {
    let base = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(&base).expect("a directory to work in");
    let expect = Expect { cluster: ClusterId(uuid::Uuid::from_u128(1)) };
    let open =
        || RocksStore::open(directory.path(), &RocksOptions::default(), expect).expect("open");
    let store = open();
    println!("records of {RECORD} bytes on {}", base.display());

    let written = AtomicU64::new(0);
    for (writers, batch) in [(1, 1), (1, 16), (1, 128), (4, 1), (16, 1), (4, 16)] {
        let start = Instant::now();
        let before = written.load(Ordering::Relaxed);
        let commits = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..writers {
                scope.spawn(|| {
                    while start.elapsed() < SPAN {
                        let first = written.fetch_add(batch, Ordering::Relaxed);
                        let changes = (first..first + batch).map(new_row).collect();
                        store.commit(Batch::durable(changes)).expect("commit");
                        commits.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        let rows = written.load(Ordering::Relaxed) - before;
        report(
            &format!("put, {writers} writers, batches of {batch}"),
            rows,
            start.elapsed(),
            &format!("{} synced commits", commits.into_inner()),
        );
    }
    let rows = written.into_inner();

    overwrite(&store);
    let start = Instant::now();
    store.close().expect("close");
    drop(store);
    println!("{:<44} {:>9.2} s", "close", start.elapsed().as_secs_f64());
    let start = Instant::now();
    let store = open();
    println!("{:<44} {:>9.3} s", "open", start.elapsed().as_secs_f64());

    read(&store, rows);
    println!("{:<44} {:>9} MiB", "memory of the process", resident_mib());
}

/// A new version of a few hot rows, as the protocol writes it: put and mark, then clear the mark
/// and delete the older version with the next batch.
fn overwrite(store: &RocksStore) {
    for (name, relaxed) in [("durable", false), ("relaxed", true)] {
        let start = Instant::now();
        let mut count = 0;
        while start.elapsed() < SPAN {
            let mut prepare = Vec::new();
            let mut clean = Vec::new();
            for slot in 0..16u64 {
                let at = place(9, 0, slot, 0, 0);
                store.versions(at).expect("versions");
                let seq = count / 16 + 1;
                prepare.push(put(at, ver(1, seq), 1, RECORD));
                prepare.push(Change::SetPrepared { at, ver: ver(1, seq) });
                clean.push(Change::ClearPrepared { at });
                clean.push(Change::DeleteVersion { at, ver: ver(1, seq - 1) });
            }
            store.commit(Batch::durable(prepare)).expect("commit");
            store.commit(Batch { changes: clean, relaxed }).expect("commit");
            count += 16;
        }
        report(&format!("overwrite 16 hot rows, {name} clean-up"), count, start.elapsed(), "");
        let start = Instant::now();
        let mut heads = 0;
        while start.elapsed() < SPAN / 8 {
            let at = place(9, 0, heads % 16, 0, 0);
            assert!(store.head(at).expect("head").is_some());
            heads += 1;
        }
        report("  head of a hot row", heads, start.elapsed(), "");
        let start = Instant::now();
        let mut rows = 0;
        while start.elapsed() < SPAN / 8 {
            let at = place(9, 0, rows % 16, 0, 0);
            assert!(!store.versions(at).expect("versions").is_empty());
            rows += 1;
        }
        report("  versions of a hot row", rows, start.elapsed(), "");
        store
            .commit(Batch::durable(vec![Change::DropVolume { volume: VolumeNo(9) }]))
            .expect("drop");
    }
}

fn read(store: &RocksStore, rows: u64) {
    let mut state = 1u64;
    let mut random = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % rows
    };
    rate("head of a random row", || {
        assert!(store.head(row(random())).expect("head").is_some());
        1
    });
    rate("head of a row never written", || {
        assert!(store.head(place(2, 0, random(), 0, 0)).expect("head").is_none());
        1
    });
    rate("metadata of a random version", || {
        assert!(store.meta(row(random()), ver(1, 1)).expect("meta").is_some());
        1
    });
    rate("one random record", || {
        assert!(store.record(row(random()), ver(1, 1)).expect("record").is_some());
        1
    });
    for count in [16u64, 128] {
        rate(&format!("multi-get of {count} random records"), || {
            let wanted: Vec<_> = (0..count).map(|_| (row(random()), ver(1, 1))).collect();
            assert!(store.records(&wanted).iter().all(|found| matches!(found, Ok(Some(_)))));
            count
        });
        rate(&format!("multi-get of {count} neighbours"), || {
            let first = random().min(rows - count);
            let wanted: Vec<_> = (first..first + count).map(|i| (row(i), ver(1, 1))).collect();
            assert!(store.records(&wanted).iter().all(|found| matches!(found, Ok(Some(_)))));
            count
        });
    }
    let mut after = None;
    rate("scan in pages of 512", || {
        let page = store.scan(VolumeNo(1), GroupNo(0), after, 512).expect("scan");
        after = page.last().map(|(at, _)| *at);
        page.len() as u64
    });
}

fn rate(name: &str, mut round: impl FnMut() -> u64) {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < SPAN / 4 {
        count += round();
    }
    report(name, count, start.elapsed(), "");
}

fn report(name: &str, count: u64, took: Duration, more: &str) {
    let rate = count as f64 / took.as_secs_f64();
    let mib = rate * RECORD as f64 / f64::from(1 << 20);
    println!("{name:<44} {rate:>9.0} /s {mib:>7.0} MiB/s if records  {more}");
}

fn row(i: u64) -> RowSlot {
    place(1, 0, i / 256, (i % 256) as u32, 0)
}

fn new_row(i: u64) -> Change {
    put(row(i), ver(1, 1), i as u8, RECORD)
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() / 1024
}
