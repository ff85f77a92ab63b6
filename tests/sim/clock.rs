//! Clocks: every node has one of its own, which started at another time and runs a little too fast or too slow.

use std::time::Duration;

use howdah::types::{Moment, WallTime};

use crate::rng::Rng;

/// No clock is further off than this, in millionths.
const DRIFT_MAX: u64 = 10_000;
/// Wall clocks differ by no more than this, in milliseconds.
const SKEW_MAX: u64 = 3_000;

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Clock {
    /// What it showed when the world began.
    ahead: Duration,
    /// Its rate, in millionths above the true one.
    drift: i64,
    /// Wall time, in milliseconds before or after the true one.
    skew: i64,
}

impl Clock {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let around = |rng: &mut Rng, most: u64| {
            i64::try_from(rng.below(2 * most + 1)).unwrap_or(0) - i64::try_from(most).unwrap_or(0)
        };
        Clock {
            ahead: Duration::from_millis(rng.below(1_000_000)),
            drift: around(rng, DRIFT_MAX),
            skew: around(rng, SKEW_MAX),
        }
    }

    /// What it shows at this true time.
    pub(crate) fn read(&self, now: Moment) -> Moment {
        let nanos = i128::try_from(now.0.as_nanos()).unwrap_or(0);
        let shown = nanos + nanos * i128::from(self.drift) / 1_000_000;
        Moment(self.ahead + Duration::from_nanos(u64::try_from(shown).unwrap_or(0)))
    }

    /// The true time at which it shows this, or a little later.
    pub(crate) fn when(&self, shown: Moment) -> Moment {
        let nanos = i128::try_from(shown.0.saturating_sub(self.ahead).as_nanos()).unwrap_or(0);
        let real = nanos * 1_000_000 / (1_000_000 + i128::from(self.drift)) + 1000;
        Moment(Duration::from_nanos(u64::try_from(real).unwrap_or(0)))
    }

    /// Wall time by it.
    pub(crate) fn wall(&self, now: Moment) -> WallTime {
        WallTime(i64::try_from(now.0.as_millis()).unwrap_or(0) + self.skew)
    }
}
