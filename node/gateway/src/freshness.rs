//! What this gateway remembers to have written, so that older records are not taken for it.
//!
//! For each of a bounded number of blocks the number of the newest acknowledged write is kept. A
//! read asks before it fetches (a write acknowledged meanwhile need not be in its answer) and
//! compares when it has the record. Absence carries no number, so a mark also says whether the
//! block may be absent: after it was zeroed, and from the moment a zeroing is sent until a later
//! write of bytes is acknowledged.
//!
//! The marks lie in sets of four, found by the block's number. A full set forgets its oldest
//! write: neighbouring blocks fill all sets evenly, so a set is about as old as the whole.

use smalti_storage::ids::Wid;
use std::sync::{Mutex, MutexGuard, PoisonError};

const WAYS: usize = 4;

/// Every sequence is below 2^48; see the record format.
const MAY_BE_ABSENT: u64 = 1 << 63;

pub(crate) struct Freshness {
    generation: u32,
    sets: Mutex<Box<[[Entry; WAYS]]>>,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    block: u64,
    mark: Mark,
}

/// What is known of one block; nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark(u64);

impl Mark {
    fn seq(self) -> u64 {
        self.0 & !MAY_BE_ABSENT
    }

    fn may_be_absent(self) -> bool {
        self.0 == 0 || self.0 & MAY_BE_ABSENT != 0
    }
}

impl Freshness {
    /// Remembers about `blocks` blocks written by the gateway of `generation`.
    pub(crate) fn new(generation: u32, blocks: usize) -> Self {
        let sets = (blocks / WAYS).next_power_of_two();
        Self { generation, sets: Mutex::new(vec![[Entry::default(); WAYS]; sets].into()) }
    }

    /// The marks of blocks at this moment.
    pub(crate) fn marks(&self, blocks: impl Iterator<Item = u64>) -> Vec<Mark> {
        let mut sets = self.lock();
        blocks
            .map(|block| find(&mut sets, block).map(|entry| entry.mark).unwrap_or_default())
            .collect()
    }

    /// Zeroing of these blocks is about to be sent.
    pub(crate) fn zeroing(&self, blocks: impl Iterator<Item = u64>) {
        let mut sets = self.lock();
        for block in blocks {
            if let Some(entry) = find(&mut sets, block) {
                entry.mark.0 |= MAY_BE_ABSENT;
            }
        }
    }

    /// Writes of `(block, sequence, made absent)` were acknowledged. The caller has them locked.
    pub(crate) fn written(&self, blocks: impl Iterator<Item = (u64, u64, bool)>) {
        let mut sets = self.lock();
        for (block, seq, absent) in blocks {
            let mark = Mark(seq | if absent { MAY_BE_ABSENT } else { 0 });
            if let Some(entry) = find(&mut sets, block) {
                entry.mark = mark;
            } else {
                let set = set_of(&mut sets, block);
                let oldest = set.iter_mut().min_by_key(|entry| entry.mark.seq());
                *oldest.expect("a set has four entries") = Entry { block, mark };
            }
        }
    }

    /// Whether what was read of a block (a write, or absence) can be the newest, given its mark
    /// from before it was fetched.
    pub(crate) fn accepts(&self, block: u64, before: Mark, read: Option<Wid>) -> bool {
        match read {
            Some(wid) => {
                before.0 == 0 || wid >= Wid { generation: self.generation, seq: before.seq() }
            }
            // A zeroing may have begun after the mark was taken; any trace of that, or of writes
            // after it, explains the absence.
            None => before.may_be_absent() || self.marks([block].into_iter()) != [before],
        }
    }

    fn lock(&self) -> MutexGuard<'_, Box<[[Entry; WAYS]]>> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set_of(sets: &mut [[Entry; WAYS]], block: u64) -> &mut [Entry; WAYS] {
    // Neighbours in neighbouring sets; blocks a power of two apart spread by the second term.
    let spread = block.wrapping_add((block >> 14).wrapping_mul(0x9e37_79b9));
    let at = spread as usize & (sets.len() - 1);
    &mut sets[at]
}

fn find(sets: &mut [[Entry; WAYS]], block: u64) -> Option<&mut Entry> {
    set_of(sets, block).iter_mut().find(|entry| entry.block == block && entry.mark.0 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wid(generation: u32, seq: u64) -> Option<Wid> {
        Some(Wid { generation, seq })
    }

    fn mark(fresh: &Freshness, block: u64) -> Mark {
        fresh.marks([block].into_iter())[0]
    }

    #[test]
    fn older_records_and_sudden_absence_are_refused() {
        let fresh = Freshness::new(3, 64);
        assert!(fresh.accepts(7, mark(&fresh, 7), None), "nothing is known");
        assert!(fresh.accepts(7, mark(&fresh, 7), wid(1, 9)));
        fresh.written([(7, 10, false)].into_iter());
        let at_10 = mark(&fresh, 7);
        for (read, good) in [
            (wid(3, 10), true),
            (wid(3, 11), true),
            (wid(4, 1), true),
            (wid(3, 9), false),
            (wid(2, 99), false),
            (None, false),
        ] {
            assert_eq!(fresh.accepts(7, at_10, read), good, "{read:?}");
        }
        assert!(fresh.accepts(8, mark(&fresh, 8), None), "another block");
    }

    #[test]
    fn absence_is_believed_from_the_zeroing_to_the_next_write() {
        let fresh = Freshness::new(1, 64);
        fresh.written([(5, 1, false)].into_iter());
        let before = mark(&fresh, 5);
        assert!(!fresh.accepts(5, before, None));
        fresh.zeroing([5, 6].into_iter());
        assert!(fresh.accepts(5, before, None), "a read that began before the zeroing");
        assert!(fresh.accepts(5, mark(&fresh, 5), None), "a read while it is under way");
        assert!(fresh.accepts(5, mark(&fresh, 5), wid(1, 1)), "it may not have happened yet");
        fresh.written([(5, 2, true)].into_iter());
        assert!(fresh.accepts(5, mark(&fresh, 5), None));
        assert!(!fresh.accepts(5, mark(&fresh, 5), wid(1, 1)), "what was zeroed came back");
        fresh.written([(5, 3, false)].into_iter());
        assert!(fresh.accepts(5, before, None), "a read that began before both");
        assert!(!fresh.accepts(5, mark(&fresh, 5), None));
    }

    #[test]
    fn the_oldest_of_too_many_is_forgotten() {
        let fresh = Freshness::new(1, 64);
        fresh.written((0..256).map(|block| (block, block + 1, false)));
        let known = fresh.marks(0..256).iter().filter(|mark| **mark != Mark::default()).count();
        assert_eq!(known, 64);
        assert_eq!(mark(&fresh, 255), Mark(256));
        assert_eq!(mark(&fresh, 0), Mark::default());
    }
}
