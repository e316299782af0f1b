//! Row locks and the tasks that hold them.
//!
//! A row is either read by any number of tasks or held by one task that updates or repairs it;
//! tasks wait in order of arrival. So the version a reader finds is never undecided.

use super::gather::Gather;
use super::repair::Repair;
use super::write::Update;
use super::{Coordinator, Phase};
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{RowAddr, Slot};
use std::collections::VecDeque;

/// One task on one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TaskId(pub(super) u64);

#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub(super) readers: u32,
    pub(super) holder: Option<TaskId>,
    pub(super) queue: VecDeque<TaskId>,
}

#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) row: RowAddr,
    pub(super) gather: Gather,
    pub(super) kind: Kind,
    /// Has the row.
    pub(super) started: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Read slots for a client operation: pairs of place in the answer and slot.
    Read { op: u64, want: Vec<(usize, Slot)>, snap: Option<u32> },
    /// Change the row for client operations.
    Update(Update),
    /// Bring one slot to the committed state.
    Repair(Repair),
    /// Takeover: complete an undecided version on the slots that lack it.
    Forward(super::settle::Forward),
    /// See whether its slots agree.
    Check(super::scrub::Check),
}

impl Kind {
    fn is_read(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Check(_))
    }
}

impl Coordinator {
    /// Adds a task to its row's queue and starts it when the row is free.
    pub(super) fn add_task(&mut self, row: RowAddr, kind: Kind) -> TaskId {
        let id = TaskId(self.next_task);
        self.next_task += 1;
        let task = Task { row, gather: Gather::default(), kind, started: false };
        self.tasks.insert(id, task);
        self.rows.entry(row).or_default().queue.push_back(id);
        self.start_queued(row);
        id
    }

    /// The queued update of a row that has not begun, to be merged with another one.
    pub(super) fn queued_update(&mut self, row: RowAddr) -> Option<&mut Update> {
        let last = *self.rows.get(&row)?.queue.back()?;
        match &mut self.tasks.get_mut(&last)?.kind {
            Kind::Update(update) => Some(update),
            _ => None,
        }
    }

    fn start_queued(&mut self, at: RowAddr) {
        let Some(row) = self.rows.get_mut(&at) else { return };
        while let Some(next) = row.queue.front().copied() {
            let Some(task) = self.tasks.get_mut(&next) else {
                row.queue.pop_front();
                continue;
            };
            let beside = match task.kind {
                Kind::Read { .. } => lives(Mutant::ReadBesideUpdate),
                Kind::Update(_) => lives(Mutant::UpdatesTogether),
                _ => false,
            };
            if row.holder.is_some() && !beside {
                break;
            }
            if task.kind.is_read() {
                row.readers += 1;
            } else if row.readers > 0 {
                break;
            } else {
                row.holder = Some(next);
            }
            row.queue.pop_front();
            task.started = true;
            self.runnable.push_back(next);
        }
        if row.holder.is_none() && row.readers == 0 && row.queue.is_empty() {
            self.rows.remove(&at);
        }
    }

    /// Ends a task and lets the next ones at the row.
    pub(super) fn end_task(&mut self, id: TaskId) -> Option<Task> {
        let task = self.tasks.remove(&id)?;
        if let Some(row) = self.rows.get_mut(&task.row) {
            if row.holder == Some(id) {
                row.holder = None;
            } else if task.started && task.kind.is_read() {
                row.readers = row.readers.saturating_sub(1);
            }
        }
        self.start_queued(task.row);
        Some(task)
    }

    /// Runs every task that may be able to go on until none is.
    pub(super) fn run_tasks(&mut self) {
        while let Some(id) = self.runnable.pop_front() {
            let Some(task) = self.tasks.get(&id) else { continue };
            if !task.started || self.phase == Phase::Idle {
                continue;
            }
            match task.kind {
                Kind::Read { .. } => self.run_read(id),
                Kind::Update(_) => self.run_update(id),
                Kind::Repair(_) => self.run_repair(id),
                Kind::Forward(_) => self.run_forward(id),
                Kind::Check(_) => self.run_check(id),
            }
        }
    }
}
