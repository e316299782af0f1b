//! The store on a real disk: the conformance suite, and equality with its twin in memory.

use proptest::prelude::*;
use smalti_rocks::{Expect, RocksOptions, RocksStore};
use smalti_storage::ids::{ClusterId, GroupNo, RowSlot, StoreId, Ver, VolumeNo};
use smalti_storage::store::memory::{MemoryStore, Restart};
use smalti_storage::store::suite::{self, Subject, assert_same, place, put, ver};
use smalti_storage::store::{Batch, Change, ShardStore, VolumeState};
use tempfile::TempDir;

/// A store in a directory of its own, with small buffers so that tables and blob files are made.
struct Disk {
    store: Option<RocksStore>,
    directory: TempDir,
    options: RocksOptions,
}

const EXPECT: Expect = Expect { cluster: ClusterId(uuid::Uuid::from_u128(7)) };

impl Disk {
    fn new() -> Self {
        let options = RocksOptions {
            data_buffer_bytes: 1 << 20,
            meta_buffer_bytes: 64 << 10,
            cache_bytes: 1 << 20,
            count_syncs: true,
            ..RocksOptions::default()
        };
        let directory = TempDir::new().expect("a temporary directory");
        let mut disk = Self { store: None, directory, options };
        disk.open();
        disk
    }

    fn open(&mut self) {
        let store = RocksStore::open(self.directory.path(), &self.options, EXPECT);
        self.store = Some(store.expect("the store opens"));
    }
}

impl Subject for Disk {
    fn store(&self) -> &dyn ShardStore {
        self.store.as_ref().expect("open between restarts")
    }

    fn restart(&mut self, clean: bool) {
        if clean {
            self.store().close().expect("close");
        }
        self.store = None;
        self.open();
    }
}

#[test]
fn conforms() {
    suite::run_all(|| Box::new(Disk::new()));
}

#[derive(Clone, Debug)]
enum Step {
    Commit { changes: Vec<Op>, relaxed: bool },
    Restart { clean: bool },
    Compare,
}

#[derive(Clone, Debug)]
enum Op {
    Put(RowSlot, Ver, u8, usize),
    Delete(RowSlot, Ver),
    Mark(RowSlot, Ver),
    Unmark(RowSlot),
    DropSlot(RowSlot),
    Volume(u32, Ver),
    DropGroup(u32, u16),
    DropVolume(u32),
}

impl Op {
    fn change(&self) -> Change {
        match *self {
            Self::Put(at, version, fill, len) => put(at, version, fill, len),
            Self::Delete(at, ver) => Change::DeleteVersion { at, ver },
            Self::Mark(at, ver) => Change::SetPrepared { at, ver },
            Self::Unmark(at) => Change::ClearPrepared { at },
            Self::DropSlot(at) => Change::DropSlot { at },
            Self::Volume(volume, watermark) => Change::SetVolume {
                volume: VolumeNo(volume),
                state: VolumeState {
                    promised: watermark.epoch,
                    watermark,
                    ..VolumeState::default()
                },
            },
            Self::DropGroup(volume, group) => {
                Change::DropGroup { volume: VolumeNo(volume), group: GroupNo(group) }
            }
            Self::DropVolume(volume) => Change::DropVolume { volume: VolumeNo(volume) },
        }
    }
}

// Few places and versions, so that the same keys are put, deleted and put again all the time.
fn any_place() -> impl Strategy<Value = RowSlot> {
    (1..3u32, 0..2u16, 0..2u64, 0..2u32, 0..2u8).prop_map(|(v, g, s, i, n)| place(v, g, s, i, n))
}

fn any_ver() -> impl Strategy<Value = Ver> {
    (1..3u32, 1..4u64).prop_map(|(epoch, seq)| ver(epoch, seq))
}

fn any_op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![1 => Just(0), 2 => 1..600usize, 5 => 1024..5000usize];
    prop_oneof![
        20 => (any_place(), any_ver(), any::<u8>(), len)
            .prop_map(|(at, ver, fill, len)| Op::Put(at, ver, fill, len)),
        14 => (any_place(), any_ver()).prop_map(|(a, v)| Op::Delete(a, v)),
        5 => (any_place(), any_ver()).prop_map(|(a, v)| Op::Mark(a, v)),
        4 => any_place().prop_map(Op::Unmark),
        1 => any_place().prop_map(Op::DropSlot),
        2 => (1..4u32, any_ver()).prop_map(|(volume, v)| Op::Volume(volume, v)),
        1 => (1..3u32, 0..2u16).prop_map(|(volume, group)| Op::DropGroup(volume, group)),
        1 => (1..4u32).prop_map(Op::DropVolume),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => (prop::collection::vec(any_op(), 1..12), any::<bool>())
            .prop_map(|(changes, relaxed)| Step::Commit { changes, relaxed }),
        2 => any::<bool>().prop_map(|clean| Step::Restart { clean }),
        2 => Just(Step::Compare),
    ]
}

fn compare(disk: &Disk, twin: &MemoryStore) {
    let groups: Vec<_> =
        (1..4).flat_map(|v| (0..2).map(move |g| (VolumeNo(v), GroupNo(g)))).collect();
    assert_same(disk.store(), twin, &groups);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn is_the_same_as_its_twin_in_memory(steps in prop::collection::vec(any_step(), 1..160)) {
        let mut disk = Disk::new();
        let twin = MemoryStore::new(StoreId::default());
        for step in steps {
            match step {
                Step::Commit { changes, relaxed } => {
                    let changes = changes.iter().map(Op::change).collect();
                    let batch = Batch { changes, relaxed };
                    twin.commit(batch.clone()).expect("commit");
                    disk.store().commit(batch).expect("commit");
                }
                Step::Restart { clean } => {
                    // The process goes on, so nothing the kernel was given is lost.
                    disk.restart(clean);
                    twin.restart(Restart { clean, ..Restart::default() });
                    let incarnation = |store: &dyn ShardStore| store.opened().incarnation;
                    prop_assert_eq!(incarnation(disk.store()), incarnation(&twin));
                    prop_assert_eq!(disk.store().opened().clean, clean);
                }
                Step::Compare => compare(&disk, &twin),
            }
        }
        compare(&disk, &twin);
        disk.restart(true);
        compare(&disk, &twin);
    }
}

#[test]
fn writers_of_the_same_version_do_not_bring_old_bytes_back() {
    const ROWS: u64 = 60;
    let mut disk = Disk::new();
    let at = |i: u64| place(1, 0, i, 0, 0);
    let barrier = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for fill in 0..4u8 {
            let (store, barrier) = (disk.store(), &barrier);
            scope.spawn(move || {
                for i in 0..ROWS {
                    // The others make the way from looking for the first to writing it long.
                    let mut changes = vec![put(at(i), ver(1, 1), fill, 2000)];
                    let own = |n| place(2, u16::from(fill), i, n, 0);
                    changes.extend((0..200).map(|n| put(own(n), ver(1, 1), fill, 1)));
                    let batch = Batch::relaxed(changes);
                    barrier.wait();
                    store.commit(batch).expect("commit");
                }
            });
        }
    });
    // Whichever came last is there, and one deletion is enough for all of them.
    for i in 0..ROWS {
        let meta = disk.store().head(at(i)).expect("head").expect("put");
        let record = disk.store().record(at(i), ver(1, 1)).expect("record").expect("put");
        assert!(meta.verifies(at(i), &record));
    }
    let delete = (0..ROWS).map(|i| Change::DeleteVersion { at: at(i), ver: ver(1, 1) }).collect();
    disk.store().commit(Batch::durable(delete)).expect("commit");
    // A deletion meets what it deletes when the buffers are written out.
    disk.restart(true);
    for i in 0..ROWS {
        assert_eq!(disk.store().head(at(i)).expect("head"), None);
        assert_eq!(disk.store().record(at(i), ver(1, 1)).expect("record"), None);
    }
}

#[test]
fn every_commit_is_synced_unless_it_is_relaxed() {
    let disk = Disk::new();
    let store = disk.store.as_ref().expect("open");
    for i in 0..20 {
        let changes = vec![put(place(1, 0, i, 0, 0), ver(1, 1), 1, 4160)];
        let before = store.log_syncs();
        let relaxed = i % 2 == 1;
        store.commit(Batch { changes, relaxed }).expect("commit");
        assert_eq!(store.log_syncs() > before, !relaxed, "commit {i}");
    }
}

#[test]
fn the_space_of_a_dropped_volume_comes_back() {
    let mut disk = Disk::new();
    for batch in 0..8u64 {
        let changes = (0..256)
            .map(|i| put(place(1, 0, batch, i, 0), ver(1, 1), 1, 4160))
            .chain((0..16).map(|i| put(place(2, 0, batch, i, 0), ver(1, 1), 2, 4160)))
            .collect();
        disk.store().commit(Batch::durable(changes)).expect("commit");
    }
    // A start writes the buffers out, so all of it lies in blob files.
    disk.restart(true);
    let before = blob_bytes(disk.directory.path());
    assert!(before > 8 * 256 * 4160, "{before}");
    let drop = vec![Change::DropVolume { volume: VolumeNo(1) }];
    disk.store().commit(Batch::durable(drop)).expect("commit");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    // Blob files that hold both volumes stay until they are old; most of the bytes are gone.
    while blob_bytes(disk.directory.path()) > before / 2 {
        assert!(std::time::Instant::now() < deadline, "the space does not come back");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let left = disk.store().scan(VolumeNo(2), GroupNo(0), None, 1000).expect("scan");
    assert_eq!(left.len(), 128);
}

/// One row of eight lives on, so no file is dead as a whole.
fn deleted_records_go(restart: bool) {
    let mut disk = Disk::new();
    disk.options.garbage_bytes_min = 1 << 20;
    disk.restart(true);
    let at = |i| place(1, 0, 0, i, 0);
    let lives = |i: u32| i.is_multiple_of(8);
    for batch in 0..8 {
        let rows = batch * 256..(batch + 1) * 256;
        let changes = rows.map(|i| put(at(i), ver(1, 1), 1, 4160)).collect();
        disk.store().commit(Batch::durable(changes)).expect("commit");
    }
    let all = 2048 * 4160;
    let dead = (0..2048).filter(|i| !lives(*i));
    let changes = dead.map(|i| Change::DeleteVersion { at: at(i), ver: ver(1, 1) }).collect();
    if restart {
        // The records are in their files, and the deletions in tables before anybody counts them.
        disk.restart(true);
        disk.options.garbage_bytes_min = 1 << 30;
        disk.restart(true);
        disk.store().commit(Batch::durable(changes)).expect("commit");
        disk.options.garbage_bytes_min = 1 << 20;
        disk.restart(true);
    } else {
        disk.store().commit(Batch::durable(changes)).expect("commit");
    }
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while blob_bytes(disk.directory.path()) > all / 2 || blob_bytes(disk.directory.path()) == 0 {
        assert!(std::time::Instant::now() < deadline, "the space does not come back");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    for i in 0..2048 {
        let found = disk.store().record(at(i), ver(1, 1)).expect("record");
        assert_eq!(found.is_some(), lives(i), "{i}");
    }
}

#[test]
fn the_space_of_deleted_records_comes_back_though_nobody_writes() {
    deleted_records_go(false);
}

#[test]
fn so_does_that_of_those_deleted_before_a_restart() {
    deleted_records_go(true);
}

/// Who may not rewrite for now takes what is written, goes on where it was when it may, and ends in time
/// whether it may or not.
#[test]
fn what_may_not_be_rewritten_holds_nobody_up() {
    const ROWS: u32 = 2048;
    let mut disk = Disk::new();
    disk.options.garbage_bytes_min = 1 << 20;
    disk.restart(true);
    let at = |i| place(1, 0, 0, i, 0);
    let write = |disk: &Disk, rows: std::ops::Range<u32>, seq| {
        let changes = rows.map(|i| put(at(i), ver(1, seq), 1, 4160)).collect();
        disk.store().commit(Batch::durable(changes)).expect("commit");
    };
    for batch in 0..8 {
        write(&disk, batch * 256..(batch + 1) * 256, 1);
    }
    let dead = (0..ROWS).filter(|i| !i.is_multiple_of(8));
    let changes = dead.map(|i| Change::DeleteVersion { at: at(i), ver: ver(1, 1) }).collect();
    disk.store().commit(Batch::durable(changes)).expect("commit");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let mut no = ROWS;
    while disk.store().rewritten() == 0 || no < ROWS + 100 {
        assert!(std::time::Instant::now() < deadline, "it has nothing to rewrite");
        disk.store().pace_rewriting(Some(0));
        write(&disk, no..no + 1, 1);
        no += 1;
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let all = u64::from(ROWS) * 4160;
    disk.store().pace_rewriting(Some(0));
    assert!(blob_bytes(disk.directory.path()) > all, "it rewrites all the same");
    let begun = std::time::Instant::now();
    disk.restart(true);
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
    while blob_bytes(disk.directory.path()) > all / 2 {
        assert!(std::time::Instant::now() < deadline, "the space does not come back");
        disk.store().pace_rewriting(Some(4 << 20));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    for i in (0..no).filter(|i| i.is_multiple_of(8) || *i >= ROWS) {
        assert!(disk.store().record(at(i), ver(1, 1)).expect("record").is_some(), "{i}");
    }
}

/// Tables that no compaction may put in order pile up, and the store says so before it slows writers down.
#[test]
fn a_store_whose_tables_pile_up_says_so() {
    let mut disk = Disk::new();
    disk.options.data_buffer_bytes = 64 << 10;
    disk.restart(true);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let mut no = 0;
    while !disk.store().is_behind() {
        assert!(std::time::Instant::now() < deadline, "nothing piles up");
        disk.store().pace_rewriting(Some(0));
        let changes =
            (no..no + 16).map(|i| put(place(1, 0, 0, i % 512, 0), ver(1, i.into()), 1, 4160));
        disk.store().commit(Batch::durable(changes.collect())).expect("commit");
        no += 16;
    }
    assert!(disk.store().rewritten() > 0, "a compaction waits");
    disk.store().pace_rewriting(None);
    while disk.store().is_behind() {
        assert!(std::time::Instant::now() < deadline, "it stays behind");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn overwritten_records_do_not_pile_up() {
    const HOT: u32 = 512;
    const WRITES: u32 = HOT * 24;
    /// Every so many writes one goes to a row that is never written again: so every file keeps
    /// some that live, and none is ever dead as a whole.
    const COLD_EVERY: u32 = 16;
    const LIVE: u64 = (HOT + WRITES / COLD_EVERY) as u64 * 4160;
    let mut disk = Disk::new();
    disk.options.garbage_bytes_min = LIVE / 8;
    disk.restart(true);
    let hot = |i| place(1, 0, 0, i, 0);
    let cold = |seq| place(1, 0, 1, seq, 0);
    let mut newest = vec![0; HOT as usize];
    let mut random = 1_u32;
    for seq in 1..=WRITES {
        let mut changes = Vec::new();
        if seq.is_multiple_of(COLD_EVERY) {
            changes.push(put(cold(seq), ver(1, seq.into()), 2, 4160));
        } else {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let i = (random >> 8) % HOT;
            changes.push(put(hot(i), ver(1, seq.into()), 1, 4160));
            let old = std::mem::replace(&mut newest[i as usize], seq);
            if old > 0 {
                // As the protocol does once the new one is committed.
                changes.push(Change::DeleteVersion { at: hot(i), ver: ver(1, old.into()) });
            }
        }
        disk.store().commit(Batch { changes, relaxed: true }).expect("commit");
    }
    // At most one dead for each living, and what lies in files and buffers that no compaction has
    // met yet, of whose dead nothing is known.
    let most = 2 * LIVE + 10 * disk.options.data_buffer_bytes as u64;
    assert!(most < u64::from(WRITES) * 4160 / 2, "far from all that was written");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while blob_bytes(disk.directory.path()) > most {
        assert!(std::time::Instant::now() < deadline, "dead records pile up");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let living = (0..).zip(&newest).filter(|(_, seq)| **seq > 0).map(|(i, seq)| (hot(i), *seq));
    let colds = (1..=WRITES).filter(|seq| seq.is_multiple_of(COLD_EVERY));
    for (at, seq) in living.chain(colds.map(|seq| (cold(seq), seq))) {
        let found = disk.store().record(at, ver(1, seq.into())).expect("record");
        assert!(found.is_some(), "{at}");
    }
}

fn blob_bytes(path: &std::path::Path) -> u64 {
    let files = std::fs::read_dir(path.join("db")).expect("the database's directory");
    files
        .map(|file| file.expect("an entry"))
        .filter(|file| file.file_name().to_string_lossy().ends_with(".blob"))
        // Files go away while they are counted.
        .filter_map(|file| file.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}
