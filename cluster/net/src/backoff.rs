//! How long to wait before the next attempt to connect. Pure: time comes in.

use std::time::{Duration, Instant};

/// A connection that lived this long was a good one, and its loss is no reason to wait.
const PROVEN: Duration = Duration::from_secs(1);

/// Doubles the pause with every failure, from `min` to `max`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    pause: Duration,
    not_before: Option<Instant>,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, pause: min, not_before: None }
    }

    /// How long to wait at `now` before the next attempt.
    pub(crate) fn wait(&self, now: Instant) -> Duration {
        self.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// An attempt failed.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.not_before = Some(now + self.pause);
        self.pause = (self.pause * 2).min(self.max);
    }

    /// A connection that was made at `since` is gone. One that broke at once counts as a failed
    /// attempt, or a peer that accepts and then hangs up would be dialled in a tight loop.
    pub(crate) fn lost(&mut self, since: Instant, now: Instant) {
        if now.saturating_duration_since(since) < PROVEN {
            self.failed(now);
        } else {
            *self = Self::new(self.min, self.max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_the_limit_and_start_over_after_a_good_connection() {
        let ms = Duration::from_millis;
        let start = Instant::now();
        let mut backoff = Backoff::new(ms(20), ms(500));
        assert_eq!(backoff.wait(start), Duration::ZERO);
        let pauses: Vec<_> = (0..7)
            .map(|_| {
                backoff.failed(start);
                backoff.wait(start)
            })
            .collect();
        assert_eq!(pauses, [20, 40, 80, 160, 320, 500, 500].map(ms));
        assert_eq!(backoff.wait(start + ms(100)), ms(400));
        backoff.lost(start, start + ms(10));
        assert_eq!(backoff.wait(start + ms(10)), ms(500));
        backoff.lost(start, start + PROVEN);
        assert_eq!(backoff.wait(start + PROVEN), Duration::ZERO);
        backoff.failed(start);
        assert_eq!(backoff.wait(start), ms(20));
    }
}
