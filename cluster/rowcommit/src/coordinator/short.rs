//! Groups with fewer in sync than an acknowledgement takes: their writes wait until they have grown.

use super::rows::{Kind, TaskId};
use super::{Action, Coordinator};
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{GroupNo, RowAddr};

impl Coordinator {
    /// Answers a write that is done, if enough stores are in sync to acknowledge it.
    pub(super) fn finish_write(&mut self, op: u64) {
        let Some(write) = self.writes.get(&op).filter(|write| write.rows_left == 0) else { return };
        let result = write.result;
        if result.is_err() || write.groups.iter().all(|no| self.may_acknowledge(*no)) {
            self.writes.remove(&op);
            self.actions.push(Action::WriteDone { op, result });
        }
    }

    /// Lets go of a row whose group is short; the update is begun when it has grown.
    pub(super) fn park(&mut self, id: TaskId) {
        let Some(task) = self.end_task(id) else { return };
        let Kind::Update(mut update) = task.kind else { return };
        update.begin_anew();
        if let Some(parked) = self.parked.get_mut(&task.row) {
            parked.absorb(update);
        } else {
            self.parked.insert(task.row, update);
        }
    }

    /// After groups have grown: what waited for that begins, and what was done is answered, for what has
    /// joined a group has all that the others have.
    pub(super) fn finish_writes(&mut self) {
        let grown: Vec<RowAddr> =
            self.parked.keys().copied().filter(|row| self.may_acknowledge(row.group)).collect();
        for row in grown {
            if let Some(update) = self.parked.remove(&row) {
                self.add_task(row, Kind::Update(update));
            }
        }
        let done = self.writes.iter().filter(|(_, write)| write.rows_left == 0);
        let done: Vec<u64> = done.map(|(op, _)| *op).collect();
        for op in done {
            self.finish_write(op);
        }
    }

    /// Whether as many stores of the group are in sync as an acknowledgement takes.
    pub(super) fn may_acknowledge(&self, group: GroupNo) -> bool {
        let least = self.volume.as_ref().map_or(0, |volume| volume.min_insync);
        self.insync(group).len() >= u32::from(least) || lives(Mutant::AckBelowMin)
    }

    /// Whether writes wait for a group to grow.
    pub(super) fn is_short(&self) -> bool {
        let groups = self.volume.as_ref().map_or(0, |volume| volume.groups.len());
        let waits = |no| self.is_served(no) && !self.may_acknowledge(no);
        (0u16..).take(groups).map(GroupNo).any(waits)
    }
}
