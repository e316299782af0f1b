//! Completing an undecided version: its record for every in-sync slot that lacks it, written *as
//! prepared*. Written as committed, a nested takeover could lose the row in every code with k = 2.

use super::decide::Chosen;
use super::gather::Progress;
use super::rows::{Kind, TaskId};
use super::{Coordinator, Purpose};
use crate::msg::Ask;
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::SlotSet;
use smalti_storage::store::{RecordHash, VersionMeta};

/// A version on its way forward.
#[derive(Clone, Debug, Hash)]
pub(super) struct Forward {
    pub(super) chosen: Chosen,
}

impl Coordinator {
    pub(super) fn run_forward(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Kind::Forward(Forward { chosen }) = &task.kind else { return };
        if task.gather.need.is_empty() {
            let lacking: SlotSet = chosen.lacking.keys().copied().collect();
            task.gather.reset(lacking, lacking);
            task.gather.vec = Some(chosen.vec.clone().into());
            task.gather.parity_ver = Some(chosen.ver);
        }
        match self.gather(id) {
            Progress::Waiting => {}
            Progress::Failed => {
                // A record that verified a moment ago does not any more: look again.
                self.takeover.again = true;
                self.end_task(id);
            }
            Progress::Done => self.install_forward(id),
        }
    }

    fn install_forward(&mut self, id: TaskId) {
        let data = self.data_slots();
        let Some(task) = self.end_task(id) else { return };
        let Kind::Forward(Forward { chosen }) = task.kind else { return };
        let row = task.row;
        for (slot, expect) in chosen.lacking {
            let record = task.gather.records.get(&slot).cloned().unwrap_or_default();
            let newest = chosen.vec.iter().map(|entry| entry.wid).max().unwrap_or_default();
            let own = chosen.vec.get(slot.index()).map_or(newest, |entry| entry.wid);
            let is_data = data.contains(slot);
            let meta = VersionMeta {
                ver: chosen.ver,
                base: expect,
                touched: chosen.touched,
                snap: chosen.snap,
                wid: if is_data { own } else { newest },
                vec: if is_data { Vec::new() } else { chosen.vec.clone() },
                present: !record.is_empty(),
                hash: RecordHash::default(),
            };
            self.takeover.open += 1;
            let ask = if lives(Mutant::InstallCommitted) {
                let (versions, keep) = (vec![(meta, record)], Vec::new());
                Ask::Restore { row, slot, versions, keep, expect }
            } else {
                Ask::Install { row, slot, meta, record, expect }
            };
            self.ask(row.group, slot, ask, Purpose::SettleDone);
        }
        // The task itself.
        self.takeover.open = self.takeover.open.saturating_sub(1);
        self.check_settled();
    }
}
