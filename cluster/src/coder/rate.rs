//! How fast a count grows.

use smalti_rowcommit::Time;
use std::collections::VecDeque;
use std::time::Duration;

/// The rate is that of so long.
const SPAN: Duration = Duration::from_secs(5);

/// A count that grows, looked at now and then.
#[derive(Debug, Default)]
pub(super) struct Rate(VecDeque<(Time, u64)>);

impl Rate {
    /// What the count is now.
    pub(super) fn note(&mut self, now: Time, count: u64) {
        self.0.push_back((now, count));
        // One from before the span stays, to measure from.
        while self.0.get(1).is_some_and(|(at, _)| now.since(*at) >= SPAN) {
            self.0.pop_front();
        }
    }

    /// By how much it grew in a second of late.
    pub(super) fn rate(&self) -> u64 {
        let (Some(first), Some(last)) = (self.0.front(), self.0.back()) else { return 0 };
        let millis = u64::try_from(last.0.since(first.0).as_millis()).unwrap_or(u64::MAX);
        last.1.saturating_sub(first.1).saturating_mul(1000).checked_div(millis).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_last_seconds() {
        let mut rate = Rate::default();
        let at = |millis: u64| Time(millis * 1000);
        assert_eq!(rate.rate(), 0);
        rate.note(at(1000), 70);
        assert_eq!(rate.rate(), 0);
        rate.note(at(1500), 120);
        assert_eq!(rate.rate(), 100);
        for half_second in 4..40 {
            rate.note(at(half_second * 500), 1000);
        }
        assert_eq!(rate.rate(), 0);
    }
}
