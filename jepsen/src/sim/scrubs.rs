//! Scrubs: beside everything else, and once more of all there is when the faults are over.

use super::client::Block;
use super::event::{At, Ev};
use super::swarm::MS;
use super::world::World;
use bytes::Bytes;
use smalti_rowcommit::Event;
use smalti_rowcommit::coordinator::ScrubReport;
use smalti_storage::ids::{GroupNo, RowAddr, RowSlot, Slot};
use smalti_storage::store::{Batch, Change, ShardStore};
use std::sync::Arc;

/// How long one may take when nothing else is going on.
const LIMIT: u64 = 60_000 * MS;

impl World {
    /// Some group is to be scrubbed.
    pub(crate) fn scrub_turn(&mut self) {
        if !self.stormy {
            return;
        }
        let next = self.now + self.rng.range(10 * MS, self.swarm.scrub_every * 2);
        self.queue.push(next, Ev::Scrub);
        let group = GroupNo(u16::try_from(self.rng.below(self.swarm.groups.into())).unwrap_or(0));
        self.begin_scrub(group);
        self.begin_list(group);
    }

    fn begin_scrub(&mut self, group: GroupNo) {
        let Some(at) = self.serving() else { return };
        let node = &self.nodes[at];
        if node.up && !node.paused && self.believes(at, self.volume) {
            self.coordinate(at, Event::Scrub { group });
        }
    }

    /// A scrub has ended. What it finds is looked at one by one, as alarms.
    pub(crate) fn scrubbed(&mut self, at: At, group: GroupNo, report: ScrubReport) {
        self.trace(|| format!("n{at} has scrubbed {group}: {report:?}"));
        if report.unclear > 0 && !self.is_beyond() {
            self.fail(format!("scrub of {group}: {report:?}, and nothing was made so"));
        }
        self.scrubbed = Some((group, report));
    }

    /// With everything whole: one scrub of each group puts right what has rotted, and another one
    /// finds nothing.
    pub(crate) fn scrub_all(&mut self) {
        let miscoded = self.miscode();
        for again in [false, true] {
            for group in (0..self.swarm.groups).map(GroupNo) {
                self.scrubbed = None;
                self.begin_scrub(group);
                let end = self.now + LIMIT;
                while self.failure.is_none() && self.scrubbed.is_none() && self.now < end {
                    self.step();
                }
                if self.is_beyond() {
                    continue;
                }
                let found = self.scrubbed.take();
                let missed = |(_, report): &(GroupNo, ScrubReport)| {
                    !again && miscoded == Some(group) && report.wrong.is_empty()
                };
                if found.as_ref().is_some_and(missed) {
                    self.fail(format!("the scrub of {group} misses a record with wrong bytes"));
                }
                match found {
                    Some((_, report)) if again && !report.is_clean() => {
                        self.fail(format!("{group} is scrubbed twice: {report:?}"));
                    }
                    Some(_) => {}
                    None => self.fail(format!("the scrub of {group} does not end")),
                }
            }
            if !self.is_beyond() {
                self.rotten.clear();
            }
        }
    }

    /// Turns a byte of a newest record over in such a way that it verifies, where two parity records
    /// can tell which one it was.
    fn miscode(&mut self) -> Option<GroupNo> {
        if self.is_beyond() || self.swarm.parity < 2 {
            return None;
        }
        let blocks: Vec<Block> = self.all_blocks();
        let rows: Vec<RowAddr> = blocks.iter().map(|(row, _)| *row).collect();
        let row = self.rng.pick(&rows).filter(|row| !self.rotten.contains(row))?;
        let slots = u64::from(self.swarm.data + self.swarm.parity);
        let slot = Slot(u8::try_from(self.rng.below(slots)).ok()?);
        let store = *self.volume()?.group(row.group)?.slots.get(slot.index())?;
        let at = RowSlot { volume: self.volume, row, slot };
        let disk = Arc::clone(&self.nodes[self.node_of(store)].disk);
        let meta = disk.head(at).ok()??;
        let mut record = disk.record(at, meta.ver).ok()??.to_vec();
        let place = usize::try_from(self.rng.below(record.len() as u64)).ok()?;
        record[place] ^= 1 << self.rng.below(8);
        let record = Bytes::from(record);
        let meta = meta.sealed_for(at, &record);
        let change = Change::PutVersion { at, meta, record, fresh: false };
        disk.commit(Batch::durable(vec![change])).ok()?;
        self.trace(|| format!("{at} gets wrong bytes that verify"));
        self.rotten.insert(row);
        Some(row.group)
    }
}
