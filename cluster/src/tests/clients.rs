//! Clients of a coder. Each has blocks of its own, in rows that it shares with others, and knows
//! what may stand in them.

use super::cluster::Cluster;
use super::rng::Rng;
use crate::coder::CoderHandle;
use bytes::Bytes;
use smalti_rowcommit::coordinator::BlockWrite;
use smalti_storage::ids::{GroupNo, RowAddr, RowSlot, Slot, Wid};
use smalti_storage::store::ShardStore;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// That of the only election, which follows the founding of a volume.
pub(super) const GENERATION: u32 = 2;

pub(super) fn row(index: u64) -> RowAddr {
    let index = u32::try_from(index).expect("few rows");
    RowAddr { group: GroupNo(0), stripe: 0, index }
}

pub(super) fn wid(seq: u64) -> Wid {
    Wid { generation: GENERATION, seq }
}

/// What a block may hold.
#[derive(Clone, Debug, Default)]
struct Register {
    /// The newest acknowledged contents; empty when never written.
    acked: Bytes,
    /// Of writes that ended in an error since then.
    maybe: Vec<Bytes>,
}

impl Register {
    fn explains(&self, found: &Bytes) -> bool {
        *found == self.acked || self.maybe.contains(found)
    }
}

/// One client.
pub(super) struct Client {
    coder: CoderHandle,
    rng: Rng,
    record_len: usize,
    blocks: BTreeMap<(RowAddr, Slot), Register>,
    next: u64,
    /// How many operations it has made.
    pub(super) ops: u64,
}

impl Client {
    /// The blocks of client `no` of `clients`, in the first rows of the volume.
    pub(super) fn new(
        cluster: &Cluster,
        coder: &CoderHandle,
        rng: Rng,
        (no, clients): (u64, u64),
        rows: u64,
    ) -> Self {
        let data = u64::from(cluster.setup.data);
        let all = (0..rows).flat_map(|at| (0..data).map(move |slot| (at, slot)));
        let mine = all.filter(|(at, slot)| (at * data + slot) % clients == no);
        let block = |(at, slot)| (row(at), Slot(u8::try_from(slot).expect("few slots")));
        Self {
            coder: coder.clone(),
            rng,
            record_len: cluster.setup.record_len,
            blocks: mine.map(|at| (block(at), Register::default())).collect(),
            next: 1,
            ops: 0,
        }
    }

    /// Works until told to stop; no operation is given up.
    pub(super) async fn run(
        mut self,
        stop: CancellationToken,
        pause: Duration,
    ) -> Result<Self, String> {
        while !stop.is_cancelled() {
            match self.rng.below(10) {
                0..6 => self.write().await,
                6..9 => self.read().await?,
                _ => self.read_far().await?,
            }
            self.ops += 1;
            let most = u64::try_from(pause.as_micros()).unwrap_or(0);
            // Never without any: on a paused clock time passes only when everybody waits, and what
            // is at hand here is read in no time.
            sleep(Duration::from_micros(1 + self.rng.below(most + 1))).await;
        }
        Ok(self)
    }

    fn some_blocks(&mut self) -> Vec<(RowAddr, Slot)> {
        let count = 1 + self.rng.index(self.blocks.len().min(3));
        let from = self.rng.index(self.blocks.len());
        self.blocks.keys().cycle().skip(from).take(count).copied().collect()
    }

    async fn write(&mut self) {
        let mut writes = Vec::new();
        for (row, slot) in self.some_blocks() {
            let seq = self.next;
            self.next += 1;
            let mut record = vec![0; self.record_len];
            record[..8].copy_from_slice(&seq.to_be_bytes());
            record[8..16].copy_from_slice(&self.rng.next().to_be_bytes());
            let record = Bytes::from(record);
            writes.push(BlockWrite { row, slot, wid: wid(seq), record });
        }
        let done = self.coder.write(writes.clone()).await;
        for write in writes {
            let register = self.blocks.get_mut(&(write.row, write.slot)).expect("one of mine");
            match done {
                // Older writes of this client may not come any more: they are older.
                Ok(()) => *register = Register { acked: write.record, maybe: Vec::new() },
                Err(_) => register.maybe.push(write.record),
            }
        }
    }

    async fn read(&mut self) -> Result<(), String> {
        let blocks = self.some_blocks();
        if let Ok(found) = self.coder.read(GENERATION, blocks.clone()).await {
            self.explain(&blocks, &found)?;
        }
        Ok(())
    }

    /// Reads many rows at once, of which few were ever written.
    async fn read_far(&mut self) -> Result<(), String> {
        let count = self.rng.range(20, 300);
        let blocks: Vec<_> = (0..count).map(|at| (row(at), Slot(0))).collect();
        if let Ok(found) = self.coder.read(GENERATION, blocks.clone()).await {
            self.explain(&blocks, &found)?;
        }
        Ok(())
    }

    fn explain(&self, blocks: &[(RowAddr, Slot)], found: &[Bytes]) -> Result<(), String> {
        for (block, found) in blocks.iter().zip(found) {
            if let Some(register) = self.blocks.get(block)
                && !register.explains(found)
            {
                let (row, slot) = block;
                return Err(format!("{row} {slot} reads {found:?}, and should {register:?}"));
            }
        }
        Ok(())
    }

    /// With nothing under way: what was acknowledged is read, and lies in the store.
    pub(super) async fn check(&self, cluster: &Cluster) -> Result<(), String> {
        let blocks: Vec<_> = self.blocks.keys().copied().collect();
        let found = self.coder.read(GENERATION, blocks.clone()).await;
        let found = found.map_err(|error| format!("a whole volume is not read: {error}"))?;
        self.explain(&blocks, &found)?;
        let volume = self.coder.volume();
        for ((row, slot), register) in &self.blocks {
            let disk = &cluster.store_of(volume, slot.index()).disk;
            let at = RowSlot { volume, row: *row, slot: *slot };
            let head = disk.head(at).map_err(|error| error.to_string())?;
            let record = match &head {
                Some(head) => disk.record(at, head.ver).map_err(|error| error.to_string())?,
                None => None,
            };
            if !register.explains(&record.unwrap_or_default()) {
                return Err(format!("{row} {slot} is stored as {head:?}, and should {register:?}"));
            }
        }
        Ok(())
    }
}
