//! How long a disk takes to make a batch durable, and which disks take far longer than the others.
//!
//! A disk that hangs is found by those who wait for it. One that answers, but slowly, holds every write up
//! by what it takes more than the others, and only a comparison tells: stores of one cluster have
//! batches of one kind.

use smalti_rowcommit::Time;
use smalti_storage::ids::StoreId;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// What is older says nothing about the disk as it is.
const WINDOW: Duration = Duration::from_secs(30);

/// A disk is judged by so many different seconds in which it had something to do.
const SECONDS_MIN: usize = 10;

/// So many times what the others take is slow.
const TIMES: u32 = 8;

/// Less than this holds up nobody to speak of.
const NOTICED: Duration = Duration::from_millis(100);

/// Larger batches take what they take: a store that is rebuilt has many of them. What waits for a slow disk
/// makes its batches larger as well, so this is far above what clients' small writes come to.
const BYTES_MAX: u64 = 1 << 20;

const SECOND: u64 = 1_000_000;

/// What one disk took, of late.
#[derive(Debug, Default)]
pub(super) struct Pace {
    seconds: VecDeque<Second>,
}

#[derive(Clone, Copy, Debug)]
struct Second {
    no: u64,
    batches: u64,
    micros: u64,
}

impl Pace {
    /// A batch with so many bytes of records was begun, and is durable now.
    pub(super) fn note(&mut self, bytes: u64, begun: Time, now: Time) {
        if bytes > BYTES_MAX {
            return;
        }
        let (no, micros) = (now.0 / SECOND, now.0.saturating_sub(begun.0));
        match self.seconds.back_mut() {
            Some(last) if last.no == no => {
                last.batches += 1;
                last.micros += micros;
            }
            _ => self.seconds.push_back(Second { no, batches: 1, micros }),
        }
        self.forget(now);
    }

    /// What a batch takes on average; none while too few are known.
    pub(super) fn mean(&mut self, now: Time) -> Option<Duration> {
        self.forget(now);
        let batches: u64 = self.seconds.iter().map(|second| second.batches).sum();
        let micros: u64 = self.seconds.iter().map(|second| second.micros).sum();
        let enough = self.seconds.len() >= SECONDS_MIN;
        enough.then(|| Duration::from_micros(micros / batches.max(1)))
    }

    fn forget(&mut self, now: Time) {
        let oldest = (now.0 / SECOND).saturating_sub(WINDOW.as_secs());
        while self.seconds.front().is_some_and(|second| second.no < oldest) {
            self.seconds.pop_front();
        }
    }
}

/// A disk that takes far longer than others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowDisk {
    /// Its store.
    pub store: StoreId,
    /// What a batch takes on it.
    pub takes: Duration,
    /// The same on most others.
    pub others: Duration,
}

/// The slow ones among stores that are known to have had something to do. Of two nobody can tell which
/// is the odd one.
pub fn slow_disks(paces: &BTreeMap<StoreId, Duration>) -> Vec<SlowDisk> {
    let slow = paces.iter().filter_map(|(store, takes)| {
        let others = paces.iter().filter(|(other, _)| *other != store);
        let mut others: Vec<Duration> = others.map(|(_, takes)| *takes).collect();
        if others.len() < 2 {
            return None;
        }
        others.sort_unstable();
        // Of an even number the slower one of the middle: in doubt nobody is accused.
        let others = *others.get(others.len() / 2)?;
        let is_slow = *takes > NOTICED && *takes > others * TIMES;
        is_slow.then_some(SlowDisk { store: *store, takes: *takes, others })
    });
    slow.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn at(millis: u64) -> Time {
        Time(millis * 1000)
    }

    #[test]
    fn a_disk_is_judged_by_what_it_did_of_late() {
        let mut pace = Pace::default();
        for second in 0..10 {
            assert_eq!(pace.mean(at(second * 1000)), None, "after {second} seconds");
            pace.note(BYTES_MAX, at(second * 1000), at(second * 1000 + 4));
            pace.note(0, at(second * 1000 + 10), at(second * 1000 + 12));
            pace.note(BYTES_MAX + 1, at(second * 1000), at(second * 1000 + 900));
        }
        assert_eq!(pace.mean(at(9_999)), Some(Duration::from_millis(3)));
        // Slower from now on.
        for second in 10..50 {
            pace.note(1, at(second * 1000), at(second * 1000 + 100));
        }
        assert_eq!(pace.mean(at(50_000)), Some(Duration::from_millis(100)));
        assert!(pace.seconds.len() <= 31);
        assert_eq!(pace.mean(at(200_000)), None);
    }

    fn found(millis: &[u64]) -> Vec<usize> {
        let store = |no: usize| StoreId(Uuid::from_u128(no as u128));
        let paces = millis.iter().enumerate();
        let paces = paces.map(|(no, takes)| (store(no), Duration::from_millis(*takes))).collect();
        let slow = slow_disks(&paces);
        slow.iter().map(|slow| slow.store.0.as_u128() as usize).collect()
    }

    #[test]
    fn the_one_that_takes_far_longer_is_found() {
        assert_eq!(found(&[3, 300, 4]), [1]);
        assert_eq!(found(&[3, 300, 4, 290, 5]), [1, 3]);
        // All are slow, or one is a little, or nobody would notice.
        assert_eq!(found(&[300, 310, 400]), [] as [usize; 0]);
        assert_eq!(found(&[30, 200, 40]), [] as [usize; 0]);
        assert_eq!(found(&[1, 90, 1]), [] as [usize; 0]);
        // Too few to tell.
        assert_eq!(found(&[3, 300]), [] as [usize; 0]);
        assert_eq!(found(&[300]), [] as [usize; 0]);
        assert_eq!(found(&[3, 300, 300]), [] as [usize; 0]);
    }
}
