//! A coordinator's state in a few words, for logs.

use super::Coordinator;
use smalti_storage::ids::RowAddr;
use std::collections::BTreeMap;

impl Coordinator {
    /// What it is waiting for: requests without an answer by kind, learners by stage.
    pub fn describe(&self) -> String {
        let mut waiting: BTreeMap<String, usize> = BTreeMap::new();
        for pending in self.pending.values() {
            let ask = format!("{:?}", pending.ask);
            let kind = ask.split([' ', '{', '(']).next().unwrap_or_default();
            let held = if pending.held { " held" } else { "" };
            *waiting.entry(format!("{kind}{held} of {}", pending.store)).or_default() += 1;
        }
        format!(
            "{:?} {} tasks {} in flight {} waiting {waiting:?} learners {}",
            self.phase,
            self.epoch,
            self.tasks.len(),
            self.inflight.len(),
            self.catchup.describe()
        )
    }

    /// Rows that learners lack yet, about.
    pub(super) fn rows_left(&self) -> u64 {
        let Some(volume) = &self.volume else { return 0 };
        let rows = volume.size.div_ceil(smalti_storage::record::BLOCK_LEN as u64);
        let rows = rows.div_ceil(u64::from(volume.data));
        let in_stripe =
            (u64::from(volume.shard_size) / smalti_storage::record::BLOCK_LEN as u64).max(1);
        let stripes = rows.div_ceil(in_stripe).max(1);
        let part = |row: RowAddr| row.stripe as f64 / stripes as f64;
        self.catchup.learners.values().map(|learning| learning.rows_left(part)).sum()
    }
}
