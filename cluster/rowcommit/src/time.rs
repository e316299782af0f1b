//! Time as the protocol sees it: microseconds on some party's own clock.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A point on one party's clock, in microseconds. Only differences on the same clock mean
/// anything. Real parties read `CLOCK_BOOTTIME`, which goes on counting during suspend.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Time(pub u64);

impl Time {
    /// This much later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// This much earlier; no earlier than the beginning.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was; zero when it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// The greatest relative error of a clock's rate that leases tolerate, in parts per thousand.
///
/// Quartz drifts by less than 0.1 per thousand; a virtual machine's clock that is being slewed
/// may err by 0.5. Ten leaves room for both and costs 1 % of a lease.
pub const RHO_PER_MILLE: u64 = 10;

/// The part of a lease its holder may use: `L(1 - rho)`, counted from when it *asked*.
pub fn lease_held(lease: Duration) -> Duration {
    lease.saturating_sub(rho(lease))
}

/// How long its granter must wait: `L(1 + rho)`, counted from when it granted.
pub fn lease_granted(lease: Duration) -> Duration {
    lease.saturating_add(rho(lease))
}

fn rho(lease: Duration) -> Duration {
    let micros = u64::try_from(lease.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(micros / 1000 * RHO_PER_MILLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_always_stops_before_its_granter() {
        let lease = Duration::from_millis(1500);
        assert_eq!(lease_held(lease), Duration::from_millis(1485));
        assert_eq!(lease_granted(lease), Duration::from_millis(1515));
    }
}
