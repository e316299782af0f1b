//! The conformance suite: what every [`ShardStore`] must do, run against all of them.
//!
//! A case gets a fresh, empty [`Subject`] and panics where the store is wrong. [`assert_same`]
//! compares two stores through everything the trait lets one see.

use super::memory::{MemoryStore, Restart};
use super::{
    Batch, Change, RecordHash, ShardStore, SlotVersions, StoreError, VecEntry, VersionMeta,
    VolumeState,
};
use crate::ids::{Epoch, GroupNo, RowAddr, RowSlot, Slot, SlotSet, StoreId, Ver, VolumeNo, Wid};
use bytes::Bytes;

mod cases;

/// A store under test that can be ended and started again over the same content.
pub trait Subject {
    /// The running store.
    fn store(&self) -> &dyn ShardStore;

    /// Ends the run, with [`ShardStore::close`] when `clean` and without otherwise, and starts
    /// the next one.
    fn restart(&mut self, clean: bool);
}

/// A case of the suite.
pub type Case = fn(&mut dyn Subject);

/// All cases with their names.
pub const CASES: &[(&str, Case)] = &[
    ("empty", cases::empty),
    ("versions", cases::versions),
    ("large numbers", cases::large_numbers),
    ("absent versions", cases::absent_versions),
    ("put, delete, put again", cases::put_delete_put),
    ("put twice", cases::put_twice),
    ("order within a batch", cases::batch_order),
    ("refused batches", cases::refused_batches),
    ("prepared marks", cases::prepared_marks),
    ("volume state", cases::volume_state),
    ("index of changes", cases::index_of_changes),
    ("scan pages", cases::scan_pages),
    ("scan bounds", cases::scan_bounds),
    ("drop slot", cases::drop_slot),
    ("drop group", cases::drop_group),
    ("drop volume", cases::drop_volume),
    ("records in order", cases::records_in_order),
    ("restarts", cases::restarts),
    ("admissions", cases::admissions),
    ("relaxed batches", cases::relaxed_batches),
    ("large batches", cases::large_batches),
    ("closed store", cases::closed_store),
    ("space", cases::space),
];

/// Runs every case, each on its own subject.
///
/// # Panics
/// Where the store is wrong.
pub fn run_all(mut make: impl FnMut() -> Box<dyn Subject>) {
    for (name, case) in CASES {
        eprintln!("store suite: {name}");
        case(make().as_mut());
    }
}

/// A [`MemoryStore`] as a subject.
#[derive(Debug)]
pub struct MemorySubject(pub MemoryStore);

impl Default for MemorySubject {
    fn default() -> Self {
        Self(MemoryStore::new(StoreId::default()))
    }
}

impl Subject for MemorySubject {
    fn store(&self) -> &dyn ShardStore {
        &self.0
    }

    fn restart(&mut self, clean: bool) {
        if clean {
            self.0.close().expect("a memory store that works can be closed");
        }
        self.0.restart(Restart { clean, ..Restart::default() });
    }
}

/// Asserts that two stores hold the same of all `volumes`, through every way of asking.
///
/// # Panics
/// Where they differ or one of them can not be read.
pub fn assert_same(left: &dyn ShardStore, right: &dyn ShardStore, groups: &[(VolumeNo, GroupNo)]) {
    assert_eq!(left.volumes().expect("volumes"), right.volumes().expect("volumes"));
    for &(volume, group) in groups {
        assert_eq!(left.volume(volume).expect("state"), right.volume(volume).expect("state"));
        assert_eq!(left.prepared(volume).expect("marks"), right.prepared(volume).expect("marks"));
        let index = |store: &dyn ShardStore| {
            let rows = store.changed(volume, group, None, usize::MAX).expect("changed rows");
            (store.index(volume, group).expect("index"), rows)
        };
        assert_eq!(index(left), index(right));
        // Two page sizes, so that paging itself is compared as well.
        let rows = scan_all(left, volume, group, 3);
        assert_eq!(rows, scan_all(right, volume, group, usize::MAX));
        let mut wanted = Vec::new();
        for (at, versions) in &rows {
            for store in [left, right] {
                assert_eq!(&store.versions(*at).expect("versions"), versions);
                assert_eq!(store.head(*at).expect("head").as_ref(), versions.first());
            }
            for meta in versions {
                for store in [left, right] {
                    let found = store.meta(*at, meta.ver).expect("metadata");
                    assert_eq!(found.as_ref(), Some(meta));
                    let record = store.record(*at, meta.ver).expect("record");
                    assert_eq!(record.is_some(), meta.present);
                    assert!(meta.verifies(*at, record.as_deref().unwrap_or_default()));
                }
                wanted.push((*at, meta.ver));
            }
        }
        let answers = |store: &dyn ShardStore| -> Vec<_> {
            store.records(&wanted).into_iter().map(|answer| answer.expect("record")).collect()
        };
        assert_eq!(answers(left), answers(right));
        for store in [left, right] {
            several_at_once(store, &rows, &wanted);
        }
    }
}

/// Asking for several at once says what asking for each does: in order, backwards, with repeats
/// and with slots in between that hold nothing.
fn several_at_once(store: &dyn ShardStore, rows: &[SlotVersions], wanted: &[(RowSlot, Ver)]) {
    let mut slots = Vec::new();
    for (at, _) in rows.iter().chain(rows.iter().rev()) {
        let beside = RowSlot { slot: Slot(at.slot.0.wrapping_add(1)), ..*at };
        slots.extend([*at, *at, beside, *at]);
    }
    for limit in [1, 2, usize::MAX] {
        let found = store.newest(&slots, limit);
        assert_eq!(found.len(), slots.len());
        for (at, found) in slots.iter().zip(found) {
            let mut expected = store.versions(*at).expect("versions");
            expected.truncate(limit);
            assert_eq!(found.expect("versions"), expected, "{at}, at most {limit}");
        }
    }
    let found: Vec<_> = store.metas(wanted).into_iter().map(|m| m.expect("metadata")).collect();
    let each = wanted.iter().map(|(at, ver)| store.meta(*at, *ver).expect("metadata"));
    assert_eq!(found, each.collect::<Vec<_>>());
}

/// Every row slot of a group, read in pages.
fn scan_all(
    store: &dyn ShardStore,
    volume: VolumeNo,
    group: GroupNo,
    page: usize,
) -> Vec<(RowSlot, Vec<VersionMeta>)> {
    let mut all: Vec<(RowSlot, Vec<VersionMeta>)> = Vec::new();
    loop {
        let after = all.last().map(|(at, _)| *at);
        let next = store.scan(volume, group, after, page).expect("scan");
        assert!(next.len() <= page);
        if next.is_empty() {
            return all;
        }
        all.extend(next);
    }
}

/// A row slot for tests.
pub fn place(volume: u32, group: u16, stripe: u64, index: u32, slot: u8) -> RowSlot {
    RowSlot {
        volume: VolumeNo(volume),
        row: RowAddr { group: GroupNo(group), stripe, index },
        slot: Slot(slot),
    }
}

/// A version for tests.
pub fn ver(epoch: u32, seq: u64) -> Ver {
    Ver { epoch: Epoch(epoch), seq }
}

/// The change that puts a version filled with `fill`, `len` bytes long; absent when `len` is 0.
/// Odd slots get a version vector, as parity slots have.
pub fn put(at: RowSlot, version: Ver, fill: u8, len: usize) -> Change {
    let record = Bytes::from(vec![fill; len]);
    let wid = Wid { generation: version.epoch.0, seq: version.seq & 0xffff_ffff_ffff };
    let vec = if at.slot.0 % 2 == 1 {
        vec![VecEntry { ver: version, wid, snap: 0 }; 2]
    } else {
        Vec::new()
    };
    let meta = VersionMeta {
        ver: version,
        base: Ver { epoch: version.epoch, seq: version.seq.saturating_sub(1) },
        touched: SlotSet::first(3),
        snap: u32::from(fill),
        wid,
        vec,
        present: len > 0,
        hash: RecordHash::default(),
    };
    let meta = meta.sealed_for(at, &record);
    Change::PutVersion { at, meta, record, fresh: false }
}

fn commit(store: &dyn ShardStore, changes: Vec<Change>) {
    store.commit(Batch::durable(changes)).expect("commit");
}

fn vers(store: &dyn ShardStore, at: RowSlot) -> Vec<Ver> {
    store.versions(at).expect("versions").into_iter().map(|meta| meta.ver).collect()
}

fn state(promised: u32, watermark: Ver) -> VolumeState {
    VolumeState {
        promised: Epoch(promised),
        watermark,
        collected: promised / 2,
        doubted: Some(watermark),
    }
}

fn is_refused(result: &Result<(), StoreError>) -> bool {
    matches!(result, Err(StoreError::Refused(_)))
}
