//! Clients: each does one operation at a time, and every write has a value of its own.

use super::event::{At, Ev};
use super::failure::Failure;
use super::history::{ABSENT, Op};
use super::swarm::MS;
use super::world::World;
use bytes::Bytes;
use smalti_rowcommit::Event;
use smalti_rowcommit::coordinator::{BlockWrite, OpError};
use smalti_storage::ids::{GroupNo, RowAddr, Slot, Wid};
use std::collections::BTreeMap;

/// Bytes of a record: the least the code takes.
pub(crate) const RECORD_LEN: usize = 64;

/// A block: its row and slot.
pub(crate) type Block = (RowAddr, Slot);

#[derive(Clone, Debug)]
struct Pending {
    op: u64,
    write: bool,
    blocks: Vec<(Block, u64)>,
    from: u64,
    wid: Option<Wid>,
    /// A read of this snapshot.
    snap: Option<u32>,
}

/// A client.
#[derive(Debug, Default)]
pub(crate) struct Client {
    ops: u64,
    pending: Option<Pending>,
    /// Blocks still to be read back at the end.
    left: Vec<(Block, Option<u32>)>,
}

impl Client {
    pub(crate) fn is_busy(&self) -> bool {
        self.pending.is_some() || !self.left.is_empty()
    }
}

/// The record of a value: nothing like another one's in any byte.
pub(crate) fn record(value: u64) -> Bytes {
    if value == ABSENT {
        return Bytes::new();
    }
    let mut bytes = Vec::with_capacity(RECORD_LEN);
    let mut word = value;
    while bytes.len() < RECORD_LEN {
        bytes.extend_from_slice(&word.to_le_bytes());
        word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) | 1;
    }
    bytes.into()
}

/// The value of a record, if it is one.
pub(crate) fn value_of(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() {
        return Some(ABSENT);
    }
    let value = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (record(value) == bytes).then_some(value)
}

impl World {
    pub(crate) fn all_blocks(&self) -> Vec<Block> {
        let rows = (0..self.swarm.groups).flat_map(|group| {
            (0..self.swarm.rows).map(move |index| RowAddr {
                group: GroupNo(group),
                stripe: u64::from(index / 2),
                index: index % 2,
            })
        });
        rows.flat_map(|row| (0..self.swarm.data).map(move |slot| (row, Slot(slot)))).collect()
    }

    fn next_turn(&mut self, client: usize) {
        let think = if self.reading_back { MS } else { self.swarm.think };
        let later = self.now + 1 + self.rng.below(think * 2);
        self.queue.push(later, Ev::Client(client));
    }

    /// A client that is idle begins an operation.
    pub(crate) fn client_turn(&mut self, client: usize) {
        if self.clients[client].pending.is_some() {
            return;
        }
        let Some((mut write, blocks, mut snap)) = self.draw_op(client) else { return };
        let at = self.choose_node();
        if self.swarm.stray_reads && self.serving() != Some(at) {
            write = false;
        }
        if !write && !self.reading_back && self.rng.percent(self.swarm.snapshot_reads_percent) {
            snap = self.some_snapshot(at);
        }
        self.clients[client].ops += 1;
        let op = self.clients[client].ops;
        let from = self.tock();
        // Unique over clients and operations; blocks of one operation differ in the last byte.
        let base = ((client as u64 + 1) << 40) | (op << 8);
        let trim = write && blocks.len() == 1 && self.may_trim(blocks[0]);
        let value = |no: usize| if trim { ABSENT } else { base | no as u64 };
        let blocks: Vec<_> = blocks.into_iter().enumerate().map(|(no, b)| (b, value(no))).collect();
        self.tell_op(client, op, write, &blocks);
        let pending = Pending { op, write, blocks, from, wid: None, snap };
        self.clients[client].pending = Some(pending);
        let later = self.now + self.rng.below(self.swarm.net_delay);
        self.queue.push(later, Ev::Invoke { client, op, at });
        self.queue.push(self.now + self.swarm.patience, Ev::Deadline { client, op });
    }

    fn may_trim(&mut self, block: Block) -> bool {
        self.written.contains(&block) && self.rng.percent(5) && self.trimmed.insert(block)
    }

    /// Whether to write, which blocks, and of which snapshot.
    fn draw_op(&mut self, client: usize) -> Option<(bool, Vec<Block>, Option<u32>)> {
        if self.reading_back {
            let left = &mut self.clients[client].left;
            let snap = left.first()?.1;
            let same = left.iter().take(3).take_while(|(_, of)| *of == snap).count();
            let blocks = left.drain(..same).map(|(block, _)| block).collect();
            return Some((false, blocks, snap));
        }
        if !self.stormy {
            return None;
        }
        let all = self.all_blocks();
        let write = self.rng.percent(self.swarm.writes_percent);
        let first = self.rng.pick(&all)?;
        if write && self.rng.percent(self.swarm.whole_rows_percent) {
            let row = all.into_iter().filter(|(row, _)| *row == first.0).collect();
            return Some((true, row, None));
        }
        let mut blocks = vec![first];
        while self.rng.percent(25) && blocks.len() < 4 {
            let more = self.rng.pick(&all)?;
            if !blocks.contains(&more) {
                blocks.push(more);
            }
        }
        Some((write, blocks, None))
    }

    /// Mostly the coordinator, sometimes whoever.
    fn choose_node(&mut self) -> At {
        match self.serving() {
            Some(at) if !self.rng.percent(self.swarm.stray_percent) => at,
            _ => {
                // Whoever believes to serve, were it wrongly.
                let believers: Vec<At> = (0..self.nodes.len())
                    .filter(|at| self.nodes[*at].up && self.believes(*at, self.volume))
                    .collect();
                self.rng.pick(&believers).unwrap_or(0)
            }
        }
    }

    /// The operation comes to a node's gateway, which stamps it and passes it on.
    pub(crate) fn invoke(&mut self, client: usize, op: u64, at: At) {
        let Some(pending) = self.clients[client].pending.clone().filter(|p| p.op == op) else {
            return;
        };
        let able = self.nodes[at].up && !self.nodes[at].paused && self.believes(at, self.volume);
        if !able {
            return self.client_refused(client);
        }
        let process = self.nodes[at].process_mut();
        let generation = process.map.volumes.get(&self.volume).map_or(0, |v| v.writer_gen);
        process.next_op += 1;
        let number = process.next_op;
        process.ops.insert(number, (client, op));
        if !pending.write {
            self.tell_invoked(at, client, None);
            let blocks = pending.blocks.iter().map(|(block, _)| *block).collect();
            let snap = pending.snap;
            return self.coordinate(at, Event::Read { op: number, blocks, snap, generation });
        }
        let wid = Wid { generation, seq: process.next_wid };
        process.next_wid += 1;
        self.tell_invoked(at, client, Some(wid));
        if let Some(pending) = &mut self.clients[client].pending {
            pending.wid = Some(wid);
        }
        let write = |((row, slot), value): &(Block, u64)| BlockWrite {
            row: *row,
            slot: *slot,
            wid,
            record: record(*value),
        };
        let blocks: Vec<BlockWrite> = pending.blocks.iter().map(write).collect();
        if self.rng.percent(self.swarm.late_percent) {
            let later = self.now + self.rng.below(600 * MS);
            self.queue.push(later, Ev::Late { blocks: blocks.clone() });
        }
        self.coordinate(at, Event::Write { op: number, blocks });
    }

    /// A second copy of a client's write, long on its way, comes to whoever serves. Nobody waits
    /// for it, and what was written since must not notice.
    pub(crate) fn late_write(&mut self, blocks: Vec<BlockWrite>) {
        let at = self.choose_node();
        if self.nodes[at].up && !self.nodes[at].paused && self.believes(at, self.volume) {
            self.trace(|| format!("a late copy of {blocks:?}"));
            self.tell_late(at, &blocks);
            let process = self.nodes[at].process_mut();
            process.next_op += 1;
            let op = process.next_op;
            self.coordinate(at, Event::Write { op, blocks });
        }
    }

    /// Nothing was begun: as if the operation had never been.
    fn client_refused(&mut self, client: usize) {
        if let Some(pending) = self.clients[client].pending.take() {
            for (block, value) in &pending.blocks {
                if pending.write && *value == ABSENT {
                    self.trimmed.remove(block);
                }
            }
            if self.reading_back {
                let blocks = pending.blocks.iter().map(|(block, _)| (*block, pending.snap));
                self.clients[client].left.extend(blocks);
            }
        }
        self.next_turn(client);
    }

    fn take_op(&mut self, at: At, number: u64) -> Option<(usize, Pending)> {
        let process = self.nodes[at].process.as_mut()?;
        let (client, op) = process.ops.remove(&number)?;
        let held = &mut self.clients[client].pending;
        held.take_if(|pending| pending.op == op).map(|pending| (client, pending))
    }

    /// The process that had the operation is gone, or the client's patience.
    pub(crate) fn client_unknown(&mut self, client: usize, op: u64) {
        let held = &mut self.clients[client].pending;
        let Some(pending) = held.take_if(|pending| pending.op == op) else { return };
        self.end_unknown(client, &pending);
    }

    fn end_unknown(&mut self, client: usize, pending: &Pending) {
        self.tell_unknown(client);
        if pending.write {
            for (block, value) in &pending.blocks {
                let op = Op { write: true, value: *value, from: pending.from, to: None };
                self.history.push(*block, op);
            }
        } else if self.reading_back && !self.is_beyond() {
            let blocks = pending.blocks.iter().map(|(block, _)| (*block, pending.snap));
            self.clients[client].left.extend(blocks);
        }
        self.next_turn(client);
    }

    pub(crate) fn write_done(&mut self, at: At, number: u64, result: Result<(), OpError>) {
        let Some((client, pending)) = self.take_op(at, number) else { return };
        if let Err(error) = result {
            self.expect_error(error, &pending.blocks);
            self.end_unknown(client, &pending);
            return;
        }
        let to = Some(self.tock());
        self.acknowledged += 1;
        for (block, value) in &pending.blocks {
            self.written.insert(*block);
            let op = Op { write: true, value: *value, from: pending.from, to };
            self.history.push(*block, op);
            if let Some(wid) = pending.wid {
                let newest = self.acked.entry(*block).or_default();
                *newest = (*newest).max(wid);
                self.check_acked(at, *block, wid);
            }
        }
        self.next_turn(client);
    }

    pub(crate) fn read_done(&mut self, at: At, number: u64, result: Result<Vec<Bytes>, OpError>) {
        let Some((client, pending)) = self.take_op(at, number) else { return };
        let records = match result {
            Ok(records) => records,
            Err(OpError::NoSnapshot) if pending.snap.is_some_and(|s| !self.is_kept(s)) => {
                return self.next_turn(client);
            }
            Err(error) => {
                self.expect_error(error, &pending.blocks);
                self.end_unknown(client, &pending);
                return;
            }
        };
        // What a snapshot holds is what was there when it was made.
        let made = pending.snap.and_then(|snap| self.snapshots.get(&snap)).copied();
        let (from, to) = made.unwrap_or_else(|| (pending.from, self.tock()));
        let to = Some(to);
        for ((block, _), bytes) in pending.blocks.iter().zip(&records) {
            let Some(value) = value_of(bytes) else {
                let why = format!("I15: block {block:?} was read as {bytes:?}");
                return self.fail(Failure::at(block.0, why));
            };
            let op = Op { write: false, value, from, to };
            self.history.push(*block, op);
        }
        self.next_turn(client);
    }

    fn expect_error(&mut self, error: OpError, blocks: &[(Block, u64)]) {
        let expected = match error {
            OpError::Fenced => true,
            // Rotten bytes are one loss, slots that are out others: snapshots raise the epoch, and a
            // store whose map is late then is called silent.
            OpError::Unreadable if self.is_beyond() => {
                self.unreadable += 1;
                blocks.iter().any(|((row, _), _)| self.rotten.contains(row))
            }
            OpError::Unreadable => {
                let out = self.swarm.faults.len() > 1 || self.swarm.snapshot_every > 0;
                !self.rotten.is_empty() && out
            }
            OpError::NoSpace => self.swarm.has(super::swarm::Fault::Full),
            _ => false,
        };
        if !expected {
            let mut failure = Failure::from(format!("an operation failed: {error}"));
            let first = blocks.first().map(|((row, _), _)| *row);
            failure.row = first.filter(|first| blocks.iter().all(|((row, _), _)| row == first));
            self.fail(failure);
        }
    }

    /// Every block is read once more, by all clients together.
    pub(crate) fn read_back(&mut self) {
        self.trace(|| "reading back".into());
        self.reading_back = true;
        let mut by_block: BTreeMap<usize, Vec<(Block, Option<u32>)>> = BTreeMap::new();
        let kept = self.volume().map(|volume| volume.snapshots.keys().copied().collect());
        let kept: Vec<u32> = kept.unwrap_or_default();
        for snap in std::iter::once(None).chain(kept.into_iter().map(Some)) {
            for (no, block) in self.all_blocks().into_iter().enumerate() {
                by_block.entry(no % self.clients.len()).or_default().push((block, snap));
            }
        }
        for (client, blocks) in by_block {
            self.clients[client].left = blocks;
            self.next_turn(client);
        }
    }
}
