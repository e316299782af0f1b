//! What clients saw, and whether one register per block explains it.
//!
//! Every write has a value of its own, so atomicity can be decided without search (Gibbons and
//! Korach, 1997): the write of a value and the reads that saw it form a cluster; a cluster must
//! contain its write and begin no read's end before it; and clusters must be orderable.

use std::collections::BTreeMap;

/// A point in the total order of events of a run.
pub type Moment = u64;

/// The value of a block that was never written or was trimmed.
pub const ABSENT: u64 = 0;

/// One operation on one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// A write, else a read.
    pub write: bool,
    /// What was written or seen.
    pub value: u64,
    /// When it was invoked.
    pub from: Moment,
    /// When it ended; none if nobody knows whether it did.
    pub to: Option<Moment>,
}

/// Operations by block.
#[derive(Debug, Default)]
pub struct History<K: Ord> {
    blocks: BTreeMap<K, Vec<Op>>,
}

impl<K: Ord + Copy + std::fmt::Debug> History<K> {
    /// Adds an operation.
    pub fn push(&mut self, block: K, op: Op) {
        self.blocks.entry(block).or_default().push(op);
    }

    /// How many operations it holds.
    pub fn len(&self) -> usize {
        self.blocks.values().map(Vec::len).sum()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Checks every block.
    ///
    /// # Errors
    /// The block that can not be explained, and why, in words.
    pub fn check(&self) -> Result<(), (K, String)> {
        for (block, ops) in &self.blocks {
            check_register(ops).map_err(|why| (*block, format!("block {block:?}: {why}")))?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Cluster {
    value: u64,
    /// The earliest end of its operations.
    first_end: Moment,
    /// The latest beginning of its operations.
    last_begin: Moment,
}

impl Cluster {
    /// The span in which the value must have been current throughout, if there is one.
    fn forward(&self) -> Option<(Moment, Moment)> {
        (self.first_end < self.last_begin).then_some((self.first_end, self.last_begin))
    }
}

/// Stands for the state before the first write once a trim shares its value.
const FIRST: u64 = u64::MAX;

/// Whether one atomic register explains the operations. Values are written at most once each; the
/// register begins [`ABSENT`], and one trim may make it so again once a write has ended. A write
/// that may or may not have happened counts only if it was seen.
///
/// # Errors
/// What can not be explained, in words.
pub fn check_register(ops: &[Op]) -> Result<(), String> {
    let Some(trim) = ops.iter().find(|op| op.write && op.value == ABSENT).copied() else {
        return check_renamed(ops, ABSENT, |_| false);
    };
    // A read that saw nothing belongs to the first state if it ended before the trim began, and
    // to the trim if it began after a write had ended. Few are neither, and they stand together.
    let first_end = ops.iter().filter(|op| op.write).filter_map(|op| op.to).min();
    check_renamed(ops, FIRST, |op| op.to.is_some_and(|to| to < trim.from)).or_else(|why| {
        check_renamed(ops, FIRST, |op| first_end.is_none_or(|end| op.from < end)).map_err(|_| why)
    })
}

fn check_renamed(ops: &[Op], first: u64, is_first: impl Fn(&Op) -> bool) -> Result<(), String> {
    let rename = |op: &Op| {
        let value = if !op.write && op.value == ABSENT && is_first(op) { first } else { op.value };
        Op { value, ..*op }
    };
    let renamed: Vec<Op> = ops.iter().map(rename).collect();
    let initial = Op { write: true, value: first, from: 0, to: Some(0) };
    let mut writes = BTreeMap::from([(first, initial)]);
    for op in renamed.iter().filter(|op| op.write) {
        if writes.insert(op.value, *op).is_some() {
            return Err(format!("value {} was written twice", op.value));
        }
    }
    check_clusters(&renamed, &writes)
}

fn check_clusters(ops: &[Op], writes: &BTreeMap<u64, Op>) -> Result<(), String> {
    let mut clusters: BTreeMap<u64, Cluster> = BTreeMap::new();
    for (value, write) in writes {
        let Some(to) = write.to else { continue };
        clusters.insert(*value, Cluster { value: *value, first_end: to, last_begin: write.from });
    }
    for read in ops.iter().filter(|op| !op.write) {
        let Some(end) = read.to else { continue };
        let Some(write) = writes.get(&read.value) else {
            return Err(format!("value {} was read and never written", read.value));
        };
        if end < write.from {
            return Err(format!("value {} was read before it was written", read.value));
        }
        let cluster = clusters.entry(read.value).or_insert(Cluster {
            value: read.value,
            first_end: write.to.unwrap_or(Moment::MAX),
            last_begin: write.from,
        });
        cluster.first_end = cluster.first_end.min(end);
        cluster.last_begin = cluster.last_begin.max(read.from);
    }
    let mut zones: Vec<(Moment, Moment, u64)> = clusters
        .values()
        .filter_map(|cluster| cluster.forward().map(|(from, to)| (from, to, cluster.value)))
        .collect();
    zones.sort_unstable();
    for pair in zones.windows(2) {
        let ((_, to, a), (from, _, b)) = (pair[0], pair[1]);
        if from < to {
            return Err(format!("values {a} and {b} were both current at one time"));
        }
    }
    for cluster in clusters.values().filter(|cluster| cluster.forward().is_none()) {
        // All its operations overlap; they must fit somewhere outside the others' spans.
        let (from, to) = (cluster.last_begin, cluster.first_end);
        if let Some((.., other)) = zones.iter().find(|(f, t, _)| *f < from && to < *t) {
            return Err(format!("value {} falls within the time of {other}", cluster.value));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn w(value: u64, from: u64, to: u64) -> Op {
        Op { write: true, value, from, to: Some(to) }
    }

    fn maybe(value: u64, from: u64) -> Op {
        Op { write: true, value, from, to: None }
    }

    fn r(value: u64, from: u64, to: u64) -> Op {
        Op { write: false, value, from, to: Some(to) }
    }

    #[test]
    fn atomic_histories_pass() {
        let good: &[&[Op]] = &[
            &[],
            &[r(0, 1, 2), w(1, 3, 4), r(1, 5, 6)],
            &[w(1, 1, 10), w(2, 2, 9), r(1, 11, 12), r(1, 13, 14)],
            &[w(1, 1, 10), r(0, 2, 3), r(1, 4, 5)],
            &[w(1, 1, 2), maybe(2, 3), r(1, 10, 11), r(2, 20, 21), r(2, 30, 31)],
            &[w(1, 1, 2), maybe(2, 3), r(1, 10, 11)],
            &[w(1, 1, 2), w(0, 3, 4), r(0, 5, 6), w(2, 7, 8), r(2, 9, 10)],
            &[r(0, 1, 2), w(1, 3, 4), w(0, 5, 6), r(0, 7, 8)],
        ];
        for history in good {
            assert_eq!(check_register(history), Ok(()), "{history:?}");
        }
    }

    #[test]
    fn others_do_not() {
        let bad: &[&[Op]] = &[
            // Lost write.
            &[w(1, 1, 2), r(0, 3, 4)],
            // Stale read.
            &[w(1, 1, 2), w(2, 3, 4), r(1, 5, 6)],
            // Goes back.
            &[w(1, 1, 2), w(2, 3, 10), r(2, 4, 5), r(1, 6, 7)],
            // Out of thin air.
            &[r(7, 1, 2)],
            // From the future.
            &[r(1, 1, 2), w(1, 3, 4)],
            // An unknown write that was seen stays.
            &[w(1, 1, 2), maybe(2, 3), r(2, 10, 11), r(1, 20, 21)],
            // A trim that did not last.
            &[w(1, 1, 2), w(0, 3, 4), r(1, 5, 6)],
            &[r(0, 1, 2), w(1, 3, 4), r(0, 5, 6), w(0, 7, 8)],
            // Two readers disagree about the order of two writes.
            &[w(1, 1, 10), w(2, 1, 10), r(1, 2, 3), r(2, 4, 5), r(1, 6, 7)],
        ];
        for history in bad {
            assert!(check_register(history).is_err(), "{history:?}");
        }
    }
}
