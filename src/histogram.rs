//! Durations counted in buckets, for `/metrics`.

use std::time::Duration;

/// Upper bounds of the buckets in milliseconds; the last bucket has none.
const BOUNDS_MS: [u64; 14] = [
    1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000,
];

/// How often durations of each size were seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Histogram {
    counts: [u64; BOUNDS_MS.len() + 1],
    sum: Duration,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&mut self, took: Duration) {
        let bucket = BOUNDS_MS
            .iter()
            .position(|bound| took <= Duration::from_millis(*bound))
            .unwrap_or(BOUNDS_MS.len());
        self.counts[bucket] += 1;
        self.sum = self.sum.saturating_add(took);
    }

    /// Each bound in seconds with the number of durations up to it; without the last bucket.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let mut total = 0;
        BOUNDS_MS
            .iter()
            .zip(self.counts)
            .map(move |(bound, count)| {
                total += count;
                (Duration::from_millis(*bound).as_secs_f64(), total)
            })
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket_and_buckets_add_up() {
        let mut histogram = Histogram::default();
        for millis in [1, 2, 1000, 90_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let buckets: Vec<(f64, u64)> = histogram.cumulative().collect();
        assert_eq!(&buckets[..2], [(0.001, 1), (0.005, 2)]);
        assert!(buckets.contains(&(0.5, 2)) && buckets.contains(&(1.0, 3)));
        assert_eq!(buckets.last(), Some(&(60.0, 3)));
        assert_eq!(
            (histogram.count(), histogram.sum()),
            (4, Duration::from_millis(91_003))
        );
    }
}
