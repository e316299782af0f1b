//! How much is repaired at once while clients wait for answers; and, in the same way, how fast a store
//! rewrites what it has while batches wait for its disk. What follows says it of repairs.
//!
//! G1. Now and then, while clients are busy, nothing is repaired for a moment: how long they wait then is
//!     what they would wait without repairs.
//! G2. As long as they wait for not much longer than that, more is repaired at once; else less.
//! G3. Something is repaired always, but for those moments: it must end.
//! G4. With no client waiting it is as much as there is room for, and as well where writes wait for what
//!     is repaired.
//! G5. Clients of other volumes share disks and processors with that, and count as those of this one: whose
//!     clients are served measures G2 also where it repairs nothing itself, and tells the others ([`Burden`]).
//!     So the quiet moments of all are at the same times.
//!
//! Additive increase, multiplicative decrease, as of TCP's window (RFC 5681); the signal is the time that
//! nine of ten operations take, for the hundredth is too rare to be seen in a step.

use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two changes of the window.
const STEP: Duration = Duration::from_millis(100);

/// Clients that have been silent for so long are idle.
const IDLE: Duration = Duration::from_millis(500);

/// Between two moments without repairs, and how long one is. What was under way when it began ends in
/// its first half.
pub const QUIET_EVERY: Duration = Duration::from_secs(2);
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

/// Who waits for longer does so for something else: a store that is gone, or others in sync.
const HANGS: Duration = Duration::from_secs(10);

/// What others say is a few steps old: so long after less was done for it, it has been heard of.
const HEARSAY: Duration = Duration::from_millis(300);

/// What part of a cluster has to do with repairs, and with clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Burden {
    /// It repairs, or rewrites.
    pub at_work: bool,
    /// It serves clients.
    pub busy: bool,
    /// They wait for longer than they may for repairs.
    pub waits: bool,
}

impl Burden {
    /// Of two parts.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            at_work: self.at_work || other.at_work,
            busy: self.busy || other.busy,
            waits: self.waits || other.waits,
        }
    }
}

/// What there is to do when time has passed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// There is something to repair.
    pub repairing: bool,
    /// Clients wait for that.
    pub urgent: bool,
    /// What the others have.
    pub around: Burden,
}

/// Watches how long clients wait, and says how much may be repaired at once.
#[derive(Clone, Debug)]
pub struct Governor {
    most: f64,
    bearable: f64,
    /// What to add to the time here for one that all have in common.
    phase: Duration,
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
    /// The number of the last common one.
    moment: Option<u64>,
    /// There was something to repair; clients here waited for too long at last.
    repairing: bool,
    waits: bool,
    /// When less was done for what others say.
    gave_way: Option<Time>,
}

impl Governor {
    /// At most so many repairs at once.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most: most as f64,
            bearable: BEARABLE,
            phase: Duration::ZERO,
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
            moment: None,
            repairing: false,
            waits: false,
            gave_way: None,
        }
    }

    /// With quiet moments at the times at which others have theirs: `phase` is what they are ahead of the
    /// time here, of which what is left by [`QUIET_EVERY`] counts.
    #[must_use]
    pub fn with_phase(self, phase: Duration) -> Self {
        Self { phase, ..self }
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

    /// What others are to know.
    #[must_use]
    pub fn burden(&self, now: Time) -> Burden {
        let busy = !self.is_idle(now);
        // Those that wait for so long that none has ended of late are clients all the same.
        let waiting = |since: &Time| (IDLE..HANGS).contains(&now.since(*since));
        let long = self.begun.values().any(waiting);
        let too_long = |alone: f64| IDLE.as_micros() as f64 > alone * self.bearable + UNNOTICED;
        Burden {
            at_work: self.repairing,
            busy: busy || long,
            waits: busy && self.waits || long && self.alone.is_some_and(too_long),
        }
    }

    fn is_idle(&self, now: Time) -> bool {
        self.trickle || self.last_ended.is_none_or(|at| now.since(at) >= IDLE)
    }

    /// The number of the common quiet moment that begins.
    fn beginning(&self, now: Time) -> Option<u64> {
        let (time, every) = (now.after(self.phase).0, QUIET_EVERY.as_micros() as u64);
        let moment = Some(time / every).filter(|_| Duration::from_micros(time % every) < QUIET / 2);
        moment.filter(|_| moment != self.moment)
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

    /// Whether less may be repaired than there is room for, for the sake of clients.
    #[must_use]
    pub fn holds_back(&self) -> bool {
        self.window < self.most
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Time, work: Work) {
        let Work { repairing, urgent, around } = work;
        if !repairing && !around.at_work {
            *self = Self {
                begun: std::mem::take(&mut self.begun),
                last_ended: self.last_ended,
                alone: self.alone,
                bearable: self.bearable,
                phase: self.phase,
                ..Self::new(self.most as usize)
            };
            return;
        }
        if !std::mem::replace(&mut self.repairing, repairing) {
            self.window = FIRST.min(self.most);
        }
        if repairing && urgent {
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
        let common = self.beginning(now);
        let overdue = self.quiet_ended.is_none_or(|at| now.since(at) >= 2 * QUIET_EVERY);
        // Who comes back is heard at once, not at the end of the interval.
        let due = common.is_some() || overdue || self.trickle && heard;
        if due && !first {
            self.trickle = !heard;
        }
        self.moment = common.or(self.moment);
        let idle = self.is_idle(now);
        if due && (!idle || around.busy) {
            self.quiet_since = Some(now);
            self.took.clear();
        } else if due && self.trickle {
            self.begin_interval(now);
        } else if now.since(self.stepped) >= STEP {
            self.stepped = now;
            self.step(now, idle, around);
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

    fn step(&mut self, now: Time, idle: bool, around: Burden) {
        let measured = ninth_of_ten(&mut self.took).zip(self.alone).filter(|_| !idle);
        if let Some((took, alone)) = measured {
            self.took.clear();
            self.waits = took > alone * self.bearable + UNNOTICED;
        }
        if !self.repairing {
            return;
        }
        let heard_of = self.gave_way.is_none_or(|at| now.since(at) >= HEARSAY);
        let less = measured.is_some() && self.waits;
        if less || around.waits {
            if less || heard_of {
                self.window = (self.window * 0.7).max(1.0);
                self.gave_way = Some(now);
            }
        } else if measured.is_some() || idle && around.busy {
            self.window = (self.window + 1.0).min(self.most);
        } else if idle && self.begun.is_empty() {
            // Those that wait for long are heard of when they end.
            self.window = (self.window * 2.0).min(self.most);
        }
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
    const WORK: Work = Work {
        repairing: true,
        urgent: false,
        around: Burden { at_work: false, busy: false, waits: false },
    };

    struct Rig {
        governor: Governor,
        now: Time,
        op: u64,
        quiet: u32,
    }

    impl Rig {
        fn new() -> Self {
            // Half a second past a common moment: so no test ends within one.
            let (governor, now) = (Governor::new(MOST), Time(10_500_000));
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
                    self.governor.tick(self.now, WORK);
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
                    self.governor.tick(self.now, WORK);
                }
            }
        }

        fn idle(&mut self, millis: u64) {
            for _ in 0..millis / 20 {
                self.now = self.now.after(Duration::from_millis(20));
                self.governor.tick(self.now, WORK);
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
            rig.governor.tick(rig.now, Work { urgent: true, ..WORK });
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

    fn around(busy: bool, waits: bool) -> Work {
        Work { around: Burden { at_work: false, busy, waits }, ..WORK }
    }

    /// No client of its own, and those of others wait for it to do less than something.
    #[test]
    fn clients_of_others_count_as_well() {
        let mut rig = Rig::new();
        for _ in 0..500 {
            rig.now = rig.now.after(Duration::from_millis(20));
            let window = rig.governor.window();
            rig.governor.tick(rig.now, around(true, window > 20));
            rig.quiet += u32::from(rig.governor.window() == 0);
        }
        let window = rig.governor.window();
        assert!((10..=21).contains(&window), "{window}");
        assert!((20..=60).contains(&rig.quiet), "{}", rig.quiet);
        // They go.
        rig.idle(2_000);
        assert_eq!(rig.governor.window(), MOST);
    }

    /// Others repair: what clients here wait for is measured, and told.
    #[test]
    fn who_repairs_nothing_tells_whether_clients_wait() {
        for (slow, waits) in [(1_000, false), (10_000, true)] {
            let mut rig = Rig::new();
            let work = Work {
                repairing: false,
                urgent: false,
                around: Burden { at_work: true, ..Burden::default() },
            };
            for at in 0..6_500 {
                rig.op += 1;
                let quiet = rig.now.0 % 2_000_000 < 210_000;
                let took = Duration::from_micros(if quiet { 1_000 } else { slow });
                rig.governor.began(rig.op, rig.now);
                rig.governor.ended(rig.op, rig.now.after(took));
                rig.now = rig.now.after(Duration::from_millis(1));
                if at % 20 == 0 {
                    rig.governor.tick(rig.now, work);
                }
            }
            let burden = rig.governor.burden(rig.now);
            assert_eq!(burden, Burden { at_work: false, busy: true, waits });
            // With nothing to repair anywhere nobody waits for that.
            rig.governor.tick(rig.now, Work::default());
            assert!(!rig.governor.burden(rig.now).waits);
            let later = rig.now.after(Duration::from_secs(1));
            assert_eq!(rig.governor.burden(later), Burden::default());
        }
    }

    #[test]
    fn who_waits_for_long_is_a_client_for_a_while() {
        let mut rig = Rig::new();
        rig.busy(3_000, |_| 1_000);
        rig.governor.began(u64::MAX, rig.now);
        for (after, waits) in [(100, false), (600, true), (9_000, true), (11_000, false)] {
            let burden = rig.governor.burden(rig.now.after(Duration::from_millis(after)));
            assert_eq!((burden.busy, burden.waits), (after < 10_000, waits), "after {after} ms");
        }
    }

    #[test]
    fn quiet_moments_are_at_times_in_common() {
        let ahead = Duration::from_millis(700);
        let (mut here, mut there) = (Governor::new(MOST), Governor::new(MOST).with_phase(ahead));
        let mut both = 0;
        for step in 0..1_000 {
            let now = Time(10_500_000).after(Duration::from_millis(20 * step));
            // Its clock is behind by as much.
            let then = now.before(ahead);
            here.tick(now, around(true, false));
            there.tick(then, around(true, false));
            // But for the first one, which is at once.
            if step > 50 {
                assert_eq!(here.window() == 0, there.window() == 0, "step {step}");
                both += u32::from(here.window() == 0);
            }
        }
        assert!(both > 80, "{both}");
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
