//! The clock of leases: goes on counting while the machine is suspended, unlike
//! [`std::time::Instant`].

use rustix::time::{ClockId, clock_gettime};
use smalti_rowcommit::Time;
use std::time::Duration;

/// Microseconds on this machine's `CLOCK_BOOTTIME`.
pub fn now() -> Time {
    #[cfg(test)]
    if let Some(time) = simulated::now() {
        return time;
    }
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_nsec / 1000).unwrap_or(0);
    Time(seconds * 1_000_000 + micros)
}

/// Unix seconds, for what people and other starts of this node read.
pub fn unix_seconds() -> u64 {
    u64::try_from(clock_gettime(ClockId::Realtime).tv_sec).unwrap_or(0)
}

/// What the time of day, which machines have in common as far as their clocks are right, is ahead of
/// [`now`], up to whole intervals.
pub(crate) fn phase(interval: Duration) -> Duration {
    #[cfg(test)]
    if simulated::is_on() {
        return Duration::ZERO;
    }
    let day = clock_gettime(ClockId::Realtime);
    let seconds = u64::try_from(day.tv_sec).unwrap_or(0);
    let micros = u64::try_from(day.tv_nsec / 1000).unwrap_or(0);
    let every = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX).max(1);
    let ahead = (seconds * 1_000_000 + micros) % every + every - now().0 % every;
    Duration::from_micros(ahead % every)
}

/// In tests a thread may go by the clock of its tokio runtime, which can be paused.
#[cfg(test)]
pub(crate) mod simulated {
    use smalti_rowcommit::Time;
    use std::cell::Cell;
    use tokio::time::Instant;

    thread_local! {
        static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
    }

    /// This thread's clock begins now; with `None` it is the machine's again.
    pub(crate) fn begin(since: Option<Instant>) {
        SINCE.set(since);
    }

    pub(crate) fn is_on() -> bool {
        SINCE.get().is_some()
    }

    pub(super) fn now() -> Option<Time> {
        let passed = SINCE.get()?.elapsed().as_micros();
        Some(Time(1 + u64::try_from(passed).unwrap_or(u64::MAX - 1)))
    }
}
