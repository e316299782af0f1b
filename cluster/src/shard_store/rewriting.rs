//! How fast a store rewrites what it has, while those who write to it wait.
//!
//! The same rule as for repairs, with another measure: what nine of ten batches take, and MiB a second
//! instead of repairs at once.

use crate::clock;
use smalti_rowcommit::Time;
use smalti_rowcommit::governor::{Burden, Governor, QUIET_EVERY, Work};
use smalti_storage::store::ShardStore;
use std::time::Duration;

/// What one more of the governor's window stands for. It never lets through less than this.
const UNIT: u64 = 2 << 20;
/// With so many of them nothing is held up.
const MOST: usize = 512;
/// A store that has wanted to rewrite nothing for so long is done.
const DONE: Duration = Duration::from_secs(1);

/// Watches the batches of one store.
#[derive(Debug)]
pub(super) struct Rewriting {
    governor: Governor,
    batches: u64,
    seen: u64,
    changed: Option<Time>,
    urgent: bool,
    around: Burden,
}

impl Default for Rewriting {
    fn default() -> Self {
        Self::with_phase(clock::phase(QUIET_EVERY))
    }
}

impl Rewriting {
    fn with_phase(phase: Duration) -> Self {
        Self {
            governor: Governor::of_many(MOST).with_phase(phase),
            batches: 0,
            seen: 0,
            changed: None,
            urgent: false,
            around: Burden::default(),
        }
    }

    /// A batch was begun, and is durable now.
    pub(super) fn batch(&mut self, begun: Time, now: Time) {
        self.governor.began(self.batches, begun);
        self.governor.ended(self.batches, now);
        self.batches += 1;
    }

    /// Whether writes wait for it or soon will: for the space that it frees, or for tables in order.
    pub(super) fn set_urgent(&mut self, urgent: bool) {
        self.urgent = urgent;
    }

    /// What others have to do, and how clients bear it.
    pub(super) fn set_around(&mut self, around: Burden) {
        self.around = around;
    }

    /// Whether the store rewrites.
    pub(super) fn is_at_work(&self, now: Time) -> bool {
        self.governor.burden(now).at_work
    }

    /// Tells the store how fast it may go on.
    pub(super) fn pace(&mut self, store: &dyn ShardStore, now: Time) {
        store.pace_rewriting(self.step(store.rewritten(), now));
    }

    /// Bytes a second, of a store that has wanted to rewrite so many until now; `None`: all there is.
    fn step(&mut self, rewritten: u64, now: Time) -> Option<u64> {
        if rewritten != self.seen {
            self.seen = rewritten;
            self.changed = Some(now);
        }
        let at_work = self.changed.is_some_and(|at| now.since(at) < DONE);
        let work = Work { repairing: at_work, urgent: self.urgent, around: self.around };
        self.governor.tick(now, work);
        let window = self.governor.window();
        (window < MOST).then_some(window as u64 * UNIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    /// Half a second past a common quiet moment.
    const BEGUN: Time = Time(10_500_000);

    /// Ten seconds of a batch each millisecond, and of rewriting; the pace in the end, in MiB a second, and
    /// how often nothing was let through.
    fn busy(rewriting: &mut Rewriting, begun: Time, takes: impl Fn(u64) -> u64) -> (u64, u32) {
        let (mut now, mut pace, mut held) = (begun, FIRST, 0);
        for no in 0..10_000 {
            let done = now.after(Duration::from_micros(takes(pace)));
            rewriting.batch(now, done);
            now = now.after(Duration::from_millis(1));
            pace = rewriting.step(no, done).unwrap_or(u64::MAX) / MIB;
            held += u32::from(pace == 0);
        }
        (pace, held)
    }

    /// What a store begins with.
    const FIRST: u64 = 16;

    #[test]
    fn it_backs_off_for_batches_and_looks_how_they_are_without() {
        let mut rewriting = Rewriting::with_phase(Duration::ZERO);
        let now = BEGUN;
        assert_eq!(rewriting.step(0, now), Some(FIRST * MIB));
        // Twice as long at 20 MiB a second.
        let (pace, held) = busy(&mut rewriting, now, |pace| 2000 + 100 * pace.min(1000));
        assert!((2..=10).contains(&pace), "{pace}");
        assert!((500..2000).contains(&held), "{held}");
    }

    #[test]
    fn batches_that_do_not_wait_for_it_let_it_be() {
        let mut rewriting = Rewriting::with_phase(Duration::ZERO);
        let (pace, _) = busy(&mut rewriting, BEGUN, |_| 2000);
        assert!(pace > 100, "{pace}");
    }

    #[test]
    fn it_takes_all_there_is_when_nobody_waits_or_space_is_scarce() {
        let begun = BEGUN;
        let mut rewriting = Rewriting::with_phase(Duration::ZERO);
        busy(&mut rewriting, begun, |pace| 2000 + 1000 * pace.min(1000));
        let mut now = begun.after(Duration::from_secs(11));
        for no in 0..10 {
            now = now.after(Duration::from_millis(500));
            rewriting.step(20_000 + no, now);
        }
        assert_eq!(rewriting.step(30_000, now), None);

        let mut rewriting = Rewriting::with_phase(Duration::ZERO);
        rewriting.set_urgent(true);
        let (pace, held) = busy(&mut rewriting, begun, |pace| 2000 + 1000 * pace.min(1000));
        assert_eq!((pace, held), (u64::MAX / MIB, 0));
    }
}
