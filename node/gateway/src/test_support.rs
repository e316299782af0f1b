//! Rows held in memory, for tests and measurements, with the rules a coordinator relies on checked.

use crate::device::BoxFuture;
use crate::rows::Rows;
use bytes::Bytes;
use futures::FutureExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use smalti_rowcommit::coordinator::{BlockWrite, OpError};
use smalti_storage::geometry::{Geometry, PlaceKey};
use smalti_storage::ids::{ClusterId, KeyEpochNo, RowAddr, Slot, VolumeId, Wid};
use smalti_storage::keys::ShardKey;
use smalti_storage::record::RECORD_LEN;
use smalti_storage::seal::{EpochKeys, SealIdentity, VolumeKeys};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio::task::yield_now;

type Place = (RowAddr, Slot);

/// Records in memory. Clones share them. Whatever breaks the rules of a coordinator (a client write
/// number that does not grow, two writes of a block at once, a record of the wrong size) is noted
/// as a violation, for the test to find.
#[derive(Clone, Debug)]
pub struct MemoryRows {
    state: Arc<Mutex<State>>,
    open: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<Place, (Wid, Bytes)>,
    writing: BTreeSet<Place>,
    violations: Vec<String>,
    write_calls: Vec<usize>,
    read_calls: usize,
    failing: Option<(OpError, bool)>,
    jitter: Option<StdRng>,
}

impl Default for MemoryRows {
    fn default() -> Self {
        Self { state: Arc::default(), open: watch::Sender::new(true) }
    }
}

impl MemoryRows {
    /// No records, and every call delayed at random, so that calls overtake each other.
    pub fn with_jitter(seed: u64) -> Self {
        let this = Self::default();
        this.lock().jitter = Some(StdRng::seed_from_u64(seed));
        this
    }

    /// Shut, writes wait before they are carried out.
    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// Makes the following calls fail, with writes carried out all the same or not.
    pub fn fail(&self, failing: Option<(OpError, bool)>) {
        self.lock().failing = failing;
    }

    /// What broke the rules so far.
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// The number of blocks of each write so far.
    pub fn write_calls(&self) -> Vec<usize> {
        self.lock().write_calls.clone()
    }

    /// How many reads there were.
    pub fn read_calls(&self) -> usize {
        self.lock().read_calls
    }

    /// How many writes are under way.
    pub fn writes_under_way(&self) -> usize {
        self.lock().writing.len()
    }

    /// A copy of all records, present ones only.
    pub fn records(&self) -> BTreeMap<Place, Bytes> {
        let state = self.lock();
        let present = state.records.iter().filter(|(_, (_, record))| !record.is_empty());
        present.map(|(place, (_, record))| (*place, record.clone())).collect()
    }

    /// Puts a record in place behind the gateway's back.
    pub fn put(&self, place: Place, record: Bytes) {
        self.lock().records.entry(place).or_default().1 = record;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn delay(&self) {
        let turns = self.lock().jitter.as_mut().map_or(0, |random| random.next_u32() % 8);
        for _ in 0..turns {
            yield_now().await;
        }
    }
}

impl State {
    fn begin(&mut self, blocks: &[BlockWrite]) {
        self.write_calls.push(blocks.len());
        for BlockWrite { row, slot, wid, record, .. } in blocks {
            if !self.writing.insert((*row, *slot)) {
                self.violations.push(format!("{row} {slot} is written twice at once"));
            }
            if !record.is_empty() && record.len() != RECORD_LEN {
                self.violations.push(format!("a record of {} bytes", record.len()));
            }
            let last = self.records.get(&(*row, *slot)).map(|(last, _)| *last);
            if last.is_some_and(|last| last >= *wid) {
                self.violations.push(format!("{row} {slot}: {wid:?} after {last:?}"));
            }
        }
    }

    fn end(&mut self, blocks: Vec<BlockWrite>, keep: bool) {
        for BlockWrite { row, slot, wid, record, .. } in blocks {
            self.writing.remove(&(row, slot));
            if keep {
                self.records.insert((row, slot), (wid, record));
            }
        }
    }
}

impl Rows for MemoryRows {
    fn write(&self, blocks: Vec<BlockWrite>) -> BoxFuture<Result<(), OpError>> {
        let this = self.clone();
        // Like the coordinator, it goes by the order of the calls, not of the first polls.
        this.lock().begin(&blocks);
        async move {
            this.delay().await;
            let mut open = this.open.subscribe();
            // The sender lives as long as `this`.
            let _ = open.wait_for(|open| *open).await;
            let failing = this.lock().failing;
            let keep = failing.is_none_or(|(_, keep)| keep);
            this.lock().end(blocks, keep);
            this.delay().await;
            failing.map_or(Ok(()), |(error, _)| Err(error))
        }
        .boxed()
    }

    fn read(&self, blocks: Vec<Place>) -> BoxFuture<Result<Vec<Bytes>, OpError>> {
        let this = self.clone();
        async move {
            this.delay().await;
            let records = {
                let mut state = this.lock();
                state.read_calls += 1;
                if let Some((error, _)) = state.failing {
                    return Err(error);
                }
                let record = |place| state.records.get(place).map(|(_, bytes)| bytes.clone());
                blocks.iter().map(|place| record(place).unwrap_or_default()).collect()
            };
            this.delay().await;
            Ok(records)
        }
        .boxed()
    }
}

/// Whose blocks the volume of [`volume_keys`] holds.
pub fn identity() -> SealIdentity {
    SealIdentity { cluster: ClusterId::default(), volume: VolumeId::default() }
}

/// Keys of a volume, one key epoch, all different and known to everybody.
///
/// # Panics
/// Never: the keys are as many as the geometry has columns.
pub fn volume_keys(geometry: &Geometry) -> Arc<VolumeKeys> {
    let keys = (0..geometry.columns()).map(|i| {
        let mut key = [7; 32];
        key[..8].copy_from_slice(&(i as u64).to_le_bytes());
        ShardKey::new(key)
    });
    let epoch = EpochKeys::new(geometry, keys.collect()).expect("one key for each column");
    let keys = VolumeKeys::new(PlaceKey::new([9; 32]), KeyEpochNo(1), [(KeyEpochNo(1), epoch)]);
    Arc::new(keys.expect("the current epoch is there"))
}
