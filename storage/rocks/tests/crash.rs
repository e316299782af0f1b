//! A store whose process is killed: what was acknowledged is there, batches are whole, and the
//! next start is not clean.

use smalti_rocks::{Expect, RocksOptions, RocksStore};
use smalti_storage::ids::{ClusterId, RowSlot, VolumeNo};
use smalti_storage::store::suite::{place, put, ver};
use smalti_storage::store::{Batch, Change, ShardStore};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

const EXPECT: Expect = Expect { cluster: ClusterId(uuid::Uuid::from_u128(7)) };
const DIRECTORY: &str = "SMALTI_TEST_CRASH_DIRECTORY";

fn open(path: &Path) -> RocksStore {
    let options = RocksOptions { data_buffer_bytes: 1 << 20, ..RocksOptions::default() };
    RocksStore::open(path, &options, EXPECT).expect("open")
}

fn slots(i: u64) -> [RowSlot; 2] {
    [place(1, 0, i / 64, (i % 64) as u32, 0), place(1, 1, i / 64, (i % 64) as u32, 1)]
}

/// The process that is killed: commits batch after batch, and says so on its standard output.
/// Does nothing when it is run as a test of its own.
#[test]
fn writer_to_be_killed() {
    let Some(path) = std::env::var_os(DIRECTORY) else { return };
    let store = open(Path::new(&path));
    let mut out = std::io::stdout().lock();
    writeln!(out, "\nopened {}", store.opened().clean).expect("the parent reads");
    for i in next(&store).. {
        let [first, second] = slots(i);
        let changes = vec![
            put(first, ver(1, i + 1), i as u8, 4160),
            put(second, ver(1, i + 1), i as u8, 4160),
            Change::SetPrepared { at: first, ver: ver(1, i + 1) },
        ];
        store.commit(Batch::durable(changes)).expect("commit");
        writeln!(out, "acked {i}").expect("the parent reads");
        out.flush().expect("the parent reads");
    }
}

/// How many batches are there from the first one on.
fn next(store: &RocksStore) -> u64 {
    let marks = store.prepared(VolumeNo(1)).expect("marks");
    marks.len() as u64
}

#[test]
fn acknowledged_batches_survive_a_kill() {
    let directory = TempDir::new().expect("a temporary directory");
    let mut acked = None;
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "writer_to_be_killed", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the child starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut seen = 0;
        while seen < 150 + round * 70 {
            let line = lines.next().expect("the child goes on").expect("a line");
            if let Some(i) = line.strip_prefix("acked ") {
                acked = Some(i.parse::<u64>().expect("a number"));
                seen += 1;
            } else if let Some(clean) = line.strip_prefix("opened ") {
                // The parent looked in and closed the store.
                assert_eq!(clean, "true", "round {round}");
            }
        }
        child.kill().expect("SIGKILL");
        child.wait().expect("it is gone");
        // What it had said before it died counts as well.
        for line in lines.map_while(Result::ok) {
            if let Some(i) = line.strip_prefix("acked ").and_then(|i| i.parse().ok()) {
                acked = Some(i);
            }
        }
        let store = open(directory.path());
        assert!(!store.opened().clean, "a kill is not a clean end");
        let last = acked.expect("something was acknowledged");
        let there = next(&store);
        assert!(there > last, "{last} was acknowledged, {there} batches are there");
        assert!(there <= last + 2, "only the batch at work may be there unacknowledged");
        for i in 0..there + 2 {
            for at in slots(i) {
                let meta = store.head(at).expect("head");
                assert_eq!(meta.is_some(), i < there, "batch {i} of {there} is not whole");
                if let Some(meta) = meta {
                    let record = store.record(at, meta.ver).expect("record").expect("bytes");
                    assert!(meta.verifies(at, &record), "batch {i}");
                }
            }
        }
        store.close().expect("close");
    }
}
