//! What a volume must hold, in the eyes of one client per block.
//!
//! A write that was answered is the block's value. A write that was not (its connection went away)
//! may take effect at any later time, once, or never: it stays a *maybe*. When a read shows a
//! maybe, that is the block's value from then on, and going back from it is an error. This is
//! linearizability of one register with one client and writes of unknown outcome.

use std::collections::BTreeMap;

use crate::pattern::Seen;

/// Write number 0: the block was never written and reads as zeros.
const NEVER: u64 = 0;

#[derive(Debug, Clone, Default)]
struct Block {
    value: u64,
    maybes: Vec<u64>,
}

/// The expected contents of the blocks somebody wrote to.
#[derive(Debug, Clone, Default)]
pub struct Model {
    blocks: BTreeMap<u64, Block>,
}

impl Model {
    /// A write was sent.
    pub fn sent(&mut self, block: u64, seq: u64) {
        self.blocks.entry(block).or_default().maybes.push(seq);
    }

    /// That write was acknowledged.
    pub fn acknowledged(&mut self, block: u64, seq: u64) {
        let entry = self.blocks.entry(block).or_default();
        entry.maybes.retain(|m| *m != seq);
        entry.value = seq;
    }

    /// A read gave this.
    ///
    /// # Errors
    /// In words, when no order of the writes explains it.
    pub fn observed(&mut self, block: u64, seen: &Seen) -> Result<(), String> {
        let entry = self.blocks.entry(block).or_default();
        let seq = match seen {
            Seen::Zero => NEVER,
            Seen::Write(seq) => *seq,
            Seen::Wrong(text) => return Err(format!("block {block}: {text}")),
        };
        if seq == entry.value {
            return Ok(());
        }
        if entry.maybes.contains(&seq) {
            entry.maybes.retain(|m| *m != seq);
            entry.value = seq;
            return Ok(());
        }
        Err(format!(
            "block {block}: holds write {seq}, but write {} was the last known (unanswered: {:?})",
            entry.value, entry.maybes
        ))
    }

    /// Numbers of all blocks it knows.
    #[must_use]
    pub fn block_numbers(&self) -> Vec<u64> {
        self.blocks.keys().copied().collect()
    }

    /// Writes of unknown outcome.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.blocks.values().map(|b| b.maybes.len()).sum()
    }

    /// Takes in the blocks of another model; the two know different blocks.
    pub fn merge(&mut self, other: Self) {
        self.blocks.extend(other.blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledged_writes_stay() {
        let mut m = Model::default();
        m.sent(1, 1);
        m.acknowledged(1, 1);
        assert!(m.observed(1, &Seen::Write(1)).is_ok());
        assert!(m.observed(1, &Seen::Zero).is_err(), "lost");
        assert!(m.observed(1, &Seen::Wrong("torn".into())).is_err());
        m.sent(1, 2);
        m.acknowledged(1, 2);
        assert!(m.observed(1, &Seen::Write(1)).is_err(), "stale");
    }

    #[test]
    fn unanswered_writes_may_come_late_but_only_once() {
        let mut m = Model::default();
        m.sent(1, 1);
        assert!(m.observed(1, &Seen::Zero).is_ok());
        m.sent(1, 2);
        m.acknowledged(1, 2);
        assert_eq!(m.unanswered(), 1);
        assert!(m.observed(1, &Seen::Write(2)).is_ok());
        assert!(m.observed(1, &Seen::Write(1)).is_ok(), "came late");
        assert!(m.observed(1, &Seen::Write(2)).is_err(), "went back");
        assert!(m.observed(2, &Seen::Write(9)).is_err(), "never sent");
    }
}
