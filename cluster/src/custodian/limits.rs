//! How often a node may ask for shares: a bucket for each, emptied by one with each share and filled
//! slowly. Whoever has taken a node over gets what it could have had anyway, but not all at once, and the log
//! shows it meanwhile.

use smalti_storage::ids::NodeId;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Shares that a node may have at once, at least: of some hundred volumes that it opens after a restart.
pub(super) const BURST: u32 = 512;

/// One more each.
const REFILL: Duration = Duration::from_millis(250);

/// What nodes have left.
#[derive(Debug, Default)]
pub(super) struct Limits {
    /// How many each has taken of its burst, and since when that is so.
    taken: BTreeMap<NodeId, (u32, Instant)>,
}

impl Limits {
    /// Takes one for a node, of so many that it may have at once; else says after how long it may ask again.
    pub(super) fn take(&mut self, node: NodeId, now: Instant, burst: u32) -> Result<(), Duration> {
        let (taken, since) = self.taken.entry(node).or_insert((0, now));
        let refilled = now.saturating_duration_since(*since).as_millis() / REFILL.as_millis();
        let refilled = u32::try_from(refilled).unwrap_or(u32::MAX);
        if refilled >= *taken {
            (*taken, *since) = (0, now);
        } else {
            *taken -= refilled;
            *since += REFILL * refilled;
        }
        if *taken >= burst {
            return Err(REFILL.saturating_sub(now.saturating_duration_since(*since)));
        }
        *taken += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_given_and_then_one_after_the_other() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let (one, other) = (NodeId(1), NodeId(2));
        for _ in 0..BURST {
            assert_eq!(limits.take(one, start, BURST), Ok(()));
        }
        assert_eq!(limits.take(one, start, BURST), Err(REFILL));
        assert_eq!(limits.take(other, start, BURST), Ok(()), "each has its own");
        let later = start + REFILL * 5 / 2;
        assert_eq!(limits.take(one, later, BURST), Ok(()));
        assert_eq!(limits.take(one, later, BURST), Ok(()));
        assert_eq!(limits.take(one, later, BURST), Err(REFILL / 2));
        let much_later = start + REFILL * (2 * BURST);
        for _ in 0..BURST {
            assert_eq!(limits.take(one, much_later, BURST), Ok(()));
        }
        assert!(limits.take(one, much_later, BURST).is_err());
    }
}
