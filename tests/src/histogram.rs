//! Times of operations in a bounded table: powers of two, cut in eight.

use std::time::Duration;

const CUTS: usize = 8;
const BUCKETS: usize = 40 * CUTS;

/// How many operations took how long.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    longest: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], longest: Duration::ZERO }
    }
}

fn bucket(us: u64) -> usize {
    if us < CUTS as u64 {
        return us as usize;
    }
    let power = 63 - us.leading_zeros() as usize;
    let cut = (us >> (power - 3)) as usize & (CUTS - 1);
    ((power - 2) * CUTS + cut).min(BUCKETS - 1)
}

fn lower_bound_us(bucket: usize) -> u64 {
    if bucket < CUTS {
        return bucket as u64;
    }
    let power = bucket / CUTS + 2;
    ((CUTS + bucket % CUTS) as u64) << (power - 3)
}

impl Histogram {
    /// Counts one operation.
    pub fn add(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket(us)] += 1;
        self.longest = self.longest.max(took);
    }

    /// Adds all of another table.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.longest = self.longest.max(other.longest);
    }

    /// Operations in all.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The longest one.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// The time that `percent` of the operations did not exceed, to an eighth.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Duration {
        let rank = (self.count() as f64 * percent / 100.0).ceil() as u64;
        let mut seen = 0;
        for (i, n) in self.counts.iter().enumerate() {
            seen += n;
            if seen >= rank && *n > 0 {
                return Duration::from_micros(lower_bound_us(i));
            }
        }
        self.longest
    }

    /// `1234 operations, p50 1 ms, p99 4 ms, longest 700 ms`.
    #[must_use]
    pub fn brief(&self) -> String {
        format!(
            "{} operations, p50 {:.1?}, p99 {:.1?}, longest {:.1?}",
            self.count(),
            self.percentile(50.0),
            self.percentile(99.0),
            self.longest
        )
    }

    /// One line per power of two that holds anything, with a bar.
    #[must_use]
    pub fn drawing(&self) -> String {
        let mut powers: Vec<(u64, u64)> = Vec::new();
        for (i, n) in self.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            let from = lower_bound_us(i / CUTS * CUTS);
            match powers.last_mut() {
                Some((last, sum)) if *last == from => *sum += n,
                _ => powers.push((from, *n)),
            }
        }
        let most = powers.iter().map(|p| p.1).max().unwrap_or(1);
        let line = |(from, n): &(u64, u64)| {
            let bar = "#".repeat(((n * 50).div_ceil(most)) as usize);
            format!("  from {:>10} {n:>8} {bar}", format!("{:?}", Duration::from_micros(*from)))
        };
        powers.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_their_bounds() {
        for us in (0..5000).chain([65_535, 65_536, 1_000_000, 60_000_000]) {
            let b = bucket(us);
            assert!(lower_bound_us(b) <= us, "{us} is in bucket {b}");
            assert!(us < lower_bound_us(b + 1), "{us} is in bucket {b}");
        }
    }

    #[test]
    fn percentiles_and_longest() {
        let mut h = Histogram::default();
        (1..=1000).for_each(|ms| h.add(Duration::from_millis(ms)));
        let p50 = h.percentile(50.0).as_millis();
        assert!((437..=500).contains(&p50), "{p50}");
        assert_eq!(h.longest(), Duration::from_secs(1));
        assert_eq!(h.count(), 1000);
        assert!(h.drawing().contains('#'));
    }
}
