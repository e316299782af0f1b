//! How much is repaired at once while clients wait for answers; and, in the same way, how fast a store
//! rewrites what it has while batches wait for its disk. What follows says it of repairs.
//!
//! G1. Now and then, while clients are busy, nothing is repaired for a moment: how long they wait then is
//!     what they would wait without repairs.
//! G2. As long as they wait for not much longer than that, more is repaired at once; else less.
//! G3. Something is repaired always, but for those moments: it must end.
//! G4. With no client waiting it is as much as there is room for, and as well where writes wait for what
//!     is repaired.
//!
//! Additive increase, multiplicative decrease, as of TCP's window (RFC 5681); the signal is the time that
//! nine of ten operations take, for the hundredth is too rare to be seen in a step.

use crate::time::Time;
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two changes of the window.
const STEP: Duration = Duration::from_millis(100);

/// Clients that have been silent for so long are idle.
const IDLE: Duration = Duration::from_millis(500);

/// Between two moments without repairs, and how long one is. What was under way when it began ends in
/// its first half.
const QUIET_EVERY: Duration = Duration::from_secs(2);
const QUIET: Duration = Duration::from_millis(200);

/// Clients may wait this many times as long, and this much longer.
const BEARABLE: f64 = 1.5;
const UNNOTICED: f64 = 200.0;
/// Instead of the former where several are waited for at once, and the last one counts.
const BEARABLE_OF_MANY: f64 = 1.25;

/// With fewer operations in a step nothing is concluded.
const FEWEST: usize = 8;

/// Repairs at once to begin with.
const FIRST: f64 = 8.0;

/// Between two quiet moments clients that are answered fewer times than [`FEWEST`], and wait for less than
/// this part of the time, are as good as idle.
const TRICKLE: u32 = 10;

/// How much a newer measurement of the undisturbed time counts.
const NEWER: f64 = 0.5;

/// Watches how long clients wait, and says how much may be repaired at once.
#[derive(Clone, Debug)]
pub struct Governor {
    most: f64,
    bearable: f64,
    window: f64,
    /// Operations of clients under way.
    begun: BTreeMap<u64, Time>,
    last_ended: Option<Time>,
    /// Microseconds that operations took since the last step.
    took: Vec<f64>,
    /// The same in the second halves of quiet moments, of several where one has too few.
    took_alone: Vec<f64>,
    /// Operations since the last quiet moment, and microseconds that they took.
    since_quiet: (usize, f64),
    /// Clients were as good as idle between the last two moments that would have been quiet.
    trickle: bool,
    /// What they take undisturbed.
    alone: Option<f64>,
    stepped: Time,
    /// When the present quiet moment began, and when the last one ended.
    quiet_since: Option<Time>,
    quiet_ended: Option<Time>,
}

impl Governor {
    /// At most so many repairs at once.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most: most as f64,
            bearable: BEARABLE,
            window: FIRST.min(most as f64),
            begun: BTreeMap::new(),
            last_ended: None,
            took: Vec::new(),
            took_alone: Vec::new(),
            since_quiet: (0, 0.0),
            trickle: false,
            alone: None,
            stepped: Time::default(),
            quiet_since: None,
            quiet_ended: None,
        }
    }

    /// The same for one of several things that clients wait for at once.
    #[must_use]
    pub fn of_many(most: usize) -> Self {
        Self { bearable: BEARABLE_OF_MANY, ..Self::new(most) }
    }

    /// A client's operation begins.
    pub fn began(&mut self, op: u64, now: Time) {
        self.begun.insert(op, now);
    }

    /// It has been answered.
    pub fn ended(&mut self, op: u64, now: Time) {
        let Some(began) = self.begun.remove(&op) else { return };
        self.last_ended = Some(now);
        let took = now.since(began).as_micros() as f64;
        match self.quiet_since {
            None => {
                self.took.push(took);
                self.since_quiet.0 += 1;
                self.since_quiet.1 += took;
            }
            Some(since) if now.since(since) >= QUIET / 2 => self.took_alone.push(took),
            Some(_) => {}
        }
    }

    /// So many repairs may be under way.
    #[must_use]
    pub fn window(&self) -> usize {
        match self.quiet_since {
            Some(_) => 0,
            // Never fewer than one.
            None => self.window.max(1.0) as usize,
        }
    }

    /// Time has passed. `repairing`: there is something to repair; `urgent`: clients wait for that.
    pub fn tick(&mut self, now: Time, repairing: bool, urgent: bool) {
        if !repairing {
            *self = Self {
                begun: std::mem::take(&mut self.begun),
                last_ended: self.last_ended,
                alone: self.alone,
                bearable: self.bearable,
                ..Self::new(self.most as usize)
            };
            return;
        }
        if urgent {
            self.quiet_since = None;
            self.took.clear();
            self.window = self.most;
            return;
        }
        if let Some(since) = self.quiet_since {
            if now.since(since) >= QUIET {
                self.measured();
                self.begin_interval(now);
            }
            return;
        }
        let first = self.quiet_ended.is_none();
        let (ops, took) = self.since_quiet;
        let heard = ops >= FEWEST || took >= (QUIET_EVERY / TRICKLE).as_micros() as f64;
        // Who comes back is heard at once, not at the end of the interval.
        let due =
            self.quiet_ended.is_none_or(|at| now.since(at) >= QUIET_EVERY) || self.trickle && heard;
        if due && !first {
            self.trickle = !heard;
        }
        let idle = self.trickle || self.last_ended.is_none_or(|at| now.since(at) >= IDLE);
        if !idle && due {
            self.quiet_since = Some(now);
            self.took.clear();
        } else if due && self.trickle {
            self.begin_interval(now);
        } else if now.since(self.stepped) >= STEP {
            self.stepped = now;
            self.step(idle);
        }
    }

    fn begin_interval(&mut self, now: Time) {
        self.quiet_since = None;
        self.quiet_ended = Some(now);
        self.since_quiet = (0, 0.0);
        self.stepped = now;
    }

    fn measured(&mut self) {
        if let Some(took) = ninth_of_ten(&mut self.took_alone) {
            let before = self.alone.unwrap_or(took);
            self.alone = Some(before + NEWER * (took - before));
            self.took_alone.clear();
        }
        self.took.clear();
    }

    fn step(&mut self, idle: bool) {
        if idle {
            // Those that wait for long are heard of when they end.
            if self.begun.is_empty() {
                self.window = (self.window * 2.0).min(self.most);
            }
            return;
        }
        let Some((took, alone)) = ninth_of_ten(&mut self.took).zip(self.alone) else { return };
        self.took.clear();
        self.window = if took > alone * self.bearable + UNNOTICED {
            (self.window * 0.7).max(1.0)
        } else {
            (self.window + 1.0).min(self.most)
        };
    }
}

/// In what time nine of ten of the operations ended.
fn ninth_of_ten(took: &mut [f64]) -> Option<f64> {
    if took.len() < FEWEST {
        return None;
    }
    took.sort_by(f64::total_cmp);
    took.get(took.len() * 9 / 10).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 512;

    struct Rig {
        governor: Governor,
        now: Time,
        op: u64,
        quiet: u32,
    }

    impl Rig {
        fn new() -> Self {
            let (governor, now) = (Governor::new(MOST), Time(10_000_000));
            Self { governor, now, op: 0, quiet: 0 }
        }

        /// Milliseconds go by, with an operation of a client in each that takes what it says.
        fn busy(&mut self, millis: u64, took: impl Fn(usize) -> u64) {
            for _ in 0..millis {
                self.op += 1;
                let took = Duration::from_micros(took(self.governor.window()));
                self.governor.began(self.op, self.now);
                self.governor.ended(self.op, self.now.after(took));
                self.now = self.now.after(Duration::from_millis(1));
                if self.op.is_multiple_of(20) {
                    self.governor.tick(self.now, true, false);
                }
                self.quiet += u32::from(self.governor.window() == 0);
            }
        }

        /// The same with an operation every so many milliseconds.
        fn every(&mut self, millis: u64, each: u64, took: impl Fn(usize) -> u64) {
            for at in 0..millis {
                if at.is_multiple_of(each) {
                    self.op += 1;
                    let took = Duration::from_micros(took(self.governor.window()));
                    self.governor.began(self.op, self.now);
                    self.governor.ended(self.op, self.now.after(took));
                }
                self.now = self.now.after(Duration::from_millis(1));
                if at.is_multiple_of(20) {
                    self.governor.tick(self.now, true, false);
                }
            }
        }

        fn idle(&mut self, millis: u64) {
            for _ in 0..millis / 20 {
                self.now = self.now.after(Duration::from_millis(20));
                self.governor.tick(self.now, true, false);
            }
        }
    }

    #[test]
    fn clients_that_notice_nothing_let_it_grow() {
        let mut rig = Rig::new();
        rig.busy(10_000, |_| 1000);
        assert!(rig.governor.window() > 60, "{}", rig.governor.window());
    }

    #[test]
    fn clients_that_wait_make_it_less_and_it_never_ends() {
        let mut rig = Rig::new();
        rig.busy(10_000, |window| if window == 0 { 1000 } else { 10_000 });
        assert_eq!(rig.governor.window(), 1);
    }

    #[test]
    fn it_settles_where_clients_wait_for_not_much_longer() {
        let mut rig = Rig::new();
        rig.busy(30_000, |window| 1000 + 50 * window as u64);
        // 1000 x 1.5 + 200 is what 14 repairs at once cost.
        let window = rig.governor.window();
        assert!((7..=16).contains(&window), "{window}");
        // A tenth of the time goes to looking how it would be without.
        assert!((2000..4000).contains(&rig.quiet), "{}", rig.quiet);
    }

    #[test]
    fn with_no_client_it_takes_all_there_is() {
        let mut rig = Rig::new();
        rig.busy(5_000, |window| 1000 + 1000 * window as u64);
        assert!(rig.governor.window() < 4);
        rig.idle(2_000);
        assert_eq!(rig.governor.window(), MOST);
    }

    #[test]
    fn what_writes_wait_for_takes_all_there_is() {
        let mut rig = Rig::new();
        rig.busy(5_000, |window| 1000 + 1000 * window as u64);
        assert!(rig.governor.window() < 4);
        for _ in 0..20 {
            rig.now = rig.now.after(Duration::from_millis(20));
            rig.governor.tick(rig.now, true, true);
        }
        assert_eq!(rig.governor.window(), MOST);
    }

    /// So few that one quiet moment has too few of them; and they wait.
    #[test]
    fn slow_clients_are_heard_as_well() {
        let mut rig = Rig::new();
        rig.every(60_000, 50, |window| if window == 0 { 40_000 } else { 80_000 });
        assert_eq!(rig.governor.window(), 1);
        let mut rig = Rig::new();
        rig.every(60_000, 50, |_| 40_000);
        assert!(rig.governor.window() > 20, "{}", rig.governor.window());
    }

    #[test]
    fn a_trickle_is_no_client_unless_it_waits() {
        let mut rig = Rig::new();
        rig.every(20_000, 300, |_| 3_000);
        assert_eq!(rig.governor.window(), MOST);
        // What was slow from the first moment may be slow by what is done here.
        let mut rig = Rig::new();
        rig.every(20_000, 300, |_| 290_000);
        assert!(rig.governor.window() < 40, "{}", rig.governor.window());
    }

    #[test]
    fn who_comes_after_a_trickle_is_heard_at_once() {
        for before in [10_000, 10_500, 11_000, 11_500] {
            let mut rig = Rig::new();
            rig.every(before, 300, |_| 3_000);
            assert_eq!(rig.quiet, 0);
            rig.busy(60, |_| 1000);
            assert!(rig.quiet > 0, "after a trickle for {before} ms");
        }
    }

    /// Larger operations than before are not held against what is done meanwhile for good.
    #[test]
    fn what_they_take_undisturbed_may_change() {
        let mut rig = Rig::new();
        rig.busy(10_000, |_| 2_000);
        rig.every(60_000, 80, |_| 75_000);
        assert!(rig.governor.window() > 20, "{}", rig.governor.window());
    }

    #[test]
    fn an_operation_that_hangs_is_no_idle_client() {
        let mut rig = Rig::new();
        rig.busy(1_000, |_| 1000);
        rig.governor.began(u64::MAX, rig.now);
        rig.idle(5_000);
        assert!(rig.governor.window() < 40, "{}", rig.governor.window());
    }
}
