//! The clock of leases: goes on counting while the machine is suspended, unlike
//! [`std::time::Instant`].

use rustix::time::{ClockId, clock_gettime};
use smalti_rowcommit::Time;

/// Microseconds on this machine's `CLOCK_BOOTTIME`.
pub fn now() -> Time {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_nsec / 1000).unwrap_or(0);
    Time(seconds * 1_000_000 + micros)
}
