//! Client reads.

use super::gather::Progress;
use super::rows::{Kind, TaskId};
use super::{Action, Coordinator, Event, OpError};
use crate::time::Time;
use bytes::Bytes;
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{GroupNo, RowAddr, Slot, SlotSet};
use std::collections::{BTreeMap, BTreeSet};

/// A read in progress.
#[derive(Clone, Debug)]
pub(super) struct ReadOp {
    pub(super) records: Vec<Bytes>,
    pub(super) rows_left: usize,
    pub(super) groups: BTreeSet<GroupNo>,
    /// The round of confirmations that has to end first, where there are no leases.
    pub(super) round: u64,
    pub(super) snap: Option<u32>,
}

impl Coordinator {
    pub(super) fn start_read(&mut self, read: Event) {
        let Event::Read { op, ref blocks, snap, generation } = read else { return };
        let writer_gen = self.writer_gen();
        if generation > writer_gen || snap.is_some_and(|snap| snap > self.newest_snap()) {
            // Whoever asks has a newer map, which is on its way here. What the gateway of this epoch is
            // still writing would be acknowledged, and lost with what is made of the old contents.
            self.waiting_ops.push_back((self.now, read));
            return;
        }
        if generation < writer_gen {
            // It holds what it wrote itself for the newest there is.
            self.actions.push(Action::ReadDone { op, result: Err(OpError::Fenced) });
            return;
        }
        if !self.is_kept(snap) {
            self.actions.push(Action::ReadDone { op, result: Err(OpError::NoSnapshot) });
            return;
        }
        let data = self.data_slots();
        let mut rows: BTreeMap<RowAddr, Vec<(usize, Slot)>> = BTreeMap::new();
        let mut groups = BTreeSet::new();
        for (place, (row, slot)) in blocks.iter().enumerate() {
            let fits = data.contains(*slot) && self.store_of(row.group, *slot).is_some();
            if !fits {
                self.actions.push(Action::ReadDone { op, result: Err(OpError::Invalid) });
                return;
            }
            rows.entry(*row).or_default().push((place, *slot));
            // What a snapshot holds is the same whoever came after: it needs no lease.
            if snap.is_none() {
                groups.insert(row.group);
            }
        }
        if rows.keys().any(|row| !self.is_served(row.group)) {
            self.waiting_ops.push_back((self.now, read));
            return;
        }
        if rows.keys().any(|row| self.lost_rows.contains(row)) {
            self.actions.push(Action::ReadDone { op, result: Err(OpError::Unreadable) });
            return;
        }
        let records = vec![Bytes::new(); blocks.len()];
        let round =
            if self.confirms_reads() && snap.is_none() { self.confirms.want(&groups) } else { 0 };
        self.reads.insert(op, ReadOp { records, rows_left: rows.len(), groups, round, snap });
        if rows.is_empty() {
            self.finish_read(op);
        }
        for (row, want) in rows {
            self.add_task(row, Kind::Read { op, want, snap });
        }
    }

    /// Reads of snapshots that no map has told of for a while: nobody has made them.
    pub(super) fn give_up_early_reads(&mut self) {
        let (now, patience) = (self.now, self.config.takeover_patience);
        let late = |since: Time| now.since(since) > patience;
        let newest = self.newest_snap();
        for (since, event) in std::mem::take(&mut self.waiting_ops) {
            match event {
                Event::Read { op, snap: Some(snap), .. } if late(since) && snap > newest => {
                    let result = Err(OpError::NoSnapshot);
                    self.actions.push(Action::ReadDone { op, result });
                }
                event => self.waiting_ops.push_back((since, event)),
            }
        }
    }

    pub(super) fn run_read(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Kind::Read { want, snap, .. } = &task.kind else { return };
        if task.gather.need.is_empty() {
            task.gather.snap = *snap;
            task.gather.need = want.iter().map(|(_, slot)| *slot).collect::<SlotSet>();
        }
        match self.gather(id) {
            Progress::Waiting => {}
            Progress::Done => self.end_read_row(id, true),
            Progress::Failed => self.end_read_row(id, false),
        }
    }

    fn end_read_row(&mut self, id: TaskId, good: bool) {
        let Some(task) = self.end_task(id) else { return };
        let Kind::Read { op, want, .. } = task.kind else { return };
        if !good {
            if let Some(read) = self.reads.remove(&op) {
                let kept = self.is_kept(read.snap);
                let error = if kept { OpError::Unreadable } else { OpError::NoSnapshot };
                self.actions.push(Action::ReadDone { op, result: Err(error) });
            }
            return;
        }
        let Some(read) = self.reads.get_mut(&op) else { return };
        for (place, slot) in want {
            if let (Some(to), Some(record)) =
                (read.records.get_mut(place), task.gather.records.get(&slot))
            {
                *to = record.clone();
            }
        }
        read.rows_left -= 1;
        if read.rows_left == 0 {
            self.finish_read(op);
        }
    }

    /// All bytes are in hand: answers if the leases are valid *now*, or the epoch was confirmed
    /// since the read came; else waits.
    fn finish_read(&mut self, op: u64) {
        let Some(read) = self.reads.get(&op) else { return };
        let confirmed = |group: &GroupNo| match read.round {
            0 => self.lease_ok(*group) || lives(Mutant::NoLease),
            round => self.confirmed(*group, round) || lives(Mutant::NoConfirm),
        };
        if !self.is_kept(read.snap) {
            self.reads.remove(&op);
            self.actions.push(Action::ReadDone { op, result: Err(OpError::NoSnapshot) });
        } else if read.groups.iter().all(confirmed) {
            if let Some(read) = self.reads.remove(&op) {
                self.actions.push(Action::ReadDone { op, result: Ok(read.records) });
            }
        } else {
            self.lease_wait.insert(op);
        }
    }

    /// Leases, confirmations or in-sync sets changed.
    pub(super) fn check_leases(&mut self) {
        for op in std::mem::take(&mut self.lease_wait) {
            self.finish_read(op);
        }
    }
}
