//! A coordinator's state in a few words, for logs.

use super::Coordinator;
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
}
