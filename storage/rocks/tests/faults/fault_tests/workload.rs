//! What is written while the power may be cut, and what must be there afterwards.

use smalti_powercut::{Draw, Record, Watch};
use smalti_rocks::{Expect, RocksOptions, RocksStore};
use smalti_storage::ids::{
    ClusterId, Epoch, GroupNo, Incarnation, RowSlot, RunId, StoreId, Ver, VolumeNo,
};
use smalti_storage::store::memory::MemoryStore;
use smalti_storage::store::suite::{place, put, ver};
use smalti_storage::store::{
    Admission, Batch, Change, ChangeIndex, Opened, ShardStore, StoreError, VolumeState,
};
use std::path::Path;
use uuid::Uuid;

pub(crate) const EXPECT: Expect = Expect { cluster: ClusterId(Uuid::from_u128(7)) };

/// The volume whose state counts batches: batch i sets it to i, in epoch as in watermark.
pub(crate) const COUNTER: VolumeNo = VolumeNo(99);

/// Small buffers, so that tables, blob files and compactions come soon.
pub(crate) fn options() -> RocksOptions {
    RocksOptions {
        data_buffer_bytes: 192 << 10,
        meta_buffer_bytes: 64 << 10,
        wal_bytes_max: 1 << 20,
        cache_bytes: 1 << 20,
        garbage_bytes_min: 64 << 10,
        ..RocksOptions::default()
    }
}

pub(crate) fn open(path: &Path) -> Result<RocksStore, StoreError> {
    RocksStore::open(path, &options(), EXPECT)
}

/// All groups the batches know.
pub(crate) fn groups() -> Vec<(VolumeNo, GroupNo)> {
    let groups = (1..4).flat_map(|v| (0..2).map(move |g| (VolumeNo(v), GroupNo(g))));
    groups.chain([(COUNTER, GroupNo(0))]).collect()
}

/// Batches as the protocol makes them, though on few rows, so that they meet each other.
pub(crate) fn batches(seed: u64, count: usize) -> Vec<Batch> {
    let mut draw = Draw::new(seed);
    (1..=count as u32).map(|i| batch(&mut draw, i)).collect()
}

fn batch(draw: &mut Draw, i: u32) -> Batch {
    let state = VolumeState {
        promised: Epoch(i),
        watermark: ver(i, i.into()),
        collected: i,
        doubted: None,
    };
    let mut changes = vec![Change::SetVolume { volume: COUNTER, state }];
    for _ in 0..draw.between(1, 7) {
        let at = any_place(draw);
        let version = ver(1 + draw.below(3) as u32, 1 + draw.below(6) as u64);
        match draw.below(100) {
            0..60 => {
                let len = *draw.pick(&[0, 300, 4160, 4160, 4160]);
                changes.push(put(at, version, i as u8, len));
                changes.push(Change::SetPrepared { at, ver: version });
            }
            60..75 => changes.push(Change::DeleteVersion { at, ver: version }),
            75..80 => changes.push(Change::ClearPrepared { at }),
            80..86 => changes.push(index_change(draw, at)),
            86..90 => changes.push(Change::DropSlot { at }),
            90..97 => {
                // They only grow, so one that went back is told from all before.
                let state = VolumeState {
                    promised: Epoch(i),
                    watermark: ver(1, i.into()),
                    collected: i,
                    doubted: None,
                };
                changes.push(Change::SetVolume { volume: at.volume, state });
            }
            97..99 => {
                changes.push(Change::DropGroup { volume: at.volume, group: at.row.group });
            }
            _ => changes.push(Change::DropVolume { volume: at.volume }),
        }
    }
    Batch { changes, relaxed: draw.chance(25) }
}

fn index_change(draw: &mut Draw, at: RowSlot) -> Change {
    let (volume, group) = (at.volume, at.row.group);
    match draw.below(10) {
        0..7 => Change::NoteChanged { volume, row: at.row },
        7..9 => {
            let seat = (at.slot, StoreId(Uuid::from_u128(draw.below(9) as u128)));
            Change::SetIndex { volume, group, index: ChangeIndex { seats: [seat].into() } }
        }
        _ => Change::DropIndex { volume, group },
    }
}

fn any_place(draw: &mut Draw) -> RowSlot {
    let (volume, group) = (1 + draw.below(3) as u32, draw.below(2) as u16);
    place(volume, group, draw.below(4) as u64, draw.below(6) as u32, draw.below(3) as u8)
}

/// The twin after so many batches.
pub(crate) fn twin(batches: &[Batch]) -> MemoryStore {
    let twin = MemoryStore::new(StoreId::default());
    for batch in batches {
        twin.commit(batch.clone()).expect("the twin has room");
    }
    twin
}

/// A note between the store's own writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Opening,
    /// With the incarnation.
    Opened(u32),
    Begun(u32),
    Acked(u32),
    Closing,
    Closed,
}

impl Mark {
    pub(crate) fn code(self) -> u64 {
        let (kind, no) = match self {
            Self::Opening => (0, 0),
            Self::Opened(no) => (1, no),
            Self::Begun(no) => (2, no),
            Self::Acked(no) => (3, no),
            Self::Closing => (4, 0),
            Self::Closed => (5, 0),
        };
        kind << 32 | u64::from(no)
    }

    pub(crate) fn of(code: u64) -> Self {
        let no = code as u32;
        match code >> 32 {
            0 => Self::Opening,
            1 => Self::Opened(no),
            2 => Self::Begun(no),
            3 => Self::Acked(no),
            4 => Self::Closing,
            _ => Self::Closed,
        }
    }
}

/// Writes all batches in several runs, some of which are closed and some are not. After the last
/// it is closed and opened once more. Each step is noted by `note`.
pub(crate) fn write(
    path: &Path,
    batches: &[Batch],
    mut note: impl FnMut(Mark),
) -> Result<(), StoreError> {
    let runs = [(0, 25, true), (25, 50, false), (50, 60, true), (60, 100, true), (100, 100, false)];
    for (from, to, close) in runs {
        note(Mark::Opening);
        let store = open(path)?;
        let no = admit(&store)?;
        note(Mark::Opened(no));
        let part = |percent: usize| batches.len() * percent / 100;
        for (batch, no) in batches.iter().zip(1..).take(part(to)).skip(part(from)) {
            note(Mark::Begun(no));
            store.commit(batch.clone())?;
            note(Mark::Acked(no));
        }
        if close {
            note(Mark::Closing);
            store.close()?;
            note(Mark::Closed);
        }
    }
    Ok(())
}

/// Admits an open store, now and then under another number than its own, and answers that.
pub(crate) fn admit(store: &RocksStore) -> Result<u32, StoreError> {
    let Opened { incarnation: Incarnation(own), clean, .. } = store.opened();
    let no = own + u64::from(own % 3 == 2);
    let admission = Admission { run: run(no), incarnation: Incarnation(no), clean };
    store.announce(admission.run)?;
    store.admit(admission)?;
    Ok(u32::try_from(no).expect("few starts"))
}

fn run(no: u64) -> RunId {
    RunId(Uuid::from_u128(no.into()))
}

/// As [`write`], below a watched folder, with marks in its record.
pub(crate) fn record(batches: &[Batch]) -> Record {
    let folder = smalti_powercut::scratch().expect("a folder");
    let watch = Watch::begin(folder.path()).expect("watched");
    write(&store_in(folder.path()), batches, |mark| watch.mark(mark.code())).expect("written");
    watch.record()
}

/// The store's own folder below a watched one, so that making it is recorded too.
pub(crate) fn store_in(folder: &Path) -> std::path::PathBuf {
    folder.join("store")
}

/// What has to hold after the marks so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    /// All batches up to this one are there.
    pub(crate) least: u32,
    /// None after this one is.
    pub(crate) most: u32,
    /// The newest incarnation that served; its run has the same number.
    pub(crate) served: u32,
    pub(crate) clean: Clean,
}

/// Whether the next start may be a clean one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Clean {
    #[default]
    Maybe,
    Never,
    Surely,
}

impl Known {
    pub(crate) fn after(marks: impl Iterator<Item = Mark>, batches: &[Batch]) -> Self {
        let mut known = Self::default();
        for mark in marks {
            known.step(mark, batches);
        }
        known
    }

    pub(crate) fn at(record: &Record, point: usize, batches: &[Batch]) -> Self {
        Self::after(record.marks(point).map(Mark::of), batches)
    }

    fn step(&mut self, mark: Mark, batches: &[Batch]) {
        match mark {
            Mark::Opening | Mark::Closing => self.clean = Clean::Maybe,
            Mark::Opened(incarnation) => {
                self.served = incarnation;
                self.clean = Clean::Never;
            }
            Mark::Begun(no) => self.most = no,
            Mark::Acked(no) if batches[no as usize - 1].relaxed => {}
            Mark::Acked(no) => self.least = no,
            Mark::Closed => {
                self.least = self.most;
                self.clean = Clean::Surely;
            }
        }
    }
}

impl Known {
    /// No start has a number that served, and the disk names the run that served last, or one that
    /// was just being admitted.
    pub(crate) fn check_start(&self, opened: &Opened) {
        let served = u64::from(self.served);
        assert!(opened.incarnation.0 > served, "{opened:?}, {self:?}");
        assert!(opened.run >= run(served), "{opened:?}, {self:?}");
    }
}

/// How many batches are there.
pub(crate) fn counted(store: &RocksStore) -> Result<u32, StoreError> {
    let VolumeState { promised, watermark, .. } = store.volume(COUNTER)?;
    let same = Ver { epoch: promised, seq: promised.0.into() };
    assert_eq!(watermark, same, "no batch ever set this");
    Ok(promised.0)
}
